"""FLOPs of Keras' layers, one formula a family.

A formula takes the layer and its `Call` and returns an int, or None where it does
not cover what the layer is asked to do. The conventions stand in
`operation_flops`. Attention, recurrence and choices have files of their own.
"""

from keras import layers

from keras_dynamic.models.flops_of_choices import CHOICE_FORMULAS
from keras_dynamic.models.flops_of_mixtures import MIXTURE_FORMULAS
from keras_dynamic.models.flops_of_sequences import SEQUENCE_FORMULAS
from keras_dynamic.models.flops_primitives import (
    convolution_flops,
    einsum_flops,
    pooled_elements,
    positions,
    resize_flops,
    shape_of,
    size,
    total,
    window,
)

__all__ = ["LAYER_FORMULAS"]

# Inference of these moves, looks up or passes on what comes in.
_FREE = """
    ActivityRegularization AlphaDropout AugMix CategoryEncoding
    Concatenate Cropping1D Cropping2D Cropping3D CutMix Dropout Embedding Flatten
    GaussianDropout GaussianNoise HashedCrossing Hashing Identity InputLayer
    IntegerLookup Masking MixUp Permute RandAugment RandomBrightness
    RandomColorDegeneration RandomColorJitter RandomContrast RandomCrop
    RandomElasticTransform RandomErasing RandomFlip RandomGaussianBlur
    RandomGrayscale RandomHue RandomInvert RandomPerspective RandomPosterization
    RandomRotation RandomSaturation RandomSharpness RandomShear RandomTranslation
    RandomZoom RepeatVector Reshape SpatialDropout1D SpatialDropout2D
    SpatialDropout3D StringLookup TextVectorization UpSampling1D UpSampling3D
    ZeroPadding1D ZeroPadding2D ZeroPadding3D
"""

# Square, sum; times the reciprocal root; scale.
_RMS_NORMALIZATION = 4


def _free(layer, call):
    return 0


def _per_input(weight):
    return lambda layer, call: weight * size(call.input_shape)


def _channels(layer, shape):
    return shape[1 if layer.data_format == "channels_first" else -1]


def _bias_and_activation(layer, call):
    bias = size(call.output_shape) if layer.use_bias else 0
    return total(bias, call.activation(layer.activation, call.output_shape))


# Products and convolutions


def _dense(layer, call):
    product = 2 * call.input_shape[-1] * size(call.output_shape)
    return total(product, _bias_and_activation(layer, call))


def _einsum_dense(layer, call):
    if None in call.output_shape:
        # Keras does not infer the axes that the user left open.
        return None
    shapes = [call.input_shape, None]
    return total(
        einsum_flops(layer.equation, shapes, call.output_shape),
        size(call.output_shape) if layer.bias_axes else 0,
        call.activation(layer.activation, call.output_shape),
    )


def _reversible_embedding(layer, call):
    if not call.arguments.get("reverse"):
        return 0
    soft_cap = 3 if layer.logit_soft_cap is not None else 0
    return (2 * layer.output_dim + soft_cap) * size(call.output_shape)


def _convolution(layer, call):
    channels = _channels(layer, call.input_shape) // layer.groups
    kernel_shape = (*layer.kernel_size, channels, layer.filters)
    product = convolution_flops(size(call.output_shape), kernel_shape)
    return total(product, _bias_and_activation(layer, call))


def _transposed_convolution(layer, call):
    # Every input element is spread over the whole window of every filter.
    product = 2 * size(call.input_shape) * size(layer.kernel_size) * layer.filters
    return total(product, _bias_and_activation(layer, call))


def _depthwise_convolution(layer, call):
    product = 2 * size(call.output_shape) * size(layer.kernel_size)
    return total(product, _bias_and_activation(layer, call))


def _separable_convolution(layer, call):
    middle = _channels(layer, call.input_shape) * layer.depth_multiplier
    weights = middle * (size(layer.kernel_size) + layer.filters)
    product = 2 * positions(call.output_shape, layer.data_format) * weights
    return total(product, _bias_and_activation(layer, call))


