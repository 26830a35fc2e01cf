"""What the choices of a layer are regularized by: scalars for `add_loss`, float32.

`probabilities` are (batch, choices), the choices' probabilities for each sample.
"""

import tensorflow as tf

from keras_dynamic.ops._means import log, mean, mean_over_replicas

__all__ = [
    "divergence_from_prior",
    "expected_cost",
    "mean_entropy",
    "open_rate_penalty",
]


def mean_entropy(probabilities):
    """Mean over the samples of the entropy of their choice, in nats.

    The less it is, the more a soft choice looks like a hard one.
    """
    probabilities = tf.cast(probabilities, tf.float32)
    return mean(-tf.reduce_sum(probabilities * log(probabilities), axis=-1))


def divergence_from_prior(probabilities, prior, per_sample=False):
    """Kullback-Leibler divergence of the choices from a prior, in nats.

    KL(p || prior) = sum_e p_e log(p_e / prior_e), where p is the mean over the batch,
    under `tf.distribute` over the parts of it that all replicas have.

    Args:
        probabilities: (batch, choices).
        prior: (choices,), positive, sums to 1.
        per_sample: whether to take each sample's divergence and then the mean. That
            pulls every single choice to the prior, and works against adaptivity.

    Returns:
        A float32 scalar >= 0.
    """
    probabilities = tf.cast(probabilities, tf.float32)
    if not per_sample:
        probabilities = mean_over_replicas(probabilities)[None]
    ratio = log(probabilities) - tf.math.log(tf.cast(prior, tf.float32))
    return mean(tf.reduce_sum(probabilities * ratio, axis=-1))


def expected_cost(probabilities, costs):
    """Mean over the samples of sum_e p_e o_e.

    Args:
        probabilities: (batch, choices).
        costs: (choices,), the cost of each.

    Returns:
        A float32 scalar.
    """
    probabilities = tf.cast(probabilities, tf.float32)
    return mean(tf.reduce_sum(probabilities * tf.cast(costs, tf.float32), axis=-1))


def open_rate_penalty(opened, probabilities, target):
    """(rate - target)^2 of the share of samples that a gate lets through.

    The rate is that of the hard decisions; its gradient is that of the mean
    probability, since decisions have none.

    Args:
        opened: (batch,), 1 for an open sample, 0 for a closed one.
        probabilities: (batch,), of being open.
        target: number in (0, 1].

    Returns:
        A float32 scalar.
    """
    probability = mean_over_replicas(tf.cast(probabilities, tf.float32))
    rate = tf.stop_gradient(mean_over_replicas(tf.cast(opened, tf.float32)))
    rate += probability - tf.stop_gradient(probability)
    return tf.square(rate - target)
