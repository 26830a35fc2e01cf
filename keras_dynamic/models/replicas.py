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
        count, replicas = count_rows(x), self._strategy.num_replicas_in_sync
        flat = tree.flatten(x)
        given = [tensor for tensor in flat if tensor is not None]
        shards = np.array_split(np.arange(count), replicas)
        # No layer runs on an empty shard, which some cannot take: its replica answers
        # the first sample once more.
        rows = [shard if len(shard) else np.zeros(1, "int64") for shard in shards]

        def own(context):
            taken = rows[context.replica_id_in_sync_group]
            return [tensor[taken[0] : taken[-1] + 1] for tensor in given]

        fed = self._strategy.experimental_distribute_values_from_function(own)
        answers = self._function(x, flat)(fed, thresholds, temperatures)
        answers = {
            name: self._strategy.experimental_local_results(values)
            for name, values in answers.items()
        }
        segment_rows = tf.add_n(answers.pop("segment_rows"))
        joined = {
            name: np.concatenate(
                [
                    part.numpy()[: len(shard)]
                    for part, shard in zip(parts, shards, strict=True)
                ]
            )
            for name, parts in answers.items()
        }
        return {**joined, "segment_rows": segment_rows}

    def _function(self, x, flat):
        """The compiled function for batches with the same inputs absent."""
        absent = tuple(tensor is None for tensor in flat)
        if absent not in self._functions:

            def walk(given, thresholds, temperatures):
                given = iter(given)
                filled = [None if missing else next(given) for missing in absent]
                packed = tree.pack_sequence_as(x, filled)
                return self._walk(packed, thresholds, temperatures, eagerly=True)

            def run(*given):
                return self._strategy.run(walk, given)

            self._functions[absent] = tf.function(
                run, autograph=False, reduce_retracing=True
            )
        return self._functions[absent]
