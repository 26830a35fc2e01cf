"""Training of the early exits alone, the rest frozen."""

import keras

from keras_dynamic._compat import layers_within, training_otherwise
from keras_dynamic.models.weight_decay import exclude_from_weight_decay

__all__ = ["fit_exits"]


def fit_exits(model, x, y, **kwargs):
    """See `DynamicModel.fit_exits`."""
    if not model.compiled or model.optimizer is None:
        raise RuntimeError("Call `compile` with an optimizer before `fit_exits`.")
    heads = _head_layers(model)
    if not any(layer.trainable_weights for layer in heads):
        raise ValueError(
            "`fit_exits` needs an early exit with trainable weights of its own. "
            f"Received: exits {model.exit_names[:-1]}, whose weights are frozen or "
            "belong to the rest of the network as well."
        )
    config = model.optimizer.get_config()
    with model.distribute_strategy.scope():
        optimizer = type(model.optimizer).from_config(config)
    exclude_from_weight_decay(optimizer, model)
    with training_otherwise(model, optimizer) as begin:
        _freeze_all_but(model, heads)
        begin()
        return model.fit(x, y, **kwargs)


def _head_layers(model):
    """The layers that early exits need and nothing else does."""
    *early, (final, _) = model.road.parts()
    trunk = [final, *(steps for steps, _ in early)]
    shared = {id(step.operation) for steps in trunk for step in steps}
    operations = {id(s.operation): s.operation for _, steps in early for s in steps}
    return [
        operation
        for key, operation in operations.items()
        if key not in shared and isinstance(operation, keras.Layer)
    ]


def _freeze_all_but(model, heads):
    free = {id(layer) for head in heads for layer in layers_within(head)}
    for layer in layers_within(model):
        inside = {id(each) for each in layers_within(layer)}
        if not inside & free:  # else it is a head's, or a model that holds one
            layer.trainable = False
