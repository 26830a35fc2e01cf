"""What the plots are given, checked: data, labels with their names, and logs."""

from collections.abc import Mapping

import keras
import numpy as np
from keras import tree

from keras_dynamic.models.feeding import batches_over
from keras_dynamic.models.rows import count_rows

__all__ = ["batches_of", "check_names", "checked_labels", "checked_logs", "names_of"]


def batches_of(name, x, batch_size):
    """Yields the inputs of each batch that has samples.

    Args:
        name: the argument that `x` was given as.
        x: data as in `predict`; what a dataset yields besides inputs is left out.
        batch_size: int or `None` (32).

    Raises:
        ValueError: at the end, if there were no samples.
    """
    # Keras' adapters take no empty arrays.
    shapes = [getattr(leaf, "shape", (1,)) for leaf in tree.flatten(x)]
    has_rows = any(tuple(shape[:1]) != (0,) for shape in shapes)
    empty = True
    iterator = batches_over(x, batch_size) if has_rows else []
    for _, _, batches in iterator:
        for batch in batches:
            inputs = keras.utils.unpack_x_y_sample_weight(batch)[0]
            if count_rows(inputs):
                empty = False
                yield inputs
    if empty:
        raise ValueError(f"`{name}` must hold at least one sample. Received: none.")


def checked_labels(y, samples, class_names=None):
    """(samples,) integers, each of which has its name if names are given."""
    y = np.asarray(y)
    if y.shape != (samples,) or y.dtype.kind not in "iu":
        raise ValueError(
            f"`y` must have an integer for each of the {samples} samples. Received: y "
            f"of shape {y.shape}, {y.dtype}."
        )
    check_names(class_names)
    if class_names is not None and not 0 <= y.min() <= y.max() < len(class_names):
        raise ValueError(
            f"`class_names` must name the labels, from 0 to {y.max()}. Received: "
            f"{len(class_names)} names for labels from {y.min()} to {y.max()}."
        )
    return y


def check_names(class_names):
    """Raises a TypeError for what is no list of names; None is one not given."""
    is_list = hasattr(class_names, "__len__") and hasattr(class_names, "__getitem__")
    if class_names is not None and (isinstance(class_names, str) or not is_list):
        raise TypeError(
            "`class_names` must be a list of names, label 0 first, or None. Received: "
            f"class_names={class_names!r} of type {type(class_names)}."
        )


def names_of(labels, class_names):
    """List of the names of labels, by default the labels themselves."""
    if class_names is None:
        return list(labels)
    return [class_names[label] for label in labels]


def checked_logs(name, history):
    """The dict of logs in what `fit` returned, or given as such."""
    logs = getattr(history, "history", history)
    if not isinstance(logs, Mapping):
        raise TypeError(
            f"`{name}` must be what `fit` returned, or a dict of logs. Received: "
            f"{name}={history!r} of type {type(history)}."
        )
    return logs
