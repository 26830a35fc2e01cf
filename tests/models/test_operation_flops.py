"""FLOPs of operations: by hand, by TensorFlow's profiler, and by their own graphs."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops, tree

from keras_dynamic._compat import functional_nodes
from keras_dynamic.models.flops_of_graphs import graph_flops
from keras_dynamic.models.flops_of_layers import LAYER_FORMULAS
from keras_dynamic.models.operation_flops import operation_flops


def symbol(*shape, dtype="float32"):
    return keras.KerasTensor((1, *shape), dtype)


def flops(operation, *args, **kwargs):
    """FLOPs of one call of a layer or operation on symbolic tensors."""
    outputs = tree.flatten(operation(*args, **kwargs))
    return operation_flops(operation, args, kwargs, outputs)


def model_flops(model):
    """FLOPs of the recorded calls of a functional model whose batch is 1."""
    return [operation_flops(*call) for call in functional_nodes(model)]


def profiler_flops(function, *shapes):
    """What TensorFlow's profiler makes of `function`; only right for some of them."""
    specs = [tf.TensorSpec((1, *shape)) for shape in shapes]
    graph = tf.function(function).get_concrete_function(*specs).graph
    options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
    options["output"] = "none"
    profile = tf.compat.v1.profiler.profile(graph=graph, cmd="op", options=options)
    return profile.total_float_ops


# Arithmetic by hand


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        # 7 inputs to 5 units, 2 a multiply-add; 5 biases; 5 activations.
        (layers.Dense(5), (7,), 2 * 7 * 5 + 5),
        (layers.Dense(5, activation="relu"), (7,), 2 * 7 * 5 + 5 + 5),
        (layers.Dense(5, activation="softmax"), (7,), 2 * 7 * 5 + 5 + 5 * 5),
        (layers.Dense(5, use_bias=False), (7,), 2 * 7 * 5),
        # The same at each of three positions.
        (layers.Dense(5), (3, 7), 3 * (2 * 7 * 5 + 5)),
        # An activation that is a layer counts as the layer.
        (layers.Dense(5, activation=layers.Softmax()), (7,), 70 + 5 + 25),
        # a, b: positions; c = 7 summed; d, e: outputs. No axis of size 1 but the batch.
        (
            layers.EinsumDense("abc,cde->abde", output_shape=(3, 4, 5)),
            (3, 7),
            2 * 3 * 7 * 4 * 5,
        ),
        (
            layers.EinsumDense("...x,xy->...y", output_shape=9, bias_axes="y"),
            (7,),
            2 * 7 * 9 + 9,
        ),
        # Positions 6 x 6 = (8 - 3 + 1) squared, window 3 x 3, 4 channels, 5 filters.
        (layers.Conv2D(5, 3), (8, 8, 4), 2 * 36 * 9 * 4 * 5 + 36 * 5),
        # "same" with strides of 2: 4 x 4 positions.
        (
            layers.Conv2D(5, 3, strides=2, padding="same", use_bias=False),
            (8, 8, 4),
            2 * 16 * 9 * 4 * 5,
        ),
        # Dilation 2 stretches the window to 5, and leaves 4 x 4 positions.
        (
            layers.Conv2D(5, 3, dilation_rate=2, use_bias=False),
            (8, 8, 4),
            2 * 16 * 9 * 4 * 5,
        ),
        # A filter sees its own group's 2 of the 4 channels.
        (
            layers.Conv2D(6, 3, groups=2, activation="relu"),
            (8, 8, 4),
            2 * 36 * 9 * 2 * 6 + 2 * 36 * 6,
        ),
        (
            layers.Conv2D(5, 3, data_format="channels_first"),
            (4, 8, 8),
            2 * 36 * 9 * 4 * 5 + 36 * 5,
        ),
        # Positions 10, whatever the future would have been.
        (layers.Conv1D(5, 3, padding="causal"), (10, 4), 2 * 10 * 3 * 4 * 5 + 50),
        # 3 x 3 x 3 positions, window 2 x 2 x 2.
        (layers.Conv3D(5, 2), (4, 4, 4, 2), 2 * 27 * 8 * 2 * 5 + 27 * 5),
        # Each of 5 x 5 input positions is spread over 3 x 3; 11 x 11 positions of bias.
        (
            layers.Conv2DTranspose(6, 3, strides=2),
            (5, 5, 4),
            2 * 25 * 9 * 4 * 6 + 121 * 6,
        ),
        (layers.Conv1DTranspose(6, 2, strides=2), (5, 4), 2 * 5 * 2 * 4 * 6 + 60),
        (
            layers.Conv3DTranspose(3, 2, use_bias=False),
            (2, 2, 2, 4),
            2 * 8 * 8 * 4 * 3,
        ),
        # 4 channels, 2 filters each.
        (
            layers.DepthwiseConv2D(3, depth_multiplier=2),
            (8, 8, 4),
            2 * 36 * 9 * 8 + 36 * 8,
        ),
        (layers.DepthwiseConv1D(3), (8, 4), 2 * 6 * 3 * 4 + 24),
        # Depthwise to 8 channels, then 1 x 1 to 5.
        (
            layers.SeparableConv2D(5, 3, depth_multiplier=2),
            (8, 8, 4),
            36 * (2 * 9 * 8 + 2 * 8 * 5 + 5),
        ),
        (
            layers.SeparableConv1D(5, 3, data_format="channels_first"),
            (4, 8),
            6 * (2 * 3 * 4 + 2 * 4 * 5 + 5),
        ),
        # 3 x 3 windows, 2 of them a side.
        (layers.MaxPooling2D(3), (6, 6, 4), 9 * 4 * 4),
        (layers.AveragePooling1D(2), (6, 4), 2 * 3 * 4),
        (layers.MaxPooling3D(2), (4, 4, 4, 3), 8 * 8 * 3),
        (layers.GlobalAveragePooling2D(), (6, 6, 4), 6 * 6 * 4),
        (layers.GlobalMaxPooling1D(), (6, 4), 6 * 4),
        # Windows of 7 in 3 parts: [0, 3), [2, 5), [4, 7).
        (layers.AdaptiveAveragePooling1D(3), (7, 4), (3 + 3 + 3) * 4),
        # ... and of 5 in 3 parts: [0, 2), [1, 4), [3, 5).
        (layers.AdaptiveMaxPooling2D(3), (7, 5, 4), (3 + 3 + 3) * (2 + 3 + 2) * 4),
        (layers.UpSampling2D(2), (4, 4, 3), 0),
        # 4 points a multiply-add each for 8 x 8 x 3 outputs.
        (layers.UpSampling2D(2, interpolation="bilinear"), (4, 4, 3), 8 * 192),
        (layers.Resizing(8, 8, interpolation="bicubic"), (4, 4, 3), 32 * 192),
        (layers.BatchNormalization(), (5, 4), 2 * 20),
        (layers.LayerNormalization(), (5, 4), 7 * 20),
        (layers.LayerNormalization(center=False), (5, 4), 6 * 20),
        (layers.GroupNormalization(2, scale=False), (5, 4), 6 * 20),
        (layers.RMSNormalization(), (5, 4), 4 * 20),
        (layers.UnitNormalization(), (5, 4), 3 * 20),
        (layers.SpectralNormalization(layers.Dense(5)), (7,), 2 * 7 * 5 + 5),
        (layers.Rescaling(2.0, 1.0), (5, 4), 2 * 20),
        (layers.Normalization(mean=0.0, variance=1.0), (5, 4), 2 * 20),
        # Three boundaries: two comparisons find the bin.
        (layers.Discretization([0.0, 1.0, 2.0]), (4,), 2 * 4),
        (layers.Activation("linear"), (5, 4), 0),
        (layers.Activation("gelu"), (5, 4), 20),
        (layers.Activation("log_softmax"), (5, 4), 5 * 20),
        (layers.ReLU(6.0), (5, 4), 20),
        (layers.PReLU(), (5, 4), 20),
        (layers.LeakyReLU(), (5, 4), 20),
        (layers.ELU(), (5, 4), 20),
        (layers.Softmax(), (5, 4), 5 * 20),
    ],
    ids=lambda value: value.name if isinstance(value, keras.Layer) else None,
)
def test_layer_by_hand(layer, shape, expected):
    assert flops(layer, symbol(*shape)) == expected


