"""Gates where one would not look for them first: in choices, twice, behind wrappers."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_dynamic as kd
from tests.layers.checks import two_replicas


def data(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def sign_gate(units=4, index=0):
    """A gate that opens where one feature is positive."""
    layer = layers.Dense(1, use_bias=False)
    layer.build((None, units))
    layer.kernel.assign(np.eye(units, dtype="float32")[:, index : index + 1])
    return layer


def gated(layer, name="gate", **arguments):
    return kd.SkipGate(layer, gate=sign_gate(), name=name, **arguments)


def logs(model, x):
    model.compile("sgd", "mse")
    y = np.zeros((len(x), *model.output_shape[1:]))
    return model.evaluate(x, y, len(x), verbose=0, return_dict=True)


# In a choice, whose branches keep their tensors to themselves


def test_a_gate_in_a_hard_choice():
    keras.utils.set_random_seed(0)
    options = [gated(layers.Dense(4)), layers.Identity()]
    choice = kd.LayerChoice(options, estimator="straight_through")
    inputs = keras.Input((4,))
    model = kd.DynamicModel(inputs, [layers.Dense(3, "softmax")(choice(inputs))])
    x = data(16, 4)
    opened = x[:, 0] > 0
    for index, saved in ((0, np.where(opened, 0, 36)), (1, np.zeros(16))):
        choice.logits.assign(np.eye(2)[index])
        p = model.predict_dynamic(x, verbose=0)
        # The gate's layer has 2*16 + 4 = 36 FLOPs.
        np.testing.assert_array_equal(p.cost, model.exit_costs[0] - saved)
    choice.logits.assign([1.0, 0.0])
    plain = keras.Model(model.inputs, model.outputs)
    np.testing.assert_allclose(logs(plain, x)["gate_open_rate"], opened.mean())


# Twice, and where it is never reached


def test_a_gate_called_twice_counts_both_calls():
    inputs = keras.Input((4,))
    gate = gated(layers.Identity())
    model = keras.Model(inputs, gate(-gate(inputs)))
    x = data(20, 4)
    assert (x[:, 0] > 0).mean() != 0.5
    np.testing.assert_allclose(logs(model, x)["gate_open_rate"], 0.5)


def test_a_layer_keeps_the_losses_of_its_other_calls():
    shared = layers.Dense(4, activity_regularizer="l2")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, gated(shared)(shared(inputs)))
    x = data(8, 4)
    outside = float(keras.regularizers.L2()(shared(x))) / 8
    scores = logs(model, x)
    error = np.mean(model.predict(x, verbose=0) ** 2)
    np.testing.assert_allclose(scores["loss"], error + outside, rtol=1e-5)


def test_the_gap_of_a_relaxed_gate():
    inputs = keras.Input((4,))
    gate = gated(layers.Dense(4), estimator="soft", temperature=2.0)
    model = keras.Model(inputs, gate(inputs))
    x = data(32, 4)
    soft = 1 / (1 + np.exp(-x[:, 0] / 2))
    by_hand = np.mean(np.abs(soft - (x[:, 0] > 0)))
    np.testing.assert_allclose(logs(model, x)["gate_gap"], by_hand, rtol=1e-5)
    hard = keras.Model(inputs, gated(layers.Dense(4))(inputs))
    assert "gate_gap" not in logs(hard, x)


# Masks and sizes


def test_no_mask_goes_on_where_the_tokens_are_gone():
    """As many tokens as channels: the sizes agree by chance."""
    inputs = keras.Input((4,), dtype="int32")
    tokens = layers.Embedding(5, 4, mask_zero=True)(inputs)
    gate = kd.SkipGate(layers.LSTM(4), shortcut=layers.GlobalAveragePooling1D())
    model = keras.Model(inputs, layers.Dense(2)(gate(tokens)))
    x = np.array([[1, 2, 0, 0], [3, 4, 1, 2]])
    model.compile("sgd", "mse")
    assert np.isfinite(model.fit(x, np.zeros((2, 2)), verbose=0).history["loss"]).all()


def test_a_choice_tells_open_sizes_apart():
    options = [layers.Conv1D(4, 3, strides=2, padding="same"), layers.Identity()]
    with pytest.raises(ValueError, match=r"conv1d.*32, 4\), and 'identity.*64, 4\)"):
        kd.LayerChoice(options)(keras.Input((None, 4)))


# What cannot be gated


@pytest.mark.parametrize(
    ("make", "inputs", "error", "message"),
    [
        (lambda: kd.SkipGate(layers.Dense(4)), keras.Input((4,), dtype="int32"),
         TypeError, "`inputs` must be floats.*int32"),
        (lambda: kd.SkipGate(layers.LSTM(4, return_state=True)), keras.Input((3, 4)),
         ValueError, "`layer` must give one tensor.*'lstm"),
        (lambda: kd.SkipGate(layers.Dense(4), gate=layers.Dense(1, "sigmoid")),
         keras.Input((4,)), ValueError, "`gate` must give logits.*ends in one"),
        (lambda: kd.SkipGate(layers.Dense(4), additive="no"), keras.Input((4,)),
         TypeError, "`additive` must be True or False.*'no'"),
        (lambda: kd.SkipGate(layers.Dense(4), target_rate=float("nan")),
         keras.Input((4,)), ValueError, r"`target_rate` must lie in \(0, 1\].*nan"),
    ],
    ids=["integers", "several_outputs", "sigmoid", "additive", "nan"],
)  # fmt: skip
def test_errors(make, inputs, error, message):
    with pytest.raises(error, match=message):
        make()(inputs)


def test_savings_of_a_layer_that_is_not_counted_are_not_either():
    class Own(layers.Layer):
        def __init__(self):
            super().__init__()
            self.gate = gated(layers.Dense(4))

        def build(self, input_shape):
            self.gate.build(input_shape)

        def call(self, inputs):
            return tf.while_loop(
                lambda i, x: i < 1, lambda i, x: (i + 1, self.gate(x)), (0, inputs)
            )[1]

        def compute_output_shape(self, input_shape):
            return input_shape

    inputs = keras.Input((4,))
    hidden = Own()(inputs)
    exits = [kd.EarlyExit(3)(hidden), layers.Dense(3, "softmax")(hidden)]
    model = kd.DynamicModel(inputs, exits)
    with pytest.warns(UserWarning, match="cannot be counted"):
        p = model.predict_dynamic(data(8, 4), verbose=0)
    assert (p.cost == model.exit_costs[p.exit_index]).all()


# Files and replicas


def test_loaded_in_the_scope_of_a_strategy(tmp_path):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, gated(layers.Dense(4), cost_weight=0.1)(inputs))
    kd.bind_costs(model)
    model.save(tmp_path / "gated.keras")
    with two_replicas().scope():
        loaded = keras.saving.load_model(tmp_path / "gated.keras")
    one, other = (m.get_layer("gate").current_cost.numpy() for m in (model, loaded))
    assert one == other > 0
