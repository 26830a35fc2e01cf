"""FLOPs of `keras.ops` operations met in a functional graph, by class name.

Keras has no public names for the classes behind `keras.ops`; they are told by what
they are called and by the package that they live in. A formula takes the operation
and its `Call` and returns an int, or None where it does not cover the call.
"""

import keras

from keras_dynamic.models.flops_primitives import (
    convolution_flops,
    einsum_flops,
    pooled_elements,
    positions,
    resize_flops,
    shape_of,
    size,
    window,
)

__all__ = ["ops_formula"]

# Creation, copies, rearrangements, choices, and logic on bits and Booleans.
_FREE = """
    All Any Append Arange Array ArraySplit BitwiseAnd BitwiseInvert
    BitwiseLeftShift BitwiseNot BitwiseOr BitwiseRightShift BitwiseXor BroadcastTo
    Cast Concatenate Conj Conjugate ConvertToTensor Copy CropImages DepthToSpace
    Diag Diagflat Diagonal Dsplit Dstack EmptyLike ExpandDims Flip Fliplr Flipud Full
    FullLike GetItem Hsplit Hstack Imag LeftShift Linspace LogicalAnd LogicalNot
    LogicalOr LogicalXor Meshgrid Moveaxis MultiHot Ndim OneHot OnesLike Pad
    PadImages Ravel Real Rearrange Repeat Reshape RightShift Roll Rot90
    SaturateCast Select Size Slice SliceUpdate SpaceToDepth Split Squeeze Stack
    StopGradient Swapaxes Take TakeAlongAxis Tile Transpose Tril Triu Unstack View
    ViewAsComplex ViewAsReal Vsplit Vstack Where ZerosLike
""".split()

_PER_OUTPUT = dict.fromkeys(
    """
    Abs Absolute Add Arccos Arccosh Arcsin Arcsinh Arctan Arctan2 Arctanh Cbrt Ceil
    Celu Cos Cosh Deg2rad Divide DivideNoNan Elu Equal Erf Erfc Erfinv Exp Exp2
    Expm1 Fabs Floor FloorDivide Fmax Fmin Fmod Gelu Glu Greater GreaterEqual
    HardShrink HardSigmoid HardSilu HardTanh Heaviside Isfinite Isinf Isnan
    Isneginf Isposinf LeakyRelu Less LessEqual Log Log10 Log1p Log2 LogSigmoid
    Maximum Minimum Mish Mod Multiply NanToNum Negative NotEqual Outer Power
    Rad2deg ReLU Reciprocal Relu Relu6 Round Selu Sigmoid Sign Signbit Silu Sin
    Sinh SoftShrink Softplus Softsign SparsePlus SparseSigmoid Sqrt Square
    Squareplus Subtract Tan Tanh TanhShrink Threshold TrueDivide Trunc
    """.split(),
    1,
) | {"Clip": 2, "Rsqrt": 2}

# A norm squares and sums; moments sum, subtract, square and sum; log-sum-exp takes
# the maximum, subtracts, exponentiates and sums; normalization to unit length
# squares, sums and multiplies.
_PER_INPUT = dict.fromkeys(
    """
    Amax Amin Argmax Argmin Argsort CountNonzero Cumprod Cumsum Max Mean Min Prod
    Sort Sum TopK
    """.split(),
    1,
) | {
    "BatchNorm": 2,
    "LogSoftmax": 5,
    "Logsumexp": 4,
    "Moments": 4,
    "Norm": 2,
    "Normalize": 3,
    "Ptp": 2,
    "Softmax": 5,
    "Sparsemax": 5,
    "Std": 4,
    "Var": 4,
}


def ops_formula(operation):
    """The formula of a `keras.ops` operation, None where it has none.

    A user's own `keras.Operation` that happens to be called `Add` has none.
    """
    if not type(operation).__module__.startswith("keras.src."):
        return None
    return _FORMULAS.get(type(operation).__name__)


def _free(operation, call):
    return 0


def _per_output(weight):
    return lambda operation, call: weight * size(call.output_shape)


