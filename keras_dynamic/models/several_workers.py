"""What Keras 3.15 lacks to `fit` under `MirroredStrategy` on one or several machines.

Two things: before the first step it averages the parts of the first batch, which fails
if they differ in size or are on other workers, and where one part is all that is
needed; and it concatenates the logs of all workers, which have no axis for that. Tests
say when Keras does these by itself; then this file can go.
"""

import tensorflow as tf
from keras import tree

__all__ = ["SeveralWorkers"]


class SeveralWorkers:
    """Mixin with which `fit` and `evaluate` run on several replicas and workers.

    Without it they need a first batch that the replicas can share evenly, and one
    worker. `DynamicModel` has it. For another model, write it before `keras.Model`. It
    changes nothing on one device.

    A batch that R replicas cannot share evenly trains on the mean of the R means over
    the parts, not on the mean over the batch: a sample in a smaller part counts more,
    and that of a batch with less than R samples less, since a part without any counts
    as 0. Batch sizes divisible by R, and `drop_remainder` of `tf.data`, avoid it.

    Example:

    ```python
    import keras
    from keras_dynamic.models.several_workers import SeveralWorkers


    class Model(SeveralWorkers, keras.Model):
        pass


    inputs = keras.Input((4,))
    model = Model(inputs, keras.layers.Dense(1)(inputs))
    ```
    """

    def train_step(self, data):
        return self._with_axis(super().train_step(data))

    def test_step(self, data):
        return self._with_axis(super().test_step(data))

    def _with_axis(self, logs):
        """Logs as vectors of one number, where workers put theirs together."""
        if not _has_workers(self.distribute_strategy):
            return logs
        return tree.map_structure(lambda value: tf.reshape(value, [1]), logs)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        strategy = self.distribute_strategy
        if iterator is None or strategy.num_replicas_in_sync == 1:
            return super()._maybe_symbolic_build(iterator, data_batch)
        _, _, batches = next(iter(iterator))
        own = tree.map_structure(
            lambda value: strategy.experimental_local_results(value)[0], next(batches)
        )
        return super()._maybe_symbolic_build(data_batch=own)


def _has_workers(strategy):
    several = tf.distribute.MultiWorkerMirroredStrategy
    return isinstance(strategy, several) and strategy.num_replicas_in_sync > 1
