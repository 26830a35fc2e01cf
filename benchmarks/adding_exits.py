"""Exits on a trained network, MNIST: in one stage, in two, and with a teacher.

A residual network (three stages of two blocks, batch normalization, no exits) is
trained for five epochs on 20,000 images. `kd.add_exits(network, at=(0.2, 0.5, 0.8))`
puts three exits on it. From the same weights three more epochs follow, in each of these
ways:

    stage 2     `fit_exits`, labels alone: trunk and last exit frozen (DeeBERT)
    teacher     `fit_exits` with `distillation_weight=0.5`: the last exit's answer too
    teacher 1   `fit_exits` with `distillation_weight=1`: its answer alone
    joint       `fit`: trunk and all exits together
    joint + t.  `fit` with `distillation_weight=0.5`

Thresholds are calibrated on 10,000 held-out images for an accuracy at most half a point
below that of the last exit. Printed are, on the test images and as means over three
seeds: the accuracy of each exit by itself, that of the dynamic road, its mean cost (1.0
is the network without exits), and how many seconds the three epochs took. The last
column is the ratio that this is about: the cost over that of "joint".

    python benchmarks/adding_exits.py
"""

import time

import keras
import numpy as np
from data import load_mnist
from keras import layers

import keras_dynamic as kd

TRAINING, HELD_OUT, BATCH, SEEDS = 20000, 10000, 128, (0, 1, 2)
EPOCHS = 5, 3  # without exits, with them
WAYS = {
    "stage 2": ("fit_exits", {}),
    "teacher": ("fit_exits", {"distillation_weight": 0.5}),
    "teacher 1": ("fit_exits", {"distillation_weight": 1.0}),
    "joint": ("fit", {}),
    "joint + t.": ("fit", {"distillation_weight": 0.5}),
}


def block(x, width, stride):
    shortcut = x
    if stride > 1:
        shortcut = layers.Conv2D(width, 1, stride)(x)
    x = layers.Conv2D(width, 3, stride, padding="same", activation="relu")(x)
    x = layers.BatchNormalization(momentum=0.9)(
        layers.Conv2D(width, 3, padding="same")(x)
    )
    return layers.ReLU()(layers.Add()([x, shortcut]))


def network():
    inputs = keras.Input((28, 28, 1))
    x = layers.Conv2D(8, 3, 2, padding="same", activation="relu")(inputs)
    for width, stride in ((8, 1), (16, 2), (32, 2)):
        x = block(block(x, width, stride), width, 1)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10, "softmax", name="final")(x))


def compiled(model, epochs, **arguments):
    rate = keras.optimizers.schedules.CosineDecay(3e-3, epochs * (TRAINING // BATCH))
    model.compile(
        keras.optimizers.Adam(rate),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        **arguments,
    )
    return model


def figures(model, held_out, test):
    accuracies = model.evaluate(*test, batch_size=500, verbose=0, return_dict=True)
    own = [accuracies[f"{name}_accuracy"] for name in model.exit_names[:-1]]
    model.calibrate(*held_out, max_accuracy_drop=0.005, batch_size=500)
    found = model.evaluate_dynamic(*test, batch_size=500, verbose=0)
    return [*own, accuracies["accuracy"], found["accuracy"], found["mean_cost"]]


def main():
    (x, y), test = load_mnist()
    training, held_out = (x[:TRAINING], y[:TRAINING]), (x[-HELD_OUT:], y[-HELD_OUT:])
    rows = {way: [] for way in WAYS}
    for seed in SEEDS:
        keras.utils.set_random_seed(seed)
        plain = compiled(network(), EPOCHS[0])
        plain.fit(*training, batch_size=BATCH, epochs=EPOCHS[0], verbose=0)
        model = kd.add_exits(plain, at=(0.2, 0.5, 0.8))
        weights = model.get_weights()
        for way, (method, arguments) in WAYS.items():
            keras.utils.set_random_seed(seed)
            model.set_weights(weights)
            compiled(model, EPOCHS[1], **arguments)
            start = time.perf_counter()
            train = getattr(model, method)
            train(*training, batch_size=BATCH, epochs=EPOCHS[1], verbose=0)
            seconds = time.perf_counter() - start
            rows[way].append([*figures(model, held_out, test), seconds])
    shares = ", ".join(f"{share:.3f}" for share in model.compute_costs().shares()[:-1])
    print(f"exits after {shares} of the cost")
    print("           exit_1  exit_2  exit_3   final  dynamic   cost  seconds  / joint")
    means = {way: np.mean(rows[way], axis=0) for way in WAYS}
    for way, (*accuracies, cost, seconds) in means.items():
        text = "  ".join(f"{accuracy:6.2%}" for accuracy in accuracies)
        ratio = cost / means["joint"][-2]
        print(f"{way:10s} {text}   {cost:5.3f}  {seconds:7.1f}  {ratio:7.2f}")


if __name__ == "__main__":
    main()
