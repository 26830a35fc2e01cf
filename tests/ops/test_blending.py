import numpy as np
import pytest
import tensorflow as tf

from keras_dynamic.ops.blending import (
    CONSTRAINTS,
    SMALLEST_SUM,
    check_constraint,
    constrained,
)
from tests.ops.gradients import normal, value_and_gradient

NORMALIZED = ("sum_normalized", "absolute_normalized", "positive")


def weights(parameters, constraint):
    return constrained(np.asarray(parameters, "float32"), constraint).numpy()


def reference(parameters, constraint):
    """The formulas of the paper in NumPy, float64, without any safeguard."""
    w = np.asarray(parameters, "float64")
    if constraint == "sum_normalized":
        return w / w.sum(axis=0)
    if constraint == "absolute_normalized":
        return w / np.abs(w).sum(axis=0)
    if constraint == "positive":
        return np.maximum(w, 0) / np.maximum(w, 0).sum(axis=0)
    return w


def gradient_of_sum(parameters, constraint, factors):
    """Of sum_e factor_e a_e, in the parameters."""
    factors = tf.constant(factors, tf.float32)
    return value_and_gradient(
        lambda w: constrained(w, constraint),
        np.asarray(parameters, "float32"),
        lambda a: a * factors,
    )[1]


# By hand


@pytest.mark.parametrize(
    "constraint, expected",
    [
        ("unrestricted", [3, -1, 0]),
        ("sum_normalized", [3 / 2, -1 / 2, 0]),  # 3 - 1 + 0 = 2
        ("absolute_normalized", [3 / 4, -1 / 4, 0]),  # 3 + 1 + 0 = 4
        ("positive", [1, 0, 0]),  # 3 + 0 + 0 = 3
    ],
)
def test_by_hand(constraint, expected):
    np.testing.assert_allclose(weights([3, -1, 0], constraint), expected, rtol=1e-6)


def test_positive_differs_from_sum_normalized_where_one_is_negative():
    # 2 + 1 - 1 = 2 against 2 + 1 = 3.
    mixed = [2.0, 1.0, -1.0]
    np.testing.assert_allclose(weights(mixed, "sum_normalized"), [1, 0.5, -0.5])
    np.testing.assert_allclose(weights(mixed, "positive"), [2 / 3, 1 / 3, 0])
    # And nowhere else.
    same = [2.0, 1.0, 0.0]
    np.testing.assert_array_equal(
        weights(same, "sum_normalized"), weights(same, "positive")
    )


def test_gradients_by_hand():
    # a = w / s: d(a_1)/dw = (1 / s - w_1 / s^2, -w_1 / s^2), here with s = 1 + 3 = 4.
    by_quotient = [1 / 4 - 1 / 16, -1 / 16]
    for constraint in NORMALIZED:
        gradient = gradient_of_sum([1.0, 3.0], constraint, [1, 0])
        np.testing.assert_allclose(gradient, by_quotient, rtol=1e-6)
    # w = (1, -3): s = -2 for the sum; 4 for the absolute values, with ds/dw_2 = -1.
    gradient = gradient_of_sum([1.0, -3.0], "sum_normalized", [1, 0])
    np.testing.assert_allclose(gradient, [-1 / 2 - 1 / 4, -1 / 4], rtol=1e-6)
    gradient = gradient_of_sum([1.0, -3.0], "absolute_normalized", [1, 0])
    np.testing.assert_allclose(gradient, [1 / 4 - 1 / 16, 1 / 16], rtol=1e-6)


# Against NumPy


@pytest.mark.parametrize("constraint", CONSTRAINTS[1:])
@pytest.mark.parametrize("shape", [(4,), (3, 1, 1, 5), (1,)])
def test_against_numpy(constraint, shape):
    parameters = normal(*shape, seed=3)
    parameters[0] = np.abs(parameters[0]) + 0.1  # no sum of 0 under `positive`
    expected = reference(parameters, constraint)
    actual = constrained(parameters, constraint)
    assert actual.dtype == "float32"
    np.testing.assert_allclose(actual, expected, rtol=1e-4)
    if constraint in ("sum_normalized", "positive"):
        np.testing.assert_allclose(actual.numpy().sum(axis=0), 1, rtol=1e-4)
    if constraint == "absolute_normalized":
        np.testing.assert_allclose(np.abs(actual).sum(axis=0), 1, rtol=1e-5)


@pytest.mark.parametrize("constraint", NORMALIZED)
def test_scale_does_not_matter(constraint):
    parameters = np.abs(normal(4, 3)) + 0.1
    for scale in (1e4, 0.1):
        np.testing.assert_allclose(
            weights(scale * parameters, constraint),
            weights(parameters, constraint),
            rtol=1e-5,
        )


