"""Accuracy against cost: every point against the roads that it stands for."""

import keras
import numpy as np
import pytest
from matplotlib import pyplot

import keras_dynamic as kd
from tests.layers.small_gates import First
from tests.models.small_models import dense_data, dense_model
from tests.models.small_selected import selected_model
from tests.plots.checks import save
from tests.plots.exits import data, exits_taken, probabilities, trained_model


def reference(model, x, y, thresholds):
    """(mean cost, accuracy) of largest probabilities, in NumPy.

    Who passes a closed exit (`None`) does not pay for its head.
    """
    answers = probabilities(model, x)
    scores = [answer.max(axis=1) for answer in answers[:-1]]
    taken = exits_taken(scores, thresholds)
    right = np.stack([answer.argmax(axis=1) == y for answer in answers], axis=1)
    counted = model.compute_costs()
    costs = np.array(counted.exits, float)
    for index, threshold in enumerate(thresholds):
        if threshold is None:
            costs[index + 1 :] -= counted.heads[index]
    costs /= counted.reference
    return costs[taken].mean(), right[np.arange(len(y)), taken].mean()


def test_points_and_front():
    model, (x, y) = trained_model(), data()
    record = kd.plots.accuracy_cost(model, x, y, num_settings=12, batch_size=64)
    assert 12 < len(record.costs) <= 24
    for cost, accuracy, thresholds in zip(
        record.costs, record.accuracies, record.thresholds, strict=True
    ):
        expected = reference(model, x, y, thresholds)
        np.testing.assert_allclose((cost, accuracy), expected, rtol=1e-12)
    assert (np.diff(record.costs) >= 0).all()
    scores = [answer.max(axis=1) for answer in probabilities(model, x)[:-1]]
    taken = [exits_taken(scores, thresholds) for thresholds in record.thresholds]
    assert len(np.unique(taken, axis=0)) == len(taken)
    # No point of the front is beaten by another one.
    for index in range(len(record.costs)):
        better = (record.accuracies > record.accuracies[index]) & (
            record.costs <= record.costs[index]
        )
        equal = record.accuracies >= record.accuracies[index]
        cheaper = equal & (record.costs < record.costs[index])
        assert record.on_front[index] == ~(better | cheaper).any()
    # Nobody is surer than 1: asked, and passed.
    alone = [reference(model, x, y, limits) for limits in ([0, 0], [1, 0], [1, 1])]
    costs, accuracies = np.transpose(alone)
    np.testing.assert_allclose(record.exit_costs, costs)
    np.testing.assert_allclose(record.exit_accuracies, accuracies)
    # The sweep has everyone at the first exit, and the plain network.
    assert record.costs[0] == pytest.approx(costs[0])
    plain = record.thresholds.index([None, None])
    assert record.costs[plain] == 1
    np.testing.assert_allclose(
        record.operating_point, reference(model, x, y, [0.6, 0.55])
    )
    assert (record.exit_names, record.rule) == (model.exit_names, "MaxProbability")


def test_the_front_is_as_good_as_one_threshold_for_all_exits():
    model, (x, y) = trained_model(), data()
    record = kd.plots.accuracy_cost(model, x, y, num_settings=24)
    step = (record.exit_costs[-1] - record.exit_costs[0]) / 23
    for threshold in np.linspace(0.3, 1, 30):
        cost, accuracy = reference(model, x, y, [threshold, threshold])
        # Budgets lie `step` apart, so that one of them is at most that much dearer.
        within = record.costs <= cost + step
        assert record.accuracies[within].max() >= accuracy


@pytest.mark.parametrize("rule", ["entropy", "margin", "patience"])
def test_rules_against_the_dynamic_road(rule):
    model, (x, y) = trained_model(), data()
    record = kd.plots.accuracy_cost(model, x, y, rule=rule, num_settings=4)
    rule, before = kd.rules.get(rule), model.exit_rule
    tried = [rule.with_threshold(thresholds) for thresholds in record.thresholds]
    assert any(None in thresholds for thresholds in record.thresholds)
    for cost, accuracy, one in zip(
        [*record.costs, record.operating_point[0]],
        [*record.accuracies, record.operating_point[1]],
        [*tried, rule],
        strict=True,
    ):
        model.exit_rule = one
        prediction = model.predict_dynamic(x, verbose=0)
        model.exit_rule = before
        assert cost == pytest.approx(prediction.mean_cost)
        assert accuracy == np.mean(prediction.outputs.argmax(axis=1) == y)
    assert len({repr(one) for one in tried}) == len(tried)


