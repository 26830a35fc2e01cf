"""Bias and spread of the gradient estimators, against the exact gradient.

One of five categories is drawn with fixed logits; the objective is the expectation of a
function of its one-hot vector z. With five categories it can be enumerated, and with it
the gradient by the logits: p_k (f(e_k) - E f). Two functions with random coefficients,
a quadratic one, z' A z / 2 + b' z, and a cubic one, which has sum_k c_k z_k^3 besides.
For each estimator and temperature, and for each seed of the functions,

    bias       |mean of the sampled gradients - exact gradient| / |exact gradient|
    error      what of it chance alone would give: the standard error of that mean
    deviation  the standard deviation of one sampled gradient, over |exact gradient|

A bias no larger than its error cannot be told from none. "soft" and "straight_through"
draw nothing: they have no spread, and their bias stays.

    python benchmarks/estimators.py [--draws 100000] [--seeds 0 1 2 3 4] [--json FILE]
"""

import argparse

import numpy as np
import record
import tensorflow as tf
from scipy import special

from keras_dynamic.ops.estimators import SAMPLING_ESTIMATORS, categorical

CATEGORIES = 5
TEMPERATURES = {
    "soft": (1.0, 0.5, 0.1),
    "straight_through": (1.0, 0.5, 0.1),
    "gumbel_softmax": (1.0, 0.5, 0.1),
    "gumbel_straight_through": (1.0, 0.5, 0.1),
    "reinmax": (1.0, 1.5, 2.0),
}
NAMES = ("bias", "error", "deviation")


class Problem:
    """A function of a one-hot vector, and logits, with random coefficients.

    Args:
        seed: int.
        is_cubic: bool, whether there is a cubic term.
    """

    def __init__(self, seed, is_cubic):
        rng = np.random.default_rng(seed)
        matrix = rng.normal(size=(CATEGORIES, CATEGORIES)).astype("float32")
        self.matrix = matrix + matrix.T
        self.slopes, cubes, self.logits = rng.normal(size=(3, CATEGORIES)).astype(
            "float32"
        )
        self.cubes = cubes * np.float32(is_cubic)

    def values(self, z):
        """(rows,) f of the rows of z."""
        terms = (z @ self.matrix) * z / 2 + self.slopes * z + self.cubes * z**3
        return tf.reduce_sum(terms, axis=-1)

    def exact_gradient(self):
        values = self.values(np.eye(CATEGORIES, dtype="float32")).numpy()
        probabilities = special.softmax(self.logits.astype("float64"))
        return probabilities * (values - probabilities @ values)

    def sampled_gradients(self, estimator, temperature, draws, seed):
        """(draws, CATEGORIES)."""
        logits = tf.tile(self.logits[None], (draws, 1))
        with tf.GradientTape() as tape:
            tape.watch(logits)
            seeds = tf.constant([seed, 1])
            z = categorical(logits, estimator, temperature, seed=seeds, training=True)
            total = tf.reduce_sum(self.values(z))
        return tape.gradient(total, logits).numpy().astype("float64")


def figures(problem, estimator, temperature, draws, seed):
    """(bias, error, deviation), as shares of the exact gradient's length."""
    draws = draws if estimator in SAMPLING_ESTIMATORS else 1
    samples = problem.sampled_gradients(estimator, temperature, draws, seed)
    exact = problem.exact_gradient()
    bias = np.linalg.norm(samples.mean(axis=0) - exact)
    deviation = np.sqrt(samples.var(axis=0).sum())
    error = deviation / np.sqrt(draws)
    return np.array([bias, error, deviation]) / np.linalg.norm(exact)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=100_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    record.add_option(parser)
    arguments = parser.parse_args()
    rows = []
    print(
        "means over the seeds   estimator                tau   bias  error  deviation"
    )
    for is_cubic in (False, True):
        name = "cubic" if is_cubic else "quadratic"
        for estimator, temperatures in TEMPERATURES.items():
            for temperature in temperatures:
                each = [
                    figures(
                        Problem(seed, is_cubic),
                        estimator,
                        temperature,
                        arguments.draws,
                        seed,
                    )
                    for seed in arguments.seeds
                ]
                row = {"function": name, "estimator": estimator, "tau": temperature}
                rows.append(
                    row | dict(zip(NAMES, np.transpose(each).tolist(), strict=True))
                )
                bias, error, deviation = np.mean(each, axis=0)
                print(
                    f"{name:22s} {estimator:24s} {temperature:3.1f}  "
                    f"{bias:6.3f} {error:6.3f} {deviation:9.2f}"
                )
    record.write(arguments.json, rows, arguments.seeds)


if __name__ == "__main__":
    main()
