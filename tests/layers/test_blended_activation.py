import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import special

import keras_dynamic as kd
from keras_dynamic._compat import get_mask
from keras_dynamic.layers.blended_activation import BlendedActivation
from keras_dynamic.models.operation_flops import operation_flops
from keras_dynamic.ops.blending import CONSTRAINTS
from keras_dynamic.ops.estimators import (
    ESTIMATORS,
    HARD_ESTIMATORS,
    SAMPLING_ESTIMATORS,
)
from tests.layers.checks import check_layer

FUNCTIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "linear": lambda x: x,
}
NAMES = list(FUNCTIONS)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def built(parameters, names=NAMES, input_shape=(None, 4), **arguments):
    """A layer with the given parameters."""
    layer = BlendedActivation(names, **arguments)
    layer.build(input_shape)
    layer.parameters.assign(parameters)
    return layer


def numpy_weights(w, constraint):
    if constraint == "softmax":
        return special.softmax(w, axis=0)
    p = np.maximum(w, 0)
    return {
        "unrestricted": w,
        "sum_normalized": w / w.sum(axis=0),
        "absolute_normalized": w / np.abs(w).sum(axis=0),
        "positive": p / p.sum(axis=0),
    }[constraint]


def numpy_blend(weights, x):
    return sum(a * FUNCTIONS[name](x) for a, name in zip(weights, NAMES, strict=True))


@keras.saving.register_keras_serializable("tests_of_blends")
def cube(x):
    return x**3


def refuses_to_run(x):
    """An activation that gives an error where it is computed."""
    with tf.control_dependencies([tf.debugging.Assert(False, ["it was computed"])]):
        return tf.identity(x)


# The whole contract of a layer


@pytest.mark.parametrize(
    "arguments, shape",
    [
        pytest.param({"temperature": 0.3, "seed": 7}, (5,), id="softmax"),
        pytest.param(
            {"constraint": "positive", "initial_activation": 1, "shared_axes": [1]},
            (3, 5),
            id="positive, by channel",
        ),
        pytest.param({"estimator": "straight_through"}, (4, 4, 2), id="hard"),
        pytest.param(
            {"estimator": "straight_through", "shared_axes": [1, 2]},
            (4, 4, 2),
            id="hard, by channel",
        ),
    ],
)
def test_is_a_layer(arguments, shape):
    check_layer(
        lambda: BlendedActivation(["relu", "tanh", "swish"], **arguments),
        normal(6, *shape),
        config={"activations": ["relu", "tanh", "swish"], **arguments},
    )


def test_is_a_layer_with_noise():
    check_layer(
        lambda: BlendedActivation(NAMES, estimator="reinmax", temperature=1.3),
        normal(6, 4, seed=1),  # not its targets: `linear` would have no loss
        random_training=True,
    )


@pytest.mark.parametrize("constraint", sorted(set(CONSTRAINTS) - {"unrestricted"}))
def test_one_activation_is_plain_keras(constraint):
    x = normal(6, 4)
    for estimator in ESTIMATORS if constraint == "softmax" else ("soft",):
        layer = BlendedActivation(["gelu"], constraint, estimator=estimator)
        for training in (False, True):
            np.testing.assert_allclose(
                layer(x, training=training), keras.layers.Activation("gelu")(x)
            )


# The blend


def test_by_hand():
    # a = (2, 1, 1) / 4 at x = -1: 0.5 * 0 + 0.25 * tanh(-1) + 0.25 * (-1), and at
    # x = 2: 0.5 * 2 + 0.25 * tanh(2) + 0.25 * 2.
    layer = built([2, 1, 1], constraint="sum_normalized")
    expected = [-0.25 * np.tanh(1) - 0.25, 1.5 + 0.25 * np.tanh(2)]
    np.testing.assert_allclose(layer(np.float32([[-1, 2]]))[0], expected, rtol=1e-6)


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize(
    "shared_axes, parameter_shape",
    [
        (None, ()),
        ([1, 2, 3], ()),
        ([1, 2], (1, 1, 2)),
        ([-2, -3], (1, 1, 2)),
        (3, (4, 5, 1)),
        ([], (4, 5, 2)),
    ],
)
def test_against_numpy(constraint, shared_axes, parameter_shape):
    x, w = normal(6, 4, 5, 2), normal(3, *parameter_shape, seed=3)
    w[0] = np.abs(w[0]) + 1
    layer = built(
        w, constraint=constraint, shared_axes=shared_axes, input_shape=(None, 4, 5, 2)
    )
    assert layer.parameters.shape == (3, *parameter_shape)
    (weight,) = layer.trainable_weights
    assert weight is layer.parameters
    weights = numpy_weights(w, constraint)
    for training in (False, True):
        answer = layer(x, training=training)
        expected = numpy_blend(weights, x)
        np.testing.assert_allclose(answer, expected, rtol=1e-3, atol=1e-4)
    current = layer.blend()
    assert list(current) == NAMES
    np.testing.assert_allclose(list(current.values()), weights, rtol=1e-3, atol=1e-6)


