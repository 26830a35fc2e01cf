"""What a selector thinks, against the selector itself and the dynamic road."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from matplotlib import pyplot

import keras_dynamic as kd
from tests.models.small_models import dense_data, dense_model
from tests.models.small_selected import selected_model, selector_of
from tests.plots.checks import save


@pytest.mark.parametrize("layerwise", [False, True])
def test_weights(layerwise):
    model, (x, _) = selected_model(layerwise, temperature=0.7), dense_data()
    record = kd.plots.exit_selection(model, x, batch_size=16)
    features = x
    if layerwise:
        trunk = [model.get_layer(name).output for name in ("trunk_1", "trunk_2")]
        features = keras.Model(model.input, trunk)(x)
    expected = np.asarray(selector_of(model).probabilities(features))
    np.testing.assert_allclose(record.weights, expected, rtol=1e-5)
    prediction = model.predict_dynamic(x, verbose=0)
    np.testing.assert_array_equal(record.exit_index, prediction.exit_index)
    assert len(np.unique(record.exit_index)) > 1
    shares = np.unique(prediction.cost) / prediction.reference_cost
    np.testing.assert_allclose(record.costs[np.unique(record.exit_index)], shares)
    assert record.exit_names == model.exit_names and record.labels is None


def test_a_dataset_gives_what_its_arrays_give():
    model, (x, y) = selected_model(), dense_data()
    expected = kd.plots.exit_selection(model, x)
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(7)
    record = kd.plots.exit_selection(model, dataset)
    np.testing.assert_allclose(record.weights, expected.weights, rtol=1e-5)


def test_samples_from_cheap_to_dear(tmp_path):
    model, (x, _) = selected_model(), dense_data()
    record = kd.plots.exit_selection(model, x)
    _, given = pyplot.subplots(1, 2)
    axes = record.plot(given, num_samples=4)
    assert all(ax is other for ax, other in zip(axes, given, strict=True))
    left, right = axes
    expected_cost = (record.weights * record.costs).sum(axis=1)
    # Of 40 in order, 4 at even distances.
    shown = np.argsort(expected_cost)[[0, 13, 26, 39]]
    np.testing.assert_array_equal(left.images[0].get_array(), record.weights[shown])
    labels = [label.get_text() for label in left.get_yticklabels()]
    assert labels == [str(row) for row in shown]
    (points,) = left.collections
    np.testing.assert_array_equal(
        points.get_offsets(), np.stack([record.exit_index[shown], np.arange(4)], axis=1)
    )
    mean, chosen = ([bar.get_height() for bar in bars] for bars in right.containers)
    np.testing.assert_allclose(mean, record.weights.mean(axis=0))
    rates = model.predict_dynamic(x, verbose=0).exit_rates
    np.testing.assert_allclose(chosen, rates)
    assert [text.get_text() for text in right.get_xticklabels()] == [
        f"{name}\ncost {cost:.2g}"
        for name, cost in zip(model.exit_names, record.costs, strict=True)
    ]
    assert right.get_title() == "All 40 samples"
    save(axes, tmp_path / "samples.png")
    assert record.plot(num_samples=100)[0].images[0].get_array().shape == (40, 3)


def test_classes(tmp_path):
    model, (x, y) = selected_model(), dense_data()
    y = np.where(y == 2, 3, y)  # nobody of class 2
    names = ["ant", "bee", "cow", "dog"]
    record = kd.plots.exit_selection(model, x, y, names)
    axes = record.plot()
    means = [record.weights[y == label].mean(axis=0) for label in (0, 1, 3)]
    np.testing.assert_allclose(axes[0].images[0].get_array(), means)
    labels = [label.get_text() for label in axes[0].get_yticklabels()]
    assert labels == ["ant", "bee", "dog"]
    assert (axes[0].get_ylabel(), len(axes[0].collections)) == ("class", 0)
    save(axes, tmp_path / "classes.png")
    axes = kd.plots.exit_selection(model, x, y).plot()
    labels = [label.get_text() for label in axes[0].get_yticklabels()]
    assert labels == ["0", "1", "3"]


def test_bad_input():
    model, (x, y) = selected_model(), dense_data()
    with pytest.raises(ValueError, match="needs a model with a selector"):
        kd.plots.exit_selection(dense_model(), x)
    with pytest.raises(TypeError, match="`model`.*DynamicModel"):
        kd.plots.exit_selection(keras.Sequential(), x)
    with pytest.raises(ValueError, match="at least one sample. Received: none"):
        kd.plots.exit_selection(model, x[:0])
    with pytest.raises(ValueError, match=r"`y`.*40 samples.*shape \(39,\)"):
        kd.plots.exit_selection(model, x, y[:39])
    with pytest.raises(ValueError, match="`y` must have an integer.*float32"):
        kd.plots.exit_selection(model, x, y.astype("float32"))
    with pytest.raises(ValueError, match="`class_names`.*0 to 3.*2 names"):
        kd.plots.exit_selection(model, x, y, ["a", "b"])
    record = kd.plots.exit_selection(model, x)
    with pytest.raises(ValueError, match="`num_samples`.*num_samples=0"):
        record.plot(num_samples=0)
    broken = np.where(np.arange(40)[:, None] == 17, np.nan, x)
    with pytest.raises(ValueError, match="`x` must hold no NaN.*1 of 40.*row 17"):
        kd.plots.exit_selection(model, broken, batch_size=16)
    with pytest.raises(ValueError, match="`axes` must be 2 `Axes`. Received: 3"):
        kd.plots.exit_selection(model, x).plot(pyplot.subplots(1, 3)[1])


def drawn_with(exits, rows, names=None, **arguments):
    weights = np.random.default_rng(0).dirichlet(np.ones(exits), rows)
    names = names or [f"exit_{index}" for index in range(exits)]
    costs = np.linspace(0.2, 1, exits)
    record = kd.plots.ExitSelection(
        weights, weights.argmax(axis=1), costs, names, **arguments
    )
    return record.plot()


def test_a_hundred_classes(tmp_path):
    axes = drawn_with(3, 200, labels=np.arange(200) % 100)
    # Every 100 // 12 = 8th has a name.
    labels = [label.get_text() for label in axes[0].get_yticklabels()]
    assert labels == [str(label) for label in range(0, 100, 8)]
    assert axes[0].images[0].get_interpolation() == "nearest"
    save(axes, tmp_path / "hundred.png")


def test_one_sample():
    assert drawn_with(2, 1)[1].get_title() == "1 sample"


@pytest.mark.parametrize("exits", [2, 3, 6])
def test_long_names_keep_apart(exits):
    names = [f"exit_after_a_long_stage_{index}" for index in range(exits)]
    axes = drawn_with(exits, 20, names)
    axes[0].figure.canvas.draw()
    for ax in axes:
        boxes = [label.get_window_extent() for label in ax.get_xticklabels()]
        for left, right in itertools.pairwise(boxes):
            assert left.x1 <= right.x0
