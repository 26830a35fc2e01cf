"""Activations that a user lists: names and functions, read, named and saved."""

import keras
import tensorflow as tf

__all__ = [
    "check_keeps_shape",
    "deserialized",
    "names_of",
    "read_activations",
    "serialized",
]


def read_activations(activations):
    """Returns the list as given, and the function that each entry stands for.

    Raises:
        TypeError: for what is no list of names and functions; a layer among them.
        ValueError: for an empty list, an unknown name, or a function twice.
    """
    if not isinstance(activations, (list, tuple)):
        raise TypeError(
            "`activations` must be a list of names or functions. Received: "
            f"activations={activations!r} of type {type(activations)}."
        )
    if not activations:
        raise ValueError(
            "`activations` must hold at least one. Received: "
            f"activations={activations!r}."
        )
    functions = []
    for index, given in enumerate(activations):
        function = _function(given, index)
        if function in functions:
            raise ValueError(
                "`activations` must hold each activation once. Received: "
                f"activations={activations!r}, where the one at {index} is the one at "
                f"{functions.index(function)}."
            )
        functions.append(function)
    return list(activations), functions


def names_of(activations):
    """A name for each: as given, or the function's, numbered where it is taken."""
    names = []
    for given in activations:
        name = given
        if not isinstance(given, str):
            name = getattr(given, "__name__", type(given).__name__)
        number = 2
        unique = name
        while unique in names:
            unique, number = f"{name}_{number}", number + 1
        names.append(unique)
    return names


def serialized(activation):
    """An entry of the list as a config holds it."""
    if isinstance(activation, str):
        return activation
    if getattr(activation, "__name__", None) == "<lambda>":
        # `keras.activations.serialize` drops what says that it is a lambda.
        return keras.saving.serialize_keras_object(activation)
    return keras.activations.serialize(activation)


def deserialized(entry):
    """The name or function that `serialized` made an entry of a config of."""
    if isinstance(entry, dict):
        return keras.saving.deserialize_keras_object(entry)
    return entry


def check_keeps_shape(name, function, shape, dtype):
    """Traces an activation, and raises a ValueError if it changes the shape."""
    spec = tf.TensorSpec(shape, dtype)
    traced = tf.function(function, autograph=False).get_concrete_function(spec)
    given = getattr(traced.structured_outputs, "shape", None)
    if given is None or not spec.shape.is_compatible_with(given):
        raise ValueError(
            "`activations` must keep the shape of their input. Received: activation "
            f"'{name}', which gives shape {given} for an input of shape "
            f"{tuple(shape)}."
        )


def _function(given, index):
    """The function that an entry of `activations` stands for."""
    if isinstance(given, (keras.layers.Layer, type)):
        raise TypeError(
            "`activations` must be names or functions; among layers, weights of their "
            "own included, `LayerChoice` chooses. Received: "
            f"activations[{index}]={given!r}."
        )
    if callable(given):
        return given
    if not isinstance(given, str):
        raise TypeError(
            "`activations` must be names or functions. Received: "
            f"activations[{index}]={given!r} of type {type(given)}."
        )
    registered = keras.saving.get_registered_object(given)
    if callable(registered) and not isinstance(registered, type):
        return registered
    try:
        return keras.activations.get(given)
    except ValueError:
        raise ValueError(
            "`activations` must be names in `keras.activations`, names of registered "
            f"functions, or functions. Received: activations[{index}]={given!r}."
        ) from None