def test_axes_are_those_of_prelu():
    for axes in ([1, 2], [1, 2, 3], [3], []):
        prelu = keras.layers.PReLU(shared_axes=axes)
        layer = BlendedActivation(NAMES, shared_axes=axes)
        for each in (prelu, layer):
            each.build((None, 4, 5, 2))
        expected = (3, *prelu.alpha.shape) if len(axes) < 3 else (3,)
        assert layer.parameters.shape == expected


def test_functions_and_names():
    x, w = normal(6, 4), [0.5, 0.2, 0.3]
    layer = built(
        w, [cube, "tests_of_blends>cube_root", tf.nn.tanh], constraint="unrestricted"
    )
    expected = 0.5 * x**3 + 0.2 * np.cbrt(x) + 0.3 * np.tanh(x)
    np.testing.assert_allclose(layer(x), expected, rtol=1e-4, atol=1e-6)
    assert list(layer.blend()) == ["cube", "tests_of_blends>cube_root", "tanh"]


@keras.saving.register_keras_serializable("tests_of_blends")
def cube_root(x):
    return tf.sign(x) * tf.abs(x) ** (1 / 3)


def test_functions_of_one_name_are_numbered():
    def relu(x):
        return tf.minimum(x, 0)

    layer = built([1.0, -1.0], ["relu", relu], constraint="unrestricted")
    assert repr(layer.blend()) == "{'relu': 1.0, 'relu_2': -1.0}"  # plain floats
    np.testing.assert_allclose(layer(np.float32([[-2, 3]])), [[2, 3]])


@pytest.mark.parametrize("shared_axes", [None, []])
def test_integers_are_activated_too(shared_axes):
    x = np.array([[1, -1]])
    layer = BlendedActivation([tf.nn.tanh, "relu"], shared_axes=shared_axes)
    expected = [[(np.tanh(1) + 1) / 2, -np.tanh(1) / 2]]
    np.testing.assert_allclose(layer(x), expected, 1e-6)
    layer = BlendedActivation(
        [tf.nn.tanh, "relu"], shared_axes=shared_axes, estimator="reinmax"
    )
    np.testing.assert_allclose(layer(x), np.tanh(x), 1e-6)


