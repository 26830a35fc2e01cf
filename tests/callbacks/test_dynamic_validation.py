"""DynamicValidation: the dynamic road's scores in the logs of `fit`."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_dynamic as kd
from tests.models.small_models import dense_data, dense_model

TRAIN, CALIBRATION, VALIDATION = (dense_data(80, seed=seed) for seed in range(3))


def fit(model, *callbacks, **arguments):
    arguments = {"epochs": 3, "verbose": 0, **arguments}
    return model.fit(*TRAIN, callbacks=list(callbacks), **arguments).history


@pytest.mark.parametrize("goal", [{"max_accuracy_drop": 0.1}, {"budget": 0.8}])
def test_logs_are_what_a_user_would_compute(goal):
    model = dense_model()
    history = fit(
        model, kd.callbacks.DynamicValidation(CALIBRATION, VALIDATION, **goal)
    )
    assert all(len(values) == 3 for values in history.values())
    # The rule of the last epoch is in the model still.
    expected = model.evaluate_dynamic(*VALIDATION, verbose=0)
    assert history["val_dynamic_accuracy"][-1] == pytest.approx(expected["accuracy"])
    assert history["val_dynamic_loss"][-1] == pytest.approx(expected["loss"])
    assert history["val_mean_cost"][-1] == pytest.approx(expected["mean_cost"])
    rates = [history[f"val_exit_{k}_rate"][-1] for k in range(3)]
    np.testing.assert_allclose(rates, expected["exit_rates"])
    thresholds = model.exit_rule.threshold
    model.calibrate(*CALIBRATION, **goal)
    np.testing.assert_allclose(model.exit_rule.threshold, thresholds, rtol=1e-6)


def test_takes_datasets():
    model, other = dense_model(), dense_model()
    other.set_weights(model.get_weights())
    histories = []
    for each in (model, other):
        data = [CALIBRATION, VALIDATION]
        if each is other:
            data = [tf.data.Dataset.from_tensor_slices(d).batch(16) for d in data]
        callback = kd.callbacks.DynamicValidation(*data, max_accuracy_drop=0.1)
        histories.append(fit(each, callback, shuffle=False))
    for name, values in histories[0].items():
        np.testing.assert_allclose(values, histories[1][name], rtol=1e-5, err_msg=name)


def test_stops_early_and_brings_the_best_rule_back():
    class Spoil(keras.callbacks.Callback):
        """After the first epoch the network is random again."""

        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                for weight in self.model.trainable_weights:
                    weight.assign(np.full(weight.shape, 0.3))

    model = dense_model()
    validation = kd.callbacks.DynamicValidation(
        CALIBRATION, VALIDATION, max_accuracy_drop=0.1
    )
    stop = keras.callbacks.EarlyStopping(
        "val_dynamic_accuracy", patience=1, mode="max", restore_best_weights=True
    )
    model.optimizer.learning_rate = 0.5
    history = fit(model, Spoil(), validation, stop, epochs=9)
    scores = history["val_dynamic_accuracy"]
    best = int(np.argmax(scores))
    assert best < len(scores) - 1 or len(scores) == 9
    found = model.evaluate_dynamic(*VALIDATION, verbose=0)
    assert found["accuracy"] == pytest.approx(scores[best])
    assert found["mean_cost"] == pytest.approx(history["val_mean_cost"][best])


def test_every_other_epoch():
    callback = kd.callbacks.DynamicValidation(CALIBRATION, VALIDATION, update_freq=2)
    model = dense_model()
    history = fit(model, callback, epochs=4)
    assert len(history["val_dynamic_loss"]) == 2 and len(history["loss"]) == 4
    # The second and the fourth: the last one scored the network as it is now.
    expected = model.evaluate_dynamic(*VALIDATION, verbose=0)["loss"]
    assert history["val_dynamic_loss"][-1] == pytest.approx(expected)


def test_bad_input():
    validation = kd.callbacks.DynamicValidation
    with pytest.raises(TypeError, match=r"`calibration_data` must be \(x, y\).*of 3"):
        validation((1, 2, 3), VALIDATION)
    with pytest.raises(TypeError, match="`validation_data`.*ndarray"):
        validation(CALIBRATION, VALIDATION[0])
    with pytest.raises(TypeError, match="update_freq=0.5"):
        validation(CALIBRATION, VALIDATION, update_freq=0.5)
    with pytest.raises(ValueError, match="at least 1. Received: update_freq=0"):
        validation(CALIBRATION, VALIDATION, update_freq=0)
    plain = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, "softmax")])
    plain.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(TypeError, match="`DynamicValidation` needs.*Sequential"):
        fit(plain, validation(CALIBRATION, VALIDATION))
    with pytest.raises(ValueError, match="budget"):
        fit(dense_model(), validation(CALIBRATION, VALIDATION, budget=1e-6))
