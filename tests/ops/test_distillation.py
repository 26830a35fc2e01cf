"""Softened divergence: by hand, against SciPy, and where its gradient goes."""

import numpy as np
import pytest
import tensorflow as tf
from scipy.special import log_softmax, softmax

from keras_dynamic.ops.distillation import softened_divergence


def test_by_hand():
    # T = 2: logits (2 log 3, 0) / 2 -> p = (3/4, 1/4); (0, 0) -> q = (1/2, 1/2).
    # KL = 3/4 log(3/2) + 1/4 log(1/2) = 0.304099 - 0.173287 = 0.130812; times 4.
    teacher = np.array([[2 * np.log(3.0), 0.0]], "float32")
    found = softened_divergence(teacher, np.zeros((1, 2), "float32"), 2.0)
    np.testing.assert_allclose(found, [4 * 0.130812], rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 7.0])
def test_against_scipy(temperature):
    teacher, student = np.random.default_rng(0).normal(size=(2, 6, 5)).astype("float32")
    p = softmax(teacher / temperature, axis=1)
    difference = [log_softmax(z / temperature, axis=1) for z in (teacher, student)]
    wanted = temperature**2 * (p * (difference[0] - difference[1])).sum(axis=1)
    found = softened_divergence(teacher, student, temperature)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
    # Logits that differ by a constant are the same answer.
    shifted = softened_divergence(teacher + 3.0, student - 2.0, temperature)
    np.testing.assert_allclose(found, shifted, rtol=1e-3, atol=1e-5)


def test_nothing_where_they_agree_and_no_gradient_for_the_teacher():
    logits = tf.constant([[1.0, -2.0, 0.5]])
    np.testing.assert_allclose(softened_divergence(logits, logits, 3.0), [0], atol=1e-6)
    with tf.GradientTape(persistent=True) as tape:
        teacher, student = tf.Variable(logits), tf.Variable(logits[:, ::-1])
        value = softened_divergence(teacher, student, 2.0)
    assert tape.gradient(value, teacher) is None
    # T^2 d KL / d z = T (q - p), with both softened.
    p, q = (tf.nn.softmax(z / 2.0) for z in (teacher, student))
    np.testing.assert_allclose(
        tape.gradient(value, student), 2.0 * (q - p), rtol=1e-5, atol=1e-7
    )
