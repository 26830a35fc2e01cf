"""Gumbel-Softmax samples of three categories, in the triangle that they live in."""

import dataclasses

import keras
import numpy as np
from matplotlib import pyplot

from keras_dynamic.layers._checks import numbers_in, positive_integer
from keras_dynamic.ops import estimators
from keras_dynamic.ops.seeds import replica_seed
from keras_dynamic.plots._drawing import color_of

__all__ = ["GumbelSimplex", "gumbel_simplex"]

# Corners of the triangle: two at the bottom, one on top.
_CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(0.75)]])


@dataclasses.dataclass(frozen=True)
class GumbelSimplex:
    """Samples of a choice of three at several temperatures.

    Attributes:
        samples: (temperatures, n, 3), each sums to 1; the noise is the same at all
            temperatures.
        temperatures: (temperatures,), tau.
        probabilities: (3,), with which a category is the largest.
        estimator: string, how the samples were made.

    Example:

    ```python
    samples = np.random.default_rng(0).dirichlet([1, 1, 1], size=(2, 50))
    axes = kd.plots.GumbelSimplex(
        samples, np.array([1.0, 0.5]), np.ones(3) / 3, "gumbel_softmax"
    ).plot()
    ```
    """

    samples: np.ndarray
    temperatures: np.ndarray
    probabilities: np.ndarray
    estimator: str

    def plot(self, axes=None, labels=("1", "2", "3")):
        """Draws a triangle for each temperature.

        The percentage at a corner is the share of the samples whose largest weight lies
        there, which the temperature does not change.

        Args:
            axes: array of matplotlib `Axes`, one a temperature, or `None` for new ones
                in one row.
            labels: three strings, the names of the categories. Defaults to numbers.

        Returns:
            The array of `Axes`.
        """
        count = len(self.temperatures)
        if len(labels) != 3:
            raise ValueError(
                f"`labels` must be three strings. Received: labels={labels!r}."
            )
        if axes is None:
            _, axes = pyplot.subplots(
                1,
                count,
                squeeze=False,
                figsize=(2.2 * count + 2.2, 2.6),
                layout="compressed",
            )
        axes = np.ravel(axes)
        if len(axes) != count:
            raise ValueError(
                f"`axes` must be as many as there are temperatures, {count}. Received: "
                f"{len(axes)}."
            )
        for ax, samples, tau in zip(axes, self.samples, self.temperatures, strict=True):
            self._plot_one(ax, samples, labels)
            ax.set_title(f"$\\tau$ = {tau:g}")
        axes[-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=9)
        return axes

    def _plot_one(self, ax, samples, labels):
        ax.fill(*_CORNERS.T, facecolor="none", edgecolor="0.4", linewidth=1, zorder=1)
        points = samples @ _CORNERS
        ax.scatter(
            *points.T, s=9, color=color_of(4), alpha=0.35, linewidths=0, label="samples"
        )
        marks = {"edgecolors": "black", "zorder": 3, "s": 70, "clip_on": False}
        mean = self.probabilities @ _CORNERS
        ax.scatter(*mean, marker="*", color=color_of(0), label="probabilities", **marks)
        marks["s"] = 36
        mean = points.mean(axis=0)
        ax.scatter(
            *mean, marker="D", color=color_of(2), label="mean of the samples", **marks
        )
        shares = np.bincount(samples.argmax(axis=1), minlength=3) / len(samples)
        places = (("center", "top", -0.05), ("center", "top", -0.05))
        places = (*places, ("center", "bottom", 0.04))
        for (x, y), label, share, (across, along, off) in zip(
            _CORNERS, labels, shares, places, strict=True
        ):
            text = f"{label}\n{100 * share:.0f} %"
            ax.text(x, y + off, text, ha=across, va=along, fontsize=9)
        ax.set(xlim=(-0.16, 1.16), ylim=(-0.27, 1.1), aspect="equal")
        ax.set_axis_off()


