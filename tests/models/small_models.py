"""Small models that several test files use."""

import keras
import numpy as np

import keras_dynamic as kd


def dense_model(
    activation="softmax",
    loss="sparse_categorical_crossentropy",
    units=4,
    loss_weight=1.0,
    metrics=("accuracy",),
    compiled=True,
    **kwargs,
):
    """Six features, two early exits, compiled for class numbers."""
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(8, "tanh")(inputs)
    first = kd.EarlyExit(
        units, activation=activation, loss_weight=loss_weight, name="exit_1"
    )(hidden)
    hidden = keras.layers.Dense(8, "tanh")(hidden)
    second = kd.EarlyExit(units, activation=activation, name="exit_2")(hidden)
    hidden = keras.layers.Dense(8, "tanh")(hidden)
    final = keras.layers.Dense(units, activation, name="final")(hidden)
    model = kd.DynamicModel(inputs, [first, second, final], **kwargs)
    if compiled:
        model.compile("sgd", loss, metrics=list(metrics))
    return model


def dense_data(rows=40, classes=4, seed=0):
    """Features (rows, 6) float32 and labels (rows,) that follow from them."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(rows, 6)).astype("float32")
    return x, np.argmax(x[:, :classes], axis=1)


def middle_rule(model, x, rule=kd.rules.MaxProbability):
    """A rule under which about half of those who reach an exit leave there.

    Thresholds lie midway between observed scores, where rounding moves nobody.
    """
    outputs = model.predict(x, verbose=0)[:-1]
    inside, thresholds = np.ones(len(outputs[0]), bool), []
    for output in outputs:
        scores = np.asarray(rule(0.5).score(output))
        ranked = np.unique(scores[inside])
        middle = len(ranked) // 2
        thresholds.append(float((ranked[middle - 1] + ranked[middle]) / 2))
        leaves = np.asarray(
            rule(0.5).bind(thresholds).leaves(scores, len(thresholds) - 1)
        )
        inside &= ~leaves
    return rule(thresholds)
