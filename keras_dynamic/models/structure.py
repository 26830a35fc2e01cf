"""What a `DynamicModel` can be made of; errors that say what came instead."""

import keras

from keras_dynamic._compat import layers_within, producer_of
from keras_dynamic.layers._exit_weights import ExitWeights
from keras_dynamic.layers._selector import Selector
from keras_dynamic.layers.early_exit import EarlyExit
from keras_dynamic.layers.skip_gate import SkipGate
from keras_dynamic.layers.sparse_moe import SparseMoE

__all__ = [
    "check_exits",
    "check_functional_call",
    "check_inputs",
    "check_outputs",
    "ends_in_selector",
    "shapes_of_inputs",
    "with_selector_output",
]


def check_functional_call(args, kwargs):
    given = len(args) + sum(name in kwargs for name in ("inputs", "outputs"))
    if given < 2:
        raise ValueError(
            "`DynamicModel` is functional: make it as `DynamicModel(inputs, "
            "[exit_1, ..., final])` from Keras tensors. Received: "
            f"args={args}, kwargs={sorted(kwargs)}."
        )


def check_inputs(inputs):
    for tensor in inputs:
        if tensor.shape[0] is not None:
            raise ValueError(
                "`inputs` must leave the batch size free, since samples leave the "
                f"batch. Received: input '{tensor.name}' of shape {tensor.shape}."
            )
        if getattr(tensor, "sparse", False) or getattr(tensor, "ragged", False):
            raise ValueError(
                "`inputs` must be dense: the rows of a sparse or ragged tensor cannot "
                f"be taken at an exit. Received: input '{tensor.name}'."
            )


def with_selector_output(args, kwargs, selector):
    """Arguments of a functional model with the selector's weights as a last output."""
    if not isinstance(selector, keras.KerasTensor):
        raise TypeError(
            "`selector` must be the tensor of weights that an `ExitSelector` gives. "
            f"Received: selector={selector!r} of type {type(selector)}."
        )
    if not isinstance(producer_of(selector), Selector):
        selector = ExitWeights()(selector)
    outputs = args[1] if len(args) > 1 else kwargs["outputs"]
    outputs = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
    if len(args) > 1:
        return (args[0], [*outputs, selector], *args[2:]), kwargs
    return args, {**kwargs, "outputs": [*outputs, selector]}


def ends_in_selector(model):
    """Whether the last output is a selector's; a clone is made without being told."""
    return any(
        isinstance(layer, (ExitWeights, Selector)) and layer.output is model.outputs[-1]
        for layer in model.layers
    )


def check_outputs(model, has_selector):
    outputs, structure = model.outputs, model.output
    has_gates = any(
        isinstance(layer, (SkipGate, SparseMoE)) for layer in layers_within(model)
    )
    if isinstance(structure, dict):
        raise ValueError(
            "`outputs` must be a list: the exits have an order. Received a dict with "
            f"keys {list(structure)}."
        )
    if has_selector:
        *outputs, weights = outputs
        if tuple(weights.shape) != (None, len(outputs)):
            raise ValueError(
                "`selector` must have one weight for each output (num_exits counts the "
                f"final one): {(None, len(outputs))}. Received: weights of shape "
                f"{tuple(weights.shape)}."
            )
    if len(outputs) < (1 if has_gates and not has_selector else 2):
        raise ValueError(
            "`outputs` must hold at least one early exit and the final output. "
            f"Received: {len(outputs)} output. For a network without exits, gates and "
            "mixtures use `keras.Model`."
        )
    shapes = [tuple(tensor.shape) for tensor in outputs]
    if len(set(shapes)) > 1 or len(shapes[0]) != 2 or shapes[0][1] is None:
        raise ValueError(
            "`outputs` must all have the same shape (batch, units). Received shapes: "
            f"{shapes}."
        )
    if len({id(tensor) for tensor in outputs}) < len(outputs):
        names = [tensor.name for tensor in outputs]
        raise ValueError(
            f"`outputs` must be different tensors. Received one twice: {names}."
        )


def check_exits(road):
    for segment in road.segments:
        for step in segment.steps:
            targets = step.kwargs.get("targets")
            if len(step.args) > 1:
                targets = step.args[1]
            if isinstance(step.operation, EarlyExit) and targets is not None:
                raise ValueError(
                    f"Exit '{step.name}' was called with `targets`, so that its loss "
                    "would count twice: `DynamicModel` adds it already. Call the exit "
                    "without targets."
                )


def shapes_of_inputs(input_shape, num_inputs):
    """A tuple of shapes, one an input, from one shape or a list of them."""
    if input_shape is None:
        return None
    if not isinstance(input_shape, (list, tuple)):
        raise TypeError(
            "`input_shape` must be a tuple of sizes, or a list of these. Received: "
            f"input_shape={input_shape!r} of type {type(input_shape)}."
        )
    if not input_shape or not isinstance(input_shape[0], (list, tuple)):
        input_shape = [input_shape]
    if len(input_shape) != num_inputs:
        raise ValueError(
            f"`input_shape` must hold one shape for each of the {num_inputs} inputs. "
            f"Received: {len(input_shape)} shapes: {input_shape}."
        )
    return tuple(tuple(shape) for shape in input_shape)
