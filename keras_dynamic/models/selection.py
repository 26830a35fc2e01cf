"""What a selector makes of the exits' outputs: the mixture, and the answer selected.

With a selector a model trains as if it had two more outputs, "selected" and "mixture":
metrics are computed on both, the loss on the second.
"""

import tensorflow as tf

from keras_dynamic.layers._selector import soft_weights
from keras_dynamic.models.per_exit import own_metric

__all__ = ["DERIVED_NAMES", "derived_outputs", "with_derived"]

DERIVED_NAMES = ["selected", "mixture"]

# The least normal float32: stands for a probability of 0 in a logarithm.
_TINY = 1.1754944e-38


def derived_outputs(outputs, weights, kinds):
    """The answer selected and the mixture, from all exits' outputs.

    Args:
        outputs: list of E + 1 tensors (batch, units).
        weights: (batch, E + 1), the selector's.
        kinds: "probabilities" or "logits", one an exit.

    Returns:
        [selected, mixture], (batch, units) each: the output of the exit with the
        largest weight, and sum_e w_e y_e over probabilities, as a probability or as
        the logit of one, whatever the last exit gives.
    """
    stacked = tf.stack([tf.cast(output, tf.float32) for output in outputs], axis=1)
    choice = tf.argmax(weights, axis=-1, output_type=tf.int32)
    broken = tf.reduce_any(tf.math.is_nan(weights), axis=-1)
    choice = tf.where(broken, len(outputs) - 1, choice)  # as `predict_dynamic` does
    selected = tf.gather(stacked, choice, axis=1, batch_dims=1)
    weights = tf.cast(soft_weights(weights), tf.float32)
    probabilities = tf.stack(
        [
            _probabilities(output, kind)
            for output, kind in zip(outputs, kinds, strict=True)
        ],
        axis=1,
    )
    mixture = tf.reduce_sum(weights[:, :, None] * probabilities, axis=1)
    if kinds[-1] == "logits":
        mixture = _logits(mixture)
    return [selected, mixture]


def with_derived(metrics, of_final):
    """Metrics of every exit, and fresh ones for the derived outputs."""
    if not metrics:
        return metrics
    return [*metrics, *([own_metric(m) for m in of_final] for _ in DERIVED_NAMES)]


def _probabilities(output, kind):
    output = tf.cast(output, tf.float32)
    if kind == "probabilities":
        return output
    return tf.sigmoid(output) if output.shape[-1] == 1 else tf.nn.softmax(output)


def _logits(probabilities):
    """Logits whose softmax (sigmoid for one unit) is `probabilities`."""
    logarithm = tf.math.log(tf.maximum(probabilities, _TINY))
    if probabilities.shape[-1] > 1:
        return logarithm
    return logarithm - tf.math.log(tf.maximum(1.0 - probabilities, _TINY))
