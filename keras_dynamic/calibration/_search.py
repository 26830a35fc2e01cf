"""Search for the candidates, one at each early exit, that meet a goal best.

Up to three early exits every choice is looked at; beyond, the search is local.
"""

import dataclasses
import itertools
import math

import numpy as np

# The prices of cost that are tried, in accuracy for one plain network, and how often
# the interval between their logarithms is halved.
_PRICE_RANGE = (1e-6, 1e6)
_PRICE_STEPS = 16

# Two exits with more pairs of patterns than this are not searched jointly. (A
# threshold rule with 64 candidates has about 4000 pairs.)
_MAX_PATTERN_PAIRS = 2**20

# With so many choices or fewer, all are looked at. (Three exits with 66 candidates each
# have 287,496.)
_MAX_CHOICES = 2**19

# The prices whose best choices lead along the front, where there are more than that.
_FRONT_PRICES = tuple(np.geomspace(1e-3, 1e2, 16))


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
        left = np.arange(len(num_correct))
        for part in self.keys(num_correct, mean_cost):
            part = part[left]
            left = left[part == np.min(part)]
        return int(left[0])


@dataclasses.dataclass(frozen=True)
class Front:
    """Choices of which none is as cheap and as right as another, and better in one.

    Attributes:
        num_correct, mean_cost: arrays `(P,)`, ascending.
        columns: integer array `(P, E)`.
    """

    num_correct: np.ndarray
    mean_cost: np.ndarray
    columns: np.ndarray

    @classmethod
    def of(cls, num_correct, mean_cost, columns):
        """The front among many choices, given as arrays like those above."""
        order = np.lexsort((-num_correct, mean_cost))
        best = np.maximum.accumulate(num_correct[order])
        kept = order[np.diff(best, prepend=-np.inf) > 0]
        return cls(num_correct[kept], mean_cost[kept], columns[kept])

    @classmethod
    def merged(cls, fronts):
        parts = [(each.num_correct, each.mean_cost, each.columns) for each in fronts]
        return cls.of(*map(np.concatenate, zip(*parts, strict=True)))


def evenly_spread(costs, number):
    """Indices of at most `number` of ascending costs, evenly spread, the ends there."""
    wanted = np.linspace(costs[0], costs[-1], number)
    return np.unique(np.searchsorted(costs, wanted, side="right") - 1)


def find_front(walk):
    """The `Front` of all choices; where they are too many, of those near the front."""
    if can_see_all(walk):
        return Front.merged(_blocks(walk))
    search, fronts = Search(walk, Goal(most_cost=math.inf)), []
    # From both ends, since each leads into other local optima.
    for start, prices in (
        (search.most_leaving, _FRONT_PRICES[::-1]),
        (search.closed, _FRONT_PRICES),
    ):
        columns = start
        for price in prices:
            columns = search.descend_price(columns, price)
            fronts += _neighbors(walk, columns)
    return Front.merged(fronts)


def can_see_all(walk):
    """Whether there are few enough exits and choices to look at every one."""
    last = walk.num_early - 1
    if last > 0 and not _is_searched_jointly(walk, last - 1, last):
        return False
    choices = math.prod(patterns.shape[1] for patterns in walk.patterns)
    return walk.num_early <= 3 and choices <= _MAX_CHOICES


class Search:
    """Search over the columns of all exits."""

    def __init__(self, walk, goal):
        self.walk = walk
        self.goal = goal
        self.closed = [0] * walk.num_early
        self.most_leaving = [int(np.argmax(rates)) for rates in walk.leave_rates]
        self.best_columns, self.best_key = None, None

    def run(self):
        """The columns found for the goal, or the nearest to it where none meet it."""
        front = find_front(self.walk)
        best = self.goal.best(front.num_correct, front.mean_cost)
        on_front = front.columns[best].tolist()
        if can_see_all(self.walk):
            return on_front
        cheapest = self.descend_price(self.most_leaving, math.inf)
        starts = [self.closed, cheapest, self._shared_rate(), self._bisect(cheapest)]
        starts += [self.best_columns, on_front]
        finished = {}
        for start in starts:
            if tuple(start) not in finished:
                finished[tuple(start)] = self._descend_goal(start)
        return min(finished.values(), key=lambda end: self._key(end))

    def descend_price(self, columns, price):
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
            columns = self.descend_price(columns, math.exp(price))
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
                if not _is_searched_jointly(self.walk, first, second):
                    continue
                outcome = self.walk.vary_two(leaving, first, second)
                best = self.goal.best(*(part.ravel() for part in outcome))
                trial = list(columns)
                trial[first], trial[second] = divmod(best, outcome[0].shape[1])
                trial_key = self._key(trial)
                if trial_key < key:
                    columns[:], key, improved = trial, trial_key, True
                    for exit_index in (first, second):
                        leaving[exit_index] = self.walk.leaving_exit(
                            exit_index, columns[exit_index]
                        )
        return improved


def _is_searched_jointly(walk, first, second):
    sizes = [len(walk.patterns[exit_index]) for exit_index in (first, second)]
    return math.prod(sizes) <= _MAX_PATTERN_PAIRS


def _blocks(walk):
    """Fronts that together are that of all choices of up to three exits."""
    if walk.num_early == 1:
        return [_vary(walk, [0], [0])]
    last = walk.num_early - 1
    before = [range(patterns.shape[1]) for patterns in walk.patterns[: last - 1]]
    return [
        _vary(walk, [*columns, 0, 0], [last - 1, last])
        for columns in itertools.product(*before)
    ]


def _neighbors(walk, columns):
    """The fronts of what varying one or two exits of a choice gives."""
    ones = [[exit_index] for exit_index in range(walk.num_early)]
    twos = itertools.combinations(range(walk.num_early), 2)
    varied = ones + [list(pair) for pair in twos if _is_searched_jointly(walk, *pair)]
    return [_vary(walk, columns, exits) for exits in varied]


def _vary(walk, columns, exits):
    """The front of all that varying one or two exits of a choice gives."""
    vary = walk.vary_one if len(exits) == 1 else walk.vary_two
    outcome = vary(walk.leaving(columns), *exits)
    choices = np.tile(np.array(columns), (outcome[0].size, 1))
    choices[:, exits] = np.stack(
        np.unravel_index(np.arange(len(choices)), outcome[0].shape), axis=1
    )
    return Front.of(*(part.ravel() for part in outcome), choices)
