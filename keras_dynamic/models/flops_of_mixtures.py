"""FLOPs of `SparseMoE`: of the router, of each expert for one unit, of the whole.

A unit is what goes to experts: a token, or with `route="input"` a sample.
"""

import keras

from keras_dynamic.layers._sub_layers import output_shape
from keras_dynamic.layers.routers import ExpertChoiceRouter
from keras_dynamic.layers.sparse_moe import SparseMoE
from keras_dynamic.models.flops_primitives import size, total

__all__ = ["MIXTURE_FORMULAS", "expert_flops", "mixture_flops"]


def expert_flops(layer, shape, count):
    """FLOPs of each expert for one unit, its place in the weighted sum included.

    Args:
        layer: a `SparseMoE`.
        shape: of its input, batch 1, all sizes known.
        count: function from (layer, `keras.KerasTensor`) to FLOPs, or None.

    Returns:
        List of E numbers; None where one of them is unknown.
    """
    unit = (1, shape[-1]) if layer.route == "token" else (1, *shape[1:])
    flops = []
    for expert in layer.experts:
        run = count(expert, keras.KerasTensor(unit, layer.compute_dtype))
        if run is None:
            return None
        # Multiplied by its weight, and added.
        flops.append(run + 2 * size(output_shape(expert, unit)))
    return flops


def mixture_flops(layer, shape, flops):
    """FLOPs of the experts for one sample of which every token counts.

    With unequal experts the dearest ones count, of which that many can be chosen.

    Args:
        layer, shape: as in `expert_flops`.
        flops: list that `expert_flops` gave.
    """
    units = _units(layer, shape)
    router = layer.router
    if layer.dispatch == "dense":
        return units * sum(flops)
    if isinstance(router, ExpertChoiceRouter):
        return router.tokens_for_each(units) * sum(flops)
    return units * sum(sorted(flops)[-router.experts_per_token :])


def _sparse_moe(layer, call):
    shape = call.input_shape
    if None in shape:
        return None
    units = _units(layer, shape)
    deciding = layer.router.compute_flops((1, units, shape[-1]))
    if layer.route == "input":
        deciding += size(shape)  # the mean
    flops = expert_flops(layer, shape, call.count)
    return total(deciding, flops and mixture_flops(layer, shape, flops))


def _units(layer, shape):
    return size(shape[1:-1]) if layer.route == "token" else 1


# Formula by layer class.
MIXTURE_FORMULAS = {SparseMoE: _sparse_moe}
