"""Promised accuracy drops: how often a promise is broken, and what it costs.

(a) Coverage. A population of 200,000 simulated predictions of a network with two early
    exits, whose scores tell easy from hard but imperfectly. 1,000 times 2,000 rows are
    drawn and thresholds calibrated on them; how much they really lose is counted on the
    whole population. With a confidence of 0.95, at most 5 % of the promises may be
    broken. Compared: the step of the path behind the one that was certified, and the
    third behind it; the cheapest step that loses no more than the drop on the rows
    that certify, by count; and thresholds chosen by `max_accuracy_drop` alone, whose
    margin is one standard error.
(b) Power. A small convolutional network with two early exits, trained on 50,000 images
    of MNIST. 2,000 of the other 10,000 training images are drawn twenty times to
    certify a drop of at most 0.01; mean cost and drop are those on the test images.

    python benchmarks/certificates.py [--parts ab]
"""

import argparse

import keras
import numpy as np
from data import load_mnist
from exit_selection import network
from scipy.stats import binomtest

import keras_dynamic as kd
from keras_dynamic.models.certifying import split_rows

CONFIDENCE = 0.95
POPULATION, CALIBRATIONS, ROWS = 200000, 1000, 2000
COSTS = np.array([0.25, 0.6, 1.1])
DROPS = (0.01, 0.02, 0.05)

TRAINING, BATCH, EPOCHS = 50000, 128, 4
DRAWS, POWER_DROP = 20, 0.01


class Population:
    """Scores and answers at two early exits and a final one."""

    def __init__(self, seed=0):
        generator = np.random.default_rng(seed)
        difficulty = generator.normal(size=POPULATION)
        self.scores, correct = [], []
        for skill in (0.8, 1.6, 2.6):
            lead = skill - difficulty + 0.6 * generator.normal(size=POPULATION)
            right = 1 / (1 + np.exp(-3 * lead))
            noise = 0.3 * generator.normal(size=POPULATION)
            self.scores.append((1 / (1 + np.exp(-3 * (lead + noise)))).astype("f4"))
            correct.append(generator.random(POPULATION) < right)
        self.scores = self.scores[:-1]
        self.correct = np.stack(correct, axis=1)

    def true_risk_and_drop(self, thresholds):
        right = answers_right(self.scores, self.correct, thresholds)
        final = self.correct[:, -1]
        return np.mean(final & ~right), np.mean(final) - np.mean(right)


def answers_right(scores, correct, thresholds):
    taken = kd.calibration.exit_indices(
        [score > limit for score, limit in zip(scores, thresholds, strict=True)]
    )
    return correct[np.arange(len(correct)), taken]


def candidates_of(scores):
    """For each exit the thresholds to try, closed and open ones first, and who leaves.

    What `calibrate` asks a rule for; here the rule leaves above a threshold.
    """
    tried = [
        np.concatenate([[np.inf, 0.0], kd.calibration.candidate_thresholds(score)])
        for score in scores
    ]
    return tried, [
        score[:, None] > limits for score, limits in zip(scores, tried, strict=True)
    ]


def along_a_path(scores, correct, drop):
    """Thresholds certified, bolder ones of the path; `None` where there are none."""
    chooses, certifies = split_rows(len(correct))
    tried, leaves = candidates_of([score[chooses] for score in scores])
    path = [
        [limits[column] for limits, column in zip(tried, columns, strict=True)]
        for columns in kd.calibration.risk_path(leaves, correct[chooses], COSTS, drop)
    ]
    scores, correct = [score[certifies] for score in scores], correct[certifies]
    lost = [
        correct[:, -1] & ~answers_right(scores, correct, thresholds)
        for thresholds in path
    ]
    passed, _ = kd.calibration.certify(np.stack(lost, axis=1), drop, CONFIDENCE)
    count = max((i for i, each in enumerate(lost) if each.mean() <= drop), default=-1)
    numbers = {
        "certified": passed - 1,
        "one step further": passed,
        "three steps further": passed + 2,
        "by count": count,
    }
    return {
        name: path[number] if 0 <= number < len(path) else None
        for name, number in numbers.items()
    }


