"""Any Keras layers as the experts of a mixture."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_dynamic as kd
from keras_dynamic.layers.routers import Router, Routing
from tests.layers.checks import check_layer
from tests.layers.moe_reference import close, mixture_of, scattered
from tests.ops.gradients import normal


@keras.saving.register_keras_serializable(package="tests")
class Best(Router):
    """The most probable expert."""

    routes_all = True

    def call(self, inputs, mask=None, training=False):
        logits = self.logits(inputs)
        weights, experts = tf.math.top_k(tf.nn.softmax(logits), 1)
        return Routing(weights, logits, experts)


class FirstFeatures(Best):
    """Logits are the first features, so that a test says who goes where."""

    def build(self, input_shape):
        pass  # no weight

    def logits(self, inputs):
        return tf.cast(inputs[..., : self.num_experts], tf.float32)


@keras.saving.register_keras_serializable(package="tests")
class Sum(layers.Layer):
    """The tokens' sum by `scale`, without those that the mask leaves out."""

    def __init__(self, scale, **kwargs):
        super().__init__(**kwargs)
        self.scale = scale
        self.supports_masking = True

    def call(self, inputs, mask=None):
        if mask is not None:
            inputs *= tf.cast(mask[..., None], inputs.dtype)
        return self.scale * tf.reduce_sum(inputs, axis=1)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], input_shape[-1])

    def compute_mask(self, inputs, previous_mask):
        return None

    def get_config(self):
        return {**super().get_config(), "scale": self.scale}


class Counting(layers.Layer):
    """Passes rows on and counts calls and rows; fails where there are none."""

    def build(self, input_shape):
        self.seen = self.add_weight((2,), "zeros", trainable=False)

    def call(self, inputs):
        rows = tf.shape(inputs)[0]
        tf.debugging.assert_positive(rows)
        self.seen.assign_add(tf.stack([1.0, tf.cast(rows, tf.float32)]))
        return inputs

    def compute_output_shape(self, input_shape):
        return input_shape


def mixed():
    return [
        layers.Dense(5, "tanh"),
        keras.Sequential(
            [layers.Dense(6), layers.BatchNormalization(), layers.Dense(5)]
        ),
        layers.Dense(5, activity_regularizer=keras.regularizers.L1(0.1)),
    ]


def as_function(layer, rank=1):
    """A layer's answers in NumPy, whatever stands before its own `rank` axes."""

    def run(x):
        rows = x.reshape(-1, *x.shape[x.ndim - rank :]).astype("float32")
        answers = layer(rows, training=False).numpy()
        return answers.reshape(*x.shape[: x.ndim - rank], *answers.shape[1:])

    return run


@pytest.mark.parametrize("road", ["ragged", "capacity", "dense"])
@pytest.mark.parametrize("router", ["top_k", "dense", "expert_choice"])
def test_mixed_experts_against_numpy(router, road):
    x = normal(2, 6, 4)
    mask = np.random.default_rng(0).uniform(size=(2, 6)) > 0.3
    moe = kd.SparseMoE(
        experts=mixed(),
        router=router,
        dispatch=road,
        capacity_factor=1.0,
        inference_capacity_factor=None if router == "expert_choice" else 0.9,
        noise_stddev=0,
    )
    scattered(moe, x.shape)
    experts = [as_function(expert) for expert in moe.experts]
    for training_mask in (None, mask):
        answer = moe(x, mask=training_mask)
        assert answer.shape == (2, 6, 5) and not moe.losses
        close(answer, mixture_of(moe, x, training_mask, experts=experts).output)


def test_number_of_experts_follows():
    moe = kd.SparseMoE(experts=mixed())
    assert moe.num_experts == 3 and moe.hidden_units is None
    moe.build((None, 4))
    # A router, and two, six and two weights.
    assert len(moe.trainable_weights) == 1 + 2 + 6 + 2
    assert moe.compute_output_shape((None, 7, 4)) == (None, 7, 5)


@pytest.mark.parametrize("graph", [False, True])
def test_losses_of_experts_count_in_training(graph):
    # Token (2, -1) goes to expert 0 and (0, 3) to expert 1, which both give what they
    # get; the sums of the absolute values are 3 and 3, by 0.1 and 0.2.
    experts = [
        layers.Dense(2, kernel_initializer="identity", activity_regularizer=reg)
        for reg in (keras.regularizers.L1(0.1), keras.regularizers.L1(0.2))
    ]
    moe = kd.SparseMoE(experts=experts, router=FirstFeatures(2), balance_loss=None)

    def losses(x, training):
        moe(x, training=training)
        return tf.add_n([0.0, *moe.losses])

    run = tf.function(losses, autograph=False) if graph else losses
    x = tf.constant([[2.0, -1.0], [0.0, 3.0]])
    assert float(run(x, training=True)) == pytest.approx(0.3 + 0.6)
    assert float(run(x[:1], training=True)) == pytest.approx(0.3)
    assert float(run(x, training=False)) == 0
    # Weights' regularizers count as those of any layer do.
    experts = [layers.Dense(2, kernel_regularizer="l2") for _ in range(2)]
    moe = kd.SparseMoE(experts=experts)
    moe(x)
    assert len(moe.losses) == 2


