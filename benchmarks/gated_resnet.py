"""A residual network on CIFAR-10 whose blocks run for the images that need them.

A stem and three stages of two residual blocks, 32, 64 and 128 channels wide. The
corrections of the four blocks that keep shapes, 71 % of the FLOPs, are gated with a
target rate. The network is trained for four epochs on 15,000 images without gates, and
from there for four more with gates, for each of three targets from the same weights.

Beside each stands a rival without gates: the narrowest network of the same kind that
executes at least as many FLOPs, trained for as many epochs with the same rates. And
once the network itself, trained as long without gates. Printed are

- the open rate on the test images: the share of pairs of image and gate that are open
  at inference; over all gates, and of each one;
- the accuracy, and the mean FLOPs executed for an image, those of the gates included;
- times of inference over those of the network without gates, medians of calls in turns
  on 2,000 images in batches of 128: of `Model.predict`, and of a compiled `tf.function`
  on tensors, without what `predict` adds.

Trained with the estimator `straight_through`, which decides in training as inference
does. With the default, half of the decisions near even odds are noise; in so few epochs
that costs accuracy, and the open rates at inference, where no noise disturbs the gates
before, lie farther from those of training.

All settings were chosen on training images that nothing is trained on (`--images
choosing` scores on such images); the test images give the figures.

    python benchmarks/gated_resnet.py [--plot FILE] [--images test] [--json FILE]

`--plot` draws the open rates by class and gate.
"""

import argparse
import statistics
import time

import keras
import numpy as np
import record
import tensorflow as tf
from data import load_cifar10

import keras_dynamic as kd
from keras_dynamic.models.costs import total_flops
from keras_dynamic.models.gates import saved_flops
from keras_dynamic.models.graph import build_graph

layers = keras.layers

TRAINING, HELD_OUT, TIMED = 15000, 5000, 2000
BATCH, SEED, REPEATS = 128, 0, 15
FIRST, SECOND = {"epochs": 4, "rate": 3e-3}, {"epochs": 4, "rate": 3e-3}
# So few steps are too few for the default, 0.99.
MOMENTUM = 0.9
WIDTHS = (32, 64, 128)
TARGETS = (0.4, 0.6, 0.8)
GATES = {"estimator": "straight_through", "rate_weight": 3.0}
GATES_AT = ("1.1", "1.2", "2.2", "3.2")
CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


def correction(shape, filters, strides, name):
    """What a residual block adds to its input, as a model."""
    inputs = keras.Input(shape)
    x = layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization(momentum=MOMENTUM)(x))
    x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization(momentum=MOMENTUM)(x)
    return keras.Model(inputs, x, name=name)


def network(widths=WIDTHS, **gates):
    """A residual network; with gates where there are arguments for them."""
    inputs = keras.Input((32, 32, 3))
    x = layers.Conv2D(widths[0], 3, 2, padding="same", use_bias=False, name="stem")(
        inputs
    )
    x = layers.BatchNormalization(momentum=MOMENTUM, name="stem_norm")(x)
    x = layers.ReLU()(x)
    for stage, filters in enumerate(widths, start=1):
        for block in (1, 2):
            name = f"block_{stage}{block}"
            strides = 2 if stage > 1 and block == 1 else 1
            added = correction(x.shape[1:], filters, strides, f"{name}_correction")
            if strides > 1:
                kept = layers.Conv2D(filters, 1, 2, use_bias=False, name=name)(x)
                x = layers.add([kept, added(x)])
            elif gates:
                x = kd.SkipGate(added, additive=True, name=name, **gates)(x)
            else:
                x = layers.add([x, added(x)])
            x = layers.ReLU()(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10, "softmax", name="final")(x))


def take_over(gated, plain):
    """Gives a gated network the weights of one without gates."""
    for layer in gated.layers:
        if isinstance(layer, kd.SkipGate):
            source = plain.get_layer(f"{layer.name}_correction")
            layer.layer.set_weights(source.get_weights())
        elif layer.weights:
            layer.set_weights(plain.get_layer(layer.name).get_weights())


