"""The graph cut for a selector: trunk and head of every exit apart."""

import dataclasses

from keras_dynamic.layers._exit_weights import ExitWeights
from keras_dynamic.layers.layerwise_selector import LayerwiseSelector
from keras_dynamic.models.graph import Step, Value
from keras_dynamic.models.segments import check_can_cross, needed_steps

__all__ = ["Stage", "StagePlan", "cut_for_selector"]


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """What lies between one choice and the next.

    Attributes:
        trunk: calls for every sample that gets here.
        head: calls for those that leave here only.
        exit: the value of this stage's exit.
        feature: the value that a layer-wise gate decides on here, or None.
        head_inputs: values from the trunk and before that the head reads.
        live: values that later stages still need.
    """

    trunk: tuple[Step, ...]
    head: tuple[Step, ...]
    exit: Value
    feature: Value | None
    head_inputs: tuple[Value, ...]
    live: tuple[Value, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class StagePlan:
    """Stages, and how the choice among them is made.

    Attributes:
        selector: the step that produces the weights.
        weights: their value; None for the layer-wise form, which decides on the way.
        prologue: calls that compute the weights, for every sample; empty for the
            layer-wise form.
        live: values that the stages need from the prologue and the inputs.
        stages: a `Stage` for each exit.
    """

    selector: Step
    weights: Value | None
    prologue: tuple[Step, ...]
    live: tuple[Value, ...]
    stages: tuple[Stage, ...]

    @property
    def is_layerwise(self):
        return self.weights is None


def cut_for_selector(graph, weights):
    """Cuts `graph` into stages.

    Stage k's trunk holds what exits after k need as well (or the gate there), its head
    what exit k alone needs, so that a sample pays for no head but its own.

    Args:
        graph: a `Graph` whose outputs are the exits in order; marked by `check_rows`.
        weights: the value of the selector's weights.

    Returns:
        A `StagePlan`.

    Raises:
        ValueError: as `cut_at_exits`, or for weights that no layer gives.
    """
    producers = graph.producers()
    given = weights
    selector = producers.get(given)
    while selector is not None and isinstance(selector.operation, ExitWeights):
        (given,) = selector.inputs
        selector = producers.get(given)
    if selector is None:
        raise ValueError(
            "`selector` must be the weights that a layer gives. Received: the model's "
            f"input '{given.name}'."
        )
    layerwise = isinstance(selector.operation, LayerwiseSelector)
    exits, last = graph.outputs, len(graph.outputs) - 1
    features, prologue = [None] * len(exits), ()
    if layerwise:
        features[:last] = selector.inputs_in_order()
    else:
        prologue = needed_steps(graph, [weights])
    done = {value for step in prologue for value in step.outputs}
    chunks = []
    # A gate also needs the calls that leave the masks on its feature that it sees.
    gates = [() if f is None else (f, *_mask_givers(selector, f)) for f in features]
    for index, exit_value in enumerate(exits):
        chunk = needed_steps(graph, [exit_value, *gates[index]], done)
        shared = [*exits[index + 1 :], *(v for gate in gates[index:] for v in gate)]
        trunk_needs = set(needed_steps(graph, shared)) if index < last else set()
        trunk = tuple(step for step in chunk if step in trunk_needs)
        head = tuple(step for step in chunk if step not in trunk_needs)
        done.update(value for step in trunk for value in step.outputs)
        chunks.append((trunk, head))

    stages, live = [], ()
    for index in reversed(range(len(exits))):
        trunk, head = chunks[index]
        head_inputs = _read(head, [exits[index]])
        gate = [features[index]] if features[index] is not None else []
        stages.append(
            Stage(trunk, head, exits[index], features[index], head_inputs, live)
        )
        live = _read(trunk, [*head_inputs, *gate, *live])
    stages.reverse()
    plan = StagePlan(
        selector, None if layerwise else weights, prologue, live, tuple(stages)
    )
    for stage in plan.stages:
        check_can_cross((*stage.live, *stage.head_inputs), stage.exit)
    return plan


def _mask_givers(selector, feature):
    step = selector.after.get(feature)
    return () if step is None else step.outputs


def _read(steps, wanted):
    """Values that `steps` and `wanted` need from elsewhere."""
    made = {value for step in steps for value in step.outputs}
    read = [value for step in steps for value in step.inputs] + list(wanted)
    return tuple(dict.fromkeys(value for value in read if value not in made))
