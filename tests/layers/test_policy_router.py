"""A router that is trained by reward: its weight is 1, with the gradient of log pi."""

import keras
import numpy as np
import tensorflow as tf
from keras import ops

import keras_dynamic as kd


class Policy(kd.routers.Router):
    """Draws an expert in training; takes the most probable one otherwise."""

    routes_all = True

    def call(self, inputs, mask=None, training=False):
        logits = self.logits(inputs)
        experts = ops.argmax(logits, axis=-1, keepdims=True)
        if training:
            flat = ops.reshape(logits, (-1, self.num_experts))
            drawn = keras.random.categorical(flat, 1, seed=self.seed_generator)
            experts = ops.reshape(drawn, ops.shape(experts))
        log_pi = ops.take_along_axis(ops.log_softmax(logits), experts, axis=-1)
        weights = ops.exp(log_pi - ops.stop_gradient(log_pi))
        return kd.routers.Routing(weights, logits, ops.cast(experts, "int32"))


def data(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def constants(values):
    """Experts whose answer is a number, whatever the input."""
    return [
        keras.layers.Dense(
            1,
            kernel_initializer="zeros",
            bias_initializer=keras.initializers.Constant(value),
            trainable=False,
        )
        for value in values
    ]


def test_the_gradient_is_that_of_reinforce():
    """sum_i A_i grad log pi(e_i) = x^T (A (onehot(e) - pi)), A the advantages."""
    x, advantage = data(50, 4), data(50, seed=1)
    policy = Policy(3, seed=5)
    moe = kd.SparseMoE(experts=constants([1, 2, 3]), router=policy, balance_loss=None)
    moe.build((None, 4))
    with tf.GradientTape() as tape:
        answers = moe(x, training=True)[:, 0]
        drawn = np.round(answers).astype(int)
        # The answer is e times a weight of 1, whose gradient is that of log pi.
        loss = tf.reduce_sum(advantage * answers / drawn)
    (gradient,) = tape.gradient(loss, moe.trainable_weights)
    np.testing.assert_allclose(answers, drawn, rtol=1e-6)
    logits = x @ policy.kernel.numpy()
    pi = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = x.T @ (advantage[:, None] * (np.eye(3)[drawn - 1] - pi))
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


def test_learns_from_reward_alone():
    """Each sign of feature 0 is paid for another expert."""
    x = data(512, 4)
    wanted = (x[:, 0] > 0).astype(int)
    policy = Policy(2, seed=0)
    moe = kd.SparseMoE(experts=constants([0, 1]), router=policy, balance_loss=None)
    moe.build((None, 4))
    policy.kernel.assign(0 * policy.kernel)
    optimizer, baseline = keras.optimizers.Adam(0.05), 0.0
    for _ in range(60):
        with tf.GradientTape() as tape:
            routing = policy(x[:, None], training=True)
            reward = (routing.experts.numpy()[:, 0, 0] == wanted).astype("float32")
            loss = -tf.reduce_mean((reward - baseline) * routing.weights[:, 0, 0])
        baseline += 0.1 * (reward.mean() - baseline)
        optimizer.apply(tape.gradient(loss, [policy.kernel.value]), [policy.kernel])
    assert np.mean(np.round(moe(x)[:, 0]) == wanted) > 0.95