# How it starts


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("shared_axes", [None, []])
def test_starts_uniform(constraint, shared_axes):
    layer = BlendedActivation(NAMES, constraint, shared_axes)
    x = normal(6, 4)
    np.testing.assert_allclose(
        layer(x), numpy_blend([1 / 3] * 3, x), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("which", ["tanh", 1])
def test_starts_as_a_chosen_one(constraint, which):
    layer = BlendedActivation(NAMES, constraint, initial_activation=which)
    # In a softmax: 18 / (18 + 1 + 1), since 9 (E - 1) = 18.
    first = [0.05, 0.9, 0.05] if constraint == "softmax" else [0, 1, 0]
    np.testing.assert_allclose(list(layer.blend().values()), first, rtol=1e-6)
    layer = BlendedActivation(
        NAMES, constraint, shared_axes=[], initial_activation=which
    )
    layer.build((None, 4))
    for each, expected in zip(layer.blend().values(), first, strict=True):
        np.testing.assert_allclose(each, [expected] * 4, rtol=1e-6)


# What it learns


def learn(layer, optimizer, x, y, steps):
    """Fits the layer alone; returns the loss of the last step."""
    for _ in range(steps):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((layer(x, training=True) - y) ** 2)
        weights = layer.trainable_weights
        gradients = tape.gradient(loss, [weight.value for weight in weights])
        optimizer.apply(gradients, weights)
    return loss.numpy()


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("start", [None, "relu"])
def test_learns_the_activation_of_its_target(constraint, start):
    x = normal(64, 1)
    layer = BlendedActivation(NAMES, constraint, initial_activation=start)
    loss = learn(layer, keras.optimizers.Adam(0.2), x, np.tanh(x), 90)
    assert loss < 1e-3
    assert max(layer.blend(), key=layer.blend().get) == "tanh"
    assert layer.winner().activation is keras.activations.tanh


def test_positive_stays_positive_in_training():
    x = normal(64, 1)
    layer = BlendedActivation(["relu", "tanh"], "positive")
    optimizer = keras.optimizers.SGD(1.0)
    for target, loser in ((np.maximum(x, 0) - x, 1), (2 * x - np.maximum(x, 0), 0)):
        learn(layer, optimizer, x, target, 10)
        parameters = layer.parameters.numpy()
        assert parameters[loser] == 0 and parameters[1 - loser] > 0


@pytest.mark.parametrize("constraint", CONSTRAINTS[2:])
def test_comes_back_from_parameters_of_0(constraint):
    x = normal(64, 1)
    layer = built([0.0, 0.0], ["relu", "tanh"], (None, 1), constraint=constraint)
    # The first gradient, of 1,000 times the usual size, is soon forgotten.
    learn(layer, keras.optimizers.Adam(0.01, beta_2=0.9), x, np.tanh(x), 100)
    assert layer.blend()["tanh"] > 0.9


def test_estimators_pass_a_gradient():
    for estimator in ESTIMATORS:
        layer = BlendedActivation(NAMES, estimator=estimator, seed=1)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(normal(6, 4), training=True) ** 2)
        gradient = tape.gradient(loss, layer.parameters.value).numpy()
        assert np.isfinite(gradient).all() and (gradient != 0).any(), estimator


@pytest.mark.parametrize("estimator", SAMPLING_ESTIMATORS)
def test_noise_is_new_at_every_call_and_none_at_inference(estimator):
    def answers(seed, training):
        layer = BlendedActivation(NAMES, estimator=estimator, shared_axes=[], seed=seed)
        return [layer(normal(2, 50), training=training).numpy() for _ in range(2)]

    first, second = answers(3, True)
    assert (first != second).any()
    np.testing.assert_array_equal([first, second], answers(3, True))
    np.testing.assert_array_equal(*answers(3, False))


def test_temperature_sharpens_and_is_scheduled():
    layer = built([1.0, 0.0, 0.0], temperature=0.5)
    expected = special.softmax([2.0, 0, 0])
    np.testing.assert_allclose(list(layer.blend().values()), expected, rtol=1e-6)
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layer(inputs))
    model.compile("sgd", "mse")
    schedule = kd.callbacks.TemperatureSchedule(lambda epoch: 0.25, "epoch")
    model.fit(normal(8, 4), normal(8, 4), callbacks=[schedule], verbose=0)
    assert layer.temperature == 0.25
    layer.parameters.assign([1.0, 0.0, 0.0])
    expected = numpy_blend(special.softmax([4.0, 0, 0]), normal(6, 4))
    np.testing.assert_allclose(layer(normal(6, 4)), expected, rtol=1e-5)


# The hard estimators at inference


@pytest.mark.parametrize("estimator", HARD_ESTIMATORS)
@pytest.mark.parametrize("shared_axes", [None, []])
def test_sparse_road_is_the_dense_one(estimator, shared_axes):
    shape = () if shared_axes is None else (5, 4)
    for seed in range(3):
        w, x = normal(3, *shape, seed=seed), normal(6, 5, 4)
        options = {"shared_axes": shared_axes, "input_shape": (None, 5, 4)}
        layer = built(w, estimator=estimator, **options)
        one_hot = np.moveaxis(np.eye(3)[w.argmax(axis=0)], -1, 0)
        np.testing.assert_allclose(layer(x), numpy_blend(one_hot, x), rtol=1e-5)
        # Without noise the dense road, which training takes, is the same.
        dense = built(w, estimator="straight_through", **options)
        np.testing.assert_allclose(dense(x, training=True), layer(x), rtol=1e-5)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("shared_axes", [None, []])
