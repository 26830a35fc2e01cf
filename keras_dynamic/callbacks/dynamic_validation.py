"""DynamicValidation: the dynamic road's scores in the logs of `fit`."""

import keras
import numpy as np

from keras_dynamic.layers._checks import positive_integer

__all__ = ["DynamicValidation"]


class DynamicValidation(keras.callbacks.Callback):
    """Calibrates a `DynamicModel` on one set and scores its dynamic road on another.

    At the end of each epoch, `model.calibrate` chooses temperatures and thresholds on
    `calibration_data`, and `model.evaluate_dynamic` runs `validation_data` as inference
    will. The logs then hold `val_mean_cost` (1.0 is the plain network), an
    `val_exit_<k>_rate` for each exit, `val_dynamic_loss`, and a `val_dynamic_<metric>`
    for each of the final exit's metrics, such as `val_dynamic_accuracy`.

    The callback stands before those that monitor these, and those need an explicit
    `mode` ("max" for an accuracy): Keras knows the names of its own logs only. The rule
    of the last epoch stays in the model; rule and temperatures are weights, so that
    `restore_best_weights` and `ModelCheckpoint` bring those of the best epoch back.

    It is to be two sets. Scores on the samples that thresholds were chosen for are too
    good.

    Args:
        calibration_data: tuple (x, y), or a dataset of such tuples.
        validation_data: the same, other samples.
        rule, budget, max_accuracy_drop: as in `DynamicModel.calibrate`. Defaults to
            `"max_probability"` and `None`.
        batch_size: int or `None` (32).
        update_freq: int >= 1, every how many epochs. Defaults to 1.

    Raises:
        TypeError: for data of another form; from `fit`, for a model that is no
            `DynamicModel`.
        ValueError: for an `update_freq` below 1; from `fit`, for a goal that cannot be
            reached.

    Example:

    ```python
    inputs = keras.Input((4,))
    h = keras.layers.Dense(8, "relu")(inputs)
    outputs = [kd.EarlyExit(2)(h), keras.layers.Dense(2, "softmax")(h)]
    model = kd.DynamicModel(inputs, outputs)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    x, y = np.random.default_rng(0).normal(size=(90, 4)), np.arange(90) % 2
    validation = kd.callbacks.DynamicValidation((x[:30], y[:30]), (x[30:60], y[30:60]))
    history = model.fit(x[60:], y[60:], callbacks=[validation], verbose=0).history
    print(history["val_dynamic_accuracy"], history["val_mean_cost"])
    ```
    """

    def __init__(
        self,
        calibration_data,
        validation_data,
        rule="max_probability",
        budget=None,
        max_accuracy_drop=None,
        batch_size=None,
        update_freq=1,
    ):
        super().__init__()
        self.calibration_data = _checked_data("calibration_data", calibration_data)
        self.validation_data = _checked_data("validation_data", validation_data)
        self.rule, self.budget = rule, budget
        self.max_accuracy_drop = max_accuracy_drop
        self.batch_size = batch_size
        self.update_freq = positive_integer("update_freq", update_freq)

    def on_train_begin(self, logs=None):
        if not hasattr(self.model, "evaluate_dynamic"):
            raise TypeError(
                "`DynamicValidation` needs a `DynamicModel`. Received: model "
                f"'{self.model.name}' of type {type(self.model)}."
            )

    def on_epoch_end(self, epoch, logs=None):
        if (epoch + 1) % self.update_freq:
            return
        self.model.calibrate(
            *self.calibration_data,
            rule=self.rule,
            budget=self.budget,
            max_accuracy_drop=self.max_accuracy_drop,
            batch_size=self.batch_size,
        )
        results = self.model.evaluate_dynamic(
            *self.validation_data, batch_size=self.batch_size, verbose=0
        )
        if logs is None:
            return
        rates = results.pop("exit_rates")
        logs["val_mean_cost"] = results.pop("mean_cost")
        logs.update({f"val_exit_{k}_rate": rate for k, rate in enumerate(rates)})
        logs.update({f"val_dynamic_{name}": value for name, value in results.items()})


def _checked_data(name, data):
    """The arguments (x, y) or (dataset,)."""
    if isinstance(data, (tuple, list)):
        if len(data) != 2:
            raise TypeError(
                f"`{name}` must be (x, y), or a dataset of such pairs. Received: a "
                f"{type(data).__name__} of {len(data)}."
            )
        return tuple(data)
    if isinstance(data, (np.ndarray, str, dict)) or data is None:
        raise TypeError(
            f"`{name}` must be (x, y), or a dataset of such pairs. Received: "
            f"{type(data)}."
        )
    return (data,)
