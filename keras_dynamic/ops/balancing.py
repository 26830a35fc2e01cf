"""What keeps experts evenly busy: scalars for `add_loss`, float32.

T tokens, E experts, K choices. `probabilities` are (T, E), the softmax of the router's
logits without noise; `counted` is (T,) bool, the tokens that count, or None for all.
Under `tf.distribute` every mean is one over the tokens of all replicas.

The share of tokens that an expert gets is a count and has no gradient: what these
penalize are functions of probabilities, which have one.
"""

import math

import tensorflow as tf

from keras_dynamic.ops._means import log, mean_over_replicas

__all__ = [
    "divergence_from_even",
    "importance_loss",
    "load_loss",
    "switch_loss",
    "z_loss",
]


def divergence_from_even(probabilities, counted=None):
    """KL(p || uniform) = sum_e p_e log(E p_e), p the mean over the tokens, in nats.

    Between 0 and log E.
    """
    average = mean_over_replicas(tf.cast(probabilities, tf.float32), counted)
    num_experts = average.shape[-1]
    # The mean of no token at all is no distribution.
    scale = tf.reduce_sum(average)
    return tf.reduce_sum(average * log(average)) + scale * math.log(num_experts)


def importance_loss(probabilities, counted=None):
    """(standard deviation / mean)^2 over the experts of sum_x p_e(x).

    Riquelme et al., 2021, appendix A.2.
    """
    return _squared_variation(
        mean_over_replicas(tf.cast(probabilities, tf.float32), counted)
    )


def load_loss(win_probabilities, counted=None):
    """(standard deviation / mean)^2 over the experts of the load to be expected.

    Args:
        win_probabilities: (T, E), the probability that an expert would be among the
            chosen ones of a token if its noise were drawn anew.

    Riquelme et al., 2021, appendix A.3.
    """
    return _squared_variation(
        mean_over_replicas(tf.cast(win_probabilities, tf.float32), counted)
    )


def switch_loss(probabilities, experts, counted=None):
    """E sum_e f_e P_e: f the shares of the choices made, P the mean probabilities.

    1 where both are even. Only P carries a gradient.

    Args:
        experts: (T, K) int32, the choices made.

    Fedus, Zoph and Shazeer, 2022, equation 4.
    """
    num_experts = probabilities.shape[-1]
    chosen = tf.reduce_mean(tf.one_hot(experts, num_experts), axis=1)
    both = tf.concat([tf.cast(probabilities, tf.float32), chosen], axis=1)
    average = mean_over_replicas(both, counted)
    mean_probability, share = tf.split(average, 2)
    return num_experts * tf.reduce_sum(tf.stop_gradient(share) * mean_probability)


def z_loss(logits, counted=None):
    """Mean over the tokens of log(sum_e exp(l_e))^2, which keeps logits small.

    Zoph et al., "ST-MoE: Designing Stable and Transferable Sparse Expert Models",
    2022, equation 5.

    Args:
        logits: (T, E).
    """
    size = tf.reduce_logsumexp(tf.cast(logits, tf.float32), axis=-1)
    return mean_over_replicas(tf.square(size), counted)


def _squared_variation(amounts):
    average = tf.reduce_mean(amounts)
    variance = tf.reduce_mean(tf.square(amounts - average))
    return tf.math.divide_no_nan(variance, tf.square(average))