def test_what_did_not_win_is_not_computed(compiled, shared_axes):
    shape = (3,) if shared_axes is None else (3, 4)
    w = np.zeros(shape, "float32")
    w[0] = 1.0
    names = ["tanh", refuses_to_run, "relu"]
    layer = built(w, names, estimator="reinmax", shared_axes=shared_axes)
    x = normal(6, 4)
    run = tf.function(layer) if compiled else layer
    np.testing.assert_allclose(run(x, training=False), np.tanh(x), rtol=1e-6)
    w[1] = 2.0
    layer.parameters.assign(w)
    with pytest.raises(tf.errors.InvalidArgumentError, match="it was computed"):
        run(x, training=False)


@pytest.mark.parametrize("shared_axes", [None, []])
def test_gradient_in_the_input_is_the_winners(shared_axes):
    w = np.eye(3)[1] if shared_axes is None else np.eye(3)[[1] * 4].T
    layer = built(w, estimator="straight_through", shared_axes=shared_axes)
    x = tf.constant(normal(6, 4))
    for run in (layer, tf.function(layer), tf.function(layer, jit_compile=True)):
        with tf.GradientTape() as tape:
            tape.watch(x)
            answer = run(x, training=False)
        expected = 1 - np.tanh(x) ** 2
        np.testing.assert_allclose(tape.gradient(answer, x), expected, atol=1e-5)


def test_first_of_equals_wins():
    layer = BlendedActivation(NAMES, estimator="straight_through")
    x = normal(6, 4)
    np.testing.assert_array_equal(layer(x), np.maximum(x, 0))
    assert layer.winner().activation is keras.activations.relu


@pytest.mark.parametrize("estimator", ["soft", "straight_through"])
@pytest.mark.parametrize("shared_axes", [None, []])
def test_nan_is_not_hidden(estimator, shared_axes):
    shape = (3,) if shared_axes is None else (3, 4)
    w = np.zeros(shape, "float32")
    w[0] = np.nan
    layer = built(w, estimator=estimator, shared_axes=shared_axes)
    for training in (False, True):
        assert np.isnan(layer(normal(6, 4), training=training)).all()


# What becomes of it


def test_winner_is_a_plain_layer_in_its_place():
    layer = built([0.1, 2.0, 0.3], name="blend", dtype="mixed_float16")
    winner = layer.winner()
    assert type(winner) is keras.layers.Activation
    assert winner.name == "blend" and winner.compute_dtype == "float16"
    np.testing.assert_allclose(winner(normal(6, 4)), np.tanh(normal(6, 4)), rtol=2e-3)


def test_winner_has_the_largest_weight():
    # In absolute value: -3 x is more of a tanh than 0.2 x of a ReLU.
    layer = built([0.2, -3.0], ["relu", "tanh"], constraint="unrestricted")
    assert layer.winner().activation is keras.activations.tanh
    # (1, -2) / -1 = (-1, 2).
    layer = built([1.0, -2.0], ["relu", "tanh"], constraint="sum_normalized")
    assert layer.winner().activation is keras.activations.tanh


def test_several_blends_have_no_winner():
    assert built(normal(3, 4), shared_axes=[]).winner() is None
    layer = BlendedActivation(NAMES, shared_axes=[], name="late")
    for method in (layer.winner, layer.blend):
        with pytest.raises(RuntimeError, match="'late' has no weights yet"):
            method()
    assert built(normal(3), shared_axes=[1]).winner() is not None


@pytest.mark.parametrize("estimator", ["soft", "straight_through"])
def test_is_an_activation_of_another_layer(tmp_path, estimator):
    inputs = keras.Input((4,))
    blend = BlendedActivation(NAMES, estimator=estimator, initial_activation="tanh")
    hidden = keras.layers.Dense(8, activation=blend, name="hidden")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1)(hidden))
    assert any(weight is blend.parameters for weight in model.trainable_weights)
    model.compile(keras.optimizers.SGD(0.5), "mse")
    x, before = normal(16, 4), blend.parameters.numpy()
    model.fit(x, normal(16, 1), verbose=0)
    assert (blend.parameters.numpy() != before).any()
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(x), model(x), rtol=1e-6)
    other = keras.models.clone_model(model)
    other.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_allclose(other(x), model(x), rtol=1e-6)


