"""Reliability diagrams: is an exit right as often as it says?"""

import dataclasses

import numpy as np
from matplotlib.ticker import PercentFormatter

from keras_dynamic.calibration import apply_temperature, expected_calibration_error
from keras_dynamic.calibration._probabilities import reliability_bins
from keras_dynamic.layers._checks import checked_bool, positive_integer
from keras_dynamic.models.calibrating import exit_scores, exits_under
from keras_dynamic.models.dense_answers import dense_answers
from keras_dynamic.plots._diagram import shortened
from keras_dynamic.plots._drawing import (
    TITLE_LENGTH,
    axes_in_row,
    check_model,
    color_of,
    units,
)

__all__ = ["Reliability", "ReliabilityBins", "reliability"]


@dataclasses.dataclass(frozen=True)
class ReliabilityBins:
    """The bins of one exit's answers, from the least confident up.

    Attributes:
        confidence: (bins,), mean of the largest probability.
        accuracy: (bins,), share of right answers.
        counts: (bins,), number of samples.
        error: float, `kd.calibration.expected_calibration_error`; `nan` for no
            samples.

    Example:

    ```python
    bins = kd.plots.ReliabilityBins(
        np.array([0.6, 0.9]), np.array([0.5, 1.0]), np.array([10, 10]), 0.1
    )
    print(bins.error)  # 0.1
    ```
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    counts: np.ndarray
    error: float


@dataclasses.dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy at every exit, before and after its temperature.

    Attributes:
        before, after: lists with one `ReliabilityBins` an exit.
        temperatures: (exits,), the model's calibration temperatures.
        exit_names: names of all exits.

    Example:

    ```python
    bins = kd.plots.ReliabilityBins(
        np.array([0.6, 0.9]), np.array([0.5, 1.0]), np.array([10, 10]), 0.1
    )
    axes = kd.plots.Reliability([bins], [bins], np.ones(1), ["final"]).plot()
    ```
    """

    before: list
    after: list
    temperatures: np.ndarray
    exit_names: list

    def plot(self, axes=None):
        """Draws accuracy against confidence; on the diagonal an exit is honest.

        Args:
            axes: array of matplotlib `Axes`, one an exit, or `None` for new ones in
                one row.

        Returns:
            The array of `Axes`.
        """
        axes = axes_in_row(axes, len(self.exit_names), 3.2, 3.4, sharey=True)
        low = self._lowest()
        for ax, before, after, temperature, name in zip(
            axes,
            self.before,
            self.after,
            self.temperatures,
            self.exit_names,
            strict=True,
        ):
            title = shortened(name, TITLE_LENGTH)
            ax.plot([0, 1], [0, 1], color="0.6", linestyle=":")
            if before.counts.size:
                _draw_bins(ax, before, "T = 1", marker="s", linestyle="--", color="0.4")
                label = f"T = {temperature:.2f}"
                style = {"marker": "o", "color": color_of(4)}
                _draw_bins(ax, after, label, linestyle="-", **style)
                ax.legend(loc="best", fontsize="small")
                title += f"\n{_sizes(before.counts)}"
            else:
                ax.text(0.5, 0.5, "no samples", ha="center", transform=ax.transAxes)
            ax.set(xlim=(low, 1.01), ylim=(low, 1.01), xlabel="confidence")
            ax.set_title(title, fontsize="medium")
            ax.xaxis.set_major_formatter(PercentFormatter(1))
            ax.yaxis.set_major_formatter(PercentFormatter(1))
        axes[0].set_ylabel("accuracy")
        return axes

    def _lowest(self):
        """Where all axes begin: below all points, at a whole tenth."""
        points = [
            part
            for bins in (*self.before, *self.after)
            for part in (bins.confidence, bins.accuracy)
        ]
        low = np.concatenate(points).min(initial=1.0)
        return max(0, np.floor(10 * low - 0.5)) / 10 - 0.01


def reliability(model, x, y=None, num_bins=15, reached_only=False, batch_size=None):
    """Is each exit right as often as it says, before and after its temperature?

    Samples are sorted by confidence, the largest probability, and cut into bins of
    equal numbers, those of `kd.calibration.expected_calibration_error`. So a bin is
    nowhere almost empty, and is wide where few samples are.

    Args:
        model: a `kd.DynamicModel`.
        x, y: data and labels as in `DynamicModel.calibrate`, other than those that the
            temperatures were fitted on.
        num_bins: int >= 1. Defaults to 15.
        reached_only: bool, whether an exit counts only the samples that have not left
            before it under the rule in force. Defaults to `False`, all of them at
            every exit.
        batch_size: int or `None` (32).

    Returns:
        A `Reliability`.

    Raises:
        TypeError: if `model` is no `DynamicModel`.
        ValueError: for data that `calibrate` refuses, or `num_bins` below 1.

    Example:

    ```python
    inputs = keras.Input((4,))
    h = keras.layers.Dense(8, "relu")(inputs)
    outputs = [kd.EarlyExit(2)(inputs), keras.layers.Dense(2, "softmax")(h)]
    model = kd.DynamicModel(inputs, outputs)
    x, y = np.random.default_rng(0).normal(size=(90, 4)), np.arange(90) % 2
    axes = kd.plots.reliability(model, x, y).plot()
    ```

    Reference:
        Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks",
        ICML 2017. They cut [0, 1] into bins of equal widths.
    """
    check_model(model)
    num_bins = positive_integer("num_bins", num_bins)
    checked_bool("reached_only", reached_only)
    rule = model.exit_rule
    answers = dense_answers(model, x, y, batch_size, None, rule)
    temperatures = np.asarray(model.calibration_temperatures)
    taken = answers.selected
    if taken is None:
        scores = exit_scores(rule, answers.outputs, model.road.kinds, temperatures)
        taken = exits_under(rule, scores[:-1], len(answers.labels))
    before, after = [], []
    for index, (log, temperature) in enumerate(
        zip(answers.logs, temperatures, strict=True)
    ):
        rows = taken >= index if reached_only else slice(None)
        for found, value in ((before, 1.0), (after, float(temperature))):
            probabilities = apply_temperature(log[rows], value)
            found.append(_bins(probabilities, answers.labels[rows], num_bins))
    return Reliability(before, after, temperatures, model.exit_names)


def _bins(probabilities, labels, num_bins):
    error = expected_calibration_error(probabilities, labels, num_bins)
    return ReliabilityBins(*reliability_bins(probabilities, labels, num_bins), error)


def _draw_bins(ax, bins, label, **style):
    ax.plot(
        bins.confidence,
        bins.accuracy,
        markersize=4,
        label=f"{label}: ECE {bins.error:.3f}",
        **style,
    )


def _sizes(counts):
    low, high = counts.min(), counts.max()
    size = units(high, "sample")
    size = size if low == high else f"{low:,} or {size}"
    return f"{units(len(counts), 'bin')} of {size}"
