"""Training of the early exits alone, the rest frozen; before it, of the rest alone."""

import numbers

import keras
import tensorflow as tf

from keras_dynamic._compat import layers_within, training_otherwise
from keras_dynamic.layers._checks import positive_integer
from keras_dynamic.models.feeding import check_samples
from keras_dynamic.models.weight_decay import exclude_from_weight_decay

__all__ = ["fit_exits"]


def fit_exits(model, x, y, trunk_epochs=0, **kwargs):
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
    check_samples(x=x, y=y)
    if not _checked_epochs(model, trunk_epochs, kwargs):
        return _fit_heads(model, heads, x, y, kwargs)
    epochs = {"initial_epoch": 0, "epochs": trunk_epochs}
    first = _fit_trunk(model, heads, x, y, {**kwargs, **epochs})
    last = trunk_epochs + kwargs["epochs"]
    epochs = {"initial_epoch": trunk_epochs, "epochs": last}
    second = _fit_heads(model, heads, x, y, {**kwargs, **epochs})
    return _joined(first, second)


def _checked_epochs(model, trunk_epochs, arguments):
    given = {"trunk_epochs": trunk_epochs, "epochs": arguments["epochs"]}
    for name, epochs in given.items():
        if not isinstance(epochs, numbers.Integral) or isinstance(epochs, bool):
            raise TypeError(
                f"`{name}` must be an integer. Received: {name}={epochs!r} of type "
                f"{type(epochs)}."
            )
        if epochs < 0:
            raise ValueError(f"`{name}` must be >= 0. Received: {name}={epochs}.")
    if arguments["batch_size"] is not None:
        positive_integer("batch_size", arguments["batch_size"])
    if trunk_epochs and "initial_epoch" in arguments:
        raise ValueError(
            "`initial_epoch` cannot be given beside `trunk_epochs`, with which epochs "
            f"count from 0. Received: initial_epoch={arguments['initial_epoch']}."
        )
    if trunk_epochs and _backs_up(arguments.get("callbacks")):
        raise ValueError(
            "`callbacks` cannot hold `BackupAndRestore` beside `trunk_epochs`, whose "
            "stages have an optimizer each. Make the stages one by one, each with a "
            "backup of its own: `kd.strip_exits(model).fit`, then `fit_exits` without "
            f"`trunk_epochs`. Received: trunk_epochs={trunk_epochs}."
        )
    if trunk_epochs and model.road.plan is not None:
        raise ValueError(
            "`trunk_epochs` needs a model without a selector, whose loss is that of "
            "all exits. Train `kd.strip_exits(model)` first, which shares its weights. "
            f"Received: trunk_epochs={trunk_epochs}."
        )
    return trunk_epochs


def _backs_up(callbacks):
    callbacks = getattr(callbacks, "callbacks", callbacks)  # of a `CallbackList`
    backup = keras.callbacks.BackupAndRestore
    return any(isinstance(each, backup) for each in keras.tree.flatten(callbacks))


def _fit_trunk(model, heads, x, y, arguments):
    """Trains what the last exit needs by its own loss alone."""
    switch = model.road.early_losses
    with training_otherwise(model, _fresh_optimizer(model)) as begin:
        for layer in heads:
            layer.trainable = False
        begin()
        switch.assign(0.0)
        try:
            return model.fit(x, y, **arguments)
        finally:
            switch.assign(1.0)


def _fit_heads(model, heads, x, y, arguments):
    with training_otherwise(model, _fresh_optimizer(model)) as begin:
        frozen = _freeze_all_but(model, heads)
        begin()
        weights = list({id(w): w for layer in frozen for w in layer.weights}.values())
        model.make_train_function()  # `fit` takes the one that is there
        model.train_function = _keeping(weights, model.train_function)
        return model.fit(x, y, **arguments)


def _fresh_optimizer(model):
    config = model.optimizer.get_config()
    with model.distribute_strategy.scope():
        optimizer = type(model.optimizer).from_config(config)
    exclude_from_weight_decay(optimizer, model)
    return optimizer


def _joined(first, second):
    """The second `History`, with the epochs of the first before its own."""
    names = {**first.history, **second.history}
    second.history = {
        name: first.history.get(name, []) + second.history.get(name, [])
        for name in names
    }
    second.epoch = first.epoch + second.epoch
    return second


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
    """Freezes what is no part of these heads, and gives the list of those layers."""
    free = {id(layer) for head in heads for layer in layers_within(head)}
    frozen = []
    for layer in layers_within(model):
        inside = {id(each) for each in layers_within(layer)}
        if not inside & free:  # else it is a head's, or a model that holds one
            layer.trainable = False
            frozen.append(layer)
    return frozen


def _keeping(weights, train_function):
    """The function with the weights put back after each call.

    A frozen layer may assign to its weights all the same, whenever `training`. What is
    read shares its memory with the variable until that is assigned to.
    """

    @tf.function
    def read():
        return [tf.identity(weight.value) for weight in weights]

    @tf.function
    def put_back(values):
        for weight, value in zip(weights, values, strict=True):
            weight.assign(value)

    def keeping(iterator):
        values = read()
        try:
            return train_function(iterator)
        finally:
            put_back(values)

    return keeping
