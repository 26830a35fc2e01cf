"""What a closed gate saves in time, over the same blocks without gates.

(a) A residual block (two convolutions of 64 channels with BatchNormalization and a sum)
    on 16x16 maps, batch 128, gated so that a share r of the samples is open. Beside it
    the block alone on the open rows, and what published implementations do: compute
    the block for all and multiply by a mask.
(b) Batch 1: a chain of eight such blocks, all gates closed, as one compiled call, over
    the chain without gates.

Each function is a compiled `tf.function`; the functions are called in turns, and the
medians of their times are compared.

    python benchmarks/skip_gate.py [--rounds 40]
"""

import argparse
import statistics
import time

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import keras_dynamic as kd

BATCH, SIZE, CHANNELS, CHAIN = 128, 16, 64, 8


def block(name):
    """f(x): x plus a correction."""
    inputs = keras.Input((SIZE, SIZE, CHANNELS))
    x = layers.Conv2D(CHANNELS, 3, padding="same", use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Conv2D(CHANNELS, 3, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization()(x)
    return keras.Model(inputs, layers.ReLU()(x + inputs), name=name)


def gated(name):
    """(model, block, gate): a gated block and its parts."""
    inner = block(f"{name}_block")
    gate = kd.SkipGate(inner, name=name)
    inputs = keras.Input((SIZE, SIZE, CHANNELS))
    return keras.Model(inputs, gate(inputs)), inner, gate


def set_gate(gate, opens):
    """Makes the built-in gate open where channel 0 has a mean above 0.5, or never."""
    hidden, classifier = gate.decider.hidden_layers[0], gate.decider.classifier
    kernel = np.zeros(hidden.kernel.shape, "float32")
    kernel[0, 0] = 1.0
    hidden.kernel.assign(kernel)
    weights = np.zeros(classifier.kernel.shape, "float32")
    weights[0, 0] = 1.0 if opens else 0.0
    classifier.kernel.assign(weights)
    classifier.bias.assign([-0.5 if opens else -1.0])


def images(rows, share):
    """Random maps of which a share has a channel 0 that opens the gate."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(rows, SIZE, SIZE, CHANNELS)).astype("float32")
    opened = np.zeros(rows, bool)
    opened[generator.permutation(rows)[: round(share * rows)]] = True
    x[:, :, :, 0] += np.where(opened, 1.0, -1.0)[:, None, None] - x[:, :, :, 0].mean(
        axis=(1, 2), keepdims=True
    )
    return tf.constant(x), opened


def compiled(model):
    return tf.function(lambda x: model(x, training=False), autograph=False)


def medians(functions, rounds):
    """Median seconds of each of the functions, called in turns."""
    times = {name: [] for name in functions}
    for turn in range(rounds + 3):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if turn >= 3:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def one_block(rounds):
    model, inner, gate = gated("gate")
    set_gate(gate, opens=True)
    plain, run = compiled(inner), compiled(model)

    @tf.function(autograph=False)
    def masked(x):
        opens = tf.cast(gate.decider(x) > 0, x.dtype)[:, :, None, None]
        return opens * inner(x, training=False) + (1 - opens) * x

    print("(a) times as a share of the block without a gate")
    print("      r   gated   block on open rows   difference   mask and compute")
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, opened = images(BATCH, share)
        assert np.array_equal(gate.decider(x)[:, 0] > 0, opened)
        rows = tf.constant(x.numpy()[opened])
        functions = {
            "plain": lambda x=x: plain(x),
            "gated": lambda x=x: run(x),
            "masked": lambda x=x: masked(x),
        }
        if opened.any():
            functions["rows"] = lambda rows=rows: plain(rows)
        seconds = medians(functions, rounds)
        shares = {name: value / seconds["plain"] for name, value in seconds.items()}
        alone = shares.get("rows", 0.0)
        print(
            f"   {share:4.2f}   {shares['gated']:5.3f}   {alone:18.3f}   "
            f"{shares['gated'] - alone:10.3f}   {shares['masked']:16.3f}",
            flush=True,
        )


def chain(rounds):
    inputs = keras.Input((SIZE, SIZE, CHANNELS), batch_size=1)
    plain = closed = inputs
    for index in range(CHAIN):
        inner = block(f"block_{index}")
        gate = kd.SkipGate(inner, name=f"gate_{index}")
        plain, closed = inner(plain), gate(closed)
        set_gate(gate, opens=False)
    x = images(1, 1.0)[0]
    functions = {}
    for name, output in (("plain", plain), ("closed", closed)):
        run = compiled(keras.Model(inputs, output)).get_concrete_function(
            tf.TensorSpec((1, SIZE, SIZE, CHANNELS))
        )
        functions[name] = lambda run=run: run(x)
    seconds = medians(functions, 10 * rounds)
    print(
        f"(b) eight closed gates / eight blocks, batch 1: "
        f"{seconds['closed'] / seconds['plain']:.3f} "
        f"({1e3 * seconds['closed']:.2f} ms / {1e3 * seconds['plain']:.2f} ms)"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    one_block(rounds)
    chain(rounds)


if __name__ == "__main__":
    main()