def train(model, x, y, epochs, rate):
    rate = keras.optimizers.schedules.CosineDecay(rate, epochs * (len(x) // BATCH))
    model.compile(
        keras.optimizers.Adam(rate),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    model.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=0)
    return model


def train_narrower(widths, x, y):
    """The same epochs, all without gates."""
    keras.utils.set_random_seed(SEED)
    model = train(network(widths), x, y, **FIRST)
    return train(model, x, y, **SECOND)


def gates_of(model):
    return [layer for layer in model.layers if isinstance(layer, kd.SkipGate)]


def decisions(model, x):
    """(images, gates) bool, what each gate decides at inference."""
    gates = gates_of(model)
    inputs = keras.Model(model.input, [gate.input for gate in gates])
    opened = []
    for start in range(0, len(x), BATCH):
        features = inputs(x[start : start + BATCH], training=False)
        logits = [g.decider(f) for g, f in zip(gates, features, strict=True)]
        opened.append(np.concatenate(logits, axis=1) > 0)
    return np.concatenate(opened)


def executed_flops(model, opened):
    """Mean FLOPs of an image: those of the network, less what closed gates save."""
    flops = flops_of(model)
    for gate, rate in zip(gates_of(model), opened.mean(axis=0), strict=True):
        flops -= (1 - rate) * saved_flops(gate, gate.input.shape[1:])
    return flops


def flops_of(model):
    return total_flops(build_graph(model))


def widths_of(flops):
    """Those of the smallest network without gates that executes at least so many."""
    for last in range(16, WIDTHS[-1] + 1):
        widths = (max(4, last // 4), last // 2, last)
        if flops_of(network(widths)) >= flops:
            return widths
    return WIDTHS


def predict(model, x):
    return model.predict(x, batch_size=BATCH, verbose=0)


def accuracy(model, x, y):
    return np.mean(predict(model, x).argmax(axis=1) == y)


def median_times(functions):
    """Seconds of each function, called in turns so that noise is shared."""
    times = [[] for _ in functions]
    for repeat in range(REPEATS + 2):
        for function, taken in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            if repeat > 1:  # the first ones trace
                taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]


def show_times(models, plain, x):
    """Times over those of the same network without gates.

    Args:
        models: dict from the target to the gated network.
        plain: the network without gates.
        x: images.
    """
    batches = [
        tf.constant(x[start : start + BATCH]) for start in range(0, len(x), BATCH)
    ]

    def compiled(model):
        function = tf.function(
            lambda batch: model(batch, training=False), reduce_retracing=True
        )
        return lambda: [function(batch) for batch in batches]

    everyone, rows = [plain, *models.values()], []
    for label, functions in (
        ("Model.predict", [lambda m=m: predict(m, x) for m in everyone]),
        ("tf.function", [compiled(model) for model in everyone]),
    ):
        reference, *times = median_times(functions)
        ratios = "   ".join(
            f"{100 * target:.0f} %: {seconds / reference:.2f}"
            for target, seconds in zip(models, times, strict=True)
        )
        print(f"time over no gates, {label:13s}  {ratios}   ({reference:.3f} s)")
        for target, seconds in zip(models, times, strict=True):
            rows.append(
                {"target": target, "way": label, "time_ratio": seconds / reference}
            )
    return rows


def plot(rates, file):
    """A heat map for each target.

    Args:
        rates: dict from the target to a (classes, gates) array.
        file: where to write it, PNG.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(rates), figsize=(10, 4.6), sharey=True, layout="constrained"
    )
    for axis, (target, table) in zip(axes, rates.items(), strict=True):
        image = axis.imshow(
            100 * table, aspect="auto", cmap="cividis", vmin=0, vmax=100
        )
        for (row, column), rate in np.ndenumerate(table):
            axis.text(
                column,
                row,
                f"{100 * rate:.0f}",
                color="black" if rate > 0.5 else "white",
                ha="center",
                va="center",
                fontsize=8,
            )
        axis.set_xticks(range(len(GATES_AT)), GATES_AT)
        axis.set_yticks(range(10), CLASSES)
        axis.set(xlabel="gate (stage.block)", title=f"target {100 * target:.0f} %")
    figure.colorbar(image, label="open rate (% of the class's test images)")
    figure.suptitle("Which images run which block: open rate by class and gate")
    figure.savefig(file, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", default="test", choices=["test", "choosing"])
    parser.add_argument("--plot", help="PNG file for the open rates by class")
    record.add_option(parser)
    arguments = parser.parse_args()
    (x, y), test = load_cifar10()
    training, choosing = (x[:TRAINING], y[:TRAINING]), (x[-HELD_OUT:], y[-HELD_OUT:])
    images, labels = test if arguments.images == "test" else choosing

    keras.utils.set_random_seed(SEED)
    start = train(network(), *training, **FIRST)
    models, by_class, rows = {}, {}, []
    print("        open rate (%)                     accuracy  MFLOPs   narrower net's")
    print(
        "target  all    each gate                  gated     gated    MFLOPs  accuracy"
    )
    for target in TARGETS:
        keras.utils.set_random_seed(SEED)
        model = network(target_rate=target, **GATES)
        take_over(model, start)
        models[target] = train(model, *training, **SECOND)
        opened = decisions(model, images)
        by_class[target] = np.stack([opened[labels == k].mean(0) for k in range(10)])
        flops = executed_flops(model, opened)
        narrower = train_narrower(widths_of(flops), *training)
        each = " / ".join(f"{100 * rate:4.1f}" for rate in opened.mean(axis=0))
        row = {
            "target": target,
            "open_rate": opened.mean(),
            "accuracy": accuracy(model, images, labels),
            "mflops": flops / 1e6,
            "narrower_mflops": flops_of(narrower) / 1e6,
            "narrower_accuracy": accuracy(narrower, images, labels),
        }
        rows.append(row)
        print(
            f"{100 * target:4.0f} %  {100 * opened.mean():4.1f}   {each}  "
            f"{row['accuracy']:.4f}    {row['mflops']:5.1f}    "
            f"{row['narrower_mflops']:5.1f}   {row['narrower_accuracy']:.4f}",
            flush=True,
        )
    # A network that stands for itself at all targets, trained as long.
    plain = train_narrower(WIDTHS, *training)
    row = {
        "gates": "none",
        "accuracy": accuracy(plain, images, labels),
        "mflops": flops_of(plain) / 1e6,
    }
    print(f"no gates: accuracy {row['accuracy']:.4f}, {row['mflops']:.1f} MFLOPs")
    rows += [row, *show_times(models, plain, images[:TIMED])]
    record.write(arguments.json, rows, [SEED])
    if arguments.plot:
        plot(by_class, arguments.plot)


if __name__ == "__main__":
    main()
