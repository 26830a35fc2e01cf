"""What the functions of this folder are given, read; errors that name the argument."""

import numbers

import numpy as np

__all__ = [
    "check_max_risk",
    "check_number",
    "checked_bool",
    "checked_count",
    "float_array",
    "listed",
]


def float_array(name, values):
    """A float64 array of numbers in any form that NumPy reads.

    Raises:
        TypeError: for what is no array of real numbers.
    """
    try:
        array = np.asarray(values)
        # Strings would be read, and None would become a NaN.
        if array.dtype.kind in "OSUcmM":
            raise TypeError
        return array.astype(np.float64)
    except (TypeError, ValueError):
        raise TypeError(
            f"`{name}` must be an array of numbers. Received: {name}="
            f"{_shortened(values)} of type {type(values)}."
        ) from None


def check_number(name, value):
    """Raises a TypeError for what is no number; a bool is none."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(
            f"`{name}` must be a number. Received: {name}={_shortened(value)} of type "
            f"{type(value)}."
        )


def check_max_risk(max_risk):
    """Raises unless it is a number in [0, 1)."""
    check_number("max_risk", max_risk)
    if not 0 <= max_risk < 1:
        raise ValueError(
            f"`max_risk` must lie in [0, 1). Received: max_risk={max_risk}."
        )


def checked_count(name, value, least=1):
    """The int of a whole number of at least `least`.

    Raises:
        TypeError: for what is no number.
        ValueError: for another number.
    """
    check_number(name, value)
    if not (value >= least and float(value).is_integer()):
        raise ValueError(
            f"`{name}` must be an integer of at least {least}. Received: "
            f"{name}={value}."
        )
    return int(value)


def checked_bool(name, value):
    """Returns a bool, NumPy's too."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(
            f"`{name}` must be True or False. Received: {name}={_shortened(value)} of "
            f"type {type(value)}."
        )
    return bool(value)


def listed(name, values):
    """A list of what is a sequence, one entry an exit.

    Raises:
        TypeError: for what is none; a string or a dict is none.
    """
    if isinstance(values, (str, bytes, dict, set)) or not hasattr(values, "__len__"):
        raise TypeError(
            f"`{name}` must be a sequence, one entry an exit. Received: {name}="
            f"{_shortened(values)} of type {type(values)}."
        )
    try:
        return list(values)
    except TypeError:  # an array without axes has a length, which is an error
        raise TypeError(
            f"`{name}` must be a sequence, one entry an exit. Received: {name}="
            f"{_shortened(values)}."
        ) from None


def _shortened(value):
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
