"""A part of the walk: from one segment to another, for two machines to share."""

import collections
import re

import keras
import tensorflow as tf

from keras_dynamic._compat import (
    get_mask,
    keep_mask,
    kept_mask,
    producer_of,
    set_mask,
)
from keras_dynamic.models.engine import Walk
from keras_dynamic.models.gates import holds_gates
from keras_dynamic.models.graph import run_steps
from keras_dynamic.models.rows import take_rows, write_rows

__all__ = ["PartialWalk"]


class PartialWalk(Walk):
    """The segments `first` to `last` of a walk, both included.

    A batch begins as the model takes it, or where `first` is not 0 as what the part
    before has handed out. The answers of those who stay after `last` have exit_index
    -1, and what goes on with them is handed out as a flat dict of tensors (staying,
    ...): their rows of every live value and its mask (a mask that several have only
    once), the rule's memory of them, whether they are broken, and `rows`, where they
    stood in the batch. An input that is absent is not among them.

    Args:
        walk: the whole `Walk`.
        first, last: ints.

    Raises:
        ValueError: if a value that crosses the cut has no batch axis, and depends on a
            size that the model leaves open.
    """

    def __init__(self, walk, first, last):
        segments, exits = walk.segments, walk.exits
        given = walk.kinds, walk.rule, walk.intake, walk.inputs
        super().__init__(segments, walk.numbers, exits, *given)
        steps = [s for segment in segments[first : last + 1] for s in segment.steps]
        self.has_gates = holds_gates(steps)
        self.first, self.last = first, last
        live = segments[first - 1].live if first else ()
        self._received = _Crossing(live, segments)
        self._handed = _Crossing(segments[last].live, segments)
        self._producers = {
            value: step
            for segment in segments
            for step in segment.steps
            for value in step.outputs
        }
        self._constants = [value for value in live if not value.batched]
        for value in self._constants:
            self._check_constant(value)

    def _walk(self, x, thresholds, temperatures):
        """(answers, sent) of a batch; see the class."""
        if self.first == 0:
            values, state, num_rows = self.start(x, (thresholds, temperatures))
        else:
            broken = x["broken"]
            num_rows = tf.shape(broken)[0]
            values = self._values_of(x)
            state = {"memory": self._memory_of(x), "broken": broken}
            if self.has_gates:
                state["saved"] = tf.zeros([num_rows], tf.float64)
        answers = self.no_answers(num_rows)
        knobs, rows = (thresholds, temperatures), tf.range(num_rows)

        def run():
            return self._stage(self.first, values, state, rows, answers, knobs)

        # No layer runs on an empty batch, which some cannot take.
        return _if_somebody(num_rows, run, answers)

    def _stage(self, index, values, state, rows, answers, knobs):
        values, state, found, leaves = self.ask(index, values, state, knobs)
        found["exit_index"] = tf.where(leaves, self.numbers[index], -1)
        answers = self.counted(write_rows(answers, rows, found), index, rows)
        if index == len(self.segments) - 1:
            return answers, {}
        staying = tf.where(~leaves)[:, 0]
        live = {value: values[value] for value in self.live(index)}
        everyone = tf.equal(tf.size(staying), tf.size(rows))
        kept, rows, state = take_rows(live, rows, state, staying, everyone)
        if index == self.last:
            return answers, self._handed_out(kept, rows, state)

        def go_on():
            return self._stage(index + 1, kept, state, rows, answers, knobs)

        return _if_somebody(tf.size(staying), go_on, answers)

    @property
    def optional(self):
        """Names of what is handed out only where the model is fed it."""
        return {
            name
            for value, name in self._handed.names.items()
            if value in self.inputs
            and getattr(producer_of(value.spec), "optional", False)
        }

    def _handed_out(self, values, rows, state):
        sent = {}
        for value, name in self._handed.names.items():
            if values[value] is not None:
                sent[name] = values[value]
        for value, name in self._handed.masks.items():
            mask = None if values[value] is None else kept_mask(values[value])
            if mask is not None:
                sent.setdefault(name, mask)
        for number, tensor in enumerate(tf.nest.flatten(state["memory"])):
            sent[f"memory_{number}"] = tensor
        return {**sent, "broken": state["broken"], "rows": rows}

    def _values_of(self, sent):
        """The values that cross the cut, with the masks that came with them."""
        values = {v: sent.get(name) for v, name in self._received.names.items()}
        for value, name in self._received.masks.items():
            if values[value] is not None and sent.get(name) is not None:
                keep_mask(set_mask(values[value], sent[name]))
        for value in self._constants:
            values[value] = self._computed(value)
        return values

    def _memory_of(self, sent):
        memory = self.rule.initial_state(tf.shape(sent["broken"])[0])
        flat = [sent[f"memory_{i}"] for i in range(len(tf.nest.flatten(memory)))]
        return tf.nest.pack_sequence_as(memory, flat)

    def _computed(self, value):
        """A value without a batch axis: no row is in it, so any rows give it."""
        step = self._producers[value]
        given = {
            each: tf.zeros([1, *each.spec.shape[1:]], each.spec.dtype)
            if each.batched
            else self._computed(each)
            for each in step.inputs
        }
        run_steps([step], given)
        return given[value]

    def _check_constant(self, value):
        for each in self._producers[value].inputs:
            if not each.batched:
                self._check_constant(each)
            elif None in each.spec.shape[1:]:
                raise ValueError(
                    f"`exit` must lie elsewhere: the tensor from '{value.name}' "
                    "crosses it, has no batch axis and depends on a size that the "
                    f"model leaves open. Received: a '{each.name}' of shape "
                    f"{tuple(each.spec.shape)}. Give its input a fixed size."
                )


