"""FLOPs of the layers that choose among layers, and on what their count depends."""

import keras
import numpy as np

from keras_dynamic._compat import layers_within
from keras_dynamic.layers.blended_activation import BlendedActivation
from keras_dynamic.layers.layer_choice import LayerChoice
from keras_dynamic.layers.skip_gate import SkipGate
from keras_dynamic.models.flops_primitives import size, total
from keras_dynamic.ops.estimators import HARD_ESTIMATORS

__all__ = ["CHOICE_FORMULAS", "winners"]


def winners(operations):
    """What the FLOPs of `operations` depend on besides shapes: who has won now."""
    chosen = []
    for operation in operations:
        if not isinstance(operation, keras.layers.Layer):
            continue
        for layer in layers_within(operation):
            if not isinstance(layer, (BlendedActivation, LayerChoice)):
                continue
            if layer.estimator in HARD_ESTIMATORS:
                chosen.extend(np.ravel(layer.strongest()).tolist())
    return tuple(chosen)


def _layer_choice(layer, call):
    inputs = next(iter(call.arguments.values()))
    if layer.estimator in HARD_ESTIMATORS:
        return call.count(layer.winner(), inputs)
    counts = [call.count(each, inputs) for each in layer.layers]
    # Each answer times its weight, and their sum. The weights themselves are computed
    # once for a whole batch.
    mixing = (2 * len(counts) - 1) * size(call.output_shape)
    return total(*counts, mixing)


def _skip_gate(gate, call):
    inputs = next(iter(call.arguments.values()))
    counts = [call.count(gate.decider, inputs), call.count(gate.layer, inputs)]
    if gate.additive:
        counts.append(size(call.output_shape))
        if gate.bypass is not None:
            counts.append(call.count(gate.bypass, inputs))
    return total(*counts)


# Formula by layer class.
CHOICE_FORMULAS = {LayerChoice: _layer_choice, SkipGate: _skip_gate}
