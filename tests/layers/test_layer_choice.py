import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_dynamic as kd
from keras_dynamic._compat import get_mask
from keras_dynamic.layers.layer_choice import LayerChoice
from keras_dynamic.ops.estimators import ESTIMATORS, HARD_ESTIMATORS
from tests.layers.checks import check_layer, two_replicas

RELAXED = tuple(name for name in ESTIMATORS if name not in HARD_ESTIMATORS)
# softmax of their logarithms: 1/8, 2/8, 5/8.
ODDS = np.array([1, 2, 5], "float32")


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def scalings(*factors):
    return [layers.Rescaling(factor) for factor in factors]


def fitted(choice, x, y, optimizer="sgd", **arguments):
    model = keras.Sequential([keras.Input(x.shape[1:]), choice])
    model.compile(optimizer, "mse")
    history = model.fit(x, y, batch_size=8, verbose=0, **arguments)
    return model, history.history


class Counting(layers.Layer):
    """Counts how often it is really run."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.runs = tf.Variable(0)

    def call(self, inputs):
        self.runs.assign_add(1)
        return inputs


# The whole contract of a layer


def mixed_layers():
    inner = [layers.Dense(6, activation="tanh"), layers.Dense(4)]
    return [layers.Dense(4), keras.Sequential(inner), layers.Identity()]


@pytest.mark.parametrize(
    "arguments, random_training",
    [
        pytest.param(
            {
                "estimator": "soft",
                "temperature": 0.7,
                "entropy_weight": 0.1,
                "costs": [1, 0.3, 0],
                "cost_weight": 0.2,
            },
            False,
            id="soft",
        ),
        pytest.param({"estimator": "straight_through"}, False, id="hard"),
        pytest.param(
            {"estimator": "gumbel_straight_through", "seed": 3}, True, id="draws"
        ),
    ],
)
def test_is_a_layer(arguments, random_training):
    check_layer(
        lambda: LayerChoice(mixed_layers(), **arguments),
        normal(6, 4, seed=1),
        config=arguments,
        random_training=random_training,
        # A hard choice gives no gradient to the layers that it did not take.
        every_weight_trains=arguments["estimator"] in RELAXED,
    )


@pytest.mark.parametrize("estimator", ["soft", "reinmax"])
def test_is_its_only_layer(estimator):
    def dense():
        regularizers = {"activity_regularizer": "l2", "kernel_regularizer": "l2"}
        return layers.Dense(3, kernel_initializer="ones", **regularizers)

    x, y = normal(8, 4), normal(8, 3, seed=1)
    plain, expected = fitted(dense(), x, y, epochs=3)
    model, history = fitted(LayerChoice([dense()], estimator), x, y, epochs=3)
    np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-5)
    answers = [each.predict(x, verbose=0) for each in (model, plain)]
    np.testing.assert_allclose(*answers, rtol=1e-5, atol=1e-6)


# The mixture, and the winner


@pytest.mark.parametrize("estimator", RELAXED)
def test_mixture_by_hand(estimator):
    choice = LayerChoice(scalings(2, -1, 1), estimator)
    choice.logits.assign(np.log(ODDS))
    np.testing.assert_allclose(choice.probabilities(), ODDS / 8, rtol=1e-6)
    # (1 * 2 - 2 * 1 + 5 * 1) / 8 = 5/8
    x = normal(3, 4)
    np.testing.assert_allclose(choice(x), 5 / 8 * x, rtol=1e-5)
    # tau = 1/2 squares the odds: (1 * 2 - 4 * 1 + 25 * 1) / 30 = 23/30
    choice.temperature = 0.5
    np.testing.assert_allclose(choice.probabilities(), ODDS**2 / 30, rtol=1e-6)
    np.testing.assert_allclose(choice(x), 23 / 30 * x, rtol=1e-5)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_training_follows_the_estimator(estimator):
    choice = LayerChoice(scalings(1, 10, 100), estimator, seed=2)
    choice.logits.assign(np.log(ODDS))
    factors = [
        choice(np.ones((2, 1), "float32"), training=True).numpy() for _ in range(50)
    ]
    assert all(factor[0] == factor[1] for factor in factors)  # one choice a call
    seen = {float(factor[0, 0]) for factor in factors}
    if estimator == "soft":
        # (1 + 20 + 500) / 8
        assert seen == {65.125}
    elif estimator == "straight_through":
        assert seen == {100}
    elif estimator == "gumbel_softmax":
        assert len(seen) == 50 and all(1 < factor < 100 for factor in seen)
    else:
        assert seen == {1, 10, 100}


@pytest.mark.parametrize("estimator", HARD_ESTIMATORS)
@pytest.mark.parametrize("graph", [False, True])
def test_only_the_winner_is_run(estimator, graph):
    counting = [Counting(), Counting(), Counting()]
    choice = LayerChoice(counting, estimator)
    x = normal(2, 3)
    choice(x)
    call = tf.function(choice) if graph else choice

    def runs_of(**arguments):
        before = [layer.runs.numpy() for layer in counting]
        call(x, **arguments)
        after = [layer.runs.numpy() for layer in counting]
        return [int(b - a) for a, b in zip(before, after, strict=True)]

    for index in (2, 0, 1):
        choice.logits.assign(np.eye(3)[index])
        assert choice.winner() is counting[index]
        assert runs_of() == np.eye(3)[index].tolist()
    assert runs_of(training=True) == [1, 1, 1]


def test_only_the_winner_is_run_by_predict():
    counting = [Counting(), Counting()]
    choice = LayerChoice(counting, "reinmax")
    model = keras.Sequential([keras.Input((3,)), choice])
    model.compile()
    choice.logits.assign([0, 1])
    model.predict(normal(6, 3), batch_size=2, verbose=0)
    assert [layer.runs.numpy() for layer in counting] == [0, 3]


def test_relaxed_estimators_run_all():
    counting = [Counting(), Counting()]
    LayerChoice(counting, "gumbel_softmax")(normal(2, 3))
    assert [layer.runs.numpy() for layer in counting] == [1, 1]


@pytest.mark.parametrize("jit", [False, True])
def test_one_trace_serves_every_winner_and_its_gradient(jit):
    choice = LayerChoice(scalings(2, -1, 3), "straight_through")
    traces = []

    @tf.function(jit_compile=jit, autograph=False)
    def answer_and_slope(x):
        traces.append(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            answer = choice(x)
        return answer, tape.gradient(answer, x)

    x = tf.constant(normal(2, 4))
    for index, factor in ((2, 3), (1, -1), (0, 2)):
        choice.logits.assign(np.eye(3)[index])
        answer, slope = answer_and_slope(x)
        np.testing.assert_allclose(answer, factor * x.numpy(), rtol=1e-6)
        np.testing.assert_allclose(slope, np.full((2, 4), factor), rtol=1e-6)
    assert len(traces) == 1


def test_first_of_equals_wins():
    choice = LayerChoice(scalings(2, 3, 4), "straight_through")
    choice.logits.assign([0, 1, 1])
    assert choice.winner() is choice.layers[1]
    np.testing.assert_allclose(choice(np.ones((1, 1))), [[3]])


def test_gradient_of_the_logits():
    choice = LayerChoice(scalings(2, -1, 1))
    choice.logits.assign(np.log(ODDS))
    assert choice.choice_weights == [choice.logits]
    with tf.GradientTape() as tape:
        answer = choice(np.ones((1, 1), "float32"), training=True)
    gradient = tape.gradient(answer, choice.logits.value)
    # p_e (f_e - sum_k p_k f_k), with the sum 5/8: (1/8) (11/8), (2/8) (-13/8),
    # (5/8) (3/8)
    np.testing.assert_allclose(gradient, np.array([11, -26, 15]) / 64, rtol=1e-5)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_finds_the_layer_that_is_right(estimator):
    choice = LayerChoice(scalings(-1, 0.5, 2), estimator, seed=0)
    x = normal(400, 4)
    model, _ = fitted(choice, x, 2 * x, keras.optimizers.Adam(0.1))
    assert choice.winner().scale == 2
    if estimator != "straight_through":  # which stops learning when it is right
        assert choice.probabilities()[2] > 0.8
    if estimator in HARD_ESTIMATORS:
        np.testing.assert_allclose(model(x), 2 * x, rtol=1e-6)


# Regularizers


def test_regularizers_by_hand():
    x = np.ones((2, 1), "float32")
    choice = LayerChoice(
        scalings(1, 1, 1),
        temperature=0.5,
        entropy_weight=0.1,
        costs=[3, 1, 0.5],
        cost_weight=2,
    )
    choice.logits.assign(np.log(ODDS))
    p = ODDS**2 / 30  # tau = 1/2 squares the odds
    # Cost: (1 * 3 + 4 * 1 + 25 * 0.5) / 30 = 19.5 / 30
    expected = [-0.1 * np.sum(p * np.log(p)), 2 * 19.5 / 30]
    choice(x, training=True)
    np.testing.assert_allclose(choice.losses, expected, rtol=1e-5)
    assert all(loss.dtype == "float32" for loss in choice.losses)
    choice(x)
    assert choice.losses == []


def test_cost_leads_to_the_cheap_layer():
    choice = LayerChoice(scalings(1, 1, 1), costs=[1, 0.1, 0.5], cost_weight=1)
    x = normal(160, 2)
    fitted(choice, x, x, keras.optimizers.Adam(0.1))
    assert choice.winner() is choice.layers[1]


def test_costs_that_a_model_fills_in(tmp_path):
    def make():
        return LayerChoice(scalings(1, 2), costs="auto", cost_weight=1, name="choice")

    choice, x = make(), normal(4, 3)
    model, _ = keras.Sequential([keras.Input((3,)), choice]), choice(x)
    model.compile("sgd", "mse")
    model.evaluate(x, x, verbose=0)
    with pytest.raises(RuntimeError, match=r"'choice' .*`kd.bind_costs\(model\)`"):
        model.fit(x, x, verbose=0)

    choice.bind_costs([0.5, 0.25])
    assert choice.costs == "auto"
    choice(x, training=True)
    np.testing.assert_allclose(choice.losses, [0.375])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras").get_layer("choice")
    loaded(x, training=True)
    np.testing.assert_allclose(loaded.losses, [0.375])
    with pytest.raises(RuntimeError, match="bind_costs"):
        LayerChoice.from_config(choice.get_config())(x, training=True)


def test_unfilled_costs_stay_unfilled_when_loaded(tmp_path):
    choice = LayerChoice(scalings(1, 2), costs="auto", cost_weight=1, name="choice")
    keras.Sequential([keras.Input((3,)), choice]).save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    with pytest.raises(RuntimeError, match="bind_costs"):
        loaded(normal(4, 3), training=True)


def test_given_costs_are_not_bound_anew():
    choice = LayerChoice(scalings(1, 2), costs=[1, 2], cost_weight=1)
    choice.bind_costs([5, 5])
    choice(normal(4, 3), training=True)
    np.testing.assert_allclose(choice.losses, [1.5])
    LayerChoice(scalings(1, 2)).bind_costs([5, 5])


# What goes on inside the sub-layers


@pytest.mark.parametrize("estimator", ["soft", "straight_through"])
@pytest.mark.parametrize("jit", [False, True])
def test_losses_of_sub_layers(estimator, jit):
    factors = scalings(1, 2)
    for layer in factors:
        layer.activity_regularizer = keras.regularizers.L1(1.0)
    choice, x = LayerChoice(factors, estimator), np.ones((4, 3), "float32")
    model = keras.Sequential([keras.Input((3,)), choice])
    model.compile("sgd", "mse", jit_compile=jit)
    loss = model.fit(x, x, verbose=0).history["loss"][0]
    # Three ones and three twos a sample; and the error, 0 or 0.5 ** 2.
    error = 0.25 if estimator == "soft" else 0
    assert loss == pytest.approx(9 + error)
    choice.logits.assign([0, 0])
    evaluated = model.evaluate(x, x, verbose=0)
    assert evaluated == pytest.approx(9 + error if estimator == "soft" else 0)


def test_hard_choice_drops_losses_in_eager_mode_too():
    layer = layers.Dense(3, activity_regularizer="l1")
    choice = LayerChoice([layer, layers.Dense(3)], "straight_through")
    choice(normal(4, 3))
    assert choice.losses == []
    choice(normal(4, 3), training=True)
    assert len(choice.losses) == 1


class Metered(layers.Layer):
    def __init__(self, name):
        super().__init__(name=name)
        self.mean = keras.metrics.Mean(f"{name}_mean")

    def call(self, inputs):
        self.mean.update_state(inputs)
        return inputs


@pytest.mark.parametrize("estimator", ["soft", "straight_through"])
def test_metrics_of_sub_layers(estimator):
    choice = LayerChoice([Metered("first"), Metered("second")], estimator)
    model = keras.Sequential([keras.Input((1,)), choice])
    model.compile("sgd", "mse")
    x = np.array([[1.0], [2], [6]])
    logs = model.fit(x, x, batch_size=1, verbose=0).history
    assert logs["first_mean"] == logs["second_mean"] == [3]
    choice.logits.assign([0, 1])
    logs = model.evaluate(x, x, batch_size=1, verbose=0, return_dict=True)
    assert logs["second_mean"] == 3
    assert logs["first_mean"] == (3 if estimator == "soft" else 0)


@pytest.mark.parametrize("estimator", ["soft", "straight_through"])
def test_batch_normalization_and_dropout(estimator):
    normalization = layers.BatchNormalization(momentum=0.5)
    choice = LayerChoice([layers.Dropout(0.5, seed=1), normalization], estimator)
    x = np.ones((8, 4), "float32")
    np.testing.assert_allclose(choice(x), x, rtol=1e-3)
    np.testing.assert_array_equal(normalization.moving_mean, np.zeros(4))
    trained = choice(x, training=True).numpy()
    # Normalized, ones are 0: what is left is dropout's 0 or 2, times its weight.
    weight = 0.5 if estimator == "soft" else 1
    assert set(np.unique(trained)) == {0, 2 * weight}
    np.testing.assert_allclose(normalization.moving_mean, np.full(4, 0.5))
    if estimator == "soft":
        return
    choice.logits.assign([0, 1])
    # (1 - 0.5) / sqrt(0.5 + 0.001)
    np.testing.assert_allclose(choice(x), np.full((8, 4), 0.5 / 0.501**0.5), rtol=1e-5)


def test_recurrent_state_is_kept():
    recurrent = layers.SimpleRNN(
        1, None, False, "ones", "ones", stateful=True, return_sequences=True
    )
    choice = LayerChoice([recurrent, layers.Identity()], "straight_through")
    x = np.ones((2, 1, 1), "float32")
    assert choice(x)[0, 0, 0] == 1
    call = tf.function(choice)
    assert [float(call(x)[0, 0, 0]) for _ in range(2)] == [2, 3]


def test_a_hard_choice_on_two_replicas_and_exported(tmp_path):
    x = normal(8, 4)
    with two_replicas().scope():
        choice = LayerChoice([layers.BatchNormalization(), *scalings(3)], "reinmax")
        model = keras.Sequential([keras.Input((4,)), choice])
        model.compile("sgd", "mse")
    model.fit(x, x, verbose=0)
    choice.logits.assign([0, 1])
    assert model.evaluate(x, 3 * x, verbose=0) == pytest.approx(0)
    model.export(tmp_path / "model", verbose=False)
    served = tf.saved_model.load(tmp_path / "model")
    np.testing.assert_allclose(served.serve(x), 3 * x, rtol=1e-6)


# Masks

TOKENS = np.where(np.arange(4)[:, None] < np.array([[[4]], [[2]]]), 1.0, 0.0)
KEPT = [[True] * 4, [True, True, False, False]]


class MaskedSum(layers.Layer):
    """Gives all tokens the sum of those that are not masked; passes no mask on."""

    def call(self, inputs, mask=None):
        weights = tf.ones_like(inputs[..., :1])
        if mask is not None:
            weights = tf.cast(mask, inputs.dtype)[..., None]
        summed = tf.reduce_sum(inputs * weights, axis=1, keepdims=True)
        return summed + tf.zeros_like(inputs)


def answer_and_mask(choice, graph, training=False, mask=None):
    def call(x, mask):
        x = layers.Masking(0.0)(x) if mask is None else x + 1
        answer = choice(x, training=training, mask=mask)
        own = get_mask(answer)
        return answer, tf.zeros(()) if own is None else own

    call = tf.function(call) if graph else call
    answer, own = call(tf.constant(TOKENS, "float32"), mask)
    return answer.numpy(), own.numpy().tolist()


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("estimator", ["soft", "straight_through"])
def test_mask_that_all_pass_on(estimator, graph):
    tokenwise = keras.Sequential([layers.Activation("relu"), layers.Rescaling(2)])
    tokenwise.layers[1].supports_masking = True
    tokenwise.supports_masking = True
    choice = LayerChoice([layers.Identity(), tokenwise], estimator)
    for training in (False, True):
        _, mask = answer_and_mask(choice, graph, training)
        assert mask == KEPT
    _, mask = answer_and_mask(choice, graph, mask=tf.constant(KEPT))
    assert mask == KEPT


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("estimator", ["soft", "straight_through"])
def test_mask_reaches_those_that_take_it(estimator, graph):
    choice = LayerChoice([MaskedSum(), layers.Identity()], estimator)
    choice.logits.assign([50, 0])
    choice.layers[0].supports_masking = True
    answer, mask = answer_and_mask(choice, graph)
    np.testing.assert_allclose(answer[:, 0, 0], [4, 2])
    # Ones are added to the tokens: 4 * 2, and of the second sample 2 * 2.
    answer, mask = answer_and_mask(choice, graph, mask=tf.constant(KEPT))
    np.testing.assert_allclose(answer[:, 0, 0], [8, 4])
    assert mask == KEPT


@pytest.mark.filterwarnings("ignore:.*does not support mask")  # Keras, of MaskedSum
@pytest.mark.parametrize("estimator", ["soft", "straight_through"])
def test_mask_that_one_layer_loses_is_lost(estimator):
    choice = LayerChoice([MaskedSum(), layers.Identity()], estimator)
    for training in (False, True):
        _, mask = answer_and_mask(choice, True, training)
        assert mask == 0


def test_masks_that_differ_are_joined():
    choice = LayerChoice([layers.Masking(1.0), layers.Masking(2.0)])
    answer = choice(np.array([[[1.0], [2.0], [3.0]]]))
    assert get_mask(answer).numpy().tolist() == [[False, False, True]]


def test_callers_tensor_keeps_its_mask():
    class SelfAttention(layers.Layer):
        def __init__(self):
            super().__init__()
            self.supports_masking = True
            self.attention = layers.MultiHeadAttention(1, 1, kernel_initializer="ones")

        def build(self, input_shape):
            self.attention.build(input_shape, input_shape)

        def call(self, inputs):
            return self.attention(inputs, inputs)

    sums = MaskedSum()
    sums.supports_masking = True
    choice = LayerChoice([SelfAttention(), sums])
    masked = layers.Masking(0.0)(tf.constant(TOKENS, "float32"))
    choice(masked)
    assert get_mask(masked).numpy().tolist() == KEPT
    unmasked = tf.constant(TOKENS + 1, "float32")
    answer = choice(unmasked, mask=tf.constant(KEPT))
    assert get_mask(unmasked) is None
    # Kept tokens are 2, and so is what attention gives; half of it and of the sums, 4
    # and 2 times 2.
    np.testing.assert_allclose(answer[:, 0, 0], [5, 3])


# Kinds of sub-layers


class WithoutBuild(layers.Layer):
    """Leaves it to Keras to build what it holds, and to find its output's shape."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(3)

    def call(self, inputs):
        return self.dense(inputs)