class _Crossing:
    """The values that cross a cut, by names that are words and differ.

    Args:
        live: values that are needed after the cut.
        segments: those of the whole walk.

    Attributes:
        names: dict from each value with a batch axis to its name.
        masks: dict from each to the name of its mask, should it carry one: that of
            another value, where Keras says that both have the same or that the other
            is the mask.
    """

    def __init__(self, live, segments):
        self.names, taken = {}, {"rows", "broken"}
        for value in live:
            if not value.batched:
                continue
            name = unique = re.sub(r"\W", "_", value.name)
            number = 0
            while unique in taken or unique.startswith("memory_"):
                number += 1
                unique = f"tensor_{name}_{number}"
            taken |= {unique, f"{unique}_mask"}
            self.names[value] = unique
        steps = [step for segment in segments for step in segment.steps]
        # A nested model that is called twice has two values, and one description.
        made = collections.Counter(id(v.spec) for step in steps for v in step.outputs)
        # It may leave another mask behind on what it is given.
        given = {
            value
            for step in steps
            if step.glue or isinstance(step.operation, keras.Model)
            for value in step.inputs
        }
        known = {
            id(value.spec): name
            for value, name in self.names.items()
            if made[id(value.spec)] == 1
        }
        self.masks = {}
        for value, name in self.names.items():
            mask, own = get_mask(value.spec), f"{name}_mask"
            alone = mask is None or value in given or made[id(value.spec)] > 1
            self.masks[value] = own if alone else known.setdefault(id(mask), own)


def _if_somebody(num_rows, run, answers):
    """What `run` gives where there are rows, else `answers` and nothing to send."""
    known = {}

    def somebody():
        found, sent = run()
        known.update({name: (t.shape, t.dtype) for name, t in sent.items()})
        return found, sent

    def nobody():  # traced second
        nothing = {
            name: tf.zeros([0, *(size or 0 for size in shape[1:])], dtype)
            for name, (shape, dtype) in known.items()
        }
        return answers, nothing

    return tf.cond(num_rows > 0, somebody, nobody)
