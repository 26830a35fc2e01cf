"""The parts of `choose_thresholds`: the sums over samples, the goal, the search."""

import fractions
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_dynamic.calibration._search import Goal, Search
from keras_dynamic.calibration._walk import Walk, first_exit


def random_problem(seed, num_samples, num_early):
    """Columns, answers and costs without any structure."""
    generator = np.random.default_rng(seed)
    leaves = []
    for _ in range(num_early):
        shape = (num_samples, generator.integers(1, 5))
        leaves.append(generator.random(shape) < generator.random(shape[1]))
    correct = generator.random((num_samples, num_early + 1)) < 0.6
    return leaves, correct, generator.random(num_early + 1) + 0.05


def threshold_problem(seed, num_samples=200, num_early=4, num_columns=14):
    """Later exits are better, and each has a score that knows a little about it."""
    generator = np.random.default_rng(seed)
    difficulty = 1.2 * generator.normal(size=num_samples)
    leaves, correct = [], []
    for skill in np.linspace(0.3, 2.0, num_early + 1):
        lead = skill - difficulty + 0.7 * generator.normal(size=num_samples)
        scores = np.abs(lead + 0.3 * generator.normal(size=num_samples))
        ranks = np.argsort(np.argsort(-scores))
        cuts = np.linspace(0, num_samples, num_columns)
        leaves.append(ranks[:, None] < cuts)
        correct.append(lead > 0)
    costs = np.linspace(1 / (num_early + 1), 1.1, num_early + 1)
    return Walk(leaves[:-1], np.stack(correct, axis=1), costs)


def goals(walk):
    needed = int(walk.correct[-1].sum()) - 0.02 * walk.num_samples
    return Goal(most_cost=0.6), Goal(least_correct=int(needed))


def outcome_by_loop(leaves, correct, exit_costs, columns):
    """Right answers, counted, and the mean cost, as a fraction."""
    num_correct, cost = 0, fractions.Fraction(0)
    for row in range(len(correct)):
        taken = 0
        while taken < len(columns) and not leaves[taken][row, columns[taken]]:
            taken += 1
        num_correct += bool(correct[row, taken])
        cost += fractions.Fraction(float(exit_costs[taken]))
    return num_correct, float(cost / len(correct))


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(2, 5))
def test_walk_against_a_loop(seed, num_samples, num_early):
    arguments = random_problem(seed, num_samples, num_early)
    leaves = arguments[0]
    walk = Walk(*arguments)
    generator = np.random.default_rng(seed)
    columns = [int(generator.integers(matrix.shape[1])) for matrix in leaves]
    first, second = sorted(generator.choice(num_early, size=2, replace=False))
    leaving = walk.leaving(columns)

    num_correct, mean_cost = walk.outcome(columns)
    expected = outcome_by_loop(*arguments, columns)
    assert num_correct == expected[0]
    assert mean_cost == pytest.approx(expected[1], rel=1e-12)

    one = walk.vary_one(leaving, first)
    two = walk.vary_two(leaving, first, second)
    assert one[0].shape == (leaves[first].shape[1],)
    assert two[0].shape == (leaves[first].shape[1], leaves[second].shape[1])
    for column in range(leaves[first].shape[1]):
        columns[first] = column
        # Equal to the last bit, costs included.
        assert (one[0][column], one[1][column]) == walk.outcome(columns)
    for pair in np.ndindex(*two[0].shape):
        columns[first], columns[second] = pair
        expected = outcome_by_loop(*arguments, columns)
        assert two[0][pair] == expected[0]
        assert two[1][pair] == pytest.approx(expected[1], rel=1e-12)


def test_patterns_of_a_threshold_are_few():
    scores = np.random.default_rng(0).random(1000)
    leaves = scores[:, None] > np.linspace(0.1, 0.9, 20)
    walk = Walk([leaves], np.ones((1000, 2), bool), np.array([0.5, 1.1]))
    assert walk.patterns[0].shape == (21, 20)
    np.testing.assert_array_equal(
        walk.patterns[0][walk.pattern_of_row[0]], leaves.astype(float)
    )


