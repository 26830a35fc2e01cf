"""Two halves, one answer: device and server give what `predict_dynamic` gives."""

import dataclasses
import io
import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import keras_dynamic as kd
from tests.models.random_graphs import build, dense_road, exit_rules, plans
from tests.models.small_exports import Trap, make, normal, rows_of, two_exits
from tests.models.small_models import dense_model
from tests.models.small_selected import selected_model
from tests.models.test_export import served_elsewhere

COLUMNS = ("outputs", "exit_index", "confidence", "probabilities", "cost")


def check_equal(found, expected, rows=slice(None)):
    for name in COLUMNS:
        one, other = getattr(found, name)[rows], getattr(expected, name)[rows]
        assert one.shape == other.shape and one.dtype == other.dtype, name
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5, err_msg=name)


# Keras warns where a nested model is given a mask, and passes it on all the same.
@pytest.mark.filterwarnings("ignore:.*does not support masking.*:UserWarning")
@settings(max_examples=4, suppress_health_check=list(HealthCheck))
@pytest.mark.parametrize("rank", [2, 3])  # vectors; masked sequences
@given(plan=plans, data=st.data())
def test_both_halves_together_equal_predict_dynamic(rank, plan, data):
    num_early = len(plan["chunks"]) - 1
    rule = data.draw(exit_rules(num_early))
    cut = data.draw(st.integers(0, num_early - 1))
    model, x, counters = build(rank=rank, **plan)
    model.exit_rule = rule
    x = {  # as `predict` casts them
        name: array.astype("float32") if array.dtype == "float64" else array
        for name, array in x.items()
    }
    sure = ~dense_road(model, x, rule)["close"]
    expected = model.predict_dynamic(x, verbose=0)
    device, server = kd.split(model, cut)
    for counter in counters:
        counter.seen.assign(0)
    answers = device(x)
    np.testing.assert_array_equal(
        answers.answered[sure], (expected.exit_index <= cut)[sure]
    )
    assert all(int(counter.seen) == 0 for counter in counters[cut + 1 :])
    np.testing.assert_array_equal(answers.sent.rows, np.where(~answers.answered)[0])
    for counter in counters:
        counter.seen.assign(0)
    whole = answers.completed(server(answers.sent))
    assert all(int(counter.seen) == 0 for counter in counters[: cut + 1])
    road = model.road
    if cut not in road.asked_under(rule):  # the cut is at a closed exit: it is asked
        asked = [road.asked_under(rule, also) for also in ((cut,), ())]
        costs = [road.costs_of_batch(x, rule, numbers) for numbers in asked]
        head = np.subtract(*(cost.exits for cost in costs))[expected.exit_index]
        assert np.all(head[expected.exit_index > cut] > 0)
        expected = dataclasses.replace(expected, cost=expected.cost + head)
    check_equal(whole, expected, sure)


@pytest.mark.parametrize("kind", ["images", "gated", "two_inputs", "half_precision"])
def test_batches_of_every_size(kind):
    model, x = make(kind)
    device, server = kd.split(model, "exit_1")
    for rows in (0, 1, 7, 128):
        batch = rows_of(x, rows)
        answers = device(batch)
        whole = answers.completed(server(answers.sent))
        expected = model.predict_dynamic(batch, verbose=0, batch_size=128)
        check_equal(whole, expected)
        np.testing.assert_array_equal(whole.segment_rows, expected.segment_rows)
        if rows:
            assert whole.reference_cost == expected.reference_cost
        assert len(answers.sent) == np.sum(expected.exit_index > 0)


def test_halves_run_without_keras(tmp_path):
    model, x = make("patient")
    device, server = kd.split(model, 1)
    batches = [x[:rows] for rows in (0, 1, 7, 128)]
    device.export(tmp_path / "device", verbose=False)
    server.export(tmp_path / "server", verbose=False)
    first = served_elsewhere({"device": (str(tmp_path / "device"), batches)}, tmp_path)
    wanted = [f"sent_{name}" for name in server.specs]
    sent = [{name: found[name] for name in wanted} for found in first["device"]]
    second = served_elsewhere({"server": (str(tmp_path / "server"), sent)}, tmp_path)
    for batch, local, remote in zip(
        batches, first["device"], second["server"], strict=True
    ):
        expected = model.predict_dynamic(batch, verbose=0, batch_size=128)
        for name in ("outputs", "exit_index", "confidence", "probabilities"):
            whole = local[name].copy()
            whole[local["sent_rows"]] = remote[name]
            np.testing.assert_allclose(whole, getattr(expected, name), atol=1e-5)


# What is sent


