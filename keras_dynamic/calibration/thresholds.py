"""Choosing thresholds: which candidate at each early exit meets a goal best.

n: samples, E: early exits (the final exit has index E), C: candidates of an exit.

The rule stays a black box. The caller lists candidates for each early exit ("closed"
first, then `candidate_thresholds`, then `open_threshold` for "everyone leaves"), asks
its rule who would leave under each of them, and hands over boolean columns; what comes
back is a column for each exit.
"""

import dataclasses
import math

import numpy as np

from keras_dynamic.calibration._arguments import check_number, listed
from keras_dynamic.calibration._goals import (
    check_goals,
    most_lost,
    unreachable_accuracy,
    unreachable_budget,
)
from keras_dynamic.calibration._problem import boolean_array, check_problem
from keras_dynamic.calibration._search import Goal, Search
from keras_dynamic.calibration._walk import Walk, first_exit

# A mean cost counts as within the budget up to this relative rounding error.
_COST_SLACK = 1e-9


@dataclasses.dataclass(frozen=True)
class ThresholdChoice:
    """The answer of `choose_thresholds`, with what it gives on the data it was given.

    Attributes:
        columns: Tuple of E integers, the candidate chosen at each early exit.
        exit_rates: Tuple of E + 1 floats, the share of samples that leave at each
            exit.
        accuracy: Float, the share of right answers.
        mean_cost: Float, the mean of `exit_costs` over the samples.

    Example:

    ```python
    choice = kd.calibration.ThresholdChoice((3,), (0.6, 0.4), 0.91, 0.55)
    print(choice.mean_cost)  # 0.55
    ```
    """

    columns: tuple[int, ...]
    exit_rates: tuple[float, ...]
    accuracy: float
    mean_cost: float


def exit_indices(leave_columns):
    """The exit at which each sample leaves: the first that lets it go.

    Args:
        leave_columns: Sequence of E boolean arrays of shape `(n,)`, one for each early
            exit: who would leave there.

    Returns:
        Integer array of shape `(n,)`, in [0, E]; E is the final exit, which takes
        everyone that is left.

    Raises:
        TypeError: arrays that are not boolean.
        ValueError: no exit, or arrays of other shapes.

    Example:

    ```python
    first, second = np.array([True, False, False]), np.array([True, True, False])
    print(kd.calibration.exit_indices([first, second]))  # [0 1 2]
    ```
    """
    leave_columns = [
        boolean_array(f"leave_columns[{exit_index}]", column)
        for exit_index, column in enumerate(listed("leave_columns", leave_columns))
    ]
    if not leave_columns:
        raise ValueError(
            "`leave_columns` must hold an array for each early exit. Received: none."
        )
    for exit_index, column in enumerate(leave_columns):
        if column.ndim != 1 or column.shape != leave_columns[0].shape:
            raise ValueError(
                "`leave_columns` must hold arrays of one shape (samples,). Received: "
                f"shape={column.shape} at exit {exit_index}."
            )
    return first_exit(leave_columns, 0, len(leave_columns))