def saved_and_loaded(layer, path, **options):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layer(inputs))
    model.save(path)
    loaded = keras.saving.load_model(path, **options)
    np.testing.assert_allclose(loaded(normal(6, 4)), model(normal(6, 4)), rtol=1e-6)
    return loaded.layers[-1]


def test_functions_are_saved(tmp_path):
    given = [cube, keras.activations.relu, "tests_of_blends>cube_root"]
    layer = saved_and_loaded(BlendedActivation(given), tmp_path / "model.keras")
    assert layer.activations[0] is cube and layer.activations[2] is cube_root
    assert list(layer.blend()) == ["cube", "relu", "tests_of_blends>cube_root"]


@pytest.mark.filterwarnings("ignore:The object being serialized includes a .lambda.")
def test_lambda_is_saved_for_those_who_trust_it(tmp_path):
    layer = BlendedActivation(["relu", lambda x: 2 * x])
    saved_and_loaded(layer, tmp_path / "model.keras", safe_mode=False)
    with pytest.raises(ValueError, match="deserialization of a Python `?lambda"):
        keras.saving.load_model(tmp_path / "model.keras")


def test_mask_of_tokens_is_passed_on():
    tokens = np.eye(2, 5, dtype="float32")[..., None] + np.zeros(4, "float32")
    blended = BlendedActivation(NAMES)(keras.layers.Masking(0.0)(tokens))
    assert get_mask(blended).numpy().tolist() == np.eye(2, 5).astype(bool).tolist()


# What it costs


def counted(layer, *shape):
    tensor = keras.KerasTensor((1, *shape))
    return operation_flops(layer, (tensor,), {}, [layer(tensor)])


def test_flops_by_hand():
    # 20 elements: relu 1, softmax 5, linear 0; 3 products and 2 sums.
    names = ["relu", "softmax", "linear"]
    assert counted(BlendedActivation(names), 4, 5) == 20 * (1 + 5 + 0 + 3 + 2)
    assert counted(BlendedActivation(names, "positive"), 4, 5) == 20 * 11
    by_channel = BlendedActivation(names, shared_axes=[1])
    assert counted(by_channel, 4, 5) == 20 * 11
    # Hard: the winner alone, here softmax.
    for start, per_element in zip(names, (1, 5, 0), strict=True):
        layer = BlendedActivation(
            names, estimator="gumbel_straight_through", initial_activation=start
        )
        assert counted(layer, 4, 5) == 20 * per_element
        winner = counted(layer.winner(), 4, 5)
        assert counted(layer, 4, 5) == winner
    # Two of three have won a channel: both are computed for all of them.
    w = [[1, 0], [0, 1], [0, 0]]
    layer = built(w, names, (None, 2), estimator="reinmax", shared_axes=[])
    assert counted(layer, 2) == 2 * (1 + 5)


def test_flops_in_a_dynamic_model():
    inputs = keras.Input((6,))
    # 2 * 6 * 8 + 8 biases; 8 elements of relu, tanh, 2 products and 1 sum.
    hidden = keras.layers.Dense(8, activation=BlendedActivation(["relu", "tanh"]))(
        inputs
    )
    first = kd.EarlyExit(2, name="exit")(hidden)  # 2 * 8 * 2 + 2 + softmax 5 * 2
    # 8 elements of one activation.
    hidden = BlendedActivation(["elu", "tanh"], estimator="straight_through")(hidden)
    last = keras.layers.Dense(2, "softmax")(hidden)
    model = kd.DynamicModel(inputs, [first, last])
    trunk, head = 2 * 6 * 8 + 8 + 8 * (2 + 3), 2 * 8 * 2 + 2 + 10
    costs = model.compute_costs()
    assert costs.unknown == ()
    assert costs.exits == (trunk + head, trunk + head + 8 + head)
    model.compile("sgd", "sparse_categorical_crossentropy")
    x = normal(10, 6)
    walked = model.predict_dynamic(x, rule=kd.rules.MaxProbability(None), verbose=0)
    np.testing.assert_allclose(walked.outputs, model.predict(x, verbose=0)[-1], 1e-5)


