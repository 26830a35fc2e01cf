"""What Keras 3.15 lacks to `fit` under `MirroredStrategy` on one or several machines.

Two things: before the first step it averages the parts of the first batch, which fails
if they differ in size or are on other workers, and where one part is all that is
needed; and it concatenates the logs of all workers, which have no axis for that. Tests
say when Keras does these by itself; then of this file only the check that workers begin
with the same weights has to stay.
"""

import functools
import inspect
import zlib

import keras
import numpy as np
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

    **A worker that dies** ends `fit` on the others with TensorFlow's
    `tf.errors.UnavailableError`: at once where the first worker died, else when its
    heartbeats have been missing for about ten seconds. All workers then have to be
    started anew. They go on where they were with
    `keras.callbacks.BackupAndRestore(folder, delete_checkpoint=False)`: either one
    folder on a disk that all share, to be made before `fit`, since the callbacks of two
    workers may both try to, and to be deleted after it; or one for each. With
    folders of their own one worker may have saved an epoch that a dying one had not;
    `fit` then raises a `RuntimeError` on all of them, as it does whenever workers begin
    with different weights, and a folder has to be copied from one to the others.

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

    @functools.wraps(keras.Model.fit)
    def fit(self, *args, **kwargs):
        if _has_workers(self.distribute_strategy):
            call = inspect.signature(super().fit).bind(*args, **kwargs)
            call.arguments["callbacks"] = self._checked(call.arguments.get("callbacks"))
            args, kwargs = call.args, call.kwargs
        return super().fit(*args, **kwargs)

    def _checked(self, callbacks):
        """The callbacks of `fit`, and one more that compares the workers."""
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            own = [] if callbacks is None else tree.flatten(callbacks)
            return [*own, _SameBeginning()]
        own = [one for one in callbacks.callbacks if isinstance(one, _SameBeginning)]
        if not own:
            own = [_SameBeginning()]
            callbacks.callbacks += own
        own[0].set_model(self)
        return callbacks

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


class _SameBeginning(keras.callbacks.Callback):
    """Raises where workers would train different weights, each of them sure of its own.

    TensorFlow makes them equal when they are made; a file loaded since is each worker's
    own affair.
    """

    def on_train_begin(self, logs=None):
        self._is_checked = False

    def on_epoch_begin(self, epoch, logs=None):
        if self._is_checked:
            return
        self._is_checked = True
        strategy = self.model.distribute_strategy
        weights = [*self.model.trainable_variables, *self.model.optimizer.variables]
        own = tf.constant([[epoch, zlib.crc32(b"".join(map(_bytes, weights)))]])
        found = strategy.gather(strategy.run(lambda: tf.identity(own)), axis=0).numpy()
        if len(np.unique(found, axis=0)) > 1:
            raise RuntimeError(
                "The workers must begin with the same weights at the same epoch. "
                f"Received: epochs {found[:, 0].tolist()} and weights with the "
                f"checksums {found[:, 1].tolist()}. If they come from backups, copy "
                "one worker's to the others."
            )


def _bytes(variable):
    return np.asarray(variable).tobytes()


def _has_workers(strategy):
    several = tf.distribute.MultiWorkerMirroredStrategy
    return isinstance(strategy, several) and strategy.num_replicas_in_sync > 1
