"""How segments run in long inputs: frozen weights, all at once, sizes, selectors."""

import collections

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_dynamic as kd
from keras_dynamic.models import joining, pools, stage_functions
from tests.models.counting import Counting
from tests.models.small_models import dense_data, dense_model, middle_rule
from tests.models.small_selected import selected_model

X, Y = dense_data(200)


@pytest.fixture
def impatient(monkeypatch):
    """Everything that is tried after a while is tried at once, but for XLA."""
    for name in ("_FREEZE_AFTER", "_FREEZE_AFTER_STEP", "_TRIAL_AFTER"):
        monkeypatch.setattr(pools, name, 0.0)
    monkeypatch.setattr(pools, "_TRIAL_AFTER_STEP", 0.0)
    monkeypatch.setattr(
        stage_functions.StageFunctions, "_measured", lambda *arguments: ()
    )
    monkeypatch.setattr(
        stage_functions.StageFunctions, "static_seconds", lambda *a: (9e9, False)
    )
    return monkeypatch


def functions_of(model, rule):
    walk, _ = model.road.walk_under(rule, model)
    return model.road.stages_of(walk)


def same(found, expected):
    np.testing.assert_array_equal(found.exit_index, expected.exit_index)
    np.testing.assert_array_equal(found.cost, expected.cost)
    for name in ("outputs", "probabilities", "confidence"):
        one, other = getattr(found, name), getattr(expected, name)
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_frozen_weights_are_those_in_force(impatient):
    model = dense_model()
    rule = middle_rule(model, X)
    for _ in range(3):
        expected = model.predict_dynamic(X, batch_size=200, rule=rule, verbose=0)
        for _ in range(2):
            found = model.predict_dynamic(X, batch_size=16, rule=rule, verbose=0)
            same(found, expected)
        # All three segments run with constants for weights.
        assert len(functions_of(model, rule)._frozen) == 3
        # Training changes them, and the answers with them.
        before = found.outputs
        model.fit(X, Y, epochs=1, verbose=0)
    after = model.predict_dynamic(X, rule=rule, verbose=0).outputs
    assert np.abs(before - after).max() > 1e-3


def test_layers_that_count_are_not_frozen(impatient):
    """A constant could not be assigned to."""

    inputs = keras.Input((6,))
    counter = Counting()
    first = keras.layers.Dense(4, "softmax", name="exit_1")(counter(inputs))
    final = keras.layers.Dense(4, "softmax")(keras.layers.Dense(4)(inputs))
    model = kd.DynamicModel(inputs, [first, final])
    counter.seen.assign(0)
    for _ in range(2):
        model.predict_dynamic(X, batch_size=16, verbose=0)
    assert int(counter.seen) == 400


