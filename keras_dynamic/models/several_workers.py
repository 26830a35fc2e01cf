"""What Keras 3.15 lacks to `fit` under `MultiWorkerMirroredStrategy`.

Two things: before the first step it averages the batches of all workers, where one
worker's is all that is needed; and it concatenates the logs of all workers, which have
no axis for that. A test says when Keras does both by itself; then this file can go.
"""

import tensorflow as tf
from keras import tree

__all__ = ["SeveralWorkers"]


class SeveralWorkers:
    """Mixin with which `fit` and `evaluate` run on several workers.

    `DynamicModel` has it. For another model, write it before `keras.Model`. It changes
    nothing under any other strategy.

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
        if iterator is None or not _has_workers(strategy):
            return super()._maybe_symbolic_build(iterator, data_batch)
        _, _, batches = next(iter(iterator))
        own = tree.map_structure(
            lambda value: strategy.experimental_local_results(value)[0], next(batches)
        )
        return super()._maybe_symbolic_build(data_batch=own)


def _has_workers(strategy):
    several = tf.distribute.MultiWorkerMirroredStrategy
    return isinstance(strategy, several) and strategy.num_replicas_in_sync > 1
