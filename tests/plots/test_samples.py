"""Images by exit: which are shown, in which order, and what is written under them."""

import functools

import keras
import numpy as np
import pytest
from matplotlib import colors, pyplot

import keras_dynamic as kd
from tests.plots.checks import save


@functools.cache
def model_of_images(channels=1, units=3, activation="softmax"):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4, 5, channels))
    flat = keras.layers.Flatten()(inputs)
    first = kd.EarlyExit(units, activation=activation, name="exit_1")(flat)
    hidden = keras.layers.Dense(8, "tanh")(flat)
    last = keras.layers.Dense(units, activation, name="final")(hidden)
    return kd.DynamicModel(inputs, [first, last])


def images(count=30, channels=1):
    shape = (count, 4, 5, channels)
    return np.random.default_rng(0).uniform(size=shape).astype("float32")


def halfway(model, x, rule):
    """The rule with a threshold that half of the samples pass at the first exit."""
    scores = np.sort(rule(0.5).score(model.predict(x, verbose=0)[0]))
    return rule(float(scores[14:16].mean()))


@pytest.mark.parametrize("rule", [kd.rules.MaxProbability, kd.rules.Entropy])
def test_who_is_shown(rule):
    model, x = model_of_images(), images()
    y = np.arange(30) % 3
    rule = halfway(model, x, rule)
    record = kd.plots.samples_by_exit(model, x, y, per_exit=4, rule=rule)
    outputs = model.predict(x, verbose=0)
    assert [len(rows) for rows in record.indices] == [4, 4]
    np.testing.assert_allclose(record.exit_rates, [0.5, 0.5])
    for index, output in enumerate(outputs):
        score = np.asarray(rule.score(output))
        first = np.asarray(rule.score(outputs[0]))
        left = first < rule.threshold if rule.leaves_below else first > rule.threshold
        rows = np.flatnonzero(left == (index == 0))
        order = np.argsort(score[rows] if rule.leaves_below else -score[rows])
        # Of 15 in order, 4 at even distances: 0, 4 2/3, 9 1/3 and 14.
        expected = rows[order[[0, 5, 9, 14]]]
        np.testing.assert_array_equal(record.indices[index], expected)
        np.testing.assert_allclose(
            record.confidences[index], score[expected], rtol=1e-5
        )
        answers = output[expected].argmax(axis=1)
        assert record.answers[index] == answers.tolist()
        np.testing.assert_array_equal(record.wrong[index], answers != y[expected])
        np.testing.assert_array_equal(record.images[index], x[expected, ..., 0])


def test_drawing(tmp_path):
    model, x = model_of_images(), images()
    y = np.arange(30) % 3
    rule = halfway(model, x, kd.rules.MaxProbability)
    names = ["cat", "dog", "owl"]
    record = kd.plots.samples_by_exit(model, x, y, 5, names, rule)
    _, given = pyplot.subplots(2, 6)
    axes = record.plot(given)
    assert axes is given
    marked = 0
    for index in range(2):
        assert axes[index, 0].get_ylabel() == f"{model.exit_names[index]}\n50.0%"
        for column in range(5):
            ax = axes[index, column]
            np.testing.assert_array_equal(
                ax.images[0].get_array(), record.images[index][column]
            )
            answer, score = ax.get_xlabel().split("\n")
            assert answer.split()[0] == record.answers[index][column]
            assert score == f"{record.confidences[index][column]:.2f}"
            wrong = record.wrong[index][column]
            marked += wrong
            assert answer.endswith("✗") == wrong
            assert ax.spines["top"].get_visible() == wrong
        assert not axes[index, 5].images
    assert 0 < marked < 10
    save(axes, tmp_path / "samples.png")
    plain = kd.plots.samples_by_exit(model, x, rule=rule)
    assert plain.wrong is None
    axes = plain.plot()
    assert axes.shape == (2, 8) and "✗" not in axes[0, 0].get_xlabel()
    save(axes, tmp_path / "plain.png")


def test_an_exit_that_nobody_takes(tmp_path):
    model, x = model_of_images(), images()
    closed = kd.rules.MaxProbability([None])
    record = kd.plots.samples_by_exit(model, x, rule=closed, per_exit=3)
    assert [len(rows) for rows in record.images] == [0, 3]
    axes = record.plot()
    assert axes[0, 0].texts[0].get_text() == "no samples"
    assert axes[0, 0].get_ylabel() == "exit_1\n0.0%"
    save(axes, tmp_path / "nobody.png")
    none = kd.plots.samples_by_exit(model, x[:0])
    assert none.plot().shape == (2, 1)


def test_colors_are_shown_within_their_range():
    model, x = model_of_images(3), images(channels=3)
    shown = kd.plots.samples_by_exit(model, x).images
    assert shown[1].shape == (8, 4, 5, 3)
    np.testing.assert_array_equal(
        shown[1], x[kd.plots.samples_by_exit(model, x).indices[1]]
    )
    bytes_ = np.round(x * 255)
    record = kd.plots.samples_by_exit(model, bytes_, rule=kd.rules.MaxProbability(0.0))
    low, high = bytes_.min(), bytes_.max()
    expected = (bytes_[record.indices[0]] - low) / (high - low)
    np.testing.assert_allclose(record.images[0], expected, rtol=1e-6)
    rgb = record.plot()[0, 0].images[0].get_array()
    assert colors.to_rgb(rgb[0, 0]) == pytest.approx(expected[0, 0, 0])


def test_binary_head():
    model, x = model_of_images(1, 1, "sigmoid"), images()
    record = kd.plots.samples_by_exit(
        model, x, class_names=["no", "yes"], rule=kd.rules.MaxProbability(0.0)
    )
    output = model.predict(x, verbose=0)[0][record.indices[0], 0]
    assert record.answers[0] == ["yes" if p > 0.5 else "no" for p in output]


def test_bad_input():
    model, x = model_of_images(), images()
    with pytest.raises(ValueError, match=r"`images`.*shape \(30, 20\)"):
        kd.plots.samples_by_exit(model, x.reshape(30, 20))
    with pytest.raises(ValueError, match=r"`y`.*30 images.*shape \(30, 1\)"):
        kd.plots.samples_by_exit(model, x, np.zeros((30, 1)))
    with pytest.raises(ValueError, match="`class_names`.*3 classes.*2 names"):
        kd.plots.samples_by_exit(model, x, class_names=["a", "b"])
    with pytest.raises(ValueError, match="`per_exit`.*per_exit=0"):
        kd.plots.samples_by_exit(model, x, per_exit=0)
    with pytest.raises(TypeError, match="`model`.*DynamicModel"):
        kd.plots.samples_by_exit(keras.Sequential(), x)
    record = kd.plots.samples_by_exit(model, x)
    with pytest.raises(ValueError, match=r"`axes` must be \(2, 8\).*shape \(3, 8\)"):
        record.plot(pyplot.subplots(3, 8)[1])