@pytest.mark.parametrize(
    ("layer", "shapes", "expected"),
    [
        # One operation less than there are operands, 20 elements.
        (layers.Add(), [(5, 4)] * 3, 2 * 20),
        (layers.Subtract(), [(5, 4)] * 2, 20),
        (layers.Multiply(), [(5, 4)] * 3, 2 * 20),
        (layers.Maximum(), [(5, 4)] * 3, 2 * 20),
        (layers.Minimum(), [(5, 4)] * 2, 20),
        # The sum, then the division.
        (layers.Average(), [(5, 4)] * 3, 3 * 20),
        (layers.Concatenate(), [(5, 4)] * 3, 0),
        # 4 is summed; 5 x 3 results.
        (layers.Dot((2, 1)), [(5, 4), (4, 3)], 2 * 4 * 15),
        # Both vectors are brought to unit length: square, sum, divide.
        (layers.Dot(1, normalize=True), [(5,), (5,)], 2 * 5 + 3 * 10),
        # 5 queries, 6 keys of 4 features, 7 of values: product, softmax, product.
        (
            layers.Attention(),
            [(5, 4), (6, 7), (6, 4)],
            30 * (2 * 4 + 5 + 2 * 7),
        ),
        (
            layers.Attention(use_scale=True),
            [(5, 4), (6, 4)],
            30 * (2 * 4 + 1 + 5 + 2 * 4),
        ),
        # Sum, tanh, sum over 4 features, weight.
        (
            layers.Attention(score_mode="concat"),
            [(5, 4), (6, 4)],
            30 * (3 * 4 + 1 + 5 + 2 * 4),
        ),
        # Sum, tanh, scale, sum over 4 features.
        (layers.AdditiveAttention(), [(5, 4), (6, 4)], 30 * (4 * 4 + 5 + 2 * 4)),
    ],
    ids=lambda value: value.name if isinstance(value, keras.Layer) else None,
)
def test_layer_of_several_inputs_by_hand(layer, shapes, expected):
    assert flops(layer, [symbol(*shape) for shape in shapes]) == expected


