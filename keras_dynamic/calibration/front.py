"""The front of accuracy against cost."""

import numpy as np

__all__ = ["pareto_front"]


def pareto_front(costs, accuracies):
    """Says of each point whether no other is as cheap and as accurate, and better.

    Points that are equal are on the front together. A point with a NaN is not on it.

    Args:
        costs: Array of shape `(n,)`, the lower the better.
        accuracies: Array of shape `(n,)`, the higher the better.

    Returns:
        Boolean array of shape `(n,)`.

    Raises:
        ValueError: arrays of other shapes.

    Example:

    ```python
    print(kd.calibration.pareto_front([0.2, 0.5, 0.6], [0.8, 0.9, 0.85]))
    # [True True False]: the third costs more than the second and knows less
    ```
    """
    costs = np.asarray(costs, dtype=np.float64)
    accuracies = np.asarray(accuracies, dtype=np.float64)
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
