"""LossWeightSchedule: what the exits' losses count, over a training."""

import math
import numbers

from keras_dynamic._compat import layers_within
from keras_dynamic.callbacks._schedule import Schedule, check_schedule
from keras_dynamic.layers.early_exit import EarlyExit
from keras_dynamic.models.dynamic_model import DynamicModel

__all__ = ["LossWeightSchedule"]


class LossWeightSchedule(Schedule):
    """Sets lambda_e, the weight of an exit's loss, before each step or epoch.

    From 0 to 1, for one, trains the trunk first and then all of it; a weight that falls
    leaves the last word to the last exit. A `DynamicModel` follows it whether the
    weights come from its `EarlyExit` layers or from `compile(loss_weights=)`, which the
    schedule then overrides. In any other model it sets the `loss_weight` of the
    `EarlyExit` layers, which are called with `targets` there.

    Each epoch's last weights are put into the logs: one schedule's as `loss_weight`,
    those of a dict as `<exit>_loss_weight`. What a step is, and that the callback may
    be copied and training interrupted, is as in `TemperatureSchedule`. The weights stay
    what they were last when training ends.

    Args:
        schedule: a `keras.optimizers.schedules.LearningRateSchedule`, or a function of
            the step, an int from 0, that gives a weight >= 0, for all early exits; or
            a dict of these by the exits' names, the last exit's too if it is to change.
            Exits without an entry keep their weight.
        update_freq: `"batch"` or `"epoch"`: what a step is. Defaults to `"batch"`.
        verbose: 0 or 1, whether to print the weights after each epoch. Defaults to 0.

    Raises:
        TypeError: for a schedule that cannot be called or gives no number.
        ValueError: for another `update_freq` or an empty dict; from `fit`, for a model
            without exits that have a loss, or a name that is none of theirs, and at the
            step where a schedule gives a number that is not finite and >= 0.

    Example:

    ```python
    inputs = keras.Input((4,))
    h = keras.layers.Dense(8, "relu")(inputs)
    outputs = [kd.EarlyExit(2)(h), keras.layers.Dense(2, "softmax")(h)]
    model = kd.DynamicModel(inputs, outputs)
    model.compile("adam", "sparse_categorical_crossentropy")
    late = kd.callbacks.LossWeightSchedule(lambda epoch: float(epoch >= 2), "epoch")
    x, y = np.random.default_rng(0).normal(size=(90, 4)), np.arange(90) % 2
    history = model.fit(x, y, epochs=4, callbacks=[late], verbose=0)
    print(history.history["loss_weight"])  # [0.0, 0.0, 1.0, 1.0]
    ```
    """

    _common = "loss_weight"

    def __init__(self, schedule, update_freq="batch", verbose=0):
        if schedule == {}:
            raise ValueError(
                "`schedule` must have an entry for at least one exit. Received: "
                "schedule={}."
            )
        for each in schedule.values() if isinstance(schedule, dict) else [schedule]:
            check_schedule(each)
        super().__init__(update_freq, verbose)
        self.schedule = schedule

    def _find(self):
        """(exit's name, schedule, variable) of each exit to set."""
        early, final = _weights_of(self.model)
        if not early:
            raise ValueError(
                "`LossWeightSchedule` needs a model with early exits that have a loss. "
                f"Received: model '{self.model.name}' without any."
            )
        if not isinstance(self.schedule, dict):
            return [(name, self.schedule, variable) for name, variable in early]
        named = [*early, *final]
        names = [name for name, _ in named]
        unknown = sorted(set(self.schedule) - set(names))
        if unknown:
            raise ValueError(
                "`schedule` must have the names of exits that have a loss as keys: "
                f"{names}. Received unknown keys: {unknown}."
            )
        return [
            (name, self.schedule[name], variable)
            for name, variable in named
            if name in self.schedule
        ]

    def _set_to(self, found, step):
        values = []
        for name, schedule, _ in found:
            value = self._value_at(schedule, step)
            origin = f" from `schedule` at {self._unit} {step}, for exit '{name}'"
            values.append(_checked(value, origin))
        for (_, _, variable), value in zip(found, values, strict=True):
            variable.assign(value)
        if not isinstance(self.schedule, dict):
            return {self._common: values[0]}
        names = [f"{name}_{self._common}" for name, _, _ in found]
        return dict(zip(names, values, strict=True))


def _weights_of(model):
    """Two lists of (name, variable): of the early exits that have a loss, and of the
    last one."""
    if not isinstance(model, DynamicModel):
        exits = [each for each in layers_within(model) if isinstance(each, EarlyExit)]
        return [(each.name, each.current_loss_weight) for each in exits], []
    road = model.road
    losses = road.losses or [None] * len(road.heads)
    weights = road.loss_weights or losses
    *early, final = [
        [(head.name, weight)] if loss is not None else []
        for head, weight, loss in zip(road.heads, weights, losses, strict=True)
    ]
    return sum(early, []), final


def _checked(value, origin):
    received = f"Received: loss_weight={value!r}{origin}."
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"`schedule` must give a number. {received}")
    if not 0 <= value < math.inf:
        raise ValueError(f"`schedule` must give a finite number >= 0. {received}")
    return float(value)
