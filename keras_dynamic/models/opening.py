"""Models with what they hold laid open, so that a cut can lie within."""

import dataclasses

import keras
import numpy as np
from keras import tree

from keras_dynamic._compat import functional_of, layers_within, producer_of
from keras_dynamic.layers._rebuildable import Rebuildable, unknown_arguments
from keras_dynamic.models.graph import build_graph, run_steps
from keras_dynamic.models.segments import needed_steps

__all__ = ["inlined", "of_one_name", "unrolled", "with_free_batch"]


def inlined(model, inputs=None):
    """A functional model with the same layers and no nested model.

    Encoders that `unrolled` takes apart are laid open too.

    Args:
        model: functional or built `Sequential` model.
        inputs: symbolic tensors to call the layers on, in the structure of the model's
            own. Defaults to `None`, its own.

    Raises:
        ValueError: if two layers of nested models have the same name.
    """
    graph = build_graph(functional_of(model))
    if inputs is None:  # a `Sequential` that was not called has none itself
        inputs = functional_of(model).input
    made, steps = {}, []
    for step in needed_steps(graph, graph.outputs):
        operation = step.operation
        if id(operation) not in made:
            made[id(operation)] = _stand_in(step)
        steps.append(dataclasses.replace(step, operation=made[id(operation)]))
    _check_names(steps)
    values = dict(zip(graph.inputs, tree.flatten(inputs), strict=True))
    run_steps(steps, values)
    return keras.Model(inputs, values[graph.outputs[0]], name=model.name)


def with_free_batch(model):
    """`model`, or one of the same layers whose batch size is free.

    Keras fixes the size of a `Sequential` without an `Input` to that of the first batch
    that it was called on.

    Raises:
        ValueError: if a layer keeps states from batch to batch.
    """
    functional = functional_of(model)
    given = functional.inputs[0]
    if not isinstance(model, keras.Sequential) or given.shape[0] is None:
        return model
    stateful = [layer for layer in layers_within(model) if _is_stateful(layer)]
    if stateful:
        raise ValueError(
            "`model` must leave the batch size free, since samples leave the batch. "
            f"Received: '{model.name}' for batches of {given.shape[0]}, with "
            f"'{stateful[0].name}', which is stateful."
        )
    inputs = keras.Input(
        given.shape[1:], dtype=given.dtype, name=producer_of(given).name
    )
    if any(functional_of(layer) for layer in model.layers):  # their sizes are fixed too
        return inlined(model, inputs)
    outputs = inputs
    for layer in model.layers:
        outputs = layer(outputs)
    return keras.Model(inputs, outputs, name=model.name)


def unrolled(layer):
    """The layers of an encoder that runs them one after the other, or None.

    Encoders of keras-hub such as ViT's are one layer, which holds `dropout`,
    `encoder_layers` and `layer_norm`. They are taken apart only where the parts give on
    random numbers what the whole gives.
    """
    blocks = getattr(layer, "encoder_layers", None)
    first, last = getattr(layer, "dropout", None), getattr(layer, "layer_norm", None)
    parts = [first, *(blocks or ()), last]
    fits = isinstance(layer, keras.Layer) and blocks and layer.built
    if not (fits and all(isinstance(part, keras.Layer) for part in parts)):
        return None
    width = getattr(layer, "hidden_dim", None)
    if not isinstance(width, int):
        return None
    drawn = np.random.default_rng(0).normal(size=(2, 3, width)).astype("float32")
    whole = layer(drawn, training=False)
    if not hasattr(whole, "shape"):
        return None  # several outputs
    piecewise = drawn
    for part in parts:
        piecewise = part(piecewise, training=False)
    same = np.allclose(np.asarray(whole), np.asarray(piecewise), rtol=1e-3, atol=1e-4)
    return parts if same else None


def _is_stateful(layer):
    return getattr(layer, "stateful", False) is True


def _stand_in(step):
    layer = step.operation
    parts = unrolled(layer) if len(step.inputs_in_order()) == 1 else None
    if parts is None:
        return _rebuildable(layer)
    return _Chain([_rebuildable(part) for part in parts], layer.name)


def _rebuildable(layer):
    if isinstance(layer, keras.Layer) and unknown_arguments(layer):
        return Rebuildable(layer, name=layer.name, dtype=layer.dtype_policy)
    return layer


class _Chain:
    """Calls layers one after the other; no layer, so that they stand in the graph."""

    def __init__(self, layers, name):
        self.layers, self.name = layers, name

    def __call__(self, inputs):
        for layer in self.layers:
            inputs = layer(inputs)
        return inputs


def _check_names(steps):
    pair = of_one_name(steps)
    if pair is None:
        return
    one, other = pair
    raise ValueError(
        "`at` must lie outside of nested models that hold layers of the same name, "
        f"since the exit takes them out of these. Received: a model with two layers "
        f"'{one.name}', {type(one).__name__} and {type(other).__name__}. Give one "
        "another name when the model is made."
    )


def of_one_name(steps):
    """Two layers or operations of the same name, or None: no model may hold both."""
    found = {}
    for step in steps:
        held = step.operation
        for each in held.layers if isinstance(held, _Chain) else [held]:
            other = each if step.glue else found.setdefault(each.name, each)
            if other is not each:
                return other, each
    return None
