"""FLOPs of one operation's inference pass for one sample.

Conventions, TensorFlow's profiler followed wherever it counts:

- a multiply-add is 2: products, convolutions (positions that only see padding
  included), einsums, recurrent steps, attention;
- a bias is 1 for each output element; so are sums, products, comparisons and other
  elementwise arithmetic, one less than there are operands (the mean of n tensors
  n, clipping 2, reciprocal roots 2);
- an activation, fused or not, is 1 for each element whatever its form, softmax 5,
  linear 0; an activation that is a layer counts as the layer;
- a pooling window is its size for each output element; global pooling, reductions,
  sorting and top-k are 1 for each input element;
- normalizations, for each element: batch normalization 2 (mean and variance folded
  into scale and shift), rescaling and feature-wise normalization 2, layer and
  group normalization 5 and 1 each for scale and center, RMS 4, unit length 3;
- interpolation is 2 for each point used: bilinear 8, bicubic 32, nearest 0;
- a choice of layers costs its winner where only that is run, else all of them, and
  one less than twice their number for each element of the mixture;
- a gated layer costs its gate and the layer, as if all samples were open; what closed
  ones save is counted as they pass;
- data movement is 0: reshapes, transposes, slices, concatenation, padding, lookups
  and embeddings, casts, choices by a mask, Boolean and bit logic, arithmetic on
  integers inside a traced graph; so are layers that do nothing at inference:
  dropout, noise, random augmentation.

Attention counts the scores of all pairs of positions, masked ones too, and not the
making of masks.
"""

import inspect
import math
import numbers

import keras
from keras import tree

from keras_dynamic._compat import functional_of
from keras_dynamic.models.flops_of_graphs import graph_flops
from keras_dynamic.models.flops_of_layers import LAYER_FORMULAS
from keras_dynamic.models.flops_of_ops import ops_formula
from keras_dynamic.models.flops_primitives import (
    Call,
    shape_of,
    total,
    with_batch_of_one,
)
from keras_dynamic.models.graph import Value, build_graph, infer_step

__all__ = ["operation_flops"]

# What a subclass may redefine and still compute what its parent computes.
_HARMLESS = frozenset(
    """
    build compute_mask compute_output_shape compute_output_spec from_config get_config
    """.split()
)


def operation_flops(operation, args, kwargs, outputs):
    """FLOPs of the inference pass of `operation` for one sample.

    Asked in this order: the operation's own method `compute_flops(input_shape)`;
    the formula of its class, which a subclass inherits only as long as it
    redefines nothing but construction; the graph of a nested functional model; the
    TensorFlow graph that the operation makes, traced and never run.

    `compute_flops` gets the shape of the call's first argument as
    `compute_output_shape` would: a tuple with the batch axis, here 1, or a
    structure of tuples. Shapes of further arguments are given to parameters of
    Keras' naming, such as `value_shape` for an argument `value`.

    Args:
        operation: a Keras layer or `keras.ops` operation, as recorded by a
            functional graph.
        args: tuple, the call's positional arguments. Tensors are
            `keras.KerasTensor`s of fully known shape with a batch axis of 1.
        kwargs: dict, the call's keyword arguments.
        outputs: flat list of the call's output `keras.KerasTensor`s, likewise.

    Returns:
        An int, 2 for a multiply-add; see the module for the rest. None where the
        operation has no formula and its graph holds what cannot be counted: a
        loop, a branch, an operation type without a rule.

    Raises:
        ValueError: if `compute_flops` returns anything but a nonnegative number.
    """
    return _flops(Call(operation, tuple(args), dict(kwargs), outputs, _flops))


def _flops(call):
    operation = call.operation
    if callable(getattr(operation, "compute_flops", None)):
        return _own_figure(operation, call)
    formula = _formula(operation)
    flops = formula(operation, call) if formula else _nested_flops(operation, call)
    if flops is None:
        flops = graph_flops(operation, call.args, call.kwargs)
    return None if flops is None else int(flops)


def _own_figure(operation, call):
    shapes = {
        name: tree.map_structure(shape_of, value)
        for name, value in call.arguments.items()
        if any(isinstance(leaf, keras.KerasTensor) for leaf in tree.flatten(value))
    }
    first, *others = shapes
    accepted = inspect.signature(operation.compute_flops).parameters
    further = {f"{name}_shape": shapes[name] for name in others}
    further = {name: shape for name, shape in further.items() if name in accepted}
    flops = operation.compute_flops(shapes[first], **further)
    valid = isinstance(flops, numbers.Real) and not isinstance(flops, bool)
    if not valid or not math.isfinite(flops) or flops < 0:
        raise ValueError(
            f"`compute_flops` of layer '{operation.name}' must return a nonnegative "
            f"number. Received: {flops!r}."
        )
    return int(flops)


def _formula(operation):
    if not isinstance(operation, keras.Layer):
        return ops_formula(operation)
    redefined = set()
    for cls in type(operation).__mro__:
        if cls in LAYER_FORMULAS:
            inherits = not any(hasattr(cls, name) for name in redefined)
            return LAYER_FORMULAS[cls] if inherits else None
        redefined |= {
            name
            for name in vars(cls).keys() - _HARMLESS
            if name == "__call__" or not name.startswith("__")
        }
    return None


def _nested_flops(operation, call):
    """FLOPs of a nested functional model, summed over its graph; None if opaque."""
    functional = functional_of(operation)
    if functional is None:
        return None
    graph = build_graph(functional)
    first = next(iter(call.arguments.values()))
    if isinstance(first, dict) and not isinstance(functional.input, dict):
        # Keras then feeds by the inputs' names.
        first = [first.get(tensor.name) for tensor in functional.inputs]
    given = tree.flatten(first)
    ranks = [len(shape_of(tensor)) for tensor in given]
    if ranks != [len(value.spec.shape) for value in graph.inputs]:
        return None
    specs, counts = dict(zip(graph.inputs, given, strict=True)), []

    def fill(leaf):
        return specs[leaf] if isinstance(leaf, Value) else leaf

    for step in graph.steps:
        produced = infer_step(step, specs)
        if produced is None:
            return None
        produced = [with_batch_of_one(tensor) for tensor in produced]
        if any(None in tensor.shape for tensor in produced):
            return None
        specs.update(zip(step.outputs, produced, strict=True))
        if not step.glue:
            args, kwargs = tree.map_structure(fill, (step.args, step.kwargs))
            counts.append(_flops(Call(step.operation, args, kwargs, produced, _flops)))
    return total(*counts)
