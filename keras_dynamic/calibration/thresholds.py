"""Choosing thresholds: which candidate at each early exit meets a goal best.

n: samples, E: early exits (the final exit has index E), C: candidates of an exit.

The rule stays a black box. The caller lists candidates for each early exit ("closed"
first, then `candidate_thresholds`, then `open_threshold` for "everyone leaves"), asks
its rule who would leave under each of them, and hands over boolean columns; what comes
back is a column for each exit.
"""

import dataclasses
import fractions
import math

import numpy as np

from keras_dynamic.calibration._search import Goal, Search
from keras_dynamic.calibration._walk import Walk, first_exit

# A mean cost counts as within the budget up to this relative rounding error.
_COST_SLACK = 1e-9

# What an answer that differs from the final exit's costs in the search, in parts of a
# right answer: 1 / sqrt(changes) of a standard error, for a few or thousands of them.
_SCALE = 128
_PENALTIES = (0, 1, 2, 4, 8, 16, 32, 64, 128, 512)


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


def candidate_thresholds(scores, limit=64):
    """Thresholds between observed scores, at evenly spaced quantiles.

    Each lies midway between two neighbors among the distinct scores observed, so that
    none coincides with a score and a last bit of rounding moves nobody across. Scores
    are taken as float32, the precision of the network; the thresholds are float32
    numbers too (widened to float64), strictly between their two neighbors; where no
    float32 number is, there is no candidate.

    The two ends are not among them: "closed" (`None`) and "everyone leaves"
    (`open_threshold`) are the caller's to add.

    Args:
        scores: Array of shape `(n,)`, the scores at one exit; those that are not
            finite are left out.
        limit: Integer, at least 1, the largest number of thresholds. Default 64.

    Returns:
        Float64 array of shape `(m,)`, m <= `limit`, strictly ascending; empty where
        fewer than two distinct scores were observed.

    Raises:
        ValueError: another shape, or a limit below 1.

    Example:

    ```python
    scores = np.array([0.5, 0.25, 0.75, 0.75])
    print(kd.calibration.candidate_thresholds(scores))  # [0.375 0.625]
    ```
    """
    if limit != int(limit) or limit < 1:
        raise ValueError(
            f"`limit` must be an integer of at least 1. Received: limit={limit}."
        )
    scores = _finite_scores(scores)
    values, sizes = np.unique(scores, return_counts=True)
    low, high = values[:-1].astype(np.float64), values[1:].astype(np.float64)
    middle = ((low + high) / 2).astype(np.float32).astype(np.float64)
    separates = (low < middle) & (middle < high)
    middle, below = middle[separates], np.cumsum(sizes)[:-1][separates]
    if middle.size <= limit:
        return middle
    # The cut whose number of scores below it is nearest to each quantile.
    wanted = np.arange(1, limit + 1) * scores.size / (limit + 1)
    right = np.clip(np.searchsorted(below, wanted), 1, below.size - 1)
    is_left = wanted - below[right - 1] <= below[right] - wanted
    return middle[np.unique(right - is_left)]


def open_threshold(scores, leaves_above=True):
    """A threshold that every observed score passes.

    For a rule that leaves above its threshold it lies below the least finite score:
    0 if all are positive, which stays in [0, 1] for probabilities and is below every
    maximum of a softmax, else lower by 1 or more. For a rule that leaves below its
    threshold it lies above the greatest by 1 or more. A rule that knows the range of
    its own scores may rather use the end of that range.

    Args:
        scores: Array of shape `(n,)`, the scores at one exit.
        leaves_above: Boolean, whether samples leave above the threshold (confidence)
            or below it (entropy). Default True.

    Returns:
        A float, finite, that float32 holds exactly.

    Raises:
        ValueError: another shape.

    Example:

    ```python
    print(kd.calibration.open_threshold(np.array([0.5, 0.9])))  # 0.0
    print(kd.calibration.open_threshold(np.array([0.1, 0.7]), leaves_above=False))
    # 1.7
    ```
    """
    scores = _finite_scores(scores)
    if leaves_above:
        if scores.size == 0 or np.min(scores) > 0:
            return 0.0
        return _beyond(np.min(scores), -1)
    return 1.0 if scores.size == 0 else _beyond(np.max(scores), 1)


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
    leave_columns = [np.asarray(column) for column in leave_columns]
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
        _check_boolean(column, f"leave_columns[{exit_index}]")
    return first_exit(leave_columns, 0, len(leave_columns))