def test_multi_head_self_attention_by_hand():
    # 2 heads of 3 make width 6. Three projections of 5 tokens from 4 features with
    # bias: 3 * 5 * 6 * (2 * 4 + 1) = 810. 2 * 5 * 5 = 50 scores, each a product
    # over 3, a scale, a softmax and its share of the weighted values: 50 * (6 + 1 +
    # 5 + 6) = 900. Back to 4 features with bias: 5 * 4 * (2 * 6 + 1) = 260.
    tokens = symbol(5, 4)
    layer = layers.MultiHeadAttention(num_heads=2, key_dim=3)
    assert flops(layer, tokens, tokens) == 810 + 900 + 260
    # The profiler passes over the products of queries, keys and values.
    ran = profiler_flops(lambda x: layer(x, x), (5, 4))
    assert ran < 810 + 900 + 260


def test_multi_head_cross_attention_by_hand():
    # 5 queries of 4 features, 6 keys of 8, 6 values of 9; widths 2 * 3 and 2 * 5.
    projections = 5 * 6 * (2 * 4 + 1) + 6 * 6 * (2 * 8 + 1) + 6 * 10 * (2 * 9 + 1)
    scores = 2 * 5 * 6 * (2 * 3 + 1 + 5 + 2 * 5)
    output = 5 * 7 * (2 * 10 + 1)
    layer = layers.MultiHeadAttention(
        num_heads=2, key_dim=3, value_dim=5, output_shape=7
    )
    found = flops(layer, symbol(5, 4), value=symbol(6, 9), key=symbol(6, 8))
    assert found == projections + scores + output


def test_attention_over_some_axes_by_hand():
    # 3 rows as a batch, attention over 5 x 5 columns in each. Two heads of 3.
    tokens = symbol(3, 5, 4)
    layer = layers.MultiHeadAttention(num_heads=2, key_dim=3, attention_axes=(2,))
    projections = 3 * 15 * 6 * (2 * 4 + 1)
    scores = 3 * 2 * 25 * (6 + 1 + 5 + 6)
    assert flops(layer, tokens, tokens) == projections + scores + 15 * 4 * (2 * 6 + 1)


@pytest.mark.parametrize("use_gate", [False, True])
def test_grouped_query_attention_by_hand(use_gate):
    # 4 query heads of 3, 2 heads for keys and values; no bias.
    projections = 2 * 4 * (5 * 12 + 6 * 6 + 6 * 6)
    scores = 4 * 5 * 6 * (6 + 1 + 5 + 6)
    output = 2 * 12 * 5 * 4
    # A projection like the queries', a sigmoid and a product.
    gate = use_gate * (2 * 4 * 5 * 12 + 2 * 5 * 12)
    layer = layers.GroupQueryAttention(
        head_dim=3,
        num_query_heads=4,
        num_key_value_heads=2,
        use_bias=False,
        use_gate=use_gate,
    )
    found = flops(layer, symbol(5, 4), symbol(6, 4))
    assert found == projections + scores + output + gate


# One step of a cell with 4 inputs and 3 units.
# Products with input and state, their sum, the bias, the activation:
SIMPLE_STEP = 2 * 4 * 3 + 2 * 3 * 3 + 3 + 3 + 3
# Four gates of the same; 3 sigmoids and 2 tanh of 3 units; f * c + i * g, o * tanh(c).
LSTM_STEP = 4 * (2 * 4 * 3 + 2 * 3 * 3 + 3 + 3) + 5 * 3 + 4 * 3
# Three gates with a bias of input and state each; 2 sigmoids, 1 tanh; 3 sums of input
# and state; the reset; z * h + (1 - z) * candidate.
GRU_STEP = 3 * (2 * 4 * 3 + 2 * 3 * 3 + 3 + 3) + 3 * 3 + 3 * 3 + 3 + 4 * 3


@pytest.mark.parametrize(
    ("cell", "step"),
    [
        (layers.SimpleRNNCell, SIMPLE_STEP),
        (layers.LSTMCell, LSTM_STEP),
        (layers.GRUCell, GRU_STEP),
    ],
)
@pytest.mark.parametrize("return_sequences", [False, True])
def test_recurrence_is_its_step_times_the_steps(cell, step, return_sequences):
    name = cell.__name__.removesuffix("Cell")
    layer = getattr(layers, name)(3, return_sequences=return_sequences)
    assert flops(layer, symbol(5, 4)) == 5 * step
    assert flops(layers.RNN(cell(3)), symbol(5, 4)) == 5 * step
    assert graph_flops(layer, (symbol(5, 4),), {}) is None  # a loop


@pytest.mark.parametrize("name", ["SimpleRNN", "LSTM", "GRU"])
@pytest.mark.parametrize("use_bias", [False, True])
def test_recurrence_agrees_with_its_unrolled_graph(name, use_bias):
    layer = getattr(layers, name)(3, use_bias=use_bias, unroll=True)
    tokens = symbol(5, 4)
    assert flops(layer, tokens) == graph_flops(layer, (tokens,), {})


def test_gru_that_resets_before_the_product():
    # One bias in place of two.
    layer = layers.GRU(3, reset_after=False)
    assert flops(layer, symbol(5, 4)) == 5 * (GRU_STEP - 9)


