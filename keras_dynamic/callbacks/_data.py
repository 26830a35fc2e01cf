"""Data that callbacks read after every epoch."""

import numpy as np
import tensorflow as tf

__all__ = ["check_repeatable", "checked_pairs"]


def check_repeatable(name, data):
    """Raises for data that cannot be read again and again, or never ends."""
    if hasattr(data, "__next__"):
        raise TypeError(
            f"`{name}` is read after every epoch, which an iterator cannot be; give "
            f"arrays or a dataset. Received: {type(data)}."
        )
    endless = isinstance(data, tf.data.Dataset) and (
        int(data.cardinality()) == tf.data.INFINITE_CARDINALITY
    )
    if endless:
        raise ValueError(
            f"`{name}` must come to an end; use `take`. Received: an endless dataset."
        )


def checked_pairs(name, data):
    """Labeled data as the arguments (x, y) or (dataset,)."""
    if isinstance(data, (tuple, list)):
        if len(data) != 2:
            raise TypeError(
                f"`{name}` must be (x, y), or a dataset of such pairs. Received: a "
                f"{type(data).__name__} of {len(data)}."
            )
        return tuple(data)
    check_repeatable(name, data)
    no_dataset = (np.ndarray, tf.Tensor, str, bytes, dict, set, int, float)
    readable = hasattr(data, "__iter__") or hasattr(data, "__getitem__")
    if not readable or isinstance(data, no_dataset):
        raise TypeError(
            f"`{name}` must be (x, y), or a dataset of such pairs. Received: "
            f"{type(data)}."
        )
    return (data,)
