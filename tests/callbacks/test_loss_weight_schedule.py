"""LossWeightSchedule: what is set when, wherever the weights in force come from."""

import contextlib
import copy

import keras
import numpy as np
import pytest

import keras_dynamic as kd
from keras_dynamic.callbacks import LossWeightSchedule
from tests.layers.checks import two_replicas
from tests.models.small_models import dense_data, dense_model

CE = "sparse_categorical_crossentropy"
HALVING = keras.optimizers.schedules.ExponentialDecay(8.0, 2, 0.5)


class Recorder(keras.callbacks.Callback):
    """Notes the weights in force of the exits that each batch is trained with."""

    def __init__(self):
        super().__init__()
        self.weights = []

    def on_train_batch_begin(self, batch, logs=None):
        weights = self.model.road.loss_weights
        self.weights.append([float(np.asarray(weight)) for weight in weights])


def fit(model, *callbacks, **arguments):
    """Weights of the exits in each of four batches an epoch, and the logs."""
    recorder = Recorder()
    x, y = dense_data(12)
    arguments = {"batch_size": 3, "verbose": 0, **arguments}
    history = model.fit(x, y, callbacks=[*callbacks, recorder], **arguments)
    return np.transpose(recorder.weights).tolist(), history.history


def halved(*steps):
    return pytest.approx([8 * 0.5 ** (step / 2) for step in steps])


def losses_of_exits(model, x, y):
    rows = np.arange(len(y))
    return [-np.log(p[rows, y]).mean() for p in model.predict(x, verbose=0)]


# What is set when


def test_one_schedule_for_each_batch():
    model = dense_model()
    (first, second, final), logs = fit(model, LossWeightSchedule(HALVING), epochs=2)
    assert first == second == halved(*range(8))
    assert final == [1.0] * 8
    assert logs["loss_weight"] == halved(3, 7)
    assert [model.get_layer("exit_2").loss_weight] == halved(7)
    # A second fit goes on.
    assert fit(model, LossWeightSchedule(HALVING))[0][0] == halved(8, 9, 10, 11)


def test_functions_by_exit_for_each_epoch():
    model = dense_model(loss_weight=0.25)
    schedule = {"exit_2": lambda epoch: 0.1 * epoch, "final": lambda epoch: 2}
    schedule = LossWeightSchedule(schedule, "epoch")
    (first, second, final), logs = fit(model, schedule, epochs=2)
    assert first == [0.25] * 8
    np.testing.assert_allclose(second, [0.0] * 4 + [0.1] * 4, rtol=1e-6)
    assert final == [2.0] * 8
    assert logs["exit_2_loss_weight"] == [0.0, 0.1]
    assert logs["final_loss_weight"] == [2.0, 2.0]
    assert "exit_1_loss_weight" not in logs and "loss_weight" not in logs
    assert model.get_layer("exit_2").get_config()["loss_weight"] == pytest.approx(0.1)


@pytest.mark.parametrize("given", [None, [3.0, 5, None], {"exit_1": np.float32(7)}])
@pytest.mark.parametrize("distilled", [False, True])
def test_the_loss_follows(given, distilled):
    """0.5 L_1 + 0.25 L_2 + L, and with alpha 1 and T 1 the divergence for L_1, L_2."""
    model = dense_model(compiled=False)
    arguments = {"distillation_weight": 1.0, "distillation_temperature": 1.0}
    arguments = arguments if distilled else {}
    model.compile(keras.optimizers.SGD(0.0), CE, given, **arguments)
    x, y = dense_data(12)
    first, second, final = losses_of_exits(model, x, y)
    if distilled:
        *early, last = model.predict(x, verbose=0)
        first, second = ((last * np.log(last / p)).sum(1).mean() for p in early)
    schedule = {"exit_1": lambda step: 0.5, "exit_2": lambda step: 0.25}
    _, logs = fit(model, LossWeightSchedule(schedule), batch_size=12)
    wanted = 0.5 * first + 0.25 * second + final
    assert logs["loss"] == pytest.approx([wanted], rel=1e-5)


def test_weights_of_compile_stay_where_there_is_no_schedule():
    model = dense_model(compiled=False)
    model.compile("sgd", CE, [0.5, 2.0, 3.0])
    (first, second, final), _ = fit(model, LossWeightSchedule({"exit_1": HALVING}))
    assert first == halved(0, 1, 2, 3)
    assert second == [2.0] * 4 and final == [3.0] * 4
    assert model.get_layer("exit_1").loss_weight == 1.0  # which is not in force
    assert model.get_compile_config()["loss_weights"] == [0.5, 2.0, 3.0]


def test_a_head_that_is_no_early_exit():
    inputs = keras.Input((6,))
    early = keras.layers.Dense(4, "softmax", name="early")(inputs)
    final = keras.layers.Dense(4, "softmax", name="final")(inputs)
    model = kd.DynamicModel(inputs, [early, final])
    model.compile("sgd", CE)
    (first, _), _ = fit(model, LossWeightSchedule(HALVING))
    assert first == halved(0, 1, 2, 3)


def test_early_exits_with_targets_in_any_other_model():
    inputs, targets = keras.Input((6,)), keras.Input((), dtype="int32")
    early = kd.EarlyExit(4, name="exit_1")
    both = keras.layers.Concatenate()([inputs, early(inputs, targets=targets)])
    model = keras.Model([inputs, targets], keras.layers.Dense(4, "softmax")(both))
    model.compile("sgd", CE)
    x, y = dense_data(12)
    schedule = LossWeightSchedule({"exit_1": lambda step: 0.0})
    logs = model.fit([x, y], y, callbacks=[schedule], verbose=0).history
    assert early.loss_weight == 0.0
    assert logs["exit_1_loss_weight"] == [0.0]


