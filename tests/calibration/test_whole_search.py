"""The front and the search, against a look at every choice and a greedy rival."""

import itertools
import math

import numpy as np
import pytest

from keras_dynamic.calibration import choose_thresholds, pareto_front, threshold_front
from keras_dynamic.calibration._search import Front, can_see_all
from keras_dynamic.calibration._walk import Walk
from tests.calibration.test_search import threshold_problem


def problem(seed, num_early, num_samples=60, num_columns=6):
    walk = threshold_problem(seed, num_samples, num_early, num_columns)
    leaves = [
        patterns[rows] > 0
        for patterns, rows in zip(walk.patterns, walk.pattern_of_row, strict=True)
    ]
    return leaves, walk.correct.T > 0, walk.exit_costs


def taken_by(leaves, columns):
    """The exit of every row, one row and one exit at a time."""
    taken = []
    for row in range(len(leaves[0])):
        exits = [e for e, column in enumerate(columns) if leaves[e][row, column]]
        taken.append(min(exits, default=len(columns)))
    return np.array(taken)


def every_choice(leaves, correct, costs, standard_errors=0.0):
    """(columns, mean cost, answers right, the same less the margin) of every choice."""
    final = correct[:, -1].astype(int)
    for columns in itertools.product(*(range(matrix.shape[1]) for matrix in leaves)):
        taken = taken_by(leaves, columns)
        right = correct[np.arange(len(correct)), taken].astype(int)
        difference = final - right
        # n times the standard error of the mean difference: sqrt(n * variance).
        margin = standard_errors * math.sqrt(len(correct) * np.var(difference))
        yield columns, np.mean(costs[taken]), right.sum(), right.sum() - margin


def test_a_front_of_ties():
    # Of one cost the most right, of as many right the cheapest, of equals the first.
    num_correct = np.array([3, 5, 4, 5, 5, 6, 2])
    mean_cost = np.array([0.2, 0.3, 0.3, 0.3, 0.4, 0.5, 0.6])
    front = Front.of(num_correct, mean_cost, np.arange(7)[:, None])
    np.testing.assert_array_equal(front.columns[:, 0], [0, 1, 5])
    both = Front.merged(
        [front, Front.of(np.array([6]), np.array([0.3]), np.array([[9]]))]
    )
    np.testing.assert_array_equal(both.columns[:, 0], [0, 9])


@pytest.mark.parametrize(("num_early", "seed"), [(1, 0), (2, 1), (2, 2), (3, 3)])
def test_the_front_of_every_choice(num_early, seed):
    arguments = problem(seed, num_early)
    choices = list(every_choice(*arguments))
    costs = np.array([cost for _, cost, _, _ in choices]).round(9)
    accuracies = np.array([right for _, _, right, _ in choices]) / 60
    on_front = pareto_front(costs, accuracies)
    expected = sorted(set(zip(costs[on_front], accuracies[on_front], strict=True)))
    columns, mean_costs, found = threshold_front(*arguments)
    assert list(zip(mean_costs.round(9), found, strict=True)) == expected
    table = {choice: (cost, right / 60) for choice, cost, right, _ in choices}
    for choice, cost, accuracy in zip(columns, mean_costs, found, strict=True):
        assert table[tuple(choice)] == pytest.approx((cost, accuracy))


@pytest.mark.parametrize("num_early", [4, 5])
def test_the_front_of_many_exits(num_early):
    """No point of it is beaten by another, each is what its columns give."""
    leaves, correct, costs = problem(4, num_early, num_columns=9)
    assert not can_see_all(Walk(leaves, correct, costs))
    columns, mean_costs, accuracies = threshold_front(leaves, correct, costs)
    assert pareto_front(mean_costs, accuracies).all() and len(columns) > 10
    assert np.all(np.diff(mean_costs) > 0) and np.all(np.diff(accuracies) > 0)
    for choice, cost, accuracy in zip(columns, mean_costs, accuracies, strict=True):
        taken = taken_by(leaves, choice)
        assert cost == pytest.approx(np.mean(costs[taken]))
        assert accuracy == np.mean(correct[np.arange(60), taken])
    # From the cheapest choice of all up to the best that is found for any cost.
    assert mean_costs[0] == pytest.approx(costs[0])
    best = choose_thresholds(leaves, correct, costs, budget=2.0)
    assert accuracies[-1] == best.accuracy


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("num_early", [1, 2, 3])
def test_the_cheapest_within_a_margin(num_early, seed):
    leaves, correct, costs = problem(seed, num_early)
    allowed = 6
    best = min(
        (cost, -right)
        for columns, cost, right, kept in every_choice(leaves, correct, costs, 1.0)
        if kept >= correct[:, -1].sum() - allowed - 1e-9 or not any(columns)
    )
    choice = choose_thresholds(
        leaves, correct, costs, max_accuracy_drop=0.1, standard_errors=1.0
    )
    assert choice.mean_cost == pytest.approx(best[0])


def greedy(leaves, correct, costs, most_cost):
    """One exit after the other, round after round, from all closed."""

    def key(columns):
        taken = taken_by(leaves, columns)
        cost = np.mean(costs[taken])
        missed = cost > most_cost * (1 + 1e-9)
        right = np.sum(correct[np.arange(len(correct)), taken])
        return (missed, cost if missed else -right, -right if missed else cost)

    now = [0] * len(leaves)
    while True:
        before = list(now)
        for e, matrix in enumerate(leaves):
            options = [[*now[:e], c, *now[e + 1 :]] for c in range(matrix.shape[1])]
            now = min([now, *options], key=key)
        if now == before:
            return -key(now)[1] / len(correct)


def test_never_worse_than_greedy_and_at_times_better():
    gains = []
    for num_early, seed in itertools.product((2, 4), range(4)):
        leaves, correct, costs = problem(seed, num_early)
        for budget in (0.5, 0.8):
            found = choose_thresholds(leaves, correct, costs, budget=budget).accuracy
            gains.append(found - greedy(leaves, correct, costs, budget))
    assert min(gains) >= 0 and max(gains) > 0.02


def test_the_margin_of_a_walk():
    """Five rows, one exit; the final answers are right but for the last.

    Column 1 lets rows 0 and 4 leave: row 0 is lost, row 4 gained. Two answers differ,
    none is lost in sum: a margin of sqrt(2). Column 2 lets row 0 leave only: one
    differs, one is lost, sqrt(1 - 1 / 5).
    """
    leaves = np.zeros((5, 3), bool)
    leaves[[0, 4], 1] = leaves[0, 2] = True
    correct = np.array([[0, 1], [1, 1], [1, 1], [1, 1], [1, 0]], bool)
    walk = Walk([leaves], correct, np.array([0.5, 1.0]), standard_errors=2.0)
    expected = [4, 4 - 2 * math.sqrt(2), 3 - 2 * math.sqrt(0.8)]
    np.testing.assert_allclose(walk.vary_one(walk.leaving([0]), 0)[0], expected)
    for column, kept in enumerate(expected):
        assert walk.outcome([column])[0] == pytest.approx(kept)
    two = Walk([leaves, leaves], np.hstack([correct, correct[:, 1:]]), np.ones(3), 2.0)
    found = two.vary_two(two.leaving([0, 0]), 0, 1)[0]
    for columns in np.ndindex(3, 3):
        assert found[columns] == pytest.approx(two.outcome(columns)[0])
