"""Choices that pass a gradient: five estimators, for one of K and for yes or no.

All layers that choose (an exit, a layer, an activation, whether to skip) call
`categorical` or `binary`. With logits l, temperature tau and, in training, fresh noise
g (Gumbel for one of K, its difference, logistic, for yes or no):

    estimator                forward in training        gradient in training
    soft                     softmax(l / tau)           its own
    gumbel_softmax           softmax((l + g) / tau)     its own
    straight_through         one-hot argmax l           of softmax(l / tau)
    gumbel_straight_through  one-hot argmax (l + g)     of softmax((l + g) / tau)
    reinmax                  one-hot argmax (l + g)     second order, see `categorical`

When not training there is no noise: softmax(l / tau) for the first two, the relaxed
ones, and the one-hot argmax of l, with the gradient of softmax(l / tau), for the other
three, the hard ones.

Everything is computed in float32, whatever the type of the logits: in float16 a small
temperature overflows, and in bfloat16 uniform noise has 128 values in all.
"""

import math
import numbers

import numpy as np
import tensorflow as tf

__all__ = [
    "ESTIMATORS",
    "HARD_ESTIMATORS",
    "SAMPLING_ESTIMATORS",
    "binary",
    "categorical",
    "check_estimator",
    "check_temperature",
    "logits_from_probabilities",
]

ESTIMATORS = (
    "soft",
    "straight_through",
    "gumbel_softmax",
    "gumbel_straight_through",
    "reinmax",
)
# Those that answer with a one-hot vector, and those that draw noise in training.
HARD_ESTIMATORS = ("straight_through", "gumbel_straight_through", "reinmax")
SAMPLING_ESTIMATORS = ("gumbel_softmax", "gumbel_straight_through", "reinmax")

# Stands for an infinite logit: 0 times it is 0, and it can be divided by a small
# temperature.
_HUGE = 1e20


def categorical(
    logits, estimator, temperature=1.0, *, axis=-1, seed=None, training=False
):
    """Chooses one of K along an axis; see the top of the file for the estimators.

    `reinmax` (Liu et al., 2023) corrects straight-through to second order: with
    p = softmax(l), the one-hot draw D and q = (D + softmax(l / tau)) / 2 its gradient
    is that of 2 softmax_q - softmax_p / 2, where softmax_q stands for a softmax that
    has the value q. At tau = 1 it is unbiased for quadratic functions.

    Args:
        logits: (..., K, ...) unnormalized log-probabilities, any float type. A choice
            with the logit -inf is never taken, one with inf always (several share
            it); a row with a NaN, or of -inf only, answers NaN (at inference as well
            as in training).
        estimator: one of `ESTIMATORS`.
        temperature: tau > 0, for `reinmax` >= 1: a number, or a tensor or variable
            that broadcasts to `logits`. See `check_temperature` for what happens
            where it is not.
        axis: int, where the K choices lie.
        seed: (2,) int32, from `replica_seed`. Not read where nothing is drawn.
        training: Python bool, whether to draw noise.

    Returns:
        Float32 of the shape of `logits`; sums to 1 along `axis`, exactly one-hot for
        the hard estimators.

    Raises:
        ValueError: for an unknown estimator, a temperature out of its range, or no
            seed where noise is drawn.
    """
    draws = training and estimator in SAMPLING_ESTIMATORS
    tau = check_temperature(temperature, estimator, asserting=training)
    logits = _float32(logits)
    # An infinite one has to stay above the finite ones.
    largest = logits.dtype.max
    logits = _centered(tf.where(logits > largest, largest, logits), axis)
    perturbed = logits
    if draws:
        perturbed = _centered(logits + _noise("Gumbel", logits, seed), axis)
    soft = tf.nn.softmax(perturbed / tau, axis=axis)
    if estimator not in HARD_ESTIMATORS:
        return soft
    # Of the perturbed logits: at a high temperature their softmax may hold equals.
    hard = _one_hot_argmax(perturbed, axis)
    if draws and estimator == "reinmax":
        tempered = tf.nn.softmax(logits / tau, axis=axis)
        soft = 2 * _softmax_tangent((hard + tempered) / 2, logits, axis)
        soft -= _softmax_tangent(tf.nn.softmax(logits, axis=axis), logits, axis) / 2
    return _straight_through(hard, soft)


