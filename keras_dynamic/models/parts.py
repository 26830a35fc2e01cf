"""A part of the walk: from one segment to another, for two machines to share."""

import re

import tensorflow as tf

from keras_dynamic._compat import keep_mask, kept_mask, set_mask
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
    ...): their rows of every live value and its mask, the rule's memory of them,
    whether they are broken, and `rows`, where they stood in the batch.

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
        self._received = _names([value for value in live if value.batched])
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
            return answers, _handed_out(self.segments[index], kept, rows, state)

        def go_on():
            return self._stage(index + 1, kept, state, rows, answers, knobs)

        return _if_somebody(tf.size(staying), go_on, answers)

    def _values_of(self, sent):
        """The values that cross the cut, with the masks that came with them."""
        values = {}
        for value, name in self._received.items():
            values[value] = sent[name]
            if f"{name}_mask" in sent:
                keep_mask(set_mask(sent[name], sent[f"{name}_mask"]))
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


def _names(values):
    """Values with names that are words and differ."""
    names, taken = {}, {"rows", "broken"}
    for value in values:
        name = unique = re.sub(r"\W", "_", value.name)
        number = 0
        while unique in taken or unique.startswith("memory_"):
            number += 1
            unique = f"tensor_{name}_{number}"
        taken |= {unique, f"{unique}_mask"}
        names[value] = unique
    return names


def _handed_out(segment, values, rows, state):
    sent = {}
    for value, name in _names([v for v in segment.live if v.batched]).items():
        sent[name] = values[value]
        mask = kept_mask(values[value])
        if mask is not None:
            sent[f"{name}_mask"] = mask
    for number, tensor in enumerate(tf.nest.flatten(state["memory"])):
        sent[f"memory_{number}"] = tensor
    return {**sent, "broken": state["broken"], "rows": rows}


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
