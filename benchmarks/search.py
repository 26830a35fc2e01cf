"""A search over lambda_1, lambda_2, tau and the cost weight, on MNIST.

A small residual network with two early exits, and a `SkipGate` around each of its three
blocks, is trained for four epochs on 20,000 images. Thresholds are then calibrated for
a mean cost of `--budget` on 5,000 other images, whatever the setting, so that settings
are compared at equal mean cost.

The default setting has lambda_1 = lambda_2 = tau = 1 and gates without a cost weight. A
Bayesian search of 20 trials maximizes `AccuracyUnderBudget` on 5,000 validation images.
Then the best trial's setting and the default one are trained anew with other seeds,
calibrated on the calibration images, and scored on the test images, which nobody has
seen.

On those, the mean costs are not quite what they were on the calibration images. So the
default is calibrated for a row of budgets, and its accuracy read off at the very mean
cost of the searched setting, linearly between two of them (which is what tossing a coin
between them would give), for each seed. The differences have a 95 % interval over the
seeds (Student's t).

    python benchmarks/search.py [--trials 20] [--seeds 5] [--budget 0.15]
        [--directory DIR]
"""

import argparse
import tempfile

import keras
import keras_tuner
import numpy as np
from data import load_mnist
from keras import layers
from scipy import stats

import keras_dynamic as kd

TRAINING, HELD_OUT = 20000, 5000
BATCH, EPOCHS, RATE = 128, 4, 3e-3
# The default has no cost weight; on a logarithmic scale, that is one without effect.
NO_COST = 1e-4


def build(hp):
    inputs = keras.Input((28, 28, 1))
    tau = kd.tuning.temperature(hp, min_value=0.2)
    cost = kd.tuning.cost_weight(
        hp, "gates", min_value=NO_COST, max_value=0.3, default=NO_COST
    )

    def convolution(channels, strides=1):
        return layers.Conv2D(channels, 3, strides, padding="same", activation="relu")

    def gated(channels, name):
        block = keras.Sequential([convolution(channels), convolution(channels)])
        return kd.SkipGate(
            block, temperature=tau, cost_weight=cost, additive=True, name=name
        )

    def early(name, grid):
        weight = kd.tuning.loss_weight(hp, name)
        return kd.EarlyExit(
            10, pooling="average", grid=grid, loss_weight=weight, name=name
        )

    x = layers.Conv2D(8, 5, 2, padding="same", activation="relu")(inputs)
    exit_1 = early("exit_1", 4)(x)
    x = gated(16, "gate_1")(convolution(16, 2)(x))
    exit_2 = early("exit_2", 2)(x)
    x = gated(32, "gate_3")(gated(32, "gate_2")(convolution(32)(x)))
    x = layers.Flatten()(layers.MaxPooling2D()(x))
    final = layers.Dense(10, activation="softmax", name="final")(x)
    model = kd.DynamicModel(inputs, [exit_1, exit_2, final])
    rate = keras.optimizers.schedules.CosineDecay(RATE, EPOCHS * (TRAINING // BATCH))
    model.compile(
        keras.optimizers.Adam(rate),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


def trained(values, seed, data):
    """The model with some values of the hyperparameters, others at their defaults."""
    keras.utils.set_random_seed(seed)
    hp = keras_tuner.HyperParameters()
    hp.values = dict(values)
    model = build(hp)
    model.fit(*data, batch_size=BATCH, epochs=EPOCHS, verbose=0)
    return model


def scores(model, calibration, images, budget):
    """(mean cost, accuracy) with the thresholds for a budget."""
    model.calibrate(*calibration, budget=budget, batch_size=500)
    found = model.evaluate_dynamic(*images, batch_size=500, verbose=0)
    return found["mean_cost"], found["accuracy"]


def interval(values):
    """Mean and half the width of its 95 % interval."""
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return f"{np.mean(values):+.3f} +- {half:.3f}"


def search(training, calibration, validation, arguments, directory):
    """Values of the best trial's hyperparameters."""
    hypermodel = kd.tuning.DynamicHyperModel(
        build,
        calibration,
        validation,
        kd.tuning.AccuracyUnderBudget(arguments.budget),
        batch_size=500,
    )
    tuner = hypermodel.tuner(
        "bayesian", max_trials=arguments.trials, directory=directory, seed=0
    )
    keras.utils.set_random_seed(0)
    tuner.search(*training, batch_size=BATCH, epochs=EPOCHS, verbose=0)
    print(kd.tuning.pareto(tuner))
    return tuner.get_best_hyperparameters(1)[0].values


def compare(best, training, calibration, test, arguments):
    """Both settings, trained anew with other seeds, on the test images."""
    print("seed  searched: cost, accuracy  default: cost, accuracy  at equal cost")
    plain, equal, costs = [], [], []
    budgets = arguments.budget * np.array([0.8, 0.9, 1.0, 1.1, 1.25])
    for seed in range(1, arguments.seeds + 1):
        searched = trained(best, seed, training)
        cost, accuracy = scores(searched, calibration, test, arguments.budget)
        default = trained({}, seed, training)
        curve = [scores(default, calibration, test, budget) for budget in budgets]
        own_cost, own_accuracy = curve[2]
        there = np.interp(cost, *zip(*sorted(curve), strict=True))
        plain.append(100 * (accuracy - own_accuracy))
        equal.append(100 * (accuracy - there))
        costs.append(cost - own_cost)
        print(
            f"{seed:4d}  {cost:14.3f}, {accuracy:.4f}    {own_cost:13.3f}, "
            f"{own_accuracy:.4f}  {there:13.4f}",
            flush=True,
        )
    print(f"searched - default, points of accuracy: {interval(plain)}")
    print(f"searched - default, mean cost: {interval(costs)}")
    print(f"searched - default at equal mean cost, points: {interval(equal)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budget", type=float, default=0.15)
    parser.add_argument("--directory", default=None)
    arguments = parser.parse_args()
    (x, y), test = load_mnist()
    training = x[:TRAINING], y[:TRAINING]
    calibration = x[TRAINING : TRAINING + HELD_OUT], y[TRAINING : TRAINING + HELD_OUT]
    validation = x[-HELD_OUT:], y[-HELD_OUT:]

    default = trained({}, 0, training)
    cost, accuracy = scores(default, calibration, validation, arguments.budget)
    print(f"default: mean cost {cost:.3f}, accuracy {accuracy:.4f} (validation)")
    with tempfile.TemporaryDirectory() as folder:
        directory = arguments.directory or folder
        best = search(training, calibration, validation, arguments, directory)
    print("best:", {name: round(value, 4) for name, value in best.items()})
    compare(best, training, calibration, test, arguments)


if __name__ == "__main__":
    main()
