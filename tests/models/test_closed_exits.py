"""Closed exits of the model's own rule are passed by: their heads are not computed."""

import keras
import numpy as np
import pytest

import keras_dynamic as kd
from keras_dynamic.models.certifying import split_rows
from tests.models.random_graphs import RowCounter
from tests.models.small_models import dense_data, dense_model

X, Y = dense_data(60)


def model_with_counters(rule):
    """Three exits; a counter in each head says how many rows it computed."""
    inputs = keras.Input((6,))
    h, outputs, counters = inputs, [], []
    for name in ("exit_1", "exit_2", "final"):
        h = keras.layers.Dense(6, "tanh")(h)
        counters.append(RowCounter())
        outputs.append(keras.layers.Dense(4, "softmax", name=name)(counters[-1](h)))
    model = kd.DynamicModel(inputs, outputs, exit_rule=rule)
    for counter in counters:
        counter.seen.assign(0)
    return model, counters


def rows_seen(counters):
    seen = [int(counter.seen) for counter in counters]
    for counter in counters:
        counter.seen.assign(0)
    return seen


@pytest.mark.parametrize("batch_size", [60, 8])  # in one batch; with pools
def test_a_closed_head_does_not_run(batch_size):
    model, counters = model_with_counters(kd.rules.MaxProbability([None, 0.0]))
    p = model.predict_dynamic(X, batch_size=batch_size, verbose=0)
    assert rows_seen(counters) == [0, 60, 0]
    assert (p.exit_index == 1).all()
    segments, heads = model.compute_costs().segments, model.compute_costs().heads
    assert (p.cost == segments[0] - heads[0] + segments[1]).all()
    assert (p.cost == model.exit_costs[1]).all()
    assert p.segment_rows.tolist() == [60, 60, 0]
    # A rule given for the call asks every exit: all such rules share one walk.
    p = model.predict_dynamic(X, rule=model.exit_rule, verbose=0, batch_size=batch_size)
    assert rows_seen(counters) == [60, 60, 0]
    assert (p.cost == segments[0] + segments[1]).all()


def test_all_closed_is_the_plain_network():
    model, counters = model_with_counters(kd.rules.Entropy(None))
    p = model.predict_dynamic(X, verbose=0)
    assert p.mean_cost == 1.0 and rows_seen(counters) == [0, 0, 60]
    np.testing.assert_allclose(
        p.outputs, model.predict(X, verbose=0)[-1], rtol=1e-5, atol=1e-6
    )


def test_a_rule_that_remembers_asks_all():
    model, counters = model_with_counters(kd.rules.Patience([None, 1]))
    model.predict_dynamic(X, verbose=0)
    assert rows_seen(counters)[0] == 60


def test_it_opens_again():
    model, counters = model_with_counters(kd.rules.MaxProbability(None))
    model.predict_dynamic(X, verbose=0)
    model.exit_rule = kd.rules.MaxProbability(0.0)
    rows_seen(counters)
    p = model.predict_dynamic(X, verbose=0)
    assert rows_seen(counters) == [60, 0, 0] and (p.exit_index == 0).all()


def test_functions_for_serving_pass_by_too():
    plain = dense_model(exit_rule=kd.rules.MaxProbability([None, 0.0]))
    expected = plain.predict_dynamic(X[:1], verbose=0)
    found = plain.dynamic_function()(X[:1])
    assert int(found["exit_index"][0]) == 1 == expected.exit_index[0]
    np.testing.assert_allclose(found["outputs"], expected.outputs, atol=1e-6)


@pytest.fixture(scope="module")
def dear_head():
    """The first head costs fifteen networks, far more than leaving there saves."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    h = keras.layers.Dense(8, "tanh")(inputs)
    wide = keras.layers.Dense(2000, "relu")(h)
    first = keras.layers.Dense(4, "softmax", name="exit_1")(wide)
    h = keras.layers.Dense(8, "tanh")(h)
    second = keras.layers.Dense(4, "softmax", name="exit_2")(h)
    for _ in range(6):
        h = keras.layers.Dense(16, "tanh")(h)
    final = keras.layers.Dense(4, "softmax", name="final")(h)
    model = kd.DynamicModel(inputs, [first, second, final])
    model.compile("adam", "sparse_categorical_crossentropy")
    x, y = dense_data(800)
    model.fit(x[:400], y[:400], epochs=12, verbose=0)
    return model, x, y


def test_calibrate_closes_an_exit_that_is_not_worth_its_head(dear_head):
    model, x, y = dear_head
    report = model.calibrate(x, y, max_accuracy_drop=0.05)
    assert model.exit_rule.threshold[0] is None
    assert report.mean_cost < 1.0
    p = model.predict_dynamic(x, verbose=0)
    assert p.mean_cost == pytest.approx(report.mean_cost, abs=1e-6)


def test_a_certified_path_closes_it_too(dear_head):
    model, x, y = dear_head
    report = model.calibrate(x, y, max_accuracy_drop=0.05, risk_confidence=0.9)
    path = report.certificate.path
    assert report.certificate.num_certified
    assert all(step.thresholds[0] is None for step in path)
    costs = [step.mean_cost for step in path]
    assert costs[0] < 1.0
    assert costs == pytest.approx(sorted(costs, reverse=True), abs=0.02)
    _, rows = split_rows(len(x))
    p = model.predict_dynamic(x[rows], verbose=0)
    assert p.mean_cost == pytest.approx(report.mean_cost, abs=1e-6)
    assert p.mean_cost == pytest.approx(report.certificate.step.mean_cost, abs=1e-6)


def test_the_curve_is_priced_as_what_runs(dear_head):
    """What opens the first exit pays for its head, whatever is in force."""
    model, x, y = dear_head
    report = model.calibrate(x, y, max_accuracy_drop=0.05)
    counted = model.compute_costs()  # the rule in force passes by exit 1
    head = counted.heads[0] / counted.reference
    costs = np.array([cost for cost, _ in report.curve])
    # All at exit 2 without exit 1; between the plain network and the first head there
    # is nothing.
    assert costs[0] == pytest.approx(counted.shares()[1])
    assert not np.any((costs > 1) & (costs < head))


def test_the_plot_has_the_rule_where_it_runs(dear_head):
    model, x, y = dear_head
    model.calibrate(x, y, max_accuracy_drop=0.05)
    record = kd.plots.accuracy_cost(model, x, y, num_settings=4)
    p = model.predict_dynamic(x, verbose=0)
    assert record.operating_point[0] == pytest.approx(p.mean_cost, abs=1e-6)
    assert record.operating_point[0] < 1