def test_stacked_cells():
    # The second cell has 3 inputs and 2 units.
    second = 2 * 3 * 2 + 2 * 2 * 2 + 2 + 2 + 2
    layer = layers.RNN([layers.LSTMCell(3), layers.SimpleRNNCell(2)])
    assert flops(layer, symbol(5, 4)) == 5 * (LSTM_STEP + second)


@pytest.mark.parametrize(
    ("merge_mode", "merge"), [("concat", 0), ("sum", 3), ("ave", 2 * 3), (None, 0)]
)
def test_bidirectional(merge_mode, merge):
    layer = layers.Bidirectional(layers.LSTM(3), merge_mode=merge_mode)
    assert flops(layer, symbol(5, 4)) == 2 * 5 * LSTM_STEP + merge


def test_convolutional_lstm():
    # "valid": 4 positions. A gate: window 2, 3 inputs and 2 states; sum and bias.
    # Then 5 activations and 4 products or sums of 4 x 2 elements, at 6 steps.
    gate = 4 * 2 * (2 * 2 * 3 + 2 * 2 * 2 + 1 + 1)
    layer = layers.ConvLSTM1D(2, 2)
    assert flops(layer, symbol(6, 5, 3)) == 6 * (4 * gate + 9 * 8)


def test_time_distributed():
    inner = keras.Sequential([layers.Dense(5), layers.Dense(2)])
    layer = layers.TimeDistributed(inner)
    assert flops(layer, symbol(3, 7)) == 3 * (2 * 7 * 5 + 5 + 2 * 5 * 2 + 2)


def test_embedding_and_its_reverse():
    ids = symbol(6, dtype="int32")
    assert flops(layers.Embedding(10, 4), ids) == 0
    layer = layers.ReversibleEmbedding(10, 4)
    assert flops(layer, ids) == 0
    assert flops(layer, symbol(6, 4), reverse=True) == 2 * 6 * 4 * 10
    capped = layers.ReversibleEmbedding(10, 4, logit_soft_cap=30.0)
    assert flops(capped, ids) == 0
    # Divide, tanh, multiply.
    assert flops(capped, symbol(6, 4), reverse=True) == 2 * 6 * 4 * 10 + 3 * 60


FREE_IMAGE_LAYERS = [
    layers.Cropping2D(1),
    layers.Dropout(0.5),
    layers.Flatten(),
    layers.GaussianNoise(0.5),
    layers.Identity(),
    layers.Permute((3, 1, 2)),
    layers.RandomContrast(0.5),
    layers.RandomFlip(),
    layers.RandomRotation(0.5),
    layers.RandomTranslation(0.5, 0.5),
    layers.RandomZoom(0.5),
    layers.Reshape((6, 18)),
    layers.SpatialDropout2D(0.5),
    layers.ZeroPadding2D(1),
]


@pytest.mark.parametrize("layer", FREE_IMAGE_LAYERS, ids=lambda layer: layer.name)
def test_moving_data_is_free(layer):
    image = symbol(6, 6, 3)
    assert type(layer) in LAYER_FORMULAS
    assert flops(layer, image) == 0
    # Nor does the graph of its inference compute anything.
    assert graph_flops(layer, (image,), {}) == 0


KERNEL = np.ones((3, 3, 2, 4), "float32")
POINTWISE = np.ones((1, 1, 8, 3), "float32")
VECTOR = np.ones(4, "float32")


