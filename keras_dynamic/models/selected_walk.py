"""The walk under a selector: every sample to its exit, and only that exit's head."""

import tensorflow as tf

from keras_dynamic._compat import show_mask
from keras_dynamic.layers._selector import soft_weights
from keras_dynamic.models.engine import CompiledWalk
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

    def _walk(self, x, thresholds, temperatures):
        del thresholds  # a selector has none
        values, num_rows, broken = self._fed(x)
        last = len(self.exits) - 1
        rows, answers = tf.range(num_rows), self.no_answers(num_rows)
        state = {"broken": broken}
        if self.has_gates:
            state["saved"] = answers["saved"]
        if self.plan.is_layerwise:
            state["arriving"] = tf.ones([num_rows])
        else:
            state = self.run(self.plan.prologue, values, state, rows)
            weights = values[self.plan.weights]
            state["broken"] |= tf.reduce_any(tf.math.is_nan(weights), axis=-1)
            choice = tf.argmax(weights, axis=-1, output_type=tf.int32)
            state["choice"] = tf.where(state["broken"], last, choice)
            state["score"] = tf.reduce_max(soft_weights(weights), axis=-1)
        return self._stage(0, values, rows, state, answers, temperatures)

    def _stage(self, index, values, rows, state, answers, temperatures):
        stage, last = self.plan.stages[index], len(self.exits) - 1
        values = dict(values)
        state = self.run(stage.trunk, values, state, rows)
        leaves, score, state = self._decide(index, stage, values, state)
        answers = self.counted(answers, index, rows)
        here = tf.where(leaves)[:, 0]
        everyone = tf.equal(tf.size(here), tf.size(rows))

        def answer():
            fed = {value: values[value] for value in stage.head_inputs}
            carried = {"score": score}
            if self.has_gates:
                carried["saved"] = state["saved"]
            fed, found_rows, carried = take_rows(fed, rows, carried, here, everyone)
            carried = self.run(stage.head, fed, carried, found_rows)
            score_here = carried.pop("score")
            outputs = fed[stage.exit]
            found = {
                **carried,
                "outputs": outputs,
                "probabilities": calibrated_probabilities(
                    outputs, self.kinds[index], temperatures[index]
                ),
                "exit_index": tf.fill(tf.shape(found_rows), index),
                "confidence": score_here,
            }
            return write_rows(answers, found_rows, found)

        written = tf.cond(tf.size(here) > 0, answer, lambda: answers)
        if index == last:
            return written
        staying = tf.where(~leaves)[:, 0]

        def go_on():
            live = {value: values[value] for value in stage.live}
            nobody_left = tf.equal(tf.size(staying), tf.size(rows))
            kept, kept_rows, kept_state = take_rows(
                live, rows, state, staying, nobody_left
            )
            return self._stage(
                index + 1, kept, kept_rows, kept_state, written, temperatures
            )

        return tf.cond(tf.size(staying) > 0, go_on, lambda: written)

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