# Pooling, resizing, merging


def _pooling(layer, call):
    rank = len(call.input_shape) - 2
    return window(layer.pool_size, rank) * size(call.output_shape)


def _adaptive_pooling(layer, call):
    return pooled_elements(call.input_shape, layer.output_size, layer.data_format)


def _up_sampling(layer, call):
    return resize_flops(layer.interpolation, False, size(call.output_shape))


def _resizing(layer, call):
    if layer.crop_to_aspect_ratio or layer.pad_to_aspect_ratio:
        return None
    return resize_flops(layer.interpolation, layer.antialias, size(call.output_shape))


def _merge(layer, call):
    return (len(call.inputs) - 1) * size(call.output_shape)


def _average(layer, call):
    return len(call.inputs) * size(call.output_shape)


def _dot(layer, call):
    axis = layer.axes if isinstance(layer.axes, int) else layer.axes[0]
    product = 2 * call.input_shape[axis] * size(call.output_shape)
    # The L2 norm squares and sums; the division comes third.
    elements = sum(size(shape_of(tensor)) for tensor in call.inputs)
    return product + (3 * elements if layer.normalize else 0)


# Activations and normalizations


def _activation(layer, call):
    return call.activation(layer.activation, call.input_shape)


def _layer_normalization(layer, call):
    if layer.rms_scaling:
        return _RMS_NORMALIZATION * size(call.input_shape)
    # Sum; deviation, square, sum; times the reciprocal deviation.
    weight = 5 + bool(layer.scale) + bool(layer.center)
    return weight * size(call.input_shape)


def _group_normalization(layer, call):
    return (5 + bool(layer.scale) + bool(layer.center)) * size(call.input_shape)


def _discretization(layer, call):
    # A binary search among the boundaries.
    return len(layer.bin_boundaries).bit_length() * size(call.input_shape)


def _wrapped(layer, call):
    return call.count(layer.layer, *call.inputs)


_FORMULAS = {
    _FREE: _free,
    "Dense": _dense,
    "EinsumDense": _einsum_dense,
    "ReversibleEmbedding": _reversible_embedding,
    "Conv1D Conv2D Conv3D": _convolution,
    "Conv1DTranspose Conv2DTranspose Conv3DTranspose": _transposed_convolution,
    "DepthwiseConv1D DepthwiseConv2D": _depthwise_convolution,
    "SeparableConv1D SeparableConv2D": _separable_convolution,
    """
    AveragePooling1D AveragePooling2D AveragePooling3D
    MaxPooling1D MaxPooling2D MaxPooling3D
    """: _pooling,
    """
    GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D
    GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D
    """: _per_input(1),
    """
    AdaptiveAveragePooling1D AdaptiveAveragePooling2D AdaptiveAveragePooling3D
    AdaptiveMaxPooling1D AdaptiveMaxPooling2D AdaptiveMaxPooling3D
    """: _adaptive_pooling,
    "UpSampling2D": _up_sampling,
    "Resizing": _resizing,
    "Add Multiply Maximum Minimum Subtract": _merge,
    "Average": _average,
    "Dot": _dot,
    "Activation": _activation,
    "ELU LeakyReLU PReLU ReLU": _per_input(1),
    "Softmax": _per_input(5),
    "BatchNormalization Normalization Rescaling": _per_input(2),
    "LayerNormalization": _layer_normalization,
    "GroupNormalization": _group_normalization,
    "RMSNormalization": _per_input(_RMS_NORMALIZATION),
    "UnitNormalization": _per_input(3),
    "SpectralNormalization": _wrapped,
    "Discretization": _discretization,
}

# Formula by layer class.
LAYER_FORMULAS = (
    {
        getattr(layers, name): formula
        for names, formula in (_FORMULAS | SEQUENCE_FORMULAS).items()
        for name in names.split()
    }
    | CHOICE_FORMULAS
    | MIXTURE_FORMULAS
)
