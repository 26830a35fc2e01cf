"""A path of choices from the safest to the cheapest, for tests in that order.

n: samples, E: early exits (the final exit has index E), C: candidates of an exit.
"""

import math

import numpy as np

from keras_dynamic.calibration._arguments import check_max_risk
from keras_dynamic.calibration._closing import cost_passing_by, front_passing_by
from keras_dynamic.calibration._problem import check_pricing
from keras_dynamic.calibration._search import Goal
from keras_dynamic.calibration._walk import Walk

__all__ = ["risk_path"]

# Shares of the leave rates of the safest choice that saves anything on the data: safer
# beginnings, as its risk on other data is higher than on this.
_BEGINNINGS = (0.2, 0.4, 0.6, 0.7, 0.8, 0.9)

# Numbers of losses allowed, from none to what the bound allows on the data.
_LEVELS = 20


def risk_path(leaves, correct, exit_costs, max_risk):
    """Choices of candidates that cost less and less, and lose more and more.

    A sample is lost where the final exit is right and the exit taken is wrong. The
    path goes from a choice with few leavers over the cheapest that loses no sample, if
    there is one, to the cheapest that loses a share of `max_risk`, on the data given.
    Its steps are to be tested on other data, by `certify`.

    Args:
        leaves: Sequence of E boolean arrays of shape `(n, C_e)`, as for
            `choose_thresholds`.
        correct: Boolean array of shape `(n, E + 1)`: whose answer is right at each
            exit.
        exit_costs: Array of shape `(E + 1,)`, the cost of leaving at each exit; or a
            function of a tuple of closed exits that gives it, where closed exits are
            passed by and their heads not paid.
        max_risk: Float in [0, 1), the largest share of samples lost.

    Returns:
        A list of tuples of E integers, a column for each early exit; each costs less
        than the one before, and the first less than closing every exit. An exit at
        which no sample leaves is closed (column 0). The list is empty where nothing
        can be saved.

    Raises:
        TypeError: `leaves` or `correct` that are not boolean.
        ValueError: shapes, costs or a risk other than those above.

    Example:

    ```python
    leaves = np.array([[False, True, True]] * 9 + [[False, False, True]])
    correct = np.array([[True, True]] * 9 + [[False, True]])
    path = kd.calibration.risk_path([leaves], correct, [0.4, 1.1], max_risk=0.1)
    print(path)  # [(1,), (2,)]: column 2 loses one sample in ten
    ```
    """
    leaves, correct, costs_of = check_pricing(leaves, correct, exit_costs)
    check_max_risk(max_risk)
    num_samples = len(correct)
    kept = correct | ~correct[:, -1:]
    walk = Walk(leaves, kept, costs_of(()))
    front = front_passing_by(leaves, kept, costs_of)

    def price(columns):
        return cost_passing_by(walk, columns, costs_of)

    most = math.ceil(max_risk * num_samples)
    levels = np.unique(np.round(np.linspace(0, most, _LEVELS)).astype(int))
    goals = [Goal(least_correct=num_samples - int(level)) for level in levels]
    cheapest = [
        front.columns[goal.best(front.num_correct, front.mean_cost)] for goal in goals
    ]
    path, cost = [], price([0] * walk.num_early)
    saving = [columns for columns in cheapest if price(columns) < cost]
    beginnings = [
        _with_share_of_leavers(walk, saving[0], share)
        for share in (_BEGINNINGS if saving else ())
    ]
    for columns in beginnings + saving:
        lower = price(columns)
        if lower < cost:
            counts = walk.counts(columns)[0][:-1]
            path.append(
                tuple(int(c) if n else 0 for c, n in zip(columns, counts, strict=True))
            )
            cost = lower
    return path


def _with_share_of_leavers(walk, columns, share):
    """At each exit the column whose leave rate is nearest to a share of the given's."""
    return [
        int(np.argmin(np.abs(rates - share * rates[column])))
        for rates, column in zip(walk.leave_rates, columns, strict=True)
    ]
