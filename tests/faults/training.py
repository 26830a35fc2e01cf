"""Trainings that are killed on the way and go on.

    python -m tests.faults.training FOLDER

TensorFlow is imported once: each training that is to be killed runs in a child of this
process. What came of those that went on, and of the same ones never killed, is written
to JSON files.
"""

import json
import os
import signal
import sys
from pathlib import Path

import keras
import numpy as np
from keras import layers

import keras_dynamic as kd

CLASSES, EPOCHS, BATCHES = 3, 4, 5


def built(noise=False):
    """A model that holds all that changes in `fit`, without noise unless it is asked
    for."""
    keras.backend.clear_session()  # names count from the beginning
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6,))
    h = layers.BatchNormalization()(layers.Dense(8, "relu")(inputs))
    early = kd.EarlyExit(CLASSES, loss_weight=0.5, name="exit_1")(h)
    gate = "gumbel_straight_through" if noise else "straight_through"
    h = kd.SkipGate(layers.Dense(8), gate, target_rate=0.5, rate_weight=0.1)(h)
    experts = kd.SparseMoE(
        3, 4, noise_stddev="auto" if noise else 0.0, balance_weight=0.1
    )
    h = layers.Flatten()(experts(layers.Reshape((2, 4))(h)))
    h = layers.Dropout(0.3)(h) if noise else h
    late = layers.Dense(CLASSES, "softmax", name="final")(h)
    weights = kd.ExitSelector(2, "soft", temperature=5.0, entropy_weight=0.01)(h)
    model = kd.DynamicModel(inputs, [early, late], selector=weights)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def without_selector():
    keras.backend.clear_session()  # names count from the beginning
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6,))
    h = layers.BatchNormalization()(layers.Dense(8, "relu")(inputs))
    early = kd.EarlyExit(CLASSES, hidden_units=4, name="exit_1")(h)
    late = layers.Dense(CLASSES, "softmax", name="final")(layers.Dense(8, "relu")(h))
    model = kd.DynamicModel(inputs, [early, late])
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8 * BATCHES, 6)).astype("float32")
    return x, x[:, :CLASSES].argmax(axis=1)


class Kill(keras.callbacks.Callback):
    """SIGKILL after a batch of an epoch: without a word, and without writing."""

    def __init__(self, epoch, batch):
        super().__init__()
        self.at, self.epoch = (epoch, batch), None

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            kill()


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def schedules():
    decay = keras.optimizers.schedules.ExponentialDecay(5.0, 10, 0.5)
    return [
        kd.callbacks.TemperatureSchedule(decay),
        kd.callbacks.LossWeightSchedule(lambda epoch: 1 / (1 + epoch), "epoch"),
    ]


def fit(folder, *callbacks, save_freq="epoch", noise=False, initial_epoch=0):
    """What a training came to: all variables, and the history."""
    model = built(noise)
    callbacks = [*schedules(), *callbacks]
    if folder is not None:
        callbacks.append(keras.callbacks.BackupAndRestore(str(folder), save_freq))
    x, y = data()
    history = model.fit(
        x,
        y,
        batch_size=8,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        callbacks=callbacks,
        initial_epoch=initial_epoch,
    )
    return results(model, history)


def results(model, history):
    variables = {v.path: v for v in (*model.weights, *model.optimizer.variables)}
    return {
        "epochs": history.epoch,
        "history": history.history,
        "variables": {
            path: np.asarray(variable).tolist() for path, variable in variables.items()
        },
    }


def fit_exits(folder, *callbacks):
    model = without_selector()
    if folder is not None:
        callbacks = (*callbacks, keras.callbacks.BackupAndRestore(str(folder)))
    x, y = data()
    history = model.fit_exits(
        x,
        y,
        batch_size=8,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        callbacks=list(callbacks),
    )
    return results(model, history)


def killed(train, *arguments, **options):
    """Runs a training in a child, which has to end by SIGKILL."""
    child = os.fork()
    if child == 0:
        try:
            train(*arguments, **options)
        finally:
            os._exit(1)  # it ought to have been killed
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


class KilledWhileSaving(Kill):
    """Dies in the third backup, when half of its file is on the disk."""

    def __init__(self):
        super().__init__(None, None)
        self.count = 0

    def set_model(self, model):
        super().set_model(model)
        save = Path.write_bytes

        def write_bytes(path, content):
            self.count += 1
            if self.count < 3:
                return save(path, content)
            save(path, bytes(content)[: len(content) // 2])
            kill()

        Path.write_bytes = write_bytes


def main(folder):
    folder = Path(folder)
    killed(fit, folder / "epoch", Kill(2, 1))
    killed(fit, folder / "batch", Kill(2, 1), save_freq=3)
    killed(fit, folder / "saving", KilledWhileSaving())
    killed(fit, folder / "noise", Kill(2, 1), noise=True)
    killed(fit_exits, folder / "exits", Kill(2, 1))
    found = {"left": sorted(path.name for path in (folder / "saving").iterdir())}
    found["whole"] = fit(None)
    found["whole_exits"] = fit_exits(None)
    for name in ("epoch", "saving"):
        found[name] = fit(folder / name)
    found["batch"] = fit(folder / "batch", save_freq=3)
    found["noise"] = fit(folder / "noise", noise=True)
    found["whole_noise"] = fit(None, noise=True)
    found["exits"] = fit_exits(folder / "exits")
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
