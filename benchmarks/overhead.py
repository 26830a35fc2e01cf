"""What training by this package costs beside the same graph written by hand.

(a) The joint training step of a `DynamicModel`, a ResNet-20 with exits after its first
    and second stage, over that of the `keras.Model` with three outputs that somebody
    would write without the package: the same graph from Keras' own layers, a list of
    the same losses, weights and metrics. Before they are timed, both take one step
    from the same weights on the same batch and must log the same numbers.
(b) The training step of that network with a layer of the package over the step
    without it, divided by the ratio of their FLOPs:
    - `SkipGate` around one residual block, with the largest maps, and around all seven
      that keep their shape;
    - `ExitSelector` on the features of the first stage, which brings the mixture of the
      exits and its loss as well;
    - `GumbelSoftmax` as the choice among channels after each stage, over the same
      network with `keras.layers.Softmax` in its place.

Images of CIFAR-10. A step is one call of the function that `fit` calls for each batch,
metrics included. The two of a pair take steps in turns; the ratio is the median of the
ratios of each turn.

    python benchmarks/overhead.py [--parts ab] [--batch 128] [--steps 60] [--jit]

`--jit` compiles the steps by XLA.
"""

import argparse
import statistics
import time

import keras
import numpy as np
import tensorflow as tf
from data import load_cifar10

import keras_dynamic as kd
from keras_dynamic.models.costs import total_flops
from keras_dynamic.models.graph import build_graph

layers = keras.layers

IMAGES, SEED, WARM_UP = 2560, 0, 5
WEIGHTS = (0.5, 0.7, 1.0)
# (stage, block) of the blocks that keep their shape.
KEEPING = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 1), (2, 2))


def correction(shape, filters, strides):
    """What a residual block adds to its input, as a model."""
    inputs = keras.Input(shape)
    x = layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
    return keras.Model(inputs, layers.BatchNormalization()(x))


def trunk(inputs, gated=(), choice=None):
    """The features after each of the three stages.

    Args:
        inputs: `keras.Input` of images.
        gated: the blocks that have gates, some of `KEEPING`.
        choice: function that makes a layer from logits to a choice among channels;
            None for no such choice.
    """
    x = layers.Conv2D(16, 3, padding="same", use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    features = []
    for stage, filters in enumerate((16, 32, 64)):
        for block in range(3):
            strides = 2 if stage and not block else 1
            added = correction(x.shape[1:], filters, strides)
            if strides > 1:
                kept = layers.Conv2D(filters, 1, 2, use_bias=False)(x)
                x = layers.add([layers.BatchNormalization()(kept), added(x)])
            elif (stage, block) in gated:
                x = kd.SkipGate(added, additive=True)(x)
            else:
                x = layers.add([x, added(x)])
            x = layers.ReLU()(x)
        if choice is not None:
            logits = layers.Dense(filters)(layers.GlobalAveragePooling2D()(x))
            weights = layers.Reshape((1, 1, filters))(choice()(logits))
            x = layers.multiply([x, weights])
        features.append(x)
    return features


def by_hand():
    """Three exits from Keras' own layers."""
    inputs = keras.Input((32, 32, 3))
    outputs = [
        layers.Dense(10, "softmax", name=name)(layers.GlobalAveragePooling2D()(x))
        for name, x in zip(("exit_1", "exit_2", "final"), trunk(inputs), strict=True)
    ]
    return compiled_by_hand(keras.Model(inputs, outputs))


def compiled_by_hand(model, jit_compile=False):
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        loss=["sparse_categorical_crossentropy"] * 3,
        loss_weights=list(WEIGHTS),
        metrics=[["accuracy"]] * 3,
        jit_compile=jit_compile,
    )
    return model


def dynamic(selector=False, gated=(), choice=None):
    """The same by the package."""
    inputs = keras.Input((32, 32, 3))
    first, second, last = trunk(inputs, gated, choice)
    outputs = [
        kd.EarlyExit(10, "average", loss_weight=weight, name=f"exit_{number}")(x)
        for number, (weight, x) in enumerate(
            zip(WEIGHTS[:2], (first, second), strict=True), start=1
        )
    ]
    pooled = layers.GlobalAveragePooling2D()(last)
    outputs.append(layers.Dense(10, "softmax", name="final")(pooled))
    weights = None
    if selector:
        pooled = layers.GlobalAveragePooling2D()(first)
        weights = kd.ExitSelector(3, name="selector")(pooled)
    return kd.DynamicModel(inputs, outputs, selector=weights)


