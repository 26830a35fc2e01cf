"""The walk under a selector: every sample to its exit, and only that exit's head."""

import tensorflow as tf

from keras_dynamic._compat import show_mask
from keras_dynamic.layers._selector import soft_weights
from keras_dynamic.models.engine import CompiledWalk, Trunk
from keras_dynamic.models.rows import take_rows, write_rows
from keras_dynamic.ops.confidence import calibrated_probabilities

__all__ = ["SelectedWalk"]


class SelectedWalk(CompiledWalk):
    """The dynamic road of a graph cut for a selector.

    Args:
        plan: a `StagePlan`.
        kinds: "probabilities" or "logits", one an exit.
        intake, inputs: as in `Walk`.
    """

    def __init__(self, plan, kinds, intake, inputs):
        stages = plan.stages
        steps = [step for stage in stages for step in (*stage.trunk, *stage.head)]
        exits = [stage.exit for stage in stages]
        super().__init__(exits, intake, inputs, [*plan.prologue, *steps])
        self.plan = plan
        self.kinds = kinds

    def start(self, x, knobs):
        """(values, state, num_rows) of a batch before its first stage."""
        del knobs
        values, num_rows, broken = self._fed(x)
        state = {"broken": broken}
        if self.has_gates:
            state["saved"] = tf.zeros([num_rows], tf.float64)
        if self.plan.is_layerwise:
            return values, {**state, "arriving": tf.ones([num_rows])}, num_rows
        state = self.run(self.plan.prologue, values, state)
        weights = values[self.plan.weights]
        state["broken"] |= tf.reduce_any(tf.math.is_nan(weights), axis=-1)
        choice = tf.argmax(weights, axis=-1)
        last = tf.constant(len(self.exits) - 1, tf.int64)
        state["choice"] = tf.where(state["broken"], last, choice)
        state["score"] = tf.reduce_max(soft_weights(weights), axis=-1)
        return values, state, num_rows

    def advance(self, index, values, state, rows, knobs, run=None):
        """Runs stage `index`, and the head of those who leave; as `Walk.advance`."""
        stage, values = self.plan.stages[index], {**values}
        if run is None:
            state = self.run(stage.trunk, values, state)
        else:
            run(values)
        leaves, score, state = self._decide(index, stage, values, state)
        here = tf.where(leaves)[:, 0]
        everyone = tf.equal(tf.size(here), tf.size(rows))

        def answer():
            fed = {value: values[value] for value in stage.head_inputs}
            carried = {"score": score}
            if self.has_gates:
                carried["saved"] = state["saved"]
            fed, found_rows, carried = take_rows(fed, rows, carried, here, everyone)
            carried = self.run(stage.head, fed, carried)
            outputs = fed[stage.exit]
            found = {
                "outputs": tf.cast(outputs, self.output_dtype),
                "probabilities": calibrated_probabilities(
                    outputs, self.kinds[index], knobs[1][index]
                ),
                "confidence": carried["score"],
                "rows": found_rows,
            }
            if self.has_gates:
                found["saved"] = carried["saved"]
            shapes.update({name: (t.shape[1:], t.dtype) for name, t in found.items()})
            return found

        def nobody():  # traced second
            return {
                name: tf.zeros([0, *s], dtype) for name, (s, dtype) in shapes.items()
            }

        shapes = {}
        found = tf.cond(tf.size(here) > 0, answer, nobody)
        found["exit_index"] = tf.fill(tf.shape(found["rows"]), index)
        return values, state, found, ~leaves

    def trunk(self, index):
        """The `Trunk` of stage `index`: what does not belong to its head."""
        stage = self.plan.stages[index]
        feature = () if stage.feature is None else (stage.feature,)
        return Trunk(stage.trunk, (*stage.head_inputs, *feature, *stage.live))

    def live(self, index):
        """Values that go on with those who stay after stage `index`."""
        return self.plan.stages[index].live

    def _walk(self, x, *knobs):
        values, state, num_rows = self.start(x, knobs)
        rows, answers = self.places(num_rows)
        answers = self._stage(0, values, state, rows, answers, knobs)
        return {**answers, "exit_index": tf.cast(answers["exit_index"], tf.int32)}

    def _stage(self, index, values, state, rows, answers, knobs):
        values, state, found, stays = self.advance(index, values, state, rows, knobs)
        answers = self.counted(answers, index, rows)
        answers = write_rows(answers, found.pop("rows"), found)
        if index == len(self.exits) - 1:
            return answers
        staying = tf.where(stays)[:, 0]

        def go_on():
            live = {value: values[value] for value in self.live(index)}
            nobody_left = tf.equal(tf.size(staying), tf.size(rows))
            kept, kept_rows, kept_state = take_rows(
                live, rows, state, staying, nobody_left
            )
            return self._stage(index + 1, kept, kept_state, kept_rows, answers, knobs)

        return tf.cond(tf.size(staying) > 0, go_on, lambda: answers)

    def _decide(self, index, stage, values, state):
        """(leaves, score, state) of the rows at a stage.

        The score is the selector's soft weight of this exit: layer-wise, the
        probability to come here times that to stop.
        """
        broken = state["broken"]
        last = len(self.exits) - 1
        if not self.plan.is_layerwise:
            score = state["score"]
            leaves = tf.equal(state["choice"], index)
        elif index < last:
            step, feature = self.plan.selector, values[stage.feature]
            if step.masked is not None:  # what it sees on the dense road, at the end
                show_mask(feature, stage.feature in step.masked)
            selector = step.operation
            logit = selector.gate_logit(index, feature)
            broken |= tf.math.is_nan(logit)
            leaves = (logit > 0.0) & ~broken
            stopping = selector.stopping_probabilities(logit)
            score = state["arriving"] * stopping
            state = {**state, "arriving": state["arriving"] * (1.0 - stopping)}
        else:
            score = state["arriving"]
        if index == last:
            leaves = tf.ones_like(broken)
        state = {**state, "broken": broken}
        return leaves, tf.where(broken, float("nan"), score), state
