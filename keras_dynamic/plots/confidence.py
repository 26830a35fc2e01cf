"""Histograms of the confidence of every exit, right answers and wrong ones."""

import dataclasses

import numpy as np

from keras_dynamic.layers._checks import checked_bool, positive_integer
from keras_dynamic.models import rules
from keras_dynamic.models.calibrating import exit_scores, exits_under
from keras_dynamic.models.dense_answers import dense_answers
from keras_dynamic.plots._diagram import shortened
from keras_dynamic.plots._drawing import (
    TITLE_LENGTH,
    axes_in_row,
    check_model,
    color_of,
)

__all__ = ["ConfidenceHistograms", "confidence_histograms"]

_UNITS = {
    "Entropy": "entropy (nats)",
    "Margin": "margin",
    "MaxProbability": "largest probability",
    "Patience": "exits that agree",
}


@dataclasses.dataclass(frozen=True)
class ConfidenceHistograms:
    """How a rule scores right and wrong answers at every exit.

    Attributes:
        edges: (bins + 1,), edges of the bins of scores.
        right, wrong: (exits, bins), numbers of samples.
        thresholds: list with one threshold or `None` (closed) an early exit.
        leaves_below: bool, whether scores below the threshold leave.
        exit_names: names of all exits.
        rule: name of the rule's class.

    Example:

    ```python
    right, wrong = np.array([[2, 8], [1, 9]]), np.array([[3, 1], [0, 1]])
    record = kd.plots.ConfidenceHistograms(
        np.array([0, 0.5, 1]),
        right,
        wrong,
        thresholds=[0.7],
        leaves_below=False,
        exit_names=["exit_1", "final"],
        rule="Margin",
    )
    axes = record.plot()
    ```
    """

    edges: np.ndarray
    right: np.ndarray
    wrong: np.ndarray
    thresholds: list
    leaves_below: bool
    exit_names: list
    rule: str

    def plot(self, axes=None):
        """Draws for each exit the wrong answers, and the right ones on top of them.

        Args:
            axes: array of matplotlib `Axes`, one an exit, or `None` for new ones in
                one row.

        Returns:
            The array of `Axes`.
        """
        axes = axes_in_row(axes, len(self.exit_names), 3.2, 3.0)
        for index, (ax, name) in enumerate(zip(axes, self.exit_names, strict=True)):
            self._plot_one(ax, index)
            ax.set_xlabel(_UNITS.get(self.rule, f"score of {self.rule}"))
            ax.set_title(shortened(name, TITLE_LENGTH), fontsize="medium")
        axes[0].set_ylabel("samples")
        return axes

    def _plot_one(self, ax, index):
        right, wrong = self.right[index], self.wrong[index]
        ax.set_xlim(self.edges[0], self.edges[-1])
        if not right.sum() + wrong.sum():
            ax.text(0.5, 0.5, "no samples", ha="center", transform=ax.transAxes)
            ax.set_yticks([])
            return
        where = {"x": self.edges[:-1], "width": np.diff(self.edges), "align": "edge"}
        style = {"edgecolor": "white", "linewidth": 0.4}
        ax.bar(
            **where,
            height=right,
            bottom=wrong,
            color=color_of(1),
            label=f"right ({right.sum():,})",
            **style,
        )
        ax.bar(
            **where,
            height=wrong,
            color=color_of(5),
            hatch="////",
            label=f"wrong ({wrong.sum():,})",
            **style,
        )
        if index < len(self.thresholds):
            threshold = self.thresholds[index]
            if threshold is None:
                ax.plot([], [], " ", label="closed")
            else:
                sign = "<" if self.leaves_below else ">"
                if self.rule == "Patience":
                    sign = "≥"
                    threshold -= 0.5  # between the bars of whole numbers
                label = f"leaves {sign} {self.thresholds[index]:.3g}"
                ax.axvline(threshold, color="black", linestyle="--", label=label)
        ax.legend(loc="best", fontsize="small")