@pytest.mark.parametrize(
    ("function", "shapes", "expected"),
    [
        (lambda x: x + 2.0, [(3, 4)], 12),
        (lambda x, y: x * y, [(3, 4), (4,)], 12),
        (lambda x: ops.exp(x), [(3, 4)], 12),
        (lambda x: ops.clip(x, 0.0, 1.0), [(3, 4)], 2 * 12),
        (lambda x: ops.relu(x), [(3, 4)], 12),
        (lambda x: ops.gelu(x), [(3, 4)], 12),
        (lambda x: ops.softmax(x), [(3, 4)], 5 * 12),
        (lambda x: ops.mean(x, axis=1), [(3, 4)], 12),
        (lambda x: ops.argmax(x, axis=1), [(3, 4)], 12),
        (lambda x: ops.var(x, axis=1), [(3, 4)], 4 * 12),
        (lambda x: ops.logsumexp(x, axis=1), [(3, 4)], 4 * 12),
        (lambda x: ops.layer_normalization(x, VECTOR, VECTOR), [(3, 4)], 7 * 12),
        (lambda x: ops.rms_normalization(x), [(3, 4)], 3 * 12),
        (lambda x: ops.rms_normalization(x, VECTOR), [(3, 4)], 4 * 12),
        (lambda x: ops.normalize(x), [(3, 4)], 3 * 12),
        (lambda x: ops.top_k(x, 2)[0], [(3, 4)], 12),
        (lambda x: ops.sort(x), [(3, 4)], 12),
        pytest.param(
            lambda x: ops.inner(x, VECTOR),
            [(3, 4)],
            2 * 12,
            marks=pytest.mark.skipif(
                keras.__version__ < "3.15", reason="Keras gives it a wrong shape"
            ),
        ),
        (lambda x: ops.outer(x, VECTOR), [(4,)], 16),
        (lambda x: ops.transpose(x, (0, 2, 1)), [(3, 4)], 0),
        (lambda x: x[:, 1:], [(3, 4)], 0),
        (lambda x: ops.expand_dims(x, 1), [(3, 4)], 0),
        (lambda x: ops.cast(x, "float16"), [(3, 4)], 0),
        (lambda x: ops.concatenate([x, x], axis=1), [(3, 4)], 0),
        (lambda x: ops.stop_gradient(x), [(3, 4)], 0),
        (ops.matmul, [(3, 4), (4, 5)], 2 * 3 * 4 * 5),
        (lambda x: ops.dot(x, np.ones((4, 5))), [(3, 4)], 2 * 3 * 4 * 5),
        (lambda x: ops.tensordot(x, np.ones((4, 5)), 1), [(3, 4)], 2 * 3 * 4 * 5),
        (
            lambda x: ops.tensordot(x, np.ones((4, 5)), [[2], [0]]),
            [(3, 4)],
            2 * 3 * 4 * 5,
        ),
        (
            lambda x, y: ops.einsum("bij,bkj->bik", x, y),
            [(3, 4), (5, 4)],
            2 * 3 * 4 * 5,
        ),
        # Nothing is summed: a product each.
        (lambda x, y: ops.einsum("bi,bj->bij", x, y), [(3,), (4,)], 12),
        (lambda x: ops.einsum("bij->bji", x), [(3, 4)], 0),
        (lambda x: ops.einsum("bij->bi", x), [(3, 4)], 12),
        # j is summed on its own first, 12 values, then i.
        (lambda x, y: ops.einsum("bij,bik->bk", x, y), [(3, 4), (3, 5)], 12 + 30),
        # 3 operands: "bij,bjk" first, 24 products, then k, as its graph shows.
        (
            lambda x, y, z: ops.einsum("bij,bjk,bk->bi", x, y, z),
            [(3, 4), (4, 5), (5,)],
            2 * 4 * 5 + 2 * 3 * 4,
        ),
        # 4 x 4 positions, as with the layers.
        (lambda x: ops.conv(x, KERNEL), [(6, 6, 2)], 2 * 16 * 9 * 2 * 4),
        # Kernel (*window, filters 2, channels 4), 5 x 5 inputs.
        (lambda x: ops.conv_transpose(x, KERNEL), [(5, 5, 4)], 2 * 25 * 9 * 2 * 4),
        (lambda x: ops.depthwise_conv(x, KERNEL), [(6, 6, 2)], 2 * 16 * 9 * 8),
        (
            lambda x: ops.separable_conv(x, KERNEL, POINTWISE),
            [(6, 6, 2)],
            2 * 16 * (9 * 8 + 8 * 3),
        ),
        (lambda x: ops.max_pool(x, 2), [(6, 6, 2)], 4 * 9 * 2),
        (lambda x: ops.average_pool(x, (2, 3)), [(6, 6, 2)], 6 * 6 * 2),
        (lambda x: ops.adaptive_max_pool(x, (3, 3)), [(6, 6, 2)], 36 * 2),
        # 3 positions, 2 heads of 4: 18 scores.
        (
            lambda x: ops.dot_product_attention(x, x, x),
            [(3, 2, 4)],
            18 * (8 + 1 + 5 + 8),
        ),
        (lambda x: ops.image.resize(x, (8, 8)), [(4, 4, 3)], 8 * 192),
        # No formula, and an operation type without a rule.
        (lambda x: ops.linalg.inv(x), [(3, 3)], None),
    ],
)
def test_ops_by_hand(function, shapes, expected):
    assert model_flops(_model_of(function, *shapes)) == [expected]


@pytest.mark.parametrize(
    ("names", "weight"),
    [
        ("absolute ceil cos erf exp floor log negative sign sin sqrt square tanh", 1),
        ("elu relu relu6 selu sigmoid softplus softsign leaky_relu isfinite isnan", 1),
        ("rsqrt", 2),
        ("softmax log_softmax", 5),
    ],
)
def test_ops_on_one_tensor_agree_with_their_graphs(names, weight):
    for name in names.split():
        model = _model_of(getattr(ops, name), (3, 4))
        assert model_flops(model) == [weight * 12], name
        assert graph_flops(model, (symbol(3, 4),), {}) == weight * 12, name


def test_ops_on_two_tensors_agree_with_their_graphs():
    names = "add subtract multiply divide maximum minimum power greater not_equal"
    for name in names.split():
        model = _model_of(getattr(ops, name), (3, 4), (4,))
        assert model_flops(model) == [12], name
        given = ([symbol(3, 4), symbol(4)],)
        assert graph_flops(model, given, {}) == 12, name


@pytest.mark.parametrize(
    ("names", "weight"),
    [
        ("sum mean max min prod argmax argmin cumsum cumprod", 1),
        ("norm ptp", 2),
        ("var std logsumexp moments", 4),
    ],
)
def test_reductions_count_what_comes_in(names, weight):
    for name in names.split():
        axis = {"axes": [1]} if name == "moments" else {"axis": 1}
        function = functools.partial(getattr(ops, name), **axis)
        assert model_flops(_model_of(function, (3, 4))) == [weight * 12], name


def _model_of(function, *shapes):
    inputs = [keras.Input(shape, batch_size=1) for shape in shapes]
    return keras.Model(inputs, function(*inputs))


