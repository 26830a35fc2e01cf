"""The way past a layer that changes shapes: a strided convolution of one point."""

import math

import keras

__all__ = ["check_shortcut", "known_shapes", "shortcut_of"]

# Stands for a size that the input leaves open.
_PROBE_SIZE = 64


def shortcut_of(shortcut, layer, input_shape, output_shape, data_format, dtype):
    """What goes past a layer: None for the input itself, or a built projection.

    Args:
        shortcut: "auto", or None where no projection is wanted.
        layer: built.
        input_shape, output_shape: with a batch axis.
        data_format: "channels_last" or "channels_first".
        dtype: policy of the projection.

    Raises:
        ValueError: where one would be needed and is not wanted, or cannot be made.
    """
    given, wanted = known_shapes(layer, input_shape, output_shape)
    if given == wanted:
        return None
    if shortcut is None:
        raise ValueError(
            f"`shortcut=None` needs a `layer` that keeps shapes. Received: layer "
            f"'{layer.name}', which makes {wanted} of {given}. Use shortcut='auto', or "
            "a layer."
        )
    projection = _projection(
        layer.name, given, wanted, data_format, dtype=dtype, name="shortcut"
    )
    projection.build(input_shape)
    return projection


def check_shortcut(shortcut, bypassed_shape, output_shape):
    """Raises a ValueError where a user's shortcut ends in another shape."""
    if tuple(bypassed_shape) != tuple(output_shape):
        raise ValueError(
            f"`shortcut` must give what `layer` gives, of shape {tuple(output_shape)}. "
            f"Received: shortcut '{shortcut.name}', which gives "
            f"{tuple(bypassed_shape)}."
        )


def known_shapes(layer, input_shape, output_shape):
    """Shapes of a sample before and after `layer`, without open sizes.

    Sizes that the input leaves open are tried with a number, since a layer with a
    stride would leave both sides open and look as if it changed nothing.

    Args:
        layer: built.
        input_shape, output_shape: with a batch axis.

    Returns:
        Two tuples.
    """
    if None in input_shape[1:]:
        input_shape = (None, *(size or _PROBE_SIZE for size in input_shape[1:]))
        output_shape = layer.compute_output_shape(input_shape)
    return tuple(input_shape[1:]), tuple(output_shape[1:])


def _projection(passed, given, wanted, data_format, **arguments):
    """A linear layer between two different shapes of a sample.

    Vectors and sequences of equal length get a dense layer; images, volumes, and
    sequences that become shorter get a convolution of size 1 with a stride.

    Args:
        passed: name of the layer that is passed by, for the error.
        given, wanted: tuples without a batch axis.
        data_format: "channels_last" or "channels_first".
        **arguments: for the layer that is made.

    Raises:
        ValueError: if no such layer leads from one to the other.
    """
    rank = len(given)
    last = data_format == "channels_last" or rank < 3
    channels, sizes = (-1, slice(0, -1)) if last else (0, slice(1, None))
    fits = rank == len(wanted) and rank <= 4
    if fits and given[sizes] == wanted[sizes] and last:
        return keras.layers.Dense(wanted[-1], use_bias=False, **arguments)
    strides = []
    if fits and rank > 1:
        pairs = list(zip(given[sizes], wanted[sizes], strict=True))
        strides = [math.ceil(size / target) for size, target in pairs]
        fits = all(
            target == math.ceil(size / stride)
            for (size, target), stride in zip(pairs, strides, strict=True)
        )
    if not fits or rank == 1:
        raise ValueError(
            f"`shortcut='auto'` finds no projection from {given} to {wanted}, the "
            f"shapes of a sample before and after layer '{passed}'. Give a layer "
            "as `shortcut` that does it."
        )
    convolution = [keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D]
    return convolution[rank - 2](
        wanted[channels],
        1,
        strides=strides,
        padding="same",
        data_format="channels_last" if last else data_format,
        use_bias=False,
        **arguments,
    )
