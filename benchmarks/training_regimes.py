"""Ways to train a network with exits, CIFAR-10: every exit's accuracy beside the plain.

A small convolutional network with batch normalization and three exits, at about 30, 65
and 100 % of its cost, is trained on 10,000 images for nine epochs in all, however they
are divided. Each part of a training has a learning rate that falls along a cosine.

    plain          the same network without its early exits
    joint          the sum of all losses
    two stages     trunk and last exit for six epochs; then the early exits alone for
                   three (DeeBERT), by `fit_exits(trunk_epochs=6, epochs=3)`
    distillation   joint, and half of each early exit's loss from the last exit's answer
    layer-wise     exit after exit, three epochs each; what is trained stays as it is
    mixed          trunk and last exit for three epochs, then jointly for six
    rescaling      joint; every part of the trunk gets the mean of the gradients of the
                   exits behind it, not their sum (gradient equilibrium)
    falling        joint; the weight of the early exits' losses falls from 1 to 0.1

Thresholds are calibrated on 5,000 held-out images for an accuracy at most half a point
below that of the same network's last exit. Printed are, on the test images and as means
over three seeds with the least and the greatest of them: each exit's accuracy by
itself, the accuracy and the mean cost of the dynamic road (1.0 is the plain network),
and the seconds of processor time, of all cores together, that the training took. The
last lines are what this is about: the difference to "joint", seed by seed, of each exit
and of the mean cost, with a 95 % interval by Student's t.

Li, Zhang, Qi, Yang and Huang, "Improved Techniques for Training Adaptive Deep
Networks", ICCV 2019, rescale gradients so; Scardapane, Scarpiniti, Baccarelli and
Uncini, "Why Should We Add Early Exits to Neural Networks?", 2020, compare joint,
layer-wise and mixed training in words.

    python benchmarks/training_regimes.py [--seeds 0 1 2] [--json FILE]
"""

import argparse
import math
import time

import keras
import numpy as np
import record
import tensorflow as tf
from data import load_cifar10
from keras import layers
from scipy import stats

import keras_dynamic as kd

TRAINING, HELD_OUT, BATCH = 10000, 5000, 100
EPOCHS, RATE, DROP = 9, 3e-3, 0.005
LOSS = "sparse_categorical_crossentropy"


@keras.saving.register_keras_serializable(package="training_regimes")
class GradientScale(layers.Layer):
    """Hands its input on; the gradient that comes back is multiplied by `scale`."""

    def __init__(self, scale, **kwargs):
        super().__init__(**kwargs)
        self.scale = scale

    def call(self, inputs):
        @tf.custom_gradient
        def scaled(x):
            return tf.identity(x), lambda gradient: self.scale * gradient

        return scaled(inputs)

    def compute_output_shape(self, input_shape):
        return input_shape

    def compute_flops(self, input_shape):
        return 0

    def get_config(self):
        return {**super().get_config(), "scale": self.scale}


