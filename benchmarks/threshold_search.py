"""The search for thresholds, against greedy choice one exit at a time.

The rival begins with all exits closed and sets one exit after the other to the best of
its candidates, round after round, until no single exit improves the goal. Goals are six
budgets, and four drops of accuracy with a margin of one standard error; the figures are
those on the samples given to the search, which it has to be best on. A second table
shows what the same thresholds do on other samples.

Data: predictions simulated for 2 to 5 early exits, ten draws of 2,000 samples each; and
those of a small convolutional network with four early exits, trained on 20,000 images
of MNIST, on ten draws of 2,000 from the other 40,000, with the test images as the other
samples.

    python benchmarks/threshold_search.py
"""

import math
import time

import keras
import numpy as np
from data import load_mnist
from keras import layers

import keras_dynamic as kd

DRAWS, ROWS, OTHERS = 10, 2000, 50000
BUDGETS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
DROPS = (0.005, 0.01, 0.02, 0.04)
TRAINING, BATCH, EPOCHS = 20000, 128, 2


class Data:
    """Scores at the early exits, answers at all exits, and the costs of leaving."""

    def __init__(self, scores, correct, costs):
        self.scores, self.correct, self.costs = scores, correct, costs

    def rows(self, index):
        scores = [score[index] for score in self.scores]
        return Data(scores, self.correct[index], self.costs)

    def outcome(self, thresholds):
        """(right answers less one standard error of the loss, mean cost, accuracy)."""
        taken = kd.calibration.exit_indices(
            [
                score > limit
                for score, limit in zip(self.scores, thresholds, strict=True)
            ]
        )
        right = self.correct[np.arange(len(taken)), taken]
        final = self.correct[:, -1]
        lost = np.sum(final) - np.sum(right)
        variance = np.sum(final != right) - lost**2 / len(taken)
        kept = np.sum(right) - math.sqrt(max(variance, 0))
        return kept, np.mean(self.costs[taken]), np.mean(right)


def simulated(num_early, num_rows, seed):
    generator = np.random.default_rng(seed)
    difficulty = generator.normal(size=num_rows)
    scores, correct = [], []
    for skill in np.linspace(0.5, 2.5, num_early + 1):
        lead = skill - difficulty + 0.7 * generator.normal(size=num_rows)
        right = 0.1 + 0.9 / (1 + np.exp(-2 * lead))
        noise = 0.3 * generator.normal(size=num_rows)
        scores.append((1 / (1 + np.exp(-2 * (lead + noise)))).astype("float32"))
        correct.append(generator.random(num_rows) < right)
    costs = np.linspace(1 / (num_early + 1), 1.1, num_early + 1)
    return Data(scores[:-1], np.stack(correct, axis=1), costs)


def mnist_network():
    inputs = keras.Input((28, 28, 1))
    x, outputs = inputs, []
    for number, (filters, strides) in enumerate([(8, 2), (16, 2), (24, 1), (32, 1)]):
        x = layers.Conv2D(filters, 3, strides, padding="same", activation="relu")(x)
        name = f"exit_{number + 1}"
        outputs.append(kd.EarlyExit(10, pooling="average", grid=2, name=name)(x))
    x = layers.Conv2D(48, 3, padding="same", activation="relu")(x)
    x = layers.Flatten()(layers.MaxPooling2D()(x))
    outputs.append(layers.Dense(10, activation="softmax", name="final")(x))
    return kd.DynamicModel(inputs, outputs)


def mnist():
    """(data to draw from, the other data)"""
    keras.utils.set_random_seed(0)
    (x, y), test = load_mnist()
    model = mnist_network()
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(x[:TRAINING], y[:TRAINING], batch_size=BATCH, epochs=EPOCHS, verbose=0)
    costs = np.array(model.compute_costs().shares())
    found = []
    for images, labels in ((x[TRAINING:], y[TRAINING:]), test):
        outputs = model.predict(images, batch_size=500, verbose=0)
        correct = [output.argmax(axis=1) == labels for output in outputs]
        scores = [output.max(axis=1) for output in outputs[:-1]]
        found.append(Data(scores, np.stack(correct, axis=1), costs))
    return found


