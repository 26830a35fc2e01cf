"""Gates with known logits, and models of them, that several test files use."""

import keras
import numpy as np
from keras import layers


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


@keras.saving.register_keras_serializable(package="tests")
class First(layers.Layer):
    """A gate whose logit is the first number of a sample."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, inputs):
        return keras.ops.reshape(inputs, (-1, int(np.prod(inputs.shape[1:]))))[:, :1]

    def compute_output_shape(self, input_shape):
        return (input_shape[0], 1)


@keras.saving.register_keras_serializable(package="tests")
class Attention(layers.Layer):
    """Half of a transformer block, which passes masks on."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.attend = layers.MultiHeadAttention(2, 2)

    def build(self, input_shape):
        self.attend.build(input_shape, input_shape)

    def call(self, inputs):
        return inputs + self.attend(inputs, inputs)

    def compute_output_shape(self, input_shape):
        return input_shape


def odds(logit):
    """A gate that gives every sample this logit, a weight."""
    bias = keras.initializers.Constant(logit)
    return layers.Dense(1, kernel_initializer="zeros", bias_initializer=bias)


def model_of(gate, *shape):
    inputs = keras.Input(shape)
    return keras.Model(inputs, gate(inputs))


def fitted(gate, x, epochs=1, batch_size=None, callbacks=None, **arguments):
    """A model of the gate, fitted at a rate of 0, and the history of it."""
    model = model_of(gate, *x.shape[1:])
    model.compile(keras.optimizers.SGD(0.0), "mse", **arguments)
    y = np.zeros((len(x), *model.output_shape[1:]), "float32")
    size = batch_size or len(x)
    history = model.fit(x, y, size, epochs, verbose=0, callbacks=callbacks)
    return model, history.history
