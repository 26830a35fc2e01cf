"""Local search for the candidates, one at each early exit, that meet a goal best."""

import dataclasses
import math

import numpy as np

# The prices of cost that are tried, in accuracy for one plain network, and how often
# the interval between their logarithms is halved.
_PRICE_RANGE = (1e-6, 1e6)
_PRICE_STEPS = 16

# Two exits with more pairs of patterns than this are not searched jointly. (A
# threshold rule with 64 candidates has about 4000 pairs.)
_MAX_PATTERN_PAIRS = 2**20


@dataclasses.dataclass(frozen=True)
class Goal:
    """The goal as a key of three numbers, the lesser the better.

    Choices that miss the goal come after all that meet it, nearest to it first.
    """

    most_cost: float | None = None
    least_correct: int | None = None

    def is_missed(self, num_correct, mean_cost):
        if self.most_cost is not None:
            return mean_cost > self.most_cost
        return num_correct < self.least_correct

    def keys(self, num_correct, mean_cost):
        missed = self.is_missed(num_correct, mean_cost)
        cost_first = missed == (self.most_cost is not None)
        return (
            missed,
            np.where(cost_first, mean_cost, -num_correct),
            np.where(cost_first, -num_correct, mean_cost),
        )

    def key(self, num_correct, mean_cost):
        return tuple(float(part) for part in self.keys(num_correct, mean_cost))

    def best(self, num_correct, mean_cost):
        """The index of the best of many, the first of equals."""
        missed, first, second = self.keys(num_correct, mean_cost)
        return int(np.lexsort((second, first, missed))[0])


class Search:
    """Local search over the columns of all exits."""

    def __init__(self, walk, goal):
        self.walk = walk
        self.goal = goal
        self.closed = [0] * walk.num_early
        self.most_leaving = [int(np.argmax(rates)) for rates in walk.leave_rates]
        self.best_columns, self.best_key = None, None

    def run(self):
        """The columns found for the goal, or the nearest to it where none meet it."""
        cheapest = self._descend_price(self.most_leaving, math.inf)
        starts = [self.closed, cheapest, self._shared_rate(), self._bisect(cheapest)]
        starts.append(self.best_columns)
        finished = {}
        for start in starts:
            if tuple(start) not in finished:
                finished[tuple(start)] = self._descend_goal(start)
        return min(finished.values(), key=lambda end: self._key(end))

    def _descend_price(self, columns, price):
        """Sets one exit at a time to maximize accuracy - price * cost.

        An infinite price minimizes the cost alone.
        """
        columns = list(columns)
        leaving = self.walk.leaving(columns)
        improved = True
        while improved:
            improved = False
            for exit_index in range(self.walk.num_early):
                num_correct, mean_cost = self.walk.vary_one(leaving, exit_index)
                self._remember(columns, exit_index, num_correct, mean_cost)
                if math.isinf(price):
                    value = -mean_cost
                else:
                    value = num_correct / self.walk.num_samples - price * mean_cost
                column = int(np.argmax(value))
                # Rounding must not make two equal choices alternate for ever.
                if value[column] > value[columns[exit_index]] + 1e-12 * (
                    1 + abs(value[column])
                ):
                    columns[exit_index] = column
                    leaving[exit_index] = self.walk.leaving_exit(exit_index, column)
                    improved = True
        return columns

    def _key(self, columns):
        return self.goal.key(*self.walk.outcome(columns))

    def _remember(self, columns, exit_index, num_correct, mean_cost):
        column = self.goal.best(num_correct, mean_cost)
        key = self.goal.key(num_correct[column], mean_cost[column])
        if self.best_key is None or key < self.best_key:
            self.best_key = key
            self.best_columns = list(columns)
            self.best_columns[exit_index] = column

    def _shared_rate(self):
        """The best among the choices with about one leave rate at all exits."""
        rates = np.unique(np.concatenate(self.walk.leave_rates))
        if rates.size > 64:
            rates = rates[np.linspace(0, rates.size - 1, 64).astype(int)]
        paths = [
            [int(np.argmin(np.abs(column - rate))) for column in self.walk.leave_rates]
            for rate in rates
        ]
        return min(paths, key=self._key)

    def _bisect(self, cheapest):
        """The best end of a bisection of the price at which cost is traded."""
        low, high = (math.log(bound) for bound in _PRICE_RANGE)
        columns, ends = cheapest, []
        for _ in range(_PRICE_STEPS):
            price = (low + high) / 2
            columns = self._descend_price(columns, math.exp(price))
            ends.append(columns)
            num_correct, mean_cost = self.walk.outcome(columns)
            missed = self.goal.is_missed(num_correct, mean_cost)
            too_dear = missed == (self.goal.most_cost is not None)
            low, high = (price, high) if too_dear else (low, price)
        return min(ends, key=self._key)

    def _descend_goal(self, columns):
        """Sets one exit, then two exits, to the best candidates until none is better.

        Every step lowers the key, of which there are finitely many values.
        """
        columns = list(columns)
        improved = True
        while improved:
            while self._improve_one(columns):
                pass
            improved = self._improve_two(columns)
        return columns

    def _improve_one(self, columns):
        leaving = self.walk.leaving(columns)
        improved = False
        for exit_index in range(self.walk.num_early):
            num_correct, mean_cost = self.walk.vary_one(leaving, exit_index)
            now, best = columns[exit_index], self.goal.best(num_correct, mean_cost)
            if self.goal.key(num_correct[best], mean_cost[best]) < self.goal.key(
                num_correct[now], mean_cost[now]
            ):
                columns[exit_index] = best
                leaving[exit_index] = self.walk.leaving_exit(exit_index, best)
                improved = True
        return improved

    def _improve_two(self, columns):
        leaving = self.walk.leaving(columns)
        key = self._key(columns)
        improved = False
        for first in range(self.walk.num_early):
            for second in range(first + 1, self.walk.num_early):
                shape = [self.walk.patterns[e].shape for e in (first, second)]
                if shape[0][0] * shape[1][0] > _MAX_PATTERN_PAIRS:
                    continue
                outcome = self.walk.vary_two(leaving, first, second)
                best = self.goal.best(*(part.ravel() for part in outcome))
                trial = list(columns)
                trial[first], trial[second] = divmod(best, shape[1][1])
                trial_key = self._key(trial)
                if trial_key < key:
                    columns[:], key, improved = trial, trial_key, True
                    for exit_index in (first, second):
                        leaving[exit_index] = self.walk.leaving_exit(
                            exit_index, columns[exit_index]
                        )
        return improved