def skipping_model():
    """Twelve numbers, a skip connection over the exit, a mask of tokens."""
    inputs = keras.Input((5,), dtype="int32", name="ids")
    hidden = keras.layers.Embedding(9, 3, mask_zero=True, name="embedding")(inputs)
    first = kd.EarlyExit(4, name="exit_1")(hidden)
    deep = keras.layers.GRU(3, return_sequences=True, name="gru")(hidden)
    second = kd.EarlyExit(4, name="exit_2")(deep)
    final = kd.EarlyExit(4, name="final")(keras.layers.add([hidden, deep]))
    rule = kd.rules.Patience(3)
    return kd.DynamicModel(inputs, [first, second, final], exit_rule=rule)


def test_bytes_are_those_of_tensors_masks_and_memory():
    device, _ = kd.split(skipping_model(), "exit_2")
    sent = device(np.array([[1, 2, 0, 0, 0], [3, 4, 5, 6, 7]], "int32")).sent
    # Two tensors of 5 tokens x 3 float32; the mask of 5 bytes that both carry, and that
    # Keras hands to the last exit as an input of its own; Patience's class and count,
    # int64; one byte that says whether there is a NaN.
    assert sent.bytes_per_sample == 2 * 5 * 3 * 4 + 5 + 2 * 8 + 1
    assert sent.nbytes == 2 * sent.bytes_per_sample and len(sent) == 2
    (masked,) = [name for name in sent.tensors if name.startswith("not_equal")]
    names = {"embedding", "gru", masked, "memory_0", "memory_1", "broken"}
    assert set(sent.tensors) == names
    mask = [[True] * 2 + [False] * 3, [True] * 5]
    assert sent.tensors[masked].tolist() == mask
    assert sent.tensors["memory_1"].tolist()[0] in (1, 2)  # exits that agree so far
    assert "2 samples, 142 bytes each: embedding" in repr(sent)


def masked_model(nested):
    """Two masked sequences, pooled after the exit."""

    def encoder():
        steps = keras.Input((5, 2))
        hidden = keras.layers.Masking()(steps)
        return keras.Model(steps, keras.layers.LSTM(3, return_sequences=True)(hidden))

    one, two = keras.Input((5, 2), name="one"), keras.Input((5, 2), name="two")
    if nested:  # called twice: one description of two masks
        encode = encoder()
        first, second = encode(one), encode(two)
    else:  # the second has the mask of the first
        hidden = keras.layers.Masking()(one)
        first = keras.layers.LSTM(3, return_sequences=True)(hidden)
        second = keras.layers.LSTM(3, return_sequences=True)(first)
        second = keras.layers.add([second, keras.layers.Dense(3)(two)])
    exit = kd.EarlyExit(4, name="exit_1")(keras.layers.add([first, second]))
    pool = keras.layers.GlobalAveragePooling1D
    deep = keras.layers.concatenate([pool()(first), pool()(second)])
    final = keras.layers.Dense(4, "softmax", name="final")(deep)
    model = kd.DynamicModel([one, two], [exit, final])
    model.exit_rule = kd.rules.MaxProbability(1.0)  # asked, and left by nobody
    return model


@pytest.mark.parametrize("nested", [True, False])
def test_masks_are_those_of_their_tensors(nested):
    model = masked_model(nested)
    x = list(normal(2, 6, 5, 2))
    x[0][::2, 2:], x[1][1::2, 1:] = 0, 0
    device, server = kd.split(model, 0)
    answers = device(x)
    expected = model.predict_dynamic(x, verbose=0)
    np.testing.assert_allclose(
        expected.outputs, model.predict(x, verbose=0)[1], atol=1e-6
    )
    check_equal(answers.completed(server(answers.sent)), expected)
    masks = [t for t in answers.sent.tensors.values() if t.dtype == bool and t.ndim > 1]
    assert len({mask.tobytes() for mask in masks}) == len(masks) == (2 if nested else 1)


class Added(keras.layers.Layer):
    """Adds a second input where there is one."""

    def call(self, inputs, other=None):
        return inputs if other is None else inputs + other

    def compute_output_spec(self, inputs, other=None):
        return keras.KerasTensor(inputs.shape, inputs.dtype)

    def compute_flops(self, input_shape):
        return 0


def test_an_optional_input_that_is_absent():
    inputs = keras.Input((6,), name="features")
    other = keras.Input((6,), name="other", optional=True)
    hidden = keras.layers.Dense(6, "tanh")(inputs)
    first = kd.EarlyExit(4, name="exit_1")(hidden)
    final = kd.EarlyExit(4, name="final")(Added()(hidden, other))
    model = kd.DynamicModel([inputs, other], [first, final])
    model.exit_rule = kd.rules.MaxProbability(1.0)  # asked, and left by nobody
    device, server = kd.split(model, 0)
    for x in ([normal(5, 6), None], [normal(5, 6), 3 * normal(5, 6)]):
        answers = device(x)
        assert ("other" in answers.sent.tensors) == (x[1] is not None)
        assert answers.sent.nbytes == 5 * answers.sent.bytes_per_sample
        expected = model.predict_dynamic(x, verbose=0)
        check_equal(answers.completed(server(answers.sent)), expected)