def choose_thresholds(
    leaves,
    correct,
    exit_costs,
    *,
    budget=None,
    max_accuracy_drop=None,
    min_accuracy=None,
    standard_errors=0.0,
):
    """The candidate at each early exit that meets one goal best.

    With `budget`: the highest accuracy among the choices whose mean cost is at most
    `budget`, the cheaper one where two are equal. (Mean costs are floats: one that
    exceeds the budget by rounding, a relative 1e-9, is within it.)

    With `max_accuracy_drop`: the lowest mean cost among the choices that lose no more
    answers than allowed against the final exit alone, the more accurate one where two
    are equal. Answers are counted, not compared as floats: with R right answers of
    the final exit, R - floor(`max_accuracy_drop` * n) are required, where the drop
    is the decimal number as it is written: 0.29 of 100 samples is 29.

    With `min_accuracy`: the same among the choices whose accuracy, right answers / n,
    is at least that.

    The cheapest of many choices owes a part of its accuracy to chance, and loses more
    on other data. With `standard_errors=1`, the loss against the final exit plus one
    standard error of it (of paired answers, as in McNemar's test) must lie within
    what the goal allows. Closing every exit loses nothing, and needs no margin.

    An exit at which no sample leaves in the end is closed (column 0).

    The search is deterministic. Up to three early exits (with 66 candidates each)
    every choice is looked at, and the best is found. Beyond, the search is local: from
    the closed network, the open one, the best of those with one leave rate at every
    exit, the best that a bisection of the price at which cost is traded for accuracy
    comes by, and the best that differs in two exits from one that is best for some
    price, one exit, then two exits at a time are set to their best candidates, until
    nothing improves. The choice always meets the goal. It is the choice for the data
    given: judge it on other data.

    Args:
        leaves: Sequence of E boolean arrays of shape `(n, C_e)`: column c says who
            would leave exit e, if it got there, under candidate c. Column 0 is the
            closed exit, all False. To reach low costs, one column should let everyone
            go. A NaN score never leaves.
        correct: Boolean array of shape `(n, E + 1)`: whose answer is right at each
            exit.
        exit_costs: Array of shape `(E + 1,)`, the cost of a sample that leaves at each
            exit, relative to the plain network without early heads (so that the last
            is usually above 1).
        budget: Float above 0, the highest mean cost.
        max_accuracy_drop: Float in [0, 1), the largest loss of accuracy.
        min_accuracy: Float in [0, 1], the least accuracy.
        standard_errors: Float >= 0, how many standard errors the loss must stay
            below what `max_accuracy_drop` or `min_accuracy` allows. Defaults to 0,
            the loss on the data given.

    Returns:
        A `ThresholdChoice`.

    Raises:
        TypeError: `leaves` or `correct` that are not boolean, a goal that is no
            number.
        ValueError: none or several of the goals, a goal out of its range, other
            shapes, no samples, or costs that are not positive numbers.
        UnreachableGoal: a ValueError, for a budget below the lowest mean cost found,
            which the error states. (For the thresholds of a score, with costs that
            rise from exit to exit, it is the lowest that the candidates reach.) And
            for a `min_accuracy` above the full network's, and above what any choice
            found has, the margin taken off.

    Example:

    ```python
    scores = np.array([0.9, 0.8, 0.6, 0.4])
    thresholds = kd.calibration.candidate_thresholds(scores)
    closed = np.zeros((4, 1), dtype=bool)
    choice = kd.calibration.choose_thresholds(
        leaves=[np.hstack([closed, scores[:, None] > thresholds])],
        correct=np.array([[True, True], [True, True], [False, True], [False, False]]),
        exit_costs=[0.4, 1.1],
        max_accuracy_drop=0.0,
    )
    print(choice.exit_rates)  # (0.5, 0.5)
    print(thresholds[choice.columns[0] - 1])  # 0.7
    ```
    """
    leaves, correct, exit_costs = check_problem(leaves, correct, exit_costs)
    check_goals(budget, max_accuracy_drop, min_accuracy)
    check_number("standard_errors", standard_errors)
    if not 0 <= standard_errors < math.inf:
        raise ValueError(
            "`standard_errors` must be finite and >= 0. Received: "
            f"standard_errors={standard_errors}."
        )
    walk = Walk(leaves, correct, exit_costs)
    if budget is None:
        final = int(np.sum(correct[:, -1])), len(correct)
        allowed = most_lost(max_accuracy_drop, min_accuracy, *final)
        columns, kept = _cheapest(leaves, correct, exit_costs, allowed, standard_errors)
        if columns is None:
            # Not for a drop: closing every exit loses no accuracy.
            raise unreachable_accuracy(min_accuracy, kept, *final)
    else:
        goal = Goal(most_cost=budget * (1 + _COST_SLACK))
        columns = Search(walk, goal).run()
        if goal.is_missed(*walk.outcome(columns)):
            raise unreachable_budget(walk, columns, budget)
    counts, num_correct = walk.counts(columns)
    return ThresholdChoice(
        columns=tuple(
            int(column) if count else 0
            for column, count in zip(columns, counts[:-1], strict=True)
        ),
        exit_rates=tuple(float(count / walk.num_samples) for count in counts),
        accuracy=float(num_correct / walk.num_samples),
        mean_cost=float(walk.mean_cost(counts)),
    )


def _cheapest(leaves, correct, exit_costs, allowed, standard_errors):
    """The cheapest columns found that lose no more answers than allowed.

    Args:
        allowed: Integer; below 0 as many have to be gained.

    Returns:
        (columns, kept): the columns, None where all lose more; and the largest
        number of right answers that any found kept, the margin taken off.
    """
    walk = Walk(leaves, correct, exit_costs, standard_errors)
    final = int(walk.final_correct)
    goal = Goal(least_correct=final - allowed)
    columns = Search(walk, goal).run()
    num_correct, mean_cost = walk.outcome(columns)
    if not goal.is_missed(num_correct, mean_cost):
        return columns, num_correct
    # All closed: nothing lost, nothing gained, no margin.
    return ([0] * walk.num_early if allowed >= 0 else None), max(
        final, math.floor(num_correct)
    )
