"""What an exit's loss counts in training: variables, read anew in every step."""

import keras
import numpy as np
import tensorflow as tf

__all__ = ["Scaled", "as_variable", "new_switch", "switched"]


def as_variable(weight):
    """A variable for a number, `None` being 1; a variable is handed back.

    A number would be a constant of the compiled step and could follow no schedule. No
    layer owns the variable: `compile`, of a saved model too, makes it from the number.
    """
    if hasattr(weight, "assign"):
        return weight
    return _variable(1.0 if weight is None else _checked(weight))


def new_switch():
    """A variable that is 1, to be set to 0 while losses shall not count."""
    return _variable(1.0)


def switched(weights, switch):
    """The weights of the exits' losses, those of early ones times a variable."""
    *early, final = weights
    return [*(Scaled(weight, switch) for weight in early), final]


class Scaled:
    """A weight times a factor, numbers or variables."""

    def __init__(self, weight, factor):
        self._weight, self._factor = weight, factor

    def __tf_tensor__(self, dtype=None, name=None):
        weight = tf.cast(tf.convert_to_tensor(self._weight), tf.float32)
        factor = tf.cast(tf.convert_to_tensor(self._factor), tf.float32)
        return tf.cast(weight * factor, dtype or tf.float32)


def _checked(weight):
    value = np.asarray(weight)
    if value.ndim or value.dtype.kind not in "fiu":
        raise TypeError(
            "`loss_weights` must hold a number for each exit. Received: "
            f"{weight!r} of type {type(weight)}."
        )
    if not 0 <= value < np.inf:
        raise ValueError(
            f"`loss_weights` must be finite and >= 0. Received: {weight!r}."
        )
    return float(value)


def _variable(value):
    return keras.Variable(value, dtype="float32", trainable=False, autocast=False)
