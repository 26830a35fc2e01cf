"""All that a user does, in a process that may not reach any network.

    python -m tests.faults.alone FOLDER

Python reports what it is about to do to audit hooks, C modules included. Here one
raises at the first use of a network; and, while files are loaded, at anything that
would run code from them.
"""

import sys

NETWORK = {
    "socket.connect",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "socket.gethostbyaddr",
    "socket.sendto",
    "urllib.Request",
    "http.client.connect",
}
CODE = {
    "compile",
    "exec",
    "import",
    "marshal.load",
    "marshal.loads",
    "os.exec",
    "os.posix_spawn",
    "os.system",
    "pickle.find_class",
    "subprocess.Popen",
}
forbidden, seen = set(NETWORK), []


def hook(event, arguments):
    if event in forbidden:
        seen.append(f"{event} {arguments}"[:200])
        raise RuntimeError(f"not allowed here: {seen[-1]}")


sys.addaudithook(hook)

from pathlib import Path  # noqa: E402

import keras  # noqa: E402
import numpy as np  # noqa: E402

import keras_dynamic as kd  # noqa: E402
from tests.golden.make import ROOT  # noqa: E402
from tests.models import worker  # noqa: E402


def use(folder):
    """Trains, calibrates, answers, saves, loads, exports, draws."""
    model = worker.exits()
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    x, y = worker.data()
    logger = kd.callbacks.TensorBoard(folder / "logs")
    model.fit(x, y, epochs=2, verbose=0, callbacks=[logger])
    report = model.calibrate(x, y, max_accuracy_drop=0.5)
    model.predict_dynamic(x, verbose=0)
    report.save(folder / "report.json")
    report.save(folder / "report.html")
    kd.calibration.CalibrationReport.load(folder / "report.json")
    model.save(folder / "m.keras")
    model.save_weights(folder / "m.weights.h5")
    model.export(folder / "exported", verbose=False)
    again = keras.saving.load_model(folder / "m.keras")
    again.load_weights(folder / "m.weights.h5")
    kd.plots.accuracy_cost(again, x, y).plot()
    assert kd.tuning.DynamicHyperModel
    return again


def load_all(folder, model):
    for path in sorted(ROOT.glob("*/*.keras")):
        keras.saving.load_model(path)
    for path in sorted(ROOT.glob("*/*.json")):
        if path.stem != "facts":
            kd.calibration.CalibrationReport.load(path)
    model.load_weights(folder / "m.weights.h5")


def main(folder):
    folder = Path(folder)
    model = use(folder)
    load_all(folder, model)  # modules that are imported late are there now
    forbidden.update(CODE)
    load_all(folder, model)
    forbidden.clear()
    assert not seen, seen
    # The hook would have noticed.
    for event, action in (
        ("socket.connect", lambda: __import__("socket").create_connection(("::1", 9))),
        ("exec", lambda: exec("pass")),
        ("pickle.find_class", lambda: np.load(folder / "p.npy", allow_pickle=True)),
    ):
        np.save(folder / "p.npy", np.array([Path()], object), allow_pickle=True)
        forbidden.add(event)
        try:
            action()
        except Exception:
            pass
        forbidden.clear()
        assert seen and seen.pop().startswith(event), event


if __name__ == "__main__":
    main(sys.argv[1])
