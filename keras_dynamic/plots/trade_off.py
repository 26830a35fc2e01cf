"""Accuracy against cost: what the thresholds of a model can buy."""

import dataclasses

import numpy as np

from keras_dynamic.calibration import exit_indices, pareto_front, threshold_front
from keras_dynamic.calibration._search import evenly_spread
from keras_dynamic.layers._checks import positive_integer
from keras_dynamic.models import rules
from keras_dynamic.models.calibrating import (
    candidate_columns,
    costs_passing_by,
    exit_scores,
    exits_under,
)
from keras_dynamic.models.dense_answers import dense_answers
from keras_dynamic.plots._diagram import shortened
from keras_dynamic.plots._drawing import axes_or_new, check_model, color_of, draw_front

__all__ = ["AccuracyCost", "accuracy_cost"]


@dataclasses.dataclass(frozen=True)
class AccuracyCost:
    """Accuracy and mean cost of many thresholds, 1.0 being the plain network's cost.

    Attributes:
        costs, accuracies: (n,), of the thresholds tried, by rising cost; closed exits
            are passed by; empty where there are none.
        thresholds: list of n lists, one threshold or `None` (closed) an early exit.
        on_front: (n,) booleans, as `kd.calibration.pareto_front` says.
        operating_point: (cost, accuracy) of the rule as it stands.
        exit_costs, exit_accuracies: (exits,), of everyone leaving at that exit, the
            heads before it paid.
        exit_names: names of all exits.
        rule: name of the rule's class.

    Example:

    ```python
    record = kd.plots.AccuracyCost(
        costs=np.array([0.3, 0.6]),
        accuracies=np.array([0.8, 0.9]),
        thresholds=[[0.5], [0.9]],
        on_front=np.array([True, True]),
        operating_point=(0.6, 0.9),
        exit_costs=np.array([0.2, 1.1]),
        exit_accuracies=np.array([0.7, 0.91]),
        exit_names=["exit_1", "final"],
        rule="MaxProbability",
    )
    ax = record.plot()
    ```
    """

    costs: np.ndarray
    accuracies: np.ndarray
    thresholds: list
    on_front: np.ndarray
    operating_point: tuple[float, float]
    exit_costs: np.ndarray
    exit_accuracies: np.ndarray
    exit_names: list
    rule: str

    def plot(self, ax=None):
        """Draws the points, their front, the exits, and the rule as it stands.

        Args:
            ax: matplotlib `Axes`, or `None` for new ones.

        Returns:
            The `Axes`.
        """
        ax = axes_or_new(ax)
        draw_front(ax, self.costs, self.accuracies, self.on_front, "thresholds")
        ax.scatter(
            self.exit_costs,
            self.exit_accuracies,
            s=80,
            marker="s",
            facecolor="none",
            edgecolor=color_of(5),
            linewidth=2,
            label="everyone at one exit",
            zorder=3,
        )
        for cost, accuracy, name in zip(
            self.exit_costs, self.exit_accuracies, self.exit_names, strict=True
        ):
            ax.annotate(
                shortened(name, 20),
                (cost, accuracy),
                xytext=(8, -8),
                textcoords="offset points",
                va="top",
                fontsize="small",
            )
        ax.scatter(
            [1.0],
            [self.exit_accuracies[-1]],
            s=48,
            marker="D",
            facecolor="none",
            edgecolor="black",
            label="plain network",
            zorder=4,
        )
        ax.scatter(
            *self.operating_point,
            s=170,
            marker="*",
            color=color_of(0),
            edgecolor="black",
            label="rule as it stands",
            zorder=5,
        )
        ax.set_title(f"What {self.rule} buys")
        # Names are to the right of the dearest exit, and the star is large.
        ax.margins(x=0.12, y=0.1)
        ax.legend(loc="best", fontsize="small")
        return ax


