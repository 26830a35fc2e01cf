"""A search over lambda_1, lambda_2, tau and the cost weight, on MNIST.

The network of `exit_selection.py`, whose exits cost about 4, 26 and 100 % of the plain
one, is trained for three epochs on 20,000 images. From there it goes on for two epochs
with a selector (Gumbel-Softmax), in every case below from the same weights.

The default setting has lambda_1 = lambda_2 = tau = 1 and a cost weight of 0.3. What it
costs on the validation images is the budget of a Bayesian search of 20 trials, which
maximizes `AccuracyUnderBudget` on 5,000 validation images. Then the best trial's
setting and the default one are trained anew with five other seeds, and scored on the
test images, which nobody has seen.

Mean costs of two settings are never quite equal. So the default is trained with several
cost weights, and its accuracy read off at the very mean cost of the searched setting,
linearly between two of them (which is what tossing a coin between them would give), for
each seed. The differences have a 95 % interval over the seeds (Student's t).

    python benchmarks/search.py [--trials 20] [--seeds 5] [--directory DIR]
"""

import argparse
import functools
import tempfile

import exit_selection
import keras
import keras_tuner
import numpy as np
from data import load_mnist
from keras import layers
from scipy import stats

import keras_dynamic as kd

TRAINING, VALIDATION = 20000, 5000
DEFAULT = 0.3  # the cost weight
COST_WEIGHTS = (0.1, 0.2, 0.3, 0.5, 1.0)


def build(hp, weights):
    """The network with its weights so far, and a selector that is new."""
    start = exit_selection.network()
    start.set_weights(weights)
    for name in ("exit_1", "exit_2"):
        start.get_layer(name).loss_weight = kd.tuning.loss_weight(hp, name)
    selector = kd.ExitSelector(
        3,
        estimator="gumbel_softmax",
        temperature=kd.tuning.temperature(hp, min_value=0.2),
        hidden_units=64,
        pooling="flatten",
        exit_costs="auto",
        prior_weight=exit_selection.SPREAD,
        cost_weight=kd.tuning.cost_weight(
            hp, "selector", min_value=0.03, max_value=3.0, default=DEFAULT
        ),
        name="selector",
    )
    features = layers.MaxPooling2D()(start.get_layer("first").output)
    model = kd.DynamicModel(start.input, start.outputs, selector=selector(features))
    steps = exit_selection.SECOND["epochs"] * (TRAINING // exit_selection.BATCH)
    rate = keras.optimizers.schedules.CosineDecay(exit_selection.SECOND["rate"], steps)
    model.compile(
        keras.optimizers.Adam(rate),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


def trained(make, values, seed, data):
    """The model with some values of the hyperparameters, others at their defaults."""
    keras.utils.set_random_seed(seed)
    hp = keras_tuner.HyperParameters()
    hp.values = dict(values)
    model = make(hp)
    epochs, size = exit_selection.SECOND["epochs"], exit_selection.BATCH
    model.fit(*data, batch_size=size, epochs=epochs, verbose=0)
    return model


def scores(model, images):
    found = model.evaluate_dynamic(*images, batch_size=500, verbose=0)
    return found["mean_cost"], found["accuracy"]


def interval(values):
    """Mean and half the width of its 95 % interval."""
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return f"{np.mean(values):+.3f} +- {half:.3f}"


def search(make, training, validation, budget, trials, directory):
    """Values of the best trial's hyperparameters."""
    hypermodel = kd.tuning.DynamicHyperModel(
        make,
        validation,  # a selector has no thresholds to calibrate
        validation,
        kd.tuning.AccuracyUnderBudget(budget),
        batch_size=500,
    )
    tuner = hypermodel.tuner("bayesian", max_trials=trials, directory=directory, seed=0)
    keras.utils.set_random_seed(0)
    epochs, size = exit_selection.SECOND["epochs"], exit_selection.BATCH
    tuner.search(*training, batch_size=size, epochs=epochs, verbose=0)
    print(kd.tuning.pareto(tuner))
    return tuner.get_best_hyperparameters(1)[0].values


def compare(make, best, training, test, seeds):
    """Both settings, trained anew with other seeds, on the test images."""
    print("seed  searched: cost, accuracy  default: cost, accuracy  at equal cost")
    plain, equal, costs = [], [], []
    for seed in range(1, seeds + 1):
        cost, accuracy = scores(trained(make, best, seed, training), test)
        curve = {}
        for weight in COST_WEIGHTS:
            values = {"selector_cost_weight": weight}
            curve[weight] = scores(trained(make, values, seed, training), test)
        own_cost, own_accuracy = curve[DEFAULT]
        there = np.interp(cost, *zip(*sorted(curve.values()), strict=True))
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
    parser.add_argument("--directory", default=None)
    arguments = parser.parse_args()
    (x, y), test = load_mnist()
    training = x[:TRAINING], y[:TRAINING]
    validation = x[-VALIDATION:], y[-VALIDATION:]
    keras.utils.set_random_seed(0)
    first = exit_selection.train(
        exit_selection.network(), *training, **exit_selection.FIRST
    )
    make = functools.partial(build, weights=first.get_weights())

    budget, accuracy = scores(trained(make, {}, 0, training), validation)
    print(f"default: mean cost {budget:.3f}, accuracy {accuracy:.4f} (validation)")
    with tempfile.TemporaryDirectory() as folder:
        directory = arguments.directory or folder
        best = search(make, training, validation, budget, arguments.trials, directory)
    print("best:", {name: round(value, 4) for name, value in best.items()})
    compare(make, best, training, test, arguments.seeds)


if __name__ == "__main__":
    main()
