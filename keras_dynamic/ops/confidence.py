"""Scores of a classifier's answer, and the probabilities that they are made from.

Shapes: `probabilities` is (batch, classes), or (batch, 1) for a binary head, whose
one column is the probability of class 1. Scores are (batch,), float32; a row with a
NaN scores NaN.
"""

import tensorflow as tf

__all__ = [
    "calibrated_probabilities",
    "entropy",
    "log_probabilities",
    "margin",
    "max_probability",
    "predicted_class",
    "two_columns",
]

# The least normal float32: stands for a probability of 0 in a logarithm.
_TINY = 1.1754944e-38


def log_probabilities(outputs, kind):
    """Log-probabilities, (batch, classes) float32, from a head's outputs.

    Args:
        outputs: (batch, units), any float type.
        kind: "probabilities" or "logits". One unit is a sigmoid head: two columns
            come back.

    Returns:
        Log-probabilities, float32; NaN where an output is NaN, finite where a
        probability is 0.
    """
    outputs = tf.cast(outputs, tf.float32)
    binary = outputs.shape[-1] == 1
    if kind == "logits":
        if binary:
            return tf.concat(
                [-tf.math.softplus(outputs), -tf.math.softplus(-outputs)], axis=-1
            )
        return tf.nn.log_softmax(outputs)
    if binary:
        outputs = tf.concat([1.0 - outputs, outputs], axis=-1)
    # Only a 0 is lifted: a NaN, and the NaN of what is no probability, have to stay.
    return tf.math.log(tf.where(outputs == 0.0, _TINY, outputs))


def calibrated_probabilities(outputs, kind, temperature):
    """Probabilities after temperature scaling, in the shape of `outputs`.

    softmax(log p / T) for several classes; its two-class form for one unit.

    Args:
        outputs: (batch, units), any float type.
        kind: "probabilities" or "logits".
        temperature: scalar > 0; 1 leaves the probabilities as they are.

    Returns:
        Float32 of the shape of `outputs`.

    Reference:
        Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks",
        ICML 2017.
    """
    scaled = tf.nn.softmax(log_probabilities(outputs, kind) / temperature)
    return scaled[:, 1:] if outputs.shape[-1] == 1 else scaled


def two_columns(probabilities):
    """(batch, 1) probabilities of class 1 as (batch, 2); others unchanged."""
    if probabilities.shape[-1] != 1:
        return probabilities
    return tf.concat([1.0 - probabilities, probabilities], axis=-1)


def max_probability(probabilities):
    """The largest probability, in (0, 1]; for a binary head max(p, 1 - p)."""
    probabilities = two_columns(_float32(probabilities))
    return _nan_where_broken(tf.reduce_max(probabilities, axis=-1), probabilities)


def entropy(probabilities):
    """Entropy -sum_c p_c log p_c in nats, in [0, log classes]; 0 log 0 is 0."""
    probabilities = two_columns(_float32(probabilities))
    return -tf.reduce_sum(tf.math.xlogy(probabilities, probabilities), axis=-1)


def margin(probabilities):
    """The largest probability less the second largest, in [0, 1]."""
    probabilities = two_columns(_float32(probabilities))
    top = tf.math.top_k(probabilities, k=2).values
    return _nan_where_broken(top[:, 0] - top[:, 1], probabilities)


def predicted_class(probabilities):
    """The most probable class, int32; the first of equals."""
    return tf.argmax(
        two_columns(_float32(probabilities)), axis=-1, output_type=tf.int32
    )


def _nan_where_broken(score, probabilities):
    """NaN for rows with a NaN, which a sort, and under XLA a maximum, passes over."""
    broken = tf.reduce_any(tf.math.is_nan(probabilities), axis=-1)
    return tf.where(broken, float("nan"), score)


def _float32(probabilities):
    return tf.cast(tf.convert_to_tensor(probabilities), tf.float32)