def accuracy_cost(model, x, y=None, rule=None, num_settings=24, batch_size=None):
    """Accuracy against mean cost for many thresholds of a rule.

    The thresholds tried are those at which one share of the samples would leave at
    every exit, for `num_settings` shares, and as many along the front that
    `kd.calibration.threshold_front` finds, evenly spread in cost. They are priced as
    thresholds of the model's own rule are: closed exits are passed by. The data passes
    through the network once; scores are those of `predict_dynamic`, at the model's
    calibration temperatures. A rule without thresholds, `Selected`, has one point.

    The points are the best for the data given. On new data the same thresholds do a
    little worse, the more so the fewer samples there are.

    Args:
        model: a `kd.DynamicModel`.
        x, y: data and labels as in `DynamicModel.calibrate`.
        rule: an `ExitRule` or its name. Defaults to `None`, the rule in force.
        num_settings: int >= 1. Defaults to 24.
        batch_size: int or `None` (32).

    Returns:
        An `AccuracyCost`.

    Raises:
        TypeError: if `model` is no `DynamicModel`.
        ValueError: for data that `calibrate` refuses, or `num_settings` below 1.

    Example:

    ```python
    inputs = keras.Input((4,))
    h = keras.layers.Dense(8, "relu")(inputs)
    outputs = [kd.EarlyExit(2)(inputs), keras.layers.Dense(2, "softmax")(h)]
    model = kd.DynamicModel(inputs, outputs)
    x, y = np.random.default_rng(0).normal(size=(90, 4)), np.arange(90) % 2
    ax = kd.plots.accuracy_cost(model, x, y).plot()
    ```
    """
    check_model(model)
    num_settings = positive_integer("num_settings", num_settings)
    rule = model.exit_rule if rule is None else rules.get(rule)
    model.road.check_rule(rule)
    answers = dense_answers(model, x, y, batch_size, None, rule)
    correct, costs = answers.correct, answers.costs
    rows = np.arange(len(correct))

    def outcome(taken, rule):
        costs = answers.costs_under(rule)[rows, taken]
        return float(costs.mean()), float(correct[rows, taken].mean())

    settings, now = [], answers.selected
    if now is None:
        temperatures = np.asarray(model.calibration_temperatures)
        scores = exit_scores(rule, answers.outputs, model.road.kinds, temperatures)
        now = exits_under(rule, scores[:-1], len(rows))
        if len(scores) > 1:
            costs_of = costs_passing_by(model, rule, answers)
            settings = _settings(rule, scores[:-1], correct, costs_of, num_settings)
    found = sorted(
        (
            (*outcome(taken, rule.with_threshold(chosen)), chosen)
            for taken, chosen in settings
        ),
        key=lambda point: point[:2],
    )
    points = np.array([point[:2] for point in found]).reshape(-1, 2)
    return AccuracyCost(
        costs=points[:, 0],
        accuracies=points[:, 1],
        thresholds=[thresholds for _, _, thresholds in found],
        on_front=pareto_front(points[:, 0], points[:, 1]),
        operating_point=outcome(now, rule),
        exit_costs=costs.mean(axis=0),
        exit_accuracies=correct.mean(axis=0),
        exit_names=model.exit_names,
        rule=type(rule).__name__,
    )


def _settings(rule, scores, correct, costs_of, number):
    """List of (exits taken, thresholds), no two of which send all samples alike.

    An exit at which nobody leaves is closed.
    """
    candidates, columns = candidate_columns(rule, scores)
    rates = [leaves.mean(axis=0) for leaves in columns]
    swept = [
        [int(np.argmin(np.abs(rate - wanted))) for rate in rates]
        for wanted in np.linspace(0, 1, number)
    ]
    front, costs, _ = threshold_front(columns, correct, costs_of)
    settings = {}
    for choice in (*swept, *front[evenly_spread(costs, number)]):
        exits = exit_indices(
            [leaves[:, column] for leaves, column in zip(columns, choice, strict=True)]
        )
        thresholds = [
            tried[column] if np.any(exits == number) else None
            for number, (tried, column) in enumerate(
                zip(candidates, choice, strict=True)
            )
        ]
        # Dictionaries keep an order, and each way to send the samples once.
        settings[exits.tobytes()] = exits, thresholds
    return list(settings.values())
