"""What a choice of candidates at every early exit gives, for many choices at once.

n: samples, E: early exits (the final exit has index E), C: candidates of an exit,
P: patterns of an exit.
"""

import math

import numpy as np


class Walk:
    """What every choice of columns gives: answers right, and mean cost.

    Rows of `leaves[e]` that are equal form a pattern. A threshold rule with C
    candidates has at most C + 1 of them whatever n is, so that "the sum over samples
    for each candidate" is a histogram over patterns and a small matrix product.
    Everything summed is an integer below 2**53, hence exact.

    With `standard_errors`, so many standard errors of the loss against the final exit
    (of paired answers) are taken off the answers right wherever they are given, but
    for `counts`.
    """

    def __init__(self, leaves, correct, exit_costs, standard_errors=0.0):
        self.num_samples, self.num_exits = correct.shape
        self.num_early = self.num_exits - 1
        self.exit_costs = exit_costs
        self.correct = correct.T.astype(np.float64)
        self.standard_errors = standard_errors
        self.changed = np.abs(self.correct - self.correct[-1])
        self.final_correct = np.sum(self.correct[-1])
        folded = [_fold(matrix) for matrix in leaves]
        self.patterns = [patterns for patterns, _ in folded]
        self.pattern_of_row = [pattern_of_row for _, pattern_of_row in folded]
        self.leave_rates = [np.mean(matrix, axis=0) for matrix in leaves]

    def leaving(self, columns):
        """Who would leave each early exit: a list of E boolean arrays `(n,)`."""
        return [self.leaving_exit(e, column) for e, column in enumerate(columns)]

    def leaving_exit(self, exit_index, column):
        is_leaving = self.patterns[exit_index][:, column] > 0
        return is_leaving[self.pattern_of_row[exit_index]]

    def mean_cost(self, counts):
        # The same order of summation for one choice and for many, so that equal
        # counts have equal costs to the last bit.
        return np.sum(counts * self.exit_costs, axis=-1) / self.num_samples

    def counts(self, columns):
        """Samples that leave at each exit `(E + 1,)`, and the number of them right."""
        taken = first_exit(self.leaving(columns), 0, self.num_early)
        counts = np.bincount(taken, minlength=self.num_exits).astype(np.float64)
        return counts, np.sum(self.correct[taken, np.arange(self.num_samples)])

    def outcome(self, columns):
        counts, num_correct = self.counts(columns)
        changes = 0.0
        if self.standard_errors:
            taken = first_exit(self.leaving(columns), 0, self.num_early)
            changes = np.sum(self.changed[taken, np.arange(self.num_samples)])
        return self._less_margin(num_correct, changes), self.mean_cost(counts)

    def _less_margin(self, num_correct, changes):
        """The answers right less the margin; `changes`: answers that differ."""
        if not self.standard_errors:
            return num_correct
        # The variance of a sum of n differences in {-1, 0, 1}.
        variance = changes - (self.final_correct - num_correct) ** 2 / self.num_samples
        return num_correct - self.standard_errors * np.sqrt(np.maximum(variance, 0))

    def vary_one(self, leaving, exit_index):
        """Right answers and mean cost, `(C,)` each, for all candidates of an exit."""
        patterns = self.patterns[exit_index]
        taken = first_exit(leaving, 0, exit_index, self.num_exits)
        reached = np.flatnonzero(taken == self.num_exits)
        later = first_exit(leaving, exit_index + 1, self.num_early)[reached]
        pattern = self.pattern_of_row[exit_index][reached]
        passed = np.flatnonzero(taken < self.num_exits)

        def fold(weights):
            return np.bincount(pattern, weights, minlength=len(patterns))

        def total(values):
            here = fold(values[exit_index, reached])
            beyond = fold(values[later, reached])
            return (here - beyond) @ patterns + (
                np.sum(beyond) + np.sum(values[taken[passed], passed])
            )

        num_correct = self._less_margin(
            total(self.correct), total(self.changed) if self.standard_errors else 0.0
        )
        table = np.bincount(
            pattern * self.num_exits + later, minlength=len(patterns) * self.num_exits
        ).reshape(len(patterns), self.num_exits)
        counts = (1 - patterns).T @ table
        counts += np.bincount(taken[passed], minlength=self.num_exits)
        counts[:, exit_index] += np.sum(table, axis=1) @ patterns
        return num_correct, self.mean_cost(counts)

    def vary_two(self, leaving, first, second):
        """The same, `(C_first, C_second)` each, for all pairs of two exits.

        The costs are sums of floats here, rounded so that equal ones stay equal: right
        to twelve digits.
        """
        taken = first_exit(leaving, 0, first, self.num_exits)
        between = first_exit(leaving, first + 1, second, self.num_exits)
        later = first_exit(leaving, second + 1, self.num_early)
        reached = taken == self.num_exits
        is_joint = reached & (between == self.num_exits)
        single = np.flatnonzero(reached & ~is_joint)
        joint = np.flatnonzero(is_joint)
        passed = np.flatnonzero(~reached)
        reached = np.flatnonzero(reached)
        out, stay = self.patterns[first], 1 - self.patterns[first]
        out_next = self.patterns[second]
        pattern = self.pattern_of_row[first]
        shape = (len(out), len(out_next))
        pair = pattern[joint] * shape[1] + self.pattern_of_row[second][joint]

        def total(value_at):
            leave = np.bincount(
                pattern[reached], value_at(first, reached), minlength=len(out)
            )
            middle = np.bincount(
                pattern[single], value_at(between[single], single), minlength=len(out)
            )
            at_second, at_later = (
                np.bincount(pair, value_at(exits, joint), minlength=math.prod(shape))
                for exits in (second, later[joint])
            )
            swing = (at_second - at_later).reshape(shape)
            remain = middle + np.sum(at_later.reshape(shape), axis=1)
            alone = leave @ out + remain @ stay
            alone += np.sum(value_at(taken[passed], passed))
            return alone[:, None] + (stay.T @ swing) @ out_next

        scale = np.max(self.exit_costs)
        costs = self.exit_costs / scale
        num_correct = total(lambda exits, rows: self.correct[exits, rows])
        changes = 0.0
        if self.standard_errors:
            changes = total(lambda exits, rows: self.changed[exits, rows])
        cost = total(lambda exits, rows: np.broadcast_to(costs[exits], rows.shape))
        return (
            self._less_margin(num_correct, changes),
            np.round(cost / self.num_samples, 12) * scale,
        )


def first_exit(leaving, start, stop, otherwise=None):
    """For each row the first exit in [start, stop) that it leaves, or `otherwise`."""
    # Counts the exits passed: no branch on the data, ten times faster than a masked
    # assignment.
    stays = np.ones(leaving[0].shape, dtype=bool)
    taken = np.full(leaving[0].shape, start, dtype=np.int16)
    for exit_index in range(start, stop):
        stays &= ~leaving[exit_index]
        taken += stays
    return np.where(stays, stop if otherwise is None else otherwise, taken).astype(
        np.intp
    )


def _fold(matrix):
    """The distinct rows of a boolean matrix, as floats, and which of them each is."""
    packed = np.ascontiguousarray(np.packbits(matrix, axis=1))
    _, first_row, pattern_of_row = np.unique(
        packed.view(f"V{packed.shape[1]}").ravel(),
        return_index=True,
        return_inverse=True,
    )
    return matrix[first_row].astype(np.float64), pattern_of_row