@keras.saving.register_keras_serializable("test_layer_choice")
class SubclassedModel(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(3)

    def call(self, inputs):
        return self.dense(inputs)


def functional():
    inputs = keras.Input((4,))
    hidden = layers.Dense(3)(inputs)
    return keras.Model(inputs, layers.Add()([hidden, layers.Dense(3)(inputs)]))


@pytest.mark.parametrize("estimator", ["soft", "straight_through"])
def test_any_layer_or_model(tmp_path, estimator):
    every = [SubclassedModel(), functional(), layers.Dense(3)]
    choice = LayerChoice(every, estimator, name="choice")
    model, _ = fitted(choice, normal(8, 4), normal(8, 3))
    # Kernel and bias of four dense layers, and the logits.
    assert len(model.trainable_weights) == 9
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    x = normal(5, 4)
    for index in range(3):
        for each in (model, loaded):
            each.get_layer("choice").logits.assign(np.eye(3)[index])
        np.testing.assert_allclose(loaded(x), model(x), rtol=1e-6)
        if estimator != "soft":
            np.testing.assert_allclose(model(x), every[index](x), rtol=1e-6)


def test_layer_that_leaves_its_building_to_keras():
    choice = LayerChoice([WithoutBuild(), layers.Dense(3)], "straight_through")
    model, _ = fitted(choice, normal(8, 4), normal(8, 3))
    assert len(model.trainable_weights) == 5
    assert model.output_shape == (None, 3)


def test_clone_shares_nothing():
    choice = LayerChoice([layers.Dense(3), layers.Dense(3)], name="choice")
    model = keras.Sequential([keras.Input((4,)), choice])
    clone = keras.models.clone_model(model)
    mine = {id(weight) for weight in model.weights}
    assert len(clone.weights) == len(model.weights)
    assert not any(id(weight) in mine for weight in clone.weights)


@pytest.mark.parametrize("estimator", ["soft", "straight_through"])
def test_several_inputs(estimator):
    choice = LayerChoice([layers.Add(), layers.Multiply()], estimator)
    first, second = keras.Input((2,)), keras.Input((2,))
    model = keras.Model([first, second], choice([first, second]))
    fed = [np.array([[3.0, 4]]), np.array([[1.0, 2]])]
    # 3 + 1 and 4 + 2; products 3 and 8
    expected = [[3.5, 7]] if estimator == "soft" else [[4, 6]]
    np.testing.assert_allclose(model(fed), expected)


def test_choice_inside_a_choice():
    inner = LayerChoice(scalings(1, 2), "straight_through")
    outer = LayerChoice([inner, *scalings(5)], "straight_through")
    call = tf.function(outer)
    x = np.ones((1, 1), "float32")
    for logits, inner_logits, expected in (
        ([1, 0], [1, 0], 1),
        ([1, 0], [0, 1], 2),
        ([0, 1], [0, 1], 5),
    ):
        outer.logits.assign(logits)
        inner.logits.assign(inner_logits)
        assert call(x).numpy() == expected


@pytest.mark.parametrize("estimator", ["soft", "straight_through"])
def test_sub_layers_of_other_dtypes(estimator):
    mixed = [layers.Dense(3, dtype="float64"), layers.Dense(3, dtype="mixed_float16")]
    choice = LayerChoice(mixed, estimator)
    for training in (False, True):
        for index in range(2):
            choice.logits.assign(np.eye(2)[index])
            assert choice(normal(2, 4), training=training).dtype == "float32"


def test_open_sizes():
    convolutions = [layers.Conv1D(2, size, padding="same") for size in (1, 3)]
    choice = LayerChoice(convolutions, "straight_through")
    outputs = choice(keras.Input((None, 2)))
    assert outputs.shape == (None, None, 2)
    assert choice(normal(2, 7, 2)).shape == (2, 7, 2)


def test_open_sizes_that_turn_out_to_differ():
    convolutions = [
        layers.Conv1D(2, 3, padding=pad, name=pad) for pad in ("same", "valid")
    ]
    # (None, None, 2) both; on 64 points 64 and 62.
    message = r"'same'.*\(None, 64, 2\), and 'valid'.*\(None, 62, 2\)"
    with pytest.raises(ValueError, match=message):
        LayerChoice(convolutions)(keras.Input((None, 2)))


def test_names_are_unique():
    names = ("a", "a", "b", "a", "a_1")
    choice = LayerChoice([layers.Identity(name=name) for name in names])
    assert choice.layer_names == ["a", "a_1", "b", "a_2", "a_1_1"]


def test_temperature_schedule_finds_it():
    inner = LayerChoice(scalings(1, 2))
    outer = LayerChoice([inner, *scalings(5)])
    schedule = kd.callbacks.TemperatureSchedule(lambda step: 0.25)
    x = normal(4, 3)
    fitted(outer, x, x, callbacks=[schedule])
    assert outer.temperature == inner.temperature == 0.25


# Errors


@pytest.mark.parametrize(
    "error, make, message",
    [
        (ValueError, lambda: LayerChoice([]), "at least one layer.*layers=[]"),
        (TypeError, lambda: LayerChoice(layers.Dense(3)), "must be a list.*layers=<"),
        (
            TypeError,
            lambda: LayerChoice([layers.Dense(3), "relu"]),
            "layers[1]='relu' of type",
        ),
        (
            ValueError,
            lambda: LayerChoice([layer := layers.Dense(3, name="one"), layer]),
            "layer 'one' as layers[0] and layers[1]",
        ),
        (
            ValueError,
            lambda: LayerChoice(scalings(1, 2), "darts"),
            "Received: estimator='darts'",
        ),
        (
            ValueError,
            lambda: LayerChoice(scalings(1, 2), temperature=0),
            "Received: temperature=0",
        ),
        (
            ValueError,
            lambda: LayerChoice(scalings(1, 2), entropy_weight=-1),
            "`entropy_weight` must be finite and >= 0. Received: entropy_weight=-1",
        ),
        (
            TypeError,
            lambda: LayerChoice(scalings(1, 2), cost_weight="1"),
            "`cost_weight` must be a number. Received: cost_weight='1'",
        ),
        (
            ValueError,
            lambda: LayerChoice(scalings(1, 2), cost_weight=1),
            "`cost_weight` needs `costs`.*cost_weight=1, costs=None",
        ),
        (
            ValueError,
            lambda: LayerChoice(scalings(1, 2), costs="flops"),
            "Received: costs='flops'",
        ),
        (
            ValueError,
            lambda: LayerChoice(scalings(1, 2), costs=[1, 2, 3]),
            "2 entries.*costs=[1, 2, 3] with 3 entries",
        ),
        (
            ValueError,
            lambda: LayerChoice(scalings(1, 2), costs=[1, -2]),
            "`costs` must be finite and >= 0. Received: costs=[1, -2]",
        ),
        (
            ValueError,
            lambda: LayerChoice(scalings(1, 2), costs="auto").bind_costs([1]),
            "2 entries.*costs=[1] with 1 entries",
        ),
    ],
)
def test_errors(error, make, message):
    pattern = ".*".join(re.escape(part) for part in message.split(".*"))
    with pytest.raises(error, match=pattern):
        make()


def test_shapes_that_differ():
    different = [
        layers.Conv2D(3, 1, name="wide"),
        layers.Conv2D(3, 3, padding="same"),
        layers.MaxPooling2D(2, name="pool"),
    ]
    message = (
        r"'wide' \(Conv2D\), which gives \(None, 8, 8, 3\), and 'pool' "
        r"\(MaxPooling2D\), which gives \(None, 4, 4, 3\), for an input of shape "
        r"\(None, 8, 8, 3\)"
    )
    with pytest.raises(ValueError, match=message):
        LayerChoice(different)(keras.Input((8, 8, 3)))


def test_layer_with_several_outputs():
    inputs = keras.Input((3,))
    pair = keras.Model(inputs, [inputs, inputs], name="pair")
    with pytest.raises(ValueError, match=r"one tensor each.*'pair' \(Functional\)"):
        LayerChoice([pair])(keras.Input((3,)))
