"""Rows of a batch: taken where some stay, written to where they came from.

The only file that moves rows.
"""

import tensorflow as tf
from keras import tree

from keras_dynamic._compat import keep_mask, kept_mask, set_mask

__all__ = ["count_rows", "rows_with_nan", "take_rows", "write_rows"]


def count_rows(x):
    """Number of rows of a batch."""
    return next(t for t in tree.flatten(x) if t is not None).shape[0]


def rows_with_nan(inputs, num_rows):
    """(batch,) bool: the samples with a NaN in what is fed; they never leave early.

    A NaN may vanish on the way (the maximum of ReLU and of pooling drops it), and the
    answer of an exit then looks sound.

    Args:
        inputs: flat list of tensors (batch, ...); None for an absent one.
        num_rows: scalar int tensor.
    """
    broken = tf.zeros([num_rows], tf.bool)
    for tensor in inputs:
        if tensor is not None and tensor.dtype.is_floating:
            axes = list(range(1, len(tensor.shape)))
            broken |= tf.reduce_any(tf.math.is_nan(tensor), axis=axes)
    return broken


def take_rows(values, rows, state, taken, all_taken):
    """The rows `taken` of everything that goes on.

    Args:
        values: dict from `Value` to tensor; those without a batch axis stay whole.
        rows: (rows,) int, where they stood in the batch.
        state: structure of tensors (rows, ...).
        taken: (taken,) int, which rows to take.
        all_taken: scalar bool; nothing is copied then.

    Returns:
        (values, rows, state) of the taken rows; masks go with their tensors.
    """
    gathered = {value: t for value, t in values.items() if _moves(value, t)}
    masks = {value: kept_mask(tensor) for value, tensor in gathered.items()}
    masks = {value: mask for value, mask in masks.items() if mask is not None}
    moving = [list(gathered.values()), list(masks.values()), rows, state]
    moved = tf.cond(
        all_taken,
        lambda: tf.nest.map_structure(tf.identity, moving),
        lambda: tf.nest.map_structure(lambda t: tf.gather(t, taken), moving),
    )
    tensors, kept_masks, rows, state = moved
    kept = dict(values)
    kept.update(zip(gathered, tensors, strict=True))
    for value, mask in zip(masks, kept_masks, strict=True):
        keep_mask(set_mask(kept[value], mask))
    return kept, rows, state


def write_rows(answers, rows, found):
    """Writes what was found for some rows to their places in the batch's answers.

    Args:
        answers: dict of tensors (batch, ...).
        rows: (rows,) int, their places.
        found: dict of tensors (rows, ...), a part of the names in `answers`.

    Returns:
        A dict like `answers`.
    """
    written = {
        name: tf.tensor_scatter_nd_update(
            answers[name], rows[:, None], tf.cast(tensor, answers[name].dtype)
        )
        for name, tensor in found.items()
    }
    return {**answers, **written}


def _moves(value, tensor):
    return value.batched and tensor is not None