def block(x, width, stride):
    for step in (stride, 1):
        x = layers.Conv2D(width, 3, step, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    return x


def network(rescaled=False):
    """Three blocks with an exit behind each."""
    inputs = keras.Input((32, 32, 3))
    x, outputs, widths = inputs, [], (16, 32, 64)
    for index, width in enumerate(widths):
        x = block(x, width, 2)
        later = len(widths) - index - 1
        if rescaled:  # the mean over this exit and the later ones
            x = GradientScale(1 / (later + 1))(x)
        if later:
            outputs.append(kd.EarlyExit(10, name=f"exit_{index + 1}")(x))
        if later and rescaled:  # what comes back from them is a mean already
            x = GradientScale(later)(x)
    x = layers.GlobalAveragePooling2D()(x)
    outputs.append(layers.Dense(10, "softmax", name="final")(x))
    return kd.DynamicModel(inputs, outputs)


def compiled(model, **arguments):
    model.compile(keras.optimizers.Adam(RATE), LOSS, metrics=["accuracy"], **arguments)
    return model


def falling_rates(*parts):
    """A callback: the learning rate falls along a cosine in each part of the epochs."""
    rates = [
        RATE * (1 + math.cos(math.pi * k / part)) / 2
        for part in parts
        for k in range(part)
    ]
    return keras.callbacks.LearningRateScheduler(lambda epoch: rates[epoch])


def arguments_of_fit(epochs, *callbacks, parts=None):
    rates = falling_rates(*(parts or (epochs,)))
    callbacks = [rates, *callbacks]
    return dict(epochs=epochs, batch_size=BATCH, callbacks=callbacks, verbose=0)


def plain(x, y):
    model = compiled(kd.strip_exits(network()))
    model.fit(x, y, **arguments_of_fit(EPOCHS))
    return model


def joint(x, y):
    model = compiled(network())
    model.fit(x, y, **arguments_of_fit(EPOCHS))
    return model


def two_stages(x, y):
    model = compiled(network())
    arguments = arguments_of_fit(3, parts=(6, 3))
    model.fit_exits(x, y, trunk_epochs=6, **arguments)
    return model


def distillation(x, y):
    model = compiled(network(), distillation_weight=0.5)
    model.fit(x, y, **arguments_of_fit(EPOCHS))
    return model


def layer_wise(x, y):
    model = network()
    for index, output in enumerate(model.outputs):
        alone = [float(other == index) for other in range(len(model.outputs))]
        compiled(model, loss_weights=alone)
        model.fit(x, y, **arguments_of_fit(EPOCHS // len(model.outputs)))
        for layer in keras.Model(model.input, output).layers:
            layer.trainable = False
    for layer in model.layers:
        layer.trainable = True
    return compiled(model)


def mixed(x, y):
    model = compiled(network())
    weights = kd.callbacks.LossWeightSchedule(lambda epoch: float(epoch >= 3), "epoch")
    model.fit(x, y, **arguments_of_fit(EPOCHS, weights, parts=(3, 6)))
    return model


def rescaling(x, y):
    model = compiled(network(rescaled=True))
    model.fit(x, y, **arguments_of_fit(EPOCHS))
    return model


def falling(x, y):
    model = compiled(network())
    steps = EPOCHS * (len(x) // BATCH)
    decay = keras.optimizers.schedules.PolynomialDecay(1.0, steps, 0.1)
    weights = kd.callbacks.LossWeightSchedule(decay)
    model.fit(x, y, **arguments_of_fit(EPOCHS, weights))
    return model


REGIMES = {
    "plain": plain,
    "joint": joint,
    "two stages": two_stages,
    "distillation": distillation,
    "layer-wise": layer_wise,
    "mixed": mixed,
    "rescaling": rescaling,
    "falling": falling,
}
COLUMNS = ("exit_1", "exit_2", "final", "dynamic", "cost", "seconds")


def figures(model, held_out, test):
    """exit_1, exit_2, final, dynamic, cost; NaN for what a plain network has not."""
    found = model.evaluate(*test, batch_size=500, verbose=0, return_dict=True)
    if not isinstance(model, kd.DynamicModel):
        return [np.nan, np.nan, found["accuracy"], np.nan, np.nan]
    own = [found[f"{name}_accuracy"] for name in model.exit_names[:-1]]
    model.calibrate(*held_out, max_accuracy_drop=DROP, batch_size=500)
    dynamic = model.evaluate_dynamic(*test, batch_size=500, verbose=0)
    return [*own, found["accuracy"], dynamic["accuracy"], dynamic["mean_cost"]]


def cell(values, column):
    """Mean, least and greatest."""
    if np.isnan(values).any():
        return "-"
    if column == "seconds":
        return f"{np.mean(values):.1f}"
    factor, digits = (1, 3) if column == "cost" else (100, 1)
    values = factor * np.asarray(values)
    return (
        f"{np.mean(values):.{digits}f} "
        f"({np.min(values):.{digits}f}-{np.max(values):.{digits}f})"
    )


def difference(values, others):
    """Mean of the differences and half of its 95 % interval."""
    differences = np.asarray(values) - np.asarray(others)
    if len(differences) < 2 or np.isnan(differences).any():
        return "-"
    error = stats.sem(differences) * stats.t.ppf(0.975, len(differences) - 1)
    return f"{np.mean(differences):+.3f} +- {error:.3f}"


def records(tables):
    """Rows of raw results, with the differences to joint training."""
    rows = []
    for name, table in tables.items():
        row = {"regime": name, **dict(zip(COLUMNS, table, strict=True))}
        for column, values, joint in zip(COLUMNS, table, tables["joint"], strict=True):
            row[f"{column}_less_joint"] = values - joint
        rows.append(row)
    return rows


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    record.add_option(parser)
    arguments = parser.parse_args()
    seeds = arguments.seeds
    (x, y), test = load_cifar10()
    training = x[:TRAINING], y[:TRAINING]
    held_out = x[-HELD_OUT:], y[-HELD_OUT:]
    rows = {name: [] for name in REGIMES}
    for seed in seeds:
        for name, train in REGIMES.items():  # in turns, so that times compare
            keras.utils.set_random_seed(seed)
            start = time.process_time()
            model = train(*training)
            seconds = time.process_time() - start
            rows[name].append([*figures(model, held_out, test), seconds])
            print(seed, name, np.round(rows[name][-1], 3), flush=True)
    shares = ", ".join(f"{share:.3f}" for share in network().compute_costs().shares())
    print(f"leaving at each exit costs {shares}")
    tables = {name: np.transpose(values) for name, values in rows.items()}
    print(f"{'':12s}" + "".join(f"{column:>20s}" for column in COLUMNS))
    for name, table in tables.items():
        cells = [cell(v, column) for v, column in zip(table, COLUMNS, strict=True)]
        print(f"{name:12s}" + "".join(f"{text:>20s}" for text in cells))
    print("less joint")
    for name, table in tables.items():
        pairs = zip(table[:5], tables["joint"][:5], strict=True)
        print(f"{name:12s}" + "".join(f"{difference(*pair):>20s}" for pair in pairs))
    record.write(arguments.json, records(tables), seeds)


if __name__ == "__main__":
    main()