def gumbel_simplex(
    logits=None,
    probabilities=None,
    temperatures=(5.0, 1.0, 0.5, 0.1),
    num_samples=500,
    estimator="gumbel_softmax",
    seed=0,
):
    """What a temperature does to relaxed samples of three categories.

    At a high temperature all samples are nearly uniform; as it falls they go to the
    corners, where they are one-hot. The category that is the largest does not depend on
    it.

    Args:
        logits: three numbers; softmax(logits) are the categories' probabilities.
        probabilities: three numbers >= 0 that sum to 1, in place of the logits.
        temperatures: numbers > 0 (>= 1 for `"reinmax"`), one a panel. Defaults to
            (5, 1, 0.5, 0.1).
        num_samples: int >= 1, at each temperature. Defaults to 500.
        estimator: one that draws: `"gumbel_softmax"`, or the hard ones
            `"gumbel_straight_through"` and `"reinmax"`, whose samples lie in the
            corners at all temperatures. Defaults to `"gumbel_softmax"`.
        seed: int, of the noise. Defaults to 0.

    Returns:
        A `GumbelSimplex`.

    Raises:
        ValueError: for other than three categories, both or none of `logits` and
            `probabilities`, or a temperature, number or estimator out of its range.

    Example:

    ```python
    record = kd.plots.gumbel_simplex(probabilities=[0.6, 0.3, 0.1], num_samples=100)
    axes = record.plot(labels=("exit 1", "exit 2", "final"))
    ```

    Reference:
        Maddison, Mnih and Teh, "The Concrete Distribution: A Continuous Relaxation of
        Discrete Random Variables", ICLR 2017; Jang, Gu and Poole, "Categorical
        Reparameterization with Gumbel-Softmax", ICLR 2017.
    """
    logits = _three_logits(logits, probabilities)
    if estimator not in estimators.SAMPLING_ESTIMATORS:
        raise ValueError(
            f"`estimator` must be one of {estimators.SAMPLING_ESTIMATORS}, which draw. "
            f"Received: estimator={estimator!r}."
        )
    num_samples = positive_integer("num_samples", num_samples)
    given = [temperatures] if np.ndim(temperatures) == 0 else temperatures
    temperatures = np.array(numbers_in("temperatures", given), "float32")
    if not temperatures.size:
        raise ValueError(
            "`temperatures` must be numbers, at least one. Received: shape (0,)."
        )
    for tau in temperatures:
        estimators.check_temperature(
            float(tau), estimator, origin=" among the `temperatures`"
        )
    noise = replica_seed(keras.random.SeedGenerator(seed).next())
    rows = np.tile(logits, (num_samples, 1))
    samples = [
        np.asarray(
            estimators.categorical(
                rows, estimator, float(tau), seed=noise, training=True
            )
        )
        for tau in temperatures
    ]
    return GumbelSimplex(
        np.stack(samples),
        temperatures,
        np.asarray(estimators.categorical(logits, "soft")),
        estimator,
    )


def _three_logits(logits, probabilities):
    if (logits is None) == (probabilities is None):
        raise ValueError(
            "Give `logits` or `probabilities`, one of them. Received: "
            f"logits={logits!r}, probabilities={probabilities!r}."
        )
    name = "probabilities" if logits is None else "logits"
    values = numbers_in(name, probabilities if logits is None else logits)
    values = np.array(values, "float32")
    if values.shape != (3,):
        raise ValueError(
            f"`{name}` must be three numbers: there is no triangle for others. "
            f"Received: {name} of shape {values.shape}."
        )
    if name == "logits":
        # -inf is a probability of 0; the largest one is NaN if any is.
        if not np.isfinite(values.max()):
            raise ValueError(
                "`logits` must be numbers, -inf for at most two of them. Received: "
                f"logits={values.tolist()}."
            )
        return values
    if (values < 0).any() or not np.isclose(values.sum(), 1, atol=1e-4):
        raise ValueError(
            "`probabilities` must be >= 0 and sum to 1. Received: "
            f"probabilities={values.tolist()}."
        )
    return np.asarray(estimators.logits_from_probabilities(values))
