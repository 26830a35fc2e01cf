"""Histograms of confidence against NumPy."""

import keras
import numpy as np
import pytest
from matplotlib import colors, pyplot

import keras_dynamic as kd
from tests.models.small_models import dense_model
from tests.models.small_selected import selected_model
from tests.plots.checks import save, titles_are_apart
from tests.plots.exits import data, exits_taken, probabilities, trained_model


def scored(name, answers):
    """List of (n,) scores, the closed forms in NumPy."""
    if name == "max_probability":
        return [answer.max(axis=1) for answer in answers]
    if name == "margin":
        ranked = [np.sort(answer, axis=1) for answer in answers]
        return [rank[:, -1] - rank[:, -2] for rank in ranked]
    if name == "entropy":
        return [-(answer * np.log(answer)).sum(axis=1) for answer in answers]
    classes = np.stack([answer.argmax(axis=1) for answer in answers], axis=1)
    scores = np.ones(classes.shape)
    for index in range(1, classes.shape[1]):
        again = classes[:, index] == classes[:, index - 1]
        scores[:, index] = np.where(again, scores[:, index - 1] + 1, 1)
    return list(scores.T)


@pytest.mark.parametrize(
    ("name", "low", "high", "bins"),
    [
        ("max_probability", 0, 1, 10),
        ("margin", 0, 1, 10),
        ("entropy", 0, np.log(4), 10),
        ("patience", -0.5, 3.5, 4),
    ],
)
def test_counts(name, low, high, bins):
    model, (x, y) = trained_model(), data()
    record = kd.plots.confidence_histograms(
        model, x, y, rule=name, num_bins=10, batch_size=64
    )
    np.testing.assert_allclose(record.edges, np.linspace(low, high, bins + 1))
    answers = probabilities(model, x)
    for index, (answer, score) in enumerate(
        zip(answers, scored(name, answers), strict=True)
    ):
        right = answer.argmax(axis=1) == y
        for found, rows in ((record.right, right), (record.wrong, ~right)):
            expected = np.histogram(score[rows], record.edges)[0]
            np.testing.assert_array_equal(found[index], expected)
    assert record.right.sum() + record.wrong.sum() == 3 * len(x)
    threshold = kd.rules.get(name).threshold
    assert record.thresholds == [threshold] * 2
    assert record.leaves_below == (name == "entropy")


def test_those_who_reach_an_exit():
    model, (x, y) = trained_model(), data()
    record = kd.plots.confidence_histograms(model, x, y, reached_only=True)
    answers = probabilities(model, x)
    scores = scored("max_probability", answers)
    taken = exits_taken(scores[:-1], [0.6, 0.55])
    assert 0 < (taken >= 2).sum() < (taken >= 1).sum() < len(x)
    for index in range(3):
        right = answers[index].argmax(axis=1) == y
        expected = np.histogram(scores[index][right & (taken >= index)], record.edges)
        np.testing.assert_array_equal(record.right[index], expected[0])
        assert record.wrong[index].sum() == (~right & (taken >= index)).sum()
    assert record.thresholds == [0.6, 0.55]


def test_a_rule_of_ones_own_is_binned_by_its_scores():
    class Doubt(kd.rules.ExitRule):
        leaves_below = True

        def score(self, probabilities):
            return 5.0 - keras.ops.max(probabilities, axis=-1)

    model, (x, y) = trained_model(), data()
    rule = Doubt([4.5, None])
    record = kd.plots.confidence_histograms(model, x, y, rule=rule, num_bins=7)
    scores = [5 - answer.max(axis=1) for answer in probabilities(model, x)]
    low, high = np.min(scores), np.max(scores)
    np.testing.assert_allclose(record.edges, np.linspace(low, high, 8), rtol=1e-6)
    assert record.thresholds == [4.5, None] and record.rule == "Doubt"
    assert record.plot()[0].get_xlabel() == "score of Doubt"


