"""All trials of a search, accuracy against cost."""

import dataclasses
import io
import os

import numpy as np
from rich.console import Console
from rich.table import Table

from keras_dynamic.calibration import pareto_front
from keras_dynamic.tuning.directory import check
from keras_dynamic.tuning.hyper_model import DynamicHyperModel
from keras_dynamic.tuning.hyperparameters import split_name

__all__ = ["Pareto", "pareto"]


@dataclasses.dataclass(frozen=True)
class Pareto:
    """The finished trials of a search, the cheapest first.

    Printed it is a table, with a star for those on the front: no other trial is as
    cheap and as accurate, and better in one of both.

    Attributes:
        trials: list of the trials' ids.
        costs: (n,) mean costs on the validation data, 1.0 is the plain network.
        accuracies: (n,), on the same, each in its trial's best epoch.
        scores: (n,) values of the objective.
        on_front: (n,) booleans.
        hyperparameters: list of dicts, name to value.
        objective: name of the objective.
        unfinished: int, how many trials failed or still run.

    Example:

    ```python
    record = kd.tuning.Pareto(
        trials=["0", "1"],
        costs=np.array([0.3, 0.6]),
        accuracies=np.array([0.91, 0.94]),
        scores=np.array([0.91, 0.94]),
        on_front=np.array([True, True]),
        hyperparameters=[{"temperature": 1.0}, {"temperature": 2.0}],
        objective="accuracy_under_budget",
        unfinished=0,
    )
    ax = record.plot()
    ```
    """

    trials: list
    costs: np.ndarray
    accuracies: np.ndarray
    scores: np.ndarray
    on_front: np.ndarray
    hyperparameters: list
    objective: str
    unfinished: int

    def __str__(self):
        names = {name for each in self.hyperparameters for name in each}
        # What Hyperband notes about its rounds is no part of a network.
        names = sorted(name for name in names if not name.startswith("tuner/"))
        table = Table(
            title=f"{len(self.trials)} finished trials, {self.objective} (* on the "
            "front)"
        )
        for name in ("Trial", "Cost", "Accuracy", "Objective"):
            table.add_column(name, justify="right")
        for name in names:
            # One line for the layer, one for what is searched of it.
            table.add_column(_in_two_lines(name), justify="right")
        for index, trial in enumerate(self.trials):
            star = "*" if self.on_front[index] else ""
            values = self.hyperparameters[index]
            table.add_row(
                f"{trial}{star}",
                f"{self.costs[index]:.3f}",
                f"{self.accuracies[index]:.4f}",
                f"{self.scores[index]:.4f}",
                *(_shown(values.get(name)) for name in names),
            )
        text = io.StringIO()
        width = 50 + sum(len(name) + 4 for name in names)  # nothing is cut off
        Console(file=text, width=max(80, width), color_system=None).print(table)
        rest = f"\n{self.unfinished} more failed or still run" * bool(self.unfinished)
        return text.getvalue().rstrip() + rest

    def plot(self, ax=None):
        """Draws the trials and the front. Needs matplotlib, of the extra `plots`.

        Args:
            ax: matplotlib `Axes`, or `None` for new ones.

        Returns:
            The `Axes`.
        """
        from keras_dynamic.plots._drawing import axes_or_new, draw_front

        ax = axes_or_new(ax)
        draw_front(ax, self.costs, self.accuracies, self.on_front, "trials")
        for index in np.flatnonzero(self.on_front):
            ax.annotate(
                f"trial {self.trials[index]}",
                (self.costs[index], self.accuracies[index]),
                xytext=(5, -11),
                textcoords="offset points",
                fontsize="small",
            )
        ax.set_title("Trials of the search, on the validation data")
        ax.legend(loc="lower right")
        return ax


def pareto(tuner):
    """Accuracy and mean cost of all finished trials, the front marked.

    A trial's figures are those of its best epoch (the mean of several executions). They
    come from the validation data that the search was fitted to: judge the network that
    you take on a test set.

    Args:
        tuner: a tuner of keras-tuner with a `DynamicHyperModel`, in any stage of its
            search. Not a worker of a distributed search: when that has ended, make a
            tuner in the same directory.

    Returns:
        A `Pareto`.

    Raises:
        TypeError: if it is no such tuner.
        ValueError: if no trial has finished, or its directory is another search's.

    Example:

    ```python
    def build(hp):
        inputs = keras.Input((4,))
        weight = kd.tuning.loss_weight(hp, "exit_1")
        early = kd.EarlyExit(2, loss_weight=weight, name="exit_1")(inputs)
        final = keras.layers.Dense(2, "softmax")(keras.layers.Dense(8)(inputs))
        model = kd.DynamicModel(inputs, [early, final])
        model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        return model


    data = np.random.default_rng(0).normal(size=(30, 4)), np.arange(30) % 2
    objective = kd.tuning.AccuracyUnderBudget(0.9)
    hypermodel = kd.tuning.DynamicHyperModel(build, data, data, objective)
    tuner = hypermodel.tuner("random", max_trials=2, directory="search")
    tuner.search(*data, verbose=0)
    record = kd.tuning.pareto(tuner)
    print(record)
    record.plot()
    ```
    """
    hypermodel = getattr(tuner, "hypermodel", None)
    if not isinstance(hypermodel, DynamicHyperModel):
        raise TypeError(
            "`tuner` must be a tuner of a `DynamicHyperModel`. Received: "
            f"{tuner!r} of type {type(tuner)}."
        )
    trials = getattr(tuner.oracle, "trials", None)
    if trials is None:
        raise TypeError(
            "`tuner` must not be a worker of a distributed search, whose trials only "
            "the chief knows. Make a tuner in the same directory when it has ended. "
            f"Received: {tuner!r}."
        )
    check(tuner.project_dir, hypermodel.signature())
    finished = [trial for trial in trials.values() if trial.status == "COMPLETED"]
    if not finished:
        raise ValueError(
            "`tuner` must have finished a trial. Received: one with "
            f"{len(trials)} trials in '{os.path.normpath(tuner.project_dir)}', none of "
            "them finished."
        )
    objective = hypermodel.objective
    names = ("val_mean_cost", objective.accuracy_name, objective.name)
    costs, accuracies, scores = (
        np.array([trial.metrics.get_last_value(name) for trial in finished])
        for name in names
    )
    order = np.lexsort((-accuracies, costs))
    costs, accuracies = costs[order], accuracies[order]
    finished = [finished[index] for index in order]
    return Pareto(
        trials=[trial.trial_id for trial in finished],
        costs=costs,
        accuracies=accuracies,
        scores=scores[order],
        on_front=pareto_front(costs, accuracies),
        hyperparameters=[dict(trial.hyperparameters.values) for trial in finished],
        objective=objective.name,
        unfinished=len(trials) - len(finished),
    )


def _in_two_lines(name):
    layer, kind = split_name(name)
    return f"{layer}\n{kind}" if layer else kind


def _shown(value):
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
