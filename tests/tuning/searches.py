"""A small search that tests and the processes that they start share."""

import keras
import numpy as np
import tensorflow as tf

import keras_dynamic as kd


def data(count, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 6)).astype("float32")
    return x, np.argmax(x[:, :3], axis=1)


TRAIN, CALIBRATION, VALIDATION = data(96, 0), data(48, 1), data(48, 2)


def build(hp):
    """Two early exits; lambda of each is searched."""
    inputs = keras.Input((6,))
    h = keras.layers.Dense(8, "relu")(inputs)
    y1 = kd.EarlyExit(
        3, loss_weight=kd.tuning.loss_weight(hp, "exit_1"), name="exit_1"
    )(h)
    h = keras.layers.Dense(16, "relu")(h)
    y2 = kd.EarlyExit(
        3, loss_weight=kd.tuning.loss_weight(hp, "exit_2"), name="exit_2"
    )(h)
    h = keras.layers.Dense(64, "relu")(h)
    final = keras.layers.Dense(3, "softmax", name="final")(h)
    model = kd.DynamicModel(inputs, [y1, y2, final])
    optimizer = keras.optimizers.Adam(0.02)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def build_with_selector(hp):
    """A selector with a searched tau and cost weight."""
    inputs = keras.Input((6,))
    h = keras.layers.Dense(8, "relu")(inputs)
    weights = kd.ExitSelector(
        2,
        estimator="gumbel_softmax",
        temperature=kd.tuning.temperature(hp),
        exit_costs="auto",
        cost_weight=kd.tuning.cost_weight(hp, "selector"),
        name="selector",
    )(h)
    outputs = [
        kd.EarlyExit(3, name="exit_1")(h),
        keras.layers.Dense(3, "softmax")(keras.layers.Dense(64, "relu")(h)),
    ]
    model = kd.DynamicModel(inputs, outputs, selector=weights)
    optimizer = keras.optimizers.Adam(0.02)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def build_gated(hp):
    """One output, and a gate with a searched rate."""
    inputs = keras.Input((6,))
    gate = kd.SkipGate(
        keras.layers.Dense(6),
        target_rate=kd.tuning.target_rate(hp, "gate"),
        rate_weight=kd.tuning.rate_weight(hp, "gate"),
        name="gate",
    )
    outputs = keras.layers.Dense(3, "softmax")(gate(inputs))
    model = kd.DynamicModel(inputs, outputs)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def hypermodel(function=build, objective=None, **arguments):
    return kd.tuning.DynamicHyperModel(
        function,
        CALIBRATION,
        VALIDATION,
        objective or kd.tuning.AccuracyUnderBudget(0.6),
        **arguments,
    )


def search(tuner, **arguments):
    tf.random.set_seed(0)
    arguments = {"epochs": 2, "verbose": 0, "batch_size": 32, **arguments}
    tuner.search(*TRAIN, **arguments)
    return tuner
