"""One of two workers is killed: the other one says so, and both can go on."""

import json
import signal

import pytest

from tests import processes
from tests.processes import finish, free_addresses


def start(folder, part):
    addresses = free_addresses(2)
    tasks = [{"type": "worker", "index": index} for index in range(2)]
    return [
        processes.start(
            "tests.faults.workers",
            folder,
            part,
            TF_CONFIG=json.dumps({"cluster": {"worker": addresses}, "task": task}),
        )
        for task in tasks
    ]


@pytest.mark.fault(
    case="a worker dies in multi-worker training",
    made="SIGKILL to one of two processes in the middle of the third epoch",
    lost="the epoch that was going on, trained anew: the other worker raises "
    "`UnavailableError`; started again with `BackupAndRestore`, both reach the same "
    "weights and optimizer state as without the death",
)
def test_a_worker_dies_and_all_go_on(tmp_path):
    (tmp_path / "backup").mkdir()  # two callbacks may try to at the same moment
    survivor, victim = start(tmp_path, "killed")
    try:
        finish(survivor)
        told = json.loads((tmp_path / "killed_0.json").read_text())
        assert told["error"] == "UnavailableError", told
        assert "task:1" in told["message"]
        assert told["seconds"] < 120
        finish(victim, status=-signal.SIGKILL)
    finally:
        victim.kill()
    finish(*start(tmp_path, "again"))
    one, other = (
        json.loads((tmp_path / f"again_{index}.json").read_text()) for index in (0, 1)
    )
    assert one == other
    assert one["resumed"]["epochs"] == [2, 3]
    assert one["resumed"]["variables"] == one["whole"]["variables"]
    for name, values in one["resumed"]["history"].items():
        assert values == one["whole"]["history"][name][2:], name
    assert "epochs [2, 1]" in one["different"] and "copy one" in one["different"]