def binary(logits, estimator, temperature=1.0, *, seed=None, training=False):
    """Chooses yes (1) or no (0) for each logit; see the top of the file.

    This is `categorical` over the logits (0, l), of which it gives the second answer:
    softmax becomes sigmoid, and the difference of two Gumbel variables is logistic. A
    logit of 0 without noise is a no.

    Args:
        logits: any shape, log(p / (1 - p)) of the probability p of a yes, any float
            type. -inf is always no, inf always yes; NaN answers NaN.
        estimator: one of `ESTIMATORS`.
        temperature: tau > 0, for `reinmax` >= 1, as in `categorical`.
        seed: (2,) int32, from `replica_seed`. Not read where nothing is drawn.
        training: Python bool, whether to draw noise.

    Returns:
        Float32 of the shape of `logits`, in [0, 1]; exactly 0 or 1 for the hard
        estimators.

    Raises:
        ValueError: as `categorical`.
    """
    draws = training and estimator in SAMPLING_ESTIMATORS
    tau = check_temperature(temperature, estimator, asserting=training)
    logits = _finite(_float32(logits))
    perturbed = logits
    if draws:
        perturbed = logits + _noise("Logistic", logits, seed)
    soft = tf.sigmoid(perturbed / tau)
    if estimator not in HARD_ESTIMATORS:
        return soft
    hard = tf.cast(perturbed > 0, tf.float32)
    if draws and estimator == "reinmax":
        tempered = tf.sigmoid(logits / tau)
        soft = 2 * _sigmoid_tangent((hard + tempered) / 2, logits)
        soft -= _sigmoid_tangent(tf.sigmoid(logits), logits) / 2
    return _straight_through(hard, soft)


def logits_from_probabilities(probabilities, *, binary=False):
    """Logits for `categorical`, or for `binary`, from probabilities.

    Args:
        probabilities: any shape, in [0, 1], any float type. They need not sum to 1.
        binary: whether each is the probability of a yes: log(p / (1 - p)) then stands
            in place of log p.

    Returns:
        Float32 of the same shape: -inf for the probability 0, and for a binary 1
        inf, both without a gradient, since theirs would be infinite; NaN where there
        is no probability.
    """
    probabilities = _float32(probabilities)
    if not binary:
        return _log(probabilities)
    return _log(probabilities) - _log(1.0 - probabilities)


