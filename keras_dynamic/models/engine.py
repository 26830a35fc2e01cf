"""The walk: segment, exit, rule, survivors.

One batch goes through in one TensorFlow function: segments that nobody reaches lie
in untaken branches of a conditional, and Python does nothing between two segments. On
a GPU all rows stay there; two scalars a segment are read, which TensorFlow needs: how
many rows stay, and whether any.
"""

import dataclasses

import tensorflow as tf
from keras import tree

from keras_dynamic.models.gates import holds_gates, run_counted
from keras_dynamic.models.graph import run_steps
from keras_dynamic.models.rows import rows_with_nan, take_rows, write_rows
from keras_dynamic.ops.confidence import calibrated_probabilities

__all__ = ["CompiledWalk", "DenseWalk", "Trunk", "Walk", "score_exit", "who_leaves"]


def score_exit(rule, state, broken, outputs, kind, temperature, exit_index):
    """Scores one exit's outputs under a rule; both roads use it.

    Args:
        rule: an `ExitRule`.
        state: the rows' memory.
        broken: (batch,) bool, rows that were fed a NaN.
        outputs: (batch, units), the head's outputs.
        kind: "probabilities" or "logits".
        temperature: scalar calibration temperature.
        exit_index: int.

    Returns:
        (probabilities, score, state); a broken row, or one with a NaN among its
        probabilities, has a NaN score.
    """
    probabilities = calibrated_probabilities(outputs, kind, temperature)
    score, state = rule.update(state, probabilities, exit_index)
    if score.shape.rank not in (1, None):
        raise ValueError(
            f"`score` of {type(rule).__name__} must give one number a row, (batch,). "
            f"Received: a tensor of shape {score.shape}."
        )
    broken |= tf.reduce_any(tf.math.is_nan(probabilities), axis=-1)
    score = tf.where(broken, float("nan"), tf.cast(score, tf.float32))
    return probabilities, score, state


def who_leaves(rule, score, exit_index):
    """(batch,) bool under a bound rule.

    A row with a NaN score never leaves, and nobody leaves a closed exit, whatever the
    rule compares.
    """
    is_open = tf.math.is_finite(rule.threshold_at(exit_index))
    return rule.leaves(score, exit_index) & ~tf.math.is_nan(score) & is_open


@dataclasses.dataclass(frozen=True)
class Trunk:
    """The calls of a segment that all who get there need.

    Attributes:
        steps: `Step`s.
        wanted: the values among which are all that is needed afterwards.
    """

    steps: tuple
    wanted: tuple

    @property
    def made(self):
        """What of `wanted` the steps make."""
        made = {value for step in self.steps for value in step.outputs}
        return [value for value in dict.fromkeys(self.wanted) if value in made]

    @property
    def read(self):
        """What the steps need from before."""
        made = {value for step in self.steps for value in step.outputs}
        read = [value for step in self.steps for value in step.inputs]
        return [value for value in dict.fromkeys(read) if value not in made]


