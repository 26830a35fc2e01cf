"""One of two workers that train together, of which one may be killed.

    python -m tests.faults.workers FOLDER killed|again

`TF_CONFIG` in the environment says which worker it is.
"""

import json
import os
import shutil
import sys
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from tests.faults.training import Kill
from tests.models import worker

EPOCHS = 4


class Clock(keras.callbacks.Callback):
    """Notes when each batch was done, so that a silence can be measured."""

    def __init__(self):
        super().__init__()
        self.last = None

    def on_train_batch_end(self, batch, logs=None):
        self.last = time.monotonic()


def fit(strategy, backup, *callbacks):
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = worker.exits()
        model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    x, y = worker.data()
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(worker.BATCH)
    if backup is not None:
        restore = keras.callbacks.BackupAndRestore(str(backup), delete_checkpoint=False)
        callbacks = (restore, *callbacks)
    history = model.fit(batches, None, None, EPOCHS, 0, list(callbacks))
    variables = [*model.weights, *model.optimizer.variables]
    return {
        "epochs": history.epoch,
        "history": history.history,
        "variables": [np.asarray(variable).tolist() for variable in variables],
    }


def killed(folder, strategy, index):
    """Worker 1 dies; what worker 0 is told of it, and after how many seconds."""
    if index == 1:
        fit(strategy, folder / "backup", Kill(2, 1))
    clock = Clock()
    try:
        fit(strategy, folder / "backup", clock)
    except Exception as error:
        return {
            "error": type(error).__name__,
            "message": str(error),
            "seconds": time.monotonic() - clock.last,
        }
    return {"error": None}


def again(folder, strategy, index):
    """All goes on; the same without a death; and backups that do not agree."""
    own = folder / f"own_{index}"
    shutil.copytree(folder / "backup", own)
    if index == 1:
        (own / "training_metadata.json").write_text('{"epoch": 1, "batch": 0}')
    found = {"resumed": fit(strategy, folder / "backup"), "whole": fit(strategy, None)}
    try:
        fit(strategy, own)
    except RuntimeError as error:
        found["different"] = str(error)
    return found


def main(folder, part):
    folder = Path(folder)
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    run = {"killed": killed, "again": again}[part]
    found = run(folder, strategy, index)
    (folder / f"{part}_{index}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
