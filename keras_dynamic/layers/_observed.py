"""ObservedMean: what a layer sees, in the logs of `fit` and `evaluate`."""

import warnings

import keras
import tensorflow as tf

__all__ = ["ObservedMean", "metrics_of_gate"]

# So many samples have to agree before a mean is remarkable.
_ENOUGH = 32
# So many calls wait at most: eagerly nobody may ever ask for them.
_CALLS = 255


class ObservedMean(keras.metrics.Mean):
    """Mean of values that a layer computes for itself.

    In training it is updated at once. Otherwise a layer cannot know whether it is
    evaluated or predicts; the values then wait until the result is asked for, which
    `evaluate` does in the same step and `predict` and an exported model never do. So
    those write to no variable.

    Args:
        name: of the metric in the logs.
        within: (low, high), what is expected of the mean. Defaults to anything.
        otherwise: dict from "low" and "high" to the warning for a mean that is this low
            or high, or more so; one of them may be missing. Defaults to none.
        after: int, how many results (epochs, evaluations) in a row make it so.
    """

    def __init__(self, name, within=(None, None), otherwise=(), after=1):
        super().__init__(name=name)
        self._low, self._high = within
        self._otherwise, self._after = otherwise, after
        self._waiting, self._streak = {}, (None, 0)
        self._compiled, self._judged = False, False

    def observe(self, values, weights=None, training=False):
        """Takes note of (samples,) values, each with a weight."""
        eager = tf.executing_eagerly()
        if training:
            self._compiled = not eager
            self.update_state(values, weights)
        elif not eager or not self._compiled:
            # Else somebody calls the model while its compiled steps are measured.
            waiting = self._waiting.setdefault(_replica(), [])
            # A layer may be called twice in a step; what another graph left goes.
            waiting[:] = [pair for pair in waiting if _is_here(pair[0])][-_CALLS:]
            waiting.append((values, weights))

    def result(self):
        for values, weights in self._waiting.pop(_replica(), ()):
            if _is_here(values):
                self.update_state(values, weights)
        result = super().result()
        if tf.executing_eagerly():
            count = keras.ops.convert_to_numpy(self.count)
            self._judge(float(result), float(count))
        return result

    def reset_state(self):
        self._waiting.clear()
        self._judged = False
        super().reset_state()

    def _judge(self, mean, count):
        """Warns of a remarkable mean; asked once between two resets."""
        if not self._otherwise or self._judged or count < _ENOUGH:
            return
        self._judged = True
        side = "low" if mean <= self._low else "high" if mean >= self._high else None
        previous, length = self._streak
        length = length + 1 if side == previous else 1
        self._streak = (side, length)
        if side in self._otherwise and length == self._after:
            warnings.warn(self._otherwise[side], stacklevel=3)


def metrics_of_gate(name, may_always_open):
    """(open rate, open probability) of a gate, which warn when it collapses.

    Args:
        name: of the gate.
        may_always_open: whether that is what was asked for.
    """
    message = (
        f"Gate '{name}' is {{}} for every sample. A `target_rate` with its "
        "`rate_weight`, another `initial_open_rate`, or another `cost_weight` may help."
    )
    collapse = {"low": message.format("closed"), "high": message.format("open")}
    if may_always_open:
        del collapse["high"]
    return (
        ObservedMean(f"{name}_open_rate", (0.0, 1.0), collapse, after=3),
        ObservedMean(f"{name}_open_probability", (0.01, 0.99), collapse),
    )


def _replica():
    context = tf.distribute.get_replica_context()
    return context and int(tf.get_static_value(context.replica_id_in_sync_group))


def _is_here(tensor):
    """Whether a tensor can be used where the result is computed."""
    if tf.executing_eagerly():
        return hasattr(tensor, "numpy")
    return getattr(tensor, "graph", None) is tf.compat.v1.get_default_graph()
