"""A selector that learns where to leave, on MNIST: cost, prior, entropy, rivals.

A small network, whose exits cost about 4, 26 and 100 % of the plain one, is trained for
three epochs on 20,000 images. From there it goes on for two epochs, with a selector, in
every case below from the same weights: trunk, exits and selector are trained together.

(a) Six values of `cost_weight`: the mean cost follows them (Spearman's correlation),
    from near the first exit's to near the last exit's.
(b) `prior_weight`: the rates at which exits are chosen, against the prior asked for.
    The term constrains mean *probabilities*, while the largest probability decides
    what is run, so that several ways of training are shown.
(c) The accuracy of the mixture that is trained and of the answer that is selected,
    without and with `entropy_weight`.
(d) Three seeds, two cost weights: the selector; the layer-wise one, whose gates see the
    exits' own answers; and the same network trained as long without either, under the
    calibrated rule of the largest probability. The rule is calibrated on 10,000
    held-out images for a row of budgets, and its accuracy read off at the very mean
    cost of the selector, linearly between the two budgets around it (which is what
    tossing a coin between them would give).

A softmax that is nearly one-hot hardly learns, and a selector that begins so gives
every sample one exit. Two things keep it open: `temperature=4`, by which it begins
undecided, and but for (b) a small `prior_weight` to the uniform prior.

All settings were chosen on 10,000 training images that nothing is trained or calibrated
on, `--images choosing`; the test images give the figures.

    python benchmarks/exit_selection.py [--parts abcd] [--images test] \
        [--json FILE]
"""

import argparse
import statistics

import keras
import numpy as np
import record
from data import load_mnist
from keras import layers
from scipy.stats import spearmanr

import keras_dynamic as kd

TRAINING, HELD_OUT = 20000, 10000
BATCH, SEEDS = 128, (0, 1, 2)
FIRST, SECOND = {"epochs": 3, "rate": 3e-3}, {"epochs": 2, "rate": 1e-3}
COST_WEIGHTS = (0.001, 0.1, 0.2, 0.4, 1.8, 4.0)
BUDGETS = (0.06, 0.09, 0.12, 0.16, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7)
SPREAD = 0.05  # the prior_weight of (a), (c) and (d)
PRIOR = (0.5, 0.3, 0.2)


def network():
    """Three exits of about 4, 26 and 100 % of the cost."""
    inputs = keras.Input((28, 28, 1))
    x = layers.Conv2D(8, 5, 2, padding="same", activation="relu", name="first")(inputs)
    exit_1 = kd.EarlyExit(10, pooling="average", grid=4, name="exit_1")(x)
    x = layers.Conv2D(16, 3, 2, padding="same", activation="relu")(x)
    x = layers.Conv2D(24, 3, padding="same", activation="relu")(x)
    exit_2 = kd.EarlyExit(10, pooling="average", grid=2, name="exit_2")(x)
    x = layers.Conv2D(32, 3, padding="same", activation="relu")(x)
    x = layers.Conv2D(32, 3, padding="same", activation="relu")(x)
    x = layers.Flatten()(layers.MaxPooling2D()(x))
    final = layers.Dense(10, activation="softmax", name="final")(x)
    return kd.DynamicModel(inputs, [exit_1, exit_2, final])


