"""TensorBoard: what is written, where, and at which step."""

import copy

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_dynamic as kd
from tests.callbacks.events import events_in, last, steps_of
from tests.layers.checks import two_replicas
from tests.layers.small_gates import First, normal, odds
from tests.models.small_models import dense_data, dense_model, middle_rule
from tests.models.small_selected import chosen, selected_model

TensorBoard = kd.callbacks.TensorBoard
X, Y = dense_data(80)


def gated_model():
    """Two exits behind a gate that opens for a positive first feature."""
    inputs = keras.Input((6,))
    h = kd.SkipGate(layers.Dense(6), gate=First(), name="gate")(inputs)
    first = kd.EarlyExit(4, name="exit_1")(h)
    final = layers.Dense(4, "softmax", name="final")(h)
    model = kd.DynamicModel(inputs, [first, final])
    model.compile("adam", "sparse_categorical_crossentropy")
    return model


def plain_model(*stack, shape=(6,)):
    """At a rate of 0, so that training changes nothing."""
    model = keras.Sequential([keras.Input(shape), *stack])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    return model


def fit(model, board, x=X, y=None, epochs=1, callbacks=(), **arguments):
    y = np.zeros((len(x), *model.output_shape[1:])) if y is None else y
    callbacks = [*callbacks, board]
    return model.fit(
        x, y, epochs=epochs, callbacks=callbacks, verbose=0, **arguments
    ).history


def buckets_of(values):
    """20 buckets over [0, 1], by another road than `np.histogram`."""
    numbers = np.minimum((np.asarray(values, "float64") * 20).astype(int), 19)
    edges = np.arange(21) / 20
    return np.stack([edges[:-1], edges[1:], np.bincount(numbers, minlength=20)], 1)


def one_a_number(*counts):
    return [[k - 0.5, k + 0.5, count] for k, count in enumerate(counts)]


@pytest.mark.parametrize("rule", ["max_probability", "entropy", "patience"])
def test_exits_under_the_rule_in_force(tmp_path, rule):
    model = dense_model(exit_rule=rule)
    if rule == "max_probability":
        model.exit_rule = middle_rule(model, X)
    fit(model, TensorBoard(tmp_path, data=X), y=Y)
    events = events_in(tmp_path)
    p = model.predict_dynamic(X, verbose=0)
    counts = [int(np.sum(p.exit_index == k)) for k in range(3)]
    assert sum(counts) == 80
    assert last(events, "validation", "exit_index").tolist() == one_a_number(*counts)
    buckets = last(events, "validation", "exit_confidence")
    assert buckets[:, 2].sum() == 80
    if rule == "max_probability":
        assert all(counts[:2])
        np.testing.assert_allclose(buckets, buckets_of(p.confidence))
    elif rule == "entropy":  # up to ln 4 = 1.39 nats
        assert buckets[0, 0] == pytest.approx(p.confidence.min())
        assert buckets[-1, 1] == pytest.approx(p.confidence.max())
    else:  # agreements: one at the first exit, up to three at the last
        agreed = np.bincount(p.confidence.astype(int))
        assert buckets.tolist() == one_a_number(*agreed)


@pytest.mark.parametrize("layerwise", [False, True])
def test_weights_of_a_selector(tmp_path, layerwise):
    model = selected_model(layerwise)
    fit(model, TensorBoard(tmp_path, data=X), y=Y)
    events = events_in(tmp_path)
    counts = np.bincount(chosen(model, X), minlength=3)
    assert last(events, "validation", "exit_index").tolist() == one_a_number(*counts)
    selector = model.get_layer("selector")
    features = X
    if layerwise:
        first = model.get_layer("trunk_1")(X)
        features = [first, model.get_layer("trunk_2")(first)]
    soft = np.sum(selector.probabilities(features), axis=0)
    buckets = last(events, "validation", "exit_weights")
    np.testing.assert_allclose(buckets, one_a_number(*soft), rtol=1e-5)
    assert buckets[:, 2].sum() == pytest.approx(80)


def test_a_gate_in_a_gate_shows_those_who_got_there(tmp_path):
    inner = kd.SkipGate(layers.Dense(6), gate=First(), name="inner")
    outer = kd.SkipGate(
        keras.Sequential([keras.Input((6,)), inner]), gate=First(), name="outer"
    )
    model = plain_model(outer)
    history = fit(
        model, TensorBoard(tmp_path, data=X, batch_size=7), validation_data=(X, X)
    )
    events = events_in(tmp_path)
    probability = 1 / (1 + np.exp(-X[:, 0].astype("float64")))
    outside = last(events, "validation", "outer_open_probability")
    np.testing.assert_allclose(outside, buckets_of(probability))
    # Open where the first number is positive; what is put in has it unchanged.
    reached = probability[X[:, 0] > 0]
    inside = last(events, "validation", "inner_open_probability")
    np.testing.assert_allclose(inside, buckets_of(reached))
    assert 0 < inside[:, 2].sum() < 80
    # Those that the logs are a mean of.
    assert history["val_outer_open_probability"][0] == pytest.approx(probability.mean())
    assert history["val_inner_open_probability"][0] == pytest.approx(reached.mean())


