"""One compiled function for batches of one size, for serving loops."""

import numpy as np
import tensorflow as tf
from keras import tree

from keras_dynamic._compat import frozen
from keras_dynamic.layers._checks import checked_tensor
from keras_dynamic.models import rules
from keras_dynamic.models.engine import Walk
from keras_dynamic.models.feeding import arranged
from keras_dynamic.models.timing import median_time

__all__ = ["DynamicFunction"]

_NAMES = ("outputs", "probabilities", "exit_index", "confidence")


class DynamicFunction:
    """The dynamic road for batches of one size; see `DynamicModel.dynamic_function`.

    The weights are constants in it. A batch of one sample has static shapes all the
    way: it stays or it leaves, and no row is moved. So XLA can compile the whole walk,
    conditionals included. Of that and TensorFlow's own kernels the faster one is taken.

    Args:
        model: a `DynamicModel`.
        batch_size: int.
        rule: an `ExitRule`, or None for the model's own.

    Attributes:
        batch_size: int.
        rule: the `ExitRule` that it follows.
        jit_compiled: bool, whether XLA compiled it.
    """

    def __init__(self, model, batch_size, rule):
        asked = model.road.asked_under(model.exit_rule) if rule is None else None
        rule = model.exit_rule if rule is None else rules.get(rule)
        self.batch_size, self.rule = batch_size, rule
        self._structure = model.input
        self._walk, thresholds = model.road.walk_under(rule, model, asked)
        self._knobs = thresholds, tf.constant(model.calibration_temperatures.numpy())
        self._specs = [
            tf.TensorSpec([batch_size, *value.spec.shape[1:]], value.spec.dtype)
            for value in self._walk.inputs
        ]
        self._function, self.jit_compiled = self._made(self._knobs), False
        if (
            batch_size == 1
            and isinstance(self._walk, Walk)
            and not self._walk.has_gates
            # XLA would compile every size anew.
            and all(spec.shape.is_fully_defined() for spec in self._specs)
        ):
            self._take_the_faster()

    def __call__(self, x):
        """Answers a batch.

        Args:
            x: batch of `batch_size` samples, as the model takes it.

        Returns:
            A dict of tensors: `outputs` and `probabilities` (batch, units),
            `exit_index` and `confidence` (batch,).

        Raises:
            ValueError: for a batch of another size or shape.
        """
        if isinstance(x, tf.Tensor):
            flat = [x]
        else:
            flat = tree.flatten(self._checked(arranged(self._structure, x)))
        return self._function(*map(_as, flat, self._specs))

    def _checked(self, x):
        """`x`; a ValueError where it has other parts than the model has inputs."""
        wanted, given = self._structure, tree.flatten(x)
        named = isinstance(x, dict)
        foreign = named and not (isinstance(wanted, dict) and set(wanted) == set(x))
        if foreign or len(given) != len(self._specs) or any(t is None for t in given):
            names = [value.name for value in self._walk.inputs]
            received = sorted(x) if named else f"{len(given)} parts"
            raise ValueError(
                f"`x` must hold a tensor for each of the model's inputs {names}, those "
                f"that are optional included. Received: {received}."
            )
        return x

    def _take_the_faster(self):
        """XLA or TensorFlow's own kernels, by the time that a sample takes.

        One that leaves first and one that stays to the end count alike.
        """
        rule, early = self._walk.rule, len(self._walk.exits) - 1
        example = [_example(spec) for spec in self._specs]
        # Every finite score passes the largest number on the other side of closed.
        largest = np.float32(np.finfo("float32").max)
        opened = largest if rule.closed_value < 0 else -largest
        extremes = [
            tf.fill([early], tf.constant(value, tf.float32))
            for value in (opened, rule.closed_value)
        ]

        def seconds(jit_compile):
            function = self._made(None, jit_compile)
            return sum(
                median_time(lambda given=given: function(*example, given)["outputs"])
                for given in extremes
            )

        try:
            compiled = seconds(jit_compile=True)
        except (tf.errors.OpError, ValueError):  # an operation that XLA does not have
            return
        if compiled < seconds(jit_compile=False):
            self._function = self._made(self._knobs, jit_compile=True)
            self.jit_compiled = True

    def _made(self, knobs, jit_compile=False):
        """The walk with constants for weights, thresholds and temperatures.

        With None for `knobs`, thresholds are a last argument.
        """
        specs = list(self._specs)
        if knobs is None:
            specs.append(tf.TensorSpec([len(self._walk.exits) - 1], tf.float32))

        def run(*tensors):
            if knobs is not None:
                return self._answers(tensors, knobs)
            *tensors, thresholds = tensors
            return self._answers(tensors, (thresholds, self._knobs[1]))

        traced = tf.function(run, autograph=False).get_concrete_function(*specs)
        return tf.function(
            frozen(traced), autograph=False, jit_compile=jit_compile
        ).get_concrete_function(*specs)

    def _answers(self, tensors, knobs):
        x = tree.pack_sequence_as(self._structure, list(tensors))
        if self.batch_size == 1 and isinstance(self._walk, Walk):
            return _walk_of_one(self._walk, x, *knobs)
        answers = self._walk(x, *knobs, eagerly=True)
        return {name: answers[name] for name in _NAMES}


def _walk_of_one(walk, x, thresholds, temperatures):
    """The walk of one sample: as `Walk`, but without rows."""
    knobs = thresholds, temperatures
    values, state, _ = walk.start(x, knobs)

    def stage(index, values, state):
        values, state, found, leaves = walk.ask(index, values, state, knobs)
        found.pop("saved", None)
        if index == len(walk.segments) - 1:
            return found
        return tf.cond(
            leaves[0], lambda: found, lambda: stage(index + 1, values, state)
        )

    return stage(0, values, state)


def _example(spec):
    """Some input of a spec: noise, or zeros where the values may be indices."""
    if spec.dtype.is_floating:
        noise = np.random.default_rng(0).normal(size=spec.shape)
        return tf.constant(noise, spec.dtype)
    return tf.zeros(spec.shape, spec.dtype)


def _as(tensor, spec):
    """`tensor` with the dtype of a spec; a ValueError for another shape."""
    if spec.dtype == tf.string:
        tensor = tf.convert_to_tensor(tensor)
    else:
        tensor = checked_tensor("x", tensor)
    if not spec.shape.is_compatible_with(tensor.shape):
        raise ValueError(
            f"`x` must be a batch of shape {tuple(spec.shape)}. Received: shape "
            f"{tuple(tensor.shape)}."
        )
    return tf.cast(tensor, spec.dtype) if tensor.dtype != spec.dtype else tensor
