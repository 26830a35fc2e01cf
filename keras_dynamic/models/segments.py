"""The graph cut at its exits: ordered segments with the values that live on."""

import dataclasses

from keras_dynamic.models.graph import Step, Value

__all__ = ["Segment", "check_can_cross", "cut_at_exits", "needed_steps"]


@dataclasses.dataclass(frozen=True, eq=False)
class Segment:
    """What runs between one exit and the next.

    Attributes:
        steps: the calls to make, in order.
        exit: the value of this segment's exit.
        inputs: values from earlier segments (or the model's inputs) that it reads.
        live: values that later segments still need once this one is done, skip
            connections over the exit included; a survivor takes its rows of all.
    """

    steps: tuple[Step, ...]
    exit: Value
    inputs: tuple[Value, ...]
    live: tuple[Value, ...]


def cut_at_exits(graph):
    """Cuts `graph` at its outputs by liveness.

    Segment k holds the steps that exit k needs and no earlier exit needed, so that
    no step runs twice and none runs before its answer may be wanted.

    Args:
        graph: a `Graph` whose outputs are the exits in order; `check_rows` has
            marked its values.

    Returns:
        A tuple of `Segment`s, one an exit.

    Raises:
        ValueError: if a value that has to cross an exit does not carry the batch on
            axis 0; names it.
    """
    done, chunks = set(graph.inputs), []
    for output in graph.outputs:
        steps = needed_steps(graph, [output], done)
        done.update(value for step in steps for value in step.outputs)
        chunks.append(steps)

    segments, live = [], ()
    for steps, output in reversed(list(zip(chunks, graph.outputs, strict=True))):
        made = {value for step in steps for value in step.outputs}
        read = [value for step in steps for value in step.inputs] + [output]
        inputs = tuple(dict.fromkeys(value for value in read if value not in made))
        segments.append(Segment(steps, output, inputs, live))
        live = tuple(
            dict.fromkeys([*inputs, *(value for value in live if value not in made)])
        )
    segments.reverse()
    for segment in segments:
        check_can_cross(segment.live, segment.exit)
    return tuple(segments)


def check_can_cross(values, exit_value):
    """Raises a ValueError that names a value whose rows cannot be taken at an exit."""
    for value in values:
        if value.misplaced:
            raise ValueError(
                f"The graph cannot be cut at exit '{exit_value.name}': the tensor from "
                f"'{value.name}', of shape {tuple(value.spec.shape)}, lives on past it "
                "and its batch is not axis 0 alone, so the rows of those who stay "
                "cannot be taken. Move the exit, or keep the batch on axis 0 there."
            )


def needed_steps(graph, outputs, done=()):
    """The steps that `outputs` need, in order, given that `done` is computed.

    Args:
        graph: a `Graph`.
        outputs: values wanted.
        done: values that are there already, the model's inputs for instance.

    Returns:
        A tuple of `Step`s.
    """
    producers, needed = graph.producers(), set()
    done = set(done) | set(graph.inputs)
    pending = list(outputs)
    while pending:
        value = pending.pop()
        if value in done:
            continue
        step = producers[value]
        if step not in needed:
            needed.add(step)
            pending.extend(step.inputs)
            for earlier in step.after.values():
                pending.extend(earlier.outputs)
    return tuple(step for step in graph.steps if step in needed)
