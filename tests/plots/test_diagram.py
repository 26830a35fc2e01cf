"""The diagram of a model: FLOPs by hand, sums as `compute_costs`, and what is drawn."""

import keras
import numpy as np
import pytest
from keras import layers
from matplotlib import pyplot

import keras_dynamic as kd
from tests.layers.small_gates import First, normal, odds
from tests.models.small_models import dense_model
from tests.models.small_selected import selected_model
from tests.plots.checks import save


def gated():
    """One early exit; a gate before it, a mixture and a choice after it."""
    inputs = keras.Input((6,))
    block = layers.Dense(6, "relu")
    hidden = kd.SkipGate(block, gate=odds(1.0), name="gate")(inputs)
    first = kd.EarlyExit(3, loss_weight=0.5, name="exit_1")(hidden)
    hidden = kd.SparseMoE(4, 8, name="moe")(hidden)
    options = [layers.Dense(6, name="dense"), layers.Identity(name="skip")]
    hidden = kd.LayerChoice(options, estimator="straight_through", name="choice")(
        hidden
    )
    final = layers.Dense(3, "softmax", name="final")(hidden)
    return kd.DynamicModel(inputs, [first, final], name="net")


def words(ax):
    return [text.get_text() for text in ax.texts]


def bars(ax):
    """Width of each bar in the unit of the drawing, by its label."""
    named = [patch for patch in ax.patches if not patch.get_label().startswith("_")]
    return {patch.get_label(): patch.get_width() for patch in named}


def test_flops_by_hand(tmp_path):
    record = kd.plots.model_diagram(dense_model(name="net"))
    # A dense layer of 8 units with tanh on 6 inputs: 2 * 6 * 8 + 8 + 8 = 112, on 8
    # inputs 2 * 8 * 8 + 16 = 144; 4 units with softmax, 5 each: 64 + 4 + 20 = 88.
    expected = [(112, 0, False), (88, 0, True), (144, 1, False), (88, 1, True)]
    expected += [(144, 2, False), (88, 2, False)]
    found = zip(record.flops, record.segments, record.in_head, strict=True)
    assert list(found) == expected
    assert record.layers[1::2] == ["exit_1", "exit_2", "final"]
    assert record.exits == ["exit_1", "exit_2", "final"]
    # 112 + 88, 200 + 144 + 88, 432 + 144 + 88; without heads 112 + 144 + 144 + 88.
    np.testing.assert_array_equal(record.exit_flops, [200, 432, 664])
    assert record.reference == 488
    np.testing.assert_array_equal(record.segment_flops, [112, 144, 232])
    np.testing.assert_array_equal(record.head_flops, [88, 88, 0])
    np.testing.assert_allclose(record.shares[0], 112 / 488)
    ax = record.plot()
    found = words(ax)
    assert "segment 0\n23.0 %" in found  # 112 / 488
    assert "cost 0.410, head 18.0 %, loss weight 1" in found  # 200 / 488, 88 / 488
    assert "cost 1.361, loss weight 1" in found  # 664 / 488
    assert ax.get_title() == "net (100 % = 488 FLOPs)"
    save(ax, tmp_path / "diagram.png")


def test_gates_mixtures_and_choices(tmp_path):
    logs = {"gate_open_rate": 0.25, "exit_rates": [1.0, 0.0], "loss": 1.0}
    record = kd.plots.model_diagram(gated(), logs)
    assert record.layers == ["gate", "exit_1", "moe", "choice", "final"]
    assert record.kinds == ["gate", "layer", "mixture", "choice", "layer"]
    assert record.notes == ["", "", "1 of 4 experts", "dense of 2 layers", ""]
    np.testing.assert_array_equal(record.open_rates, [0.25, *[np.nan] * 4])
    np.testing.assert_array_equal(record.loss_weights, [0.5, 1.0])
    # The gate: 2 * 6 + 1 for its logit, 2 * 6 * 6 + 6 + 6 for its layer.
    np.testing.assert_array_equal(record.flops[0], 13 + 84)
    np.testing.assert_array_equal(record.saved, [84, 0, 0, 0, 0])
    ax = record.plot()
    width, scale = bars(ax), 1.6 / record.flops[[0, 2, 3, 4]].max()
    assert width["gate (saved)"] == pytest.approx(97 * scale)
    assert width["gate"] == pytest.approx((97 - 0.75 * 84) * scale)
    assert width["moe"] == pytest.approx(record.flops[2] * scale)
    (hatched,) = [p for p in ax.patches if p.get_label() == "gate (saved)"]
    assert hatched.get_hatch()
    found = words(ax)
    share = 100 * 97 / record.reference
    assert f"{share:.1f} %, gate, open 25.0 %" in found
    assert any("mixture, 1 of 4 experts" in text for text in found)
    assert "100.0 % leave" in found
    assert any("hatched" in text for text in found)
    assert "no samples leave" in found
    save(ax, tmp_path / "kinds.png")


