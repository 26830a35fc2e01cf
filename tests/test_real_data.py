"""The whole journey on real digits: train, calibrate, stop early, in half a minute."""

import keras
import numpy as np
from keras import layers

import keras_dynamic as kd


def test_a_lenet_on_mnist_stops_early_and_keeps_its_accuracy(mnist):
    (x, y), (x_test, y_test) = mnist
    x, y, x_calib, y_calib = x[:16000], y[:16000], x[-6000:], y[-6000:]
    inputs = keras.Input((28, 28, 1))
    h = layers.Conv2D(6, 5, padding="same", activation="relu")(inputs)
    h = layers.MaxPooling2D()(h)
    branch = kd.EarlyExit(10, "max", grid=7, hidden_units=32, name="branch")(h)
    h = layers.MaxPooling2D()(layers.Conv2D(16, 5, activation="relu")(h))
    h = layers.Dense(84, "relu")(layers.Flatten()(h))
    final = layers.Dense(10, "softmax", name="final")(h)
    model = kd.DynamicModel(inputs, [branch, final])
    model.compile(
        keras.optimizers.Adam(3e-3),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    model.fit(x, y, batch_size=128, epochs=2, verbose=0)
    report = model.calibrate(x_calib, y_calib, max_accuracy_drop=0.005, batch_size=512)

    static = model.evaluate(x_test, y_test, 512, verbose=0, return_dict=True)
    dynamic = model.evaluate_dynamic(x_test, y_test, 512, verbose=0)
    assert static["accuracy"] > 0.965
    assert dynamic["accuracy"] > static["accuracy"] - 0.01
    assert dynamic["mean_cost"] < 0.6
    # What calibration saw, the test data confirm.
    assert abs(report.mean_cost - dynamic["mean_cost"]) < 0.05
    assert abs(report.dynamic_accuracy - dynamic["accuracy"]) < 0.01
    # Those who leave early are the easy ones: the final exit is better on them too.
    p = model.predict_dynamic(x_test, batch_size=512, verbose=0)
    final_right = model.predict(x_test, 512, verbose=0)[1].argmax(1) == y_test
    early = p.exit_index == 0
    assert final_right[early].mean() > final_right[~early].mean() + 0.02
    # The temperature made the branch's probabilities honest.
    branch_report = report.exits[0]
    before = branch_report.all_before.negative_log_likelihood
    assert branch_report.all_after.negative_log_likelihood <= before
    assert np.isfinite(p.confidence).all()
