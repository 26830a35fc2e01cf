"""What a user feeds, in the order of the model's own inputs."""

import keras
import numpy as np
from keras import tree

from keras_dynamic._compat import BatchIterator
from keras_dynamic.layers._checks import positive_integer

__all__ = ["arranged", "batches_over", "check_samples"]


def batches_over(x, batch_size=None, steps=None, **targets):
    """A `BatchIterator`, its arguments checked.

    Args:
        x, batch_size, steps: as in `predict`.
        **targets: `y` and `sample_weight`, as in `fit`.

    Raises:
        TypeError: for strings in NumPy arrays, and a size that is no integer.
        ValueError: for data that holds nothing, and a size below 1.
    """
    for name, size in (("batch_size", batch_size), ("steps", steps)):
        if size is not None:
            positive_integer(name, size)
    if all(leaf is None for leaf in tree.flatten(x)):
        raise ValueError(f"`x` must hold samples, as in `predict`. Received: x={x}.")
    check_samples(x=x, **targets)
    return BatchIterator(x=x, batch_size=batch_size, steps_per_epoch=steps, **targets)


def check_samples(**data):
    """Raises for data, by name, without an axis of samples or with NumPy's strings."""
    for name, structure in data.items():
        for leaf in tree.flatten(structure):
            _check_leaf(name, leaf)


def _check_leaf(name, leaf):
    if getattr(leaf, "shape", None) == ():
        raise ValueError(
            f"`{name}` must hold samples along axis 0. Received: {leaf!r}, which has "
            "no axes."
        )
    if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "OUS":
        raise TypeError(
            f"`{name}` must hold arrays of numbers; strings come as tensors "
            f"(`tf.constant`). Received: an array of dtype {leaf.dtype}."
        )


def arranged(structure, x):
    """A batch whose dict has the keys in the order in which the model was given them.

    TensorFlow and Keras flatten a dict by its sorted keys, but an `OrderedDict` as it
    stands; only names say for sure what is meant.

    Args:
        structure: `model.input`.
        x: a batch.
    """
    if not isinstance(x, dict):
        return x
    if isinstance(structure, dict):
        if set(structure) != set(x):
            return x  # Keras says what is missing
        return type(structure)((name, x[name]) for name in structure)
    tensors = tree.flatten(structure)
    if all(isinstance(t, keras.KerasTensor) and t.name in x for t in tensors):
        return tree.pack_sequence_as(structure, [x[t.name] for t in tensors])
    return x