def test_a_gate_that_nobody_gets_to(tmp_path):
    inner = kd.SkipGate(layers.Dense(6), gate=odds(0.0), name="inner")
    outer = kd.SkipGate(inner, gate=odds(-3.0), name="outer")
    model = plain_model(outer)
    fit(model, TensorBoard(tmp_path, data=X))
    events = events_in(tmp_path)
    inside = last(events, "validation", "inner_open_probability")
    np.testing.assert_allclose(inside, buckets_of([]))
    outside = last(events, "validation", "outer_open_probability")
    # 1 / (1 + e^3) = 0.047: all in the first of twenty.
    assert outside[:2, 2].tolist() == [80, 0]


def test_gates_in_experts_and_of_one_name(tmp_path):
    def expert(logit):
        gate = kd.SkipGate(layers.Dense(6), gate=odds(logit), name="gate")
        return keras.Sequential([keras.Input((6,)), gate])

    mixture = kd.SparseMoE(experts=[expert(0.5), expert(-0.5)], name="moe")
    gated = kd.SkipGate(mixture, gate=First(), name="whole")
    model = plain_model(gated)
    fit(model, TensorBoard(tmp_path, data=X))
    events = events_in(tmp_path)
    x = X[X[:, 0] > 0]  # who gets to the mixture
    experts = np.asarray(mixture.routing(x).experts)[..., 0].ravel()
    counts = np.bincount(experts, minlength=2)
    assert all(counts)
    loads = last(events, "validation", "moe_expert_load")
    assert loads.tolist() == one_a_number(*counts)
    # The probabilities are 0.62, in the bucket that begins at 0.60, and 0.38.
    names = ["gate_open_probability", "gate_open_probability_1"]
    shown = [last(events, "validation", name)[:, 2] for name in names]
    opened = next(each for each in shown if each[12])
    closed = next(each for each in shown if each[7])
    assert (opened[12], closed[7]) == tuple(counts) == (opened.sum(), closed.sum())


def test_loads_of_experts_count_tokens(tmp_path):
    mixture = kd.SparseMoE(3, 8, top_k=2, name="moe")
    model = plain_model(layers.Masking(), mixture, shape=(5, 4))
    x = normal(30, 5, 4)
    x[:20, 3:] = 0  # padding
    fit(model, TensorBoard(tmp_path, data=x), x)
    experts = np.asarray(mixture.routing(x, mask=np.any(x != 0, axis=-1)).experts)
    # 20 samples of 3 tokens and 10 of 5, each by two experts.
    counts = np.bincount(experts[experts >= 0].ravel(), minlength=3)
    assert counts.sum() == 2 * (20 * 3 + 10 * 5)
    loads = last(events_in(tmp_path), "validation", "moe_expert_load")
    assert loads.tolist() == one_a_number(*counts)


def test_steps_go_on(tmp_path):
    model = gated_model()
    board = TensorBoard(tmp_path, data=X[:8])
    both = [("train", "epoch_loss"), ("validation", "exit_index")]

    def steps():
        events = events_in(tmp_path)
        return [steps_of(events, *each) for each in both]

    fit(model, board, y=Y, epochs=2)
    assert steps() == [[0, 1]] * 2
    fit(model, board, y=Y, epochs=2)  # starts at 0 again
    assert steps() == [[0, 1, 2, 3]] * 2
    fit(model, board, y=Y, epochs=6, initial_epoch=4)
    assert steps() == [[0, 1, 2, 3, 4, 5]] * 2
    # Another object knows of nothing but what `fit` tells.
    fit(model, TensorBoard(tmp_path, data=X[:8]), y=Y, epochs=9, initial_epoch=8)
    assert steps() == [[0, 1, 2, 3, 4, 5, 8]] * 2


def test_frequencies(tmp_path):
    board = TensorBoard(
        tmp_path, data=X, data_freq=2, histogram_freq=3, update_freq=1000
    )
    fit(gated_model(), board, y=Y, epochs=5)
    events = events_in(tmp_path)
    for tag in ("exit_index", "gate_open_probability"):
        assert steps_of(events, "validation", tag) == [0, 2, 4]
    weights = [key for key in events if key[1].endswith("/histogram")]
    assert weights and all(steps_of(events, *key) == [0, 3] for key in weights)
    # Batches are written by the thousand, epochs all the same.
    assert steps_of(events, "train", "epoch_loss") == [0, 1, 2, 3, 4]