@pytest.mark.parametrize("graph", [False, True])
def test_an_expert_without_tokens_does_not_run(graph):
    moe = kd.SparseMoE(
        experts=[Counting(), Counting(), Counting()], router=FirstFeatures(3)
    )

    def call(x):
        return moe(x, training=True)

    run = tf.function(call, autograph=False) if graph else call
    x = np.eye(3, 4, dtype="float32")[[0, 0, 2]] * 9
    close(run(x), x * np.exp(9) / (np.exp(9) + 2))
    seen = [expert.seen.numpy().tolist() for expert in moe.experts]
    assert seen == [[1, 2], [0, 0], [1, 1]]


def test_batch_statistics_are_those_of_the_own_tokens():
    experts = [layers.BatchNormalization(momentum=0) for _ in range(3)]
    moe = kd.SparseMoE(experts=experts, router=FirstFeatures(3))
    inputs = keras.Input((4,))
    model = keras.Model(inputs, moe(inputs))
    model.compile("sgd", "mse")
    x = np.eye(3, 4, dtype="float32")[[0, 0, 2, 2, 2]] * 9 + normal(5, 4)
    model.fit(x, x, 5, shuffle=False, verbose=0)
    means = [expert.moving_mean.numpy() for expert in experts]
    close(means[0], x[:2].mean(axis=0))
    close(means[1], np.zeros(4))  # nobody came
    close(means[2], x[2:].mean(axis=0))
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


def test_convolutions_of_whole_images():
    x = normal(5, 6, 6, 3)
    experts = [
        layers.Conv2D(4, 3, strides=2, padding="same"),
        keras.Sequential([layers.AveragePooling2D(2), layers.Conv2D(4, 1)]),
    ]
    moe = kd.SparseMoE(experts=experts, route="input", noise_stddev=0)
    scattered(moe, x.shape)
    for each in (x, x[:1], x[:0]):
        answer = moe(each, training=True)
        assert answer.shape == (len(each), 3, 3, 4)
        if len(each):
            # The reference has one axis of positions: here both together.
            functions = [
                lambda flat, each=each, expert=expert: as_function(expert, 3)(
                    each
                ).reshape(len(each), 9, 4)
                for expert in experts
            ]
            expected = mixture_of(moe, each, experts=functions)
            close(answer, expected.output.reshape(answer.shape))
    inputs = keras.Input((6, 6, 3))
    model = keras.Model(inputs, moe(inputs))
    assert model.outputs[0].shape == (None, 3, 3, 4)
    close(model.predict(x, verbose=0), moe(x))


@pytest.mark.parametrize("road", ["ragged", "capacity", "dense"])
def test_experts_see_the_mask_of_an_input(road):
    # Samples 0 and 1 go to expert 0 by the mean of what counts, 2 to expert 1.
    x = np.array([[[9, 0], [-99, 0]], [[9, 0], [9, 0]], [[0, 9], [0, 9]]], "float32")
    mask = np.array([[True, False], [True, True], [True, True]])
    moe = kd.SparseMoE(
        experts=[Sum(1.0), Sum(10.0)],
        router=FirstFeatures(2),
        route="input",
        dispatch=road,
        capacity_factor=2.0,
        inference_capacity_factor=2.0,
    )
    p = np.exp(9) / (np.exp(9) + 1)
    answer = moe(x, mask=mask)
    close(answer, p * np.array([[9, 0], [18, 0], [0, 180]]))


def test_mixtures_and_gates_as_experts():
    """What is dynamic itself may be an expert."""
    inputs = keras.Input((5, 4))
    inner = kd.SparseMoE(2, 3, name="inner")
    gate = kd.SkipGate(layers.Dense(4), target_rate=0.5, rate_weight=0.1)
    moe = kd.SparseMoE(experts=[inner, gate, layers.Dropout(0.5)], name="outer")
    model = keras.Model(inputs, moe(inputs))
    model.compile("sgd", "mse")
    x = normal(8, 5, 4)
    logs = model.fit(x, x, 8, verbose=0, validation_data=(x, x)).history
    assert np.isfinite([values[0] for values in logs.values()]).all()


def test_a_sub_model_trained_elsewhere_stays_as_it_is():
    """Built experts keep their weights."""
    expert = keras.Sequential([keras.Input((4,)), layers.Dense(4)])
    before = expert.get_weights()
    moe = kd.SparseMoE(experts=[expert, layers.Dense(4)])
    moe(normal(3, 4))
    for one, other in zip(before, expert.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_is_a_layer():
    """With a router of one's own, and experts of several kinds."""
    x = normal(16, 3, 4)
    check_layer(
        lambda: kd.SparseMoE(
            experts=[
                layers.Dense(5, kernel_regularizer="l2"),
                keras.Sequential([layers.Dense(5), layers.Dense(5)]),
            ],
            router=Best(2),
            route="input",
        ),
        x,
        config={"num_experts": 2, "hidden_units": None, "route": "input"},
        half_tolerance=None,
        jit=False,  # a test of its own
    )


def test_saving_keeps_router_and_experts(tmp_path):
    inputs = keras.Input((6, 4))
    moe = kd.SparseMoE(experts=mixed(), router=Best(3), name="moe")
    model = keras.Model(inputs, moe(inputs))
    x = normal(4, 6, 4)
    expected = model(x)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    close(loaded(x), expected)
    again = loaded.get_layer("moe")
    assert isinstance(again.router, Best)
    kinds = [type(expert) for expert in again.experts]
    assert kinds == [layers.Dense, keras.Sequential, layers.Dense]
    copy = keras.models.clone_model(model)
    copy.load_weights(tmp_path / "model.weights.h5")
    close(copy(x), expected)
    assert copy.get_layer("moe").experts[0] is not moe.experts[0]