class CompiledWalk:
    """A dynamic road as one compiled function for all batch sizes.

    A subclass implements `_walk(x, thresholds, temperatures)`.

    Args:
        exits: the exits' values, in order.
        intake: a `keras.Model` from what the user feeds to the flat list of inputs;
            it casts and checks as any Keras model does.
        inputs: the graph's input values.
        steps: all that it may run.
    """

    def __init__(self, exits, intake, inputs, steps):
        self.exits = exits
        self.intake = intake
        self.inputs = inputs
        self.has_gates = holds_gates(steps)
        # Exits that each segment leads to: the one asked, and those passed by before.
        self.covers = tuple((number,) for number in range(len(exits)))
        self._functions = {}

    @property
    def depth(self):
        """Number of segments."""
        return len(self.covers)

    def __call__(self, x, thresholds, temperatures, eagerly=False):
        """Walks one batch.

        Args:
            x: a batch as the model takes it, tensors.
            thresholds: (exits - 1,) float32.
            temperatures: (exits,) float32.
            eagerly: run without compiling, for debugging.

        Returns:
            A dict of tensors: outputs, probabilities (batch, units), exit_index,
            confidence (batch,), segment_rows (exits,); with gates in the graph also
            saved (batch,), the FLOPs that closed ones did not execute.
        """
        flat = tree.flatten(x)
        given = [tensor for tensor in flat if tensor is not None]
        if eagerly:
            return self._walk(x, thresholds, temperatures)
        specs = [self.spec_of(tensor) for tensor in given]
        key = str((tree.map_structure(lambda t: t is None, x), specs))
        if key not in self._functions:
            self._functions[key] = self._compiled(x, specs)
        return self._functions[key](given, thresholds, temperatures)

    def no_answers(self, num_rows):
        """Answers of a batch before anything is known, to be written over."""
        units = self.exits[0].spec.shape[-1]
        saved = {"saved": tf.zeros([num_rows], tf.float64)} if self.has_gates else {}
        return {
            **saved,
            "outputs": tf.zeros([num_rows, units], self.output_dtype),
            "probabilities": tf.zeros([num_rows, units]),
            "exit_index": tf.zeros([num_rows], tf.int32),
            "confidence": tf.zeros([num_rows]),
            "segment_rows": tf.zeros([len(self.exits)], tf.int32),
        }

    def places(self, num_rows):
        """(rows, answers) to begin with: where each row stands, and nothing known.

        What there is for each row is int64 while they walk: on a GPU TensorFlow keeps
        int32 on the host, and would fetch it at every conditional and scatter.
        """
        answers = self.no_answers(num_rows)
        answers["exit_index"] = tf.cast(answers["exit_index"], tf.int64)
        return tf.range(tf.cast(num_rows, tf.int64)), answers

    def counted(self, answers, index, rows):
        """`answers` with the rows that segment `index` computes added."""
        here = [int(n in self.covers[index]) for n in range(len(self.exits))]
        here = tf.constant(here) * tf.size(rows)
        return {**answers, "segment_rows": answers["segment_rows"] + here}

    def run(self, steps, values, state):
        """Runs `steps`; returns `state` with what gates saved added."""
        if not self.has_gates:
            run_steps(steps, values)
            return state
        saved = run_counted(steps, values, tf.size(state["saved"]))
        return {**state, "saved": state["saved"] + saved}

    def _compiled(self, x, specs):
        flat = tree.flatten(x)
        absent = [tensor is None for tensor in flat]

        def walk(given, thresholds, temperatures):
            given = iter(given)
            filled = [None if missing else next(given) for missing in absent]
            packed = tree.pack_sequence_as(x, filled)
            return self._walk(packed, thresholds, temperatures)

        # Traced here and once, not by a call: TensorFlow would count the walks of
        # several rules or models as one function that is traced too often.
        return tf.function(walk, autograph=False).get_concrete_function(
            specs,
            tf.TensorSpec([len(self.exits) - 1], tf.float32),
            tf.TensorSpec([len(self.exits)], tf.float32),
        )

    def spec_of(self, tensor):
        """The batch axis is left open; so are sizes that the model leaves open.

        With gates they are not, since what a closed one saves depends on them.
        """
        open_sizes = any(None in value.spec.shape[1:] for value in self.inputs)
        open_sizes = open_sizes and not self.has_gates
        inner = [None] * (len(tensor.shape) - 1) if open_sizes else tensor.shape[1:]
        return tf.TensorSpec([None, *inner], tensor.dtype)

    def _fed(self, x):
        """(values, num_rows, broken): the inputs, and which rows hold a NaN."""
        fed = tree.flatten(self.intake(x, training=False))
        num_rows = tf.shape(next(tensor for tensor in fed if tensor is not None))[0]
        values = dict(zip(self.inputs, fed, strict=True))
        return values, num_rows, rows_with_nan(fed, num_rows)

    @property
    def output_dtype(self):
        dtypes = {value.spec.dtype for value in self.exits}
        return dtypes.pop() if len(dtypes) == 1 else "float32"


