"""What a real TensorBoard shows of a training, asked through its HTTP interface."""

import json
import re
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request

import keras
import numpy as np
import pytest
from keras import layers

import keras_dynamic as kd
from tests.callbacks.events import events_in, steps_of
from tests.models.small_models import dense_data

SECONDS = 60
X, Y = dense_data(80)


class Server:
    """A TensorBoard of a directory on the loopback, on a port that is free."""

    def __init__(self, directory):
        # It finds the files itself; the faster loader is a program of its own.
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", directory]
        command += ["--host", "127.0.0.1", "--port", "0"]
        command += ["--load_fast", "false", "--reload_interval", "1"]
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        # A server that hangs is killed, so that nothing waits for ever.
        self._watch = threading.Timer(SECONDS, self.process.kill)
        self._watch.start()

    def wait(self):
        """Reads the address that it prints, "TensorBoard 2.21 at http://..."."""
        printed = ""
        for line in self.process.stderr:
            printed += line
            if match := re.search(r"http://127\.0\.0\.1:\d+", line):
                self.address = match.group()
                return
        raise RuntimeError(f"TensorBoard ended: {printed}")

    def get(self, plugin, what, **arguments):
        query = urllib.parse.urlencode(arguments)
        url = f"{self.address}/data/plugin/{plugin}/{what}?{query}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)

    def stop(self):
        self._watch.cancel()
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()


def model_with_all():
    """Two exits, a gate before both and a mixture between them."""
    inputs = keras.Input((6,))
    h = kd.SkipGate(layers.Dense(6, "tanh"), gate=layers.Dense(1), name="gate")(inputs)
    first = kd.EarlyExit(4, name="exit_1")(h)
    h = kd.SparseMoE(3, 8, name="moe")(h)
    final = layers.Dense(4, "softmax", name="final")(h)
    model = kd.DynamicModel(inputs, [first, final])
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def check_scalars(history, events):
    """Every entry of the logs is a scalar of its epochs, in its run."""
    for name, logged in history.items():
        run = "validation" if name.startswith("val_") else "train"
        tag = f"epoch_{name.removeprefix('val_')}"
        assert steps_of(events, run, tag) == [0, 1]
        written = [float(value) for _, value in events[run, tag]]
        np.testing.assert_allclose(written, logged, rtol=1e-6, err_msg=name)


@pytest.fixture
def server(tmp_path):
    server = Server(str(tmp_path))
    try:
        yield server
    finally:
        server.stop()


def test_a_training_in_tensorboard(server, tmp_path):
    model = model_with_all()
    history = model.fit(
        X,
        Y,
        epochs=2,
        validation_data=(X, Y),
        callbacks=[
            kd.callbacks.TemperatureSchedule(lambda epoch: 2.0 - epoch, "epoch"),
            kd.callbacks.DynamicValidation((X, Y), (X, Y), max_accuracy_drop=0.5),
            kd.callbacks.TensorBoard(tmp_path, data=X),
        ],
        verbose=0,
    ).history
    both = ["gate_open_rate", "gate_open_probability", "moe_load_0", "moe_max_load"]
    both += ["moe_load_1", "moe_load_2", "moe_dropped", "moe_dead_experts"]
    both += ["moe_router_entropy", "moe_router_confidence"]
    expected = {*both, *(f"val_{name}" for name in both), "temperature"}
    expected |= {"val_dynamic_accuracy", "val_mean_cost", "val_exit_1_rate"}
    assert expected <= set(history)
    check_scalars(history, events_in(tmp_path))
    server.wait()
    histograms = {
        "exit_index",
        "exit_confidence",
        "gate_open_probability",
        "moe_expert_load",
    }
    patience = time.monotonic() + 30
    while True:
        tags = server.get("histograms", "tags")
        shown = tags.get("validation", {}).get("exit_index")
        entries = shown and server.get(
            "histograms", "histograms", run="validation", tag="exit_index"
        )
        if (entries and len(entries) == 2) or time.monotonic() > patience:
            break
        time.sleep(0.2)
    assert set(tags["validation"]) == histograms

    tags = server.get("scalars", "tags")
    for name in history:
        run = "validation" if name.startswith("val_") else "train"
        assert f"epoch_{name.removeprefix('val_')}" in tags[run]
    assert "epoch_temperature" not in tags["validation"]

    for run, tag, name in (
        ("train", "epoch_temperature", "temperature"),
        ("validation", "epoch_mean_cost", "val_mean_cost"),
        ("validation", "epoch_gate_open_rate", "val_gate_open_rate"),
    ):
        points = server.get("scalars", "scalars", run=run, tag=tag)
        assert [step for _, step, _ in points] == [0, 1]
        values = [value for _, _, value in points]
        np.testing.assert_allclose(values, history[name], rtol=1e-6)
    assert history["temperature"] == [2.0, 1.0]

    def last(tag):
        entries = server.get("histograms", "histograms", run="validation", tag=tag)
        assert [step for _, step, _ in entries] == [0, 1]
        return np.array(entries[-1][2])

    # The model and its rule are still those of the last epoch.
    exits = model.predict_dynamic(X, verbose=0).exit_index
    counts = [np.sum(exits == 0), np.sum(exits == 1)]
    expected = [[-0.5, 0.5, counts[0]], [0.5, 1.5, counts[1]]]
    np.testing.assert_array_equal(last("exit_index"), expected)
    gate = model.get_layer("gate")
    logits = np.asarray(gate.decider(X), "float64")[:, 0]
    inside = 1 / (1 + np.exp(-logits))
    lowest = [np.sum((inside >= k / 20) & (inside < (k + 1) / 20)) for k in range(20)]
    np.testing.assert_array_equal(last("gate_open_probability")[:, 2], lowest)
    experts = np.asarray(model.get_layer("moe").routing(gate(X)).experts).ravel()
    loads = [np.sum(experts == e) for e in range(3)]
    np.testing.assert_array_equal(last("moe_expert_load")[:, 2], loads)
