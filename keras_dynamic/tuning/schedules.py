"""A temperature schedule whose form and ends are hyperparameters."""

import functools
import math

from keras_tuner.errors import FatalTypeError, FatalValueError

from keras_dynamic.callbacks.temperature_schedule import TemperatureSchedule
from keras_dynamic.layers._checks import numbers_in, positive_integer
from keras_dynamic.tuning.hyperparameters import register

__all__ = ["temperature_schedule"]

_FORMS = ("constant", "linear", "exponential")


def temperature_schedule(
    hp,
    decay_steps,
    layers=None,
    update_freq="batch",
    initial=(1.0, 5.0),
    final=(0.1, 1.0),
    name="schedule",
):
    """A `kd.callbacks.TemperatureSchedule` of searched form, start and end.

    `schedule` is `"constant"`, `"linear"` or `"exponential"`; a falling one has a
    `schedule_initial_temperature` and a `schedule_final_temperature`, reached after
    `decay_steps` and kept from then on; a constant one a `schedule_temperature`, in the
    range of both. Each exists only where
    it is used, so that no trial is spent on a value without effect.

    It goes into the `callbacks` of a `DynamicHyperModel`.

    Args:
        hp: `keras_tuner.HyperParameters`.
        decay_steps: int >= 1, in units of `update_freq`.
        layers, update_freq: as in `TemperatureSchedule`. Defaults to `None`, all, and
            `"batch"`.
        initial, final: pairs of floats > 0, the ranges; at least 1 for
            `estimator="reinmax"`. Defaults to (1, 5) and (0.1, 1).
        name: string that the hyperparameters' names begin with; another one for a
            second schedule. Defaults to `"schedule"`.

    Returns:
        A `kd.callbacks.TemperatureSchedule`.

    Raises:
        ValueError, TypeError: for arguments out of range, or of a wrong type.

    Example:

    ```python
    hp = keras_tuner.HyperParameters()
    callback = kd.tuning.temperature_schedule(hp, decay_steps=1000)
    print(hp.values)  # {'schedule': 'constant', 'schedule_temperature': 1.0}
    ```
    """
    decay_steps = positive_integer("decay_steps", decay_steps)
    if not isinstance(name, str):
        raise FatalTypeError(
            f"`name` must be a string. Received: name={name!r} of type {type(name)}."
        )
    (low, top), (bottom, high) = _pair("initial", initial), _pair("final", final)
    form = hp.Choice(name, list(_FORMS)) or "constant"
    with hp.conditional_scope(name, ["constant"]):
        lowest, highest = min(low, bottom), max(top, high)
        tau = register(hp, f"{name}_temperature", lowest, highest)
    with hp.conditional_scope(name, ["linear", "exponential"]):
        start = register(hp, f"{name}_initial_temperature", low, top, top)
        end = register(hp, f"{name}_final_temperature", bottom, high, high)
    if form == "constant":
        start = end = tau
    schedule = functools.partial(
        _temperature, form=form, start=start, end=end, steps=decay_steps
    )
    return TemperatureSchedule(schedule, update_freq, layers)


def _temperature(step, form, start, end, steps):
    part = min(step / steps, 1.0)
    if form == "exponential":
        return start * (end / start) ** part
    return start + (end - start) * part


def _pair(argument, values):
    """A range of temperatures, checked."""
    if not isinstance(values, (tuple, list)) or len(values) != 2:
        raise FatalTypeError(
            f"`{argument}` must be a pair of temperatures. Received: "
            f"{argument}={values!r}."
        )
    low, high = numbers_in(argument, values)
    if not 0 < low < high < math.inf:
        raise FatalValueError(
            f"`{argument}` must be a range of positive numbers. Received: "
            f"{argument}={values!r}."
        )
    return low, high