def test_rates_of_real_logs():
    model = gated()
    model.compile("sgd", "sparse_categorical_crossentropy")
    x, y = normal(12, 6), np.arange(12) % 3
    history = model.fit(x, y, epochs=2, verbose=0)
    record = kd.plots.model_diagram(model, history)
    assert record.open_rates[0] == history.history["gate_open_rate"][-1]
    assert np.isnan(record.exit_rates).all()
    record = kd.plots.model_diagram(model, {"gate_open_rate": [0.2, 0.7]})
    assert record.open_rates[0] == 0.7  # of the last epoch
    logs = model.evaluate_dynamic(x, y, verbose=0)
    record = kd.plots.model_diagram(model, logs)
    np.testing.assert_array_equal(record.exit_rates, logs["exit_rates"])
    assert np.isnan(record.open_rates).all()


@pytest.mark.parametrize("layerwise", [False, True])
def test_a_selector(layerwise, tmp_path):
    model = selected_model(layerwise)
    record = kd.plots.model_diagram(model)
    costs = model.compute_costs()
    # All layers, the selector's included: each segment is its trunk.
    np.testing.assert_array_equal(record.segment_flops[:2], costs.segments[:2])
    last = costs.segments[2] + costs.heads[2]
    assert record.segment_flops[2] == last
    np.testing.assert_array_equal(record.head_flops[:2], costs.heads[:2])
    np.testing.assert_array_equal(record.exit_flops, costs.exits)
    selectors = [
        name
        for name, kind in zip(record.layers, record.kinds, strict=True)
        if kind == "selector"
    ]
    gates = model.get_layer("selector").gates if layerwise else []
    expected = [f"selector/{gate.name}" for gate in gates]
    assert selectors == (expected or ["selector"])
    assert list(record.segments) == sorted(record.segments)
    save(record.plot(), tmp_path / "selector.png")


def test_a_selector_that_the_rule_does_not_ask():
    model = selected_model()
    model.exit_rule = "max_probability"
    record = kd.plots.model_diagram(model)
    assert "selector" not in record.layers
    costs = model.compute_costs()
    np.testing.assert_array_equal(record.exit_flops, costs.exits)
    np.testing.assert_array_equal(
        np.cumsum(record.segment_flops + record.head_flops), costs.exits
    )


def test_a_plain_model_with_gates(tmp_path):
    inputs = hidden = keras.Input((5,))
    for number in range(30):
        block = layers.Dense(5, name=f"dense_{number}")
        inner = kd.SkipGate(block, gate=First(), name=f"inner_{number}")
        hidden = kd.SkipGate(inner, gate=odds(0.0), name=f"gate_{number}")(hidden)
        for _ in range(2):
            hidden = layers.Dense(5)(hidden)
    model = keras.Model(inputs, hidden, name="plain")
    # First() has no formula, but its graph has: a reshape and a slice cost nothing.
    record = kd.plots.model_diagram(model)
    assert (record.exits, len(record.layers)) == ([], 90)
    assert record.notes[0] == "holds inner_0"
    # 2 * 5 * 5 + 5 of a dense layer, 2 * 5 + 1 of the outer gate.
    np.testing.assert_array_equal(record.flops[:3], [66, 55, 55])
    assert record.reference == 30 * 176
    np.testing.assert_array_equal(record.segment_flops, [record.reference])
    ax = record.plot()
    # With 90 rows, plain neighbors share one.
    found = words(ax)
    assert sum("gate" in text and "holds" in text for text in found) == 30
    shared = [text for text in found if ", dense_" in text]
    assert len(shared) == 30
    save(ax, tmp_path / "plain.png")


