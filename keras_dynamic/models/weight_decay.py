"""exclude_from_weight_decay: gates decide by their weights, not by their size."""

import keras

from keras_dynamic import _compat
from keras_dynamic.layers.blended_activation import BlendedActivation
from keras_dynamic.layers.layer_choice import LayerChoice
from keras_dynamic.layers.skip_gate import SkipGate

__all__ = ["exclude_from_weight_decay"]


def exclude_from_weight_decay(optimizer, model):
    """Keeps what decides in a model out of the optimizer's weight decay.

    Decay drives a gate's bias, which holds its open rate, the logits of a `LayerChoice`
    and the parameters of a `BlendedActivation` to 0, that is to even odds, whatever is
    best. `DynamicModel.compile` does this by itself; for any other model call it before
    `fit`, and again when a file is loaded, since Keras does not save it. What the
    optimizer excludes already stays excluded.

    Args:
        optimizer: a `keras.optimizers.Optimizer`.
        model: a built model with such layers, wherever they are.

    Returns:
        List of the variables that are excluded now.

    Raises:
        TypeError: if `optimizer` or `model` is none.

    Example:

    ```python
    inputs = keras.Input((16,))
    outputs = keras.layers.Dense(2)(kd.SkipGate(keras.layers.Dense(16))(inputs))
    model = keras.Model(inputs, outputs)
    optimizer = keras.optimizers.AdamW(weight_decay=0.01)
    print(len(kd.exclude_from_weight_decay(optimizer, model)))  # 4: the gate's
    model.compile(optimizer, "mse")
    ```
    """
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise TypeError(
            "`optimizer` must be a `keras.optimizers.Optimizer`. Received: "
            f"optimizer={optimizer!r} of type {type(optimizer)}."
        )
    if not isinstance(model, keras.Layer):
        raise TypeError(
            "`model` must be a Keras model. Received: "
            f"model={model!r} of type {type(model)}."
        )
    variables = []
    for layer in _compat.layers_within(model):
        if isinstance(layer, SkipGate):
            variables.extend(layer.weights_without_decay)
        elif isinstance(layer, LayerChoice):
            variables.extend(layer.choice_weights)
        elif isinstance(layer, BlendedActivation) and layer.parameters is not None:
            variables.append(layer.parameters)
    if variables:
        _compat.exclude_from_weight_decay(optimizer, variables)
    return variables
