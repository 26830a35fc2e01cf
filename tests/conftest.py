"""What every test shares: quiet TensorFlow, few threads, seeds, and the data sets."""

import contextlib
import os

# TensorFlow reads these when it is imported, so they are set before anything else.
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MPLBACKEND", "Agg")
# Several processes can share a GPU only if none of them takes all its memory at once.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")


def _divide_threads():
    """Gives each process of pytest-xdist its share of the cores.

    TensorFlow starts one thread a core in each process; with N processes that makes N
    threads a core, which only wait for one another.
    """
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if processes > 1:
        threads = max(1, (os.cpu_count() or 1) // processes)
        os.environ.setdefault("TF_NUM_INTRAOP_THREADS", str(threads))
        # Two replicas that wait for each other take a thread each.
        os.environ.setdefault("TF_NUM_INTEROP_THREADS", str(max(2, threads)))
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))


@contextlib.contextmanager
def _silent():
    """Keeps the process' stderr silent: what TensorFlow logs while it starts comes
    before its log level counts, and pytest would show it after its own last line."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


_divide_threads()

with _silent():
    import keras
    import tensorflow as tf

    HAS_GPU = bool(tf.config.list_physical_devices("GPU"))
    # Two of them, so that a test can train on two replicas on any machine. TensorFlow
    # takes this only before it first computes something.
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * 2,
    )

import hypothesis  # noqa: E402
import pytest  # noqa: E402

from benchmarks import data  # noqa: E402
from keras_dynamic.models import pools  # noqa: E402

# The same examples in every run, so that a failure is there again when it is looked
# for; `--hypothesis-profile=explore` draws new ones. No deadline: the first example of
# a test pays for TensorFlow's tracing.
hypothesis.settings.register_profile(
    "repeatable", deadline=None, derandomize=True, database=None
)
hypothesis.settings.register_profile("explore", deadline=None, print_blob=True)
hypothesis.settings.load_profile("repeatable")


def pytest_collection_modifyitems(items):
    # The documentation takes one process minutes; last, the other would have to wait.
    items.sort(key=lambda item: item.path.name != "test_documentation.py")
    if HAS_GPU:
        return
    skip = pytest.mark.skip(reason="TensorFlow sees no GPU")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def fixed_seed():
    """Seeds Python, NumPy and TensorFlow, so that a test depends on no other."""
    keras.utils.set_random_seed(1234)


@pytest.fixture(autouse=True)
def no_trials(monkeypatch):
    """Long inputs run as they begin: how fast a machine is decides nothing in a test.

    After some seconds of work XLA and the whole network at once would be tried, and
    then `cost` is another. Tests of that set these numbers themselves.
    """
    monkeypatch.setattr(pools, "_TRIAL_AFTER", float("inf"))


@pytest.fixture(scope="session")
def data_dir():
    """The folder of the local data sets; without it the test is skipped."""
    if not data.DATA_DIR.is_dir():
        pytest.skip(f"no data sets in {data.DATA_DIR} (see KERAS_DYNAMIC_DATA)")
    return data.DATA_DIR


@pytest.fixture(scope="session")
def mnist(data_dir):
    """((x_train, y_train), (x_test, y_test)); images (n, 28, 28, 1) in [0, 1]."""
    if data.local_file("mnist.npz") is None:
        pytest.skip(f"no mnist.npz in {data_dir} (see KERAS_DYNAMIC_DATA)")
    return data.load_mnist()