def test_training_is_what_it_would_be_without(tmp_path):
    histories, weights = [], []
    for data in (None, X):
        keras.utils.set_random_seed(0)
        model = gated_model()
        board = TensorBoard(tmp_path, data=data)
        histories.append(fit(model, board, y=Y, epochs=2))
        weights.append(model.get_weights())
    assert histories[0] == histories[1]
    for one, other in zip(*weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_data_of_every_kind(tmp_path):
    inputs = {"a": keras.Input((6,), name="a"), "b": keras.Input((6,), name="b")}
    h = layers.Add()([inputs["a"], inputs["b"]])
    gate = kd.SkipGate(layers.Dense(6), gate=First(), name="gate")
    model = keras.Model(inputs, gate(h))
    model.compile(keras.optimizers.SGD(0.0), "mse")
    given = {"a": X, "b": X[::-1]}
    dataset = tf.data.Dataset.from_tensor_slices((given, Y)).batch(7)
    shown = []
    for number, data in enumerate([given, dataset]):
        fit(model, TensorBoard(tmp_path / str(number), data=data), given, y=X)
        events = events_in(tmp_path / str(number))
        shown.append(last(events, "validation", "gate_open_probability"))
    np.testing.assert_array_equal(*shown)
    assert shown[0][:, 2].sum() == 80


def test_two_replicas(tmp_path):
    with two_replicas().scope():
        model = gated_model()
    fit(model, TensorBoard(tmp_path, data=X), y=Y)
    events = events_in(tmp_path)
    exits = model.predict_dynamic(X, verbose=0).exit_index
    counts = one_a_number(*np.bincount(exits, minlength=2))
    assert last(events, "validation", "exit_index").tolist() == counts
    probability = 1 / (1 + np.exp(-X[:, 0].astype("float64")))
    shown = last(events, "validation", "gate_open_probability")
    np.testing.assert_allclose(shown, buckets_of(probability))


class NoStep(keras.callbacks.Callback):
    def on_train_batch_begin(self, batch, logs=None):
        raise AssertionError("a step was made")


def test_what_cannot_be_is_said_before_the_first_step(tmp_path):
    plain = plain_model(layers.Dense(4))
    with pytest.raises(ValueError, match="`data` needs a model with exits.*sequential"):
        fit(plain, TensorBoard(tmp_path, data=X), callbacks=[NoStep()])
    fit(plain, TensorBoard(tmp_path))  # Keras' own work it does for any model
    file = tmp_path / "file"
    file.write_text("")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "train").write_text("")
    model = plain_model(kd.SkipGate(layers.Dense(6)))
    for path in (file, file / "logs", "/proc/logs", tmp_path / "taken"):
        for data in (None, X):
            with pytest.raises(ValueError, match=f"`log_dir` must be.*'{path}'"):
                fit(model, TensorBoard(path, data), callbacks=[NoStep()])
    # A folder that is there and writable is left as it is.
    assert not [p for p in tmp_path.rglob("*") if "written" in p.name]


def test_bad_data():
    with pytest.raises(TypeError, match="`data` is read after every.*generator"):
        TensorBoard(data=(X for _ in range(3)))
    endless = tf.data.Dataset.from_tensor_slices(X).batch(8).repeat()
    with pytest.raises(ValueError, match="`data` must come to an end"):
        TensorBoard(data=endless)
    with pytest.raises(ValueError, match="`data_freq`.*data_freq=0"):
        TensorBoard(data=X, data_freq=0)


def test_deep_copies(tmp_path):
    board = TensorBoard(tmp_path / "one", data={"x": X}, data_freq=3, histogram_freq=2)
    twin = copy.deepcopy(board)
    assert (twin.log_dir, twin.data_freq, twin.histogram_freq) == (board.log_dir, 3, 2)
    np.testing.assert_array_equal(twin.data["x"], X)
    dataset = tf.data.Dataset.from_tensor_slices(X).batch(8)
    with pytest.raises(TypeError, match="cannot pickle|Tensor"):
        copy.deepcopy(TensorBoard(data=dataset))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_each_trial_of_a_tuner_has_its_directory(tmp_path):
    keras_tuner = pytest.importorskip("keras_tuner")

    def build(hp):
        model = gated_model()
        model.optimizer.learning_rate = hp.Float("rate", 1e-4, 1e-1)
        return model

    tuner = keras_tuner.RandomSearch(
        build,
        keras_tuner.Objective("loss", "min"),
        max_trials=2,
        seed=0,
        directory=tmp_path / "tuner",
    )
    logs = tmp_path / "logs"
    tuner.search(X, Y, callbacks=[TensorBoard(logs, data=X)], verbose=0)
    runs = {run for run, tag in events_in(logs) if tag == "exit_index"}
    assert runs == {f"{k}/execution0/validation" for k in "01"}
