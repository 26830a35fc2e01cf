"""The small transformers of the benchmarks: one for images, one for characters.

Both take a function that makes the feed-forward layer of a block, so that a mixture can
stand where the dense network stood.
"""

import keras
import numpy as np
from keras import layers


class Positions(layers.Layer):
    """Adds a learned vector to each position; a mask of tokens goes on."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def build(self, input_shape):
        self.vectors = self.add_weight(shape=input_shape[1:], initializer="normal")

    def call(self, inputs):
        return inputs + self.vectors


def dense(width, hidden):
    """The feed-forward layer of an ordinary transformer."""
    return keras.Sequential(
        [layers.Dense(hidden, activation="gelu"), layers.Dense(width)]
    )


def vision_transformer(shape, classes, patch, width, blocks, feed_forward):
    """Logits of an image.

    Args:
        shape: (height, width, channels) of the images.
        classes: int.
        patch: int, the side of a patch, which is a token.
        width: int, features of a token.
        blocks: int.
        feed_forward: function of the number of a block, from 0, that returns a layer.
    """
    inputs = keras.Input(shape)
    x = layers.Reshape((-1, width))(layers.Conv2D(width, patch, patch)(inputs))
    x = _blocks(Positions()(x), blocks, feed_forward, causal=False)
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(classes)(x))


def language_model(context, vocabulary, width, blocks, feed_forward):
    """Logits (batch, context, vocabulary) of the next token; the rest as above."""
    inputs = keras.Input((context,), dtype="int32")
    x = Positions()(layers.Embedding(vocabulary, width)(inputs))
    x = _blocks(x, blocks, feed_forward, causal=True)
    return keras.Model(inputs, layers.Dense(vocabulary)(x))


def random_windows(text, context, count, generator):
    """(inputs, next tokens), both (count, context), from anywhere in a text."""
    starts = generator.integers(0, len(text) - context, count)
    windows = text[starts[:, None] + np.arange(context + 1)]
    return windows[:, :-1], windows[:, 1:]


def all_windows(text, context):
    """(inputs, next tokens) of a whole text, in windows that lie end to end."""
    number = (len(text) - 1) // context
    return tuple(
        text[first : first + number * context].reshape(number, context)
        for first in (0, 1)
    )


def cross_entropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _blocks(x, number, feed_forward, causal, heads=4):
    width = x.shape[-1]
    for index in range(number):
        h = layers.LayerNormalization()(x)
        attention = layers.MultiHeadAttention(heads, width // heads)
        x = layers.Add()([x, attention(h, h, use_causal_mask=causal)])
        h = layers.LayerNormalization()(x)
        x = layers.Add()([x, feed_forward(index)(h)])
    return layers.LayerNormalization()(x)