def confidence_histograms(
    model, x, y=None, rule=None, reached_only=False, num_bins=20, batch_size=None
):
    """How a rule scores right and wrong answers at every exit.

    Scores are those on which `predict_dynamic` decides, at the model's calibration
    temperatures. Bins have equal widths, the same at all exits: from 0 to 1 for
    `MaxProbability` and `Margin`, from 0 to log(classes) for `Entropy`, one for each
    number for `Patience`; for a rule of one's own what its `minimum` and `maximum` say,
    or what the scores span.

    Args:
        model: a `kd.DynamicModel`.
        x, y: data and labels as in `DynamicModel.calibrate`.
        rule: an `ExitRule` or its name. Defaults to `None`, the rule in force.
        reached_only: bool, whether an exit counts only the samples that have not left
            before it. Defaults to `False`, all of them at every exit.
        num_bins: int >= 1. Defaults to 20.
        batch_size: int or `None` (32).

    Returns:
        A `ConfidenceHistograms`.

    Raises:
        TypeError: if `model` is no `DynamicModel`.
        ValueError: for data that `calibrate` refuses, `num_bins` below 1, or the rule
            `Selected`, which has no score of an answer.

    Example:

    ```python
    inputs = keras.Input((4,))
    h = keras.layers.Dense(8, "relu")(inputs)
    outputs = [kd.EarlyExit(2)(inputs), keras.layers.Dense(2, "softmax")(h)]
    model = kd.DynamicModel(inputs, outputs)
    x, y = np.random.default_rng(0).normal(size=(90, 4)), np.arange(90) % 2
    axes = kd.plots.confidence_histograms(model, x, y, rule="margin").plot()
    ```
    """
    check_model(model)
    num_bins = positive_integer("num_bins", num_bins)
    checked_bool("reached_only", reached_only)
    rule = model.exit_rule if rule is None else rules.get(rule)
    if isinstance(rule, rules.Selected):
        raise ValueError(
            "`rule` must score answers; 'selected' does not. Name another, such as "
            f"'max_probability', or see `kd.plots.exit_selection`. Received: {rule!r}."
        )
    answers = dense_answers(model, x, y, batch_size, None)
    temperatures = np.asarray(model.calibration_temperatures)
    scores = exit_scores(rule, answers.outputs, model.road.kinds, temperatures)
    taken = exits_under(rule, scores[:-1], len(answers.labels))
    edges = _edges(rule, scores, answers.logs[-1].shape[1], num_bins)
    counts = {True: [], False: []}
    for index, score in enumerate(scores):
        counted = taken >= index if reached_only else np.ones(len(score), bool)
        for is_right, rows in counts.items():
            chosen = score[counted & (answers.correct[:, index] == is_right)]
            # The last bit of a score may lie beyond the end of its range.
            chosen = np.clip(chosen, edges[0], edges[-1])
            rows.append(np.histogram(chosen, edges)[0])
    num_early = len(scores) - 1
    thresholds = rule.with_values(rule.thresholds(num_early)).threshold
    return ConfidenceHistograms(
        edges=edges,
        right=np.stack(counts[True]),
        wrong=np.stack(counts[False]),
        thresholds=thresholds,
        leaves_below=rule.leaves_below,
        exit_names=model.exit_names,
        rule=type(rule).__name__,
    )


def _edges(rule, scores, classes, num_bins):
    if isinstance(rule, rules.Patience):
        return np.arange(len(scores) + 2) - 0.5
    if np.isfinite([rule.minimum, rule.maximum]).all():
        return np.linspace(rule.minimum, rule.maximum, num_bins + 1)
    if isinstance(rule, rules.Entropy):
        return np.linspace(0, np.log(classes), num_bins + 1)
    finite = np.concatenate(scores)
    finite = finite[np.isfinite(finite)]
    return np.histogram_bin_edges(finite, num_bins)
