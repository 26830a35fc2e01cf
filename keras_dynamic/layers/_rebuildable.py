"""Rebuildable: a layer that can be saved though its own config does not load."""

import inspect

import keras

__all__ = ["Rebuildable", "unknown_arguments"]


def unknown_arguments(layer):
    """Names in the config of a layer that its constructor does not take.

    Some layers write down what they have computed from their arguments. Within a model
    class that is made from its own config nobody notices; in any other model they
    cannot be loaded.
    """
    cls, config = type(layer), layer.get_config()
    own = cls.from_config.__func__ is keras.Layer.from_config.__func__
    if cls.__module__.startswith("keras.") or not own or _can_be_made(cls, config):
        return []
    known = set()
    for base in cls.__mro__:
        parameters = inspect.signature(base.__init__).parameters.values()
        known |= {parameter.name for parameter in parameters}
        open_ended = any(each.kind is each.VAR_KEYWORD for each in parameters)
        if base is keras.Layer or not open_ended:
            break
    return [name for name in config if name not in known]


def _can_be_made(cls, config):
    # Nothing but trying tells: a constructor may take names out of its `**kwargs`.
    try:
        cls.from_config(dict(config))
    except (TypeError, ValueError):
        return False
    return True


@keras.saving.register_keras_serializable(package="keras_dynamic")
class Rebuildable(keras.layers.Layer):
    """Calls the layer that it holds, and saves only what that one can be made from.

    Args:
        layer: the layer.

    Call arguments:
        *args, **kwargs: as the layer takes them.
    """

    def __init__(self, layer, **kwargs):
        super().__init__(**kwargs)
        self.layer = layer
        self.supports_masking = layer.supports_masking

    def build(self, input_shape):
        if not self.layer.built:
            self.layer.build(input_shape)

    def call(self, inputs, **kwargs):
        return self.layer(inputs, **kwargs)

    def compute_mask(self, inputs, previous_mask):
        return self.layer.compute_mask(inputs, previous_mask)

    def compute_output_spec(self, inputs, **kwargs):
        return self.layer.compute_output_spec(inputs, **kwargs)

    def get_config(self):
        layer = keras.saving.serialize_keras_object(self.layer)
        unknown = unknown_arguments(self.layer)
        config = {k: v for k, v in layer["config"].items() if k not in unknown}
        return {**super().get_config(), "layer": {**layer, "config": config}}

    @classmethod
    def from_config(cls, config):
        layer = keras.saving.deserialize_keras_object(config["layer"])
        return cls(**{**config, "layer": layer})
