"""A functional model as a flat list of calls, nested models inlined.

The graph is a description only: making it calls no layer and leaves no trace on
the model, so that two models may share layers and a nested model may be called
twice.
"""

import dataclasses
from typing import Any

import keras
import tensorflow as tf
from keras import ops, tree

from keras_dynamic._compat import (
    functional_nodes,
    functional_of,
    get_mask,
    keep_mask,
    set_mask,
    show_mask,
)
from keras_dynamic.layers.layer_choice import LayerChoice

__all__ = [
    "Graph",
    "Step",
    "Value",
    "build_graph",
    "find_masks",
    "infer_step",
    "may_have_masks",
    "run_steps",
]


class Value:
    """A tensor of the graph: produced by one step or fed as an input.

    Attributes:
        name: text for messages, the producing layer's name.
        spec: the symbolic `keras.KerasTensor`.
        batched: whether axis 0 is the batch; such values are gathered at an exit,
            the others are passed on whole.
        misplaced: whether it holds the batch otherwise: on another axis, or merged
            with one; such a value cannot cross an exit.
    """

    def __init__(self, name, spec):
        self.name = name
        self.spec = spec
        self.batched = len(spec.shape) > 0 and spec.shape[0] is None
        self.misplaced = False

    def __repr__(self):
        return f"<Value {self.name} {tuple(self.spec.shape)}>"


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One call of an operation: `operation(*args, **kwargs) -> outputs`.

    `args` and `kwargs` are the call's own structures with a `Value` in place of
    every tensor of the graph. `masked` holds those that carry a mask when the whole
    graph runs in order, None before `find_masks`, and `after` maps those to the step
    that left its mask behind when it read them, if one did. `glue` marks what Keras
    does by itself where a nested model begins: casts, reshapes, masks.
    """

    operation: Any
    args: tuple
    kwargs: dict
    outputs: tuple
    glue: bool = False
    masked: set | None = None
    after: dict = dataclasses.field(default_factory=dict)

    @property
    def name(self):
        return getattr(self.operation, "name", type(self.operation).__name__)

    @property
    def inputs(self):
        """The values that the call reads, each once, in the order of arguments."""
        return list(dict.fromkeys(self.inputs_in_order()))

    def inputs_in_order(self):
        """The values among the arguments as they stand, one read twice twice."""
        flat = tree.flatten((self.args, self.kwargs))
        return [value for value in flat if isinstance(value, Value)]


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """Steps in an order that can be executed, with the values fed and wanted."""

    inputs: tuple
    outputs: tuple
    steps: tuple

    def producers(self):
        """Maps each produced value to its step."""
        return {value: step for step in self.steps for value in step.outputs}


def build_graph(model, tensors=None):
    """The calls of a functional `model`, in an order that can be executed.

    Nested functional and `Sequential` models are inlined, so that a cut can lie
    inside them. A nested model that overrides `call` stays one opaque step.

    Args:
        model: a functional `keras.Model`.
        tensors: dict that is filled with the symbolic tensor of the model's own for
            each value that has one; those within nested models have none. Defaults to
            `None`.

    Returns:
        A `Graph`, its inputs and outputs in the order of `model.inputs` and
        `model.outputs`.
    """
    inputs = tuple(Value(tensor.name, tensor) for tensor in model.inputs)
    steps = []
    outputs = _inline(model, inputs, steps, tensors)
    return Graph(inputs, tuple(outputs), tuple(steps))


def run_steps(steps, values):
    """Executes `steps` in inference mode; adds what they produce to `values`.

    Args:
        steps: `Step`s whose inputs are in `values` or produced on the way.
        values: dict from `Value` to tensor (symbolic or concrete), changed in place.
    """

    def fill(argument):
        return values[argument] if isinstance(argument, Value) else argument

    for step in steps:
        for value in step.inputs:
            if step.masked is not None and values[value] is not None:
                show_mask(values[value], value in step.masked)
        _call(step, values, fill)


def find_masks(graph):
    """Notes at every step which of its inputs carry a mask, `Step.masked`.

    Masks are attributes of tensors, and calls change them: attention takes the mask
    off the tensor that it reads, a nested model leaves one behind. So what a layer sees
    hangs on the order of the calls. Here the whole graph is traced (not run) in the
    order in which Keras calls it; a walk, which may call a later layer first, then
    shows every layer the same masks. Where a call left a mask behind that another layer
    sees, that call comes before it in a walk too.
    """

    @tf.function(autograph=False)
    def trace(tensors):
        values = dict(zip(graph.inputs, tensors, strict=True))
        left = {}

        def fill(argument):
            return values[argument] if isinstance(argument, Value) else argument

        # Losses and assignments stay in the scope, which is dropped.
        with keras.StatelessScope():
            for step in graph.steps:
                seen = {v for v in step.inputs if get_mask(values[v]) is not None}
                object.__setattr__(step, "masked", seen)  # the two late fields
                after = {value: left[value] for value in seen if value in left}
                object.__setattr__(step, "after", after)
                _call(step, values, fill)
                for value in step.inputs:
                    if value not in seen and get_mask(values[value]) is not None:
                        left[value] = step
        return tensors

    specs = [tf.TensorSpec(v.spec.shape, v.spec.dtype) for v in graph.inputs]
    with tf.init_scope():
        trace.get_concrete_function(specs)


def _call(step, values, fill):
    args = tree.map_structure(fill, step.args)
    kwargs = tree.map_structure(fill, step.kwargs)
    # The call was recorded with the value that `training` had when the model was put
    # together; `Model.predict` overrides it in the same way.
    if kwargs.get("training"):
        kwargs["training"] = False
    results = tree.flatten(step.operation(*args, **kwargs))
    values.update(zip(step.outputs, results, strict=True))
    for tensor in (*results, *(values[value] for value in step.inputs)):
        if tensor is not None:
            keep_mask(tensor)


def infer_step(step, specs):
    """Shapes of what `step` gives for inputs of other shapes; records nothing.

    Args:
        step: a `Step`.
        specs: dict from each input `Value` to a `keras.KerasTensor`.

    Returns:
        A flat list of `keras.KerasTensor`s, or None where the operation cannot be
        asked.
    """
    operation = step.operation

    def fill(argument):
        if not isinstance(argument, Value):
            return argument
        spec = specs[argument]
        floating = "float" in spec.dtype
        if isinstance(operation, keras.layers.Layer) and operation.autocast:
            # What `Layer.__call__` does to its arguments before `call`.
            dtype = operation.compute_dtype if floating else spec.dtype
            return keras.KerasTensor(spec.shape, dtype)
        return spec

    args = tree.map_structure(fill, step.args)
    kwargs = tree.map_structure(fill, step.kwargs)
    if step.glue:
        return tree.flatten(operation(*args, **kwargs))
    try:
        return tree.flatten(operation.compute_output_spec(*args, **kwargs))
    except (ValueError, TypeError, NotImplementedError):
        return None  # a layer that works only on real tensors, or on other shapes


def _inline(functional, inputs, steps, tensors=None):
    """Appends the steps of `functional` fed with `inputs`; returns its outputs."""
    tensors = {} if tensors is None else tensors
    tensors.update(zip(inputs, functional.inputs, strict=True))
    values = {
        id(tensor): value
        for tensor, value in zip(functional.inputs, inputs, strict=True)
    }

    def swap(argument):
        if isinstance(argument, keras.KerasTensor):
            # An optional input that was not given is None, as in Keras.
            return values.get(id(argument))
        return argument

    for operation, args, kwargs, outputs in functional_nodes(functional):
        args = tree.map_structure(swap, args)
        kwargs = tree.map_structure(swap, kwargs)
        inner = functional_of(operation)
        fed = inner and _inputs_of_nested_call(inner, args, kwargs)
        if fed:
            fed = [
                _standardize(value, mask, tensor, steps)
                for (value, mask), tensor in zip(fed, inner.inputs, strict=True)
            ]
            produced = _inline(inner, fed, steps)
        else:
            produced = [Value(operation.name, tensor) for tensor in outputs]
            steps.append(Step(operation, args, kwargs, tuple(produced)))
        values.update(
            (id(tensor), value) for tensor, value in zip(outputs, produced, strict=True)
        )
        tensors.update(zip(produced, outputs, strict=True))
    return [values[id(tensor)] for tensor in functional.outputs]


def _inputs_of_nested_call(inner, args, kwargs):
    """Pairs (input, mask) in the order of `inner.inputs`; None for an opaque call."""
    further = [v for name, v in kwargs.items() if name not in ("training", "mask")]
    if len(args) != 1 or any(leaf is not None for leaf in tree.flatten(further)):
        return None
    given, masks = args[0], kwargs.get("mask")
    if isinstance(given, dict) and not isinstance(inner.input, dict):
        # Keras then feeds by the inputs' names.
        names = [tensor.name for tensor in inner.inputs]
        given = [given.get(name) for name in names]
        masks = [masks.get(name) for name in names] if masks else masks
    flat = tree.flatten(given)
    masks = [None] * len(flat) if masks is None else tree.flatten(masks)
    fits = len(flat) == len(masks) == len(inner.inputs)
    if not fits or not all(isinstance(value, Value) for value in flat):
        return None
    return list(zip(flat, masks, strict=True))


def _standardize(value, mask, expected, steps):
    """Casts, reshapes and masks `value` as a functional model does what it is fed."""
    rank, wanted = len(value.spec.shape), len(expected.shape)
    if mask is None and value.spec.dtype == expected.dtype and rank == wanted:
        return value

    def standardize(tensor, mask):
        mask = get_mask(tensor) if mask is None else mask
        # Where nothing is to be cast, Keras leaves the mask on the caller's tensor.
        result = tensor
        if value.spec.dtype != expected.dtype:
            result = ops.cast(result, expected.dtype)
        if rank == wanted + 1:
            result = ops.squeeze(result, axis=-1)
        elif rank == wanted - 1:
            result = ops.expand_dims(result, axis=-1)
        return set_mask(result, mask)

    shape = value.spec.shape
    if rank == wanted + 1:
        shape = shape[:-1]
    elif rank == wanted - 1:
        shape = (*shape, 1)
    produced = Value(value.name, keras.KerasTensor(shape, expected.dtype))
    steps.append(Step(standardize, (value, mask), {}, (produced,), glue=True))
    return produced


def may_have_masks(graph):
    """Whether a layer makes a mask, or comes from where that cannot be told."""
    for step in graph.steps:
        layer = step.operation
        if isinstance(layer, keras.layers.Layer) and (
            getattr(layer, "mask_zero", False)
            or isinstance(layer, (keras.layers.Masking, LayerChoice))
            or not type(layer).__module__.startswith(("keras.", "keras_dynamic."))
        ):
            return True
    return False
