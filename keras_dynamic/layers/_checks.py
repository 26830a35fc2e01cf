"""Checks that several layers make of their arguments; `name` is the argument's."""

import math
import numbers

import keras

__all__ = ["checked_layer", "checked_rate", "nonnegative"]


def nonnegative(name, value):
    """The float of a finite number >= 0; `name` is the argument's, for the error."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(
            f"`{name}` must be a number. Received: {name}={value!r} of type "
            f"{type(value)}."
        )
    if not 0 <= value < math.inf:
        raise ValueError(f"`{name}` must be finite and >= 0. Received: {name}={value}.")
    return float(value)


def checked_layer(name, value):
    """Returns a Keras layer or model."""
    if not isinstance(value, keras.Layer):
        raise TypeError(
            f"`{name}` must be a Keras layer or model. Received: {name}={value!r} of "
            f"type {type(value)}."
        )
    return value


def checked_rate(name, value, closed=False):
    """A rate in (0, 1), or in (0, 1] where it is `closed`; None for one not given."""
    if value is None and closed:
        return None
    rate = nonnegative(name, value)
    if not 0 < rate <= 1 or (rate == 1 and not closed):
        raise ValueError(
            f"`{name}` must lie in (0, 1{']' if closed else ')'}. Received: "
            f"{name}={value}."
        )
    return rate
