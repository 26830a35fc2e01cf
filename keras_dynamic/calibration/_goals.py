"""The goals of a calibration: what they may be, and the error where one is too high."""

import fractions
import math

from keras_dynamic.calibration._arguments import check_number


class UnreachableGoal(ValueError):
    """A goal that no choice of thresholds found meets; it says what is reachable.

    Args:
        message: String.
        goal: String, the name of the goal, `"budget"` or `"min_accuracy"`.
        wanted: Float, what was asked for.
        reachable: Float, what can be had on the data given: the lowest mean cost
            found, or the highest accuracy.

    Example:

    ```python
    try:
        kd.calibration.choose_thresholds(
            leaves=[np.array([[False, True]] * 4)],
            correct=np.ones((4, 2), bool),
            exit_costs=[0.4, 1.1],
            budget=0.3,
        )
    except kd.calibration.UnreachableGoal as error:
        print(error.goal, error.wanted, error.reachable)  # budget 0.3 0.4
    ```
    """

    def __init__(self, message, goal, wanted, reachable):
        # All of them, so that a copy in another process can be made from `args`.
        super().__init__(message, goal, wanted, reachable)
        self.goal = goal
        self.wanted = wanted
        self.reachable = reachable

    def __str__(self):
        return self.args[0]


def check_goals(budget, max_accuracy_drop, min_accuracy):
    """Raises unless one goal is given, is a number, and lies in its range."""
    given = {
        "budget": budget,
        "max_accuracy_drop": max_accuracy_drop,
        "min_accuracy": min_accuracy,
    }
    given = {name: goal for name, goal in given.items() if goal is not None}
    for name, goal in given.items():
        check_number(name, goal)
    if len(given) != 1:
        raise ValueError(
            "Exactly one of `budget`, `max_accuracy_drop` and `min_accuracy` must be "
            f"given. Received: budget={budget}, max_accuracy_drop={max_accuracy_drop}, "
            f"min_accuracy={min_accuracy}."
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
    if min_accuracy is not None and not 0 <= min_accuracy <= 1:
        raise ValueError(
            f"`min_accuracy` must lie in [0, 1]. Received: min_accuracy={min_accuracy}."
        )


def most_lost(max_accuracy_drop, min_accuracy, final_correct, num_samples):
    """How many of the final exit's right answers may be lost; gained, if below 0."""
    # `str` gives the shortest decimal of that float, also for NumPy's scalars.
    if min_accuracy is None:
        return math.floor(fractions.Fraction(str(max_accuracy_drop)) * num_samples)
    # Accuracies are compared as the floats that a report shows, so that one taken from
    # there is met again; quotients of integers are rounded to the nearest float.
    least = float(str(min_accuracy))
    needed = math.floor(least * num_samples)
    return final_correct - (needed if needed / num_samples >= least else needed + 1)


def unreachable_budget(walk, columns, budget):
    """The error for a `Walk` whose cheapest columns cost more than the budget."""
    counts, num_correct = walk.counts(columns)
    rates = counts / walk.num_samples
    if (rates == 1).any():
        where = f"every sample leaves at exit {int(rates.argmax())}"
    else:
        shares = ", ".join(f"{rate:.4g}" for rate in rates)
        where = f"samples leave at exits 0 to {walk.num_early} in shares {shares}"
    lowest = float(walk.mean_cost(counts))
    return UnreachableGoal(
        f"`budget` cannot be reached. Received: budget={budget}. The lowest mean cost "
        f"reachable on the data given is {lowest:.4g} ({where}), at an accuracy of "
        f"{num_correct / walk.num_samples:.4g}.",
        "budget",
        budget,
        lowest,
    )


def unreachable_accuracy(min_accuracy, kept, final_correct, num_samples):
    """The error where `kept` right answers, the margin taken off, are the most."""
    highest = kept / num_samples
    return UnreachableGoal(
        "`min_accuracy` cannot be reached. Received: "
        f"min_accuracy={min_accuracy}. The highest accuracy reachable on the data "
        f"given is {highest:.4g}; the full network's is "
        f"{final_correct / num_samples:.4g}.",
        "min_accuracy",
        min_accuracy,
        highest,
    )
