"""Weights of a blend, from free parameters: five constraints.

A blend f(x) = sum_e a_e phi_e(x) has E weights a. They are made from parameters w,
which an optimizer moves freely, along axis 0, by one of

    softmax              a = softmax(w / tau), and its hard and noisy relatives
    unrestricted         a = w
    sum_normalized       a_e = w_e / sum_k w_k
    absolute_normalized  a_e = w_e / sum_k |w_k|
    positive             a_e = p_e / sum_k p_k, where p = max(w, 0)

The first is a choice, and lies in `estimators`; the other four are here.
"""

import tensorflow as tf

__all__ = ["CONSTRAINTS", "SMALLEST_SUM", "check_constraint", "constrained"]

CONSTRAINTS = (
    "softmax",
    "unrestricted",
    "sum_normalized",
    "absolute_normalized",
    "positive",
)

# The least absolute value of a denominator: a weight is at most 1,000 times its
# parameter, and sums of ordinary parameters, of order 1, are divided by as they are.
SMALLEST_SUM = 1e-3


def constrained(parameters, constraint):
    """Weights of a blend under one of the constraints without a softmax.

    A denominator s with |s| < `SMALLEST_SUM` is replaced by that number with the sign
    of s (plus, for 0), and then counts as a constant. So no answer and no gradient is
    infinite or NaN; the weights then do not sum to 1; and where a sum of both signs
    crosses 0, they jump from one sign to the other, as the formula does.

    `positive` clips its parameters at 0 by value only: the gradient goes through as if
    nothing had been clipped. So a weight of 0, or all of them, can grow again, which a
    clipped parameter without a gradient never would.

    Args:
        parameters: (E, ...), any float type.
        constraint: one of `CONSTRAINTS` but `"softmax"`.

    Returns:
        Float32 of the same shape; with a denominator of at least `SMALLEST_SUM`, the
        sums along axis 0 are 1 for `"sum_normalized"` and `"positive"`, and those of
        the absolute values are 1 for `"absolute_normalized"`.

    Raises:
        ValueError: for another constraint.
    """
    parameters = tf.cast(tf.convert_to_tensor(parameters), tf.float32)
    if constraint == "unrestricted":
        return parameters
    if constraint == "sum_normalized":
        return parameters / _safe_sum(parameters)
    if constraint == "absolute_normalized":
        return parameters / _safe_sum(tf.abs(parameters))
    if constraint == "positive":
        negative_part = tf.stop_gradient(tf.minimum(parameters, 0.0))
        clipped = parameters - negative_part
        return clipped / _safe_sum(clipped)
    raise ValueError(
        f"`constraint` must be one of {CONSTRAINTS[1:]}. Received: "
        f"constraint={constraint!r}."
    )


def check_constraint(constraint):
    """Returns `constraint` if it is known.

    Raises:
        ValueError: naming those that are.
    """
    if constraint not in CONSTRAINTS:
        raise ValueError(
            f"`constraint` must be one of {CONSTRAINTS}. Received: "
            f"constraint={constraint!r}."
        )
    return constraint


def _safe_sum(values):
    """Sum along axis 0, kept, that can be divided by; a NaN stays one."""
    total = tf.reduce_sum(values, axis=0, keepdims=True)
    substitute = tf.where(total < 0, -SMALLEST_SUM, SMALLEST_SUM)
    return tf.where(tf.abs(total) < SMALLEST_SUM, substitute, total)
