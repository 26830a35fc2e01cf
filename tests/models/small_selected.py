"""Small models with a selector that several test files use."""

import keras
import numpy as np

import keras_dynamic as kd


def selected_model(
    layerwise=False,
    activation="softmax",
    loss="sparse_categorical_crossentropy",
    units=4,
    metrics=("accuracy",),
    loss_weights=(1.0, 1.0),
    optimizer="sgd",
    compiled=True,
    **selector,
):
    """Six features, two early exits and a selector, all exits chosen by some.

    The selector reads the inputs, or layer-wise what the exits read.
    """
    inputs = keras.Input((6,))
    first = keras.layers.Dense(8, "tanh", name="trunk_1")(inputs)
    second = keras.layers.Dense(8, "tanh", name="trunk_2")(first)
    third = keras.layers.Dense(8, "tanh", name="trunk_3")(second)
    outputs = [
        kd.EarlyExit(units, activation=activation, loss_weight=weight, name=name)(h)
        for weight, name, h in zip(
            loss_weights, ("exit_1", "exit_2"), (first, second), strict=True
        )
    ]
    outputs.append(keras.layers.Dense(units, activation, name="final")(third))
    if layerwise:
        weights = kd.LayerwiseSelector(name="selector", **selector)([first, second])
    else:
        weights = kd.ExitSelector(3, name="selector", **selector)(inputs)
    model = kd.DynamicModel(inputs, outputs, selector=weights)
    if compiled:
        model.compile(optimizer, loss, metrics=list(metrics))
    return model


def selector_of(model):
    return model.get_layer("selector")


def chosen(model, x):
    """(rows,) the exit that the weights of `predict` choose."""
    return np.argmax(model.predict(x, verbose=0)[-1], axis=1)