# TensorFlow's profiler


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layers.Dense(5), (7,)),
        (layers.Dense(5, activation="softmax"), (7,)),
        (layers.EinsumDense("abc,cd->abd", output_shape=(3, 5), bias_axes="d"), (3, 7)),
        (layers.Conv1D(5, 3, strides=2, padding="same"), (10, 4)),
        (layers.Conv2D(5, 3, strides=2, padding="same"), (9, 8, 4)),
        (layers.Conv3D(5, 2), (5, 4, 4, 2)),
        (layers.Conv2DTranspose(5, 3, strides=2, padding="same"), (5, 4, 3)),
        (layers.DepthwiseConv2D(3, depth_multiplier=2), (9, 8, 4)),
        (layers.SeparableConv1D(5, 3), (9, 4)),
        (layers.SeparableConv2D(5, 3, depth_multiplier=2), (9, 8, 4)),
        (layers.MaxPooling2D(3, 2), (9, 8, 4)),
        (layers.AveragePooling2D(2), (9, 8, 4)),
        (layers.Rescaling(2.0, 1.0), (9, 8, 4)),
    ],
    ids=lambda value: value.name if isinstance(value, keras.Layer) else None,
)
def test_formula_graph_and_profiler_agree(layer, shape):
    found = flops(layer, symbol(*shape))
    assert found == profiler_flops(layer, shape)
    assert found == graph_flops(layer, (symbol(*shape),), {})


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layers.AveragePooling3D(2), (4, 4, 4, 2)),
        (layers.MaxPooling3D(2), (4, 4, 4, 2)),
        (layers.Conv3DTranspose(3, 2, strides=2), (2, 3, 2, 4)),
        (layers.UpSampling2D(2, interpolation="bilinear"), (4, 5, 3)),
        (layers.UpSampling2D(2, interpolation="bicubic"), (4, 5, 3)),
        (layers.UpSampling2D(2, interpolation="nearest"), (4, 5, 3)),
    ],
    ids=lambda value: value.name if isinstance(value, keras.Layer) else None,
)
def test_formula_and_graph_agree_where_the_profiler_has_none(layer, shape):
    assert flops(layer, symbol(*shape)) == graph_flops(layer, (symbol(*shape),), {})


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        # 12 elements each.
        (lambda x: tf.raw_ops.AddN(inputs=[x, x, x]), 2 * 12),
        (lambda x: tf.math.squared_difference(x, 1.0), 2 * 12),
        (lambda x: tf.linalg.matmul(x, x, transpose_a=True), 2 * 3 * 4 * 4),
        (lambda x: tf.linalg.matmul(x[0], x[0], transpose_a=True), 2 * 3 * 4 * 4),
        (
            lambda x: (
                tf.raw_ops.FusedBatchNormV3(
                    x=x[..., None],
                    scale=[1.0],
                    offset=[0.0],
                    mean=[0.0],
                    variance=[1.0],
                    is_training=False,
                ).y
            ),
            2 * 12,
        ),
        # Statistics of the batch are no inference.
        (
            lambda x: (
                tf.raw_ops.FusedBatchNormV3(
                    x=x[..., None],
                    scale=[1.0],
                    offset=[0.0],
                    mean=[],
                    variance=[],
                    is_training=True,
                ).y
            ),
            None,
        ),
        # A size that depends on the values.
        (lambda x: tf.boolean_mask(x, x > 0.0) * 2.0, None),
    ],
)
def test_graph_of_raw_operations(function, expected):
    assert graph_flops(function, (symbol(3, 4),), {}) == expected


def test_profiler_passes_over_grouped_convolution():
    layer = layers.Conv2D(6, 3, groups=2)
    image = symbol(8, 8, 4)
    by_hand = 2 * 36 * 9 * 2 * 6 + 36 * 6
    assert flops(layer, image) == by_hand
    if not tf.config.list_physical_devices("GPU"):
        # There, the convolution lies in a function call of the graph.
        assert profiler_flops(layer, (8, 8, 4)) < by_hand
    assert graph_flops(layer, (image,), {}) == by_hand


@pytest.mark.parametrize(
    ("application", "profiled", "tolerance"),
    [
        # The profiler counts no ReLU, and batch normalization by its parts.
        (keras.applications.ResNet50, 7.755e9, 0.002),
        (keras.applications.MobileNetV2, 0.615e9, 0.015),
    ],
)
def test_whole_networks(application, profiled, tolerance):
    image = keras.Input((224, 224, 3), batch_size=1)
    model = application(weights=None, input_tensor=image)
    found = sum(model_flops(model))
    assert found == pytest.approx(profiled, rel=tolerance)
    assert found == operation_flops(model, (symbol(224, 224, 3),), {}, model.outputs)
    graph = graph_flops(model, (symbol(224, 224, 3),), {})
    assert found == pytest.approx(graph, rel=0.001)


# Layers without a formula


