"""The report of a calibration: what each exit is worth, before and after.

n: samples, C: classes, E: early exits (the final exit has index E).
"""

import dataclasses
import json
from pathlib import Path

import numpy as np

from keras_dynamic._files import write_whole
from keras_dynamic.calibration._arguments import float_array, listed
from keras_dynamic.calibration._baselines import check_baselines
from keras_dynamic.calibration._closing import front_passing_by
from keras_dynamic.calibration._exit_report import (
    ExitReport,
    ProbabilityQuality,
    exit_report,
    mean_or_nan,
    plain_numbers,
    python_number,
)
from keras_dynamic.calibration._page import render_page
from keras_dynamic.calibration._plausible import checked_report
from keras_dynamic.calibration._probabilities import check_rows, correct_rows
from keras_dynamic.calibration._reading import read_dataclass, read_json
from keras_dynamic.calibration._search import evenly_spread
from keras_dynamic.calibration._tables import number_or_dash, percent, render
from keras_dynamic.calibration.guarantees import Certificate

__all__ = ["CalibrationReport", "ExitReport", "ProbabilityQuality", "build_report"]

# Of the JSON files: another number where an older reader would misunderstand them.
_FORMAT = 1
# A curve has no more points than this.
_CURVE_POINTS = 60


@dataclasses.dataclass(frozen=True, repr=False)
class CalibrationReport:
    """What a calibration found, on the data that it was given.

    `print(report)` gives two tables, `report.to_dict()` plain numbers, and
    `report.save("report.html")` a page with plots.

    Attributes:
        exits: Tuple of E + 1 `ExitReport`, the final exit last.
        num_samples: Integer, n.
        rule: String, the name of the exit rule.
        goal: `(name, value)`, such as `("budget", 0.5)`, or `None`.
        final_accuracy: Float, the accuracy of the final exit on all rows.
        dynamic_accuracy: Float, the accuracy of the answers at the exits taken.
        mean_cost: Float, the mean cost of a row; 1.0 is the plain network.
        exit_rates: Tuple of E + 1 floats, the share of rows that leave at each exit.
        certificate: The `Certificate` of `risk_confidence`, whose second split the
            figures above are those of; `None` without.
        curve: Tuple of `(mean_cost, accuracy)`, costs ascending: what the best
            thresholds give on these rows, as `threshold_front` finds them, closed
            exits passed by, thinned to 60 points; empty where the report was built
            without `leaves`.

    Example:

    ```python
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4]])
    fit = kd.calibration.TemperatureFit(1.0, "fitted", 0.3, 0.3)
    report = kd.calibration.build_report(
        log_probabilities=[np.log(probabilities)] * 2,
        labels=np.array([0, 1]),
        temperatures=[fit, fit],
        exit_index=np.array([0, 1]),
        thresholds=[0.8],
        exit_costs=[0.4, 1.1],
        names=["exit_1", "final"],
        rule="max_probability",
    )
    print(report)
    ```
    """

    exits: tuple[ExitReport, ...]
    num_samples: int
    rule: str
    goal: tuple[str, float] | None
    final_accuracy: float
    dynamic_accuracy: float
    mean_cost: float
    exit_rates: tuple[float, ...]
    certificate: Certificate | None = None
    curve: tuple[tuple[float, float], ...] = ()

    def to_dict(self):
        """The report as dicts, lists, strings and Python numbers, ready for JSON.

        NaN becomes `None`, an infinite threshold "inf" or "-inf".
        """
        fields = dataclasses.asdict(self)
        if self.certificate is not None:
            fields["certificate"] |= {
                "certified_risk": self.certificate.certified_risk,
                "p_value": self.certificate.p_value,
            }
        return plain_numbers(fields)

    def save(self, path, baselines=None):
        """Writes the report to a file, whole or not at all.

        Args:
            path: String or path that ends in `.json` (the numbers of `to_dict`) or in
                `.html`, in any case: one page without references to anything outside,
                with the curve of accuracy against cost, the exits taken, reliability
                diagrams and tables.
            baselines: Dict of `name: (mean_cost, accuracy)`, other networks to be
                compared with, costs relative to the plain network. Names are strings,
                pairs tuples, lists or arrays. Defaults to `None`, none.

        Raises:
            OSError: where the path cannot be written to.
            TypeError: baselines that are not pairs of numbers with names.
            ValueError: another ending, a baseline out of range, or a name that has no
                UTF-8.

        Example:

        ```python
        inputs = keras.Input((4,))
        outputs = [kd.EarlyExit(2)(inputs), keras.layers.Dense(2, "softmax")(inputs)]
        model = kd.DynamicModel(inputs, outputs)
        model.compile("adam", "sparse_categorical_crossentropy")
        x, y = np.random.normal(size=(100, 4)), np.arange(100) % 2
        report = model.calibrate(x, y, max_accuracy_drop=0.05)
        report.save("report.html", baselines={"half as wide": (0.3, 0.55)})
        ```
        """
        path, baselines = Path(path), check_baselines(baselines)
        ending = path.suffix.lower()
        if ending == ".json":
            fields = {"format": _FORMAT} | self.to_dict() | {"baselines": baselines}
            text = json.dumps(fields, indent=2, allow_nan=False) + "\n"
        elif ending == ".html":
            text = render_page(self, baselines)
        else:
            raise ValueError(
                f"`path` must end in .json or .html. Received: path={str(path)!r}."
            )
        write_whole(path, text)

    @classmethod
    def load(cls, path):
        """Reads a report that `save` wrote as JSON; baselines are left out.

        Args:
            path: String or path.

        Returns:
            A `CalibrationReport`.

        Raises:
            OSError: where the file cannot be read.
            ValueError: for a file that is cut short or changed so that it is no report;
                it says where.

        Example:

        ```python
        probabilities = np.array([[0.9, 0.1], [0.6, 0.4]])
        fit = kd.calibration.TemperatureFit(1.0, "fitted", 0.3, 0.3)
        report = kd.calibration.build_report(
            [np.log(probabilities)],
            np.array([0, 1]),
            temperatures=[fit],
            exit_index=np.array([0, 0]),
            thresholds=[],
            exit_costs=[1.0],
            names=["final"],
            rule="max_probability",
        )
        report.save("report.json")
        print(kd.calibration.CalibrationReport.load("report.json"))
        ```
        """
        try:
            fields = read_json(Path(path))
            if fields.get("format") != _FORMAT:
                raise ValueError(
                    f"`report.format` must be {_FORMAT}, the one that this release "
                    f"reads. Received: {fields.get('format')!r:.60}."
                )
            return checked_report(read_dataclass(cls, fields))
        except ValueError as error:
            raise ValueError(
                f"`path` must be a report that `save` wrote. Received: "
                f"path={str(path)!r}, of which {error}"
            ) from error

    def __str__(self):
        return render(self)

    def __repr__(self):
        rates = ", ".join(
            f"{each.name} {percent(each.exit_rate)}" for each in self.exits
        )
        return (
            f"<CalibrationReport of {self.num_samples} samples: {rates}; accuracy "
            f"{percent(self.final_accuracy)} -> {percent(self.dynamic_accuracy)}, "
            f"mean cost {number_or_dash(self.mean_cost)}>"
        )


