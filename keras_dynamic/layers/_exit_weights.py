"""ExitWeights: marks the weights of a selector in a model's graph."""

import keras
import tensorflow as tf

from keras_dynamic.layers._selector import carrying_soft, soft_weights

__all__ = ["ExitWeights"]


@keras.saving.register_keras_serializable(package="keras_dynamic")
class ExitWeights(keras.layers.Layer):
    """Hands the weights of a selector on.

    A `DynamicModel` puts it behind weights that do not come straight from a selector of
    this package. So the model is known as one with a selector wherever its graph is all
    that is left of it, as in a clone.

    Call arguments:
        weights: (batch, exits).

    Output shape:
        That of the input.
    """

    def __init__(self, **kwargs):
        super().__init__(**{"autocast": False, "dtype": "float32", **kwargs})

    def call(self, weights):
        return carrying_soft(tf.identity(weights), soft_weights(weights))

    def compute_flops(self, input_shape):
        return 0

    def compute_output_shape(self, input_shape):
        return input_shape

    def compute_output_spec(self, weights):
        return keras.KerasTensor(weights.shape, weights.dtype)