def test_gates_cost_each_sample_its_own():
    inputs = keras.Input((6,))
    gate = kd.SkipGate(keras.layers.Dense(6, "tanh"), gate=First())
    outputs = [kd.EarlyExit(4, name="exit_1")(inputs)]
    outputs.append(keras.layers.Dense(4, "softmax", name="final")(gate(inputs)))
    model = kd.DynamicModel(inputs, outputs, exit_rule=kd.rules.MaxProbability(0.5))
    x, y = dense_data(50)
    record = kd.plots.accuracy_cost(model, x, y, num_settings=6)
    for cost, thresholds in zip(record.costs, record.thresholds, strict=True):
        model.exit_rule = kd.rules.MaxProbability(thresholds)
        prediction = model.predict_dynamic(x, verbose=0)
        assert cost == pytest.approx(prediction.mean_cost)
    # The gate is open for some: leaving first costs one sum, leaving last two.
    closed = model.predict_dynamic(x, rule=kd.rules.MaxProbability(None), verbose=0)
    assert len(np.unique(closed.cost)) == 2
    assert record.exit_costs[1] == pytest.approx(closed.mean_cost)
    alone = kd.DynamicModel(inputs, outputs[-1:])  # gates are all that is dynamic
    single = kd.plots.accuracy_cost(alone, x, y)
    assert len(single.costs) == 0
    prediction = alone.predict_dynamic(x, verbose=0)
    assert single.operating_point[0] == pytest.approx(prediction.mean_cost)


def test_a_selector_has_one_point(tmp_path):
    model, (x, y) = selected_model(), dense_data()
    record = kd.plots.accuracy_cost(model, x, y, batch_size=16)
    prediction = model.predict_dynamic(x, verbose=0)
    assert len(np.unique(prediction.exit_index)) == 3
    right = np.mean(prediction.outputs.argmax(axis=1) == y)
    assert record.operating_point == pytest.approx((prediction.mean_cost, right))
    np.testing.assert_allclose(record.exit_costs, model.compute_costs().shares())
    assert record.costs.shape == record.on_front.shape == (0,)
    other = kd.plots.accuracy_cost(model, x, y, rule="max_probability")
    prediction = model.predict_dynamic(x, rule="max_probability", verbose=0)
    assert other.operating_point[0] == pytest.approx(prediction.mean_cost)
    ax = record.plot()
    _, labels = ax.get_legend_handles_labels()
    assert labels == ["everyone at one exit", "plain network", "rule as it stands"]
    save(ax, tmp_path / "selected.png")


def test_drawing(tmp_path):
    model, (x, y) = trained_model(), data()
    record = kd.plots.accuracy_cost(model, x, y, num_settings=6)
    _, given = pyplot.subplots()
    ax = record.plot(given)
    assert ax is given
    drawn = {artist.get_label(): artist for artist in (*ax.collections, *ax.lines)}
    front = record.on_front
    np.testing.assert_allclose(
        drawn["thresholds"].get_offsets(),
        np.stack([record.costs, record.accuracies], axis=1)[~front],
    )
    np.testing.assert_allclose(
        drawn["front"].get_xydata(),
        np.stack([record.costs, record.accuracies], axis=1)[front],
    )
    np.testing.assert_allclose(
        drawn["everyone at one exit"].get_offsets(),
        np.stack([record.exit_costs, record.exit_accuracies], axis=1),
    )
    np.testing.assert_allclose(
        drawn["plain network"].get_offsets(), [[1, record.exit_accuracies[-1]]]
    )
    np.testing.assert_allclose(
        drawn["rule as it stands"].get_offsets(), [record.operating_point]
    )
    assert [text.get_text() for text in ax.texts] == model.exit_names
    assert "plain network" in ax.get_xlabel() and ax.get_ylabel() == "accuracy"
    save(ax, tmp_path / "trade_off.png")


def test_the_legend_covers_no_name():
    names = [f"exit_after_a_very_long_stage_of_the_network_{i}" for i in range(3)]
    record = kd.plots.AccuracyCost(
        costs=np.array([0.2, 0.4, 0.8]),
        accuracies=np.array([0.6, 0.8, 0.86]),
        thresholds=[],
        on_front=np.ones(3, bool),
        operating_point=(0.6, 0.8),
        exit_costs=np.array([0.2, 0.7, 1.02]),
        exit_accuracies=np.array([0.6, 0.62, 0.63]),
        exit_names=names,
        rule="Margin",
    )
    ax = record.plot()
    ax.figure.canvas.draw()
    legend = ax.get_legend().get_window_extent()
    for text in ax.texts:
        assert not legend.overlaps(text.get_window_extent())
        assert len(text.get_text()) <= 20


def test_bad_input():
    model, (x, y) = trained_model(), data(20)
    plain = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4)], name="plain")
    with pytest.raises(TypeError, match="`model`.*DynamicModel.*plain"):
        kd.plots.accuracy_cost(plain, x, y)
    with pytest.raises(ValueError, match="`num_settings`.*num_settings=0"):
        kd.plots.accuracy_cost(model, x, y, num_settings=0)
    with pytest.raises(ValueError, match="needs a model with a selector.*Selected"):
        kd.plots.accuracy_cost(model, x, y, rule="selected")
    with pytest.raises(ValueError, match="`y` must be given.*y=None"):
        kd.plots.accuracy_cost(model, x)
    with pytest.raises(ValueError, match="`x` must hold at least one sample"):
        kd.plots.accuracy_cost(model, x[:0], y[:0])
    x = np.where(np.arange(20)[:, None] == 3, np.nan, x)
    with pytest.raises(ValueError, match="no NaN.*1 of 20.*row 3"):
        kd.plots.accuracy_cost(dense_model(), x, y)
