"""FLOPs of the layers that choose among layers, and on what their count depends."""

import keras
import numpy as np

from keras_dynamic._compat import functional_of
from keras_dynamic.layers.layer_choice import LayerChoice
from keras_dynamic.layers.skip_gate import SkipGate
from keras_dynamic.models.flops_primitives import size, total
from keras_dynamic.ops.estimators import HARD_ESTIMATORS

__all__ = ["CHOICE_FORMULAS", "choices_within", "winners"]


def choices_within(operation):
    """Yields the `LayerChoice`s in an operation, itself included.

    Those are found whose count adds up to that of `operation`: in choices, in models
    that are graphs, and in wrappers of one layer.
    """
    if isinstance(operation, LayerChoice):
        yield operation
        inner = operation.layers
    elif functional_of(operation) is not None:
        inner = operation.layers
    else:
        inner = [getattr(operation, "layer", None)]
    for each in inner:
        if isinstance(each, keras.layers.Layer):
            yield from choices_within(each)


def winners(operations):
    """What the FLOPs of `operations` depend on besides shapes: who has won now."""
    return tuple(
        int(np.argmax(keras.ops.convert_to_numpy(choice.logits)))
        for operation in operations
        for choice in choices_within(operation)
        if choice.estimator in HARD_ESTIMATORS
    )


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
