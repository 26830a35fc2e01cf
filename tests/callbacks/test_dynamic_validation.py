"""DynamicValidation: the dynamic road's scores in the logs of `fit`."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_dynamic as kd
from tests.models.small_models import dense_data, dense_model
from tests.models.small_selected import chosen, selected_model

TRAIN, CALIBRATION, VALIDATION = (dense_data(80, seed=seed) for seed in range(3))


def fit(model, *callbacks, **arguments):
    arguments = {"epochs": 3, "verbose": 0, **arguments}
    return model.fit(*TRAIN, callbacks=list(callbacks), **arguments).history


@pytest.mark.parametrize(
    "goal", [{"max_accuracy_drop": 0.1}, {"budget": 0.8}, {"min_accuracy": 0.2}]
)
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


@pytest.mark.parametrize("layerwise", [False, True])
def test_a_selector_decides_by_itself(layerwise):
    model = selected_model(layerwise)
    thresholds = model.exit_thresholds.numpy()
    callback = kd.callbacks.DynamicValidation(CALIBRATION, VALIDATION)
    history = fit(model, callback, epochs=2)
    assert isinstance(model.exit_rule, kd.rules.Selected)
    np.testing.assert_array_equal(model.exit_thresholds, thresholds)
    np.testing.assert_array_equal(model.calibration_temperatures, [1, 1, 1])
    x, y = VALIDATION
    exits = chosen(model, x)
    answers = np.stack(model.predict(x, verbose=0)[:3], axis=1)[range(len(x)), exits]
    right = np.mean(answers.argmax(1) == y)
    assert history["val_dynamic_accuracy"][-1] == pytest.approx(right)
    rates = [history[f"val_exit_{k}_rate"][-1] for k in range(3)]
    np.testing.assert_allclose(rates, np.bincount(exits, minlength=3) / len(x))
    cost = np.mean(np.asarray(model.exit_costs)[exits])
    reference = model.compute_costs().reference
    assert history["val_mean_cost"][-1] == pytest.approx(cost / reference)


def test_the_rule_of_a_model_with_a_selector_may_be_another():
    # Scored under `Selected` where that is asked for, and the rule is left as it is.
    model = selected_model()
    model.exit_rule = kd.rules.Entropy(0.25)
    validation = kd.callbacks.DynamicValidation(CALIBRATION, VALIDATION)
    history = fit(model, validation, epochs=1)
    assert repr(model.exit_rule) == "Entropy(threshold=0.25)"
    expected = [
        model.evaluate_dynamic(*VALIDATION, verbose=0, rule=rule)["mean_cost"]
        for rule in ("selected", None)
    ]
    assert history["val_mean_cost"] == [pytest.approx(expected[0])]
    assert expected[0] != expected[1]
    history = fit(
        model,
        kd.callbacks.DynamicValidation(CALIBRATION, VALIDATION, "margin", budget=0.8),
        epochs=1,
    )
    assert isinstance(model.exit_rule, kd.rules.Margin)
    expected = model.evaluate_dynamic(*VALIDATION, verbose=0)
    assert history["val_mean_cost"] == [pytest.approx(expected["mean_cost"])]


def gated_model():
    inputs = keras.Input((6,))
    gate = kd.SkipGate(layers.Dense(6), gate=layers.Dense(1), name="gate")
    model = kd.DynamicModel(inputs, [layers.Dense(4, "softmax")(gate(inputs))])
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def test_gates_alone_are_calibrated_without_a_goal():
    model = gated_model()
    history = fit(model, kd.callbacks.DynamicValidation(CALIBRATION, VALIDATION))
    expected = model.evaluate_dynamic(*VALIDATION, verbose=0)
    assert history["val_mean_cost"][-1] == pytest.approx(expected["mean_cost"])
    assert history["val_mean_cost"][-1] < 1
    assert history["val_dynamic_accuracy"][-1] == pytest.approx(expected["accuracy"])
    assert history["val_exit_0_rate"] == [1.0] * 3
    assert float(model.calibration_temperatures[0]) != 1
    with pytest.raises(ValueError, match="one output, budget=0.5"):
        fit(gated_model(), kd.callbacks.DynamicValidation(TRAIN, TRAIN, budget=0.5))


def test_a_least_accuracy_that_comes_with_training():
    # The first epoch, at a rate of 0, leaves the network as it was made.
    rates = [0.0, 0.5, 0.5, 0.5]
    model = dense_model()
    schedule = keras.callbacks.LearningRateScheduler(lambda epoch: rates[epoch])
    validation = kd.callbacks.DynamicValidation(
        CALIBRATION, VALIDATION, min_accuracy=0.6
    )
    history = fit(model, schedule, validation, epochs=4, batch_size=8)
    assert history["val_mean_cost"][-1] < min(1.0, history["val_mean_cost"][0])
    report = model.calibrate(*CALIBRATION, min_accuracy=0.6)
    assert report.dynamic_accuracy >= 0.6
    assert history["val_mean_cost"][-1] == pytest.approx(
        model.evaluate_dynamic(*VALIDATION, verbose=0)["mean_cost"]
    )


def test_a_least_accuracy_out_of_reach_is_approached():
    """Early exits that know more than the last one are used, not closed."""
    model = dense_model()
    model.optimizer.learning_rate = 0.5
    fit(model, epochs=5, batch_size=8)
    last = model.layers[-1]
    last.set_weights([np.zeros_like(weight) for weight in last.get_weights()])
    model.optimizer.learning_rate = 0.0
    validation = kd.callbacks.DynamicValidation(
        CALIBRATION, VALIDATION, min_accuracy=1.0
    )
    fit(model, validation, epochs=1)
    found = model.evaluate_dynamic(*CALIBRATION, verbose=0)
    full = model.evaluate(*CALIBRATION, verbose=0, return_dict=True)["accuracy"]
    assert full < 0.5 < found["accuracy"] < 1.0
    assert found["mean_cost"] < 1


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
    with pytest.raises(kd.calibration.UnreachableGoal, match="budget=1e-06"):
        fit(dense_model(), validation(CALIBRATION, VALIDATION, budget=1e-6))
    with pytest.raises(ValueError, match="`rule` must be one of.*'loudest'"):
        validation(CALIBRATION, VALIDATION, rule="loudest")


class NoStep(keras.callbacks.Callback):
    def on_train_batch_begin(self, batch, logs=None):
        raise AssertionError("a step was made")


@pytest.mark.parametrize(
    ("make", "arguments", "error", "message"),
    [
        (dense_model, {"budget": 1, "min_accuracy": 1}, ValueError, "Give one of"),
        (dense_model, {"min_accuracy": "1"}, TypeError, "must be a number.*'1'"),
        (dense_model, {"rule": "selected"}, ValueError, "needs a model with a sel"),
        (selected_model, {"budget": 0.5}, ValueError, "has none.*budget=0.5"),
    ],
)
def test_what_can_never_be_is_said_before_the_first_step(
    make, arguments, error, message
):
    validation = kd.callbacks.DynamicValidation(CALIBRATION, VALIDATION, **arguments)
    with pytest.raises(error, match=message):
        fit(make(), validation, NoStep())