def candidates_of(scores):
    return [
        np.concatenate([[np.inf, 0.0], kd.calibration.candidate_thresholds(score)])
        for score in scores
    ]


def key_of(data, goal, aim):
    """What makes thresholds better, the lesser first: misses of the goal last."""
    allowed = math.floor(aim * len(data.correct) + 1e-9)

    def key(thresholds):
        kept, mean_cost, accuracy = data.outcome(thresholds)
        if goal == "budget":
            missed = mean_cost > aim * (1 + 1e-9)
            return (missed, *((mean_cost,) if missed else (-accuracy, mean_cost)))
        closed = all(limit == np.inf for limit in thresholds)
        missed = kept < np.sum(data.correct[:, -1]) - allowed and not closed
        return (missed, *((-kept,) if missed else (mean_cost, -accuracy)))

    return key


def greedy(data, goal, aim):
    tried, key = candidates_of(data.scores), key_of(data, goal, aim)
    now = [np.inf] * len(tried)
    improved = True
    while improved:
        improved = False
        for exit_index, limits in enumerate(tried):
            options = [[*now[:exit_index], v, *now[exit_index + 1 :]] for v in limits]
            best = min(options, key=key)
            if key(best) < key(now):
                now, improved = best, True
    return now


def searched(data, goal, aim):
    tried = candidates_of(data.scores)
    leaves = [
        score[:, None] > limits
        for score, limits in zip(data.scores, tried, strict=True)
    ]
    errors = 0.0 if goal == "budget" else 1.0
    choice = kd.calibration.choose_thresholds(
        leaves, data.correct, data.costs, **{goal: aim}, standard_errors=errors
    )
    return [limits[c] for limits, c in zip(tried, choice.columns, strict=True)]


def compare(name, draws, others):
    for goal, aims in (("budget", BUDGETS), ("max_accuracy_drop", DROPS)):
        gains, elsewhere, seconds = [], [], 0.0
        for data, other in zip(draws, others, strict=True):
            for aim in aims:
                if goal == "budget" and aim < np.min(data.costs):
                    continue
                rival = greedy(data, goal, aim)
                start = time.perf_counter()
                found = searched(data, goal, aim)
                seconds += time.perf_counter() - start
                column = 2 if goal == "budget" else 1
                sign = 100 if goal == "budget" else -1

                def gain(where, found=found, rival=rival, column=column, sign=sign):
                    one, two = where.outcome(found), where.outcome(rival)
                    return sign * (one[column] - two[column])

                gains.append(gain(data))
                elsewhere.append((gain(other), other.outcome(found)[2]))
        gains, moved = np.array(gains), np.array(elsewhere)[:, 0]
        unit = "points of accuracy" if goal == "budget" else "of the cost"
        print(
            f"{name:18s} {goal:17s} better {np.mean(gains > 1e-9):4.0%}, worse "
            f"{np.mean(gains < -1e-9):3.0%}; by {gains.mean():.4f} {unit} on average, "
            f"{gains.max():.4f} at most; elsewhere {moved.mean():+.4f}; "
            f"{seconds / len(gains):.3f} s",
            flush=True,
        )


def main():
    for num_early in (2, 3, 4, 5):
        draws = [simulated(num_early, ROWS, seed) for seed in range(DRAWS)]
        other = simulated(num_early, OTHERS, DRAWS)
        compare(f"simulated, {num_early} exits", draws, [other] * DRAWS)
    pool, test = mnist()
    generator = np.random.default_rng(0)
    rows = [generator.permutation(len(pool.correct))[:ROWS] for _ in range(DRAWS)]
    compare("MNIST, 4 exits", [pool.rows(each) for each in rows], [test] * DRAWS)


if __name__ == "__main__":
    main()
