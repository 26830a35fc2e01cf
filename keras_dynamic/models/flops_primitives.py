"""What the FLOP formulas share: the call they look at, and sizes of known shapes."""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import keras
from keras import tree

from keras_dynamic.ops.activation_flops import activation_flops

__all__ = [
    "Call",
    "call_arguments",
    "convolution_flops",
    "einsum_flops",
    "pooled_elements",
    "positions",
    "resize_flops",
    "shape_of",
    "size",
    "total",
    "window",
    "with_batch_of_one",
]

# Multiply-adds for each output element, by the points that are interpolated.
_RESIZE_FLOPS = {"nearest": 0, "bilinear": 2 * 4, "bicubic": 2 * 16}


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of an operation on symbolic tensors of known shape, batch axis 1.

    Attributes:
        operation: a Keras layer or operation.
        args: positional arguments.
        kwargs: keyword arguments.
        given_outputs: flat list of output tensors, None to infer them when needed.
        counter: counts another `Call`; wrappers count with it what they wrap.
    """

    operation: Any
    args: tuple
    kwargs: dict
    given_outputs: list | None
    counter: Callable[["Call"], int | None]

    @functools.cached_property
    def arguments(self):
        """Arguments by name, in the order of the operation's signature."""
        return call_arguments(self.operation, self.args, self.kwargs)

    @functools.cached_property
    def outputs(self):
        """Flat list of the output tensors."""
        if self.given_outputs is not None:
            return list(self.given_outputs)
        spec = self.operation.compute_output_spec(*self.args, **self.kwargs)
        return [with_batch_of_one(tensor) for tensor in tree.flatten(spec)]

    @property
    def inputs(self):
        """Flat list of what the first argument holds."""
        return tree.flatten(next(iter(self.arguments.values())))

    @property
    def input_shape(self):
        """Shape of the first tensor."""
        return shape_of(self.inputs[0])

    @property
    def output_shape(self):
        """Shape of the first output."""
        return shape_of(self.outputs[0])

    def shape(self, name):
        """Shape of the argument `name`, None where it is not given."""
        value = self.arguments.get(name)
        return None if value is None else shape_of(value)

    def count(self, operation, *inputs):
        """FLOPs of another operation on `inputs`, None where they are unknown."""
        return self.counter(Call(operation, inputs, {}, None, self.counter))

    def activation(self, function, shape):
        """FLOPs of an activation, a callable or a layer, on a tensor of `shape`."""
        if function is None:
            return 0
        if isinstance(function, keras.Layer):
            return self.count(function, keras.KerasTensor(shape))
        return activation_flops(function) * size(shape)


def call_arguments(operation, args, kwargs):
    """Binds a call's arguments to the names in the signature of `operation.call`.

    Keywords that only `Layer.__call__` knows, such as the mask of a layer that
    does not take one, are left out.
    """
    signature = inspect.signature(getattr(operation, "call", operation))
    parameters = signature.parameters.values()
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        kwargs = {k: v for k, v in kwargs.items() if k in signature.parameters}
    return signature.bind(*args, **kwargs).arguments


def size(shape):
    """Number of elements of a tensor of `shape`."""
    return math.prod(shape)


def shape_of(value):
    """Shape of a tensor as a tuple; () for a Python number."""
    return tuple(getattr(value, "shape", ()))


def with_batch_of_one(tensor):
    """`tensor` with 1 for a batch axis that Keras left open, as `EinsumDense` does."""
    if not tensor.shape or tensor.shape[0] is not None:
        return tensor
    return keras.KerasTensor((1, *tensor.shape[1:]), tensor.dtype)


def total(*counts):
    """Sum of `counts`, None where one of them is unknown."""
    return None if any(count is None for count in counts) else sum(counts)


def window(extent, rank):
    """Elements of a window given by one side for all axes, or by every side."""
    return extent**rank if isinstance(extent, int) else math.prod(extent)


def positions(shape, data_format):
    """Spatial positions of a (batch, *spatial, channels) tensor, either layout."""
    spatial = shape[2:] if data_format == "channels_first" else shape[1:-1]
    return size(spatial)


def convolution_flops(output_size, kernel_shape):
    """FLOPs of a convolution with kernel (*window, input channels a group, filters).

    Positions that only see padding count like all others, as in TensorFlow's
    profiler.
    """
    return 2 * output_size * size(kernel_shape[:-1])


def pooled_elements(input_shape, output_size, data_format):
    """Elements in all windows of adaptive pooling; neighboring windows may overlap."""
    if data_format == "channels_first":
        elements, extents = input_shape[1], input_shape[2:]
    else:
        elements, extents = input_shape[-1], input_shape[1:-1]
    for extent, parts in zip(extents, output_size, strict=True):
        # Window k begins at floor(k * extent / parts) and ends before the ceiling
        # of the same for k + 1.
        elements *= sum(
            -(-(part + 1) * extent // parts) - part * extent // parts
            for part in range(parts)
        )
    return elements


def resize_flops(interpolation, antialias, output_size):
    """FLOPs of an image resized to `output_size` elements, None where unknown."""
    weight = None if antialias else _RESIZE_FLOPS.get(interpolation)
    return None if weight is None else weight * output_size


def einsum_flops(equation, shapes, output_shape):
    """FLOPs of an einsum of one or two operands.

    Args:
        equation: subscripts, with an explicit output.
        shapes: shape of each operand; None for one whose axes all appear in the
            other or in the output.
        output_shape: shape of the output.

    Returns:
        2 for each multiply-add of a contraction, 1 for each product where nothing
        is summed. An axis that only one operand has and the output lacks is summed
        beforehand, at 1 for each element. None for more than two operands, whose
        count depends on the order that is chosen.
    """
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow or len(terms) > 2:
        return None
    sizes, labels = {}, []
    for term, shape in zip([*terms, result], [*shapes, output_shape], strict=True):
        names = _expand_ellipsis(term, shape)
        labels.append(set(names))
        if shape is not None:
            for name, extent in zip(names, shape, strict=True):
                # An axis of extent 1 under an ellipsis broadcasts.
                sizes[name] = max(extent, sizes.get(name, 1))
    *operands, kept = labels

    def elements(names):
        return math.prod(sizes[name] for name in names)

    if len(operands) == 1:
        return elements(operands[0]) if operands[0] - kept else 0
    first, second = operands
    flops = 0
    for own, other in ((first, second), (second, first)):
        if own - other - kept:
            flops += elements(own)
    contracted = (first & second) - kept
    return flops + (2 if contracted else 1) * elements(contracted | kept)


def _expand_ellipsis(term, shape):
    """Axis names of `term`; those of an ellipsis are counted from its right end."""
    before, ellipsis, after = term.partition("...")
    if not ellipsis:
        return list(term)
    hidden = len(shape) - len(before) - len(after)
    return [*before, *range(hidden, 0, -1), *after]
