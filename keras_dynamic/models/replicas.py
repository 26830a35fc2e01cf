"""The walk under `MirroredStrategy`: each replica walks its own shard of a batch."""

import numpy as np
import tensorflow as tf
from keras import tree

from keras_dynamic.models.rows import count_rows

__all__ = ["ReplicatedWalk", "has_replicas"]


def has_replicas(model):
    """Whether a model was made under a `MirroredStrategy` with several replicas."""
    strategy = model.distribute_strategy
    mirrored = isinstance(strategy, tf.distribute.MirroredStrategy)
    return mirrored and strategy.num_replicas_in_sync > 1


class ReplicatedWalk:
    """A walk that is called as any other, and runs on all replicas.

    Nobody waits for another replica within a batch: one whose samples all left early
    is done.

    Args:
        walk: a `CompiledWalk`.
        strategy: the `MirroredStrategy` that the weights were made under.
    """

    def __init__(self, walk, strategy):
        self._walk, self._strategy = walk, strategy
        self._functions = {}

    def __call__(self, x, thresholds, temperatures):
        """As `CompiledWalk`; an array of answers in the order of the batch."""
        flat = tree.flatten(x)
        given = [tensor for tensor in flat if tensor is not None]
        answers = self._function(x, flat, given)(given, thresholds, temperatures)
        answers = {
            name: self._strategy.experimental_local_results(values)
            for name, values in answers.items()
        }
        segment_rows = tf.add_n(answers.pop("segment_rows"))
        count, replicas = count_rows(x), self._strategy.num_replicas_in_sync
        sizes = [_shard(count, replicas, number)[1] for number in range(replicas)]
        joined = {
            name: np.concatenate(
                [p.numpy()[:n] for p, n in zip(parts, sizes, strict=True)]
            )
            for name, parts in answers.items()
        }
        return {**joined, "segment_rows": segment_rows}

    def _function(self, x, flat, given):
        """The compiled function for batches of one kind, of any size."""
        absent = tuple(tensor is None for tensor in flat)
        specs = [self._walk.spec_of(tensor) for tensor in given]
        key = absent, *map(str, specs)
        if key not in self._functions:

            def walk(given, thresholds, temperatures):
                number = tf.distribute.get_replica_context().replica_id_in_sync_group
                replicas = self._strategy.num_replicas_in_sync
                with tf.device("CPU"):  # whence only the shard travels
                    start, size = _shard(tf.shape(given[0])[0], replicas, number)
                    # No layer runs on an empty shard, which some cannot take: its
                    # replica answers the first sample once more.
                    start, size = tf.where(size > 0, start, 0), tf.maximum(size, 1)
                    given = iter([tensor[start : start + size] for tensor in given])
                filled = [None if missing else next(given) for missing in absent]
                packed = tree.pack_sequence_as(x, filled)
                return self._walk(packed, thresholds, temperatures, eagerly=True)

            def run(*given):
                return self._strategy.run(walk, given)

            exits = len(self._walk.exits)
            self._functions[key] = tf.function(
                run, autograph=False
            ).get_concrete_function(
                specs,
                tf.TensorSpec([exits - 1], tf.float32),
                tf.TensorSpec([exits], tf.float32),
            )
        return self._functions[key]


def _shard(rows, replicas, number):
    """(start, size) of one replica's rows; the first ones have one more if need be."""
    size, rest = rows // replicas, rows % replicas
    if isinstance(rows, int):
        return number * size + min(number, rest), size + int(number < rest)
    return (
        number * size + tf.minimum(number, rest),
        size + tf.cast(number < rest, tf.int32),
    )
