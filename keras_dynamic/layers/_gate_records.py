"""What gates decided for the samples of a batch, told to whoever asks.

A gate at inference reports which samples reached it and which it let through. A walk
that counts costs opens `collecting()` around the calls that it makes. A gate that
stands inside another one's layer runs in a branch of a conditional, from which no
tensor may escape by itself: the outer gate collects there, hands the vectors out of the
branch, and reports them together with its own.
"""

import contextlib
import dataclasses
import threading
from typing import Any

import tensorflow as tf

__all__ = ["GateRecord", "collecting", "report"]

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


def report(records):
    """Hands `GateRecord`s to the innermost collector; without one, to their gates.

    A collector outside of the graph that is being built (a loop, a branch of somebody
    else's) gets none, since no tensor may leave that graph.
    """
    stack = _stack()
    if not stack:
        for record in records:
            record.gate.observe(record)
    elif stack[-1][1] is _current_graph():
        stack[-1][0].extend(records)


def _stack():
    if not hasattr(_local, "stack"):
        _local.stack = []
    return _local.stack


def _current_graph():
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
