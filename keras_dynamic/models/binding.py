"""bind_costs: what the layers inside of gates and choices cost, over the network."""

import keras
from keras import tree

from keras_dynamic._compat import functional_of, layers_within
from keras_dynamic.layers.layer_choice import LayerChoice
from keras_dynamic.layers.skip_gate import SkipGate
from keras_dynamic.models.costs import total_flops
from keras_dynamic.models.gates import layer_flops
from keras_dynamic.models.graph import build_graph

__all__ = ["bind_costs", "fill_in_costs", "wants_costs"]


def bind_costs(model):
    """Tells gates and choices what share of the network's FLOPs their layers have.

    `SkipGate(cost="auto")` and `LayerChoice(costs="auto")` weigh a layer by its share
    of the network that they stand in, which they cannot know. A `DynamicModel` tells
    them by itself; for any other model call this once, before `fit`. 1.0 is the network
    with all gates open and, of a relaxed choice, all layers.

    Args:
        model: a functional or built `Sequential` `keras.Model` of known input sizes.

    Returns:
        Dict from the names of the layers that were told to their list of shares.

    Raises:
        ValueError: if the model is no such model, or FLOPs cannot be counted.

    Example:

    ```python
    inputs = keras.Input((16,))
    gate = kd.SkipGate(keras.layers.Dense(16), cost_weight=0.1, name="gate")
    model = keras.Model(inputs, keras.layers.Dense(2)(gate(inputs)))
    print(kd.bind_costs(model))  # {'gate': [0.43...]}
    ```
    """
    road = getattr(model, "road", None)
    if road is not None:
        return fill_in_costs(model, road.costs().reference)
    if not (isinstance(model, keras.Model) and getattr(model, "inputs", None)):
        raise ValueError(
            "`model` must be a functional or built Sequential `keras.Model`. Received: "
            f"{model!r} of type {type(model)}."
        )
    return fill_in_costs(model, total_flops(build_graph(functional_of(model) or model)))


def wants_costs(model):
    """Whether a layer of the model waits for its costs, and will use them."""
    return any(
        _is_waiting(layer) and layer.cost_weight for layer in layers_within(model)
    )


def fill_in_costs(model, reference):
    """Does what `bind_costs` does for a network of `reference` FLOPs."""
    shares = {}
    for layer in layers_within(model):
        if _is_waiting(layer):
            priced = layer.layers if isinstance(layer, LayerChoice) else [layer.layer]
            shares[layer.name] = [_flops(inner, layer) / reference for inner in priced]
            layer.bind_costs(shares[layer.name])
    return shares


def _is_waiting(layer):
    if isinstance(layer, LayerChoice):
        return layer.costs == "auto"
    return isinstance(layer, SkipGate) and layer.cost == "auto"


def _flops(inner, outer):
    """FLOPs of a layer on what the layer around it was built for."""

    def symbol(shape):
        return keras.KerasTensor((1, *shape[1:]), outer.compute_dtype)

    inputs = tree.map_shape_structure(symbol, outer.get_build_config()["input_shape"])
    flops = None
    if all(None not in tensor.shape for tensor in tree.flatten(inputs)):
        flops = layer_flops(inner, inputs)
    if flops is None:
        raise ValueError(
            f"The FLOPs of '{inner.name}' ({type(inner).__name__}) in '{outer.name}' "
            "cannot be counted, or depend on an open size of the input. Give the costs "
            f"of '{outer.name}' as numbers, or that layer a method "
            "`compute_flops(input_shape)`."
        )
    return flops
