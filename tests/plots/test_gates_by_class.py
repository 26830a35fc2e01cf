"""Open rates by class: held against the decisions of known gates, in NumPy."""

import keras
import numpy as np
import pytest
from keras import layers
from matplotlib import colors, pyplot

import keras_dynamic as kd
from tests.layers.small_gates import First, normal, odds
from tests.plots.checks import save

X, Y = normal(40, 4), np.arange(40) % 3


def nested():
    """An outer gate on the first feature, one within on what a dense layer gives."""
    dense = layers.Dense(4, kernel_initializer="orthogonal")
    inner = kd.SkipGate(layers.Dense(4), gate=First(), name="inner")
    outer = kd.SkipGate(keras.Sequential([dense, inner]), gate=First(), name="outer")
    last = kd.SkipGate(layers.Dense(4), gate=First(), name="last")
    inputs = keras.Input((4,))
    return keras.Model(inputs, last(-outer(inputs))), dense, inner


def decisions(dense, inner):
    """Logits of the three gates, and who gets to the inner one."""
    open_outer = X[:, 0] > 0
    hidden = X @ dense.kernel.numpy()
    logit = hidden[:, 0]
    f = inner.layer.kernel.numpy()
    answer = np.where(logit[:, None] > 0, hidden @ f, hidden)
    after = -np.where(open_outer[:, None], answer, X)
    return X[:, 0], logit, after[:, 0], open_outer


def test_nested_gates(tmp_path):
    model, dense, inner = nested()
    record = kd.plots.gates_by_class(model, X, Y, batch_size=7)
    assert record.gates == ["outer", "inner", "last"]
    assert record.classes == [0, 1, 2]
    outer, within, last, reached = decisions(dense, inner)
    everyone = np.ones(40, bool)
    for column, group in enumerate([*(k == Y for k in range(3)), everyone]):
        for row, (logit, there) in enumerate(
            [(outer, everyone), (within, reached), (last, everyone)]
        ):
            rows = logit[group & there]
            where = row, column
            assert record.reached[where] == len(rows)
            assert record.open_rates[where] == pytest.approx(np.mean(rows > 0))
            probability = np.mean(1 / (1 + np.exp(-rows.astype("float64"))))
            assert record.open_probabilities[where] == pytest.approx(probability, 1e-5)
    ax = record.plot()
    (image,) = ax.images
    np.testing.assert_allclose(image.get_array(), 100 * record.open_rates)
    labels = [label.get_text() for label in ax.get_xticklabels()]
    assert labels == ["0", "1", "2", "all"]
    assert [label.get_text() for label in ax.get_yticklabels()] == record.gates
    for text, rate in zip(ax.texts, record.open_rates.ravel(), strict=True):
        assert text.get_text() == f"{100 * rate:.0f}"
        assert text.get_color() == ("black" if rate > 0.5 else "white")
    assert ax.get_title() == "Open rate by class"
    save(ax, tmp_path / "gates.png")


def test_probability_and_names():
    model, *_ = nested()
    names = ["airplane", "bird", "cat"]
    record = kd.plots.gates_by_class(model, X, Y, names, probability=True)
    _, given = pyplot.subplots()
    ax = record.plot(given)
    assert ax is given
    np.testing.assert_allclose(
        ax.images[0].get_array(), 100 * record.open_probabilities
    )
    labels = [label.get_text() for label in ax.get_xticklabels()]
    assert labels == [*names, "all"]
    assert ax.get_title() == "Open probability by class"


def test_where_no_samples_get(tmp_path):
    inner = kd.SkipGate(layers.Dense(4), gate=odds(3.0), name="inner")
    closed = kd.SkipGate(inner, gate=First(), name="outer")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, closed(inputs))
    y = (X[:, 0] > 0).astype("int32")  # class 0 never gets to the inner gate
    record = kd.plots.gates_by_class(model, X, y)
    np.testing.assert_array_equal(record.open_rates, [[0, 1, y.mean()], [np.nan, 1, 1]])
    np.testing.assert_array_equal(record.reached[1], [0, y.sum(), y.sum()])
    ax = record.plot()
    assert [text.get_text() for text in ax.texts][3] == "–"
    assert "no samples" in ax.get_title()
    save(ax, tmp_path / "nobody.png")
    # The cell is drawn in the gray of the background, as its mask says.
    assert ax.images[0].get_array().mask[1, 0]
    assert colors.to_hex(ax.get_facecolor()) == "#d9d9d9"


