"""Learned activation functions on CIFAR-10, against ReLU, tanh, ELU and Swish.

A small CNN (three convolutions, two dense layers) is trained for six epochs on 10,000
images with each activation, and with a blend of the four of them behind each layer,
under a softmax and without a constraint; with two learning rates and five seeds. Of the
rates, each contender's is the one with the better mean on 5,000 other training images.
The figures are those of its five networks on the 10,000 test images, which nothing was
chosen by. A seed gives all contenders the same initial kernels and the same batches, so
that the blends' differences from the others are taken seed by seed. Intervals are 95 %
intervals of Student's t over the seeds.

`--plot FILE` draws the blends' weights by layer, their mean and range over the seeds.

    python benchmarks/blended_activation.py [--plot blends.png] [--json FILE]
"""

import argparse

import keras
import numpy as np
import record
from data import load_cifar10
from keras import layers
from scipy import stats

import keras_dynamic as kd

TRAINING, HELD_OUT = 10000, 5000
BATCH, EPOCHS = 100, 6
RATES, SEEDS = (1e-3, 3e-3), (0, 1, 2, 3, 4)
PLAIN = ("relu", "tanh", "elu", "swish")
BLENDS = {"blend, softmax": "softmax", "blend, unrestricted": "unrestricted"}
# Safe for color-blind readers.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")


def activation(contender):
    if contender in BLENDS:
        # With a seed of its own it leaves those of the kernels as they are.
        return kd.BlendedActivation(PLAIN, BLENDS[contender], seed=0)
    return layers.Activation(contender)


def network(contender, seed):
    keras.utils.set_random_seed(seed)
    network = keras.Sequential([keras.Input((32, 32, 3))])
    for filters, strides in ((16, 2), (32, 2), (32, 1)):
        network.add(
            layers.Conv2D(
                filters, 3, strides, padding="same", kernel_initializer="he_uniform"
            )
        )
        network.add(activation(contender))
    network.add(layers.Flatten())
    network.add(layers.Dense(64, kernel_initializer="he_uniform"))
    network.add(activation(contender))
    network.add(layers.Dense(10, "softmax"))
    return network


def train(contender, rate, seed, x, y):
    model = network(contender, seed)
    schedule = keras.optimizers.schedules.CosineDecay(rate, EPOCHS * len(x) // BATCH)
    model.compile(
        keras.optimizers.Adam(schedule),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    # One order of the images for all contenders.
    order = np.random.default_rng(seed)
    for _ in range(EPOCHS):
        rows = order.permutation(len(x))
        model.fit(x[rows], y[rows], batch_size=BATCH, shuffle=False, verbose=0)
    return model


def accuracy(model, x, y):
    return model.evaluate(x, y, batch_size=500, verbose=0, return_dict=True)["accuracy"]


def best_rate(contender, training, held_out):
    """The learning rate that does best on held-out images, and its networks."""
    means, models = {}, {}
    for rate in RATES:
        models[rate] = [train(contender, rate, seed, *training) for seed in SEEDS]
        means[rate] = np.mean([accuracy(model, *held_out) for model in models[rate]])
    best = max(RATES, key=means.get)
    return best, models[best]


def interval(values):
    """Mean and half the width of its 95 % interval."""
    values = np.asarray(values)
    quantile = stats.t.ppf(0.975, len(values) - 1)
    return values.mean(), quantile * values.std(ddof=1) / np.sqrt(len(values))


def blends_by_layer(model):
    """(layers, activations): the weights of each blend."""
    return [
        list(layer.blend().values())
        for layer in model.layers
        if isinstance(layer, kd.BlendedActivation)
    ]


def draw(weights, file):
    """Weights by contender, (seeds, layers, activations) each, as bars."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(weights), figsize=(10, 3.6), layout="constrained"
    )
    for axis, (contender, values) in zip(axes, weights.items(), strict=True):
        values = np.array(values)
        positions = np.arange(values.shape[1])
        for index, name in enumerate(PLAIN):
            each = values[:, :, index]
            mean = each.mean(axis=0)
            ends = np.stack([mean - each.min(axis=0), each.max(axis=0) - mean])
            axis.bar(
                positions + 0.2 * (index - 1.5),
                mean,
                0.18,
                yerr=ends,
                color=COLORS[index],
                error_kw={"linewidth": 1},
                label=name,
            )
        axis.axhline(1 / len(PLAIN), color="gray", linestyle="--", linewidth=1)
        axis.axhline(0, color="black", linewidth=0.8)
        names = [f"conv {number + 1}" for number in range(len(positions) - 1)]
        axis.set_xticks(positions, [*names, "dense"])
        axis.set(title=contender, ylabel="weight in the blend")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center")
    figure.suptitle("Mean over the seeds, with range; the dashed line is the start")
    figure.savefig(file, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", metavar="FILE", help="where to draw the weights")
    record.add_option(parser)
    arguments = parser.parse_args()
    (x, y), test = load_cifar10()
    training = x[:TRAINING], y[:TRAINING]
    held_out = x[-HELD_OUT:], y[-HELD_OUT:]

    print("accuracy (%), mean and 95 % interval of 5 seeds; learning rate chosen")
    scores, weights, rows = {}, {}, []
    for contender in (*PLAIN, *BLENDS):
        rate, models = best_rate(contender, training, held_out)
        scores[contender] = 100 * np.array([accuracy(model, *test) for model in models])
        mean, half = interval(scores[contender])
        print(f"  {contender:20s} {mean:6.2f} +- {half:.2f}   {rate}", flush=True)
        rows.append(
            {"contender": contender, "rate": rate, "accuracy": scores[contender]}
        )
        if contender in BLENDS:
            weights[contender] = [blends_by_layer(model) for model in models]

    print("difference in points, seed by seed: mean and 95 % interval")
    for blend in BLENDS:
        for plain in PLAIN:
            difference = scores[blend] - scores[plain]
            mean, half = interval(difference)
            rows.append({"contender": blend, "less": plain, "difference": difference})
            print(f"  {blend:20s} - {plain:6s} {mean:+6.2f} +- {half:.2f}")

    print("weights by layer, mean over the seeds:", ", ".join(PLAIN))
    for blend, values in weights.items():
        for number, means in enumerate(np.mean(values, axis=0)):
            row = "  ".join(f"{mean:5.2f}" for mean in means)
            print(f"  {blend:20s} layer {number + 1}: {row}")
    record.write(arguments.json, rows, SEEDS)
    if arguments.plot:
        draw(weights, arguments.plot)


if __name__ == "__main__":
    main()
