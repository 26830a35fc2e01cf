"""FLOPs of segments and exits, summed over the graph."""

import dataclasses
import warnings

import keras
from keras import tree

from keras_dynamic.layers.skip_gate import SkipGate
from keras_dynamic.models.flops_of_graphs import trace_alone
from keras_dynamic.models.gates import saved_flops
from keras_dynamic.models.graph import Value, infer_step
from keras_dynamic.models.operation_flops import operation_flops
from keras_dynamic.models.segments import needed_steps

__all__ = [
    "Costs",
    "compute_costs",
    "compute_selected_costs",
    "static_specs",
    "step_flops",
    "step_savings",
    "total_flops",
]


@dataclasses.dataclass(frozen=True)
class Costs:
    """FLOPs a sample, 2 for a multiply-add.

    Attributes:
        segments: of each segment, its exit's head included.
        exits: to leave at each exit: all segments up to it, the heads of the exits
            that are asked on the way included.
        heads: what each exit needs and nothing after it does.
        reference: of the final output alone, without any early head.
        unknown: names of operations that could not be counted.
    """

    segments: tuple[int, ...]
    exits: tuple[int, ...]
    heads: tuple[int, ...]
    reference: int
    unknown: tuple[str, ...] = ()

    def shares(self):
        """Cost of leaving at each exit over the plain network's, floats."""
        return tuple(cost / self.reference for cost in self.exits)


def compute_costs(graph, segments, input_shapes=None, asked=None):
    """Counts the FLOPs of a cut graph.

    Args:
        graph: a `Graph` marked by `check_rows`.
        segments: its `Segment`s.
        input_shapes: flat list of shapes without the batch axis, in the order of
            `graph.inputs`, for sizes that the graph leaves open. Defaults to the
            graph's own.
        asked: numbers of the exits that are asked. Defaults to `None`, all.

    Returns:
        `Costs`. Operations that cannot be counted are named in one warning.

    Raises:
        ValueError: if a size is unknown, or a shape does not fit the inputs.
    """
    total, unknown = _counter(graph, graph.steps, input_shapes)
    per_segment = [total(segment.steps) for segment in segments]
    asked = range(len(segments)) if asked is None else asked
    exits, heads = [], []
    for index, segment in enumerate(segments):
        passed = [number for number in asked if number < index]
        needed = [graph.outputs[number] for number in (*passed, index)]
        exits.append(total(needed_steps(graph, needed)))
        later = set(needed_steps(graph, graph.outputs[index + 1 :]))
        heads.append(total(step for step in segment.steps if step not in later))
    reference = total(needed_steps(graph, graph.outputs[-1:]))
    return Costs(tuple(per_segment), tuple(exits), tuple(heads), reference, unknown)


def compute_selected_costs(graph, plan, input_shapes=None):
    """Counts the FLOPs of a graph cut for a selector: each exit pays one head.

    Args:
        graph: a `Graph` marked by `check_rows`, its outputs the exits.
        plan: its `StagePlan`.
        input_shapes: as in `compute_costs`.

    Returns:
        `Costs`; `segments` are the trunks alone, the selector in the first, or a gate
        in each where it is layer-wise.

    Raises:
        ValueError: as `compute_costs`.
    """
    stages, selector = plan.stages, plan.selector
    steps = [s for s in graph.steps if not (plan.is_layerwise and s is selector)]
    gates = _gate_flops(graph, plan, input_shapes) if plan.is_layerwise else {}
    total, unknown = _counter(graph, steps, input_shapes, gates)
    segments = [total(stage.trunk) for stage in stages]
    segments[0] += total(plan.prologue)
    for index, flops in enumerate(gates.values()):
        segments[index] += flops or 0
    heads = [total(stage.head) for stage in stages]
    exits = [sum(segments[: index + 1]) + head for index, head in enumerate(heads)]
    reference = total(needed_steps(graph, graph.outputs[-1:]))
    return Costs(tuple(segments), tuple(exits), tuple(heads), reference, unknown)


def total_flops(graph):
    """FLOPs of a whole graph for one sample, all outputs computed."""
    total, _ = _counter(graph, graph.steps, None)
    return total(graph.steps)


def step_flops(graph, steps, input_shapes=None):
    """FLOPs of each of some steps for one sample.

    Args:
        graph, input_shapes: as in `compute_costs`.
        steps: `Step`s of the graph.

    Returns:
        Dict from a step to its FLOPs, or None where they cannot be counted.
    """
    specs = static_specs(graph, input_shapes)
    return {step: 0 if step.glue else _step_flops(step, specs) for step in steps}


