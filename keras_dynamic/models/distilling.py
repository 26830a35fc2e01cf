"""Early exits that learn from the final one: a term of a `DynamicModel`'s loss."""

import math
import numbers

import keras
import tensorflow as tf

from keras_dynamic.models.loss_weights import Scaled
from keras_dynamic.ops.confidence import log_probabilities
from keras_dynamic.ops.distillation import softened_divergence

__all__ = ["Distillation"]


class Distillation:
    """A share alpha of each early exit's loss comes from the final exit's answer.

    lambda_e ((1 - alpha) L(y, y_e) + alpha T^2 KL(final_T || exit_T)).

    Args:
        weight: number in [0, 1], alpha.
        temperature: number > 0, T.
    """

    def __init__(self, weight, temperature):
        for name, value in (("weight", weight), ("temperature", temperature)):
            if isinstance(value, bool) or not isinstance(value, numbers.Real):
                raise TypeError(
                    f"`distillation_{name}` must be a number. Received: "
                    f"distillation_{name}={value!r} of type {type(value)}."
                )
        if not 0 <= weight <= 1:
            raise ValueError(
                "`distillation_weight` must lie in [0, 1]. Received: "
                f"distillation_weight={weight}."
            )
        if not 0 < temperature < math.inf:
            raise ValueError(
                "`distillation_temperature` must be finite and > 0. Received: "
                f"distillation_temperature={temperature}."
            )
        self.weight, self.temperature = weight, temperature

    def weights_of_labels(self, weights, num_early):
        """Weights of the exits' own losses, those of the first ones times 1 - alpha."""
        early = [Scaled(weight, 1 - self.weight) for weight in weights[:num_early]]
        return [*early, *weights[num_early:]]

    def loss(self, outputs, kinds, losses, weights, sample_weights):
        """The term that the final exit's answer adds, a scalar.

        Args:
            outputs: list of (batch, units), one an exit.
            kinds: "probabilities" or "logits", one an exit.
            losses: of the exits; one that has none learns nothing here either.
            weights: lambda of each exit, numbers or variables.
            sample_weights: (batch,) or None, or a list of these, one an exit.
        """
        if not isinstance(sample_weights, (list, tuple)):
            sample_weights = [sample_weights] * len(outputs)
        total, teacher = tf.zeros([]), _logarithms(outputs[-1], kinds[-1])
        for index, output in enumerate(outputs[:-1]):
            if losses[index] is None:
                continue
            student = _logarithms(output, kinds[index])
            values = softened_divergence(teacher, student, self.temperature)
            if sample_weights[index] is not None:
                given = tf.cast(sample_weights[index], tf.float32)
                values *= tf.reshape(given, [-1])
            # 0, not NaN, for a replica that got no rows.
            count = tf.cast(tf.maximum(tf.size(values), 1), tf.float32)
            mean = tf.reduce_sum(values) / count
            total += tf.cast(tf.convert_to_tensor(weights[index]), tf.float32) * mean
        # Keras adds the gradients of replicas up, and divides its own losses so.
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        return self.weight * total / replicas


def _logarithms(outputs, kind):
    """Log-probabilities, away from 0 and 1 by as much as in Keras' own losses."""
    outputs = tf.cast(outputs, tf.float32)
    if kind == "probabilities":
        epsilon = keras.config.epsilon()
        outputs = tf.clip_by_value(outputs, epsilon, 1.0 - epsilon)
    return log_probabilities(outputs, kind)
