"""What the tests of gradients share."""

import numpy as np
import tensorflow as tf


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def value_and_gradient(function, logits, objective):
    """The answer, and the gradient of the sum of `objective(answer)` in the logits."""
    logits = tf.convert_to_tensor(logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        answer = function(logits)
        loss = tf.reduce_sum(objective(answer))
    return answer.numpy(), tape.gradient(loss, logits).numpy()
