"""FLOPs of a gated layer, with all samples open; what closed ones save is counted as
they pass."""

from keras_dynamic.layers.skip_gate import SkipGate
from keras_dynamic.models.flops_primitives import size, total

__all__ = ["GATE_FORMULAS"]


def _skip_gate(gate, call):
    (inputs,) = call.inputs
    counts = [call.count(gate.decider, inputs), call.count(gate.layer, inputs)]
    if gate.additive:
        counts.append(size(call.output_shape))
        if gate.bypass is not None:
            counts.append(call.count(gate.bypass, inputs))
    return total(*counts)


# Formula by layer class.
GATE_FORMULAS = {SkipGate: _skip_gate}