def test_first_exit_by_hand():
    leaving = [
        np.array(row, bool) for row in ([1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 0])
    ]
    np.testing.assert_array_equal(first_exit(leaving, 0, 3), [0, 1, 2, 3])
    np.testing.assert_array_equal(first_exit(leaving, 0, 2, 9), [0, 1, 9, 9])
    np.testing.assert_array_equal(first_exit(leaving, 1, 1, 9), [9, 9, 9, 9])
    np.testing.assert_array_equal(first_exit(leaving, 2, 3), [2, 2, 2, 3])


OUTCOMES = [(8, 0.5), (9, 0.5), (9, 0.7), (7, 0.4), (9, 0.6), (7, 0.3)]


@pytest.mark.parametrize(
    ("goal", "expected"),
    [
        # Right answers first, then cost, among those at .6 or less.
        (Goal(most_cost=0.6), [(9, 0.5), (9, 0.6), (8, 0.5), (7, 0.3), (7, 0.4)]),
        # None costs .2: the nearest, the cheapest, comes first.
        (Goal(most_cost=0.2), [(7, 0.3), (7, 0.4), (9, 0.5), (8, 0.5), (9, 0.6)]),
        # Cost first, then right answers, among those with 8 or more.
        (Goal(least_correct=8), [(9, 0.5), (8, 0.5), (9, 0.6), (9, 0.7), (7, 0.3)]),
        # None has 10: those with most right answers come first.
        (Goal(least_correct=10), [(9, 0.5), (9, 0.6), (9, 0.7), (8, 0.5), (7, 0.3)]),
    ],
)
def test_goal_orders_outcomes(goal, expected):
    left, order = list(OUTCOMES), []
    for _ in expected:
        num_correct, mean_cost = map(np.array, zip(*left, strict=True))
        order.append(left.pop(goal.best(num_correct, mean_cost)))
    assert order == expected
    keys = [goal.key(*outcome) for outcome in expected]
    assert keys == sorted(keys)


def test_goal_at_its_limit():
    assert not Goal(most_cost=0.5).is_missed(3, 0.5)
    assert Goal(most_cost=0.5).is_missed(3, np.nextafter(0.5, 1))
    assert not Goal(least_correct=3).is_missed(3, 0.5)
    assert Goal(least_correct=3).is_missed(2, 0.5)


# Each of these problems is solved from one or two starting points only: the best
# choice met on the way, the cheapest, or one leave rate at every exit.
@pytest.mark.parametrize("seed", [5, 6, 11, 16, 22, 50])
def test_optimal_with_four_exits(seed):
    walk = threshold_problem(seed)
    firsts = [range(patterns.shape[1]) for patterns in walk.patterns[:2]]
    outcomes = [
        walk.vary_two(walk.leaving([*columns, 0, 0]), 2, 3)
        for columns in itertools.product(*firsts)
    ]
    num_correct, mean_cost = (
        np.concatenate([part.ravel() for part in parts])
        for parts in zip(*outcomes, strict=True)
    )
    for goal in goals(walk):
        best = goal.best(num_correct, mean_cost)
        found = walk.outcome(Search(walk, goal).run())
        assert goal.key(*found) == pytest.approx(
            goal.key(num_correct[best], mean_cost[best])
        )


def test_no_change_of_two_exits_is_better():
    walk = threshold_problem(2, num_samples=400, num_early=7)
    for goal in goals(walk):
        columns = Search(walk, goal).run()
        key = goal.key(*walk.outcome(columns))
        for first, second in itertools.combinations(range(7), 2):
            outcome = walk.vary_two(walk.leaving(columns), first, second)
            best = goal.best(*(part.ravel() for part in outcome))
            better = goal.key(*(part.ravel()[best] for part in outcome))
            assert key <= better or key == pytest.approx(better)


def test_many_patterns_are_searched_one_exit_at_a_time(monkeypatch):
    monkeypatch.setattr("keras_dynamic.calibration._search._MAX_PATTERN_PAIRS", 10)
    walk = threshold_problem(0)
    monkeypatch.delattr(Walk, "vary_two")
    for goal in goals(walk):
        found = walk.outcome(Search(walk, goal).run())
        assert not goal.is_missed(*found)
        closed = walk.outcome([0] * 4)
        assert goal.key(*found) < goal.key(*closed)