def test_half_precision_halves_the_bytes():
    model, x = make("half_precision")
    device, _ = kd.split(model, 0)
    assert device(x).sent.bytes_per_sample == 8 * 2 + 1  # 8 bfloat16, and broken


def test_a_value_without_batch_axis_is_not_sent():
    class Scale(keras.layers.Layer):
        def build(self, input_shape):
            self.scale = self.add_weight(shape=(6,), initializer="normal")

        def call(self, inputs):
            return self.scale.value

        def compute_output_shape(self, input_shape):
            return (6,)

        def compute_flops(self, input_shape):
            return 0

    def model_of(size):
        inputs = keras.Input((size,) if size else (None, 6), name="features")
        hidden = keras.layers.Dense(6, "tanh")(inputs)
        scale = Scale(name="scale")(hidden)
        first = kd.EarlyExit(4, name="exit_1")(hidden * scale)
        deep = keras.layers.Dense(6, "tanh")(hidden) * scale
        final = kd.EarlyExit(4, name="final")(deep)
        return kd.DynamicModel(inputs, [first, final], exit_rule="entropy")

    model = model_of(6)
    device, server = kd.split(model, 0)
    answers = device(normal(5, 6))
    assert len(answers.sent.tensors) == 2  # what `Dense` gave, and broken
    # The weight may change: it is read, not copied.
    next(w for w in model.weights if "scale" in w.path).assign(np.arange(6.0))
    expected = model.predict_dynamic(normal(5, 6), verbose=0)
    answers = device(normal(5, 6))
    check_equal(answers.completed(server(answers.sent)), expected)
    with pytest.raises(ValueError, match="'scale' crosses it, has no batch axis"):
        kd.split(model_of(None), 0)


def test_strings_count_with_their_own_bytes():
    text = keras.Input((2,), dtype="string", name="text")
    number = keras.Input((6,), name="number")
    known = keras.layers.StringLookup(vocabulary=["a"], output_mode="one_hot")(text)
    hidden = keras.layers.Dense(5)(number)
    first = kd.EarlyExit(4, name="exit_1")(hidden)
    deep = keras.layers.concatenate([hidden, keras.layers.Flatten()(known)])
    final = keras.layers.Dense(4, "softmax", name="final")(deep)
    model = kd.DynamicModel([text, number], [first, final])
    model.exit_rule = kd.rules.MaxProbability(None)
    device, server = kd.split(model, 0)
    words = tf.constant([["x" * 1000, "a"], ["", "äö"]])
    sent = device([words, normal(2, 6)]).sent
    # 1000 + 1 + 0 + 4 bytes (an umlaut takes two in UTF-8), 5 float32 and `broken`.
    assert sent.nbytes == 1005 + 2 * (5 * 4 + 1)
    assert sent.bytes_per_sample == 503 + 5 * 4 + 1  # 1005 / 2, rounded up
    assert len(server(sent.tensors).exit_index) == 2
    assert device([words[:0], normal(0, 6)]).sent.bytes_per_sample == 5 * 4 + 1


def test_a_server_that_gets_bytes_on_a_model_of_its_own(tmp_path):
    model, x = make("patient")
    device, _ = kd.split(model, "exit_1")
    answers, wire = device(x), io.BytesIO()
    np.savez(wire, **answers.sent.tensors)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    received = dict(np.load(io.BytesIO(wire.getvalue())))
    back = pickle.dumps(kd.split(loaded, "exit_1")[1](received))
    whole = answers.completed(pickle.loads(back))
    check_equal(whole, model.predict_dynamic(x, verbose=0, batch_size=128))


def test_costs_travel_where_sizes_are_open():
    inputs = keras.Input((None, 3), name="features")
    hidden = keras.layers.Dense(3, "tanh")(inputs)
    first = kd.EarlyExit(4, name="exit_1")(hidden)
    final = kd.EarlyExit(4, name="final")(keras.layers.Dense(3)(hidden))
    model = kd.DynamicModel(inputs, [first, final])
    device, server = kd.split(model, 0)
    sent = device(normal(4, 7, 3)).sent
    with pytest.raises(ValueError, match=r"sizes of its inputs open.*costs=None"):
        server(sent.tensors)
    found = server(pickle.loads(pickle.dumps(sent)))
    np.testing.assert_array_equal(found.cost, server(sent).cost)


