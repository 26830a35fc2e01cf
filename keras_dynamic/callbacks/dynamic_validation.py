"""DynamicValidation: the dynamic road's scores in the logs of `fit`."""

import keras

from keras_dynamic.calibration import UnreachableGoal
from keras_dynamic.callbacks._data import checked_pairs
from keras_dynamic.layers._checks import positive_integer
from keras_dynamic.models import rules
from keras_dynamic.models.calibrating import check_goals

__all__ = ["DynamicValidation"]

# How often a floor of accuracy is lowered to what the search says that it can reach.
_ATTEMPTS = 4


class DynamicValidation(keras.callbacks.Callback):
    """Calibrates a `DynamicModel` on one set and scores its dynamic road on another.

    At the end of each epoch, `model.calibrate` chooses temperatures and thresholds on
    `calibration_data`, and `model.evaluate_dynamic` runs `validation_data` as inference
    will. The logs then hold `val_mean_cost` (1.0 is the plain network), a
    `val_exit_<k>_rate` for each exit, `val_dynamic_loss`, and a `val_dynamic_<metric>`
    for each of the final exit's metrics, such as `val_dynamic_accuracy`.

    A model with a selector decides by itself and has no thresholds: it is scored under
    `Selected`, nothing is calibrated, and a goal is an error. One with gates or
    mixtures and a single output has its temperature fitted.

    The callback stands before those that monitor these, and those need an explicit
    `mode` ("max" for an accuracy): Keras knows the names of its own logs only. The rule
    of the last epoch stays in the model; rule and temperatures are weights, so that
    `restore_best_weights` and `ModelCheckpoint` bring those of the best epoch back.

    It is to be two sets. Scores on the samples that thresholds were chosen for are too
    good.

    Args:
        calibration_data: tuple (x, y), or a dataset of such tuples.
        validation_data: the same, other samples.
        rule: name of a rule, or an `ExitRule`, as in `DynamicModel.calibrate`.
            Defaults to `None`: `"selected"` for a model with a selector, else
            `"max_probability"`.
        budget, max_accuracy_drop, min_accuracy: as in `DynamicModel.calibrate`, one of
            them at most. After an epoch in which `min_accuracy` cannot be reached, as
            the first ones of a training, thresholds are chosen for the highest
            accuracy that can. Defaults to `None`.
        batch_size: int or `None` (32).
        update_freq: int >= 1, every how many epochs. Defaults to 1.

    Raises:
        TypeError: for data of another form, an iterator too; from `fit`, for a model
            that is no `DynamicModel`, or a goal that is no number.
        ValueError: for an `update_freq` below 1 or a dataset without end; from `fit`
            before the first step, for two goals, one out of its range, or one that the
            model can have no thresholds for.
        kd.calibration.UnreachableGoal: a ValueError, from `fit`, for a `budget` that
            cannot be reached.

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
        rule=None,
        budget=None,
        max_accuracy_drop=None,
        batch_size=None,
        update_freq=1,
        min_accuracy=None,
    ):
        super().__init__()
        self.calibration_data = checked_pairs("calibration_data", calibration_data)
        self.validation_data = checked_pairs("validation_data", validation_data)
        if rule is not None:
            rules.get(rule)  # an unknown name is an error here already
        self.rule = rule
        self.budget = budget
        self.max_accuracy_drop = max_accuracy_drop
        self.min_accuracy = min_accuracy
        if batch_size is not None:
            positive_integer("batch_size", batch_size)
        self.batch_size = batch_size
        self.update_freq = positive_integer("update_freq", update_freq)

    def on_train_begin(self, logs=None):
        if not hasattr(self.model, "evaluate_dynamic"):
            raise TypeError(
                "`DynamicValidation` needs a `DynamicModel`. Received: model "
                f"'{self.model.name}' of type {type(self.model)}."
            )
        rule, goals = rules.get(self._rule()), self._goals()
        self.model.road.check_rule(rule)
        if not self._is_selected() or set(goals.values()) != {None}:
            check_goals(self.model, rule, goals)

    def on_epoch_end(self, epoch, logs=None):
        if (epoch + 1) % self.update_freq:
            return
        if not self._is_selected():
            self._calibrate()
        results = self.model.evaluate_dynamic(
            *self.validation_data,
            batch_size=self.batch_size,
            verbose=0,
            rule="selected" if self._is_selected() else None,
        )
        if logs is None:
            return
        rates = results.pop("exit_rates")
        logs["val_mean_cost"] = results.pop("mean_cost")
        logs.update({f"val_exit_{k}_rate": rate for k, rate in enumerate(rates)})
        logs.update({f"val_dynamic_{name}": value for name, value in results.items()})

    def _calibrate(self):
        goals = self._goals()
        for _ in range(_ATTEMPTS):
            try:
                return self._calibrate_for(goals)
            except UnreachableGoal as error:
                if self.min_accuracy is None:
                    raise
                goals = {"min_accuracy": error.reachable}
        # The search is local: it may miss what it found with another aim.
        return self._calibrate_for({}, rules.get(self._rule()).with_threshold(None))

    def _calibrate_for(self, goals, rule=None):
        self.model.calibrate(
            *self.calibration_data,
            rule=self._rule() if rule is None else rule,
            batch_size=self.batch_size,
            **goals,
        )

    def _rule(self):
        if self.rule is not None:
            return self.rule
        has_selector = self.model.road.plan is not None
        return "selected" if has_selector else "max_probability"

    def _is_selected(self):
        return isinstance(rules.get(self._rule()), rules.Selected)

    def _goals(self):
        return {
            "budget": self.budget,
            "max_accuracy_drop": self.max_accuracy_drop,
            "min_accuracy": self.min_accuracy,
        }
