"""Closed exits of the model's own rule are passed by: their heads are not computed."""

import keras
import numpy as np
import pytest

import keras_dynamic as kd
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


def test_calibrate_closes_an_exit_that_is_not_worth_its_head():
    """The first head costs far more than leaving there saves."""
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
    x, y = dense_data(400)
    model.fit(x, y, epochs=12, verbose=0)
    report = model.calibrate(x, y, max_accuracy_drop=0.05)
    assert model.exit_rule.threshold[0] is None
    assert report.mean_cost < 1.0
    p = model.predict_dynamic(x, verbose=0)
    assert p.mean_cost == pytest.approx(report.mean_cost, abs=1e-6)
