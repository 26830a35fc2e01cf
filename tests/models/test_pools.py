"""Stage pools: survivors of several batches go on together, and nothing is lost."""

import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_dynamic as kd
from keras_dynamic.models import pools, stage_functions
from keras_dynamic.models.rows import count_rows
from tests.models.small_models import dense_data, dense_model, middle_rule

X, Y = dense_data(200)


def batches(x, size):
    return [tf.constant(x[i : i + size]) for i in range(0, len(x), size)]


def pooled(model, rule, x, size, compiled=()):
    """(answers, the number of rows of each run of each segment)."""
    walk, thresholds = model.road.walk_under(rule, model)
    functions = model.road.stages_of(walk)
    runs = [[] for _ in model.exit_names]
    later = functions.later

    def noting(index, waiting, *arguments):
        runs[index].append(waiting.rows.shape[0])
        return later(index, waiting, *arguments)

    functions.later = noting
    try:
        knobs = thresholds, tf.convert_to_tensor(model.calibration_temperatures)
        key = size, *functions.kind_of(tf.constant(x))
        functions._faster[key] = frozenset(compiled)
        road = pools.Pools(functions, size, knobs)
        for batch in batches(x, size):
            runs[0].append(count_rows(batch))
            road.add(batch)
            # Bounded memory: less than a full batch waits at each segment.
            assert all(count.total() < size for count in road._counts)
        answers = road.finish()
    finally:
        functions.later = later
        functions._faster.clear()
    assert [sum(each) for each in runs] == road.segment_rows.tolist()
    return answers, runs


def same(answers, expected, tolerance=1e-6):
    np.testing.assert_array_equal(answers["exit_index"], expected.exit_index)
    for name in ("outputs", "probabilities", "confidence"):
        np.testing.assert_allclose(
            answers[name], getattr(expected, name), atol=tolerance, rtol=tolerance
        )


@pytest.mark.parametrize("compiled", [(), (0, 1, 2), (1,)])
@pytest.mark.parametrize("size", [1, 7, 40])
def test_the_same_answers_in_the_same_order(size, compiled):
    model = dense_model()
    rule = middle_rule(model, X)
    expected = model.predict_dynamic(X, batch_size=200, rule=rule, verbose=0)
    answers, _ = pooled(model, rule, X, size, compiled)
    same(answers, expected)


def test_deep_segments_run_on_full_batches():
    model = dense_model()
    rule = middle_rule(model, X)
    _, runs = pooled(model, rule, X, 16)
    # About 8 of 16 stay, then 4: each run but the last has a whole batch.
    assert all(count >= 16 for count in runs[1][:-1] + runs[2][:-1])
    assert len(runs[1]) < len(runs[0])
    # Compiled ones have exactly as many, but for what is left in the end.
    _, runs = pooled(model, rule, X, 16, compiled=(1, 2))
    full = [count for count in runs[1] + runs[2] if count == 16]
    assert len(full) >= len(runs[1]) + len(runs[2]) - 2


def test_everyone_leaves_and_nobody_does():
    model = dense_model()
    for threshold, exit_index in ((0.0, 0), (1.0, 2)):
        answers, runs = pooled(model, kd.rules.MaxProbability(threshold), X, 16)
        assert (answers["exit_index"] == exit_index).all()
        assert (sum(runs[2]) == 0) == (exit_index == 0)


def test_memory_of_a_rule_waits_too():
    model = dense_model()
    model.fit(X, Y, epochs=3, verbose=0)
    rule = kd.rules.Patience(2)
    expected = model.predict_dynamic(X, batch_size=200, rule=rule, verbose=0)
    # Two exits agree on some samples: those leave at the second one.
    assert set(expected.exit_index.tolist()) == {1, 2}
    answers, _ = pooled(model, rule, X, 7)
    same(answers, expected)