def train(model, x, y, epochs, rate):
    rate = keras.optimizers.schedules.CosineDecay(rate, epochs * (len(x) // BATCH))
    model.compile(
        keras.optimizers.Adam(rate),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    model.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=0)
    return model


class Experiment:
    """The data, and a network trained for the first epochs, to go on from."""

    def __init__(self, images, seed=0):
        (x, y), test = load_mnist()
        self.training = x[:TRAINING], y[:TRAINING]
        self.calibration = x[-HELD_OUT:], y[-HELD_OUT:]
        choosing = slice(TRAINING, TRAINING + HELD_OUT)
        self.images = test if images == "test" else (x[choosing], y[choosing])
        self.rows = []  # raw results
        self.start_from(seed)

    def start_from(self, seed):
        keras.utils.set_random_seed(seed)
        self.seed = seed
        self.network = train(network(), *self.training, **FIRST)
        self.weights = self.network.get_weights()

    def with_selector(self, layerwise=False, **arguments):
        """The network after its last epochs, which it had with a selector."""
        self.network.set_weights(self.weights)
        keras.utils.set_random_seed(self.seed)
        arguments |= {"temperature": 4.0, "hidden_units": 64, "exit_costs": "auto"}
        if layerwise:
            # Sorted, so that a gate sees how sure an exit is and need not learn it.
            answers = [keras.ops.sort(y) for y in self.network.outputs[:-1]]
            weights = kd.LayerwiseSelector(**arguments)(answers)
        else:
            features = layers.MaxPooling2D()(self.network.get_layer("first").output)
            weights = kd.ExitSelector(3, pooling="flatten", **arguments)(features)
        model = kd.DynamicModel(
            self.network.input, self.network.outputs, selector=weights
        )
        return train(model, *self.training, **SECOND)

    def without_selector(self):
        self.network.set_weights(self.weights)
        keras.utils.set_random_seed(self.seed)
        return train(self.network, *self.training, **SECOND)

    def note(self, part, cost_weight, scores, **others):
        rates = {f"rate_{k}": rate for k, rate in enumerate(scores["exit_rates"])}
        numbers = {name: scores[name] for name in ("mean_cost", "accuracy")}
        row = {"part": part, "cost_weight": cost_weight, **others, **numbers, **rates}
        self.rows.append(row)

    def scores(self, model):
        return model.evaluate_dynamic(*self.images, batch_size=500, verbose=0)


def percent(rates):
    return " / ".join(f"{100 * rate:4.1f}" for rate in rates)


def sweep_of_cost_weights(experiment):
    print("(a) cost_weight  mean cost  accuracy   exit rates (%)")
    costs = []
    for weight in COST_WEIGHTS:
        model = experiment.with_selector(cost_weight=weight, prior_weight=SPREAD)
        scores = experiment.scores(model)
        costs.append(scores["mean_cost"])
        experiment.note("a", weight, scores)
        print(
            f"    {weight:11.3f}  {scores['mean_cost']:9.3f}  {scores['accuracy']:.4f}"
            f"     {percent(scores['exit_rates'])}",
            flush=True,
        )
    shares = model.compute_costs().shares()
    print("    leaving at each exit costs", " / ".join(f"{s:.3f}" for s in shares))
    exits = model.evaluate(*experiment.images, verbose=0, return_dict=True)
    print(
        "    accuracy of each exit:",
        " / ".join(f"{exits[f'{e}_accuracy']:.4f}" for e in model.exit_names),
    )
    correlation = spearmanr(COST_WEIGHTS, costs).statistic
    print(f"    Spearman's correlation, absolute value: {abs(correlation):.3f}")
    experiment.rows.append({"part": "a", "spearman": correlation})


def rates_under_a_prior(experiment):
    print(f"(b) prior_weight 4, prior {percent(PRIOR)} %")
    header = "exit rates (%)      farthest (points)  accuracy"
    print(f"    {'':36s}  {header}")
    for arguments in (
        {},
        {"estimator": "gumbel_straight_through"},
        {"entropy_weight": 0.6},
    ):
        model = experiment.with_selector(prior=PRIOR, prior_weight=4.0, **arguments)
        scores = experiment.scores(model)
        rates = scores["exit_rates"]
        farthest = max(abs(r - p) for r, p in zip(rates, PRIOR, strict=True))
        settings = ", ".join(f"{name} {value}" for name, value in arguments.items())
        experiment.note("b", 0.0, scores, setting=settings or "soft", farthest=farthest)
        print(
            f"    {settings or 'soft':36s}  {percent(rates)}  {100 * farthest:17.1f}"
            f"  {scores['accuracy']:.4f}",
            flush=True,
        )


def gap_of_soft_and_hard(experiment):
    print("(c) entropy_weight  mixture  selected  gap (points)  mean cost")
    for weight in (0.0, 0.1, 0.3):
        model = experiment.with_selector(
            cost_weight=0.4, prior_weight=SPREAD, entropy_weight=weight
        )
        exits = model.evaluate(*experiment.images, verbose=0, return_dict=True)
        soft, hard = exits["mixture_accuracy"], exits["accuracy"]
        scores = experiment.scores(model)
        cost = scores["mean_cost"]
        experiment.note("c", 0.4, scores, entropy_weight=weight, mixture=soft)
        print(
            f"    {weight:14.2f}  {soft:.4f}   {hard:.4f}  {100 * (soft - hard):12.2f}"
            f"  {cost:9.3f}",
            flush=True,
        )


def selectors_against_threshold(experiment):
    print("(d) seed  cost_weight  selector    mean cost  accuracy  threshold's there")
    found = {}
    for seed in SEEDS:
        experiment.start_from(seed)
        rows = []
        for layerwise in (False, True):
            for weight in (0.15, 0.4):
                model = experiment.with_selector(
                    layerwise, cost_weight=weight, prior_weight=SPREAD
                )
                rows.append((layerwise, weight, experiment.scores(model)))
        threshold = threshold_curve(experiment)
        for layerwise, weight, scores in rows:
            cost, accuracy = scores["mean_cost"], scores["accuracy"]
            ruled = np.interp(cost, *threshold)
            name = "layer-wise" if layerwise else "at once"
            found.setdefault((name, weight), []).append((cost, accuracy, ruled))
            print(
                f"    {seed:4d}  {weight:11.2f}  {name:10s}  {cost:9.3f}  "
                f"{accuracy:8.4f}  {ruled:17.4f}",
                flush=True,
            )
    for (name, weight), each in found.items():
        costs, accuracies, ruled = np.transpose(each)
        values = list(100 * (accuracies - ruled))
        experiment.rows.append(
            {
                "part": "d",
                "selector": name,
                "cost_weight": weight,
                "mean_cost": costs,
                "accuracy": accuracies,
                "accuracy_threshold": ruled,
                "points": values,
            }
        )
        print(
            f"    {name} - threshold at {weight}: {statistics.mean(values):+.2f} "
            f"points (standard deviation {statistics.stdev(values):.2f})"
        )


def threshold_curve(experiment):
    """(mean costs, accuracies) of the calibrated rule, costs ascending."""
    rival, points = experiment.without_selector(), []
    for budget in BUDGETS:
        rival.calibrate(*experiment.calibration, budget=budget)
        scores = experiment.scores(rival)
        points.append((scores["mean_cost"], scores["accuracy"]))
    return tuple(zip(*sorted(points), strict=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", default="abcd")
    parser.add_argument("--images", default="test", choices=["test", "choosing"])
    record.add_option(parser)
    arguments = parser.parse_args()
    experiment = Experiment(arguments.images)
    for part, show in {
        "a": sweep_of_cost_weights,
        "b": rates_under_a_prior,
        "c": gap_of_soft_and_hard,
        "d": selectors_against_threshold,
    }.items():
        if part in arguments.parts:
            show(experiment)
    record.write(arguments.json, experiment.rows, SEEDS)


if __name__ == "__main__":
    main()