# Compiled, spread, saved, copied


@pytest.mark.parametrize("jit", [False, True])
def test_no_step_is_traced_again(jit):
    traces = []

    def loss(y_true, y_pred):
        traces.append(None)
        return keras.losses.sparse_categorical_crossentropy(y_true, y_pred)

    model = dense_model(compiled=False)
    model.compile("sgd", loss, [1.0, 1.0, 1.0], jit_compile=jit)
    fit(model, LossWeightSchedule(HALVING), epochs=1)
    once = len(traces)
    weights, _ = fit(model, LossWeightSchedule(HALVING), epochs=3)
    assert len(traces) == once
    assert weights[0] == halved(*range(4, 16))


@pytest.mark.parametrize("given", [None, [1.0, 0.5, 1.0]])
def test_two_replicas(given):
    """The same weights after training as on one device."""
    x, y = dense_data(16)

    def trained(scope):
        keras.utils.set_random_seed(0)
        with scope:
            model = dense_model(compiled=False)
            model.compile(keras.optimizers.SGD(0.5), CE, given)
        schedule = LossWeightSchedule({"exit_1": lambda step: 0.5 * step})
        arguments = dict(batch_size=4, shuffle=False, verbose=0, callbacks=[schedule])
        model.fit(x, y, **arguments)
        return [keras.ops.convert_to_numpy(w) for w in model.trainable_weights]

    alone = trained(contextlib.nullcontext())
    for one, other in zip(alone, trained(two_replicas().scope()), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("given", [None, {"exit_1": 0.5}])
def test_a_saved_model_goes_on(tmp_path, given):
    model = dense_model(compiled=False)
    model.compile("sgd", CE, given)
    schedule = LossWeightSchedule({"exit_1": HALVING})
    fit(model, schedule)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    # An exit's own weight comes back as it was; what `compile` was given, as given.
    weight = float(np.asarray(again.road.loss_weights[0]))
    assert [weight] == (halved(3) if given is None else [0.5])
    assert fit(again, copy.deepcopy(schedule))[0][0] == halved(4, 5, 6, 7)


def test_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = dense_model()
    finally:
        keras.config.set_dtype_policy("float32")
    # Steps that overflow in float16 are not counted, so that some may come twice.
    weights, logs = fit(model, LossWeightSchedule(lambda step: 0.5**step))
    assert weights[0] == sorted(weights[0], reverse=True)
    assert weights[0][0] == 1.0 > weights[0][-1]
    assert np.isfinite(logs["loss"]).all()


def test_verbose(capsys):
    schedule = {"exit_1": lambda step: 0.5, "final": lambda step: 1}
    fit(dense_model(), LossWeightSchedule(schedule, verbose=1))
    words = "Epoch 1: exit_1_loss_weight 0.5, final_loss_weight 1.0\n"
    assert words in capsys.readouterr().out


# Errors


@pytest.mark.parametrize(
    ("value", "error", "received"),
    [
        (-0.5, ValueError, "loss_weight=-0.5 "),
        (float("nan"), ValueError, "loss_weight=nan "),
        (float("inf"), ValueError, "loss_weight=inf "),
        (None, TypeError, "loss_weight=None "),
        (True, TypeError, "loss_weight=True "),
        (np.ones(2), ValueError, r"array of shape \(2,\)"),
    ],
)
def test_schedule_that_goes_wrong(value, error, received):
    """It says where, and no exit has changed at that step."""
    schedule = {"exit_1": lambda step: 0.5**step, "exit_2": lambda s: [1, value][s]}
    model = dense_model()
    with pytest.raises(error, match=f"Received:.* {received}") as caught:
        fit(model, LossWeightSchedule(schedule))
    assert "step 1" in str(caught.value)
    assert model.get_layer("exit_1").loss_weight == 1.0


@pytest.mark.parametrize("losses", [None, {"final": CE}])
def test_model_without_losses_of_early_exits(losses):
    model = dense_model(compiled=False)
    model.compile("sgd", losses)
    x, y = dense_data()
    schedule = LossWeightSchedule(HALVING)
    with pytest.raises(ValueError, match="early exits that have a loss.*without any"):
        model.fit(x, {"final": y}, callbacks=[schedule], verbose=0)


def test_names_that_are_not_there():
    model = dense_model(compiled=False)
    model.compile("sgd", {"exit_1": CE, "final": CE})
    schedule = LossWeightSchedule({"exit_2": HALVING, "exit_1": HALVING})
    x, y = dense_data()
    message = r"\['exit_1', 'final'\]. Received unknown keys: \['exit_2'\]"
    with pytest.raises(ValueError, match=message):
        model.fit(x, {"exit_1": y, "final": y}, callbacks=[schedule], verbose=0)


@pytest.mark.parametrize(
    ("error", "arguments", "received"),
    [
        (TypeError, {"schedule": 0.5}, "schedule=0.5"),
        (TypeError, {"schedule": {"exit_1": 0.5}}, "schedule=0.5"),
        (ValueError, {"schedule": {}}, "schedule={}"),
        (ValueError, {"update_freq": "step"}, "update_freq='step'"),
    ],
)
def test_error_at_construction(error, arguments, received):
    with pytest.raises(error, match=f"Received: {received}"):
        LossWeightSchedule(**{"schedule": HALVING, **arguments})
