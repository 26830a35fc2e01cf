"""A small trained model, and its dynamic road in NumPy, for the plots of exits."""

import functools

import keras
import numpy as np

import keras_dynamic as kd
from tests.models.small_models import dense_data, dense_model

TEMPERATURES = (1.5, 0.7, 1.2)


@functools.cache
def trained_model():
    """Two early exits and temperatures; exits further on know more."""
    keras.utils.set_random_seed(0)
    model = dense_model()
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    x, y = data(600, seed=1)
    model.fit(x, y, epochs=6, verbose=0)
    model.calibration_temperatures.assign(TEMPERATURES)
    model.exit_rule = kd.rules.MaxProbability([0.6, 0.55])
    return model


def data(rows=300, seed=0):
    """A tenth of the labels is drawn at random: no exit is right about everything."""
    x, y = dense_data(rows, seed=seed)
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, 4, rows)
    return x, np.where(generator.uniform(size=rows) < 0.1, drawn, y)


def probabilities(model, x, temperatures=TEMPERATURES):
    """List of (n, classes) float64, at some temperatures."""
    powers = [
        output.astype("float64") ** (1 / temperature)
        for output, temperature in zip(
            model.predict(x, verbose=0), temperatures, strict=True
        )
    ]
    return [power / power.sum(axis=1, keepdims=True) for power in powers]


def exits_taken(scores, thresholds):
    """(n,) the first exit whose score exceeds the threshold; the last takes all."""
    taken = np.full(len(scores[0]), len(thresholds))
    for index in reversed(range(len(thresholds))):
        if thresholds[index] is not None:
            taken[scores[index] > thresholds[index]] = index
    return taken
