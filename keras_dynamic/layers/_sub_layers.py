"""Running layers inside of a layer: their shapes, masks, losses and states."""

import keras
import tensorflow as tf
from keras import tree

from keras_dynamic._compat import get_mask, keeping_losses, set_mask

__all__ = [
    "build_layer",
    "joint_mask",
    "output_shape",
    "run_layer",
    "run_without_losses",
]


def build_layer(layer, input_shape):
    """Builds a layer or model of any kind, unless it is built."""
    if layer.built:
        return
    if type(layer).build is keras.layers.Layer.build:
        layer(_specs(input_shape))  # what it holds is built by what it calls
    else:
        layer.build(input_shape)


def output_shape(layer, input_shape):
    """Shape, a tuple, of what a layer gives; None where it is not one tensor."""
    outputs = layer.compute_output_spec(_specs(input_shape))
    if not isinstance(outputs, keras.KerasTensor):
        return None
    return tuple(outputs.shape)


def run_layer(layer, inputs, mask):
    """Calls `layer`, which sees the `mask` of the inputs whether it takes one or not.

    It also gets the value of `training` that the layer around it was called with.
    """
    if mask is not None:
        # A copy, since attention takes the mask off the tensor that it reads; the
        # caller's keeps its own.
        inputs = tree.map_structure(
            lambda tensor, own: set_mask(tf.identity(tensor), own), inputs, mask
        )
    return layer(inputs)


def run_without_losses(layer, inputs, mask):
    """`run_layer` in a branch: the losses that the layer adds are dropped."""
    with keeping_losses(layer):
        return run_layer(layer, inputs, mask)


def joint_mask(answers):
    """The positions that all answers keep; None if one of them has no mask."""
    joint, *others = masks = [get_mask(answer) for answer in answers]
    if any(mask is None for mask in masks):
        return None
    for mask in others:
        if mask is not joint:
            joint = tf.logical_and(joint, mask)
    return joint


def _specs(input_shape):
    return tree.map_shape_structure(keras.KerasTensor, input_shape)
