"""The front of accuracy against cost."""

import numpy as np

from keras_dynamic.calibration._arguments import float_array
from keras_dynamic.calibration._closing import front_passing_by
from keras_dynamic.calibration._problem import check_pricing

__all__ = ["pareto_front", "threshold_front"]


def pareto_front(costs, accuracies):
    """Says of each point whether no other is as cheap and as accurate, and better.

    Points that are equal are on the front together. A point with a NaN is not on it.

    Args:
        costs: Array of shape `(n,)`, the lower the better.
        accuracies: Array of shape `(n,)`, the higher the better.

    Returns:
        Boolean array of shape `(n,)`.

    Raises:
        TypeError: for what are no numbers.
        ValueError: arrays of other shapes.

    Example:

    ```python
    print(kd.calibration.pareto_front([0.2, 0.5, 0.6], [0.8, 0.9, 0.85]))
    # [True True False]: the third costs more than the second and knows less
    ```
    """
    costs = float_array("costs", costs)
    accuracies = float_array("accuracies", accuracies)
    if costs.ndim != 1 or costs.shape != accuracies.shape:
        raise ValueError(
            "`costs` and `accuracies` must have one shape (points,). Received: shapes "
            f"{costs.shape} and {accuracies.shape}."
        )
    is_number = ~(np.isnan(costs) | np.isnan(accuracies))
    on_front = np.zeros(costs.shape, dtype=bool)
    best = -np.inf
    # From the cheapest on: at each cost the most accurate, if the cheaper know less.
    for cost in np.unique(costs[is_number]):
        here = is_number & (costs == cost)
        top = np.max(accuracies[here])
        if top > best:
            on_front |= here & (accuracies == top)
            best = top
    return on_front


def threshold_front(leaves, correct, exit_costs):
    """The choices of candidates of which none is as cheap and as accurate as another.

    Up to three early exits (with 66 candidates each) every choice is looked at. Beyond,
    the front is that of all choices that differ in one exit or two from those that are
    best for one of sixteen prices of cost.

    Args:
        leaves: Sequence of E boolean arrays of shape `(n, C_e)`, as for
            `choose_thresholds`.
        correct: Boolean array of shape `(n, E + 1)`: whose answer is right at each
            exit.
        exit_costs: Array of shape `(E + 1,)`, the cost of leaving at each exit; or a
            function of a tuple of closed exits that gives it, where closed exits are
            passed by and their heads not paid.

    Returns:
        Three arrays: integers `(P, E)`, the candidate at each early exit; the mean
        costs `(P,)`; the shares of right answers `(P,)`. Both ascend.

    Raises:
        TypeError: `leaves` or `correct` that are not boolean.
        ValueError: other shapes, no samples, or costs that are not positive numbers.

    Example:

    ```python
    leaves = [np.array([[False, True, True]] * 3 + [[False, False, True]])]
    correct = np.array([[True, True]] * 3 + [[False, True]])
    columns, costs, accuracies = kd.calibration.threshold_front(
        leaves, correct, [0.4, 1.0]
    )
    print(columns.tolist(), costs, accuracies)
    # [[2], [1]] [0.4 0.55] [0.75 1.  ]: all closed is as accurate, and dearer
    ```
    """
    leaves, correct, costs_of = check_pricing(leaves, correct, exit_costs)
    front = front_passing_by(leaves, correct, costs_of)
    return front.columns, front.mean_cost, front.num_correct / len(correct)