def build_report(
    log_probabilities,
    labels,
    *,
    temperatures,
    exit_index,
    thresholds,
    exit_costs,
    names,
    rule,
    goal=None,
    certificate=None,
    leaves=None,
    costs_of=None,
):
    """Computes a `CalibrationReport`.

    Args:
        log_probabilities: Sequence of E + 1 arrays of shape `(n, C)`, one for each
            exit, the final one last: log-probabilities or logits before temperature.
        labels: Integer array of shape `(n,)`, in [0, C).
        temperatures: Sequence of E + 1 `TemperatureFit`.
        exit_index: Integer array of shape `(n,)`, in [0, E]: the exit taken.
        thresholds: Sequence of E numbers; `None` for a closed exit.
        exit_costs: E + 1 numbers, the cost of a row that leaves at each exit, relative
            to the plain network; or an array `(n, E + 1)` where it differs by row.
        names: Sequence of E + 1 strings.
        rule: String, the name of the exit rule.
        goal: `(name, value)`, such as `("budget", 0.5)`, or `None`, the default.
        certificate: The `Certificate` of the thresholds, or `None`, the default.
        leaves: Sequence of E boolean arrays of shape `(n, C_e)`, who would leave under
            each candidate, as for `choose_thresholds`: gives the report its curve.
            Defaults to `None`, no curve.
        costs_of: Function of a tuple of closed exits that gives E + 1 numbers, the
            costs along the curve where these are passed by. Defaults to `None`:
            `exit_costs`, whatever is closed.

    Returns:
        A `CalibrationReport`.

    Raises:
        TypeError: labels that are not integers, or another argument of a wrong type.
        ValueError: shapes, lengths or values other than those above.

    Example:

    ```python
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4]])
    fit = kd.calibration.TemperatureFit(1.0, "fitted", 0.3, 0.3)
    report = kd.calibration.build_report(
        log_probabilities=[np.log(probabilities)] * 2,
        labels=np.array([0, 1]),
        temperatures=[fit, fit],
        exit_index=np.array([0, 1]),
        thresholds=[0.8],
        exit_costs=[0.4, 1.1],
        names=["exit_1", "final"],
        rule="max_probability",
        goal=("budget", 0.8),
    )
    print(report.mean_cost)  # 0.75
    ```
    """
    log_probabilities = listed("log_probabilities", log_probabilities)
    num_exits = len(log_probabilities)
    _check_names(rule, goal)
    for fit in listed("temperatures", temperatures):
        if not hasattr(fit, "temperature"):
            raise TypeError(
                "`temperatures` must hold a `TemperatureFit` for each exit. Received: "
                f"{fit!r} of type {type(fit)}."
            )
    if num_exits == 0:
        raise ValueError(
            "`log_probabilities` must hold an array for each exit. Received: none."
        )
    exit_costs = float_array("exit_costs", exit_costs)
    for name, values, length in (
        ("temperatures", temperatures, num_exits),
        ("thresholds", thresholds, num_exits - 1),
        ("exit_costs", exit_costs.T, num_exits),
        ("names", names, num_exits),
    ):
        if len(listed(name, values)) != length:
            raise ValueError(
                f"`{name}` must have {length} entries for {num_exits} exits, the "
                f"final one included. Received: {len(values)} entries."
            )
    checked = [
        check_rows(scores, labels, f"log_probabilities[{number}]")
        for number, scores in enumerate(log_probabilities)
    ]
    labels = checked[0][1]
    exit_index = _check_exit_index(exit_index, labels.size, num_exits)
    correct = np.stack([correct_rows(scores, labels) for scores, _ in checked], axis=1)
    exit_costs = np.broadcast_to(exit_costs, correct.shape)
    exits = tuple(
        exit_report(
            scores=checked[number][0],
            labels=labels,
            correct=correct[:, number],
            later_correct=correct[:, number + 1 :],
            leaves=exit_index == number,
            reaches=exit_index >= number,
            fit=temperatures[number],
            name=names[number],
            threshold=thresholds[number] if number < num_exits - 1 else None,
            relative_cost=mean_or_nan(exit_costs[:, number]),
        )
        for number in range(num_exits)
    )
    return CalibrationReport(
        exits=exits,
        num_samples=labels.size,
        rule=rule,
        goal=None if goal is None else (goal[0], python_number(goal[1])),
        final_accuracy=exits[-1].accuracy,
        dynamic_accuracy=mean_or_nan(correct[np.arange(labels.size), exit_index]),
        mean_cost=mean_or_nan(exit_costs[np.arange(labels.size), exit_index]),
        exit_rates=tuple(each.exit_rate for each in exits),
        certificate=certificate,
        curve=_curve(leaves, correct, exit_costs, costs_of) if leaves else (),
    )


