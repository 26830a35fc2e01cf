"""Means over the samples of a batch, wherever they are, and logarithms of 0."""

import tensorflow as tf

__all__ = ["log", "mean", "mean_over_replicas"]

# The least normal float32: stands for a probability of 0 in a logarithm.
_TINY = 1.1754944e-38


def mean(values):
    """Over the samples; 0, not NaN, for a replica that got none."""
    count = tf.maximum(tf.shape(values)[0], 1)
    return tf.reduce_sum(values, axis=0) / tf.cast(count, tf.float32)


def mean_over_replicas(values, counted=None):
    """Over the samples of the whole batch, wherever they are.

    What is no linear function of a mean has to be computed from the mean of all; terms
    that are linear can be averaged afterwards, which Keras does.

    Args:
        values: (samples, ...) float32.
        counted: (samples,) bool, which of them count; None for all.

    Returns:
        (...,) float32; 0 where no sample counts.
    """
    if counted is None:
        count = tf.cast(tf.shape(values)[0], tf.float32)
    else:
        shape = tf.concat([tf.shape(counted), [1] * (len(values.shape) - 1)], axis=0)
        # Selected, not multiplied: what does not count may be a NaN.
        values = tf.where(tf.reshape(counted, shape), values, 0.0)
        count = tf.reduce_sum(tf.cast(counted, tf.float32))
    total = tf.reduce_sum(values, axis=0)
    context = tf.distribute.get_replica_context()
    if context is not None and context.num_replicas_in_sync > 1:
        total, count = context.all_reduce("SUM", [total, count])
    return total / tf.maximum(count, 1.0)


def log(probabilities):
    """Finite at 0, where its product with the probability is 0 as it should be."""
    return tf.math.log(tf.maximum(probabilities, _TINY))
