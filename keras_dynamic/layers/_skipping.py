"""The inference of a gate: its layer runs on the open samples."""

import tensorflow as tf

from keras_dynamic._compat import keeping_losses, under_xla
from keras_dynamic.layers._gate_records import GateRecord, collecting, report
from keras_dynamic.ops.rows import run_on_rows

__all__ = ["per_sample", "run_open_samples"]


def run_open_samples(gate, inputs, mask, opened, probability):
    """What a gate answers, and who hears what it decided.

    Args:
        gate: a `SkipGate`, whose `run` and `pass_by` are called.
        inputs: tensor (batch, ...).
        mask: (batch, tokens) bool, or None.
        opened: (batch,) bool.
        probability: (batch,) float32, of being open.

    Returns:
        Tensor (batch, ...).
    """
    inner = []

    def run(tensors):
        with collecting() as records, keeping_losses(gate.layer):
            output = gate.run(*tensors)
        inner.extend(records)
        return output, [v for record in records for v in record.vectors()]

    def pass_by(tensors):
        if gate.bypass is None:
            return tensors[0]
        with keeping_losses(gate.bypass):
            return gate.pass_by(tensors[0])

    if under_xla():
        # Shapes are fixed there: all samples run, and the open ones are selected.
        (output, _), bypass = run([inputs, mask]), pass_by([inputs])
        open_rows = tf.cast(opened, tf.float32)
        inner = [r.with_vectors([v * open_rows for v in r.vectors()]) for r in inner]
        if gate.additive:
            output += bypass
        output = tf.where(per_sample(opened, output), output, bypass)
    else:
        otherwise = None if gate.bypass is None else pass_by
        output, notes = run_on_rows(
            run, otherwise, [inputs, mask], opened, adds=gate.additive
        )
        notes = iter(notes)
        inner = [r.with_vectors([next(notes) for _ in r.vectors()]) for r in inner]
    opened = tf.cast(opened, tf.float32)
    shape = tuple(inputs.shape[1:])
    own = GateRecord(gate, shape, tf.ones_like(opened), opened, probability)
    report([own, *inner])
    output.set_shape([inputs.shape[0], *output.shape[1:]])
    return output


def per_sample(values, output):
    """(batch,) values with the rank of the output."""
    return tf.reshape(values, [-1] + [1] * (len(output.shape) - 1))
