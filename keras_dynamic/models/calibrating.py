"""Calibration of a model: the dense road once, then temperatures and thresholds."""

import functools
import numbers

import numpy as np
import tensorflow as tf

from keras_dynamic import calibration
from keras_dynamic.calibration._goals import check_goals as check_ranges
from keras_dynamic.models import rules
from keras_dynamic.models.dense_answers import dense_answers
from keras_dynamic.models.engine import score_exit, who_leaves

__all__ = [
    "calibrate",
    "candidate_columns",
    "check_goals",
    "costs_passing_by",
    "exit_scores",
    "exits_under",
    "report_and_adopt",
]

# The margin that a drop of accuracy must keep, against the optimism of having chosen.
_STANDARD_ERRORS = 1.0
# Searches for a budget that those keep who leave, where gates make costs differ.
_ATTEMPTS = 8


def check_goals(model, rule, goals):
    """Raises for a goal that a model under a rule can never be calibrated for.

    Args:
        model: a `DynamicModel`.
        rule: an `ExitRule`.
        goals: dict of `budget`, `max_accuracy_drop` and `min_accuracy`, None where not
            given.

    Returns:
        (name, value) of the goal, or None without any.
    """
    given = {name: goal for name, goal in goals.items() if goal is not None}
    received = ", ".join(f"{name}={goal}" for name, goal in given.items())
    if isinstance(rule, rules.Selected):
        raise ValueError(
            "`rule` must have thresholds to be calibrated; 'selected' has none: its "
            "goals are trained, by `cost_weight` and `prior_weight` of the selector. "
            f"Received: rule={rule!r}, {received or 'no goal'}."
        )
    for name, goal in given.items():
        if isinstance(goal, bool) or not isinstance(goal, numbers.Real):
            raise TypeError(
                f"`{name}` must be a number. Received: {name}={goal!r} of type "
                f"{type(goal)}."
            )
    if len(given) > 1:
        names = " or ".join(f"`{name}`" for name in given)
        raise ValueError(f"Give one of {names}. Received: {received}.")
    if given and len(model.exit_names) == 1:
        raise ValueError(
            "A goal needs an early exit to choose a threshold for; gates are trained, "
            "by `target_rate` and `cost_weight`. Received: a model with one output, "
            f"{received}."
        )
    if given:
        check_ranges(**goals)
    return next(iter(given.items()), None)


def calibrate(model, x, y, rule, goals, batch_size, steps):
    """See `DynamicModel.calibrate`; `goals` are those of `check_goals`."""
    goal = check_goals(model, rule, goals)
    kinds = model.road.kinds
    answers = dense_answers(model, x, y, batch_size, steps)
    outputs, labels = answers.outputs, answers.labels
    fits = [calibration.fit_temperature(log, labels) for log in answers.logs]
    temperatures = np.array([fit.temperature for fit in fits], "float32")
    scores = exit_scores(rule, outputs, kinds, temperatures)[:-1]

    if goal is not None:
        rule = _chosen(model, rule, scores, answers, goal)
    exit_index = exits_under(rule, scores, len(labels))
    return report_and_adopt(model, rule, answers, fits, scores, exit_index, goal)


def report_and_adopt(
    model, rule, answers, fits, scores, exit_index, goal, certificate=None
):
    """The report of a calibration, whose rule and temperatures become the model's.

    Args:
        model: a `DynamicModel`.
        rule: the `ExitRule` found.
        answers: `DenseAnswers` of the rows to report on.
        fits: list of `TemperatureFit`, one an exit.
        scores: list of their (n,) scores, one an early exit.
        exit_index: (n,) exits taken by those rows.
        goal: (name, value), or None.
        certificate: a `Certificate`, or None.
    """
    thresholds = rule.thresholds(len(fits) - 1)
    report = calibration.build_report(
        log_probabilities=answers.logs,
        labels=answers.labels,
        temperatures=fits,
        exit_index=exit_index,
        thresholds=rule.with_values(thresholds).threshold,
        exit_costs=answers.costs_under(rule),
        names=model.exit_names,
        rule=type(rule).__name__,
        goal=goal,
        certificate=certificate,
        leaves=candidate_columns(rule, scores)[1],
        costs_of=costs_passing_by(model, rule, answers),
    )
    # Only now: a failure above leaves the model as it was.
    temperatures = np.array([fit.temperature for fit in fits], "float32")
    with model.road.lock:  # others may be predicting
        model.exit_rule = rule
        model.calibration_temperatures.assign(temperatures)
    return report


def costs_passing_by(model, rule, answers):
    """What leaving at each exit costs on average, for any exits that are closed.

    Args:
        model: a `DynamicModel`.
        rule: the `ExitRule` that closes them; one that remembers asks them all.
        answers: `DenseAnswers`.

    Returns:
        A function of a tuple of closed exits that gives (exits,) costs, 1.0 being the
        plain network.
    """
    nowhere = rule.with_threshold([None] * (len(model.exit_names) - 1))
    always = model.road.asked_under(nowhere)
    means = answers.costs.mean(axis=0)

    @functools.cache
    def costs_of(closed):
        passed = [number for number in closed if number not in always]
        return means - answers.passing(None, passed)

    return costs_of