class Walk(CompiledWalk):
    """The dynamic road of a cut graph under a rule that asks exit after exit.

    Args:
        segments: `Segment`s in order, one for each exit that is asked.
        numbers: those exits' numbers; the last exit is among them.
        exits: the values of all exits, in order.
        kinds: "probabilities" or "logits", one for each of all exits.
        rule: an `ExitRule`; its thresholds come with each call.
        intake, inputs: as in `CompiledWalk`.
    """

    def __init__(self, segments, numbers, exits, kinds, rule, intake, inputs):
        steps = [step for segment in segments for step in segment.steps]
        super().__init__(exits, intake, inputs, steps)
        self.segments, self.numbers = segments, numbers
        before = (-1, *numbers)
        self.covers = tuple(
            tuple(range(first + 1, number + 1))
            for first, number in zip(before, numbers, strict=False)
        )
        self.kinds = kinds
        self.rule = rule

    def start(self, x, knobs):
        """(values, state, num_rows) of a batch before its first segment."""
        values, num_rows, broken = self._fed(x)
        rule = self.rule.bind(knobs[0])
        state = {"memory": rule.initial_state(num_rows), "broken": broken}
        if self.has_gates:
            state["saved"] = tf.zeros([num_rows], tf.float64)
        return values, state, num_rows

    def ask(self, index, values, state, knobs, run=None):
        """Runs segment `index`, and asks its exit who leaves.

        Args:
            values: dict from `Value` to the tensor of those who got here.
            state: dict of what goes with them: the rule's memory of them, whether they
                are broken, and with gates what these have saved.
            knobs: (thresholds, temperatures).
            run: function that adds what the segment's steps give to `values`. Defaults
                to `None`, to run them as they are.

        Returns:
            (values, state, found, leaves): `found` is a dict of the exit's answers for
            all who are here, `leaves` (rows,) bool.
        """
        segment, number, values = self.segments[index], self.numbers[index], {**values}
        rule = self.rule.bind(knobs[0])
        if run is None:
            state = self.run(segment.steps, values, state)
        else:
            run(values)
        outputs = values[segment.exit]
        probabilities, score, memory = score_exit(
            rule,
            state["memory"],
            state["broken"],
            outputs,
            self.kinds[number],
            knobs[1][number],
            number,
        )
        found = {
            **({"saved": state["saved"]} if self.has_gates else {}),
            "outputs": tf.cast(outputs, self.output_dtype),
            "probabilities": probabilities,
            "exit_index": tf.fill(tf.shape(score), number),
            "confidence": score,
        }
        if index == len(self.segments) - 1:
            leaves = tf.ones_like(state["broken"])
        else:
            leaves = who_leaves(rule, score, number)
        return values, {**state, "memory": memory}, found, leaves

    def advance(self, index, values, state, rows, knobs, run=None):
        """Runs segment `index`, and sends those who leave on their way.

        Args:
            values, state, knobs, run: as in `ask`.
            rows: (rows,) int, the samples' numbers.

        Returns:
            (values, state, found, stays): `found` is a dict of the answers of those who
            leave, with their `rows`; `stays` (rows,) bool.
        """
        values, state, found, leaves = self.ask(index, values, state, knobs, run)
        found = {**found, "rows": rows}
        if index < len(self.segments) - 1:
            here = tf.where(leaves)[:, 0]
            found = tf.nest.map_structure(lambda t: tf.gather(t, here), found)
        return values, state, found, ~leaves

    def trunk(self, index):
        """The `Trunk` of segment `index`: all of it."""
        segment = self.segments[index]
        return Trunk(segment.steps, (segment.exit, *segment.live))

    def live(self, index):
        """Values that go on with those who stay after segment `index`."""
        return self.segments[index].live

    def _walk(self, x, *knobs):
        values, state, num_rows = self.start(x, knobs)
        rows, answers = self.places(num_rows)
        answers = self._stage(0, values, state, rows, answers, knobs)
        return {**answers, "exit_index": tf.cast(answers["exit_index"], tf.int32)}

    def _stage(self, index, values, state, rows, answers, knobs):
        """Runs segment `index` on the rows that reached it, and all after it.

        Args:
            values, state, knobs: as in `ask`.
            rows: (survivors,) int64, where they stood in the batch.
            answers: what is known so far, for the whole batch.
        """
        values, state, found, leaves = self.ask(index, values, state, knobs)
        # Of all rows here: those who stay are overwritten by a later exit, which costs
        # less than to sort out who leaves.
        answers = self.counted(write_rows(answers, rows, found), index, rows)
        if index == len(self.segments) - 1:
            return answers
        staying = tf.where(~leaves)[:, 0]
        live = {value: values[value] for value in self.live(index)}
        nobody_left = tf.equal(tf.size(staying), tf.size(rows))

        def go_on():
            kept, kept_rows, kept_state = take_rows(
                live, rows, state, staying, nobody_left
            )
            return self._stage(index + 1, kept, kept_state, kept_rows, answers, knobs)

        return tf.cond(tf.size(staying) > 0, go_on, lambda: answers)


class DenseWalk(CompiledWalk):
    """The dense road: every segment on every sample.

    Args:
        segments: `Segment`s in order.
        intake, inputs: as in `CompiledWalk`.
    """

    def __init__(self, segments, intake, inputs):
        steps = [step for segment in segments for step in segment.steps]
        super().__init__([segment.exit for segment in segments], intake, inputs, steps)
        self.segments = segments

    def _walk(self, x, thresholds, temperatures):
        """(outputs of the exits, what gates saved up to each, (batch,) FLOPs)."""
        del thresholds, temperatures
        values, num_rows, _ = self._fed(x)
        state, sums = {"saved": tf.zeros([num_rows], tf.float64)}, []
        for segment in self.segments:
            state = self.run(segment.steps, values, state)
            sums.append(state["saved"])
        return [values[value] for value in self.exits], sums
