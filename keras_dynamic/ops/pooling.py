"""Pooling of feature maps and token sequences to what a small classifier can read."""

from keras import ops

__all__ = ["grid_for_map", "largest", "masked_max", "masked_mean", "pool_to_grid"]

# A pooled map of at most this many numbers makes a light head.
_LARGEST_GRID_FEATURES = 1024


def masked_mean(inputs, mask=None):
    """Mean over the tokens that `mask` keeps.

    Args:
        inputs: (batch, tokens, channels).
        mask: (batch, tokens) bool, or None for all tokens.

    Returns:
        (batch, channels); zeros for a sample without any token.
    """
    if mask is None:
        return ops.mean(inputs, axis=1)
    kept = ops.expand_dims(ops.cast(mask, "bool"), -1)
    # Selected, not multiplied: a NaN in a padded token must not spread.
    chosen = ops.where(kept, inputs, ops.zeros_like(inputs))
    # In float32, as `ops.mean` does it: float16 ends at 65,504, and bfloat16 cannot
    # count past 256.
    total = ops.sum(ops.cast(chosen, "float32"), axis=1)
    count = ops.maximum(ops.sum(ops.cast(kept, "float32"), axis=1), 1)
    return ops.cast(total / count, inputs.dtype)


def masked_max(inputs, mask=None):
    """Maximum over the tokens that `mask` keeps.

    Args:
        inputs: (batch, tokens, channels).
        mask: (batch, tokens) bool, or None for all tokens.

    Returns:
        (batch, channels); zeros for a sample without any token.
    """
    if mask is None:
        return largest(inputs, axis=1)
    kept = ops.expand_dims(ops.cast(mask, "bool"), -1)
    lowest = ops.full_like(inputs, -float("inf"))
    maximum = largest(ops.where(kept, inputs, lowest), axis=1)
    return ops.where(ops.any(kept, axis=1), maximum, ops.zeros_like(maximum))


def largest(inputs, axis):
    """Maximum over `axis` of floats; no error for a batch without rows."""
    return ops.max(inputs, axis=axis, initial=-float("inf"))


def grid_for_map(height, width, channels):
    """The grid that an image map is pooled to when nobody says.

    Early maps are large and have few channels, and what tells the classes apart is
    where things are: 4 x 4 or 2 x 2 cells keep some of that. Late maps are pooled
    globally.

    Args:
        height, width: of the map, in pixels, or None where unknown.
        channels: of the map.

    Returns:
        4, 2 or 1, cells a side: the most with at most 1,024 numbers in all and at
        least 2 x 2 pixels a cell.
    """
    if height is None or width is None or channels is None:
        return 1
    for grid in (4, 2):
        fits = grid * grid * channels <= _LARGEST_GRID_FEATURES
        if fits and min(height, width) >= 2 * grid:
            return grid
    return 1


def pool_to_grid(inputs, grid, kind, data_format):
    """Pools an image map to at most `grid` x `grid` cells.

    Args:
        inputs: (batch, height, width, channels), or channels first.
        grid: cells a side, >= 1; 1 pools globally, and then sizes may be unknown.
        kind: "average" or "max".
        data_format: "channels_last" or "channels_first".

    Returns:
        (batch, channels) for grid 1, else (batch, cells, cells, channels) or
        channels first.
    """
    axes = (1, 2) if data_format == "channels_last" else (2, 3)
    if grid == 1:
        reduce = ops.mean if kind == "average" else largest
        return reduce(inputs, axis=axes)
    # Cells of one size, those at the border smaller where the map does not divide;
    # padding "same" leaves padded pixels out of the average.
    cell = tuple(-(-inputs.shape[axis] // grid) for axis in axes)
    pool = ops.average_pool if kind == "average" else ops.max_pool
    return pool(inputs, cell, strides=cell, padding="same", data_format=data_format)
