"""Small models of every kind that is exported, with data to feed them."""

import keras
import numpy as np
import tensorflow as tf

import keras_dynamic as kd
from tests.models.small_models import dense_model, middle_rule
from tests.models.small_selected import selected_model

layers = keras.layers
ROWS = 128


class Trap(layers.Layer):
    """Hands its input on; whoever runs it takes an entry that a table lacks."""

    def call(self, inputs):
        places = tf.cast(tf.abs(inputs[:, 0]), tf.int32) + 1_000_000
        return inputs + tf.gather(tf.constant([1.0, 2.0]), places)[:, None]

    def compute_output_shape(self, input_shape):
        return input_shape


class Bessel(layers.Layer):
    """An operation that neither LiteRT nor ONNX has."""

    def call(self, inputs):
        return tf.math.bessel_i0(inputs)

    def compute_flops(self, input_shape):
        return 0

    def compute_output_shape(self, input_shape):
        return input_shape


def normal(*shape):
    return np.random.default_rng(5).normal(size=shape).astype("float32")


def two_exits(inputs, hidden, extra=None, **kwargs):
    """An exit on `hidden`, and one after a `Dense` and an extra layer."""
    first = kd.EarlyExit(4, name="exit_1")(hidden)
    if len(hidden.shape) > 2:
        hidden = layers.Flatten()(hidden)
    deep = layers.Dense(8, "tanh", name="deep")(hidden)
    if extra is not None:
        deep = extra(deep)
    final = layers.Dense(4, "softmax", name="final")(deep)
    return kd.DynamicModel(inputs, [first, final], **kwargs)


def images():
    """Convolutions with batch normalization, which no empty batch can go through."""
    inputs = keras.Input((6, 6, 2), name="image")
    hidden = layers.Conv2D(4, 3, activation="relu")(inputs)
    hidden = layers.BatchNormalization()(hidden)
    first = kd.EarlyExit(4, name="exit_1")(hidden)
    deep = layers.BatchNormalization()(layers.Conv2D(4, 3, padding="same")(hidden))
    deep = layers.add([hidden, deep])
    final = layers.Dense(4, "softmax", name="final")(layers.Flatten()(deep))
    return kd.DynamicModel(inputs, [first, final]), normal(ROWS, 6, 6, 2)


def patient():
    return dense_model(exit_rule=kd.rules.Patience(2), compiled=False), normal(ROWS, 6)


def calibrated():
    """Logits, to be calibrated for `Entropy`."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return dense_model(activation=None, loss=loss), normal(ROWS, 6)


def selected():
    return selected_model(compiled=False), normal(ROWS, 6)


def layerwise():
    return selected_model(layerwise=True, compiled=False), normal(ROWS, 6)


def gated():
    """A gate that lets half through, and a mixture."""
    inputs = keras.Input((6,), name="features")
    gate = kd.SkipGate(layers.Dense(6, "tanh"), initial_open_rate=0.5)
    hidden = kd.SparseMoE(3, 8, route="input")(gate(inputs))
    return two_exits(inputs, hidden), normal(ROWS, 6)


def gate():
    inputs = keras.Input((6,), name="features")
    hidden = kd.SkipGate(layers.Dense(6, "tanh"), gate=layers.Dense(1))(inputs)
    return two_exits(inputs, hidden), normal(ROWS, 6)


def two_inputs():
    """A dict of images in bytes and numbers, preprocessed inside."""
    image = keras.Input((4, 4, 1), dtype="uint8", name="b")
    number = keras.Input((3,), name="a")
    hidden = layers.Conv2D(3, 2)(layers.Rescaling(1 / 255)(image))
    scaled = layers.Normalization(mean=0.5, variance=2.0)(number)
    hidden = layers.concatenate([layers.Flatten()(hidden), scaled])
    model = two_exits({"b": image, "a": number}, hidden)
    pixels = np.random.default_rng(0).integers(0, 256, (ROWS, 4, 4, 1), "uint8")
    return model, {"b": pixels, "a": normal(ROWS, 3)}


def texts():
    vectorize = layers.TextVectorization(output_sequence_length=4)
    vectorize.adapt(["the cat sat", "a dog ran home", "no"])
    inputs = keras.Input((1,), dtype="string", name="text")
    hidden = layers.Embedding(vectorize.vocabulary_size(), 6)(vectorize(inputs))
    words = np.array(["the dog", "a cat ran", "sat", "home no the", "what"])
    x = tf.constant(words[np.arange(ROWS) % 5][:, None])  # Keras takes no other strings
    return two_exits(inputs, hidden), x


def tokens():
    """Masked attention over token numbers."""
    inputs = keras.Input((5,), dtype="int32", name="ids")
    hidden = layers.Embedding(9, 6, mask_zero=True)(inputs)
    hidden = layers.MultiHeadAttention(2, 3)(hidden, hidden)
    first = kd.EarlyExit(4, name="exit_1")(hidden)
    deep = layers.LayerNormalization()(layers.add([hidden, layers.Dense(6)(hidden)]))
    final = kd.EarlyExit(4, name="final")(deep)
    x = np.random.default_rng(1).integers(0, 9, (ROWS, 5)).astype("int32")
    x[:, 0] = 1  # a sample has at least one token
    return kd.DynamicModel(inputs, [first, final]), x


def half_precision():
    inputs = keras.Input((6,), name="features")
    hidden = layers.Dense(8, "relu", dtype="mixed_bfloat16")(inputs)
    return two_exits(inputs, hidden), normal(ROWS, 6)


KINDS = {
    function.__name__: function
    for function in (
        images,
        patient,
        calibrated,
        selected,
        layerwise,
        gated,
        gate,
        two_inputs,
        texts,
        tokens,
        half_precision,
    )
}


def make(kind):
    """(model, x): weights large enough that samples differ, about half leave first."""
    keras.utils.set_random_seed(3)
    model, x = KINDS[kind]()
    for weight in model.trainable_weights:
        weight.assign(2.0 * weight)
    if kind == "calibrated":
        # Labels as the final exit has them, but for one in three.
        y = np.argmax(model.predict(x, verbose=0)[-1], axis=1)
        y[::3] = np.arange(len(y[::3])) % 4
        model.calibrate(x, y, rule="entropy", budget=0.7)
    elif isinstance(model.exit_rule, kd.rules.MaxProbability):
        model.exit_rule = middle_rule(model, x)
    rates = model.predict_dynamic(x, verbose=0, batch_size=ROWS).exit_rates
    assert np.sum(rates > 0.05) > 1, f"{kind}: nearly all leave at one exit: {rates}"
    return model, x


def rows_of(x, rows):
    """The first rows of arrays."""
    return keras.tree.map_structure(lambda array: array[:rows], x)