def step_savings(graph, steps, input_shapes=None):
    """FLOPs that a sample saves at each `SkipGate` among some steps if it is closed.

    Args:
        graph, steps, input_shapes: as in `step_flops`.

    Returns:
        Dict from the steps that are gates to FLOPs.
    """
    specs = static_specs(graph, input_shapes)
    return {
        step: saved_flops(step.operation, specs[step.inputs[0]].shape[1:])
        for step in steps
        if isinstance(step.operation, SkipGate)
    }


def _gate_flops(graph, plan, input_shapes):
    """FLOPs of a layer-wise selector's gates, by what to call them; None if unknown.

    They have no steps of their own, and are counted on their features.
    """
    specs, selector = static_specs(graph, input_shapes), plan.selector.operation
    flops = {}
    for gate, stage in zip(selector.gates, plan.stages[:-1], strict=True):
        output = keras.KerasTensor((1, 1), gate.compute_dtype)
        name = f"'{selector.name}/{gate.name}' ({type(gate.pooling).__name__})"
        flops[name] = operation_flops(gate, (specs[stage.feature],), {}, [output])
    return flops


def _counter(graph, steps, input_shapes, others=None):
    """(total, unknown): a function that sums the FLOPs of steps, and who has none.

    Args:
        others: dict from a name to FLOPs or None, for what has no step.
    """
    counted = step_flops(graph, steps, input_shapes)
    unknown = [name for name, flops in (others or {}).items() if flops is None]
    for step, flops in counted.items():
        if flops is None:
            unknown.append(f"'{step.name}' ({type(step.operation).__name__})")
    if unknown:
        warnings.warn(
            "The costs leave out operations whose FLOPs cannot be counted: "
            f"{', '.join(unknown)}. Give such a layer a method "
            "`compute_flops(input_shape)` that returns its FLOPs for one sample.",
            stacklevel=2,
        )

    def total(steps):
        return sum(counted[step] or 0 for step in steps)

    return total, tuple(unknown)


def static_specs(graph, input_shapes):
    """A symbolic tensor of fully known shape, batch 1, for every value.

    Args:
        graph, input_shapes: as in `compute_costs`.

    Raises:
        ValueError: as `compute_costs`.
    """
    specs = {}
    for index, value in enumerate(graph.inputs):
        shape = tuple(value.spec.shape[1:])
        if input_shapes is not None:
            given = tuple(input_shapes[index])
            fits = len(given) == len(shape) and all(
                known in (None, size) for known, size in zip(shape, given, strict=True)
            )
            if not fits:
                raise ValueError(
                    f"`input_shape` of input '{value.name}' must fit {shape}. "
                    f"Received: {given}."
                )
            shape = given
        if None in shape:
            raise ValueError(
                f"The cost depends on the size of input '{value.name}', which is "
                f"unknown: {shape}. Give it: `model.compute_costs(input_shape=...)`."
            )
        specs[value] = keras.KerasTensor((1, *shape), value.spec.dtype)
    for step in graph.steps:
        known = [_with_batch_of_one(value) for value in step.outputs]
        for infer in (infer_step, _traced_specs):
            if _are_static(known):
                break
            known = infer(step, specs) or known
        if not _are_static(known):
            raise ValueError(
                f"The cost of '{step.name}' cannot be told, since its output's "
                f"size is unknown: {tuple(step.outputs[0].spec.shape)}."
            )
        # Keras takes a dense tensor times a number for sparse.
        dense = [keras.KerasTensor(spec.shape, spec.dtype) for spec in known]
        specs.update(zip(step.outputs, dense, strict=True))
    return specs


def _are_static(specs):
    return all(None not in spec.shape for spec in specs)


def _traced_specs(step, specs):
    """Output shapes by TensorFlow, for a layer whose own shapes stay open."""
    traced = trace_alone(step.operation, *_filled(step, specs))
    if traced is None or any(t.shape.rank is None for t in traced.outputs):
        return None
    return [keras.KerasTensor(t.shape, t.dtype.name) for t in traced.outputs]


def _filled(step, specs):
    """The arguments of a call with symbolic tensors in place of values."""

    def fill(argument):
        return specs[argument] if isinstance(argument, Value) else argument

    return tree.map_structure(fill, step.args), tree.map_structure(fill, step.kwargs)


def _with_batch_of_one(value):
    shape = tuple(value.spec.shape)
    if value.batched:
        shape = (1, *shape[1:])
    return keras.KerasTensor(shape, value.spec.dtype)


def _step_flops(step, specs):
    args, kwargs = _filled(step, specs)
    outputs = [specs[value] for value in step.outputs]
    return operation_flops(step.operation, args, kwargs, outputs)
