"""The callback that scores the dynamic road, and one that looks for the objective."""

import keras
from keras_tuner.errors import FatalValueError

from keras_dynamic.calibration import UnreachableGoal
from keras_dynamic.callbacks.dynamic_validation import DynamicValidation

__all__ = ["ObjectiveCheck", "Scoring"]


class Scoring(DynamicValidation):
    """`DynamicValidation` for an objective, whose value it puts into the logs.

    A goal that a network cannot reach is no error in a search: the nearest that it can
    reach is taken, and the objective's penalty does the rest.

    Args:
        objective: a `DynamicObjective`.
        The others are those of `DynamicValidation`.
    """

    def __init__(self, objective, *data, **arguments):
        super().__init__(*data, **arguments, **objective.goal)
        self.objective = objective

    def on_epoch_end(self, epoch, logs=None):
        logs = {} if logs is None else logs
        super().on_epoch_end(epoch, logs)
        logs[self.objective.name] = self.objective.score_of(logs)

    def _goals(self):
        goals = super()._goals()
        if self._is_selected() or len(self.model.exit_names) == 1:
            # No thresholds to choose: what a selector or gates cost is trained.
            return dict.fromkeys(goals)
        return goals

    def _calibrate(self):
        try:
            super()._calibrate()
        except UnreachableGoal as error:  # a budget
            self._calibrate_for({error.goal: error.reachable})


class ObjectiveCheck(keras.callbacks.Callback):
    """Stops a search at its first epoch if its objective is not in the logs.

    Args:
        objective: the tuner's.
        suggested: the `DynamicObjective` of the hypermodel.
    """

    def __init__(self, objective, suggested):
        super().__init__()
        self.objective, self.suggested = objective, suggested

    def on_epoch_end(self, epoch, logs=None):
        if not self.objective.has_value(logs or {}):
            raise FatalValueError(
                "The tuner's `objective` must be in the logs of `fit`. Give it the "
                f"hypermodel's own, `objective=hypermodel.objective` "
                f"('{self.suggested.name}'). Received: '{self.objective.name}', which "
                f"is not among {sorted(logs or {})}."
            )