def test_drawing(tmp_path):
    model, (x, y) = trained_model(), data()
    record = kd.plots.confidence_histograms(
        model, x, y, rule=kd.rules.Entropy([0.7, None])
    )
    _, given = pyplot.subplots(1, 3)
    axes = record.plot(given)
    assert all(ax is other for ax, other in zip(axes, given, strict=True))
    for index, ax in enumerate(axes):
        heights = [[bar.get_height() for bar in bars] for bars in ax.containers]
        np.testing.assert_array_equal(
            heights, [record.right[index], record.wrong[index]]
        )
        bottoms = [bar.get_y() for bar in ax.containers[0]]
        np.testing.assert_array_equal(bottoms, record.wrong[index])
        # Not by color alone.
        assert {bar.get_hatch() for bar in ax.containers[1]} == {"////"}
        shades = {colors.to_hex(bars[0].get_facecolor()) for bars in ax.containers}
        assert len(shades) == 2
        _, labels = ax.get_legend_handles_labels()
        assert f"wrong ({record.wrong[index].sum():,})" in labels
        assert ax.get_title() == model.exit_names[index]
        assert ax.get_xlabel() == "entropy (nats)"
    assert axes[0].lines[0].get_xdata()[0] == 0.7
    assert axes[0].lines[0].get_label() == "leaves < 0.7"
    assert "closed" in axes[1].get_legend_handles_labels()[1]
    assert len(axes[2].lines) == 0
    save(axes, tmp_path / "confidence.png")


def test_patience_counts_its_threshold_in():
    model, (x, y) = trained_model(), data()
    axes = kd.plots.confidence_histograms(model, x, y, rule="patience").plot()
    line = axes[0].lines[0]
    assert line.get_xdata()[0] == 1.5  # between 1, who stay, and 2, who leave
    assert line.get_label() == "leaves ≥ 2"


def test_an_exit_that_nobody_reaches(tmp_path):
    model, (x, y) = trained_model(), data()
    record = kd.plots.confidence_histograms(
        model, x, y, rule=kd.rules.MaxProbability(0.0), reached_only=True
    )
    assert record.right[1:].sum() == record.wrong[1:].sum() == 0
    axes = record.plot()
    assert [[text.get_text() for text in ax.texts] for ax in axes] == [
        [],
        ["no samples"],
        ["no samples"],
    ]
    save(axes, tmp_path / "nobody.png")


def test_binary_head():
    model = dense_model("sigmoid", "binary_crossentropy", units=1, metrics=())
    x, _ = data(40)
    y = (x[:, 0] > 0).astype("int64")
    record = kd.plots.confidence_histograms(model, x, y, rule="entropy", num_bins=5)
    np.testing.assert_allclose(record.edges, np.linspace(0, np.log(2), 6))
    output = model.predict(x, verbose=0)[2][:, 0]
    assert record.right[2].sum() == ((output > 0.5) == y).sum()


def test_long_names_keep_apart():
    names = [f"exit_after_a_very_long_stage_of_the_network_{i}" for i in range(3)]
    counts = np.ones((3, 2))
    record = kd.plots.ConfidenceHistograms(
        np.array([0, 0.5, 1]), counts, counts, [0.7, None], False, names, "Margin"
    )
    axes = record.plot()
    assert titles_are_apart(axes)
    assert axes[2].get_title().endswith("network_2")


def test_bad_input():
    model, (x, y) = trained_model(), data(20)
    with pytest.raises(ValueError, match="`num_bins`.*num_bins=0"):
        kd.plots.confidence_histograms(model, x, y, num_bins=0)
    with pytest.raises(ValueError, match=r"`rule` must score answers.*Selected\(\)"):
        kd.plots.confidence_histograms(selected_model(), x, y)
    with pytest.raises(TypeError, match="`model`.*DynamicModel"):
        kd.plots.confidence_histograms(keras.Sequential(), x, y)
    record = kd.plots.confidence_histograms(model, x, y)
    with pytest.raises(ValueError, match="`axes` must be 3 `Axes`. Received: 1"):
        record.plot(pyplot.subplots()[1])
