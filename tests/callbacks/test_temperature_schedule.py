import copy
import warnings

import keras
import numpy as np
import pytest
from keras import ops

from keras_dynamic.callbacks import TemperatureSchedule
from keras_dynamic.layers.gumbel_softmax import GumbelSoftmax
from tests.layers.checks import two_replicas

X = np.random.default_rng(0).normal(size=(12, 4)).astype("float32")
Y = np.eye(3, dtype="float32")[[0, 1, 2] * 4]
HALVING = keras.optimizers.schedules.ExponentialDecay(8.0, 2, 0.5)


class Recorder(keras.callbacks.Callback):
    """Notes the temperature that each batch is trained with."""

    def __init__(self, layer=None, stop_at=None):
        super().__init__()
        self.layer, self.stop_at, self.temperatures = layer, stop_at, []

    def on_train_batch_begin(self, batch, logs=None):
        if self.stop_at == len(self.temperatures):
            raise InterruptedError
        layer = self.layer or self.model.get_layer("choice")
        self.temperatures.append(layer.temperature)


def small_model(*, optimizer="sgd", estimator="gumbel_softmax", **compile):
    inputs = keras.Input((4,))
    layer = GumbelSoftmax(9.0, estimator, name="choice")
    outputs = layer(keras.layers.Dense(3)(inputs))
    model = keras.Model(inputs, outputs)
    model.compile(optimizer, "mse", **compile)
    return model


def fit(model, *callbacks, **arguments):
    """Temperatures of the batches, four an epoch, and those in the logs."""
    recorder = Recorder()
    arguments = {"batch_size": 3, "verbose": 0, **arguments}
    history = model.fit(X, Y, callbacks=[*callbacks, recorder], **arguments)
    return recorder.temperatures, history.history["temperature"]


def halved(*steps):
    return pytest.approx([8 * 0.5 ** (step / 2) for step in steps])


# What is set when


def test_schedule_for_each_batch():
    model = small_model()
    schedule = TemperatureSchedule(HALVING)
    temperatures, logged = fit(model, schedule, epochs=2)
    assert temperatures == halved(*range(8))
    assert logged == halved(3, 7)
    # A second fit goes on.
    assert fit(model, schedule)[0] == halved(8, 9, 10, 11)


def test_function_for_each_epoch():
    steps = []

    def schedule(step):
        steps.append(step)
        return [2, 0.3, 0.1][step]

    model = small_model()
    temperatures, logged = fit(model, TemperatureSchedule(schedule, "epoch"), epochs=2)
    assert temperatures == [2.0] * 4 + [0.3] * 4
    assert logged == [2.0, 0.3]
    assert steps == [0, 1]
    assert all(type(step) is int for step in steps)
    assert model.get_layer("choice").get_config()["temperature"] == 0.3
    schedule = TemperatureSchedule(schedule, "epoch")
    assert fit(model, schedule, initial_epoch=2, epochs=3)[0] == [0.1] * 4


@pytest.mark.parametrize(
    "schedule",
    [lambda step: ops.exp(-0.5 * step), lambda step: np.exp(np.float32(-0.5 * step))],
)
def test_function_may_give_a_tensor_or_a_numpy_number(schedule):
    temperatures, _ = fit(small_model(), TemperatureSchedule(schedule))
    assert temperatures == pytest.approx(np.exp([0, -0.5, -1, -1.5]))


@pytest.fixture(params=["float32", "mixed_float16"])
def policy(request):
    """In mixed_float16 Keras puts the optimizer into one that scales the loss."""
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield
    keras.config.set_dtype_policy(previous)


@pytest.mark.usefixtures("policy")
def test_steps_are_those_of_the_optimizer():
    def model():  # one update of the weights is two batches
        accumulating = keras.optimizers.SGD(gradient_accumulation_steps=2)
        return small_model(optimizer=accumulating)

    schedule = TemperatureSchedule(HALVING)
    assert fit(model(), schedule)[0] == halved(0, 0, 1, 1)
    assert fit(model(), schedule, initial_epoch=2, epochs=3)[0] == halved(4, 4, 5, 5)


def test_one_execution_of_two_batches_has_one_temperature():
    model = small_model(steps_per_execution=2)
    assert fit(model, TemperatureSchedule(HALVING))[0] == halved(0, 2)


