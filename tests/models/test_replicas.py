"""Under `MirroredStrategy` each replica walks its own shard."""

import keras
import numpy as np
import pytest

import keras_dynamic as kd
from tests.layers.checks import two_replicas
from tests.models.counting import Counting
from tests.models.small_models import dense_data, dense_model, middle_rule
from tests.models.small_selected import selected_model

X, Y = dense_data(61)


def both(make):
    """The same model by one device and by two replicas."""
    keras.utils.set_random_seed(1)
    alone = make()
    with two_replicas().scope():
        mirrored = make()
    mirrored.set_weights(alone.get_weights())
    return alone, mirrored


def same(found, expected):
    for name in ("exit_index", "cost", "segment_rows"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    for name in ("outputs", "probabilities", "confidence"):
        one, other = getattr(found, name), getattr(expected, name)
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


# 61 rows of 16: a last batch of 13, which two cannot share evenly.
@pytest.mark.parametrize("batch_size", [16, 61])
def test_shards_give_the_answers_of_one_device(batch_size):
    alone, mirrored = both(dense_model)
    rule = middle_rule(alone, X)
    alone.exit_rule = mirrored.exit_rule = rule
    expected = alone.predict_dynamic(X, batch_size=61, verbose=0)
    assert set(expected.exit_index.tolist()) == {0, 1, 2}
    found = mirrored.predict_dynamic(X, batch_size=batch_size, verbose=0)
    same(found, expected)
    one = alone.evaluate_dynamic(X, Y, verbose=0)
    other = mirrored.evaluate_dynamic(X, Y, batch_size=batch_size, verbose=0)
    assert one["accuracy"] == pytest.approx(other["accuracy"])
    assert one["mean_cost"] == other["mean_cost"]


def test_each_replica_computes_only_its_shard():
    """Both replicas count the rows that their own second segment sees."""

    with two_replicas().scope():
        inputs = keras.Input((6,))
        first = keras.layers.Dense(4, "softmax", name="exit_1")(inputs)
        counter = Counting()
        final = keras.layers.Dense(4, "softmax", name="final")(counter(inputs))
        model = kd.DynamicModel(inputs, [first, final])
    model.exit_rule = middle_rule(model, X)
    counter.seen.assign(0)
    p = model.predict_dynamic(X, batch_size=61, verbose=0)
    counts = [int(value.numpy()) for value in counter.seen.value.values]
    first_shard = p.exit_index[:31]  # as evenly as 61 rows can be shared
    assert counts == [(first_shard == 1).sum(), (p.exit_index[31:] == 1).sum()]
    assert all(0 < count < 30 for count in counts)


def test_fewer_samples_than_replicas():
    alone, mirrored = both(dense_model)
    mirrored.exit_rule = alone.exit_rule = middle_rule(alone, X)
    expected = alone.predict_dynamic(X[:1], verbose=0)
    found = mirrored.predict_dynamic(X[:1], verbose=0)
    assert len(found) == 1
    np.testing.assert_allclose(found.outputs, expected.outputs, rtol=1e-5)
    np.testing.assert_array_equal(found.cost, expected.cost)


def test_selectors_too():
    alone, mirrored = both(selected_model)
    same(
        mirrored.predict_dynamic(X, batch_size=31, verbose=0),
        alone.predict_dynamic(X, batch_size=61, verbose=0),
    )
