"""Calibration with a promise: one split chooses a path, the other certifies on it."""

import dataclasses
import math
import numbers
import warnings

import numpy as np

from keras_dynamic import calibration
from keras_dynamic.calibration._tables import uncertified_message
from keras_dynamic.models.calibrating import (
    candidate_columns,
    check_goals,
    costs_passing_by,
    exit_scores,
    exits_under,
    report_and_adopt,
)
from keras_dynamic.models.dense_answers import dense_answers

__all__ = ["calibrate_with_certificate", "split_rows"]

_SEED = 0
# The share of rows that temperatures and path are chosen on.
_SELECTION = 0.5


def calibrate_with_certificate(model, x, y, rule, goals, confidence, batch_size, steps):
    """See `DynamicModel.calibrate` with `risk_confidence`.

    Args:
        model: a `DynamicModel`.
        x, y, batch_size, steps: as in `DynamicModel.calibrate`.
        rule: an `ExitRule`.
        goals: dict as for `check_goals`.
        confidence: float in (0, 1).
    """
    _check_confidence(confidence, goals)
    goal = check_goals(model, rule, goals)
    answers = dense_answers(model, x, y, batch_size, steps)
    chooses, certifies = split_rows(len(answers.labels))
    chosen_on, certified_on = _rows(answers, chooses), _rows(answers, certifies)
    fits = [
        calibration.fit_temperature(log, chosen_on.labels) for log in chosen_on.logs
    ]
    temperatures = np.array([fit.temperature for fit in fits], "float32")

    def scores_of(rows):
        return exit_scores(rule, rows.outputs, model.road.kinds, temperatures)[:-1]

    path = _path(model, rule, scores_of(chosen_on), chosen_on, goal[1])
    closed = rule.with_threshold([None] * (len(fits) - 1))
    scores = scores_of(certified_on)
    exits, certificate = _certificate(
        path, scores, certified_on, goal[1], confidence, len(chooses)
    )
    full = float(np.mean(certified_on.costs_under(closed)[:, -1]))
    certificate = dataclasses.replace(certificate, closed_cost=full)
    chosen = certificate.chosen
    report = report_and_adopt(
        model,
        closed if chosen is None else path[chosen],
        certified_on,
        fits,
        scores,
        np.full(len(certifies), len(fits) - 1) if chosen is None else exits[chosen],
        goal,
        certificate,
    )
    if chosen is None:
        warnings.warn(uncertified_message(certificate), stacklevel=3)
    return report


def split_rows(num_rows):
    """(rows to choose on, rows to certify on): a random split, the same at every call.

    It does not look at labels: drawn so, the rows that certify are independent draws,
    as the exact tests take them to be, if all rows are.
    """
    order = np.random.default_rng(_SEED).permutation(num_rows)
    num_chosen = int(_SELECTION * num_rows)
    return np.sort(order[:num_chosen]), np.sort(order[num_chosen:])


def _rows(answers, index):
    """`DenseAnswers` of some rows only."""
    return dataclasses.replace(
        answers,
        outputs=[output[index] for output in answers.outputs],
        logs=[log[index] for log in answers.logs],
        labels=answers.labels[index],
        costs=answers.costs[index],
    )


def _path(model, rule, scores, answers, max_risk):
    """The rule with each step's thresholds, the safest first."""
    if not len(answers.labels):
        return []
    candidates, columns = candidate_columns(rule, scores)
    costs_of = costs_passing_by(model, rule, answers)
    path = calibration.risk_path(columns, answers.correct, costs_of, max_risk)
    steps = [
        [tried[column] for tried, column in zip(candidates, step, strict=True)]
        for step in path
    ]
    return [
        rule.with_values(rule.with_threshold(step).thresholds(len(scores)))
        for step in steps
    ]


def _certificate(path, scores, answers, max_risk, confidence, num_chosen):
    """(exits taken at every step, the `Certificate`)."""
    num_rows = len(answers.labels)
    rows, correct = np.arange(num_rows), answers.correct
    exits = [exits_under(step, scores, num_rows) for step in path]
    lost = np.zeros((num_rows, len(path)), bool)
    for number, taken in enumerate(exits):
        lost[:, number] = correct[:, -1] & ~correct[rows, taken]
    passed, p_values = calibration.certify(lost, max_risk, confidence)
    steps = tuple(
        calibration.PathStep(
            thresholds=tuple(step.threshold),
            mean_cost=float(np.mean(answers.costs_under(step)[rows, taken])),
            num_lost=int(np.sum(losses)),
            p_value=p_value,
        )
        for step, taken, losses, p_value in zip(
            path, exits, lost.T, p_values, strict=True
        )
    )
    needed = None
    if not passed:
        rate = steps[0].num_lost / num_rows if steps else 0.0
        needed = calibration.samples_to_certify(max_risk, confidence, rate)
        needed = needed and math.ceil(needed / (1 - _SELECTION))
    certificate = calibration.Certificate(
        max_risk=max_risk,
        confidence=confidence,
        num_selection_samples=num_chosen,
        num_samples=num_rows,
        seed=_SEED,
        path=steps,
        num_certified=passed,
        samples_needed=needed,
    )
    return exits, certificate


def _check_confidence(confidence, goals):
    if isinstance(confidence, bool) or not isinstance(confidence, numbers.Real):
        raise TypeError(
            "`risk_confidence` must be a number. Received: "
            f"risk_confidence={confidence!r} of type {type(confidence)}."
        )
    if not 0 < confidence < 1:
        raise ValueError(
            "`risk_confidence` must lie in (0, 1). Received: "
            f"risk_confidence={confidence}."
        )
    if goals["max_accuracy_drop"] is None:
        raise ValueError(
            "`risk_confidence` needs a `max_accuracy_drop` to certify. Received: "
            f"risk_confidence={confidence} without one."
        )