def test_two_replicas():
    with two_replicas().scope():
        model = small_model()
    temperatures, _ = fit(model, TemperatureSchedule(HALVING), batch_size=6)
    assert temperatures == halved(0, 1)


# Which layers


@keras.saving.register_keras_serializable(package="test_callbacks")
class Holder(keras.layers.Layer):
    """Holds layers as a layer may: as attributes, in lists, in dicts."""

    def __init__(self, *layers):
        super().__init__()
        self.first, second, third = layers
        self.more = [{"second": second}, (third,)]

    def build(self, input_shape):
        self.first.build(input_shape)

    def call(self, inputs):
        return self.first(inputs)


def deep_model():
    layers = [GumbelSoftmax(9.0, name=f"choice_{index}") for index in range(5)]
    inputs = keras.Input((2, 4))
    hidden = keras.layers.Dense(4)(inputs)
    hidden = keras.layers.TimeDistributed(layers[0])(hidden)
    hidden = keras.Sequential([keras.Sequential([layers[1]])])(hidden)
    hidden = Holder(*layers[2:])(hidden)
    model = keras.Model(inputs, keras.layers.Flatten()(hidden))
    model.compile("sgd", "mse")
    return model, layers


def test_layers_are_found_wherever_they_are():
    model, layers = deep_model()
    model.fit(
        np.zeros((2, 2, 4)),
        np.zeros((2, 8)),
        callbacks=[TemperatureSchedule(lambda step: 0.5)],
        verbose=0,
    )
    assert [layer.temperature for layer in layers] == [0.5] * 5


def test_layers_by_name():
    model, layers = deep_model()
    model.fit(
        np.zeros((2, 2, 4)),
        np.zeros((2, 8)),
        callbacks=[
            TemperatureSchedule(lambda step: 0.5, layers=["choice_0", "choice_3"])
        ],
        verbose=0,
    )
    temperatures = [layer.temperature for layer in layers]
    assert temperatures == [0.5, 9.0, 9.0, 0.5, 9.0]


# Interrupted and copied


def test_deep_copies():
    schedule = TemperatureSchedule(HALVING)
    for _ in range(2):  # before it has been used, and after
        schedule = copy.deepcopy(schedule)
        model = small_model()
        assert fit(model, schedule)[0] == halved(0, 1, 2, 3)


@pytest.mark.parametrize("update_freq", ["batch", "epoch"])
def test_backup_and_restore(tmp_path, update_freq):
    def callbacks(recorder):
        backup = keras.callbacks.BackupAndRestore(tmp_path, delete_checkpoint=False)
        return [backup, TemperatureSchedule(HALVING, update_freq), recorder]

    arguments = {"batch_size": 3, "epochs": 3, "verbose": 0}
    with pytest.raises(InterruptedError):
        small_model().fit(X, Y, callbacks=callbacks(Recorder(stop_at=6)), **arguments)
    recorder = Recorder()
    small_model().fit(X, Y, callbacks=callbacks(recorder), **arguments)
    steps = range(4, 12) if update_freq == "batch" else [1] * 4 + [2] * 4
    assert recorder.temperatures == halved(*steps)


# Adam's weights are not made yet when the model's are loaded, which Keras says; SGD's
# count is, but it is that of the best epoch, here the first of two.
@pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer")
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("update_freq", ["batch", "epoch"])
def test_weights_reloaded_into_a_new_model(tmp_path, update_freq, optimizer):
    schedule = TemperatureSchedule(HALVING, update_freq)
    model = small_model(optimizer=optimizer)
    fit(model, schedule)
    model.save_weights(tmp_path / "best.weights.h5")

    model = small_model(optimizer=optimizer)
    model.load_weights(tmp_path / "best.weights.h5")
    copied = copy.deepcopy(schedule)
    temperatures, _ = fit(model, copied, initial_epoch=2, epochs=4)
    steps = range(8, 16) if update_freq == "batch" else [2] * 4 + [3] * 4
    assert temperatures == halved(*steps)


@pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer")
def test_hyperband(tmp_path):
    keras_tuner = pytest.importorskip("keras_tuner")
    seen = {}

    class Notes(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.first_step = 4 * epoch

        def on_train_batch_begin(self, batch, logs=None):
            temperature = self.model.get_layer("choice").temperature
            seen.setdefault(self.first_step + batch, []).append(temperature)

    def build(hp):
        return small_model(optimizer=keras.optimizers.Adam(hp.Float("rate", 0.1, 1)))

    keras_tuner.Hyperband(
        build,
        keras_tuner.Objective("loss", "min"),
        max_epochs=2,
        factor=2,
        seed=0,
        directory=tmp_path,
    ).search(
        X, Y, batch_size=3, callbacks=[TemperatureSchedule(HALVING), Notes()], verbose=0
    )
    assert len(seen) == 8
    for step, temperatures in seen.items():
        assert temperatures == halved(*[step] * len(temperatures))


def test_epochs_before_of_unknown_length():
    def batches(number):
        yield from [(X[:3], Y[:3])] * number

    def temperatures(number, **arguments):
        recorder = Recorder()
        small_model().fit(
            batches(number),
            initial_epoch=3,
            epochs=4,
            callbacks=[TemperatureSchedule(HALVING), recorder],
            verbose=0,
            **arguments,
        )
        return recorder.temperatures

    assert temperatures(3, steps_per_epoch=2) == halved(6, 7)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # Keras finds the end of the data only when it asks for a third batch.
        assert temperatures(2) == halved(0, 1, 2)
    assert any("starts at epoch 3" in str(warning.message) for warning in caught)


# Reports and errors


def test_verbose(capsys):
    fit(small_model(), TemperatureSchedule(lambda step: 0.5, verbose=1), epochs=2)
    assert "Epoch 2: temperature 0.5\n" in capsys.readouterr().out
    fit(small_model(), TemperatureSchedule(lambda step: 0.5))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "value, error, received",
    [
        (0, ValueError, "temperature=0 "),
        (-0.5, ValueError, "temperature=-0.5 "),
        (float("nan"), ValueError, "temperature=nan "),
        (None, TypeError, "temperature=None of type .* "),
        ("1", TypeError, "temperature='1' of type .* "),
    ],
)
@pytest.mark.parametrize("update_freq, unit", [("batch", "step"), ("epoch", "epoch")])
def test_schedule_that_goes_wrong(update_freq, unit, value, error, received):
    schedule = TemperatureSchedule(lambda step: [1, 0.5, value][step], update_freq)
    message = f"Received: {received}from `schedule` at {unit} 2, for layer 'choice'"
    model = small_model()
    with pytest.raises(error, match=message):
        fit(model, schedule, epochs=3)
    assert model.get_layer("choice").temperature == 0.5


def test_reinmax_stays_above_one():
    model = small_model(estimator="reinmax")
    schedule = TemperatureSchedule(lambda step: 1.5 - 0.5 * step)
    with pytest.raises(ValueError, match=">= 1 .*temperature=0.5 .* at step 2"):
        fit(model, schedule)
    assert model.get_layer("choice").temperature == 1


def test_model_without_a_temperature():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)], name="plain")
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="`current_temperature`.* model 'plain'"):
        fit(model, TemperatureSchedule(HALVING))


def test_names_that_are_not_there():
    schedule = TemperatureSchedule(HALVING, layers=["choice", "dense", "other"])
    message = r"\['choice'\]. Received: \['dense', 'other'\]"
    with pytest.raises(ValueError, match=message):
        fit(small_model(), schedule)


def test_model_without_an_optimizer():
    class Untrained(keras.Model):
        def train_step(self, data):
            return {"loss": 0.0}

    inputs = keras.Input((4,))
    model = Untrained(inputs, GumbelSoftmax(name="choice")(inputs))
    model.compile(optimizer=None, loss="mse")
    with pytest.raises(ValueError, match="a model without an optimizer"):
        fit(model, TemperatureSchedule(HALVING))


@pytest.mark.parametrize(
    "error, arguments, received",
    [
        (TypeError, {"schedule": 0.5}, "schedule=0.5"),
        (ValueError, {"update_freq": "step"}, "update_freq='step'"),
        (ValueError, {"update_freq": 2}, "update_freq=2"),
        (TypeError, {"layers": "choice"}, "layers='choice'"),
        (TypeError, {"layers": [3]}, r"layers=\[3\]"),
    ],
)
def test_error_at_construction(error, arguments, received):
    with pytest.raises(error, match=f"Received: {received}"):
        TemperatureSchedule(**{"schedule": HALVING, **arguments})
