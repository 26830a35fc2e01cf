"""A residual network on CIFAR-10 whose blocks run for the images that need them.

A stem and three stages of two residual blocks, 32, 64 and 128 channels wide. Each
block's correction stands in a `SkipGate` with a target rate.
"""

import keras

import keras_dynamic as kd

layers = keras.layers

TRAINING, HELD_OUT = 20000, 5000
BATCH, EPOCHS, RATE = 128, 6, 3e-3
WIDTHS = (32, 64, 128)
TARGETS = (0.4, 0.6, 0.8)


def correction(shape, filters, strides, name):
    """What a residual block adds to its input, as a model."""
    inputs = keras.Input(shape)
    x = layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
    return keras.Model(inputs, layers.BatchNormalization()(x), name=name)


def network(widths=WIDTHS, **gates):
    """A residual network; with gates where there are arguments for them."""
    inputs = keras.Input((32, 32, 3))
    x = layers.Conv2D(widths[0], 3, 2, padding="same", use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    for stage, filters in enumerate(widths, start=1):
        for block in (1, 2):
            name = f"block_{stage}{block}"
            strides = 2 if stage > 1 and block == 1 else 1
            added = correction(x.shape[1:], filters, strides, f"{name}_correction")
            if gates:
                x = kd.SkipGate(added, additive=True, name=name, **gates)(x)
            else:
                kept = x
                if strides > 1:
                    kept = layers.Conv2D(filters, 1, strides, use_bias=False)(x)
                x = layers.add([kept, added(x)])
            x = layers.ReLU()(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10, "softmax")(x))
