"""Checks that several layers make of their arguments; `name` is the argument's."""

import math
import numbers

import keras
import numpy as np
import tensorflow as tf

__all__ = [
    "check_one_tensor",
    "checked_bool",
    "checked_gate",
    "checked_layer",
    "checked_rate",
    "checked_shortcut",
    "checked_tensor",
    "nonnegative",
    "numbers_in",
    "positive_integer",
]


def check_one_tensor(input_shape):
    """Raises for a shape that is none, or a structure of several."""
    nested = isinstance(input_shape, dict) or any(
        isinstance(size, (list, tuple, dict)) for size in input_shape or ()
    )
    if input_shape is None or nested:
        raise ValueError(
            f"`inputs` must be one tensor. Received: shapes {input_shape}."
        )


def checked_tensor(name, values):
    """A tensor of numbers or bools."""
    try:
        tensor = tf.convert_to_tensor(values)
    except (TypeError, ValueError):
        raise TypeError(
            f"`{name}` must be a tensor or an array. Received: {name} of type "
            f"{type(values)}."
        ) from None
    if tensor.dtype == tf.string:
        raise TypeError(f"`{name}` must hold numbers. Received: strings.")
    return tensor


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


def positive_integer(name, value):
    """The int of an integer >= 1."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(
            f"`{name}` must be an integer. Received: {name}={value!r} of type "
            f"{type(value)}."
        )
    if value < 1:
        raise ValueError(f"`{name}` must be at least 1. Received: {name}={value}.")
    return int(value)


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
    rate = value if value != value else nonnegative(name, value)  # a NaN is no rate
    if not 0 < rate <= 1 or (rate == 1 and not closed):
        raise ValueError(
            f"`{name}` must lie in (0, 1{']' if closed else ')'}. Received: "
            f"{name}={value}."
        )
    return rate


def checked_bool(name, value):
    """Returns a bool."""
    if not isinstance(value, bool):
        raise TypeError(
            f"`{name}` must be True or False. Received: {name}={value!r} of type "
            f"{type(value)}."
        )
    return value


def numbers_in(name, values):
    """A list of floats from a flat list, tuple or array of numbers."""
    try:
        array = np.asarray(values)
    except ValueError:  # rows of several lengths
        array = np.array(None)
    if array.ndim != 1 or array.dtype.kind not in "fiu":
        raise TypeError(
            f"`{name}` must be a flat list of numbers. Received: {name}={values!r}."
        )
    return [float(value) for value in array]


def checked_gate(gate):
    """Returns a layer for the argument `gate`, which must give logits."""
    last = checked_layer("gate", gate)
    while isinstance(last, keras.Sequential) and last.layers:
        last = last.layers[-1]
    if getattr(last, "activation", None) is keras.activations.sigmoid:
        raise ValueError(
            "`gate` must give logits; the sigmoid is taken here. Received: gate "
            f"'{gate.name}', which ends in one."
        )
    return gate


def checked_shortcut(value):
    """Returns "auto", None or a layer for the argument `shortcut`."""
    if isinstance(value, str) and value != "auto":
        raise ValueError(
            f"`shortcut` must be 'auto', a layer or None. Received: shortcut={value!r}."
        )
    if value is None or value == "auto":
        return value
    return checked_layer("shortcut", value)