def test_half_precision_is_computed_in_float32():
    answer = constrained(tf.constant([1.0, 2.0], "float16"), "positive")
    assert answer.dtype == "float32"
    np.testing.assert_allclose(answer, [1 / 3, 2 / 3], rtol=1e-6)


# Safe denominators


@pytest.mark.parametrize("constraint", NORMALIZED)
@pytest.mark.parametrize(
    "parameters",
    [
        [0.0, 0.0, 0.0],
        [-0.0, 0.0, 0.0],
        [1.0, -1.0, 0.0],
        [1.0, -1.0 + 1e-7, 0.0],
        [1.0, -1.0 - 1e-7, 0.0],
        [-1.0, -2.0, -3.0],
        [1e-30, 0.0, -1e-30],
    ],
)
def test_value_and_gradient_are_finite(constraint, parameters):
    answer = weights(parameters, constraint)
    assert np.isfinite(answer).all()
    largest = max(1.0, np.abs(parameters).max())
    assert np.abs(answer).max() <= largest / SMALLEST_SUM * (1 + 1e-6)
    for factors in np.eye(3):
        gradient = gradient_of_sum(parameters, constraint, factors)
        assert np.isfinite(gradient).all()


def test_denominator_keeps_its_sign():
    # 0.5 - 0.4999 = 1e-4 and its negative: below 1e-3, so divided by +-1e-3.
    w = np.array([0.5, -0.4999])
    np.testing.assert_allclose(weights(w, "sum_normalized"), w / 1e-3, rtol=1e-5)
    np.testing.assert_allclose(weights(-w, "sum_normalized"), w / 1e-3, rtol=1e-5)
    # Just outside it is the formula that counts: 0.5 - 0.498 = 2e-3.
    w = np.array([0.5, -0.498])
    np.testing.assert_allclose(weights(w, "sum_normalized"), w / 2e-3, rtol=1e-4)


def test_denominator_is_a_constant_where_it_was_replaced():
    # a = w / 1e-3 there.
    gradient = gradient_of_sum([1.0, -1.0], "sum_normalized", [1, 0])
    np.testing.assert_allclose(gradient, [1e3, 0], rtol=1e-6)


@pytest.mark.parametrize("constraint", NORMALIZED)
def test_all_zero_is_no_dead_point(constraint):
    # sum_e f_e w_e / 1e-3: each parameter gets its factor times 1,000.
    gradient = gradient_of_sum([0.0, 0.0], constraint, [1.0, -2.0])
    np.testing.assert_allclose(gradient, [1e3, -2e3], rtol=1e-6)


def test_positive_passes_the_gradient_of_what_it_clips():
    # As if w = (2, 0): s = 2, d(a_2)/dw = (-p_2 / s^2, 1 / s) = (0, 1/2).
    for second in (0.0, -5.0):
        gradient = gradient_of_sum([2.0, second], "positive", [0, 1])
        np.testing.assert_allclose(gradient, [0, 1 / 2], rtol=1e-6)


def test_positive_finds_out_of_negative_parameters():
    # One step against the gradient of the squared distance to (0, 1), again and again.
    parameters = tf.Variable([-0.1, -0.2])
    for _ in range(400):
        with tf.GradientTape() as tape:
            distance = tf.reduce_sum(
                (constrained(parameters, "positive") - [0, 1]) ** 2
            )
        gradient = tf.clip_by_norm(tape.gradient(distance, parameters), 1.0)
        parameters.assign_sub(0.01 * gradient)
    np.testing.assert_allclose(constrained(parameters, "positive"), [0, 1], atol=0.02)


@pytest.mark.parametrize("constraint", CONSTRAINTS[1:])
def test_nan_is_not_hidden(constraint):
    assert np.isnan(weights([1.0, np.nan], constraint)[1])
    # What is divided by a sum has it everywhere.
    assert np.isnan(weights([1.0, np.nan], constraint)[0]) == (constraint in NORMALIZED)


# Errors


@pytest.mark.parametrize("name", ["sum-normalised", "Softmax", None, ["softmax"]])
def test_unknown_constraint(name):
    with pytest.raises(ValueError, match="absolute_normalized.* Received: constraint="):
        check_constraint(name)
    with pytest.raises(ValueError, match="Received: constraint="):
        constrained([1.0], name)


def test_known_constraints():
    assert [check_constraint(name) for name in CONSTRAINTS] == list(CONSTRAINTS)
    with pytest.raises(ValueError, match="Received: constraint='softmax'"):
        constrained([1.0], "softmax")
