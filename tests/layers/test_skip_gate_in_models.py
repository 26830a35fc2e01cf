"""A `SkipGate` in models: logs, warnings, losses, masks, replicas, files, errors."""

import copy
import re
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_dynamic._compat import get_mask
from keras_dynamic.layers.skip_gate import SkipGate
from tests.layers.checks import two_replicas
from tests.layers.small_gates import Attention, First, fitted, model_of, normal, odds
from tests.models.random_graphs import RowCounter

# Logs


def scores(x):
    """What the logs have to show for a gate that reads the first feature."""
    logits = x[:, 0].astype("float64")
    return np.mean(logits > 0), np.mean(1 / (1 + np.exp(-logits)))


def test_logs_of_fit_and_evaluate():
    x, other = normal(40, 3), normal(24, 3, seed=1) + 0.5
    model, history = fitted(SkipGate(layers.Dense(3), gate=First(), name="g"), x, 2, 16)
    rate, probability = scores(x)
    np.testing.assert_allclose(history["g_open_rate"], [rate, rate], rtol=1e-5)
    np.testing.assert_allclose(history["g_open_probability"][1], probability, rtol=1e-5)
    rate, probability = scores(other)
    y = np.zeros((24, 3))
    for _ in range(2):
        logs = model.evaluate(other, y, batch_size=7, verbose=0, return_dict=True)
        assert logs["g_open_rate"] == pytest.approx(rate)
        assert logs["g_open_probability"] == pytest.approx(probability, rel=1e-5)
        model.predict(-other, verbose=0)  # leaves no trace
    history = model.fit(x, x, validation_data=(other, y), verbose=0).history
    assert history["g_open_rate"][0] == pytest.approx(scores(x)[0])
    assert history["val_g_open_rate"][0] == pytest.approx(rate)


def test_logs_of_a_nested_gate_count_who_got_there():
    flip = keras.Sequential([layers.Lambda(lambda x: x[:, ::-1]), First()])
    inner = SkipGate(layers.Dense(2), gate=flip, name="inner")
    outer = SkipGate(keras.Sequential([inner]), gate=First(), name="outer")
    model = model_of(outer, 2)
    model.compile("sgd", "mse")
    # Two of four get to the inner gate, which lets one of them through.
    x = np.array([[1.0, 1], [2, -1], [-1, 1], [-2, 3]])
    logs = model.evaluate(x, x, verbose=0, return_dict=True)
    assert logs["outer_open_rate"] == 0.5 and logs["inner_open_rate"] == 0.5
    expected = (1 / (1 + np.exp(-1)) + 1 / (1 + np.exp(1))) / 2
    assert logs["inner_open_probability"] == pytest.approx(expected)


def test_inference_writes_to_no_variable(tmp_path):
    x = normal(8, 3)
    model, _ = fitted(SkipGate(layers.Dense(3), gate=First()), x)
    model.evaluate(x, x, verbose=0)
    known = [*model.weights, *model.metrics_variables]
    assert any("total" in variable.path for variable in known)
    before = [variable.numpy() for variable in known]
    model.predict(x + 1, verbose=0)
    model(x + 1, training=False)
    tf.function(model)(x + 1, training=False)
    model.export(tmp_path / "exported", verbose=False)
    exported = tf.saved_model.load(tmp_path / "exported")
    exported.serve(x + 1)
    for variable, value in zip(known, before, strict=True):
        np.testing.assert_array_equal(variable, value, err_msg=variable.path)