def test_what_gates_save_waits_too():
    inputs = keras.Input((6,))
    gate = kd.SkipGate(
        keras.layers.Dense(6, "tanh"), gate=keras.layers.Dense(1), name="gate"
    )
    h = gate(inputs)
    early = kd.EarlyExit(4, name="exit_1")(h)
    deep = kd.SkipGate(
        keras.layers.Dense(6, "tanh"), gate=keras.layers.Dense(1), name="deep"
    )
    final = keras.layers.Dense(4, "softmax")(deep(h))
    model = kd.DynamicModel(inputs, [early, final])
    rule = middle_rule(model, X)
    expected = model.predict_dynamic(X, batch_size=200, rule=rule, verbose=0)
    found = model.predict_dynamic(X, batch_size=7, rule=rule, verbose=0)
    np.testing.assert_array_equal(found.cost, expected.cost)
    assert len(set(found.cost.tolist())) > 2
    np.testing.assert_array_equal(found.exit_index, expected.exit_index)


def test_several_inputs_and_a_dict():
    first, second = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    h = keras.layers.Concatenate()([first, second])
    early = kd.EarlyExit(4, name="exit_1")(h)
    final = keras.layers.Dense(4, "softmax")(
        keras.layers.add([keras.layers.Dense(6)(h), second])
    )
    model = kd.DynamicModel({"a": first, "b": second}, [early, final])
    x = {"a": X, "b": X[::-1].copy()}
    rule = kd.rules.MaxProbability(
        float(np.median(model.predict(x, verbose=0)[0].max(axis=1)))
    )
    expected = model.predict_dynamic(x, batch_size=200, rule=rule, verbose=0)
    found = model.predict_dynamic(x, batch_size=7, rule=rule, verbose=0)
    np.testing.assert_array_equal(found.exit_index, expected.exit_index)
    np.testing.assert_allclose(found.outputs, expected.outputs, atol=1e-6)


def test_xla_is_tried_after_a_while(monkeypatch):
    monkeypatch.setattr(pools, "_TRIAL_AFTER", 0.0)
    monkeypatch.setattr(pools, "_TRIAL_AFTER_STEP", 0.0)
    model = dense_model()
    rule = middle_rule(model, X)
    expected = model.predict_dynamic(X, batch_size=200, rule=rule, verbose=0)
    measured = []
    # XLA is faster at exits 0 and 2; all at once takes longer than the walk.
    times = iter([1.0, 2.0, 3.0, 1.0, 1.0, 2.0, 9e9, 9e9])

    def median_time(run, repeats):
        run()
        measured.append(repeats)
        return next(times)

    monkeypatch.setattr(stage_functions, "median_time", median_time)
    for _ in range(2):  # measured once
        found = model.predict_dynamic(X, batch_size=16, rule=rule, verbose=0)
        np.testing.assert_array_equal(found.exit_index, expected.exit_index)
        np.testing.assert_allclose(found.outputs, expected.outputs, atol=1e-6)
    assert len(measured) == 8
    walk, _ = model.road.walk_under(rule, model)
    functions = model.road.stages_of(walk)
    assert list(functions._faster.values()) == [{0, 2}]


def test_a_segment_without_layers_is_not_tried(monkeypatch):
    monkeypatch.setattr(pools, "_TRIAL_AFTER", 0.0)
    monkeypatch.setattr(pools, "_TRIAL_AFTER_STEP", 0.0)
    inputs = keras.Input((6,))
    trunk = keras.layers.Dense(8, "tanh")(inputs)
    early = kd.EarlyExit(4, name="exit_1")(trunk)
    final = keras.layers.Dense(4, "softmax")(keras.layers.Dense(5)(trunk))
    # The selector runs first, and the first segment with it.
    selected = kd.ExitSelector(2)(trunk)
    model = kd.DynamicModel(inputs, [early, final], selector=selected)
    expected = model.predict_dynamic(X, batch_size=200, verbose=0)
    found = model.predict_dynamic(X, batch_size=16, verbose=0)
    np.testing.assert_array_equal(found.exit_index, expected.exit_index)
    np.testing.assert_allclose(found.outputs, expected.outputs, atol=1e-6)


def test_an_operation_that_xla_lacks(monkeypatch):
    monkeypatch.setattr(pools, "_TRIAL_AFTER", 0.0)
    monkeypatch.setattr(pools, "_TRIAL_AFTER_STEP", 0.0)

    class ByText(keras.layers.Layer):
        """Through strings and back, which XLA cannot."""

        def call(self, inputs):
            return tf.reshape(
                tf.strings.to_number(tf.strings.as_string(inputs)), tf.shape(inputs)
            )

        def compute_output_shape(self, input_shape):
            return input_shape

        def compute_flops(self, input_shape):
            return 0

    inputs = keras.Input((6,))
    h = ByText()(inputs)
    early = kd.EarlyExit(4, name="exit_1")(h)
    model = kd.DynamicModel(
        inputs, [early, keras.layers.Dense(4, "softmax")(ByText()(h))]
    )
    found = model.predict_dynamic(X, batch_size=16, verbose=0)
    assert len(found) == 200


