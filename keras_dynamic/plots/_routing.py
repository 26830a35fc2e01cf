"""What a mixture within a model decides for some data."""

import keras
from keras import tree

from keras_dynamic._compat import functional_nodes, functional_of
from keras_dynamic.layers.sparse_moe import SparseMoE

__all__ = ["routings_of"]


def routings_of(model, layer, batches):
    """The mixture, and an iterator over what it decides for each batch.

    Args:
        model: functional or Sequential model that holds the layer.
        layer: a `SparseMoE` called once in the model, or its name.
        batches: iterable of inputs of the model.

    Returns:
        (the `SparseMoE`, iterator of what its `routing` gives).

    Raises:
        ValueError: if there is no such layer.
    """
    if (functional := functional_of(model)) is None:
        raise ValueError(
            "`model` must be a functional or built Sequential `keras.Model`. Received: "
            f"{model!r} of type {type(model)}."
        )
    nodes = list(functional_nodes(functional))
    nodes = [node for node in nodes if isinstance(node[0], SparseMoE)]
    calls = [node for node in nodes if layer is node[0] or layer == node[0].name]
    if len(calls) != 1:
        raise ValueError(
            "`layer` must be a `SparseMoE` that the model itself calls once, or its "
            f"name: {[node[0].name for node in nodes]}. Received: layer={layer!r}."
        )
    ((found, args, kwargs, _),) = calls
    inputs, mask = args[0] if args else kwargs["inputs"], kwargs.get("mask")
    features = keras.Model(model.inputs, [inputs] if mask is None else [inputs, mask])
    return found, (
        found.routing(*tree.flatten(features(batch, training=False)))
        for batch in batches
    )