@pytest.mark.parametrize("jit", [False, True])
def test_all_at_once_where_that_is_faster(impatient, capsys, jit):
    model = dense_model()
    rule = middle_rule(model, X)
    expected = model.predict_dynamic(X, batch_size=200, rule=rule, verbose=0)
    monkeypatch = impatient
    monkeypatch.setattr(joining, "_ROWS", 16)  # batches stay as they are
    asked = []

    def static_seconds(self, x, knobs):
        asked.append(len(x))
        return 0.0, jit

    monkeypatch.setattr(
        stage_functions.StageFunctions, "static_seconds", static_seconds
    )
    found = model.predict_dynamic(X, batch_size=16, rule=rule, verbose=2)
    assert asked == [16]  # once; later calls know
    later = model.predict_dynamic(X, batch_size=16, rule=rule, verbose=0)
    assert asked == [16]
    for p in (found, later):
        np.testing.assert_array_equal(p.exit_index, expected.exit_index)
        np.testing.assert_allclose(p.outputs, expected.outputs, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(p.confidence, expected.confidence, rtol=1e-5)
    # `cost` is what was executed: every segment for all, in the later call.
    assert (later.cost == model.exit_costs[-1]).all()
    assert later.segment_rows.tolist() == [200, 200, 200]
    assert sorted(set(found.cost - expected.cost)) != [0]
    printed = capsys.readouterr().out
    assert printed.count("went through the whole network at once") == 1


def test_the_way_is_measured_on_this_machine():
    model = dense_model()
    rule = middle_rule(model, X)
    knobs = tf.constant(rule.thresholds(2)), tf.ones(3)
    seconds, _ = functions_of(model, rule).static_seconds(tf.constant(X[:16]), knobs)
    assert 0 < seconds < 1


@pytest.mark.parametrize("layerwise", [False, True])
def test_selectors_wait_too(impatient, layerwise):
    model = selected_model(layerwise=layerwise)
    expected = model.predict_dynamic(X, batch_size=200, verbose=0)
    assert set(expected.exit_index.tolist()) == {0, 1, 2}
    found = model.predict_dynamic(X, batch_size=8, verbose=0)
    same(found, expected)
    assert found.segment_rows.tolist() == expected.segment_rows.tolist()
    # Segments ran on full batches: one function call for each, and not for each batch.
    functions = functions_of(model, model.exit_rule)
    calls = collections.Counter()
    later = functions.later

    def noting(index, waiting, *arguments):
        calls[index] += 1
        return later(index, waiting, *arguments)

    functions.later = noting
    model.predict_dynamic(X, batch_size=8, verbose=0)
    assert calls[2] <= np.sum(expected.exit_index == 2) // 8 + 1


def lengths_model():
    inputs = keras.Input((None,), dtype="int32")
    h = keras.layers.Embedding(10, 8, mask_zero=True)(inputs)
    first = kd.EarlyExit(3, name="exit_1")(h)
    h = keras.layers.GRU(8, return_sequences=True)(h)
    final = kd.EarlyExit(3, name="final")(h)
    return kd.DynamicModel(inputs, [first, final])


def test_batches_of_several_lengths_wait_apart(impatient):
    keras.utils.set_random_seed(0)
    model = lengths_model()
    generator = np.random.default_rng(0)
    batches = [generator.integers(0, 10, (8, 3 + i % 3)) for i in range(12)]
    whole = [model.predict_on_batch(batch)[0].max(axis=1) for batch in batches]
    threshold = float(np.median(np.concatenate(whole)) + 1e-4)
    rule = kd.rules.MaxProbability(threshold)
    expected = [model.predict_dynamic(b, rule=rule, verbose=0) for b in batches]
    found = model.predict_dynamic(((b,) for b in batches), rule=rule, verbose=0)
    for name in ("exit_index", "cost"):
        joined = np.concatenate([getattr(p, name) for p in expected])
        np.testing.assert_array_equal(getattr(found, name), joined)
    joined = np.concatenate([p.outputs for p in expected])
    np.testing.assert_allclose(found.outputs, joined, rtol=1e-5, atol=1e-6)
    assert len(set(found.cost.tolist())) == 6  # three lengths, two exits
    references = np.mean([p.reference_cost for p in expected])
    assert found.reference_cost == pytest.approx(references)


class Length(keras.layers.Layer):
    """The mean over time, and how many steps there were: no row of it is a sample's."""

    def call(self, inputs):
        return tf.reduce_mean(inputs, axis=1), tf.cast(tf.shape(inputs)[1], tf.float32)

    def compute_output_spec(self, inputs):
        return keras.KerasTensor((None, inputs.shape[-1])), keras.KerasTensor(())

    def compute_flops(self, input_shape):
        return 0


class Scaled(keras.layers.Layer):
    """Times a number."""

    def call(self, inputs, by):
        return inputs * by

    def compute_output_spec(self, inputs, by):
        return keras.KerasTensor(inputs.shape)

    def compute_flops(self, input_shape):
        return 0


def test_values_without_rows_are_those_of_their_batch():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None, 6))
    h, length = Length()(inputs)
    first = kd.EarlyExit(4, name="exit_1")(h)
    final = keras.layers.Dense(4, "softmax")(Scaled()(h, length))
    model = kd.DynamicModel(inputs, [first, final])
    generator = np.random.default_rng(0)
    batches = [generator.normal(size=(8, 2 + i % 4, 6)) for i in range(12)]
    nobody = kd.rules.MaxProbability(1.0)
    found = model.predict_dynamic(((b,) for b in batches), rule=nobody, verbose=0)
    expected = np.concatenate([model.predict_on_batch(b)[1] for b in batches])
    np.testing.assert_allclose(found.outputs, expected, rtol=1e-5, atol=1e-6)