def test_callbacks_see_each_batch():
    """Those that may read outputs get them: then nobody waits."""

    class Noting(keras.callbacks.Callback):
        def on_predict_batch_end(self, batch, logs=None):
            sizes.append(len(logs["outputs"]))

    sizes = []
    model = dense_model()
    model.predict_dynamic(X, batch_size=16, callbacks=[Noting()], verbose=0)
    assert sizes == [16] * 12 + [8]


def test_an_exception_in_a_generator_passes_and_leaves_nothing():
    model = dense_model()
    rule = middle_rule(model, X)

    def broken():
        for batch in batches(X, 16)[:6]:
            yield (batch.numpy(),)
        raise RuntimeError("no more data")

    with pytest.raises(Exception, match="no more data"):
        model.predict_dynamic(broken(), rule=rule, verbose=0)
    expected = model.predict_dynamic(X, batch_size=200, rule=rule, verbose=0)
    found = model.predict_dynamic(X, batch_size=16, rule=rule, verbose=0)
    np.testing.assert_array_equal(found.exit_index, expected.exit_index)


def test_many_threads_at_once(monkeypatch):
    """Nobody traced anything before; some of them compile."""
    monkeypatch.setattr(pools, "_TRIAL_AFTER", 0.0)
    monkeypatch.setattr(pools, "_TRIAL_AFTER_STEP", 0.001)
    model = dense_model()
    rule = middle_rule(model, X)
    outputs = model.predict(X, verbose=0)
    wrong, calls = [], []

    def work(start):
        for call in range(15):
            x = np.roll(X, start + call, axis=0)
            size = (7, 16, 200)[(start + call) % 3]
            found = model.predict_dynamic(x, batch_size=size, rule=rule, verbose=0)
            expected = np.stack(outputs)[
                np.roll(found.exit_index, -start - call), np.arange(200)
            ]
            calls.append(found.exit_rates.tolist())
            if not np.allclose(
                np.roll(found.outputs, -start - call, axis=0), expected, atol=1e-5
            ):
                wrong.append((start, call))

    threads = [threading.Thread(target=work, args=(start,)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 120 and not wrong
    assert all(rates == calls[0] for rates in calls)  # the same samples, rolled


def test_a_stream_of_predictions():
    model = dense_model()
    rule = middle_rule(model, X)
    expected = model.predict_dynamic(X, rule=rule, verbose=0)
    drawn = []

    def data():
        for batch in batches(X, 60):
            drawn.append(len(drawn))
            yield (batch.numpy(),)

    stream = model.stream_dynamic(data(), rule=rule)
    first = next(stream)
    assert len(first) == 60 and len(drawn) < 4  # read as it goes
    parts = [first, *stream]
    assert [len(part) for part in parts] == [60, 60, 60, 20]
    for name in ("outputs", "exit_index", "cost"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_allclose(joined, getattr(expected, name), atol=1e-6)
    assert sum(part.segment_rows for part in parts).tolist() == (
        expected.segment_rows.tolist()
    )


def test_streams_of_unknown_length():
    model = dense_model()
    rule = middle_rule(model, X)
    expected = model.predict_dynamic(X, batch_size=200, rule=rule, verbose=0)
    found = model.predict_dynamic(
        ((batch.numpy(),) for batch in batches(X, 16)), rule=rule, verbose=0
    )
    np.testing.assert_array_equal(found.exit_index, expected.exit_index)
    assert found.segment_rows.tolist() == expected.segment_rows.tolist()


def test_calls_share_their_threads(monkeypatch):
    """TensorFlow keeps something for ever of every thread that it has run in."""
    model = dense_model()
    started, start = [], threading.Thread.start

    def counted(thread):
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", counted)
    for _ in range(12):
        model.predict_dynamic(X[:24], batch_size=4, verbose=0)
    assert len(started) < 12
