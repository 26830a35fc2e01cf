"""What gates and mixtures decided for the samples of a batch, told to whoever asks.

A `SkipGate` reports a `GateRecord`, a `SparseMoE` an `MoERecord`; both are called gates
here. A gate at inference reports which samples reached it and what it did with them. A
walk that counts costs opens `collecting()` around the calls that it makes. A gate that
stands inside another one's layer runs in a branch of a conditional, from which no
tensor may escape by itself: the outer gate collects there, hands the vectors out of the
branch, and reports them together with its own. Who only wants to know what happened,
gates within experts included, calls the model eagerly under `listening()`.
"""

import contextlib
import dataclasses
import threading
from typing import Any

import tensorflow as tf
from keras import tree

from keras_dynamic._compat import layers_within

__all__ = [
    "GateRecord",
    "GatesInBranches",
    "collecting",
    "listening",
    "observe_within",
    "report",
]

_local = threading.local()


@dataclasses.dataclass(frozen=True)
class GateRecord:
    """One call of one gate on a batch.

    Attributes:
        gate: the `SkipGate`.
        shape: static shape of its input.
        reached: (batch,) float32, 1 where the sample got to the gate.
        opened: (batch,) float32, 1 where its layer ran.
        probability: (batch,) float32, of being open; 0 where it was not reached.
    """

    gate: Any
    shape: tuple
    reached: tf.Tensor
    opened: tf.Tensor
    probability: tf.Tensor

    def vectors(self):
        return [self.reached, self.opened, self.probability]

    def with_vectors(self, vectors):
        reached, opened, probability = vectors
        return dataclasses.replace(
            self, reached=reached, opened=opened, probability=probability
        )


@contextlib.contextmanager
def collecting():
    """Yields a list to which gates that run in this thread and graph add records."""
    stack = _stack()
    entry = ([], _current_graph())
    stack.append(entry)
    try:
        yield entry[0]
    finally:
        stack.pop()


@contextlib.contextmanager
def listening():
    """Yields a list that gets, in place of the logs, what gates do in eager calls."""
    _local.heard = []
    try:
        yield _local.heard
    finally:
        _local.heard = None


def report(records):
    """Hands records to the innermost collector; without one, to their gates.

    A collector outside of the graph that is being built (a loop, a branch of somebody
    else's) gets none, since no tensor may leave that graph.
    """
    stack = _stack()
    if not stack:
        _tell(records)
    elif stack[-1][1] is _current_graph():
        stack[-1][0].extend(records)


def observe_within(records):
    """Tells gates within experts what they did, for the logs.

    Their rows are not the samples, so that no collector can use them.
    """
    if not _stack() or _heard() is not None:
        _tell(records)


class GatesInBranches:
    """Hands records out of the branches of a conditional, which must be alike.

    Every branch gives as many vectors, zeros for the gates that it does not run.

    Args:
        layers: what the branches run.
        inputs: structure of tensors, batch first.
    """

    def __init__(self, layers, inputs):
        within = [inner for layer in layers for inner in layers_within(layer)]
        gates = [inner for inner in within if hasattr(inner, "observe")]
        self._gates = list({id(gate): gate for gate in gates}.values())
        self._inputs, self._examples = inputs, {}

    def vectors(self, records):
        """Vectors (batch,) of all gates, from the records of one branch."""
        found = []
        for gate in self._gates:
            own = [record for record in records if record.gate is gate]
            zeros = tf.zeros([tf.shape(tree.flatten(self._inputs)[0])[0]])
            sums = [zeros] * gate.record_size
            for record in own:
                self._examples[id(gate)] = record
                sums = [a + b for a, b in zip(sums, record.vectors(), strict=True)]
            found.extend(sums)
        return found

    def records(self, vectors):
        """The records of the branch that was taken."""
        vectors = iter(vectors)
        each = {
            id(gate): [next(vectors) for _ in range(gate.record_size)]
            for gate in self._gates
        }
        return [
            record.with_vectors(each[key]) for key, record in self._examples.items()
        ]


def _tell(records):
    heard = _heard()
    if heard is not None:
        heard.extend(records)
    else:
        for record in records:
            record.gate.observe(record)


def _heard():
    """The list of who listens, None where nobody does or tensors are symbolic."""
    return getattr(_local, "heard", None) if tf.executing_eagerly() else None


def _stack():
    if not hasattr(_local, "stack"):
        _local.stack = []
    return _local.stack


def _current_graph():
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
