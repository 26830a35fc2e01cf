"""Bias and variance of the estimators that sample against the exact gradient, K = 5.

f(z) = z' A z / 2 + b' z, and for the cubic + sum_k c_k z_k^3, so that
f(e_k) = A_kk / 2 + b_k (+ c_k), and the slope of f at e_k is A_k + b (+ 3 c_k e_k).
"""

import numpy as np
import pytest
import tensorflow as tf
from scipy import special

from keras_dynamic.ops.estimators import categorical
from tests.ops.gradients import normal, value_and_gradient

SEED = tf.constant([3, 14])
LOGITS = np.array([0.5, -0.3, 0.1, -0.8, 0.0])
A, B, C = (normal(5, 5, seed=2), normal(5, seed=3), normal(5, seed=4))
A += A.T
CUBES = {"quadratic": 0 * C, "cubic": C}
DRAWS = 100_000


def exact_gradient(cubes):
    """d/dl of E f(z) = sum_k p_k f(e_k): p_k (f(e_k) - E f)."""
    probabilities = special.softmax(LOGITS)
    values = np.diag(A) / 2 + B + cubes
    return probabilities * (values - probabilities @ values)


def second_order_gradient(cubes):
    """The same with each f(e_i) - f(e_j) by the trapezoidal rule (Heun's method), from
    the slopes of f at both ends. It is exact for a quadratic."""
    probabilities = special.softmax(LOGITS)
    slopes = A + B + np.diag(3 * cubes)  # row k: at e_k
    along = np.diag(slopes)[:, None] - slopes  # at e_i, from e_j to e_i
    steps = (along - along.T) / 2
    return probabilities * (steps @ probabilities)


def sampled_gradients(estimator, temperature, cubes):
    """(DRAWS, 5): one gradient a draw."""

    def objective(z):
        return tf.reduce_sum((z @ A) * z / 2 + B * z + cubes * z**3, axis=-1)

    return value_and_gradient(
        lambda x: categorical(x, estimator, temperature, seed=SEED, training=True),
        np.tile(LOGITS.astype("float32"), (DRAWS, 1)),
        objective,
    )[1].astype("float64")


def distance_and_deviation(samples, target):
    """Of the mean from the target, with its standard error, and of the samples."""
    deviation = np.sqrt(samples.var(axis=0).sum())
    distance = np.linalg.norm(samples.mean(axis=0) - target)
    return distance, deviation / np.sqrt(DRAWS), deviation


def test_exact_gradient_is_that_of_the_expectation():
    logits = tf.constant(LOGITS)
    vertices = np.eye(5)
    for cubes in CUBES.values():
        values = np.sum((vertices @ A) / 2 * vertices + (B + cubes) * vertices, axis=1)
        with tf.GradientTape() as tape:
            tape.watch(logits)
            expectation = tf.reduce_sum(tf.nn.softmax(logits) * values)
        gradient = tape.gradient(expectation, logits)
        np.testing.assert_allclose(exact_gradient(cubes), gradient, rtol=1e-6)


def test_reinmax_is_unbiased_for_a_quadratic():
    samples = sampled_gradients("reinmax", 1, CUBES["quadratic"])
    exact = exact_gradient(CUBES["quadratic"])
    standard_error = samples.std(axis=0) / np.sqrt(DRAWS)
    assert (abs(samples.mean(axis=0) - exact) < 4 * standard_error).all()
    # The test can tell: at tau = 2 the bias is 40 standard errors.
    samples = sampled_gradients("reinmax", 2, CUBES["quadratic"])
    bias, error, _ = distance_and_deviation(samples, exact)
    assert bias > 20 * error


def test_reinmax_is_of_second_order_for_a_cubic():
    cubes = CUBES["cubic"]
    samples = sampled_gradients("reinmax", 1, cubes)
    standard_error = samples.std(axis=0) / np.sqrt(DRAWS)
    expected = second_order_gradient(cubes)
    assert (abs(samples.mean(axis=0) - expected) < 4 * standard_error).all()
    bias, error, _ = distance_and_deviation(samples, exact_gradient(cubes))
    assert bias > 20 * error


@pytest.mark.parametrize(
    "estimator, objective, target",
    [
        ("gumbel_straight_through", "quadratic", exact_gradient),
        # Slopes at one-hot points only: no more than the trapezoidal rule.
        ("gumbel_straight_through", "cubic", second_order_gradient),
        ("gumbel_softmax", "quadratic", exact_gradient),
        ("gumbel_softmax", "cubic", exact_gradient),
    ],
)
def test_bias_falls_and_variance_rises_as_tau_falls(estimator, objective, target):
    cubes = CUBES[objective]
    figures = [
        distance_and_deviation(
            sampled_gradients(estimator, temperature, cubes), target(cubes)
        )
        for temperature in (1, 0.5, 0.1)
    ]
    for (bias, error, deviation), (next_bias, next_error, next_deviation) in zip(
        figures, figures[1:], strict=False
    ):
        assert bias - next_bias > 4 * np.hypot(error, next_error)
        assert next_deviation > 1.5 * deviation
