"""Two-layer networks, one for each group of rows."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import special

from keras_dynamic.ops.feed_forward import (
    dense_feed_forward,
    grouped_feed_forward,
    stacked_feed_forward,
)
from tests.ops.gradients import normal

FEATURES, HIDDEN, OUTPUTS = 3, 4, 2


def gated(inner):
    gate, value = tf.split(inner, 2, axis=-1)
    return tf.sigmoid(gate) * value


FORMS = {
    "relu": (tf.nn.relu, lambda z: np.maximum(z, 0), 1),
    "gelu": (
        lambda z: tf.nn.gelu(z, approximate=False),
        lambda z: z * 0.5 * (1 + special.erf(z / np.sqrt(2))),
        1,
    ),
    "softmax": (tf.nn.softmax, lambda z: special.softmax(z, axis=-1), 1),
    "gated": (gated, lambda z: special.expit(z[..., :4]) * z[..., 4:], 2),
}


def weights(number, inner, use_bias=True, dtype="float32"):
    shapes = [(FEATURES, inner), (inner,), (HIDDEN, OUTPUTS), (OUTPUTS,)]
    return [
        tuple(
            tf.cast(normal(*shape, seed=10 * expert + index), dtype)
            if use_bias or len(shape) == 2
            else None
            for index, shape in enumerate(shapes)
        )
        for expert in range(number)
    ]


def reference(row, own, activate):
    first, first_bias, second, second_bias = (
        0 if tensor is None else tf.cast(tensor, "float64").numpy() for tensor in own
    )
    return activate(row @ first + first_bias) @ second + second_bias


def test_by_hand():
    # x = (1, -2): x W1 + b1 = (1 + 0, -2 + 1) = (1, -1); relu: (1, 0); times W2 =
    # ((3), (5)): 3; plus 0.5.
    own = ([[1.0, 0.0], [0.0, 1.0]], [0.0, 1.0], [[3.0], [5.0]], [0.5])
    own = tuple(tf.constant(tensor) for tensor in own)
    answer = dense_feed_forward(tf.constant([[1.0, -2.0]]), own, tf.nn.relu)
    assert answer.numpy().tolist() == [[3.5]]


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_against_numpy(form, use_bias):
    activate, in_numpy, wide = FORMS[form]
    own = weights(3, wide * HIDDEN, use_bias)
    rows = normal(6, FEATURES)
    experts = [0, 0, 0, 1, 2, 2]
    expected = [
        reference(row, own[expert], in_numpy)
        for row, expert in zip(rows, experts, strict=True)
    ]
    grouped = grouped_feed_forward(rows, tf.constant([3, 1, 2]), own, activate)
    np.testing.assert_allclose(grouped, expected, rtol=1e-4, atol=1e-5)
    one = dense_feed_forward(rows[:3], own[0], activate)
    np.testing.assert_allclose(one, expected[:3], rtol=1e-4, atol=1e-5)

    stacked = stacked_feed_forward(rows.reshape(3, 2, FEATURES), own, activate)
    expected = [
        [reference(row, own[expert], in_numpy) for row in rows[2 * expert :][:2]]
        for expert in range(3)
    ]
    np.testing.assert_allclose(stacked, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_the_written_gradient_is_that_of_tensorflow(form, use_bias):
    """Of rows and of all weights, first and second order; expert 1 has no row."""
    activate, _, wide = FORMS[form]
    own = weights(3, wide * HIDDEN, use_bias)
    flat = [tensor for each in own for tensor in each if tensor is not None]
    rows, upstream = tf.constant(normal(5, FEATURES)), normal(5, OUTPUTS, seed=3)
    counts = [3, 0, 2]

    def separate(rows):
        parts = tf.split(rows, counts)
        return tf.concat(
            [
                dense_feed_forward(part, each, activate)
                for part, each in zip(parts, own, strict=True)
            ],
            axis=0,
        )

    def together(rows, training=True):
        given = rows, tf.constant(counts), own, activate
        return grouped_feed_forward(*given, training=training)

    found = []
    for run in (separate, together, lambda rows: together(rows, training=False)):
        with tf.GradientTape() as outer:
            outer.watch([rows, *flat])
            with tf.GradientTape() as tape:
                tape.watch([rows, *flat])
                loss = tf.reduce_sum(tf.sin(run(rows)) * upstream)
            first = tape.gradient(loss, [rows, *flat])
            steepness = tf.add_n([tf.reduce_sum(each**2) for each in first])
        second = outer.gradient(steepness, [rows, *flat], unconnected_gradients="zero")
        found.append([*first, *second])
    assert np.any(found[0][0].numpy())
    for expected, *others in zip(*found, strict=True):
        for actual in others:
            np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_an_expert_without_rows_gets_a_gradient_of_zero():
    own = weights(2, HIDDEN)
    rows = tf.constant(normal(3, FEATURES))
    with tf.GradientTape() as tape:
        tape.watch(own)
        answer = grouped_feed_forward(rows, tf.constant([0, 3]), own, tf.nn.relu)
    idle, busy = tape.gradient(answer, own)
    assert not any(np.any(each.numpy()) for each in idle)
    assert any(np.any(each.numpy()) for each in busy)


def test_no_rows_at_all():
    own = weights(2, HIDDEN)
    rows = tf.zeros((0, FEATURES))
    with tf.GradientTape() as tape:
        tape.watch(own)
        answer = grouped_feed_forward(rows, tf.constant([0, 0]), own, tf.nn.relu)
    assert answer.shape == (0, OUTPUTS)
    for each in tf.nest.flatten(tape.gradient(answer, own)):
        assert not np.any(each.numpy())


@pytest.mark.parametrize("dtype, tolerance", [("float16", 0.01), ("bfloat16", 0.1)])
def test_half_precision(dtype, tolerance):
    own = weights(2, HIDDEN, dtype=dtype)
    rows = tf.cast(normal(5, FEATURES), dtype)
    with tf.GradientTape() as tape:
        tape.watch([rows, own])
        answer = grouped_feed_forward(rows, tf.constant([2, 3]), own, tf.nn.relu)
    assert answer.dtype == dtype
    for each in tf.nest.flatten(tape.gradient(answer, [rows, own])):
        assert each.dtype == dtype
    wide = tf.cast(rows, "float64").numpy()
    expected = [
        reference(row, own[int(index >= 2)], FORMS["relu"][1])
        for index, row in enumerate(wide)
    ]
    np.testing.assert_allclose(
        tf.cast(answer, "float64"), expected, rtol=tolerance, atol=tolerance
    )


def test_experts_on_devices():
    own = weights(3, HIDDEN)
    rows, counts = tf.constant(normal(5, FEATURES)), tf.constant([2, 2, 1])
    devices = ["CPU:0", "CPU:1", "CPU:0"]
    seen = []

    def activate(inner):
        seen.append(inner.device)
        return tf.nn.relu(inner)

    with tf.GradientTape(persistent=True) as tape:
        tape.watch([rows, own])
        answer = grouped_feed_forward(rows, counts, own, activate, devices)
        expected = grouped_feed_forward(rows, counts, own, tf.nn.relu)
    np.testing.assert_allclose(answer, expected, rtol=1e-6)
    assert [device[-5:] for device in seen] == devices
    for one, other in zip(
        tf.nest.flatten(tape.gradient(answer, [rows, own])),
        tf.nest.flatten(tape.gradient(expected, [rows, own])),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