def test_a_call_during_fit_is_not_in_its_logs():
    class Calls(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model(np.full((100, 3), -1, "float32"), training=False)

    x = normal(16, 3)
    gate = SkipGate(layers.Dense(3), gate=First(), name="g")
    _, history = fitted(gate, x, callbacks=[Calls()])
    assert history["g_open_rate"][0] == pytest.approx(scores(x)[0])


# Collapse


@pytest.mark.parametrize(
    "logit, epochs, rows, target, message",
    [
        (-10.0, 1, 32, None, "'g' is closed for every sample"),
        (10.0, 1, 32, None, "'g' is open for every sample"),
        # p = 0.9 is no collapse by itself, but to be always open for three epochs.
        (np.log(9), 3, 32, None, "'g' is open for every sample"),
        (-np.log(9), 3, 32, None, "'g' is closed for every sample"),
        (np.log(9), 2, 32, None, None),
        (10.0, 3, 32, 1.0, None),  # as asked for
        (-10.0, 1, 32, 1.0, "'g' is closed"),
        (-10.0, 3, 31, None, None),  # too few samples to tell
    ],
)
def test_collapse(logit, epochs, rows, target, message):
    gate = SkipGate(layers.Dense(3), gate=odds(logit), target_rate=target, name="g")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted(gate, normal(rows, 3), epochs, 8)
    found = [str(each.message) for each in caught if "Gate" in str(each.message)]
    assert len(found) == (message is not None)
    if message:
        assert message in found[0] and "`target_rate`" in found[0]


def test_no_warning_of_a_healthy_gate():
    x = normal(64, 3)
    model, _ = fitted(SkipGate(layers.Dense(3), gate=First()), x, 4, 16)
    model.evaluate(x, x, verbose=0)  # warnings are errors


def test_batches_are_not_epochs_when_run_eagerly():
    x = normal(64, 3)
    fitted(SkipGate(layers.Dense(3)), x, 1, 16, run_eagerly=True)


# Losses


def test_losses_of_the_layer_count_in_training_only():
    x = normal(8, 3)
    for additive in (False, True):
        f = layers.Dense(3, activity_regularizer="l2", kernel_regularizer="l1")
        gate = SkipGate(f, gate=First(), additive=additive)
        model = model_of(gate, 3)
        model.compile("sgd", "mse")
        kernel_loss = 0.01 * np.abs(f.kernel).sum()
        # Of the whole batch, divided by its size.
        activity_loss = 0.01 * np.sum(np.square(f(x))) / 8
        gate(x, training=True)
        assert float(sum(gate.losses)) == pytest.approx(
            kernel_loss + activity_loss, rel=1e-4
        )
        for eagerly in (False, True):
            model.compile("sgd", "mse", run_eagerly=eagerly)
            y = model.predict(x, verbose=0)
            logs = model.evaluate(x, y, verbose=0, return_dict=True)
            assert logs["loss"] == pytest.approx(kernel_loss, rel=1e-4)


@pytest.mark.parametrize("additive", [False, True])
def test_losses_of_the_shortcut_count_in_training_only(additive):
    x = normal(8, 3)
    shortcut = layers.Dense(3, activity_regularizer="l2")
    gate = SkipGate(layers.Dense(3), gate=First(), shortcut=shortcut, additive=additive)
    model = model_of(gate, 3)
    model.compile("sgd", "mse")
    y = model.predict(x, verbose=0)
    assert model.evaluate(x, y, verbose=0)[0] == pytest.approx(0, abs=1e-6)


def test_the_cost_that_nobody_filled_in():
    gate = SkipGate(layers.Dense(3), gate=odds(0.0), cost_weight=0.4, name="g")
    x = normal(4, 3)
    with pytest.warns(UserWarning, match="'g' counts with cost=1.*`kd.bind_costs"):
        gate(x, training=True)
    assert float(gate.losses[0]) == pytest.approx(0.4 * 0.5)  # p = 1/2
    gate.bind_costs([0.25])
    gate(x, training=True)
    assert float(gate.losses[0]) == pytest.approx(0.4 * 0.5 * 0.25)
    fixed = SkipGate(layers.Dense(3), cost=0.5)
    fixed.bind_costs([0.25])
    assert float(fixed.current_cost) == 0.5


# Hard inputs


@pytest.mark.parametrize("road", ["eager", "graph", "xla"])
def test_nan_logits_are_closed(road):
    counter = RowCounter()
    gate = SkipGate(keras.Sequential([counter, layers.Rescaling(3.0)]), gate=First())
    x = np.array([[np.nan, 1], [1, 2], [-1, 3]], "float32")
    call = gate
    if road != "eager":
        call = tf.function(gate, jit_compile=road == "xla", autograph=False)
    np.testing.assert_array_equal(call(x), [[np.nan, 1], [3, 6], [-1, 3]])
    assert counter.seen.numpy() == (3 if road == "xla" else 1)
    training = gate(x, training=True).numpy()
    assert np.isnan(training[0]).all() and not np.isnan(training[1:]).any()


@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("length", [6, None])
def test_masks(length, additive):
    ids = keras.Input((length,), dtype="int32")
    embedding = layers.Embedding(9, 4, mask_zero=True, embeddings_initializer="normal")
    tokens = embedding(ids)
    gate = SkipGate(Attention(), additive=additive)
    hidden = gate(tokens)
    model = keras.Model(ids, layers.GlobalAveragePooling1D()(hidden))
    x = np.random.default_rng(0).integers(1, 9, (7, 6))
    lengths = [6, 1, 3, 2, 5, 4, 6]
    for row, used in zip(x, lengths, strict=True):
        row[used:] = 0
    # Sets the gate so that it is open for some.
    gate.decider.classifier.kernel.assign(normal(16, 1))
    logits = [float(gate.decider(embedding(r[:n][None]))[0, 0]) for r, n in _rows(x)]
    middle = np.mean(np.sort(logits)[3:5])
    gate.decider.classifier.bias.assign_sub([middle])
    expected, opened = [], 0
    for row, used in _rows(x):
        alone = embedding(row[:used][None])  # its own tokens and no padding
        is_open = float(gate.decider(alone)[0, 0]) > 0
        run = gate.layer(alone) + (alone if additive else 0)
        expected.append(np.mean(run if is_open else alone, axis=1)[0])
        opened += is_open
    assert 0 < opened < 7
    for answer in (model.predict(x, verbose=0), model(x)):
        np.testing.assert_allclose(answer, expected, atol=1e-5)
    output = gate(embedding(x))
    np.testing.assert_array_equal(get_mask(output), x > 0)


def _rows(x):
    return [(row, int((row > 0).sum())) for row in x]


@pytest.mark.filterwarnings("ignore:(?s).*does not support masking:UserWarning")
def test_a_mask_ends_where_open_lengths_change():
    ids = keras.Input((None,), dtype="int32")
    tokens = layers.Embedding(9, 4, mask_zero=True)(ids)
    hidden = SkipGate(layers.Conv1D(4, 3, strides=2, padding="same"))(tokens)
    model = keras.Model(ids, layers.GlobalAveragePooling1D()(hidden))
    assert model(np.array([[1, 2, 3, 0, 0, 0]])).shape == (1, 4)


def test_two_replicas_see_one_rate():
    """The penalty is of the rate of all, whose halves have 1 and 0."""
    x = np.array([[1.0], [2], [-1], [-3]], "float32")

    def history():
        gate = SkipGate(
            layers.Dense(1, use_bias=False, kernel_initializer="ones"),  # f(x) = x
            "straight_through",
            target_rate=0.75,
            rate_weight=1.0,
            gate=First(),
            name="g",
        )
        _, history = fitted(gate, x)
        return history

    with two_replicas().scope():
        both = history()
    # (1/2 - 3/4)^2 = 1/16, beside the squares of the answers: 15/4.
    assert both["loss"][0] == pytest.approx(15 / 4 + 1 / 16)
    assert both["g_open_rate"][0] == 0.5
    for name, values in history().items():
        assert both[name] == pytest.approx(values), name


# Copies and files


@pytest.mark.parametrize("trained", [False, True])
def test_copies_and_files(trained, tmp_path):
    x = normal(7, 3)
    f = keras.Sequential([layers.Dense(4, "tanh"), SkipGate(layers.Dense(4))])
    gate = SkipGate(f, gate=First(), additive=True, name="g")
    model = model_of(gate, 3)
    if trained:
        model.compile("sgd", "mse")
        model.fit(x, normal(7, 4), verbose=0)
    expected = model.predict(x, verbose=0)
    model.save(tmp_path / "model.keras")
    model.export(tmp_path / "exported", verbose=False)
    clone = keras.models.clone_model(model)
    assert not {id(w) for w in clone.weights} & {id(w) for w in model.weights}
    clone.set_weights(model.get_weights())
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for other in (copy.deepcopy(model), clone, loaded):
        np.testing.assert_allclose(other.predict(x, verbose=0), expected, atol=1e-6)
    exported = tf.saved_model.load(tmp_path / "exported")
    served = exported.serve
    np.testing.assert_allclose(served(x), expected, atol=1e-6)
    for rows in (slice(1), slice(1, 2), slice(3, 3)):
        np.testing.assert_allclose(served(x[rows]), expected[rows], atol=1e-6)
    open_rows = x[x[:, 0] > 0]
    np.testing.assert_allclose(served(open_rows), expected[x[:, 0] > 0], atol=1e-6)


# Errors


def dense(**arguments):
    return SkipGate(layers.Dense(4, name="f"), **arguments)


ERRORS = [
    (
        TypeError,
        lambda: SkipGate("relu"),
        "`layer` must be a Keras layer.*layer='relu'",
    ),
    (ValueError, lambda: dense(estimator="hard"), "Received: estimator='hard'"),
    (ValueError, lambda: dense(temperature=0), "Received: temperature=0"),
    (
        ValueError,
        lambda: dense(shortcut="conv"),
        "'auto', a layer or None. Received: shortcut='conv'",
    ),
    (TypeError, lambda: dense(shortcut=3), "`shortcut` must be a Keras.*shortcut=3"),
    (TypeError, lambda: dense(gate=3), "`gate` must be a Keras layer.*gate=3 of type"),
    (ValueError, lambda: dense(target_rate=0), "(0, 1]. Received: target_rate=0"),
    (ValueError, lambda: dense(target_rate=1.1), "(0, 1]. Received: target_rate=1.1"),
    (ValueError, lambda: dense(target_rate=-1), "target_rate=-1"),
    (TypeError, lambda: dense(target_rate="1"), "`target_rate` must be a number"),
    (
        ValueError,
        lambda: dense(initial_open_rate=1),
        "(0, 1). Received: initial_open_r",
    ),
    (
        ValueError,
        lambda: dense(initial_open_rate=0),
        "(0, 1). Received: initial_open_r",
    ),
    (
        ValueError,
        lambda: dense(rate_weight=1),
        "`rate_weight` needs a `target_rate`. "
        "Received: rate_weight=1, target_rate=None",
    ),
    (
        ValueError,
        lambda: dense(rate_weight=-1),
        "`rate_weight` must be finite and >= 0",
    ),
    (ValueError, lambda: dense(cost_weight=np.inf), "`cost_weight` must be finite"),
    (ValueError, lambda: dense(cost=-0.5), "`cost` must be finite.*cost=-0.5"),
    (TypeError, lambda: dense(cost="flops"), "`cost` must be a number.*cost='flops'"),
    (ValueError, lambda: dense(data_format="nhwc"), "Received: data_format='nhwc'"),
    (
        ValueError,
        lambda: dense(gate=odds(1.0), initial_open_rate=0.5),
        "bias of the built-in gate.*initial_open_rate=0.5 with gate=",
    ),
    (
        ValueError,
        lambda: dense(shortcut=None)(keras.Input((3,))),
        "`shortcut=None` needs a `layer` that keeps shapes. Received: layer 'f', which "
        "makes (4,) of (3,)",
    ),
    (
        ValueError,
        lambda: dense(gate=layers.Dense(2))(keras.Input((3,))),
        "`gate` must give one logit a sample.*shape (None, 2) for an input of shape "
        "(None, 3)",
    ),
    (ValueError, lambda: dense(gate=odds(1.0))(keras.Input((5, 3))), "(None, 5, 1)"),
    (
        ValueError,
        lambda: dense(shortcut=layers.Dense(5, name="s"))(keras.Input((3,))),
        "`shortcut` must give what `layer` gives, of shape (None, 4). Received: "
        "shortcut 's', which gives (None, 5)",
    ),
    (
        ValueError,
        lambda: SkipGate(layers.Flatten(name="f"))(keras.Input((2, 3))),
        "finds no projection from (2, 3) to (6,).*layer 'f'",
    ),
    (
        ValueError,
        lambda: dense()([keras.Input((3,))] * 2),
        "`inputs` must be one tensor",
    ),
]


@pytest.mark.parametrize("error, make, message", ERRORS)
def test_errors(error, make, message):
    pattern = ".*".join(re.escape(part) for part in message.split(".*"))
    with pytest.raises(error, match=pattern):
        make()


def test_a_dict_of_inputs_is_refused():
    with pytest.raises(ValueError, match="`inputs` must be one tensor"):
        dense()({"a": keras.Input((3,))})
