"""Small batches that are computed as one, where there is memory for it."""

import tensorflow as tf
from keras import tree

from keras_dynamic.models.rows import count_rows

__all__ = ["Joined", "rows_at_once"]

# More rows at once hardly make a row faster.
_ROWS = 64
# Bytes of the largest tensor between two layers, at most. A batch stays as it is where
# joining two of them would pass that: its size is how the user bounds memory.
_BYTES = 2**24


def rows_at_once(functions, x):
    """How many rows to compute at once, where batches like `x` come: whole batches.

    Args:
        functions: `StageFunctions`.
        x: a batch, as the model takes it.
    """
    count = count_rows(x)
    if functions.sizes_differ or not all(_has_rows(t) for t in tree.flatten(x)):
        return count
    walk = functions.walk
    steps = [step for n in range(walk.depth) for step in walk.trunk(n).steps]
    values = [*walk.inputs, *(value for step in steps for value in step.outputs)]
    if not all(value.batched for value in walk.inputs):
        return count
    fitting = _BYTES // max(_bytes_of_a_row(value.spec) for value in values)
    return count * max(1, min(_ROWS, fitting) // count)


class Joined:
    """Hands batches on, small ones together.

    Args:
        take: function of a batch.
        size: int, rows that are handed on at once where small batches come.
    """

    def __init__(self, take, size):
        self._take, self._size = take, size
        self._kept, self._count = [], 0

    def add(self, x):
        """Takes a batch, as the model takes it."""
        count = count_rows(x)
        if self._count + count > self._size:
            self.flush()
        self._kept.append(x)
        self._count += count
        if self._count >= self._size:
            self.flush()

    def flush(self):
        """Hands on what is kept."""
        if self._kept:
            kept, self._kept, self._count = self._kept, [], 0
            self._take(tree.map_structure(_together, *kept))


def _has_rows(tensor):
    return tensor is None or isinstance(tensor, tf.Tensor)


def _bytes_of_a_row(spec):
    size = tf.as_dtype(spec.dtype).size
    for length in spec.shape[1:]:
        size *= length or 1
    return size


def _together(*parts):
    if len(parts) == 1 or parts[0] is None:
        return parts[0]
    return tf.concat(parts, axis=0)
