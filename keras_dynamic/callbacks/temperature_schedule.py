"""TemperatureSchedule: the temperature of layers that choose, over a training."""

from keras_dynamic._compat import layers_within
from keras_dynamic.callbacks._schedule import Schedule, check_schedule
from keras_dynamic.ops.estimators import check_temperature

__all__ = ["TemperatureSchedule"]


class TemperatureSchedule(Schedule):
    """Sets the temperature of the layers that choose, before each step or epoch.

    High at first, so that all choices are tried; low at the end, so that training
    sees what inference will do. Layers that choose have a weight
    `current_temperature`; they are found wherever they are in the model, in nested
    models and in other layers too. Each epoch's last temperature is put into the logs
    as `temperature`, and as `<layer>_temperature` for those that `layers` names.

    The callback keeps no count of its own, so that it may be deep-copied, as
    keras-tuner does, and training may be interrupted. Per epoch, the step is the number
    of the epoch that `fit` gives. Per batch, it is `model.optimizer.iterations`, which
    goes on in a second `fit` and which `BackupAndRestore` brings back; or the number of
    batches in the epochs before, if `fit` starts at a later epoch with an optimizer
    that has made fewer steps, as after Hyperband's reload of a model's best weights.

    Args:
        schedule: a `keras.optimizers.schedules.LearningRateSchedule`, or a function
            of the step, an int from 0, that gives the temperature.
        update_freq: `"batch"` or `"epoch"`: what a step is. With
            `steps_per_execution`, `"batch"` sets it once an execution. Defaults to
            `"batch"`.
        layers: list of names of the layers to set. They are given by name because a
            deep copy of a layer is not the one in the model. Defaults to `None`, all
            that have a temperature.
        verbose: 0 or 1, whether to print the temperature after each epoch. Defaults
            to 0.

    Raises:
        ValueError: for another `update_freq`; from `fit`, for a model without such
            layers, and at the step where the schedule gives a temperature that is not
            finite and > 0, or < 1 for a layer with `estimator="reinmax"`.
        TypeError: for arguments of a wrong type.

    Example:

    ```python
    inputs = keras.Input((4,))
    choice = kd.GumbelSoftmax(temperature=5.0)(keras.layers.Dense(3)(inputs))
    model = keras.Model(inputs, choice)
    model.compile("adam", "categorical_crossentropy")
    decay = keras.optimizers.schedules.ExponentialDecay(5.0, 10, 0.5)
    schedule = kd.callbacks.TemperatureSchedule(decay)
    history = model.fit(np.ones((320, 4)), np.eye(3)[[0] * 320], callbacks=[schedule])
    print(history.history["temperature"])  # 5 / 2 ** (9 / 10) at the tenth batch
    ```

    Reference:
        Jang, Gu and Poole, "Categorical Reparameterization with Gumbel-Softmax", ICLR
        2017, anneal max(0.5, exp(-r t)) of the step t.
    """

    _common = "temperature"

    def __init__(self, schedule, update_freq="batch", layers=None, verbose=0):
        check_schedule(schedule)
        super().__init__(update_freq, verbose)
        if layers is not None and (
            isinstance(layers, str)
            or not hasattr(layers, "__iter__")
            or not all(isinstance(name, str) for name in layers)
        ):
            raise TypeError(
                "`layers` must be a list of names of layers, or None. Received: "
                f"layers={layers!r}."
            )
        if layers is not None and not list(layers):
            raise ValueError(
                "`layers` must name at least one layer; None means all. Received: "
                "layers=[]."
            )
        self.schedule = schedule
        self.layers = None if layers is None else list(layers)

    def _find(self):
        with_temperature = [
            layer
            for layer in layers_within(self.model)
            if hasattr(layer, "current_temperature")
        ]
        names = {layer.name for layer in with_temperature}
        if not names:
            raise ValueError(
                "`TemperatureSchedule` needs a model with a layer that has a weight "
                "`current_temperature`, such as `GumbelSoftmax`. Received: model "
                f"'{self.model.name}' without any."
            )
        if self.layers is None:
            return with_temperature
        missing = sorted(set(self.layers) - names)
        if missing:
            raise ValueError(
                f"`layers` must name layers with a temperature, of {sorted(names)}. "
                f"Received: {missing}."
            )
        return [layer for layer in with_temperature if layer.name in self.layers]

    def _set_to(self, found, step):
        value = self._value_at(self.schedule, step)
        for layer in found:
            reinmax = getattr(layer, "estimator", None) == "reinmax"
            check_temperature(
                value,
                "reinmax" if reinmax else "soft",
                origin=(
                    f" from `schedule` at {self._unit} {step}, for layer '{layer.name}'"
                ),
            )
        for layer in found:
            layer.current_temperature.assign(float(value))
        names = [self._common, *(f"{name}_temperature" for name in self.layers or ())]
        return dict.fromkeys(names, float(value))
