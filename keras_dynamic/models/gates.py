"""Gates and mixtures in a graph: what samples do not use, and what layers cost."""

import keras
import tensorflow as tf
from keras import tree

from keras_dynamic._compat import layers_within
from keras_dynamic.layers._gate_records import collecting
from keras_dynamic.layers.layer_choice import LayerChoice
from keras_dynamic.layers.skip_gate import SkipGate
from keras_dynamic.layers.sparse_moe import SparseMoE
from keras_dynamic.models.flops_of_mixtures import expert_flops, mixture_flops
from keras_dynamic.models.flops_primitives import shape_of, size, with_batch_of_one
from keras_dynamic.models.graph import run_steps
from keras_dynamic.models.operation_flops import operation_flops

__all__ = ["holds_gates", "layer_flops", "run_counted", "saved_flops"]


def holds_gates(steps):
    """Whether a `SkipGate` or `SparseMoE` is among the steps, or inside of one."""
    for step in steps:
        if isinstance(step.operation, keras.Layer):
            inner = layers_within(step.operation)
            if any(isinstance(layer, (SkipGate, SparseMoE)) for layer in inner):
                return True
    return False


def run_counted(steps, values, num_rows):
    """Runs steps as `run_steps` does, and adds up what gates and mixtures saved.

    Args:
        steps, values: as in `run_steps`.
        num_rows: scalar, the rows that the steps run on.

    Returns:
        (rows,) float64, FLOPs not executed for each sample.
    """
    counted = []
    for step in steps:
        with collecting() as records:
            run_steps([step], values)
        # A layer of the user's own says itself what it costs, or is not counted.
        if isinstance(step.operation, (SkipGate, LayerChoice, SparseMoE)):
            counted.extend(records)
    saved = tf.zeros([num_rows], tf.float64)
    for record in counted:
        own = _saved_by(record)
        # A gate in a layer that folds other axes into the batch has other rows.
        own = tf.cond(
            tf.equal(tf.size(own), num_rows),
            lambda own=own: own,
            lambda: tf.zeros([num_rows], tf.float64),
        )
        saved += tf.reshape(own, [num_rows])
    return saved


def _saved_by(record):
    """(rows,) FLOPs that the samples of a record did without.

    In float64, exact up to 2^53, where float32 is up to 2^24.
    """

    def exact(vector):
        return tf.cast(vector, tf.float64)

    layer = record.gate
    if isinstance(layer, SkipGate):
        flops = float(saved_flops(layer, record.shape))
        return flops * exact(record.reached - record.opened)
    shape = (1, *record.shape)
    flops = None if None in shape else expert_flops(layer, shape, layer_flops)
    if flops is None or layer.dispatch == "dense":
        return tf.zeros_like(exact(record.reached))
    saved = float(mixture_flops(layer, shape, flops)) * exact(record.reached)
    for units, each in zip(record.computed, flops, strict=True):
        saved -= float(each) * exact(units)
    return saved


def saved_flops(gate, shape):
    """FLOPs that a sample saves at a closed gate; 0 where they cannot be counted.

    Args:
        gate: a `SkipGate`.
        shape: of its input, without the batch axis, all sizes known.
    """
    inputs = keras.KerasTensor((1, *shape), gate.compute_dtype)
    run = layer_flops(gate.layer, inputs)
    if run is None:
        return 0
    if gate.additive:
        (output,) = _outputs(gate.layer, inputs)
        return run + size(shape_of(output))
    if gate.bypass is None:
        return run
    return run - (layer_flops(gate.bypass, inputs) or 0)


def layer_flops(layer, inputs):
    """FLOPs of a layer on one sample, None where they are unknown.

    Args:
        inputs: structure of `keras.KerasTensor`s, batch 1, all sizes known.
    """
    with tf.init_scope():
        return operation_flops(layer, (inputs,), {}, _outputs(layer, inputs))


def _outputs(layer, inputs):
    outputs = tree.flatten(layer.compute_output_spec(inputs))
    return [with_batch_of_one(tensor) for tensor in outputs]
