"""Two-layer networks, one for each group of rows: activation(x W1 + b1) W2 + b2.

Weights come as one tensor for each expert, not stacked: gradients of slices of a
stacked tensor would have to be copied together.
"""

import contextlib

import tensorflow as tf

__all__ = [
    "dense_feed_forward",
    "grouped_feed_forward",
    "on_device",
    "stacked_feed_forward",
]


def dense_feed_forward(rows, weights, activate):
    """One network on all rows.

    Args:
        rows: (rows, features).
        weights: tuple (W1, b1, W2, b2): (features, inner), (inner,), (hidden,
            outputs), (outputs,); the biases may both be None.
        activate: function from (rows, inner) to (rows, hidden).

    Returns:
        (rows, outputs).
    """
    first, first_bias, second, second_bias = weights
    return _affine(activate(_affine(rows, first, first_bias)), second, second_bias)


def stacked_feed_forward(rows, weights, activate):
    """Every expert on as many rows, by batched products.

    Args:
        rows: (experts, capacity, features).
        weights: list of tuples, one for each expert, as in `dense_feed_forward`.
        activate: as there.

    Returns:
        (experts, capacity, outputs).
    """
    first, first_bias, second, second_bias = (
        None if each[0] is None else tf.stack(each)
        for each in zip(*weights, strict=True)
    )
    with_bias = first_bias is not None
    hidden = tf.matmul(rows, first)
    hidden = activate(hidden + first_bias[:, None] if with_bias else hidden)
    outputs = tf.matmul(hidden, second)
    return outputs + second_bias[:, None] if with_bias else outputs


def grouped_feed_forward(rows, counts, weights, activate, devices=None, training=True):
    """Each expert on its own run of rows, however many they are.

    In training the gradient is written out: it keeps what the forward pass computed,
    and products with a transposed matrix are batched ones (of one matrix), for which
    TensorFlow has the faster code on a CPU. Otherwise TensorFlow derives it: a graph
    with a gradient of one's own stays in memory for ever.

    Args:
        rows: (rows, features), sorted by expert.
        counts: (experts,) int32, the rows of each; their sum is the number of rows.
        weights: list of tuples, one for each expert, as in `dense_feed_forward`.
        activate: as there.
        devices: names of devices, one for each expert, or None.
        training: bool, whether a gradient will be wanted.

    Returns:
        (rows, outputs).
    """
    number, with_bias = len(weights), weights[0][1] is not None
    devices = devices or [None] * number
    flat = [tensor for each in weights for tensor in each if tensor is not None]
    each_has = len(flat) // number

    def unflatten(tensors):
        for expert in range(number):
            own = tensors[expert * each_has : (expert + 1) * each_has]
            yield own if with_bias else (own[0], None, own[1], None)

    def run(rows, *flat):
        parts = tf.split(rows, counts, num=number)
        inner, hidden, outputs = [], [], []
        for part, own, device in zip(parts, unflatten(flat), devices, strict=True):
            first, first_bias, second, second_bias = own
            with on_device(device):
                inner.append(_affine(part, first, first_bias))
                hidden.append(activate(inner[-1]))
                outputs.append(_affine(hidden[-1], second, second_bias))

        def gradient(upstream):
            of_rows, of_weights = [], []
            pieces = tf.split(upstream, counts, num=number)
            for part, before, after, piece, own, device in zip(
                parts, inner, hidden, pieces, unflatten(flat), devices, strict=True
            ):
                first, _, second, _ = own
                with on_device(device):
                    of_hidden = _product_with_transposed(piece, second)
                    of_inner = _through(activate, before, of_hidden)
                    of_rows.append(_product_with_transposed(of_inner, first))
                    of_first = tf.matmul(part, of_inner, transpose_a=True)
                    of_second = tf.matmul(after, piece, transpose_a=True)
                    if with_bias:
                        of_weights += [of_first, tf.reduce_sum(of_inner, axis=0)]
                        of_weights += [of_second, tf.reduce_sum(piece, axis=0)]
                    else:
                        of_weights += [of_first, of_second]
            return (tf.concat(of_rows, axis=0), *of_weights)

        return tf.concat(outputs, axis=0), gradient

    return tf.custom_gradient(run)(rows, *flat) if training else run(rows, *flat)[0]


def _affine(rows, kernel, bias):
    product = tf.matmul(rows, kernel)
    return product if bias is None else tf.nn.bias_add(product, bias)


def _product_with_transposed(rows, kernel):
    return tf.matmul(rows[None], kernel[None], transpose_b=True)[0]


def _through(activate, before, upstream):
    """The gradient before an activation; what was computed already is shared."""
    with tf.GradientTape() as tape:
        tape.watch(before)
        after = activate(before)
    return tape.gradient(after, before, upstream, unconnected_gradients="zero")


def on_device(device):
    """A scope for a device's name; None leaves it to whoever is around."""
    return contextlib.nullcontext() if device is None else tf.device(device)
