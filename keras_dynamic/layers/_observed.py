"""What a layer sees, in the logs of `fit` and `evaluate`."""

import warnings

import keras
import tensorflow as tf

__all__ = ["ObservedMean", "ObservedRouting", "metrics_of_gate"]

# So many samples have to agree before a mean is remarkable.
_ENOUGH = 32
# So many calls wait at most: eagerly nobody may ever ask for them.
_CALLS = 255


class _Observing:
    """Of a metric that a layer computes for itself.

    In training it is updated at once. Otherwise a layer cannot know whether it is
    evaluated or predicts; the values then wait until the result is asked for, which
    `evaluate` does in the same step and `predict` and an exported model never do. So
    those write to no variable.
    """

    def __init__(self, name):
        super().__init__(name=name)
        self._waiting, self._compiled = {}, False

    def observe(self, values, weights=None, training=False):
        """Takes note of values, as `update_state` takes them."""
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

    def reset_state(self):
        self._waiting.clear()
        super().reset_state()

    def _catch_up(self):
        for values, weights in self._waiting.pop(_replica(), ()):
            if _is_here(values):
                self.update_state(values, weights)


class ObservedMean(_Observing, keras.metrics.Mean):
    """Mean of (samples,) values, each with a weight.

    Args:
        name: of the metric in the logs.
        within: (low, high), what is expected of the mean. Defaults to anything.
        otherwise: dict from "low" and "high" to the warning for a mean that is this low
            or high, or more so; one of them may be missing. Defaults to none.
        after: int, how many results (epochs, evaluations) in a row make it so.
    """

    def __init__(self, name, within=(None, None), otherwise=(), after=1):
        super().__init__(name)
        self._low, self._high = within
        self._otherwise, self._after = otherwise, after
        self._streak, self._judged = (None, 0), False

    def result(self):
        self._catch_up()
        result = super().result()
        if tf.executing_eagerly():
            count = keras.ops.convert_to_numpy(self.count)
            self._judge(float(result), float(count))
        return result

    def reset_state(self):
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


class ObservedRouting(_Observing, keras.metrics.Metric):
    """How a mixture's experts were used; its result is a dict of several numbers.

    Its values are sums, (experts + 4,): what each expert computed, what was wanted of
    all of them, how many units there were, their entropy, their confidence.

    Args:
        name: of the layer; what the logs show begins with it.
        num_experts: int.
    """

    def __init__(self, name, num_experts):
        super().__init__(f"{name}_routing")
        self._prefix, self._num_experts = name, num_experts
        self.sums = self.add_weight(
            name="sums", shape=(num_experts + 4,), initializer="zeros"
        )

    def update_state(self, values, sample_weight=None):
        self.sums.assign_add(values)

    def result(self):
        self._catch_up()
        sums = tf.convert_to_tensor(self.sums)
        computed, rest = sums[: self._num_experts], sums[self._num_experts :]
        wanted, units, entropy, confidence = tf.unstack(rest)
        share = tf.math.divide_no_nan
        loads = tf.unstack(share(computed, wanted))
        total = tf.reduce_sum(computed)
        results = {f"load_{expert}": load for expert, load in enumerate(loads)}
        busiest = tf.reduce_max(computed) * self._num_experts
        results["max_load"] = share(busiest, total)
        results["dropped"] = share(wanted - total, wanted)
        results["dead_experts"] = tf.reduce_sum(tf.cast(computed == 0, tf.float32))
        results["router_entropy"] = share(entropy, units)
        results["router_confidence"] = share(confidence, units)
        return {f"{self._prefix}_{name}": value for name, value in results.items()}


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