def test_small_layers_share_a_row_and_names_are_shortened():
    inputs = keras.Input((8, 8, 1), name="image")
    hidden = layers.Conv2D(
        16, 3, name="a_convolution_with_a_name_that_is_far_too_long"
    )(inputs)
    for number in range(4):
        hidden = layers.Dropout(0.1, name=f"dropout_number_{number}")(hidden)
    hidden = layers.Flatten(name="flat")(hidden)
    model = keras.Model(inputs, layers.Dense(300, name="dense")(hidden))
    found = words(kd.plots.model_diagram(model).plot())
    assert "dropout_number_0 + 4 more" in found
    (long,) = [text for text in found if text.startswith("a_conv")]
    assert long.endswith("too_long")
    assert len(long) == 32


def test_open_sizes_and_what_cannot_be_counted(tmp_path):
    @keras.saving.register_keras_serializable(package="tests")
    class Loop(layers.Layer):
        def call(self, inputs):
            while_body = lambda i, x: (i + 1, keras.ops.tanh(x))  # noqa: E731
            loop = keras.ops.while_loop(lambda i, x: i < 3, while_body, (0, inputs))
            return loop[1]

        def compute_output_shape(self, input_shape):
            return input_shape

    inputs = keras.Input((None, 4))
    hidden = kd.SkipGate(layers.Dense(4), gate=None, name="gate")(inputs)
    hidden = Loop(name="loop")(hidden)
    model = keras.Model(inputs, layers.Dense(4, name="last")(hidden))
    with pytest.raises(
        ValueError, match=r"plots.model_diagram\(model, input_shape=.*unknown"
    ):
        kd.plots.model_diagram(model)
    record = kd.plots.model_diagram(model, input_shape=(7, 4))
    assert record.layers == ["gate", "loop", "last"]
    assert record.flops[2] == 7 * (2 * 4 * 4 + 4)
    assert np.isnan(record.flops[1])
    # The layer in the gate: 7 positions of 2 * 4 * 4 + 4.
    np.testing.assert_array_equal(record.saved, [7 * 36, 0, 0])
    assert record.reference == record.flops[0] + record.flops[2]
    ax = record.plot()
    assert "FLOPs unknown" in words(ax)
    save(ax, tmp_path / "unknown.png")


def test_a_gate_in_a_head():
    inputs = keras.Input((4,))
    gate = kd.SkipGate(layers.Dense(4), name="gate")
    first = layers.Dense(2, "softmax", name="exit_1")(gate(inputs))
    final = layers.Dense(2, "softmax", name="final")(layers.Dense(8)(inputs))
    record = kd.plots.model_diagram(kd.DynamicModel(inputs, [first, final]))
    np.testing.assert_array_equal(record.in_head, [True, True, False, False])
    found = words(record.plot())
    assert any("with gate, loss weight" in text for text in found)
    assert not any("hatched" in text for text in found)  # it has no bar
    assert "segment 0\n0.0 %" in found


def test_given_axes():
    _, given = pyplot.subplots()
    assert kd.plots.model_diagram(gated()).plot(given) is given


def test_bad_input():
    model = gated()
    with pytest.raises(ValueError, match="`model`.*<class 'str'>"):
        kd.plots.model_diagram("model")
    with pytest.raises(ValueError, match=r"`logs`.*gate_open_rate.*\['loss'\]"):
        kd.plots.model_diagram(model, {"loss": 1.0})
    with pytest.raises(ValueError, match=r"exit_rates.*2 numbers.*\[1.0\]"):
        kd.plots.model_diagram(model, {"exit_rates": [1.0]})
    with pytest.raises(TypeError, match="`logs`.*logs=0.5"):
        kd.plots.model_diagram(model, 0.5)
    inputs = keras.Input((4,))
    nothing = keras.Model(inputs, layers.Dropout(0.5)(inputs), name="nothing")
    with pytest.raises(ValueError, match="`model`.*'nothing' of 1 operations"):
        kd.plots.model_diagram(nothing)