class Block(keras.Layer):
    """Grouped convolution, attention between rows, and arithmetic in the open."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.convolution = layers.Conv2D(4, 3, groups=2, padding="same")
        self.attention = layers.MultiHeadAttention(2, 3)
        self.noise = layers.Dropout(0.5, seed=1)
        self.normalization = layers.BatchNormalization()

    def build(self, input_shape):
        self.convolution.build(input_shape)
        self.normalization.build(input_shape)
        self.attention.build((*input_shape[:2], 4), (*input_shape[:2], 4))

    def call(self, inputs, training=None):
        features = self.normalization(self.convolution(inputs), training=training)
        features = self.noise(features, training=training)
        self.add_loss(ops.mean(ops.square(features)))
        rows = ops.mean(features, axis=2)
        return self.attention(rows, rows) + ops.tanh(rows)


def test_custom_layer_by_its_graph():
    # Grouped convolution of 5 x 5 positions.
    convolution = 2 * 25 * 9 * 2 * 4 + 25 * 4
    # Graph of batch normalization: mean and variance are folded for the 4 channels
    # (add epsilon, reciprocal root at 2, times gamma, mean times it, minus it), then
    # a product and a sum each of 100 elements.
    normalization = 4 * (1 + 2 + 1 + 1 + 1) + 2 * 100
    # As by hand above, 5 tokens of 4 features; the loss does not feed the output.
    attention = 810 + 900 + 260
    expected = convolution + normalization + 100 + attention + 20 + 20
    assert flops(Block(), symbol(5, 5, 4)) == expected


def test_tracing_changes_nothing():
    layer = Block(activity_regularizer="l2")
    layer.noise.activity_regularizer = keras.regularizers.get("l2")
    layer(np.ones((1, 5, 5, 4), "float32"), training=True)
    variables = [v.numpy() for v in layer.variables]
    losses = [float(loss) for loss in layer.losses]
    assert len(losses) == 3
    nodes = len(layer._inbound_nodes)
    found = operation_flops(
        layer, (symbol(5, 5, 4),), {"training": True}, [symbol(5, 4)]
    )
    assert found is not None
    for variable, before in zip(layer.variables, variables, strict=True):
        np.testing.assert_array_equal(variable.numpy(), before)
    assert [float(loss) for loss in layer.losses] == losses
    assert len(layer._inbound_nodes) == nodes


def test_custom_layer_in_mixed_precision():
    class Scale(keras.Layer):
        def build(self, input_shape):
            self.scale = self.add_weight(shape=(input_shape[-1],))

        def call(self, inputs):
            return tf.multiply(inputs, tf.convert_to_tensor(self.scale))

    layer = Scale(dtype="mixed_float16")
    assert flops(layer, symbol(3, 4)) == 12
    assert flops(layer, symbol(3, 4, dtype="float16")) == 12


class Repeated(keras.Layer):
    def call(self, inputs):
        return tf.while_loop(
            lambda step, value: step < 3,
            lambda step, value: (step + 1, value * 2.0),
            (0, inputs),
        )[1]

    def compute_output_shape(self, input_shape):
        return input_shape


class Branching(keras.Layer):
    def call(self, inputs):
        positive = ops.sum(inputs) > 0
        return tf.cond(positive, lambda: inputs * 2.0, lambda: inputs)


class Random(keras.Layer):
    def call(self, inputs):
        return inputs + tf.random.normal(tf.shape(inputs))


@pytest.mark.parametrize("layer", [Repeated(), Branching(), Random()])
def test_what_cannot_be_counted_is_unknown(layer):
    assert flops(layer, symbol(3, 4)) is None


def test_unknown_inside_a_wrapper_is_unknown():
    assert flops(layers.TimeDistributed(Repeated()), symbol(3, 4)) is None
    activated = layers.Dense(4, activation=Repeated())
    assert flops(activated, symbol(4)) is None
    sequence = keras.Sequential([layers.Dense(4), Repeated()])
    assert flops(sequence, symbol(4)) is None


def test_layer_that_cannot_be_traced_is_unknown():
    class Symbolic(keras.Layer):
        def call(self, inputs):
            raise RuntimeError("not here")

        def compute_output_shape(self, input_shape):
            return input_shape

    assert flops(Symbolic(), symbol(3, 4)) is None


def test_loop_that_the_output_does_not_need():
    class Idle(Repeated):
        def call(self, inputs):
            super().call(inputs)
            return inputs * 2.0

    assert flops(Idle(), symbol(3, 4)) == 12


def test_each_output_of_an_operation_inside_a_function_call():
    @tf.function(autograph=False, jit_compile=True)
    def sums(inputs):
        normalized = tf.raw_ops.FusedBatchNormV3(
            x=tf.reshape(inputs, (1, 1, 2, 4)),
            scale=tf.ones(4),
            offset=tf.zeros(4),
            mean=tf.zeros(4),
            variance=tf.ones(4),
            is_training=False,
        )
        right = tf.split(inputs, [3, 5], axis=1)[1]
        return tf.reduce_sum(normalized.batch_mean) + tf.reduce_sum(right)

    class Sums(keras.Layer):
        def call(self, inputs):
            return sums(inputs)

    # Normalization of 8, a sum of the 4 means and of the 5 on the right, their sum.
    assert flops(Sums(), symbol(8)) == 2 * 8 + 4 + 5 + 1


def test_integers_are_not_floating_point():
    class Shift(keras.Layer):
        def call(self, inputs):
            return (inputs + 1) * 2

    assert flops(Shift(autocast=False), symbol(8, dtype="int32")) == 0
    assert flops(Shift(), symbol(8)) == 16


# Nested models


def test_nested_models_sum_over_their_graphs():
    first, second = keras.Input((5, 4), name="a"), keras.Input((4,), name="b")
    lstm = layers.LSTM(3)
    dense = layers.Dense(3)
    merged = lstm(first) + dense(second) + dense(second)
    inner = keras.Model({"a": first, "b": second}, merged)
    expected = 5 * LSTM_STEP + 2 * (2 * 4 * 3 + 3) + 2 * 3
    given = {"a": symbol(5, 4), "b": symbol(4)}
    assert flops(inner, given) == expected

    sequence = keras.Sequential([layers.LSTM(3), layers.Dense(2)])
    assert flops(sequence, symbol(5, 4)) == 5 * LSTM_STEP + 2 * 3 * 2 + 2


def test_axes_that_keras_leaves_open():
    def einsum():
        return layers.EinsumDense("abc,cd->abd", output_shape=(None, 5))

    expected = 2 * 3 * 7 * 5
    inner = keras.Sequential([layers.Input((3, 7)), einsum(), layers.ReLU()])
    assert flops(einsum(), symbol(3, 7)) == expected
    assert flops(inner, symbol(3, 7)) == expected + 15
    assert flops(layers.TimeDistributed(einsum()), symbol(4, 3, 7)) == 4 * expected


def test_model_with_a_call_of_its_own_is_traced():
    class Twice(keras.Sequential):
        def call(self, inputs, training=None, mask=None):
            return super().call(super().call(inputs))

    assert flops(Twice([layers.Dense(4)]), symbol(4)) == 2 * (2 * 4 * 4 + 4)


# The figure that a layer gives itself


class Priced(layers.Dense):
    def __init__(self, price, **kwargs):
        super().__init__(5, **kwargs)
        self.price = price
        self.seen = None

    def compute_flops(self, input_shape):
        self.seen = input_shape
        return self.price


def test_own_figure_wins():
    layer = Priced(1234)
    assert flops(layer, symbol(3, 7)) == 1234
    assert layer.seen == (1, 3, 7)
    wrapped = layers.TimeDistributed(Priced(10))
    assert flops(wrapped, symbol(3, 7)) == 30


@pytest.mark.parametrize("price", [0, 12.0, np.int64(12), np.float32(12)])
def test_own_figure_may_be_any_number(price):
    found = flops(Priced(price), symbol(7))
    assert found == price
    assert type(found) is int


@pytest.mark.parametrize(
    "price", [-1, float("nan"), float("inf"), None, "many", True, (1, 2)]
)
def test_own_figure_must_be_a_number(price):
    layer = Priced(price, name="costly")
    with pytest.raises(ValueError, match="'costly'.*nonnegative") as caught:
        flops(layer, symbol(7))
    assert repr(price) in str(caught.value)


def test_keyword_that_call_does_not_know():
    dense, tokens = layers.Dense(5), symbol(3, 7)
    outputs = [dense(tokens)]
    kwargs = {"mask": symbol(3, dtype="bool")}
    expected = 3 * (2 * 7 * 5 + 5)
    assert operation_flops(dense, (tokens,), kwargs, outputs) == expected


def test_own_figure_gets_the_shapes_of_keras_conventions():
    class Pair(keras.Layer):
        def call(self, inputs, value, extra=None, scale=1.0):
            return inputs["a"] * scale

        def compute_flops(self, input_shape, value_shape):
            return input_shape["a"][-1] * value_shape[-1]

    inputs = {"a": symbol(3), "b": symbol(4)}
    assert flops(Pair(), inputs, symbol(5), extra=symbol(2), scale=2.0) == 15


# Subclasses


def test_subclass_that_computes_something_else_does_not_inherit():
    class Doubled(layers.Dense):
        def call(self, inputs):
            return super().call(inputs) * 2.0

    assert flops(Doubled(5), symbol(7)) == 2 * 7 * 5 + 5 + 5

    class Loop(layers.Dense):
        def call(self, inputs):
            return Repeated.call(self, super().call(inputs))

    assert flops(Loop(5), symbol(7)) is None


def test_subclass_that_redefines_a_part_does_not_inherit():
    class Quiet(layers.MultiHeadAttention):
        def _compute_attention(self, query, key, value, *args, **kwargs):
            return value, None

    tokens = symbol(5, 4)
    # The values' projection, 5 * 6 * (2 * 4 + 1), and the output: nobody reads the
    # queries and keys.
    assert flops(Quiet(2, 3), tokens, tokens) == 270 + 260


def test_subclass_that_only_constructs_inherits():
    class Small(layers.LSTM):
        """Three units."""

        def __init__(self, **kwargs):
            super().__init__(3, **kwargs)

        def get_config(self):
            config = super().get_config()
            del config["units"]
            return config

    assert flops(Small(), symbol(5, 4)) == 5 * LSTM_STEP


def test_name_alone_makes_no_keras_operation():
    class Add(keras.Operation):
        def call(self, x):
            return ops.exp(ops.matmul(x, ops.transpose(x, (0, 2, 1))))

        def compute_output_spec(self, x):
            return keras.KerasTensor((1, 3, 3))

    assert flops(Add(), symbol(3, 4)) == 2 * 3 * 4 * 3 + 9
