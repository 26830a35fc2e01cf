"""Other networks that a report is compared with."""

import math
import numbers

import numpy as np


def check_baselines(baselines):
    """`{name: (mean_cost, accuracy)}` as Python numbers, or an error that says why."""
    if baselines is None:
        return {}
    if not isinstance(baselines, dict):
        raise TypeError(
            "`baselines` must be a dict of name: (mean_cost, accuracy). Received: "
            f"baselines={baselines!r} of type {type(baselines)}."
        )
    return {_name(name): _point(name, point) for name, point in baselines.items()}


def _name(name):
    if not isinstance(name, str):
        raise TypeError(
            "`baselines` must have strings as names. Received: "
            f"{name!r} of type {type(name)}."
        )
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(
            "`baselines` must have names that can be written as UTF-8. Received: "
            f"{name!a}."
        ) from None
    return name


def _point(name, point):
    if isinstance(point, np.ndarray):
        point = point.tolist()
    is_pair = isinstance(point, tuple | list) and len(point) == 2
    if not is_pair or not all(_is_number(each) for each in point):
        raise TypeError(
            "`baselines` must hold pairs of numbers (mean_cost, accuracy). "
            f"Received: {name!r}: {point!r}."
        )
    mean_cost, accuracy = map(float, point)
    if not (0 < mean_cost < math.inf and 0 <= accuracy <= 1):
        raise ValueError(
            "`baselines` must have a mean cost above 0 and an accuracy in [0, 1]. "
            f"Received: {name!r}: {point!r}."
        )
    return mean_cost, accuracy


def _is_number(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
