"""The report of a calibration: what each exit is worth, before and after.

n: samples, C: classes, E: early exits (the final exit has index E).
"""

import dataclasses
import math

import numpy as np

from keras_dynamic.calibration._probabilities import (
    apply_temperature,
    brier_score,
    check_rows,
    correct_rows,
    expected_calibration_error,
    negative_log_likelihood,
)
from keras_dynamic.calibration._tables import number_or_dash, percent, render


@dataclasses.dataclass(frozen=True)
class ProbabilityQuality:
    """How good the probabilities of one exit are, on some rows at some temperature.

    Attributes:
        expected_calibration_error: Float in [0, 1].
        negative_log_likelihood: Float, in nats.
        brier_score: Float in [0, 2].

    Example:

    ```python
    quality = kd.calibration.ProbabilityQuality(0.02, 0.31, 0.12)
    print(quality.brier_score)  # 0.12
    ```
    """

    expected_calibration_error: float
    negative_log_likelihood: float
    brier_score: float


@dataclasses.dataclass(frozen=True)
class ExitReport:
    """One exit in a `CalibrationReport`. What is undefined for no rows is `nan`.

    Attributes:
        name: String, the exit's name.
        threshold: The rule's threshold there; `None` for a closed exit and for the
            final one.
        temperature: Float, the calibration temperature; 1.0 changes nothing.
        temperature_status: String, "fitted" or why the temperature was kept at 1.0.
        exit_rate: Float, the share of all rows that leave there.
        accuracy: Float, the share of right answers on all rows.
        accuracy_of_leavers: Float, the same on the rows that leave there.
        relative_cost: Float, the cost of a row that leaves there; 1.0 is the plain
            network.
        all_before: `ProbabilityQuality` on all rows, at temperature 1.
        all_after: The same at `temperature`.
        reached_before: `ProbabilityQuality` on the rows that reach the exit (those
            that have not left earlier), at temperature 1.
        reached_after: The same at `temperature`.

    Example:

    ```python
    quality = kd.calibration.ProbabilityQuality(0.02, 0.31, 0.12)
    exit_report = kd.calibration.ExitReport(
        "exit_1", 0.9, 1.4, "fitted", 0.5, 0.8, 0.95, 0.3, *[quality] * 4
    )
    print(exit_report.name, exit_report.exit_rate)  # exit_1 0.5
    ```
    """

    name: str
    threshold: float | None
    temperature: float
    temperature_status: str
    exit_rate: float
    accuracy: float
    accuracy_of_leavers: float
    relative_cost: float
    all_before: ProbabilityQuality
    all_after: ProbabilityQuality
    reached_before: ProbabilityQuality
    reached_after: ProbabilityQuality


@dataclasses.dataclass(frozen=True, repr=False)
class CalibrationReport:
    """What a calibration found, on the data that it was given.

    `print(report)` gives two tables, `report.to_dict()` plain numbers.

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
    certificate: object | None = None

    def to_dict(self):
        """The report as dicts, lists, strings and Python numbers, ready for JSON.

        NaN becomes `None`, an infinite threshold "inf" or "-inf".
        """
        numbers = dataclasses.asdict(self)
        if self.certificate is not None:
            numbers["certificate"] |= {
                "certified_risk": self.certificate.certified_risk,
                "p_value": self.certificate.p_value,
            }
        return _plain(numbers)

    def __str__(self):
        return render(self)

    def __repr__(self):
        rates = ", ".join(
            f"{exit_report.name} {percent(exit_report.exit_rate)}"
            for exit_report in self.exits
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

    Returns:
        A `CalibrationReport`.

    Raises:
        TypeError: labels that are not integers.
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
    num_exits = len(log_probabilities)
    if num_exits == 0:
        raise ValueError(
            "`log_probabilities` must hold an array for each exit. Received: none."
        )
    for name, values, length in (
        ("temperatures", temperatures, num_exits),
        ("thresholds", thresholds, num_exits - 1),
        ("exit_costs", np.transpose(exit_costs), num_exits),
        ("names", names, num_exits),
    ):
        if len(values) != length:
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
    exit_costs = np.asarray(exit_costs, dtype=np.float64)
    exit_costs = np.broadcast_to(exit_costs, correct.shape)
    exits = tuple(
        _exit_report(
            scores=checked[number][0],
            labels=labels,
            correct=correct[:, number],
            leaves=exit_index == number,
            reaches=exit_index >= number,
            fit=temperatures[number],
            name=names[number],
            threshold=thresholds[number] if number < num_exits - 1 else None,
            relative_cost=_mean(exit_costs[:, number]),
        )
        for number in range(num_exits)
    )
    return CalibrationReport(
        exits=exits,
        num_samples=labels.size,
        rule=rule,
        goal=None if goal is None else (goal[0], _python(goal[1])),
        final_accuracy=exits[-1].accuracy,
        dynamic_accuracy=_mean(correct[np.arange(labels.size), exit_index]),
        mean_cost=_mean(exit_costs[np.arange(labels.size), exit_index]),
        exit_rates=tuple(exit_report.exit_rate for exit_report in exits),
        certificate=certificate,
    )


def _exit_report(
    *, scores, labels, correct, leaves, reaches, fit, name, threshold, relative_cost
):
    before = apply_temperature(scores, 1.0)
    after = apply_temperature(scores, fit.temperature)
    return ExitReport(
        name=name,
        threshold=_python(threshold),
        temperature=float(fit.temperature),
        temperature_status=fit.status,
        exit_rate=_mean(leaves),
        accuracy=_mean(correct),
        accuracy_of_leavers=_mean(correct[leaves]),
        relative_cost=relative_cost,
        all_before=_quality(before, labels),
        all_after=_quality(after, labels),
        reached_before=_quality(before[reaches], labels[reaches]),
        reached_after=_quality(after[reaches], labels[reaches]),
    )


def _quality(probabilities, labels):
    return ProbabilityQuality(
        expected_calibration_error=expected_calibration_error(probabilities, labels),
        negative_log_likelihood=negative_log_likelihood(probabilities, labels),
        brier_score=brier_score(probabilities, labels),
    )


def _check_exit_index(exit_index, num_samples, num_exits):
    exit_index = np.asarray(exit_index)
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


def _mean(values):
    return float(np.mean(values)) if len(values) else math.nan


def _python(value):
    return value.item() if isinstance(value, np.generic) else value


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    value = _python(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