def test_a_weight_that_changed_between_two_segments_thaws_the_first():
    model = dense_model()
    functions = functions_of(model, middle_rule(model, X))
    weight = tf.Variable(1.0)
    two = [tf.function(lambda k=k: weight * k).get_concrete_function() for k in (1, 2)]
    functions._frozen["first"] = functions._as_frozen(two[0])
    weight.assign(3.0)
    functions._frozen["second"] = functions._as_frozen(two[1])
    assert list(functions._frozen) == ["second"]
    assert float(functions._frozen["second"]()) == 6.0
    functions.thaw_if_changed()
    assert list(functions._frozen) == ["second"]
    weight.assign(1.0)
    functions.thaw_if_changed()
    assert not functions._frozen


def test_evaluate_waits_too(impatient):
    model = dense_model(metrics=("accuracy", "sparse_top_k_categorical_accuracy"))
    model.exit_rule = middle_rule(model, X)
    weight = np.random.default_rng(0).uniform(size=200)
    given = {"sample_weight": weight, "verbose": 0}
    expected = model.evaluate_dynamic(
        X, Y, batch_size=16, callbacks=[keras.callbacks.Callback()], **given
    )
    found = model.evaluate_dynamic(X, Y, batch_size=16, **given)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


def test_an_optional_input_comes_and_goes(impatient):
    inputs = [keras.Input((6,)), keras.Input((6,), optional=True)]

    class Sum(keras.layers.Layer):
        """Adds what is there."""

        def call(self, inputs):
            one, other = inputs
            return one if other is None else one + 2.0 * other

        def compute_output_shape(self, input_shape):
            return input_shape[0]

        def compute_flops(self, input_shape):
            return 0

    first = keras.layers.Dense(4, "softmax", name="exit_1")(inputs[0])
    final = keras.layers.Dense(4, "softmax")(Sum()(inputs))
    model = kd.DynamicModel(inputs, [first, final])
    nobody = kd.rules.MaxProbability(1.0)
    for x in ([X, X], [X, None], [X, X]):
        found = model.predict_dynamic(x, batch_size=16, rule=nobody, verbose=0)
        expected = model.predict_dynamic(x, batch_size=200, rule=nobody, verbose=0)
        np.testing.assert_allclose(found.outputs, expected.outputs, atol=1e-6)
    without = model.predict_dynamic([X, None], rule=nobody, verbose=0)
    assert np.abs(found.outputs - without.outputs).max() > 0.01


def test_dicts_are_read_by_their_names():
    z, a = keras.Input((6,), name="z"), keras.Input((6,), name="a")
    h = keras.layers.Dense(4)(keras.layers.Subtract()([z, a]))
    outputs = [kd.EarlyExit(4, name="exit_1")(h), keras.layers.Dense(4, "softmax")(h)]
    as_list = kd.DynamicModel([z, a], outputs)
    as_dict = kd.DynamicModel({"z": z, "a": a}, outputs)
    x = {"z": X, "a": X[::-1].copy()}
    expected = as_list.predict([x["z"], x["a"]], verbose=0)[-1]
    rule = kd.rules.MaxProbability(1.0)
    for model in (as_list, as_dict):
        for given in (x, collections.OrderedDict(x), dict(reversed(x.items()))):
            found = model.predict_dynamic(given, rule=rule, verbose=0)
            np.testing.assert_allclose(found.outputs, expected, atol=1e-6)
            function = model.dynamic_function(200, rule=rule)
            np.testing.assert_allclose(function(given)["outputs"], expected, atol=1e-6)
        with pytest.raises(ValueError, match=r"inputs \['.', '.'\].*\['b', 'z'\]"):
            function({"z": X, "b": X})


def test_a_stream_that_is_broken_off_stops_its_workers():
    stopped = []

    class Data(keras.utils.PyDataset):
        """Eight batches."""

        def __len__(self):
            return 8

        def __getitem__(self, index):
            return (X[:10],)

        def on_epoch_end(self):
            stopped.append(True)

    model = dense_model()
    stream = model.stream_dynamic(Data(workers=2))
    next(stream)
    stream.close()
    assert stopped


def test_a_stream_says_at_once_what_is_wrong():
    model = dense_model()
    with pytest.raises(ValueError, match="`x` must hold samples"):
        model.stream_dynamic(None)
    with pytest.raises(ValueError, match="`rule`.*nope"):
        model.stream_dynamic(X, rule="nope")