def _per_input(weight):
    return lambda operation, call: weight * size(call.input_shape)


# Products


def _matmul(operation, call):
    return 2 * call.input_shape[-1] * size(call.output_shape)


def _dot(operation, call):
    shapes = [shape_of(value) for value in call.arguments.values()]
    if () in shapes:
        return size(call.output_shape)
    return _matmul(operation, call)


def _tensordot(operation, call):
    shape = call.input_shape
    if isinstance(operation.axes, int):
        axes = range(len(shape) - operation.axes, len(shape))
    else:
        axes = operation.axes[0]
        axes = [axes] if isinstance(axes, int) else axes
    depth = size(shape[axis] for axis in axes)
    return (2 * depth if axes else 1) * size(call.output_shape)


def _einsum(operation, call):
    shapes = [shape_of(operand) for operand in call.args]
    return einsum_flops(operation.subscripts, shapes, call.output_shape)


def _attention(operation, call):
    query, key, value = (call.shape(name) for name in ("query", "key", "value"))
    scores = size(query[:-1]) * key[1]
    # Products with keys, scale, bias, softmax, products with values.
    each = 2 * query[-1] + 1 + (call.shape("bias") is not None) + 5 + 2 * value[-1]
    return scores * each


# Convolutions and pooling


def _convolution(operation, call):
    return convolution_flops(size(call.output_shape), call.shape("kernel"))


def _transposed_convolution(operation, call):
    # Kernel: (*window, filters, input channels).
    return 2 * size(call.input_shape) * size(call.shape("kernel")[:-1])


def _depthwise_convolution(operation, call):
    return 2 * size(call.output_shape) * size(call.shape("kernel")[:-2])


def _separable_convolution(operation, call):
    weights = size(call.shape("depthwise_kernel"))
    weights += size(call.shape("pointwise_kernel"))
    return 2 * positions(call.output_shape, _data_format(operation)) * weights


def _pooling(operation, call):
    rank = len(call.input_shape) - 2
    return window(operation.pool_size, rank) * size(call.output_shape)


def _adaptive_pooling(operation, call):
    rank = len(call.input_shape) - 2
    parts = operation.output_size
    parts = (parts,) * rank if isinstance(parts, int) else parts
    return pooled_elements(call.input_shape, parts, _data_format(operation))


def _data_format(operation):
    return operation.data_format or keras.config.image_data_format()


def _resize(operation, call):
    if operation.crop_to_aspect_ratio or operation.pad_to_aspect_ratio:
        return None
    elements = size(call.output_shape)
    return resize_flops(operation.interpolation, operation.antialias, elements)


# Normalizations


def _layer_norm(operation, call):
    if operation.rms_scaling:
        return _rms_norm(operation, call)
    affine = [call.shape(name) is not None for name in ("gamma", "beta")]
    return (5 + sum(affine)) * size(call.input_shape)


def _rms_norm(operation, call):
    scale = any(call.shape(name) is not None for name in ("scale", "gamma"))
    return (3 + scale) * size(call.input_shape)


_FORMULAS = (
    dict.fromkeys(_FREE, _free)
    | {name: _per_output(weight) for name, weight in _PER_OUTPUT.items()}
    | {name: _per_input(weight) for name, weight in _PER_INPUT.items()}
    | {
        "AdaptiveAveragePool": _adaptive_pooling,
        "AdaptiveMaxPool": _adaptive_pooling,
        "AveragePool": _pooling,
        "Conv": _convolution,
        "ConvTranspose": _transposed_convolution,
        "DepthwiseConv": _depthwise_convolution,
        "Dot": _dot,
        "DotProductAttention": _attention,
        "Einsum": _einsum,
        "Inner": _dot,
        "LayerNorm": _layer_norm,
        "Matmul": _matmul,
        "MaxPool": _pooling,
        "RMSNorm": _rms_norm,
        "Resize": _resize,
        "SeparableConv": _separable_convolution,
        "Tensordot": _tensordot,
    }
)
