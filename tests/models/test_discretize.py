"""discretize: a plain model that holds only what was chosen."""

import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_dynamic as kd
from tests.models.small_models import dense_data


def data(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def opened(gate, logit):
    """Fixes the logit that a built gate gives to every sample."""
    classifier = gate.decider.classifier
    classifier.kernel.assign(np.zeros(classifier.kernel.shape))
    classifier.bias.assign([logit])


def equal(model, plain, x, tolerance=1e-6):
    for one, other in zip(
        keras.tree.flatten(model.predict(x, verbose=0)),
        keras.tree.flatten(plain.predict(x, verbose=0)),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def dynamic_layers(model):
    kinds = (kd.BlendedActivation, kd.LayerChoice, kd.SkipGate)
    return [q.name for q in model._flatten_layers() if isinstance(q, kinds)]


# What takes whose place


def test_a_choice_becomes_its_winner():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    options = [layers.Dense(8, name="a"), layers.Dense(8, "relu", name="b")]
    choice = kd.LayerChoice(options, estimator="straight_through", name="choice")
    model = keras.Model(inputs, layers.Dense(3)(choice(inputs)))
    choice.logits.assign([0.0, 1.0])
    x = data(20, 4)
    plain, report = kd.discretize(model, x, return_report=True)
    assert type(plain.get_layer("choice")) is layers.Dense
    assert report.replaced == {"choice": "b (Dense)"} and report.kept == {}
    # Two layers of 4*8 + 8 = 40, two logits, a temperature; the rest is 8*3 + 3 = 27.
    assert report.parameters == (2 * 40 + 3 + 27, 40 + 27)
    assert report.max_change == 0.0  # hard at inference: nothing changes
    equal(model, plain, x)
    plain.get_layer("choice").kernel.assign(np.zeros((4, 8)))
    assert np.any(options[1].kernel.numpy() != 0)  # weights are copies


def test_the_change_of_a_mixture_is_reported():
    """The mean of 2x and 4x is 3x; the winner, 4x, is x away from it."""
    inputs = keras.Input((1,))
    double, fourfold = (
        layers.Dense(
            1, use_bias=False, kernel_initializer=keras.initializers.Constant(k)
        )
        for k in (2.0, 4.0)
    )
    choice = kd.LayerChoice([double, fourfold])
    model = keras.Model(inputs, choice(inputs))
    choice.logits.assign([0.0, 1e-6])
    x = np.array([[1.0], [-2.0], [4.0]], "float32")
    _, report = kd.discretize(model, x, return_report=True)
    np.testing.assert_allclose(report.mean_change, 7 / 3, rtol=1e-5)
    np.testing.assert_allclose(report.max_change, 4.0, rtol=1e-5)
    assert "changed by 2.33 on average, by 4 at most" in str(report)


def test_a_blend_becomes_an_activation():
    inputs = keras.Input((4,))
    blend = kd.BlendedActivation(["relu", "tanh"], initial_activation="tanh")
    by_channel = kd.BlendedActivation(["relu", "tanh"], shared_axes=[], name="channels")
    model = keras.Model(inputs, by_channel(blend(inputs)))
    plain, report = kd.discretize(model, return_report=True)
    assert plain.layers[1].activation is keras.activations.tanh
    assert report.replaced == {blend.name: "tanh"}
    assert report.kept == {"channels": "it has several blends"}
    assert report.mean_change is None


@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("units", [4, 6])
def test_gates_always_open_or_always_closed_go(additive, units):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    gates = [
        kd.SkipGate(layers.Dense(n, "tanh"), additive=additive, name=name)
        for name, n in (("open", units), ("closed", 4), ("sometimes", 4))
    ]
    hidden = inputs
    for gate in gates:
        hidden = gate(hidden)
    model = keras.Model(inputs, hidden)
    opened(gates[0], 1.0)
    opened(gates[1], -1.0)
    x = data(32, 4)
    opened(gates[2], 0.0)
    gates[2].decider.classifier.kernel.assign(data(16, 1))
    logits = gates[2].decider(keras.Model(inputs, gates[1].output)(x))
    gates[2].decider.classifier.bias.assign([-np.median(logits)])
    plain, report = kd.discretize(model, x, return_report=True)
    assert list(report.kept) == ["sometimes"] == dynamic_layers(plain)
    assert report.kept["sometimes"].startswith("open for ")
    assert set(report.replaced) == {"open", "closed"}
    assert report.max_change < 1e-6
    equal(model, plain, x)
    assert list(kd.discretize(model, return_report=True)[1].kept) == [
        gate.name for gate in gates
    ]


def test_nests():
    """A blend in a nested model in a gate, a choice in a gate, a gate in a choice."""
    keras.utils.set_random_seed(0)
    inner = keras.Input((4,))
    blended = kd.BlendedActivation(
        ["elu", "tanh"], "sum_normalized", initial_activation="elu"
    )
    block = keras.Model(
        inner, layers.Dense(4)(blended(layers.BatchNormalization()(inner)))
    )
    gate = kd.SkipGate(layers.Dense(4), name="gate_in_choice")
    choice = kd.LayerChoice(
        [gate, layers.Identity()], estimator="straight_through", name="choice"
    )
    kept = kd.SkipGate(
        kd.LayerChoice(
            [layers.Dense(4), layers.Dense(4)], "straight_through", name="in_gate"
        ),
        gate=layers.Dense(1),
        name="kept",
    )
    inputs = keras.Input((4,))
    outer = kd.SkipGate(block, name="outer")
    model = keras.Model(inputs, kept(choice(outer(inputs))))
    x = data(32, 4)
    plain, report = kd.discretize(model, x, return_report=True)
    assert list(report.kept) == ["kept"] == dynamic_layers(plain)
    assert set(report.replaced) == {
        "outer",
        blended.name,
        "choice",
        "gate_in_choice",
        "in_gate",
    }
    equal(model, plain, x)


def test_a_layer_used_twice_and_sequential_models():
    keras.utils.set_random_seed(0)
    shared = kd.LayerChoice([layers.Dense(4), layers.Dense(4, "relu")])
    stack = keras.Sequential(
        [keras.Input((4,)), shared, kd.BlendedActivation(["relu"]), layers.Dense(2)]
    )
    plain = kd.discretize(stack)
    assert isinstance(plain, keras.Sequential) and not dynamic_layers(plain)
    inputs = keras.Input((4,))
    hard = kd.LayerChoice([layers.Dense(4), layers.Dense(4)], "reinmax")
    model = keras.Model(inputs, hard(hard(inputs)))
    plain = kd.discretize(model)
    assert len(plain.layers) == 2 and len(plain.trainable_weights) == 2
    equal(model, plain, data(8, 4))


def test_masks_go_on():
    inputs = keras.Input((5,), dtype="int32")
    h = layers.Embedding(7, 4, mask_zero=True)(inputs)
    h = kd.LayerChoice([layers.Dense(4), layers.Dense(4)], "reinmax")(h)
    gate = kd.SkipGate(layers.Dense(4, "tanh"))
    model = keras.Model(inputs, layers.GlobalAveragePooling1D()(gate(h)))
    x = np.array([[1, 2, 0, 0, 0], [3, 4, 5, 6, 1]])
    plain = kd.discretize(model, x)
    assert not dynamic_layers(plain)
    equal(model, plain, x)


def test_a_dynamic_model_stays_one():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    gate = kd.SkipGate(layers.Dense(6, "tanh"), name="gate")
    hidden = gate(inputs)
    exits = [kd.EarlyExit(4, name="early")(hidden), layers.Dense(4, "softmax")(hidden)]
    model = kd.DynamicModel(inputs, exits)
    x, y = dense_data()
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.calibrate(x, y, rule="entropy", budget=2.0)
    plain = kd.discretize(model, x)
    assert isinstance(plain, kd.DynamicModel) and not dynamic_layers(plain)
    one, other = (m.predict_dynamic(x, verbose=0) for m in (model, plain))
    np.testing.assert_array_equal(one.exit_index, other.exit_index)
    np.testing.assert_allclose(one.outputs, other.outputs, rtol=1e-5)
    assert type(plain.exit_rule) is kd.rules.Entropy
    assert (other.cost < one.cost).all()  # no gate to pay for


# Files


def test_the_result_needs_no_keras_dynamic(tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    h = kd.LayerChoice([layers.Dense(4), layers.Dense(4)], "straight_through")(inputs)
    h = kd.BlendedActivation(["relu", "tanh"], estimator="reinmax")(h)
    model = keras.Model(inputs, kd.SkipGate(layers.Dense(4), additive=True)(h))
    x = data(8, 4)
    plain = kd.discretize(model, x)
    plain.save(tmp_path / "plain.keras")
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "expected.npy", model.predict(x, verbose=0))
    smaller = (tmp_path / name for name in ("plain.keras", "model.keras"))
    sizes = [path.stat().st_size for path in smaller]
    assert sizes[0] < sizes[1]
    script = """
        import sys, keras, numpy as np
        model = keras.saving.load_model("plain.keras")
        answer = model.predict(np.load("x.npy"), verbose=0)
        np.testing.assert_allclose(answer, np.load("expected.npy"), rtol=1e-5)
        assert "keras_dynamic" not in sys.modules
    """
    run = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(
        run, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_wants_a_functional_model():
    with pytest.raises(ValueError, match="`model` must be a functional.*Dense"):
        kd.discretize(layers.Dense(2))


def test_a_layer_in_two_places_stays_one():
    keras.utils.set_random_seed(0)
    shared = layers.Dense(4, "tanh")
    inputs = keras.Input((4,))
    choice = kd.LayerChoice([shared, layers.Identity()], "straight_through")
    choice.logits.assign([1.0, 0.0])
    model = keras.Model(inputs, choice(shared(inputs)))
    plain = kd.discretize(model)
    assert len(plain.trainable_weights) == 2
    equal(model, plain, data(8, 4))


def test_states_that_are_no_weights():
    normalization = layers.Normalization()
    normalization.adapt(data(50, 4) * 3 + 5)
    inputs = keras.Input((4,))
    h = kd.SkipGate(layers.Dense(4))(normalization(inputs))
    words = layers.StringLookup(vocabulary=["a", "b"])
    strings = keras.Input((1,), dtype="string")
    h = layers.Concatenate()(
        [h, layers.Flatten()(layers.Embedding(3, 2)(words(strings)))]
    )
    model = keras.Model([inputs, strings], h)
    plain = kd.discretize(model)
    x = [tf.constant(data(3, 4)), tf.constant([["a"], ["b"], ["c"]])]
    np.testing.assert_allclose(model(x), plain(x), rtol=1e-6)


def test_activations_of_layers_and_what_stands_in_wrappers():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3, 4))
    blend = kd.BlendedActivation(["relu", "tanh"], "unrestricted", name="blend")
    blend.parameters.assign([0.1, -1.0])
    h = layers.Dense(4, activation=blend)(inputs)
    choice = kd.LayerChoice(
        [layers.Dense(4), layers.Dense(4)], "reinmax", name="choice"
    )
    model = keras.Model(inputs, layers.TimeDistributed(choice)(h))
    plain, report = kd.discretize(model, return_report=True)
    assert not dynamic_layers(plain)
    assert report.replaced["blend"] == "tanh"  # the largest in absolute value
    x = data(2, 3, 4)
    expected = layers.TimeDistributed(choice.winner())(
        np.tanh(x @ model.layers[1].kernel + model.layers[1].bias)
    )
    np.testing.assert_allclose(plain.predict(x, verbose=0), expected, rtol=1e-5)


def test_choices_in_a_gate_of_ones_own():
    keras.utils.set_random_seed(0)
    options = [layers.Dense(1), layers.Dense(1)]
    own = kd.LayerChoice(options, "straight_through", name="own")
    inputs = keras.Input((4,))
    gate = kd.SkipGate(layers.Dense(4), gate=own, cost_weight=0.1, name="gate")
    model = keras.Model(inputs, gate(inputs))
    kd.bind_costs(model)
    x = data(64, 4)
    plain, report = kd.discretize(model, x, return_report=True)
    assert list(report.kept) == ["gate"] and report.replaced["own"].startswith("dense")
    equal(model, plain, x)
    # Its cost is known as before: no warning.
    plain.get_layer("gate")(x, training=True)
    assert plain.get_layer("gate").current_cost == gate.current_cost


def test_no_data():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, kd.SkipGate(layers.Dense(4))(inputs))
    with pytest.raises(ValueError, match="`x` must hold at least one sample"):
        kd.discretize(model, np.zeros((0, 4)))