def choose_thresholds(
    leaves,
    correct,
    exit_costs,
    *,
    budget=None,
    max_accuracy_drop=None,
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

    The cheapest of many choices owes a part of its accuracy to chance, and loses more
    on other data. With `standard_errors=1`, the loss plus one standard error of it
    (of paired answers, as in McNemar's test) must lie within `max_accuracy_drop`.

    An exit at which no sample leaves in the end is closed (column 0).

    The search is local and deterministic. Its starting points are the closed network,
    the open one, the best of those with one leave rate at every exit, and the best
    that a bisection of the price at which cost is traded for accuracy comes by; from
    each of them one exit, then two exits at a time are set to their best candidates,
    until nothing improves. The choice always meets the goal; that none is better is
    not proven. It is the choice for the data given: judge it on other data.

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
        standard_errors: Float >= 0, how many standard errors the loss must stay
            below `max_accuracy_drop`. Defaults to 0, the loss on the data given.

    Returns:
        A `ThresholdChoice`.

    Raises:
        TypeError: `leaves` or `correct` that are not boolean.
        ValueError: none or both of the goals, a goal out of its range, other shapes,
            no samples, costs that are not positive numbers, or a budget below the
            lowest mean cost found, which the error states. (For the thresholds of a
            score, with costs that rise from exit to exit, it is the lowest that the
            candidates reach.)

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
    leaves, correct, exit_costs = _check_problem(leaves, correct, exit_costs)
    _check_goals(budget, max_accuracy_drop)
    walk = Walk(leaves, correct, exit_costs)
    if budget is None:
        columns = _cheapest(
            leaves, correct, exit_costs, max_accuracy_drop, standard_errors
        )
    else:
        goal = Goal(most_cost=budget * (1 + _COST_SLACK))
        columns = Search(walk, goal).run()
        if goal.is_missed(*walk.outcome(columns)):
            # Only a budget can be missed: closing every exit loses no accuracy.
            raise ValueError(_budget_error(walk, columns, budget))
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


def _cheapest(leaves, correct, exit_costs, max_accuracy_drop, standard_errors):
    """Columns of the lowest cost found that lose no more answers than allowed."""
    final, num_samples = correct[:, -1:], len(correct)
    # `str` gives the shortest decimal of that float, also for NumPy's scalars.
    allowed = math.floor(fractions.Fraction(str(max_accuracy_drop)) * num_samples)
    plain = Walk(leaves, correct, exit_costs)
    best = [0] * plain.num_early  # all closed: nothing lost, nothing gained
    for penalty in _PENALTIES if standard_errors else (0,):
        # The search counts right answers. Less a part of an answer for each one that
        # differs from the final exit's, they stand for the standard error.
        values = _SCALE * correct.astype(np.int64) - penalty * (correct != final)
        walk = Walk(leaves, values, exit_costs)
        least = _SCALE * (int(np.sum(final)) - allowed)
        columns = Search(walk, Goal(least_correct=least)).run()
        taken = exit_indices(plain.leaving(columns))
        dynamic = correct[np.arange(num_samples), taken]
        lost = np.sum(final[:, 0] > dynamic) - np.sum(dynamic > final[:, 0])
        # The variance of a sum of n differences in {-1, 0, 1}.
        variance = np.sum(final[:, 0] != dynamic) - lost**2 / num_samples
        margin = standard_errors * math.sqrt(max(variance, 0))
        if lost + margin <= allowed and (
            plain.outcome(columns)[1] < plain.outcome(best)[1]
        ):
            best = columns
    return best


def _budget_error(walk, columns, budget):
    counts, num_correct = walk.counts(columns)
    rates = counts / walk.num_samples
    if np.any(rates == 1):
        where = f"every sample leaves at exit {int(np.argmax(rates))}"
    else:
        shares = ", ".join(f"{rate:.4g}" for rate in rates)
        where = f"samples leave at exits 0 to {walk.num_early} in shares {shares}"
    return (
        f"`budget` cannot be reached. Received: budget={budget}. The lowest mean cost "
        f"reachable on the data given is {walk.mean_cost(counts):.4g} ({where}), at an "
        f"accuracy of {num_correct / walk.num_samples:.4g}."
    )


def _check_goals(budget, max_accuracy_drop):
    if (budget is None) == (max_accuracy_drop is None):
        raise ValueError(
            "Exactly one of `budget` and `max_accuracy_drop` must be given. Received: "
            f"budget={budget}, max_accuracy_drop={max_accuracy_drop}."
        )
    if budget is not None and not 0 < budget < math.inf:
        raise ValueError(
            f"`budget` must be a number above 0. Received: budget={budget}."
        )
    if max_accuracy_drop is not None and not 0 <= max_accuracy_drop < 1:
        raise ValueError(
            "`max_accuracy_drop` must lie in [0, 1). Received: "
            f"max_accuracy_drop={max_accuracy_drop}."
        )


def _check_problem(leaves, correct, exit_costs):
    correct = np.asarray(correct)
    exit_costs = np.asarray(exit_costs, dtype=np.float64)
    leaves = [np.asarray(matrix) for matrix in leaves]
    num_early = len(leaves)
    if num_early == 0:
        raise ValueError(
            "`leaves` must hold an array for each early exit. Received: none."
        )
    if correct.ndim != 2 or correct.shape[1] != num_early + 1:
        raise ValueError(
            f"`correct` must have shape (samples, {num_early + 1}), a column for each "
            f"exit and the final one. Received: shape={correct.shape}."
        )
    if correct.shape[0] == 0:
        raise ValueError("`correct` must hold at least one sample. Received: none.")
    _check_boolean(correct, "correct")
    for exit_index, matrix in enumerate(leaves):
        name = f"leaves[{exit_index}]"
        if matrix.ndim != 2 or len(matrix) != len(correct) or matrix.shape[1] == 0:
            raise ValueError(
                f"`{name}` must have shape ({len(correct)}, candidates). Received: "
                f"shape={matrix.shape}."
            )
        _check_boolean(matrix, name)
        if np.any(matrix[:, 0]):
            raise ValueError(
                f"Column 0 of `{name}` must be all False, the closed exit. Received: "
                f"{int(np.sum(matrix[:, 0]))} samples that leave."
            )
    if exit_costs.shape != (num_early + 1,):
        raise ValueError(
            f"`exit_costs` must have shape ({num_early + 1},). Received: "
            f"shape={exit_costs.shape}."
        )
    if not np.all((exit_costs > 0) & np.isfinite(exit_costs)):
        raise ValueError(
            "`exit_costs` must be positive numbers. Received: "
            f"exit_costs={exit_costs.tolist()}."
        )
    return leaves, correct, exit_costs


def _check_boolean(array, name):
    if array.dtype != np.bool_:
        raise TypeError(f"`{name}` must be boolean. Received: dtype={array.dtype}.")


def _finite_scores(scores):
    scores = np.asarray(scores)
    if scores.ndim != 1:
        raise ValueError(
            f"`scores` must have shape (samples,). Received: shape={scores.shape}."
        )
    # What overflows float32 is infinite to the network.
    with np.errstate(over="ignore"):
        scores = scores.astype(np.float32)
    return scores[np.isfinite(scores)]


def _beyond(score, direction):
    step = direction * max(1.0, abs(float(score)))
    limit = np.finfo(np.float32).max
    return float(np.float32(np.clip(float(score) + step, -limit, limit)))
