"""A temperature schedule whose form and ends are hyperparameters."""

import functools

from keras_dynamic.callbacks.temperature_schedule import TemperatureSchedule
from keras_dynamic.layers._checks import positive_integer
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
):
    """A `kd.callbacks.TemperatureSchedule` of searched form, start and end.

    Three hyperparameters. `schedule` is `"constant"`, `"linear"` or `"exponential"`;
    a falling one has a `schedule_initial_temperature` and a
    `schedule_final_temperature`, reached after `decay_steps` and kept from then on; a
    constant one a `schedule_temperature`, in the range of both. Each exists only where
    it is used, so that no trial is spent on a value without effect.

    It goes into the `callbacks` of a `DynamicHyperModel`.

    Args:
        hp: `keras_tuner.HyperParameters`.
        decay_steps: int >= 1, in units of `update_freq`.
        layers, update_freq: as in `TemperatureSchedule`. Defaults to `None`, all, and
            `"batch"`.
        initial, final: pairs of floats > 0, the ranges; at least 1 for
            `estimator="reinmax"`. Defaults to (1, 5) and (0.1, 1).

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
    (low, top), (bottom, high) = initial, final
    form = hp.Choice("schedule", list(_FORMS)) or "constant"
    with hp.conditional_scope("schedule", ["constant"]):
        lowest, highest = min(low, bottom), max(top, high)
        middle = min(max(1.0, lowest), highest)
        tau = register(hp, "schedule_temperature", lowest, highest, middle)
    with hp.conditional_scope("schedule", ["linear", "exponential"]):
        start = register(hp, "schedule_initial_temperature", low, top, top)
        end = register(hp, "schedule_final_temperature", bottom, high, high)
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