def check_estimator(estimator):
    """Returns `estimator` if it is known.

    Raises:
        ValueError: naming those that are.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(
            f"`estimator` must be one of {ESTIMATORS}. Received: "
            f"estimator={estimator!r}."
        )
    return estimator


def check_temperature(temperature, estimator, *, asserting=True, origin=""):
    """Returns the temperature as a float32 tensor if the estimator can divide by it.

    A number, and in eager mode any tensor, is checked at once. In a graph the value
    is known later only: an assertion is put there, which XLA leaves out, and a
    temperature out of its range becomes NaN, which no answer survives. Under XLA the
    NaN is what is seen.

    Args:
        temperature: a finite number > 0 (>= 1 for `reinmax`), or a tensor or variable.
        estimator: one of `ESTIMATORS`.
        asserting: whether to put an assertion into a graph; a model that is exported
            for inference does without.
        origin: where the number comes from, for the message: " at step 3".

    Raises:
        TypeError: for what is neither a number nor a tensor.
        ValueError: for an unknown estimator, or a temperature out of its range;
            InvalidArgumentError from a graph.
    """
    check_estimator(estimator)
    lowest = ">= 1 with estimator='reinmax'" if estimator == "reinmax" else "> 0"
    message = f"`temperature` must be finite and {lowest}. Received: temperature="
    is_number = isinstance(temperature, numbers.Real) and type(temperature) is not bool
    if not (is_number or hasattr(temperature, "dtype")):
        raise TypeError(
            "`temperature` must be a number, a tensor or a variable. Received: "
            f"temperature={temperature!r} of type {type(temperature)}{origin}."
        )
    if is_number:
        # 1e-50 would be 0 as a float32, and 1e50 infinite.
        value, limits = float(temperature), np.finfo(np.float32)
        representable = float(limits.tiny) <= value <= float(limits.max)
        if not (representable and _in_range(value, estimator)):
            raise ValueError(f"{message}{temperature!r}{origin}.")
        return tf.constant(value, tf.float32)
    value = _float32(temperature)
    fits = _in_range(value, estimator)
    if tf.executing_eagerly():
        if not bool(tf.reduce_all(fits)):
            raise ValueError(f"{message}{value.numpy()}{origin}.")
        return value
    if asserting:
        assertion = tf.debugging.Assert(tf.reduce_all(fits), [message, value])
        with tf.control_dependencies([assertion]):
            value = tf.identity(value)
    return tf.where(fits, value, math.nan)


def _in_range(value, estimator):
    """False for a NaN as well."""
    return value >= 1 if estimator == "reinmax" else value > 0


def _float32(values):
    return tf.cast(tf.convert_to_tensor(values), tf.float32)


def _centered(logits, axis):
    """Logits with 0 for the largest, so that what is divided by tau is small.

    A softmax does not change by it, and neither does its gradient.
    """
    highest = tf.reduce_max(logits, axis=axis, keepdims=True)
    return _finite(logits - tf.stop_gradient(highest))


def _finite(logits):
    """Infinities replaced by huge numbers; comparisons leave a NaN as it is."""
    logits = tf.where(logits < -_HUGE, -_HUGE, logits)
    return tf.where(logits > _HUGE, _HUGE, logits)


def _log(probabilities):
    """log p, and -inf without a gradient for 0: 1 / 0 times 0 would be NaN."""
    # Subnormal numbers count as 0, as they do on most devices; 1 / p overflows there.
    zero = tf.abs(probabilities) < np.finfo(np.float32).tiny
    logarithm = tf.math.log(tf.where(zero, 1.0, probabilities))
    return tf.where(zero, -math.inf, logarithm)


def _noise(distribution, logits, seed):
    """One draw for each logit, from a distribution of TensorFlow Probability.

    Its uniform numbers lie in [tiny, 1), so that no draw is infinite. Only the noise is
    taken: `RelaxedOneHotCategorical` knows the last axis only, and hands out no
    perturbed logits for an argmax. The import is here, since it takes longer than that
    of the rest of the package, and outside of any graph that is being traced.
    """
    if seed is None:
        raise ValueError(
            "Noise needs a `seed` in training: "
            "replica_seed(keras.random.SeedGenerator().next()). Received: seed=None."
        )
    with tf.init_scope():
        from tensorflow_probability import distributions

    seed = tf.cast(tf.convert_to_tensor(seed), tf.int32)
    standard = getattr(distributions, distribution)(0.0, 1.0)
    return tf.ensure_shape(standard.sample(tf.shape(logits), seed=seed), logits.shape)


def _one_hot_argmax(logits, axis):
    axis %= logits.shape.rank  # `tf.one_hot` knows no other negative axis than -1
    choices = logits.shape[axis]
    if choices is None:
        choices = tf.shape(logits)[axis]
    return tf.one_hot(tf.argmax(logits, axis=axis), choices, axis=axis)


def _straight_through(hard, soft):
    """The value of `hard` with the gradient of `soft`.

    In this order: soft - soft is exactly 0, while hard - soft + soft is rounded.
    """
    return tf.stop_gradient(hard) + (soft - tf.stop_gradient(soft))


def _softmax_tangent(probabilities, logits, axis):
    """Linear in the logits, with the gradient of a softmax that has this value:
    diag(p) - p p^T. No logarithm of p is taken, which may be 0."""
    fixed = tf.stop_gradient(probabilities)
    mean = tf.reduce_sum(fixed * logits, axis=axis, keepdims=True)
    return fixed * (logits - mean)


def _sigmoid_tangent(probabilities, logits):
    """The same for a sigmoid: p (1 - p)."""
    fixed = tf.stop_gradient(probabilities)
    return fixed * (1.0 - fixed) * logits
