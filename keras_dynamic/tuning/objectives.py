"""What a search maximizes or minimizes: numbers that no lambda rescales.

`val_loss` is no objective for a search over loss weights, which it contains: the
smallest lambda would win.
"""

import math
import numbers

import keras_tuner
from keras_tuner.errors import FatalValueError

__all__ = ["AccuracyUnderBudget", "CostUnderAccuracy", "DynamicObjective"]


class DynamicObjective(keras_tuner.Objective):
    """Base of the objectives that weigh the dynamic road's accuracy against its cost.

    Args:
        name: of the objective in the logs.
        direction: `"max"` or `"min"`.
        goal: dict, arguments of `DynamicModel.calibrate`.
        penalty: float >= 0.
        metric: string, the metric that counts as accuracy.
    """

    def __init__(self, name, direction, goal, penalty, metric):
        super().__init__(name, direction)
        self.goal = goal
        self.penalty = _number("penalty", penalty)
        if not isinstance(metric, str):
            raise TypeError(
                "`metric` must be the name of a metric. Received: "
                f"metric={metric!r} of type {type(metric)}."
            )
        self.metric = metric

    @property
    def accuracy_name(self):
        """The name in the logs of what counts as accuracy."""
        return f"val_dynamic_{self.metric}"

    def score(self, accuracy, mean_cost):
        raise NotImplementedError

    def score_of(self, logs):
        """The objective's value, from the logs of an epoch."""
        for name in (self.accuracy_name, "val_mean_cost"):
            if name not in logs:
                raise FatalValueError(
                    f"The objective '{self.name}' needs '{name}' in the logs. Compile "
                    f"the model with `metrics=[{self.metric!r}]`, or name the metric "
                    f"by the objective's `metric`. Received logs: {sorted(logs)}."
                )
        return self.score(float(logs[self.accuracy_name]), float(logs["val_mean_cost"]))

    def get_config(self):
        """What makes the objective, as a dict that JSON can hold."""
        return {
            "name": self.name,
            **self.goal,
            "penalty": self.penalty,
            "metric": self.metric,
        }


class AccuracyUnderBudget(DynamicObjective):
    """Accuracy, as long as the mean cost keeps to a budget.

        accuracy - penalty * max(0, mean_cost - budget)

    to be maximized. Thresholds are chosen to meet the budget on the calibration data;
    what the validation data then cost may exceed it a little, which the penalty weighs.
    A network that cannot meet it at all leaves as early as it can, and pays for the
    rest.

    Args:
        budget: float > 0, a mean cost: 1.0 is the plain network.
        penalty: float >= 0, accuracy for one plain network beyond the budget. It is to
            be more than what accuracy really gains by cost, but a cliff makes a search
            harder. Defaults to 1: a hundredth of the network weighs a point of
            accuracy.
        metric: string, the metric that counts as accuracy. Defaults to `"accuracy"`.

    Raises:
        ValueError, TypeError: for a budget or penalty that is no such number.

    Example:

    ```python
    objective = kd.tuning.AccuracyUnderBudget(0.5)
    print(objective.score(0.95, 0.48), objective.score(0.96, 0.55))  # 0.95 0.91
    ```
    """

    def __init__(self, budget, penalty=1.0, metric="accuracy"):
        self.budget = _number("budget", budget)
        if self.budget == 0:
            raise ValueError("`budget` must be above 0. Received: budget=0.")
        super().__init__(
            "accuracy_under_budget", "max", {"budget": self.budget}, penalty, metric
        )

    def score(self, accuracy, mean_cost):
        """The objective's value.

        Args:
            accuracy: float in [0, 1].
            mean_cost: float, 1.0 is the plain network.
        """
        return accuracy - self.penalty * max(0.0, mean_cost - self.budget)


class CostUnderAccuracy(DynamicObjective):
    """Mean cost, as long as the accuracy keeps to a floor.

        mean_cost + penalty * max(0, min_accuracy - accuracy)

    to be minimized. Thresholds are chosen to keep the accuracy on the calibration data;
    a network that does not have it runs whole, and pays for the rest.

    Args:
        min_accuracy: float in (0, 1].
        penalty: float >= 0, plain networks for an accuracy of 1. Defaults to 100: a
            hundredth of accuracy weighs one whole network.
        metric: string, the metric that counts as accuracy. Defaults to `"accuracy"`.

    Raises:
        ValueError, TypeError: for an accuracy or penalty that is no such number.

    Example:

    ```python
    objective = kd.tuning.CostUnderAccuracy(0.9)
    print(objective.score(0.92, 0.4), objective.score(0.89, 0.3))  # 0.4 1.3
    ```
    """

    def __init__(self, min_accuracy, penalty=100.0, metric="accuracy"):
        self.min_accuracy = _number("min_accuracy", min_accuracy)
        if not 0 < self.min_accuracy <= 1:
            raise ValueError(
                "`min_accuracy` must lie in (0, 1]. Received: "
                f"min_accuracy={min_accuracy}."
            )
        goal = {"min_accuracy": self.min_accuracy}
        super().__init__("cost_under_accuracy", "min", goal, penalty, metric)

    def score(self, accuracy, mean_cost):
        """The objective's value.

        Args:
            accuracy: float in [0, 1].
            mean_cost: float, 1.0 is the plain network.
        """
        return mean_cost + self.penalty * max(0.0, self.min_accuracy - accuracy)


def _number(name, value):
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(
            f"`{name}` must be a number. Received: {name}={value!r} of type "
            f"{type(value)}."
        )
    if not 0 <= value < math.inf:
        raise ValueError(f"`{name}` must be finite and >= 0. Received: {name}={value}.")
    return float(value)