def compiled(model, jit_compile=False):
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile=jit_compile,
    )
    return model


def take_over(target, source):
    """Gives a model the weights of another with the same graph."""
    ours, theirs = target.trainable_variables, source.trainable_variables
    for variable, other in zip(ours, theirs, strict=True):
        variable.assign(other)


def batches(x, y, size, copies=None):
    """Images in memory, over and over; `copies` of the labels, or one."""
    labels = y if copies is None else (y,) * copies
    data = tf.data.Dataset.from_tensor_slices((x, labels))
    data = data.batch(size, drop_remainder=True).cache().repeat()
    return iter(data.prefetch(2))


class Steps:
    """The training steps of a model on a stream of batches."""

    def __init__(self, model, stream):
        model.train_on_batch(*next(stream))  # makes what `fit` makes first
        model.make_train_function()
        self.function, self.stream = model.train_function, stream

    def __call__(self):
        start = time.perf_counter()
        logs = self.function(self.stream)
        float(logs["loss"])
        return time.perf_counter() - start


def ratio(one, other, turns):
    """(median ratio, median seconds of `one`), in turns, each first in half of them."""
    for _ in range(WARM_UP):
        one(), other()
    ratios, seconds = [], []
    for turn in range(turns):
        if turn % 2:
            base, time_taken = other(), one()
        else:
            time_taken, base = one(), other()
        ratios.append(time_taken / base)
        seconds.append(time_taken)
    return statistics.median(ratios), statistics.median(seconds)


def check_equal(ours, theirs, x, y):
    """One step of each logs the same."""
    take_over(ours, theirs)
    logs = ours.train_on_batch(x, y, return_dict=True)
    others = theirs.train_on_batch(x, [y] * 3, return_dict=True)
    others["accuracy"] = others.pop("final_accuracy")
    for name, value in others.items():
        assert np.isclose(logs[name], value, rtol=1e-4), (name, logs, others)


def joint(x, y, arguments):
    keras.utils.set_random_seed(SEED)
    theirs, ours = by_hand(), dynamic()
    compiled_by_hand(theirs, arguments.jit), compiled(ours, arguments.jit)
    check_equal(ours, theirs, x[: arguments.batch], y[: arguments.batch])
    found, seconds = ratio(
        Steps(ours, batches(x, y, arguments.batch)),
        Steps(theirs, batches(x, y, arguments.batch, copies=3)),
        arguments.steps,
    )
    print(
        f"joint step: DynamicModel / written by hand {found:.3f} ({seconds:.3f} s)",
        flush=True,
    )


def of_a_layer(name, with_it, without, x, y, arguments):
    keras.utils.set_random_seed(SEED)
    models = [compiled(make(), arguments.jit) for make in (with_it, without)]
    flops = [total_flops(build_graph(model)) for model in models]
    steps = [Steps(model, batches(x, y, arguments.batch)) for model in models]
    found, seconds = ratio(*steps, arguments.steps)
    explained = flops[0] / flops[1]
    print(
        f"{name:15s} with / without {found:.3f}, FLOPs {explained:.4f}: beyond its "
        f"FLOPs {found / explained:.3f} ({seconds:.3f} s)",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", default="ab")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--jit", action="store_true")
    arguments = parser.parse_args()
    (x, y), _ = load_cifar10()
    x, y = x[:IMAGES], y[:IMAGES]
    print(f"batch {arguments.batch}, XLA {'on' if arguments.jit else 'off'}")
    if "a" in arguments.parts:
        joint(x, y, arguments)
    if "b" not in arguments.parts:
        return
    for name, with_it, without in (
        ("one SkipGate", lambda: dynamic(gated=KEEPING[1:2]), dynamic),
        ("seven SkipGates", lambda: dynamic(gated=KEEPING), dynamic),
        ("ExitSelector", lambda: dynamic(selector=True), dynamic),
        (
            "GumbelSoftmax",
            lambda: dynamic(choice=kd.GumbelSoftmax),
            lambda: dynamic(choice=layers.Softmax),
        ),
    ):
        of_a_layer(name, with_it, without, x, y, arguments)


if __name__ == "__main__":
    main()
