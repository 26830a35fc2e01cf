"""One compiled function for batches of one size."""

import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_dynamic as kd
from keras_dynamic.models import serving
from tests.models.small_models import dense_data, dense_model, middle_rule
from tests.models.small_selected import selected_model

X, Y = dense_data(40)


def one_by_one(function, x):
    answers = [function(x[row : row + 1]) for row in range(len(x))]
    return {
        name: np.concatenate([np.asarray(each[name]) for each in answers])
        for name in answers[0]
    }


def same(answers, expected):
    np.testing.assert_array_equal(answers["exit_index"], expected.exit_index)
    for name in ("outputs", "probabilities", "confidence"):
        found = getattr(expected, name)
        np.testing.assert_allclose(answers[name], found, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("faster", ["xla", "tensorflow"])
def test_one_sample(faster, monkeypatch):
    # (leaving, staying) of XLA, then of TensorFlow's own.
    times = iter([1.0, 1.0, 2.0, 2.0] if faster == "xla" else [2.0, 2.0, 1.0, 2.9])
    monkeypatch.setattr(serving, "median_time", lambda run: (run(), next(times))[1])
    model = dense_model()
    model.exit_rule = middle_rule(model, X)
    expected = model.predict_dynamic(X, verbose=0)
    assert len(set(expected.exit_index.tolist())) == 3
    function = model.dynamic_function()
    assert function.batch_size == 1
    assert function.jit_compiled == (faster == "xla")
    same(one_by_one(function, X), expected)
    same(one_by_one(function, tf.constant(X)), expected)
    # Float64 as `predict` takes it.
    same(one_by_one(function, X.astype("float64")), expected)


def test_what_is_not_reached_does_not_run():
    class Failing(keras.layers.Layer):
        """Fails where it runs."""

        def call(self, inputs):
            with tf.control_dependencies([tf.debugging.Assert(False, ["it ran"])]):
                return tf.identity(inputs)

        def compute_output_shape(self, input_shape):
            return input_shape

        def compute_flops(self, input_shape):
            return 0

    inputs = keras.Input((6,))
    h = keras.layers.Dense(8)(inputs)
    early = kd.EarlyExit(4, name="exit_1")(h)
    outputs = [early, keras.layers.Dense(4, "softmax")(Failing()(h))]
    model = kd.DynamicModel(inputs, outputs, exit_rule=kd.rules.MaxProbability(0.0))
    function = serving.DynamicFunction(model, 4, model.exit_rule)
    assert function(X[:4])["exit_index"].numpy().tolist() == [0] * 4
    with pytest.raises(tf.errors.InvalidArgumentError, match="it ran"):
        serving.DynamicFunction(model, 4, kd.rules.MaxProbability(None))(X[:4])


@pytest.mark.parametrize("rule", [kd.rules.Entropy(1.3), kd.rules.Patience(2)])
def test_other_rules(rule):
    model = dense_model()
    expected = model.predict_dynamic(X, rule=rule, verbose=0)
    same(one_by_one(model.dynamic_function(rule=rule), X), expected)


def test_larger_batches():
    model = dense_model()
    rule = middle_rule(model, X)
    function = model.dynamic_function(batch_size=8, rule=rule)
    answers = [function(X[row : row + 8]) for row in range(0, 40, 8)]
    joined = {name: np.concatenate([a[name] for a in answers]) for name in answers[0]}
    same(joined, model.predict_dynamic(X, rule=rule, verbose=0))


def test_calibration_temperatures_count():
    model = dense_model()
    model.fit(X, Y, epochs=5, verbose=0)
    model.calibrate(X, Y, max_accuracy_drop=0.2)
    assert not np.allclose(model.calibration_temperatures, 1.0)
    expected = model.predict_dynamic(X, verbose=0)
    same(one_by_one(model.dynamic_function(), X), expected)


def test_it_is_frozen():
    """Later training, and another rule, change nothing in it."""
    model = dense_model()
    model.exit_rule = middle_rule(model, X)
    function = model.dynamic_function()
    before = one_by_one(function, X)
    model.exit_rule = kd.rules.MaxProbability(None)
    for weight in model.trainable_weights:
        weight.assign(weight * 0.5)
    after = one_by_one(function, X)
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])


def test_several_inputs():
    first, second = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    h = keras.layers.Concatenate()([first, second])
    outputs = [kd.EarlyExit(4)(h), keras.layers.Dense(4, "softmax")(h)]
    model = kd.DynamicModel({"a": first, "b": second}, outputs)
    x = {"a": X, "b": X[::-1].copy()}
    expected = model.predict_dynamic(x, verbose=0)
    function = model.dynamic_function(batch_size=40)
    same({k: v.numpy() for k, v in function(x).items()}, expected)


