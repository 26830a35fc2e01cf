"""Small batches that are computed as one."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_dynamic as kd
from keras_dynamic.models import joining
from keras_dynamic.models.pools import Pools
from keras_dynamic.models.rows import count_rows
from tests.models.small_models import dense_data, dense_model, middle_rule

X, Y = dense_data(200)
ANSWERS = ("outputs", "probabilities", "exit_index", "confidence", "cost")


@pytest.fixture
def computed(monkeypatch):
    """Rows of each run of the first segment."""
    sizes = []
    add = Pools.add

    def noting(self, x):
        sizes.append(count_rows(x))
        add(self, x)

    monkeypatch.setattr(Pools, "add", noting)
    return sizes


def same(found, expected):
    for name in ANSWERS:
        one, other = getattr(found, name), getattr(expected, name)
        np.testing.assert_allclose(one, other, atol=1e-6, rtol=1e-6)
    np.testing.assert_array_equal(found.segment_rows, expected.segment_rows)


@pytest.mark.parametrize(
    "batch_size, sizes",
    [
        (1, [64, 64, 64, 8]),
        (16, [64, 64, 64, 8]),
        (24, [48, 48, 48, 48, 8]),  # whole batches
        (40, [40, 40, 40, 40, 40]),
    ],
)
def test_small_batches_go_together(computed, batch_size, sizes):
    model = dense_model()
    rule = middle_rule(model, X)
    expected = model.predict_dynamic(X, batch_size=200, rule=rule, verbose=0)
    assert len(set(expected.exit_index)) == 3
    computed.clear()
    found = model.predict_dynamic(X, batch_size=batch_size, rule=rule, verbose=0)
    assert computed == sizes
    same(found, expected)


def test_batches_of_many_sizes(computed):
    model = dense_model()
    rule = middle_rule(model, X)
    expected = model.predict_dynamic(X, batch_size=200, rule=rule, verbose=0)
    sizes = [3, 60, 1, 100, 20, 16]
    batches = np.split(X, np.cumsum(sizes)[:-1])
    computed.clear()
    found = model.predict_dynamic(((b,) for b in batches), rule=rule, verbose=0)
    assert computed == [63, 1, 100, 36]
    same(found, expected)


def test_evaluation_too(computed):
    model = dense_model()
    rule = middle_rule(model, X)
    expected = model.evaluate_dynamic(X, Y, batch_size=200, rule=rule, verbose=0)
    computed.clear()
    found = model.evaluate_dynamic(X, Y, batch_size=10, rule=rule, verbose=0)
    assert computed == [60, 60, 60, 20]
    assert found["exit_rates"] == expected["exit_rates"]
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-5)


def test_memory_stays_what_the_batch_size_says(computed, monkeypatch):
    """The widest tensor is a hidden layer's; two batches of 10 rows fit, not three."""
    inputs = keras.Input((6,))
    wide = keras.layers.Dense(100, "relu")(inputs)
    early = kd.EarlyExit(4, name="exit_1")(wide)
    final = keras.layers.Dense(4, "softmax")(keras.layers.Dense(8)(wide))
    model = kd.DynamicModel(inputs, [early, final])
    monkeypatch.setattr(joining, "_BYTES", 29 * 100 * 4)
    model.predict_dynamic(X, batch_size=10, verbose=0)
    assert computed == [20] * 10
    computed.clear()
    monkeypatch.setattr(joining, "_BYTES", 19 * 100 * 4)
    model.predict_dynamic(X, batch_size=10, verbose=0)
    assert computed == [10] * 20


def test_absent_inputs(computed):
    first = keras.Input((6,), name="first")
    second = keras.Input((6,), name="second", optional=True)

    class Sum(keras.layers.Layer):
        def call(self, one, other=None):
            return one if other is None else one + other

        def compute_output_shape(self, one_shape, other_shape=None):
            return one_shape

        def compute_flops(self, *shapes):
            return 0

    h = Sum()(first, second)
    early = kd.EarlyExit(4, name="exit_1")(h)
    final = keras.layers.Dense(4, "softmax")(h)
    model = kd.DynamicModel({"first": first, "second": second}, [early, final])
    rule = kd.rules.MaxProbability(0.5)
    for other in (X[::-1].copy(), None):
        x = {"first": X, "second": other}
        expected = model.predict_dynamic(x, batch_size=200, rule=rule, verbose=0)
        computed.clear()
        found = model.predict_dynamic(x, batch_size=10, rule=rule, verbose=0)
        same(found, expected)
        parts = ({"first": X[i : i + 10], "second": other} for i in range(0, 200, 10))
        if other is None:  # Keras' generators take either always or never
            found = model.predict_dynamic(((p,) for p in parts), rule=rule, verbose=0)
            same(found, expected)
            assert computed == [60, 60, 60, 20] * 2


def test_sizes_that_differ_stay_apart(computed):
    inputs = keras.Input((None, 4))
    early = kd.EarlyExit(3, name="exit_1")(inputs)
    final = kd.EarlyExit(3, name="final")(keras.layers.Dense(8)(inputs))
    model = kd.DynamicModel(inputs, [early, final])
    x = np.random.default_rng(0).normal(size=(60, 5, 4)).astype("float32")
    model.predict_dynamic(x, batch_size=10, verbose=0)
    assert computed == [10] * 6


def test_an_error_while_batches_are_kept_leaves_nothing(computed):
    model = dense_model()
    rule = middle_rule(model, X)

    def broken():
        yield (X[:10],)
        raise RuntimeError("no more data")

    with pytest.raises(Exception, match="no more data"):
        model.predict_dynamic(broken(), rule=rule, verbose=0)
    assert computed == []
    found = model.predict_dynamic(X, batch_size=10, rule=rule, verbose=0)
    assert len(found) == 200


def test_sparse_batches_stay_as_they_are():
    model = dense_model()
    walk, _ = model.road.walk_under(kd.rules.MaxProbability(0.5), model)
    functions = model.road.stages_of(walk)
    assert joining.rows_at_once(functions, tf.constant(X[:10])) == 60
    assert joining.rows_at_once(functions, tf.sparse.from_dense(X[:10])) == 10