def test_the_result_is_not_compiled():
    """A loss of one's own that is not registered could not be made again."""

    def own(y, predicted):
        return keras.ops.mean(keras.ops.square(y - predicted))

    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(4)(inputs))
    stack = keras.Sequential([keras.Input((4,)), layers.Dense(4)])
    for each in (model, stack):
        each.compile("sgd", own)
        plain = kd.discretize(each)
        assert not plain.compiled and each.compiled
        equal(each, plain, data(3, 4))


def test_inputs_stay_what_they_are():
    one = keras.Input((4,), name="one")
    other = keras.Input((4,), name="other", optional=True)

    @keras.saving.register_keras_serializable("tests")
    class Sum(layers.Layer):
        def call(self, one, other=None):
            return one if other is None else one + other

    model = keras.Model({"one": one, "other": other}, {"sum": Sum()(one, other)})
    plain = kd.discretize(model)
    x = data(3, 4)
    answer = plain({"one": x, "other": None})
    assert list(answer) == ["sum"]
    np.testing.assert_array_equal(answer["sum"], x)
    np.testing.assert_array_equal(plain({"one": x, "other": x})["sum"], 2 * x)
    assert [tensor.name for tensor in plain.inputs] == ["one", "other"]


def test_a_class_of_ones_own_stays():
    class Own(keras.Model):
        pass

    class Further(keras.Model):  # Keras cannot make it from a graph either
        def __init__(self, inputs, outputs, factor, **kwargs):
            super().__init__(inputs, outputs, **kwargs)
            self.factor = factor

    inputs = keras.Input((4,))
    for made, kept in (
        (Own(inputs, layers.Dense(2)(inputs)), True),
        (Further(inputs, layers.Dense(2)(inputs), factor=2), False),
    ):
        plain = kd.discretize(made)
        assert isinstance(plain, type(made)) is kept
        equal(made, plain, data(3, 4))
