"""Two processes train together what one trains alone."""

import json

import keras
import numpy as np
import tensorflow as tf

from keras_dynamic.models import several_workers
from tests import processes
from tests.models import worker
from tests.models.small_models import dense_model
from tests.processes import finish, free_addresses

WITHOUT_NOISE = [name for name in worker.MODELS if name != "noisy"]


def start(file, addresses, index):
    task = {"type": "worker", "index": index}
    config = {"cluster": {"worker": addresses}, "task": task}
    return processes.start("tests.models.worker", file, TF_CONFIG=json.dumps(config))


def trained_by_two(folder):
    """What each of two workers found, while this process trains alone: a pair."""
    addresses, files = free_addresses(2), [folder / "0.json", folder / "1.json"]
    workers = [start(file, addresses, n) for n, file in enumerate(files)]
    try:
        alone = {
            name: worker.trained(worker.MODELS[name], tf.distribute.get_strategy())
            for name in WITHOUT_NOISE
        }
    finally:
        finish(*workers)
    return [json.loads(file.read_text()) for file in files], alone


def check_close(found, expected, name):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5, err_msg=name)


def test_two_workers_train_as_one(tmp_path):
    (one, other), alone = trained_by_two(tmp_path)
    for found in (one, other):
        for name, expected in alone.items():
            history = found[name]["history"]
            assert history.keys() == expected["history"].keys()
            for key, numbers in expected["history"].items():
                check_close(history[key], numbers, f"{name}: {key}")
            weights = zip(found[name]["weights"], expected["weights"], strict=True)
            for number, (weight, by_one) in enumerate(weights):
                check_close(weight, by_one, f"{name}: weight {number}")
        # Each worker calibrates by itself, and answers what it is asked.
        for name in ("exits", "selected", "layerwise"):
            assert found[name]["exit_index"] == alone[name]["exit_index"]
            check_close(found[name]["mean_cost"], alone[name]["mean_cost"], name)
        # When this fails, Keras may have made `SeveralWorkers` superfluous.
        assert "PerReplica" in found["by_keras_alone"]
    # With noise they hold the same weights at every moment.
    assert np.isfinite(one["noisy"]["history"]["loss"]).all()
    assert one["noisy"] == other["noisy"]


def test_workers_are_compared_in_a_list_of_callbacks_too(monkeypatch):
    def fit(self, callbacks=None):
        return callbacks

    monkeypatch.setattr(keras.Model, "fit", fit)
    monkeypatch.setattr(several_workers, "_has_workers", lambda strategy: True)
    model = dense_model()
    own = keras.callbacks.TerminateOnNaN()
    for given in (own, [own], keras.callbacks.CallbackList([own])):
        for _ in range(2):  # a list that was given before has it already
            found = model.fit(callbacks=given)
        callbacks = getattr(found, "callbacks", found)
        assert [type(each).__name__ for each in callbacks[-2:]] == [
            "TerminateOnNaN",
            "_SameBeginning",
        ]
    assert callbacks[-1].model is model
