"""How far a student's answer is from a teacher's, both softened by a temperature."""

import tensorflow as tf

__all__ = ["softened_divergence"]


def softened_divergence(teacher, student, temperature):
    """T^2 KL(softmax(z_teacher / T) || softmax(z_student / T)) of each sample.

    The factor T^2 keeps its gradient as large as that of a cross-entropy, whatever the
    temperature. No gradient reaches the teacher.

    Args:
        teacher, student: (batch, classes) float32, logits or log-probabilities.
        temperature: number > 0.

    Returns:
        (batch,) float32.

    Reference:
        Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015.
    """
    target = tf.nn.log_softmax(tf.stop_gradient(teacher) / temperature)
    answer = tf.nn.log_softmax(student / temperature)
    divergence = tf.reduce_sum(tf.exp(target) * (target - answer), axis=-1)
    return temperature**2 * divergence