def test_gates_and_selectors():
    inputs = keras.Input((6,))
    gate = kd.SkipGate(keras.layers.Dense(6), gate=keras.layers.Dense(1))
    model = kd.DynamicModel(inputs, [keras.layers.Dense(4, "softmax")(gate(inputs))])
    function = model.dynamic_function()
    assert not function.jit_compiled  # there a closed gate would save nothing
    same(one_by_one(function, X), model.predict_dynamic(X, verbose=0))

    model, x = selected_model(), X
    function = model.dynamic_function(batch_size=len(x))
    expected = model.predict_dynamic(x, verbose=0)
    np.testing.assert_array_equal(function(x)["exit_index"], expected.exit_index)


def test_nan_never_leaves_early():
    model = dense_model()
    x = np.full((1, 6), np.nan, "float32")
    rule = kd.rules.MaxProbability(0.0)
    assert model.dynamic_function(rule=rule)(x)["exit_index"].numpy() == [2]


def test_threads():
    model = dense_model()
    model.exit_rule = middle_rule(model, X)
    expected = model.predict_dynamic(X, verbose=0)
    function, wrong = model.dynamic_function(), []

    def work():
        answers = one_by_one(function, X)
        if not np.array_equal(answers["exit_index"], expected.exit_index):
            wrong.append(answers)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_bad_input():
    model = dense_model()
    with pytest.raises(ValueError, match="`batch_size`.*batch_size=0"):
        model.dynamic_function(batch_size=0)
    with pytest.raises(ValueError, match="'selected' needs a model with a selector"):
        model.dynamic_function(rule="selected")
    function = model.dynamic_function(batch_size=4)
    with pytest.raises(ValueError, match=r"shape \(4, 6\).*shape \(3, 6\)"):
        function(X[:3])
    with pytest.raises(ValueError, match=r"shape \(4, 6\).*shape \(3, 6\)"):
        function(tf.constant(X[:3]))
    with pytest.raises(ValueError, match="each of the model.s inputs.*Received: 2"):
        function([X[:4], X[:4]])


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision(policy):
    """The early head gives float32, the last one half of that."""
    policies = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = dense_model(compiled=False)
    finally:
        keras.config.set_dtype_policy(policies)
    for threshold, exit_index in ((0.0, 0), (1.0, 2)):
        function = model.dynamic_function(rule=kd.rules.MaxProbability(threshold))
        answer = function(X[:1])
        assert int(answer["exit_index"][0]) == exit_index
        expected = model.predict(X[:1], verbose=0)[exit_index]
        np.testing.assert_allclose(answer["outputs"], expected, atol=2e-2)


def test_lookup_tables():
    inputs = keras.Input((), dtype="string")
    lookup = keras.layers.StringLookup(vocabulary=["a", "b", "c"])
    h = keras.layers.Embedding(4, 6)(lookup(inputs))
    outputs = [kd.EarlyExit(3, name="exit_1")(h), keras.layers.Dense(3, "softmax")(h)]
    model = kd.DynamicModel(inputs, outputs)
    words = tf.constant(["b", "c", "?", "a"])
    for threshold, exit_index in ((0.0, 0), (1.0, 1)):
        rule = kd.rules.MaxProbability(threshold)
        expected = model(words, training=False)[exit_index]
        whole = model.dynamic_function(4, rule=rule)(words)
        np.testing.assert_allclose(whole["outputs"], expected, atol=1e-6)
        single = model.dynamic_function(rule=rule)
        for row in range(4):
            answer = single(words[row : row + 1])
            assert int(answer["exit_index"][0]) == exit_index
            np.testing.assert_allclose(
                answer["outputs"], expected[row : row + 1], atol=1e-6
            )


def test_open_sizes():
    inputs = keras.Input((None, None, 3))
    h = keras.layers.Conv2D(4, 3)(inputs)
    outputs = [kd.EarlyExit(3, name="exit_1")(h), kd.EarlyExit(3, name="final")(h)]
    model = kd.DynamicModel(inputs, outputs)
    function = model.dynamic_function(rule=kd.rules.MaxProbability(1.0))
    assert not function.jit_compiled
    for size in (8, 13):
        x = np.random.default_rng(size).normal(size=(1, size, size, 3))
        expected = model.predict(x, verbose=0)[1]
        np.testing.assert_allclose(function(x)["outputs"], expected, atol=1e-5)