def chosen_without_certificate(scores, correct, drop):
    tried, leaves = candidates_of(scores)
    choice = kd.calibration.choose_thresholds(
        leaves, correct, COSTS, max_accuracy_drop=drop, standard_errors=1.0
    )
    return [limits[c] for limits, c in zip(tried, choice.columns, strict=True)]


def coverage():
    population = Population()
    print(
        "(a) accuracy of the exits:",
        " / ".join(f"{a:.4f}" for a in population.correct.mean(axis=0)),
    )
    print("    drop   thresholds            none  exceeded (95 % interval)  mean drop")
    for drop in DROPS:
        risks, drops, none = {}, {}, {}
        generator = np.random.default_rng(1)
        for _ in range(CALIBRATIONS):
            rows = generator.integers(POPULATION, size=ROWS)
            scores = [score[rows] for score in population.scores]
            correct = population.correct[rows]
            chosen = along_a_path(scores, correct, drop)
            chosen["no certificate"] = chosen_without_certificate(scores, correct, drop)
            for name, thresholds in chosen.items():
                none[name] = none.get(name, 0) + (thresholds is None)
                if thresholds is None:
                    continue
                risk, lost = population.true_risk_and_drop(thresholds)
                # Without a certificate the goal is the drop, not the risk.
                bounded = lost if name == "no certificate" else risk
                risks.setdefault(name, []).append(bounded)
                drops.setdefault(name, []).append(lost)
        for name, values in risks.items():
            exceeded = int(np.sum(np.array(values) > drop))
            interval = binomtest(exceeded, CALIBRATIONS).proportion_ci()
            print(
                f"    {drop:.2f}   {name:19s}  {none[name]:5d}  "
                f"{100 * exceeded / CALIBRATIONS:6.1f} % ({100 * interval.low:.1f} to "
                f"{100 * interval.high:.1f}) {np.mean(drops[name]):15.4f}",
                flush=True,
            )


def power():
    keras.utils.set_random_seed(0)
    (x, y), test = load_mnist()
    model = network()
    rate = keras.optimizers.schedules.CosineDecay(3e-3, EPOCHS * (TRAINING // BATCH))
    model.compile(
        keras.optimizers.Adam(rate),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    model.fit(x[:TRAINING], y[:TRAINING], batch_size=BATCH, epochs=EPOCHS, verbose=0)
    accuracy = [
        np.mean(output.argmax(axis=1) == test[1])
        for output in model.predict(test[0], batch_size=500, verbose=0)
    ]
    print("(b) test accuracy of the exits:", " / ".join(f"{a:.4f}" for a in accuracy))
    generator = np.random.default_rng(0)
    rows = []
    for _ in range(DRAWS):
        drawn = TRAINING + generator.permutation(len(x) - TRAINING)[:ROWS]
        report = model.calibrate(
            x[drawn],
            y[drawn],
            max_accuracy_drop=POWER_DROP,
            risk_confidence=CONFIDENCE,
            batch_size=500,
        )
        scores = model.evaluate_dynamic(*test, batch_size=500, verbose=0)
        certificate = report.certificate
        rows.append(
            (
                certificate.step is not None,
                scores["mean_cost"],
                accuracy[-1] - scores["accuracy"],
            )
        )
    certified, costs, drops = map(np.array, zip(*rows, strict=True))
    print(f"    {ROWS} rows, drop {POWER_DROP}: {certified.sum()} of {DRAWS} certified")
    print(
        f"    mean cost on the test images: {costs.mean():.3f} on average, from "
        f"{costs.min():.3f} to {costs.max():.3f}"
    )
    print(
        f"    accuracy drop there: {drops.mean():.4f} on average, at most "
        f"{drops.max():.4f}"
    )
    print(report)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", default="ab")
    arguments = parser.parse_args()
    for part, show in {"a": coverage, "b": power}.items():
        if part in arguments.parts:
            show()


if __name__ == "__main__":
    main()