# Errors


@pytest.mark.parametrize(
    "error, arguments, received",
    [
        (ValueError, {"activations": []}, r"activations=\[\]"),
        (TypeError, {"activations": "relu"}, "activations='relu'"),
        (TypeError, {"activations": None}, "activations=None"),
        (ValueError, {"activations": ["relu", "rellu"]}, r"activations\[1\]='rellu'"),
        (TypeError, {"activations": [None]}, r"activations\[0\]=None"),
        (TypeError, {"activations": [keras.layers.ReLU]}, r"activations\[0\]=<class"),
        (
            TypeError,
            {"activations": ["relu", keras.layers.PReLU()]},
            r"activations\[1\]=<PReLU",
        ),
        (
            ValueError,
            {"activations": ["swish", "relu", "silu"]},
            r"activations=\['swish', 'relu', 'silu'\], where the one at 2 .* at 0",
        ),
        (ValueError, {"constraint": "sum_normalised"}, "constraint='sum_normalised'"),
        (ValueError, {"estimator": "gumbel"}, "estimator='gumbel'"),
        (ValueError, {"temperature": 0}, "temperature=0"),
        (ValueError, {"shared_axes": 0}, "shared_axes=0"),
        (TypeError, {"shared_axes": [1.0]}, r"shared_axes=\[1.0\]"),
        (TypeError, {"shared_axes": True}, "shared_axes=True"),
        (ValueError, {"initial_activation": "elu"}, "initial_activation='elu'"),
        (ValueError, {"initial_activation": 3}, "initial_activation=3"),
        (ValueError, {"initial_activation": -1}, "initial_activation=-1"),
        (TypeError, {"initial_activation": 1.0}, "initial_activation=1.0"),
        (TypeError, {"initial_activation": True}, "initial_activation=True"),
    ],
)
def test_error_at_construction(error, arguments, received):
    with pytest.raises(error, match=f"Received: {received}"):
        BlendedActivation(**{"activations": NAMES, **arguments})


def test_layers_are_sent_to_their_own_layer():
    with pytest.raises(TypeError, match="`LayerChoice`"):
        BlendedActivation([keras.layers.LeakyReLU()])


@pytest.mark.parametrize("constraint", CONSTRAINTS[1:])
@pytest.mark.parametrize("estimator", ESTIMATORS[1:])
def test_constraint_and_estimator_that_exclude_each_other(constraint, estimator):
    with pytest.raises(
        ValueError, match=f"Received: estimator='{estimator}', constraint='{constraint}"
    ):
        BlendedActivation(NAMES, constraint, estimator=estimator)


@pytest.mark.parametrize("shared_axes", [[2], [-2], [1, 5]])
def test_axis_that_the_input_lacks(shared_axes):
    with pytest.raises(ValueError, match=r"behind the batch. .*\(None, 4\)"):
        BlendedActivation(NAMES, shared_axes=shared_axes)(keras.Input((4,)))


def test_axis_of_unknown_size():
    with pytest.raises(ValueError, match=r"known size.*shared_axes=\[2\].*None, None"):
        BlendedActivation(NAMES, shared_axes=[2])(keras.Input((None, 4)))
    BlendedActivation(NAMES, shared_axes=[1])(keras.Input((None, 4)))


def test_input_of_another_size():
    layer = built(normal(3, 1), shared_axes=[], input_shape=(None, 1))
    with pytest.raises(ValueError, match="incompatible with the layer"):
        layer(normal(6, 4))


@pytest.mark.parametrize(
    "function, shape",
    [
        (lambda x: x[:, :2], r"\(None, 2\)"),
        (lambda x: tf.reduce_sum(x, axis=-1), r"\(None,\)"),
        (lambda x: x[..., None], r"\(None, 4, 1\)"),
    ],
)
@pytest.mark.parametrize("shared_axes", [None, []])
def test_activation_that_changes_the_shape(function, shape, shared_axes):
    layer = BlendedActivation(["relu", function], shared_axes=shared_axes)
    with pytest.raises(ValueError, match=f"'<lambda>', which gives shape {shape} for"):
        layer(keras.Input((4,)))