def test_device_keeps_its_last_answer_for_those_who_go_on():
    model, x = dense_model(compiled=False), normal(6, 6)
    model.exit_rule = kd.rules.MaxProbability([None, None])
    answers = kd.split(model, "exit_2")[0](x)
    assert not answers.answered.any() and np.all(answers.exit_index == -1)
    np.testing.assert_allclose(
        answers.outputs, model.predict(x, verbose=0)[1], atol=1e-6
    )
    assert np.all(answers.cost == model.exit_costs[1])
    assert repr(answers).startswith("DeviceAnswers(0 answered, Sent(6 samples")


def test_a_nan_travels_with_its_sample():
    model, x = dense_model(compiled=False), normal(3, 6)
    model.exit_rule = kd.rules.MaxProbability(0.1)
    x[1, 2] = np.nan
    device, server = kd.split(model, "exit_1")
    answers = device(x)
    assert answers.sent.rows.tolist() == [1] and answers.sent.tensors["broken"].all()
    whole = answers.completed(server(answers.sent))
    assert whole.exit_index.tolist() == [0, 2, 0]
    # Also where nothing of the NaN is left in the tensors: the flag counts.
    model.exit_rule = kd.rules.MaxProbability([None, 0.1])
    device, server = kd.split(model, "exit_1")
    sent = device(normal(3, 6)).sent
    assert server(sent).exit_index.tolist() == [1, 1, 1]
    sent.tensors["broken"] = np.array([True, False, False])
    assert server(sent).exit_index.tolist() == [2, 1, 1]


def test_the_device_has_nothing_of_the_server():
    inputs = keras.Input((6,), name="features")
    hidden = keras.layers.Dense(8, "tanh")(inputs)
    rule = kd.rules.MaxProbability(None)
    model = two_exits(inputs, hidden, Trap(), exit_rule=rule)
    device, server = kd.split(model, 0)
    sent = device(normal(3, 6)).sent
    with pytest.raises(tf.errors.InvalidArgumentError, match="1000"):
        server(sent)


def test_the_rule_stays_and_the_weights_are_shared():
    model, x = dense_model(compiled=False), normal(8, 6)
    model.exit_rule = kd.rules.MaxProbability(0.1)
    device, server = kd.split(model, 0)
    model.exit_rule = kd.rules.MaxProbability(None)
    model.set_weights([0.5 * w for w in model.get_weights()])
    answers = device(x)
    assert answers.answered.all()
    np.testing.assert_allclose(
        answers.outputs, model.predict(x, verbose=0)[0], atol=1e-6
    )
    assert len(server(answers.sent).exit_index) == 0


# Errors


@pytest.mark.parametrize(
    "exit, error, message",
    [
        ("final", ValueError, r"\['exit_1', 'exit_2'\].*Received: exit='final'"),
        (2, ValueError, "from 0 to 1. Received: exit=2"),
        (-1, ValueError, "Received: exit=-1"),
        ("exit_9", ValueError, "Received: exit='exit_9'"),
        (0.5, TypeError, "Received: exit=0.5"),
        (True, TypeError, "Received: exit=True"),
    ],
)
def test_exits_that_no_cut_can_lie_at(exit, error, message):
    with pytest.raises(error, match=message):
        kd.split(dense_model(compiled=False), exit)


def test_models_that_cannot_be_split():
    with pytest.raises(TypeError, match="`model` must be a `DynamicModel`"):
        kd.split(keras.Sequential([keras.layers.Dense(2)]), 0)
    with pytest.raises(ValueError, match=r"exit_rule=Selected\(\)"):
        kd.split(selected_model(compiled=False), 0)


def test_records_that_do_not_belong_together():
    first, second = dense_model(compiled=False), skipping_model()
    device, server = kd.split(first, 0)
    answers, other = device(normal(3, 6)), kd.split(second, 0)[1]
    with pytest.raises(TypeError, match="`Sent` that a device gave.*sent=3"):
        server(3)
    with pytest.raises(ValueError, match="from another split.*'embedding'"):
        other(answers.sent)
    with pytest.raises(ValueError, match="`served` must hold the answers of the 3"):
        answers.completed(server(device(normal(2, 6)).sent))


def test_both_sides_load_a_model_with_masks(tmp_path):
    model = skipping_model()
    model.save(tmp_path / "m.keras")
    x = np.array([[1, 2, 0, 0, 0], [3, 4, 5, 6, 7]], "int32")
    expected = model.predict_dynamic(x, verbose=0)
    here, there = (keras.models.load_model(tmp_path / "m.keras") for _ in range(2))
    device, _ = kd.split(here, "exit_1")
    _, server = kd.split(there, "exit_1")
    answers = device(x)
    assert not answers.answered.all()
    check_equal(answers.completed(server(dict(answers.sent.tensors))), expected)
