"""What a `CalibrationReport` says of one exit."""

import dataclasses
import math

import numpy as np

from keras_dynamic.calibration._probabilities import (
    apply_temperature,
    brier_score,
    expected_calibration_error,
    negative_log_likelihood,
    reliability_bins,
)


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
        spoiled: Float, the share of all rows that are right here and that some later
            exit, the final one or one between, would have answered wrongly: thinking
            on spoils them. (The literature's overthinking looks at the final exit
            alone; that share is at most this one.)
        reliability_before: Tuple of `(confidence, accuracy, count)`, one a bin of the
            expected calibration error on all rows, at temperature 1.
        reliability_after: The same at `temperature`.

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
    spoiled: float = math.nan
    reliability_before: tuple[tuple[float, float, int], ...] = ()
    reliability_after: tuple[tuple[float, float, int], ...] = ()


def exit_report(
    *,
    scores,
    labels,
    correct,
    later_correct,
    leaves,
    reaches,
    fit,
    name,
    threshold,
    relative_cost,
):
    """The `ExitReport` of one exit, from what `build_report` was given."""
    before = apply_temperature(scores, 1.0)
    after = apply_temperature(scores, fit.temperature)
    return ExitReport(
        name=name,
        threshold=python_number(threshold),
        temperature=float(fit.temperature),
        temperature_status=fit.status,
        exit_rate=mean_or_nan(leaves),
        accuracy=mean_or_nan(correct),
        accuracy_of_leavers=mean_or_nan(correct[leaves]),
        relative_cost=relative_cost,
        all_before=_quality(before, labels),
        all_after=_quality(after, labels),
        reached_before=_quality(before[reaches], labels[reaches]),
        reached_after=_quality(after[reaches], labels[reaches]),
        spoiled=mean_or_nan(correct & ~later_correct.all(axis=1)),
        reliability_before=_bins(before, labels),
        reliability_after=_bins(after, labels),
    )


def _quality(probabilities, labels):
    return ProbabilityQuality(
        expected_calibration_error=expected_calibration_error(probabilities, labels),
        negative_log_likelihood=negative_log_likelihood(probabilities, labels),
        brier_score=brier_score(probabilities, labels),
    )


def _bins(probabilities, labels):
    bins = reliability_bins(probabilities, labels)
    return tuple(zip(*(part.tolist() for part in bins), strict=True))


def mean_or_nan(values):
    return float(np.mean(values)) if len(values) else math.nan


def python_number(value):
    return value.item() if isinstance(value, np.generic) else value


def plain_numbers(value):
    """A value as JSON holds it: lists and dicts, NaN as None, infinity as text."""
    if isinstance(value, dict):
        return {key: plain_numbers(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain_numbers(entry) for entry in value]
    value = python_number(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