def _curve(leaves, correct, exit_costs, costs_of):
    """(mean cost, accuracy) along the front, at most so many, evenly spread in cost."""
    if not len(correct):
        return ()
    means = exit_costs.mean(axis=0)
    front = front_passing_by(leaves, correct, costs_of or (lambda closed: means))
    kept = evenly_spread(front.mean_cost, _CURVE_POINTS)
    accuracies = front.num_correct[kept] / len(correct)
    return tuple(zip(front.mean_cost[kept].tolist(), accuracies.tolist(), strict=True))


def _check_names(rule, goal):
    if not isinstance(rule, str):
        raise TypeError(
            f"`rule` must be the name of a rule. Received: rule={rule!r} of type "
            f"{type(rule)}."
        )
    is_pair = isinstance(goal, (tuple, list)) and len(goal) == 2
    if goal is not None and not is_pair:
        raise TypeError(
            "`goal` must be a pair (name, value), or None. Received: "
            f"goal={goal!r} of type {type(goal)}."
        )


def _check_exit_index(exit_index, num_samples, num_exits):
    exit_index = np.asarray(exit_index)
    if exit_index.size and exit_index.dtype.kind not in "iu":
        raise TypeError(
            f"`exit_index` must be integers. Received: dtype={exit_index.dtype}."
        )
    if exit_index.shape != (num_samples,):
        raise ValueError(
            f"`exit_index` must have shape ({num_samples},), one for each label. "
            f"Received: shape={exit_index.shape}."
        )
    if num_samples and (exit_index.min() < 0 or exit_index.max() >= num_exits):
        raise ValueError(
            f"`exit_index` must lie in [0, {num_exits - 1}]. Received: from "
            f"{exit_index.min()} to {exit_index.max()}."
        )
    return exit_index.astype(np.intp)
