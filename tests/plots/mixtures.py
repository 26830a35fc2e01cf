"""A small network of patches with a mixture, for the plots of experts."""

import keras
import numpy as np

import keras_dynamic as kd


def vit(router="top_k", **arguments):
    """Patches of 4 x 4, 3 experts; the router's weight is random."""
    inputs = keras.Input((8, 12, 1))
    patches = keras.layers.Conv2D(5, 4, strides=4)(inputs)
    tokens = keras.layers.Reshape((6, 5))(patches)
    moe = kd.SparseMoE(3, 8, router=router, name="moe", **arguments)
    outputs = keras.layers.GlobalAveragePooling1D()(moe(tokens))
    model = keras.Model(inputs, outputs)
    return model, moe, keras.Model(inputs, tokens)


def images(count):
    shape = (count, 8, 12, 1)
    return np.random.default_rng(0).normal(size=shape).astype("float32")
