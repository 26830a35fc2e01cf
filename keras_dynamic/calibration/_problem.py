"""The data of a search for thresholds, checked."""

import numpy as np

from keras_dynamic.calibration._arguments import float_array, listed


def check_pricing(leaves, correct, exit_costs):
    """As `check_problem`, the costs as a function of a tuple of closed exits.

    `exit_costs` may be such a function, or an array: the same whatever is closed.
    """
    if not callable(exit_costs):
        leaves, correct, fixed = check_problem(leaves, correct, exit_costs)
        return leaves, correct, lambda closed: fixed
    leaves, correct, _ = check_problem(leaves, correct, exit_costs(()))

    def costs_of(closed):
        return np.asarray(exit_costs(closed), dtype=np.float64)

    return leaves, correct, costs_of


def check_problem(leaves, correct, exit_costs):
    """The three as arrays, or a ValueError or TypeError that names what is wrong."""
    correct = boolean_array("correct", correct)
    exit_costs = float_array("exit_costs", exit_costs)
    leaves = [
        boolean_array(f"leaves[{exit_index}]", matrix)
        for exit_index, matrix in enumerate(listed("leaves", leaves))
    ]
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
    for exit_index, matrix in enumerate(leaves):
        name = f"leaves[{exit_index}]"
        if matrix.ndim != 2 or len(matrix) != len(correct) or matrix.shape[1] == 0:
            raise ValueError(
                f"`{name}` must have shape ({len(correct)}, candidates). Received: "
                f"shape={matrix.shape}."
            )
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


def boolean_array(name, values):
    """An array of bools.

    Raises:
        TypeError: for what is none; numbers are none.
    """
    try:
        array = np.asarray(values)
    except ValueError:
        raise TypeError(
            f"`{name}` must be a boolean array. Received: rows of several lengths."
        ) from None
    if array.dtype != np.bool_:
        raise TypeError(f"`{name}` must be boolean. Received: dtype={array.dtype}.")
    return array