def exit_scores(rule, outputs, kinds, temperatures):
    """List of (n,) scores at each exit, the final one too, as the walk computes them.

    Args:
        rule: an `ExitRule` with thresholds.
        outputs: list of (n, units) arrays, one an exit.
        kinds: "probabilities" or "logits", one an exit.
        temperatures: (exits,) float32 calibration temperatures.
    """
    rule = rule.bind(tf.zeros(len(outputs) - 1))
    num_rows = len(outputs[0])
    state = rule.initial_state(tf.constant(num_rows))
    sound = tf.zeros([num_rows], tf.bool)
    scores = []
    for index, (output, kind) in enumerate(zip(outputs, kinds, strict=True)):
        _, score, state = score_exit(
            rule, state, sound, tf.constant(output), kind, temperatures[index], index
        )
        scores.append(score.numpy())
    return scores


def exits_under(rule, scores, num_rows):
    """(n,) exits taken for the scores at the early exits."""
    if not scores:
        return np.zeros(num_rows, "int64")
    bound = rule.bind(tf.constant(rule.thresholds(len(scores))))
    leaves = [
        np.asarray(who_leaves(bound, score, exit_index))
        for exit_index, score in enumerate(scores)
    ]
    return calibration.exit_indices(leaves)


def candidate_columns(rule, scores):
    """(candidates, columns): thresholds to try, and who would leave under each.

    Args:
        rule: an `ExitRule` with thresholds.
        scores: list of (n,) scores, one an early exit.

    Returns:
        For each early exit a list of C_e thresholds, `None` (closed) first, and an
        (n, C_e) array of booleans.
    """
    candidates, columns = [], []
    for index, score in enumerate(scores):
        tried = rule.candidates(score)
        candidates.append(tried)
        decided = []
        for threshold in tried:
            value = rule.closed_value if threshold is None else threshold
            bound = rule.bind(tf.fill([len(scores)], tf.constant(value, tf.float32)))
            decided.append(np.asarray(who_leaves(bound, score, index)))
        columns.append(np.stack(decided, axis=1))
    return candidates, columns


def _chosen(model, rule, scores, answers, goal):
    """The rule with thresholds for a goal, and without exits not worth their head.

    The search has every head paid that is passed. Where an exit costs all who get
    there more than it saves those who leave, there is another search without it.
    """

    rows = np.arange(len(answers.labels))

    def mean_cost(rule):
        taken = exits_under(rule, scores, len(rows))
        return float(np.mean(answers.costs_under(rule)[rows, taken]))

    def judged(rule):  # both meet the goal: which is better?
        wrong = np.mean(~answers.correct[rows, exits_under(rule, scores, len(rows))])
        cost = mean_cost(rule)
        return (wrong, cost) if goal[0] == "budget" else (cost, wrong)

    best, closed = _with_chosen_thresholds(rule, scores, answers, goal), ()
    for exit_index in range(len(scores)):
        values = best.thresholds(len(scores))
        values[exit_index] = best.closed_value
        without = best.with_values(values)
        asked = model.road.asked_under(without)
        if exit_index in asked or mean_cost(without) >= mean_cost(best):
            continue
        try:
            given = scores, answers, goal, (*closed, exit_index)
            other = _with_chosen_thresholds(rule, *given)
        except calibration.UnreachableGoal:
            continue
        if judged(other) < judged(best):
            best, closed = other, given[-1]
    return best


def _with_chosen_thresholds(rule, scores, answers, goal, closed=()):
    """The rule with one threshold for each early exit, for the goal.

    The search takes it that leaving at an exit costs every sample the same, its mean.
    With gates before the exit that is so on average only, and those who leave there may
    cost more: a budget is then lowered until what they cost keeps to it.

    Args:
        closed: exits that are passed by.
    """
    (name, aim), correct = goal, answers.correct
    costs = answers.costs - answers.passing(None, closed)
    for _ in range(_ATTEMPTS):
        shares = costs.mean(axis=0)
        chosen = _searched(rule, scores, correct, shares, {name: aim}, closed)
        if name != "budget":
            break
        taken = exits_under(chosen, scores, len(costs))
        excess = float(np.mean(costs[np.arange(len(costs)), taken])) - goal[1]
        if excess <= 1e-9:
            break
        aim -= excess
    return chosen


def _searched(rule, scores, correct, shares, goal, closed):
    """The rule with the thresholds that `choose_thresholds` finds."""
    candidates, columns = candidate_columns(rule, scores)
    for exit_index in closed:
        candidates[exit_index] = [None]
        columns[exit_index] = columns[exit_index][:, :1]
    choice = calibration.choose_thresholds(
        columns, correct, shares, **goal, standard_errors=_STANDARD_ERRORS
    )
    chosen = [
        tried[column] for tried, column in zip(candidates, choice.columns, strict=True)
    ]
    return rule.with_values(rule.with_threshold(chosen).thresholds(len(scores)))