def test_a_gate_called_twice_counts_both_calls():
    gate = kd.SkipGate(layers.Dense(4), gate=First(), name="gate")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, gate(-inputs) + gate(inputs))
    record = kd.plots.gates_by_class(model, X, np.zeros(40, "int32"))
    assert record.gates == ["gate"]
    np.testing.assert_array_equal(record.reached, [[80, 80]])
    np.testing.assert_array_equal(record.open_rates, [[0.5, 0.5]])  # x > 0 or -x > 0


def test_a_branch_that_is_not_taken():
    """A gate within a choice that has lost reports nothing; nor one within experts."""
    gates = [
        kd.SkipGate(layers.Dense(4), gate=First(), name=name)
        for name in ("won", "lost")
    ]
    choice = kd.LayerChoice(gates, estimator="straight_through")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, choice(inputs))
    record = kd.plots.gates_by_class(model, X, Y)
    assert record.gates == ["won"]
    expected = [[*(np.mean(X[k == Y, 0] > 0) for k in range(3)), np.mean(X[:, 0] > 0)]]
    np.testing.assert_allclose(record.open_rates, expected)
    experts = [kd.SkipGate(layers.Dense(4), gate=First()) for _ in range(2)]
    inside = keras.Model(inputs, kd.SparseMoE(2, experts=experts)(inputs))
    with pytest.raises(ValueError, match="not within experts.*40 samples"):
        kd.plots.gates_by_class(inside, X, Y)


def test_early_exits_are_not_taken():
    inputs = keras.Input((4,))
    first = kd.EarlyExit(2, name="exit_1")(inputs)
    gate = kd.SkipGate(layers.Dense(4), gate=First(), name="gate")
    final = layers.Dense(2, "softmax", name="final")(gate(inputs))
    model = kd.DynamicModel(
        inputs, [first, final], exit_rule=kd.rules.MaxProbability(0)
    )
    record = kd.plots.gates_by_class(model, X, Y)
    assert record.reached[0, -1] == 40
    assert record.open_rates[0, -1] == pytest.approx(np.mean(X[:, 0] > 0))


def test_a_dataset_and_many_cells(tmp_path):
    import tensorflow as tf

    model, *_ = nested()
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(16)
    record = kd.plots.gates_by_class(model, data, Y)
    arrays = kd.plots.gates_by_class(model, X, Y)
    np.testing.assert_array_equal(record.reached, arrays.reached)
    rates = np.full((30, 11), 0.5)
    many = kd.plots.GatesByClass(
        rates, rates, rates, [f"gate_{i}" for i in range(30)], list(range(10))
    )
    ax = many.plot()
    assert not ax.texts  # no room for numbers
    save(ax, tmp_path / "many.png")


def test_bad_input():
    model, *_ = nested()
    with pytest.raises(ValueError, match=r"`y`.*40 samples.*shape \(3,\)"):
        kd.plots.gates_by_class(model, X, np.zeros(3))
    with pytest.raises(ValueError, match="`class_names`.*from 0 to 2.*2 names"):
        kd.plots.gates_by_class(model, X, Y, ["a", "b"])
    inputs = keras.Input((4,))
    plain = keras.Model(inputs, layers.Dense(2)(inputs), name="plain")
    with pytest.raises(ValueError, match="`model`.*holds a `SkipGate`.*plain"):
        kd.plots.gates_by_class(plain, X, Y)
    with pytest.raises(ValueError, match="`model`.*<class 'str'>"):
        kd.plots.gates_by_class("model", X, Y)
    with pytest.raises(ValueError, match="`y` must have an integer.*float64"):
        kd.plots.gates_by_class(model, X, Y / 2)
    with pytest.raises(ValueError, match="`x` must hold at least one sample"):
        kd.plots.gates_by_class(model, X[:0], Y[:0])


def test_a_hundred_classes_stay_on_a_page(tmp_path):
    rates = np.random.default_rng(0).uniform(size=(90, 101))
    gates, names = [f"gate_{i}" for i in range(90)], [f"class {i}" for i in range(100)]
    ax = kd.plots.GatesByClass(rates, rates, rates, gates, names).plot()
    assert ax.figure.get_size_inches().max() <= 14
    # Every 100 // 24 = 4th class, and all; every 90 // 36 = 2nd gate.
    columns = [label.get_text() for label in ax.get_xticklabels()]
    assert columns == [*names[::4], "all"]
    assert list(ax.get_xticks()) == [*range(0, 100, 4), 100]
    assert [label.get_text() for label in ax.get_yticklabels()] == gates[::2]
    save(ax, tmp_path / "hundred.png")
    # Of 97 classes the last one named, 96, would run into "all".
    ax = kd.plots.GatesByClass(*[rates[:, :98]] * 3, gates, names[:97]).plot()
    assert list(ax.get_xticks()) == [*range(0, 96, 4), 97]
