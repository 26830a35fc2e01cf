"""Reliability diagrams against NumPy, and against the error that they show."""

import numpy as np
import pytest
from matplotlib import pyplot

import keras_dynamic as kd
from tests.models.small_selected import selected_model
from tests.plots.checks import save, titles_are_apart
from tests.plots.exits import (
    TEMPERATURES,
    data,
    exits_taken,
    probabilities,
    trained_model,
)


def binned(answers, labels, num_bins):
    """(confidence, accuracy, counts): sorted rows cut into equal parts."""
    confidence, right = answers.max(axis=1), answers.argmax(axis=1) == labels
    order = np.argsort(confidence)
    cuts = np.arange(1, num_bins) * len(order) // num_bins
    parts = np.split(order, cuts)
    return (
        np.array([confidence[part].mean() for part in parts]),
        np.array([right[part].mean() for part in parts]),
        np.array([len(part) for part in parts]),
    )


def test_bins():
    model, (x, y) = trained_model(), data(301)
    record = kd.plots.reliability(model, x, y, num_bins=8, batch_size=64)
    for found, temperatures in (
        (record.before, (1, 1, 1)),
        (record.after, TEMPERATURES),
    ):
        for bins, answers in zip(
            found, probabilities(model, x, temperatures), strict=True
        ):
            confidence, accuracy, counts = binned(answers, y, 8)
            np.testing.assert_allclose(bins.confidence, confidence, rtol=1e-5)
            np.testing.assert_allclose(bins.accuracy, accuracy)
            np.testing.assert_array_equal(bins.counts, counts)
            error = np.sum(np.abs(accuracy - confidence) * counts) / 301
            assert bins.error == pytest.approx(error, rel=1e-5)
            assert bins.error == pytest.approx(
                kd.calibration.expected_calibration_error(answers, y, 8), rel=1e-5
            )
    np.testing.assert_allclose(record.temperatures, TEMPERATURES, rtol=1e-6)


def test_fewer_samples_than_bins():
    model, (x, y) = trained_model(), data(6)
    record = kd.plots.reliability(model, x, y)
    np.testing.assert_array_equal(record.after[0].counts, np.ones(6))
    assert set(record.after[0].accuracy) <= {0.0, 1.0}


def test_those_who_reach_an_exit():
    model, (x, y) = trained_model(), data()
    record = kd.plots.reliability(model, x, y, num_bins=4, reached_only=True)
    answers = probabilities(model, x)
    taken = exits_taken([answer.max(axis=1) for answer in answers[:-1]], [0.6, 0.55])
    for index, bins in enumerate(record.after):
        rows = taken >= index
        confidence, accuracy, counts = binned(answers[index][rows], y[rows], 4)
        np.testing.assert_allclose(bins.confidence, confidence, rtol=1e-5)
        np.testing.assert_allclose(bins.accuracy, accuracy)
        np.testing.assert_array_equal(bins.counts, counts)


def test_a_selector_says_who_reaches():
    model, (x, y) = selected_model(), data(60)
    record = kd.plots.reliability(model, x, y, num_bins=3, reached_only=True)
    taken = model.predict_dynamic(x, verbose=0).exit_index
    assert [bins.counts.sum() for bins in record.before] == [
        np.sum(taken >= index) for index in range(3)
    ]


def test_drawing(tmp_path):
    model, (x, y) = trained_model(), data()
    record = kd.plots.reliability(model, x, y, num_bins=7)
    _, given = pyplot.subplots(1, 3)
    axes = record.plot(given)
    assert all(ax is other for ax, other in zip(axes, given, strict=True))
    for index, ax in enumerate(axes):
        diagonal, before, after = ax.lines
        np.testing.assert_array_equal(*diagonal.get_data())
        for line, bins in ((before, record.before), (after, record.after)):
            np.testing.assert_array_equal(line.get_xdata(), bins[index].confidence)
            np.testing.assert_array_equal(line.get_ydata(), bins[index].accuracy)
            assert f"ECE {bins[index].error:.3f}" in line.get_label()
        assert before.get_label().startswith("T = 1:")
        assert after.get_label().startswith(f"T = {TEMPERATURES[index]:.2f}:")
        assert before.get_marker() != after.get_marker()
        assert before.get_linestyle() != after.get_linestyle()
        # 300 = 7 * 42 + 6
        assert ax.get_title().endswith("7 bins of 42 or 43 samples")
        lows = [ax.get_xlim()[0], ax.get_ylim()[0]]
        assert max(lows) < min(
            np.min([bins.confidence, bins.accuracy])
            for bins in (*record.before, *record.after)
        )
    assert axes[0].get_ylabel() == "accuracy" and axes[1].get_xlabel() == "confidence"
    save(axes, tmp_path / "reliability.png")


def test_an_exit_that_nobody_reaches(tmp_path):
    model, (x, y) = trained_model(), data()
    old = model.exit_rule
    model.exit_rule = kd.rules.MaxProbability([0.0, 0.5])
    record = kd.plots.reliability(model, x, y, reached_only=True)
    model.exit_rule = old
    assert [bins.counts.sum() for bins in record.after] == [300, 0, 0]
    assert np.isnan(record.after[1].error)
    axes = record.plot()
    texts = [[text.get_text() for text in ax.texts] for ax in axes]
    assert texts == [[], ["no samples"], ["no samples"]]
    assert axes[1].get_legend() is None and axes[1].get_title() == "exit_2"
    save(axes, tmp_path / "nobody.png")


def test_long_names_keep_apart():
    names = [f"exit_after_a_very_long_stage_of_the_network_{i}" for i in range(3)]
    part, counts = np.array([0.5, 0.9]), np.array([12345, 12346])
    bins = kd.plots.ReliabilityBins(part, part, counts, 0.0)
    axes = kd.plots.Reliability([bins] * 3, [bins] * 3, np.ones(3), names).plot()
    assert titles_are_apart(axes)
    assert axes[0].get_title().endswith("2 bins of 12,345 or 12,346 samples")


def test_one_sample():
    one = np.array([0.5])
    bins = kd.plots.ReliabilityBins(one, one, np.array([1]), 0.0)
    (ax,) = kd.plots.Reliability([bins], [bins], np.ones(1), ["final"]).plot()
    assert ax.get_title() == "final\n1 bin of 1 sample"


def test_bad_input():
    model, (x, y) = trained_model(), data(20)
    with pytest.raises(TypeError, match="`num_bins`.*num_bins=1.5"):
        kd.plots.reliability(model, x, y, num_bins=1.5)
    with pytest.raises(TypeError, match="`model`.*DynamicModel.*None"):
        kd.plots.reliability(None, x, y)
    with pytest.raises(ValueError, match="class numbers from 0 to 3. Received: 4"):
        kd.plots.reliability(model, x, np.where(np.arange(20) == 7, 4, y))
    with pytest.raises(ValueError, match="`axes` must be 3 `Axes`. Received: 2"):
        kd.plots.reliability(model, x, y).plot(pyplot.subplots(1, 2)[1])
