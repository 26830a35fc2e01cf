"""One process of a search, started by tests: `worker.py directory trials [kill_at]`.

With `kill_at` it kills itself in that trial's second epoch, as a machine that fails
would: without a word, and without writing anything.
"""

import os
import signal
import sys

import keras

from tests.tuning.searches import hypermodel, search


class Killed(keras.callbacks.Callback):
    """SIGKILL at the second epoch of a trial."""

    def __init__(self, directory, trial):
        super().__init__()
        self.folder = f"{directory}/search/trial_{trial}"

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1 and os.path.isdir(self.folder):
            os.kill(os.getpid(), signal.SIGKILL)


def main(directory, trials, kill_at=None):
    keras.utils.set_random_seed(7)
    tuner = hypermodel().tuner(
        "random",
        max_trials=int(trials),
        seed=11,
        directory=directory,
        project_name="search",
    )
    search(tuner, callbacks=[] if kill_at is None else [Killed(directory, kill_at)])


if __name__ == "__main__":
    main(*sys.argv[1:])
