"""What a `SparseMoE` did for each sample, for the logs and for the count of FLOPs."""

import dataclasses
from typing import Any

import keras
import tensorflow as tf

from keras_dynamic.ops._means import log

__all__ = ["MoERecord", "record_of", "totals_of", "unique_name"]


def unique_name():
    """The name of the next layer, which its logs are named after: as Keras numbers
    layers, whose own word for the class would be "sparse_mo_e"."""
    number = keras.backend.get_uid("sparse_moe") - 1
    return f"sparse_moe_{number}" if number else "sparse_moe"


@dataclasses.dataclass(frozen=True)
class MoERecord:
    """One call of one layer on a batch; all vectors are (batch,) float32.

    Attributes:
        gate: the `SparseMoE`.
        shape: static shape of its input, without the batch axis.
        computed: list of E vectors, the units (tokens, or inputs) that each expert got.
        reached: 1 where the sample got to the layer.
        wanted: how many experts its units wanted, dropped ones included.
        units: its units that are no padding.
        entropy: sum over them of the router's entropy, in nats.
        confidence: sum over them of the router's largest probability.
    """

    gate: Any
    shape: tuple
    computed: list
    reached: tf.Tensor
    wanted: tf.Tensor
    units: tf.Tensor
    entropy: tf.Tensor
    confidence: tf.Tensor

    def vectors(self):
        return [
            *self.computed,
            self.reached,
            self.wanted,
            self.units,
            self.entropy,
            self.confidence,
        ]

    def with_vectors(self, vectors):
        *computed, reached, wanted, units, entropy, confidence = vectors
        return MoERecord(
            self.gate,
            self.shape,
            computed,
            reached,
            wanted,
            units,
            entropy,
            confidence,
        )

    def totals(self):
        """(E + 4,) sums over the samples, for the logs."""
        *computed, _, wanted, units, entropy, confidence = self.vectors()
        vectors = [*computed, wanted, units, entropy, confidence]
        return tf.reduce_sum(tf.stack(vectors), axis=1)


def record_of(layer, shape, choices, wanted, routing, counted):
    """Counts what was decided for each of B samples of N units.

    Args:
        layer: the `SparseMoE`.
        shape: static shape of its input, without the batch axis.
        choices: `Choices`, after dropping.
        wanted: (A,) int32, the experts before dropping, -1 for nobody.
        routing: `Routing`.
        counted: (B, N) bool, the units that are no padding, or None.

    Returns:
        A `MoERecord`.
    """
    logits = routing.logits
    batch, number = tf.shape(logits)[0], tf.shape(logits)[1]
    num_experts = logits.shape[-1]
    assignments = tf.range(tf.size(choices.experts))
    samples = choices.row_of(assignments, batch * number) // tf.maximum(number, 1)
    cells = samples * num_experts + choices.experts
    cells = tf.where(choices.experts < 0, batch * num_experts, cells)
    ones = tf.ones_like(cells, tf.float32)
    computed = tf.math.unsorted_segment_sum(ones, cells, batch * num_experts + 1)[:-1]
    computed = tf.reshape(computed, [batch, num_experts])
    want = tf.cast(wanted >= 0, tf.float32)
    present = tf.ones([batch, number], tf.bool) if counted is None else counted
    entropy, confidence = _certainty(logits, present)
    return MoERecord(
        layer,
        shape,
        tf.unstack(computed, axis=1),
        reached=tf.ones([batch]),
        wanted=tf.math.unsorted_segment_sum(want, samples, batch),
        units=tf.reduce_sum(tf.cast(present, tf.float32), axis=1),
        entropy=tf.reduce_sum(entropy, axis=1),
        confidence=tf.reduce_sum(confidence, axis=1),
    )


def totals_of(choices, wanted, routing, counted):
    """What `record_of(...).totals()` gives, without the numbers for each sample.

    With a token a sample those would be as many as there are tokens and experts.
    """
    logits = routing.logits
    num_experts = logits.shape[-1]
    present = tf.ones(tf.shape(logits)[:2], tf.bool) if counted is None else counted
    entropy, confidence = _certainty(logits, present)
    cells = tf.where(choices.experts < 0, num_experts, choices.experts)
    ones = tf.ones_like(cells, tf.float32)
    computed = tf.math.unsorted_segment_sum(ones, cells, num_experts + 1)[:-1]
    further = [
        tf.reduce_sum(tf.cast(wanted >= 0, tf.float32)),
        tf.reduce_sum(tf.cast(present, tf.float32)),
        tf.reduce_sum(entropy),
        tf.reduce_sum(confidence),
    ]
    return tf.concat([computed, tf.stack(further)], axis=0)


def _certainty(logits, present):
    """(B, N) entropy in nats and largest probability; 0 where nothing is present."""
    probabilities = tf.nn.softmax(logits)
    entropy = -tf.reduce_sum(probabilities * log(probabilities), axis=-1)
    confidence = tf.reduce_max(probabilities, axis=-1)
    return tf.where(present, entropy, 0.0), tf.where(present, confidence, 0.0)
