"""Trainings that are killed on the way and go on.

    python -m tests.faults.training FOLDER

TensorFlow is imported once: each training that is to be killed runs in a child of this
process. What came of those that went on, and of the same ones never killed, is written
to JSON files.
"""

import json
import os
import shutil
import signal
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
from keras import layers

import keras_dynamic as kd

CLASSES, EPOCHS, BATCHES = 3, 4, 5


def compiled(model):
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def begun():
    keras.backend.clear_session()  # names count from the beginning
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6,))
    return inputs, layers.BatchNormalization()(layers.Dense(8, "relu")(inputs))


def large():
    """A model that holds all that changes in `fit`, and no noise."""
    inputs, h = begun()
    early = kd.EarlyExit(CLASSES, loss_weight=0.5, name="exit_1")(h)
    gate = kd.SkipGate(layers.Dense(8), "straight_through", initial_open_rate=0.5)
    experts = kd.SparseMoE(3, 4, noise_stddev=0.0, balance_weight=0.1)
    h = layers.Flatten()(experts(layers.Reshape((2, 4))(gate(h))))
    late = layers.Dense(CLASSES, "softmax", name="final")(h)
    weights = kd.ExitSelector(2, "soft", temperature=5.0, entropy_weight=0.01)(h)
    return compiled(kd.DynamicModel(inputs, [early, late], selector=weights))


def small():
    inputs, h = begun()
    early = kd.EarlyExit(CLASSES, hidden_units=4, name="exit_1")(h)
    late = layers.Dense(CLASSES, "softmax", name="final")(layers.Dense(8, "relu")(h))
    return compiled(kd.DynamicModel(inputs, [early, late]))


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


def run(model, folder, *callbacks, save_freq="epoch", method="fit"):
    """What a training came to: all variables, and the history."""
    callbacks = list(callbacks)
    if folder is not None:
        callbacks.append(keras.callbacks.BackupAndRestore(str(folder), save_freq))
    x, y = data()
    history = getattr(model, method)(
        x,
        y,
        batch_size=8,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        callbacks=callbacks,
    )
    return results(model, history)


def fit_large(folder, *callbacks):
    return run(large(), folder, *schedules(), *callbacks)


def fit_small(folder, *callbacks):
    return run(small(), folder, *callbacks)


def fit_by_batches(folder, *callbacks):
    return run(small(), folder, *callbacks, save_freq=3)


def fit_exits(folder, *callbacks):
    return run(small(), folder, *callbacks, method="fit_exits")


def results(model, history):
    variables = {v.path: v for v in (*model.weights, *model.optimizer.variables)}
    return {
        "epochs": history.epoch,
        "history": history.history,
        "variables": {
            path: np.asarray(variable).tolist() for path, variable in variables.items()
        },
    }


def killed(train, *arguments):
    """Runs a training in a child, which has to end by SIGKILL."""
    child = os.fork()
    if child == 0:
        try:
            train(*arguments)
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


def save_over(path):
    """Dies when the second file is written but for its end."""
    model = small()
    model.save(path)
    shutil.copy(path, path.with_suffix(".before"))
    zipfile.ZipFile.close = lambda archive: kill()
    model.save(path)


def main(folder):
    folder = Path(folder)
    killed(save_over, folder / "model.keras")
    killed(fit_large, folder / "large", Kill(2, 1))
    killed(fit_exits, folder / "exits", Kill(2, 1))
    killed(fit_small, folder / "saving", KilledWhileSaving())
    killed(fit_by_batches, folder / "batches", Kill(2, 1))
    found = {"left": sorted(path.name for path in (folder / "saving").iterdir())}
    for name, train in (
        ("large", fit_large),
        ("exits", fit_exits),
        ("saving", fit_small),
        ("batches", fit_by_batches),
    ):
        found[name] = {"resumed": train(folder / name), "whole": train(None)}
    keras.saving.load_model(folder / "model.keras")
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
