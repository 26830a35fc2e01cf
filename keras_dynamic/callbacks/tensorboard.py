"""TensorBoard: Keras' callback, with histograms of what a dynamic model decides."""

import os

import keras
import tensorflow as tf

from keras_dynamic._compat import validation_writer
from keras_dynamic.callbacks._data import check_repeatable
from keras_dynamic.callbacks._statistics import histograms_of, is_dynamic
from keras_dynamic.layers._checks import positive_integer

__all__ = ["TensorBoard"]


class TensorBoard(keras.callbacks.TensorBoard):
    """Keras' `TensorBoard`, which also shows how a model decides about samples.

    Every number in the logs of `fit` becomes a scalar, `epoch_<name>`, in the run
    `train`, or without its `val_` in the run `validation`: the temperature, gates' open
    rates, experts' loads, and what `DynamicValidation` found. Callbacks that write into
    the logs stand before this one.

    With `data`, histograms show in the run `validation`, by epoch, what inference does
    with these samples:

    - `exit_index` and `exit_confidence` of a `DynamicModel`: where `predict_dynamic`
      leaves under the rule in force, one bucket for each exit, and with what score.
    - `exit_weights`, with a selector: a bucket for each exit, in it the sum over the
      samples of that exit's soft weight. It is `exit_index` before the hardening.
    - `<gate>_open_probability` of each `SkipGate`: of those samples that got there, as
      `evaluate` counts them: all samples, whether or not they would have left at an
      exit before; for a gate inside another one's layer, those for which it ran.
    - `<mixture>_expert_load` of each `SparseMoE`: a bucket for each expert, in it the
      number of tokens (with `route="input"` of samples) that it computed, dropped ones
      and padding left out. With `top_k=2` a token is in two buckets.

    Of two layers of one name, in two nested models, one gets a number. Any Keras model
    with gates or mixtures will do. The data takes one pass through the sparse
    road, and one more, eager, through the whole network where there are gates, mixtures
    or a selector.

    Steps are epochs: those that `fit` gives (`initial_epoch`), or, where a second `fit`
    with this object starts at 0 again, those after the last one written.

    A deep copy, as keras-tuner makes for each trial (with a directory of its own),
    copies `data`. That works for arrays and `PyDataset` objects that can be copied; a
    `tf.data.Dataset` cannot, nor can the callback after it was used in a `fit`.

    Args:
        log_dir: path of the directory to write to. Defaults to `"logs"`.
        data: samples, as in `predict`: array(s), a dict, a finite `tf.data.Dataset` or
            `PyDataset`; (x, y) batches of a dataset will do. Defaults to `None`, no
            histograms but those of Keras.
        data_freq: int >= 1, histograms of `data` after the epochs 0, `data_freq`,
            2 `data_freq`, and so on, as Keras counts for the weights' with
            `histogram_freq`. Defaults to 1.
        batch_size: int or `None` (32), for `data`.
        **kwargs: as in `keras.callbacks.TensorBoard`.

    Raises:
        TypeError: for a generator as `data`, or a `log_dir` that is no path.
        ValueError: for a `data_freq` below 1 or an endless dataset; from `fit`, before
            the first step, for a `log_dir` that cannot be written to, and for `data`
            where nothing in the model is dynamic.

    Example:

    ```python
    inputs = keras.Input((4,))
    gate = kd.SkipGate(keras.layers.Dense(4), name="gate")
    model = keras.Model(inputs, keras.layers.Dense(1)(gate(inputs)))
    model.compile("adam", "mse")
    x = np.random.default_rng(0).normal(size=(64, 4))
    board = kd.callbacks.TensorBoard("logs", data=x[:32])
    model.fit(x, x[:, 0], epochs=2, callbacks=[board], verbose=0)
    # In a terminal: tensorboard --logdir logs
    ```
    """

    # The name is Keras': keras-tuner looks for it, to give each trial a directory.
    def __init__(
        self, log_dir="logs", data=None, data_freq=1, batch_size=None, **kwargs
    ):
        if not isinstance(log_dir, (str, os.PathLike)):
            raise TypeError(
                "`log_dir` must be a path. Received: "
                f"log_dir={log_dir!r} of type {type(log_dir)}."
            )
        super().__init__(log_dir, **kwargs)
        check_repeatable("data", data)
        self.data = data
        self.data_freq = positive_integer("data_freq", data_freq)
        if batch_size is not None:
            positive_integer("batch_size", batch_size)
        self.batch_size = batch_size
        self._next_step, self._steps_before = 0, None

    def set_model(self, model):
        _check_directory(self.log_dir)
        super().set_model(model)

    def on_train_begin(self, logs=None):
        if self.data is not None and not is_dynamic(self.model):
            raise ValueError(
                "`data` needs a model with exits (`DynamicModel`), a `SkipGate` or a "
                f"`SparseMoE`. Received: model '{self.model.name}' without any."
            )
        self._steps_before = None
        super().on_train_begin(logs)

    def on_epoch_begin(self, epoch, logs=None):
        super().on_epoch_begin(epoch, logs)
        if self._steps_before is None:
            self._steps_before = self._next_step if epoch == 0 else 0

    def on_epoch_end(self, epoch, logs=None):
        step = epoch + self._steps_before
        self._next_step = step + 1
        # Else the `update_freq` of batches, in force still, decides about epochs too.
        with tf.summary.record_if(True):
            super().on_epoch_end(step, logs)
            if self.data is not None and step % self.data_freq == 0:
                self._write_histograms(step)

    def _write_histograms(self, step):
        histograms = histograms_of(self.model, self.data, self.batch_size)
        metadata = tf.compat.v1.SummaryMetadata(
            plugin_data={"plugin_name": "histograms"}, data_class="DATA_CLASS_TENSOR"
        )
        with validation_writer(self).as_default():
            for name, buckets in histograms.items():
                # `tf.summary.histogram` takes no edges, and would spread five exits
                # over thirty buckets.
                tf.summary.write(name, buckets.astype("float64"), step, metadata)


def _check_directory(log_dir):
    """Raises unless files can be made where Keras will write."""
    directory = os.path.join(log_dir, "train")
    probe = os.path.join(directory, f".written_{os.getpid()}")
    try:
        tf.io.gfile.makedirs(directory)
        with tf.io.gfile.GFile(probe, "w") as file:
            file.write("Whether one can.")
        tf.io.gfile.remove(probe)
    except (tf.errors.OpError, OSError) as error:
        raise ValueError(
            "`log_dir` must be a directory that can be written to. Received: "
            f"log_dir={log_dir!r} ({error})."
        ) from error
