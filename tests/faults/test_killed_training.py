"""`fit` is killed and goes on from its backup, as if nothing had been."""

import json

import keras
import pytest

from tests import processes
from tests.faults import training
from tests.faults.training import BATCHES
from tests.processes import finish


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    finish(processes.start("tests.faults.training", folder))
    return folder


@pytest.fixture(scope="module")
def found(folder):
    return json.loads((folder / "found.json").read_text())


def check_equal(both, first_epoch):
    resumed, whole = both["resumed"], both["whole"]
    assert resumed["epochs"] == list(range(first_epoch, 4))
    assert resumed["variables"] == whole["variables"]
    assert resumed["history"].keys() == whole["history"].keys()
    for name, values in resumed["history"].items():
        assert values == whole["history"][name][first_epoch:], name


@pytest.mark.fault(
    case="kill -9 during `fit` with `BackupAndRestore`",
    made="SIGKILL in the middle of the third epoch of a model with exits, a selector, "
    "a gate, experts, a temperature schedule and a loss weight schedule",
    lost="the epoch that was going on, trained anew: weights, moving averages, "
    "optimizer state, step, temperature, loss weights and history are those of a "
    "training never killed, bit by bit",
)
def test_fit_goes_on(found):
    check_equal(found["large"], 2)
    history = found["large"]["resumed"]["history"]
    # 5 / 2 ** (step / 10) at the last step of the epoch, and 1 / (1 + epoch).
    temperatures = [5 / 2 ** ((BATCHES * epoch + 4) / 10) for epoch in (2, 3)]
    assert history["temperature"] == pytest.approx(temperatures)
    assert history["loss_weight"] == pytest.approx([1 / 3, 1 / 4])


@pytest.mark.fault(
    case="kill -9 during `fit_exits` with `BackupAndRestore`",
    made="SIGKILL in the middle of the third epoch",
    lost="the epoch that was going on, trained anew: all variables and the history are "
    "those of a training never killed, bit by bit",
)
def test_fit_exits_goes_on(found):
    check_equal(found["exits"], 2)


@pytest.mark.fault(
    case="kill -9 while `BackupAndRestore` saves",
    made="SIGKILL when half of the file of the third epoch is on the disk",
    lost="that epoch, trained anew from the whole backup of the second; the half file "
    "stays beside it under a hidden name",
)
def test_killed_while_saving(found):
    *parts, weights, metadata = found["left"]
    assert [weights, metadata] == ["latest.weights.h5", "training_metadata.json"]
    assert len(parts) == 1 and parts[0].startswith(".part-")
    check_equal(found["saving"], 2)


def test_backups_by_batches_begin_their_epoch_anew(found):
    """What Keras does with `save_freq`: the state of the ninth batch, which is the
    fourth of the second epoch, and then all of that epoch."""
    resumed = found["batches"]["resumed"]
    assert resumed["epochs"] == [1, 2, 3]
    assert resumed["variables"]["adam/iteration"] == 9 + 3 * BATCHES


@pytest.mark.fault(
    case="kill -9 during `save` over an older file",
    made="SIGKILL when the new file is written but for its end",
    lost="nothing: the older file is what it was, byte by byte, and loads",
)
def test_killed_in_save(folder):
    before, after = folder / "model.before", folder / "model.keras"
    assert before.read_bytes() == after.read_bytes()
    (part,) = folder.glob(".part-*.keras")  # what the killed one left
    assert part.stat().st_size


class Stop(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


def test_the_next_training_begins_at_its_own_beginning(tmp_path):
    """Keras keeps the epoch that `BackupAndRestore` found, for whatever comes next."""
    with pytest.raises(KeyboardInterrupt):
        training.fit_small(tmp_path, Stop())
    model = training.small()
    backup = keras.callbacks.BackupAndRestore(str(tmp_path))
    x, y = training.data()
    history = model.fit(x, y, epochs=3, verbose=0, callbacks=[backup])
    assert history.epoch == [2]
    assert model.fit_exits(x, y, epochs=1, verbose=0).epoch == [0]
    assert model.fit(x, y, epochs=2, verbose=0).epoch == [0, 1]
