import dataclasses
import fractions
import itertools
import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from keras_dynamic import calibration

FLOAT32_SCORES = hnp.arrays(
    np.float32,
    st.integers(0, 60),
    elements=st.one_of(
        st.floats(0, 1, width=32),
        st.sampled_from([0.25, 0.5, 1.0, math.nan, math.inf, -math.inf]),
        # Neighbors, with no float32 between them or one.
        st.integers(1, 4).map(lambda steps: float(np.float32(1 - steps * 2**-24))),
    ),
)


# Candidates.


def test_candidates_by_hand():
    scores = np.array([0.5, 0.25, np.nan, 0.75, 0.75, np.inf, -np.inf], "float32")
    np.testing.assert_array_equal(
        calibration.candidate_thresholds(scores), [0.375, 0.625]
    )
    # Scores 0, 1, ..., 9; the quantiles 1/4, 2/4, 3/4 have 2.5, 5 and 7.5 scores
    # below: the cuts with 2, 5 and 7 of them are nearest (the lower one of two).
    np.testing.assert_array_equal(
        calibration.candidate_thresholds(np.arange(10)[::-1], limit=3), [1.5, 4.5, 6.5]
    )
    # 90 of 100 scores are equal: most quantiles fall on the same two cuts.
    scores = np.array([0.0] * 5 + [0.5] * 90 + [0.75, 1.0] + [2.0] * 3)
    np.testing.assert_array_equal(
        calibration.candidate_thresholds(scores, limit=2), [0.25, 0.625]
    )


@given(FLOAT32_SCORES, st.integers(1, 70))
def test_candidates_separate_in_float32(scores, limit):
    thresholds = calibration.candidate_thresholds(scores, limit=limit)
    assert thresholds.dtype == np.float64
    assert len(thresholds) <= limit
    assert np.all(np.diff(thresholds) > 0)
    finite = np.unique(scores[np.isfinite(scores)])
    cuts = []
    for threshold in thresholds.astype("float32"):
        assert threshold not in finite
        low = finite[finite < threshold].max()
        high = finite[finite > threshold].min()
        middle = (float(low) + float(high)) / 2
        assert threshold == np.float32(middle)
        cuts.append(low)
    assert len(set(cuts)) == len(cuts)
    # With room for all, only cuts without a float32 in between are missing.
    if len(finite) <= limit:
        separable = sum(
            np.nextafter(low, np.float32(np.inf)) < high
            for low, high in itertools.pairwise(finite)
        )
        assert len(thresholds) == separable


@given(st.integers(0, 2**32 - 1), st.integers(1, 64))
def test_candidates_are_spread_over_the_quantiles(seed, limit):
    scores = np.random.default_rng(seed).random(5000).astype("float32") ** 3
    thresholds = calibration.candidate_thresholds(scores, limit=limit)
    shares = (scores[:, None] < thresholds).mean(axis=0)
    np.testing.assert_allclose(
        shares, np.arange(1, limit + 1) / (limit + 1), atol=1 / 5000
    )


def test_candidates_of_doubles_and_halves():
    # The two scores are one in float32, so that no threshold separates them there.
    assert calibration.candidate_thresholds(np.array([0.1, 0.1 + 1e-12])).size == 0
    # Overflow is infinite, hence left out; the midpoint itself does not overflow.
    np.testing.assert_array_equal(
        calibration.candidate_thresholds(np.array([1e300, 3e38, 1e38])),
        [np.float32((float(np.float32(3e38)) + float(np.float32(1e38))) / 2)],
    )
    scores = np.array([0.5, 1.0], "float16")
    np.testing.assert_array_equal(calibration.candidate_thresholds(scores), [0.75])
    # Whole numbers, such as those of a patience.
    np.testing.assert_array_equal(
        calibration.candidate_thresholds(np.array([1, 1, 2, 3])), [1.5, 2.5]
    )


def test_scores_that_are_not_finite_move_no_quantile():
    scores = np.arange(100.0)
    more = np.concatenate([scores, [np.nan] * 50, [-np.inf] * 70, [np.inf] * 20])
    np.testing.assert_array_equal(
        calibration.candidate_thresholds(more, limit=7),
        calibration.candidate_thresholds(scores, limit=7),
    )
    assert calibration.open_threshold(np.array([-np.inf, 0.3])) == 0.0
    assert calibration.open_threshold(np.array([np.inf, 3.0]), False) == 6.0


@pytest.mark.parametrize("scores", [[], [0.5], [0.5, 0.5], [np.nan, np.nan]])
def test_no_candidates(scores):
    thresholds = calibration.candidate_thresholds(np.array(scores))
    assert thresholds.shape == (0,)
    assert thresholds.dtype == np.float64


@given(FLOAT32_SCORES)
def test_open_threshold(scores):
    scores = np.concatenate([scores, -scores])
    finite = scores[np.isfinite(scores)]
    above = calibration.open_threshold(scores)
    below = calibration.open_threshold(scores, leaves_above=False)
    assert type(above) is type(below) is float
    for value in (above, below):
        assert math.isfinite(value)
        assert float(np.float32(value)) == value
    assert np.all(finite > np.float32(above))
    assert np.all(finite < np.float32(below))


def test_open_threshold_of_probabilities_and_of_nothing():
    assert calibration.open_threshold(np.array([0.6, 0.3, np.nan])) == 0.0
    assert calibration.open_threshold(np.array([0.0, 0.3])) == -1.0
    assert calibration.open_threshold(np.array([2.0]), leaves_above=False) == 4.0
    assert calibration.open_threshold(np.array([])) == 0.0
    assert calibration.open_threshold(np.array([]), leaves_above=False) == 1.0
    # Near the end of float32 still finite.
    large = np.array([-3e38, 3e38], "float32")
    largest = float(np.finfo("float32").max)
    assert calibration.open_threshold(large) == -largest
    assert calibration.open_threshold(large, leaves_above=False) == largest


def test_candidate_errors():
    with pytest.raises(ValueError, match="`limit`.*Received: limit=0"):
        calibration.candidate_thresholds(np.zeros(3), limit=0)
    with pytest.raises(ValueError, match=r"`scores`.*Received: shape=\(3, 1\)"):
        calibration.candidate_thresholds(np.zeros((3, 1)))
    with pytest.raises(ValueError, match=r"`scores`.*Received: shape=\(\)"):
        calibration.open_threshold(0.5)


# The walk.


def test_exit_indices_by_hand():
    first = np.array([True, False, True, False])
    second = np.array([True, True, False, False])
    np.testing.assert_array_equal(
        calibration.exit_indices([first, second]), [0, 1, 0, 2]
    )
    assert calibration.exit_indices([np.zeros(0, bool)]).shape == (0,)


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(0, 20))
def test_exit_indices_against_a_loop(seed, num_early, num_samples):
    leaves = np.random.default_rng(seed).random((num_early, num_samples)) < 0.3
    expected = [
        next((e for e in range(num_early) if leaves[e, row]), num_early)
        for row in range(num_samples)
    ]
    np.testing.assert_array_equal(calibration.exit_indices(list(leaves)), expected)


def test_exit_indices_errors():
    with pytest.raises(ValueError, match="Received: none"):
        calibration.exit_indices([])
    with pytest.raises(ValueError, match=r"Received: shape=\(2,\) at exit 1"):
        calibration.exit_indices([np.zeros(3, bool), np.zeros(2, bool)])
    with pytest.raises(TypeError, match="Received: dtype=float64"):
        calibration.exit_indices([np.zeros(3)])


# The choice.


def problem(seed, num_samples, num_early, limit):
    """A network whose later exits are better, with scores that know a little.

    Returns the arguments of `choose_thresholds`: a sample's difficulty decides how
    far it is from a mistake at each exit, and the score is a noisy view of that.
    """
    generator = np.random.default_rng(seed)
    difficulty = 1.2 * generator.normal(size=num_samples)
    leaves, correct = [], []
    for skill in np.linspace(0.3, 2.0, num_early + 1):
        lead = skill - difficulty + 0.7 * generator.normal(size=num_samples)
        correct.append(lead > 0)
        noise = 0.3 * generator.normal(size=num_samples)
        scores = (1 / (1 + np.exp(-np.abs(lead + noise)))).astype("float32")
        leaves.append(columns_of(scores, limit))
    costs = np.linspace(1 / (num_early + 1), 1.1, num_early + 1)
    return leaves[:-1], np.stack(correct, axis=1), costs


def columns_of(scores, limit=64):
    """Closed, the candidates, open: who leaves above each of them."""
    thresholds = calibration.candidate_thresholds(scores, limit=limit)
    thresholds = np.append(thresholds, calibration.open_threshold(scores))
    closed = np.zeros((len(scores), 1), bool)
    return np.hstack([closed, scores[:, None] > thresholds.astype("float32")])


def outcome(leaves, correct, exit_costs, columns):
    """Right answers, mean cost and rates of one choice, row by row."""
    num_samples = len(correct)
    taken = [
        next((e for e, c in enumerate(columns) if leaves[e][row, c]), len(columns))
        for row in range(num_samples)
    ]
    num_correct = sum(int(correct[row, e]) for row, e in enumerate(taken))
    rates = [taken.count(e) / num_samples for e in range(len(columns) + 1)]
    return num_correct, sum(exit_costs[e] for e in taken) / num_samples, rates


def best_by_exhaustion(leaves, correct, exit_costs, budget=None, drop=None):
    """The best (right answers, mean cost) of all choices, None if none will do."""
    num_samples, num_exits = correct.shape
    best = None
    for columns in itertools.product(*[range(m.shape[1]) for m in leaves]):
        leaving = np.stack([m[:, c] for m, c in zip(leaves, columns, strict=True)])
        leaving = np.vstack([leaving, np.ones((1, num_samples), bool)])
        taken = leaving.argmax(axis=0)
        right = int(correct[np.arange(num_samples), taken].sum())
        counts = np.bincount(taken, minlength=num_exits)
        cost = float(counts @ exit_costs) / num_samples
        if budget is not None:
            if cost > budget * (1 + 1e-9):
                continue
            key = (-right, cost)
        else:
            lost = int(correct[:, -1].sum()) - right
            if lost > fractions.Fraction(str(drop)) * num_samples:
                continue
            key = (cost, -right)
        if best is None or key < best[0]:
            best = key, (right, cost)
    return None if best is None else best[1]


def check(choice, leaves, correct, exit_costs):
    """The numbers in a choice are those of its columns."""
    right, cost, rates = outcome(leaves, correct, exit_costs, choice.columns)
    assert choice.accuracy == right / len(correct)
    assert choice.mean_cost == pytest.approx(cost, rel=1e-12)
    assert choice.exit_rates == pytest.approx(rates)
    assert all(type(column) is int for column in choice.columns)
    # Where nobody leaves, the exit is closed.
    for column, rate in zip(choice.columns, rates[:-1], strict=True):
        assert (column == 0) == (rate == 0)
    return right


def test_by_hand():
    # Exit 0, scores and who is right:   .9 yes  .8 yes  .6 no  .4 no; final: y y y n.
    scores = np.array([0.9, 0.8, 0.6, 0.4], "float32")
    leaves = [columns_of(scores)]  # closed, > .5, > .7, > .85, open
    correct = np.array([[1, 1], [1, 1], [0, 1], [0, 0]], bool)
    costs = [0.4, 1.1]
    # Nothing to lose: the first two leave, (2 * .4 + 2 * 1.1) / 4 = .75. The fourth
    # is wrong either way but cannot leave without the third.
    choice = calibration.choose_thresholds(leaves, correct, costs, max_accuracy_drop=0)
    assert choice == calibration.ThresholdChoice((2,), (0.5, 0.5), 0.75, 0.75)
    # One of four may be lost: everyone leaves, at .4, with two right.
    choice = calibration.choose_thresholds(
        leaves, correct, costs, max_accuracy_drop=0.25
    )
    assert choice == calibration.ThresholdChoice((4,), (1.0, 0.0), 0.5, 0.4)
    # For .8, two or more leave: two, 3 of 4 right, are better than three.
    choice = calibration.choose_thresholds(leaves, correct, costs, budget=0.8)
    assert choice == calibration.ThresholdChoice((2,), (0.5, 0.5), 0.75, 0.75)
    # For .7, three leave; four are as right and cost less: (2 of 4 right, .4).
    choice = calibration.choose_thresholds(leaves, correct, costs, budget=0.7)
    assert choice == calibration.ThresholdChoice((4,), (1.0, 0.0), 0.5, 0.4)


@pytest.mark.parametrize("num_early", [1, 2, 3])
@pytest.mark.parametrize("goal", ["budget", "max_accuracy_drop"])
def test_against_exhaustive_search(num_early, goal):
    """Optimal on at least 38 of 40 problems; elsewhere off by at most 2 samples."""
    limit = {1: 30, 2: 10, 3: 4}[num_early]
    num_optimal = num_problems = 0
    for seed in range(40):
        arguments = problem(seed, 50 + seed, num_early, limit)
        correct = arguments[1]
        if goal == "budget":
            value = [0.5, 0.6, 0.75, 0.9, 1.0][seed % 5]
            optimum = best_by_exhaustion(*arguments, budget=value)
        else:
            value = [0.0, 0.01, 0.03, 0.05, 0.1][seed % 5]
            optimum = best_by_exhaustion(*arguments, drop=value)
        if optimum is None:
            with pytest.raises(ValueError, match="cannot be reached"):
                calibration.choose_thresholds(*arguments, **{goal: value})
            continue
        num_problems += 1
        choice = calibration.choose_thresholds(*arguments, **{goal: value})
        right = check(choice, *arguments)
        if goal == "budget":
            assert choice.mean_cost <= value * (1 + 1e-9)
            assert optimum[0] - 2 <= right <= optimum[0]
        else:
            allowed = fractions.Fraction(str(value)) * len(correct)
            assert correct[:, -1].sum() - right <= allowed
            assert (
                optimum[1] - 1e-9 <= choice.mean_cost <= optimum[1] + 2 / len(correct)
            )
        num_optimal += right == optimum[0] and abs(choice.mean_cost - optimum[1]) < 1e-9
    assert num_problems >= 30
    assert num_optimal >= num_problems - 2


@settings(max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 25),
    st.integers(1, 3),
    st.floats(0.05, 1.5),
    st.sampled_from([0, 0.01, 0.1, 0.29, 0.5, 0.99]),
)
def test_any_boolean_columns(seed, num_samples, num_early, budget, drop):
    """Columns that are no thresholds at all, costs in any order."""
    generator = np.random.default_rng(seed)
    leaves = []
    for _ in range(num_early):
        shape = (num_samples, generator.integers(1, 6))
        leaves.append(generator.random(shape) < generator.random(shape[1]))
        leaves[-1][:, 0] = False
    correct = generator.random((num_samples, num_early + 1)) < 0.6
    costs = generator.random(num_early + 1) + 0.05
    arguments = (leaves, correct, costs)

    optimum = best_by_exhaustion(*arguments, drop=drop)
    choice = calibration.choose_thresholds(*arguments, max_accuracy_drop=drop)
    right = check(choice, *arguments)
    lost = int(correct[:, -1].sum()) - right
    assert lost <= fractions.Fraction(str(drop)) * num_samples
    assert choice.mean_cost >= optimum[1] - 1e-9

    optimum = best_by_exhaustion(*arguments, budget=budget)
    if optimum is None:
        with pytest.raises(ValueError, match="cannot be reached"):
            calibration.choose_thresholds(*arguments, budget=budget)
        return
    try:
        choice = calibration.choose_thresholds(*arguments, budget=budget)
    except ValueError:
        # With columns that are not nested the least cost is itself a hard search.
        return
    assert check(choice, *arguments) <= optimum[0]
    assert choice.mean_cost <= budget * (1 + 1e-9)


def test_row_order_does_not_matter():
    leaves, correct, costs = problem(5, 300, 3, 16)
    order = np.random.default_rng(0).permutation(300)
    shuffled = ([matrix[order] for matrix in leaves], correct[order], costs)
    for goal in ({"budget": 0.6}, {"max_accuracy_drop": 0.02}):
        assert calibration.choose_thresholds(
            leaves, correct, costs, **goal
        ) == calibration.choose_thresholds(*shuffled, **goal)


def test_more_exits_and_samples():
    arguments = problem(11, 3000, 8, 32)
    free = calibration.choose_thresholds(*arguments, max_accuracy_drop=0.0)
    right = check(free, *arguments)
    assert right >= arguments[1][:, -1].sum()
    assert free.mean_cost < 0.9
    # What a goal found, the other goal finds as well, or something better.
    again = calibration.choose_thresholds(*arguments, budget=free.mean_cost)
    assert check(again, *arguments) >= right - 2
    # One leave rate at every exit is no better.
    for column in (3, 12, 24):
        right, cost, _ = outcome(*arguments, [column] * 8)
        choice = calibration.choose_thresholds(*arguments, budget=cost)
        assert check(choice, *arguments) >= right
        drop = max(0.0, (arguments[1][:, -1].sum() - right + 0.5) / 3000)
        choice = calibration.choose_thresholds(*arguments, max_accuracy_drop=drop)
        assert choice.mean_cost <= cost + 1e-9


def test_a_budget_that_equals_a_cost_is_met():
    # (3 * .1) / 3 is more than .1 in floats.
    assert 3 * 0.1 / 3 > 0.1
    leaves = [np.array([[False, True]] * 3)]
    choice = calibration.choose_thresholds(
        leaves, np.ones((3, 2), bool), [0.1, 1.1], budget=0.1
    )
    assert choice.exit_rates == (1.0, 0.0)


@pytest.mark.parametrize("drop", [0.29, np.float64(0.29), np.float32(0.29)])
def test_the_drop_is_a_decimal_number(drop):
    # 0.29 * 100 is 28.999999999999996 in floats, and 29 answers here.
    leave = np.zeros((100, 3), bool)
    leave[:29, 1] = leave[:30, 2] = True
    correct = np.ones((100, 2), bool)
    correct[:, 0] = False
    choice = calibration.choose_thresholds(
        [leave], correct, [0.5, 1.1], max_accuracy_drop=drop
    )
    assert choice.columns == (1,)
    assert choice.accuracy == 0.71


def test_ties():
    # Columns 1 and 2 let the same number go, of whom as many are right.
    leave = np.array([[0, 1, 0], [0, 0, 1], [0, 0, 0]], bool)
    correct = np.array([[1, 0], [0, 0], [1, 1]], bool)
    choice = calibration.choose_thresholds([leave], correct, [0.5, 1.1], budget=1.0)
    assert choice.columns == (1,)  # more accurate
    # With equal costs, the more accurate; with equal answers, the cheaper.
    choice = calibration.choose_thresholds(
        [leave], correct, [0.5, 1.1], max_accuracy_drop=0.5
    )
    assert choice.columns == (1,)
    choice = calibration.choose_thresholds(
        [leave[:, [0, 2]]], correct, [0.5, 1.1], budget=2.0
    )
    assert choice.columns == (1,)


def test_all_leave_first_and_nobody_leaves():
    leaves = [columns_of(np.array([0.5, 0.6, 0.7], "float32"))] * 2
    early_right = np.array([[1, 0, 0]] * 3, bool)
    choice = calibration.choose_thresholds(
        leaves, early_right, [0.3, 0.6, 1.1], max_accuracy_drop=0.0
    )
    # Exit 1 is closed, for nobody gets there.
    assert choice == calibration.ThresholdChoice((3, 0), (1.0, 0.0, 0.0), 1.0, 0.3)
    final_right = np.array([[0, 0, 1]] * 3, bool)
    choice = calibration.choose_thresholds(
        leaves, final_right, [0.3, 0.6, 1.1], max_accuracy_drop=0.0
    )
    assert choice.columns == (0, 0)
    assert choice.exit_rates == (0.0, 0.0, 1.0)
    assert choice.mean_cost == pytest.approx(1.1)


def test_one_sample():
    leaves = [np.array([[False, True]])]
    correct = np.array([[False, True]])
    costs = [0.3, 1.1]
    choose = calibration.choose_thresholds
    assert choose(leaves, correct, costs, budget=1.0).columns == (1,)
    assert choose(leaves, correct, costs, budget=1.1).columns == (0,)
    assert choose(leaves, correct, costs, max_accuracy_drop=0.99).columns == (0,)


def test_nan_scores_never_leave():
    scores = np.array([np.nan, 0.2, 0.9], "float32")
    leaves = [columns_of(scores)]
    correct = np.ones((3, 2), bool)
    choice = calibration.choose_thresholds(
        leaves, correct, [0.5, 1.1], max_accuracy_drop=0.0
    )
    assert choice.exit_rates == pytest.approx((2 / 3, 1 / 3))
    # So that the lowest cost is (2 * .5 + 1.1) / 3 = .7.
    with pytest.raises(ValueError, match="data given is 0.7 .*shares 0.6667, 0.3333"):
        calibration.choose_thresholds(leaves, correct, [0.5, 1.1], budget=0.69)


def test_unreachable_budget_says_what_was_reachable():
    leaves = [columns_of(np.array([0.5, 0.6, 0.7, 0.8], "float32"))] * 2
    correct = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 1], [1, 1, 1]], bool)
    with pytest.raises(ValueError) as error:
        calibration.choose_thresholds(leaves, correct, [0.23, 0.6, 1.1], budget=0.1)
    assert str(error.value) == (
        "`budget` cannot be reached. Received: budget=0.1. The lowest mean cost "
        "reachable on the data given is 0.23 (every sample leaves at exit 0), at an "
        "accuracy of 0.75."
    )


@pytest.mark.parametrize(
    ("goals", "message"),
    [
        ({}, "Exactly one.*Received: budget=None, max_accuracy_drop=None"),
        ({"budget": 0.5, "max_accuracy_drop": 0.1}, "Exactly one.*budget=0.5"),
        ({"budget": 0.0}, "`budget` must be a number above 0. Received: budget=0.0"),
        ({"budget": math.nan}, "Received: budget=nan"),
        ({"budget": math.inf}, "Received: budget=inf"),
        ({"max_accuracy_drop": -0.1}, r"lie in \[0, 1\).*max_accuracy_drop=-0.1"),
        ({"max_accuracy_drop": 1}, r"lie in \[0, 1\).*max_accuracy_drop=1"),
        ({"max_accuracy_drop": math.nan}, "Received: max_accuracy_drop=nan"),
        ({"min_accuracy": 1.01}, r"`min_accuracy` must lie in \[0, 1\].*=1.01"),
        ({"min_accuracy": -0.1}, "Received: min_accuracy=-0.1"),
        ({"min_accuracy": math.nan}, "Received: min_accuracy=nan"),
        ({"min_accuracy": 0.9, "budget": 0.5}, "Exactly one.*min_accuracy=0.9"),
    ],
)
def test_goal_errors(goals, message):
    with pytest.raises(ValueError, match=message):
        calibration.choose_thresholds(
            [np.zeros((2, 1), bool)], np.ones((2, 2), bool), [0.5, 1.0], **goals
        )


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"leaves": []}, ValueError, "`leaves`.*Received: none"),
        ({"leaves": [np.zeros((3, 2), bool)]}, ValueError, r"shape=\(3, 2\)"),
        ({"leaves": [np.zeros((2, 0), bool)]}, ValueError, r"shape=\(2, 0\)"),
        ({"leaves": [np.zeros(2, bool)]}, ValueError, r"shape=\(2,\)"),
        ({"leaves": [np.zeros((2, 2))]}, TypeError, r"`leaves\[0\]`.*dtype=float64"),
        (
            {"leaves": [np.array([[True], [False]])]},
            ValueError,
            r"Column 0 of `leaves\[0\]`.*Received: 1 samples",
        ),
        ({"correct": np.ones((2, 3), bool)}, ValueError, r"`correct`.*shape=\(2, 3\)"),
        ({"correct": np.ones((2, 2))}, TypeError, "`correct`.*dtype=float64"),
        (
            {"correct": np.ones((0, 2), bool), "leaves": [np.zeros((0, 1), bool)]},
            ValueError,
            "at least one sample. Received: none",
        ),
        ({"exit_costs": [0.5]}, ValueError, r"`exit_costs`.*shape=\(1,\)"),
        ({"exit_costs": [0.0, 1.0]}, ValueError, r"exit_costs=\[0.0, 1.0\]"),
        ({"exit_costs": [math.nan, 1.0]}, ValueError, r"exit_costs=\[nan, 1.0\]"),
    ],
)
def test_array_errors(changes, error, message):
    arguments = {
        "leaves": [np.zeros((2, 1), bool)],
        "correct": np.ones((2, 2), bool),
        "exit_costs": [0.5, 1.0],
    } | changes
    with pytest.raises(error, match=message):
        calibration.choose_thresholds(**arguments, budget=2.0)


def test_choice_is_frozen():
    choice = calibration.ThresholdChoice((0,), (0.0, 1.0), 1.0, 1.1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        choice.accuracy = 0.0


def test_a_margin_of_standard_errors_by_hand():
    # Ten answers, all right at the end. Under column 1 two rows leave with a wrong
    # answer, under column 2 one, under column 3 a right one.
    leaves = np.zeros((10, 4), dtype=bool)
    leaves[[0, 1, 2], 1] = leaves[[1, 2], 2] = leaves[2, 3] = True
    correct = np.ones((10, 2), dtype=bool)
    correct[[0, 1], 0] = False
    costs = [0.5, 1.0]

    def chosen(drop, standard_errors):
        return calibration.choose_thresholds(
            [leaves],
            correct,
            costs,
            max_accuracy_drop=drop,
            standard_errors=standard_errors,
        ).columns

    # Two lost: standard error sqrt(2 - 4/10) = 1.26; one lost: sqrt(1 - 1/10) = 0.95.
    assert chosen(0.2, 0) == (1,)
    assert chosen(0.3, 1) == (2,) and chosen(0.4, 1) == (1,)
    assert chosen(0.2, 1) == (2,) and chosen(0.1, 1) == (3,)
    assert chosen(0.1, 0) == (2,) and chosen(0.0, 1) == (3,)


def test_a_least_accuracy_by_hand():
    # As above: ten answers, all right at the end; column 1 keeps 8 of them, column 2
    # keeps 9, column 3 all 10.
    leaves = np.zeros((10, 4), dtype=bool)
    leaves[[0, 1, 2], 1] = leaves[[1, 2], 2] = leaves[2, 3] = True
    correct = np.ones((10, 2), dtype=bool)
    correct[[0, 1], 0] = False

    def chosen(least, standard_errors=0):
        return calibration.choose_thresholds(
            [leaves],
            correct,
            [0.5, 1.0],
            min_accuracy=least,
            standard_errors=standard_errors,
        ).columns

    # 0.8 of 10 are 8 right answers; 0.81 needs 9, and 0.91 all 10.
    assert chosen(0) == chosen(0.8) == (1,)
    assert chosen(0.81) == chosen(0.9) == (2,)
    assert chosen(0.91) == chosen(1) == (3,)
    # Two lost and 1.26 of them the standard error: 6 is what is kept for sure.
    assert chosen(0.6, 1) == (1,) and chosen(0.7, 1) == (2,)
    assert chosen(0.8, 1) == (2,) and chosen(0.81, 1) == (3,)
    # 7 of 100 is 0.07, though 0.07 * 100 is 7.000000000000001 in floats.
    correct = np.zeros((100, 2), dtype=bool)
    correct[:7, 0] = correct[:8, 1] = True
    everyone = np.tile([False, True], (100, 1))
    arguments = [everyone], correct, [0.5, 1.0]
    choice = calibration.choose_thresholds(*arguments, min_accuracy=0.07)
    assert choice.columns == (1,) and choice.accuracy == 0.07


@pytest.mark.parametrize("num_samples", [1, 3, 7, 49])
def test_an_accuracy_that_was_reached_is_met_again(num_samples):
    everyone = np.tile([False, True], (num_samples, 1))
    for right in range(num_samples + 1):
        correct = np.ones((num_samples, 2), dtype=bool)
        correct[right:, 0] = False
        choice = calibration.choose_thresholds(
            [everyone], correct, [0.5, 1.0], min_accuracy=right / num_samples
        )
        assert choice.columns == (1,) and choice.accuracy == right / num_samples


def test_a_least_accuracy_that_only_early_exits_have():
    # Of 100 samples the exit is right for all, the final exit for 60 only.
    correct = np.ones((100, 2), dtype=bool)
    correct[:40, 1] = False
    arguments = [np.tile([False, True], (100, 1))], correct, [0.5, 1.0]
    # 40 gained, with a standard error of sqrt(40 - 1600 / 100) = 4.9: 95.1.
    choose = calibration.choose_thresholds
    for standard_errors, most in ((0, 1.0), (1, 0.95)):
        choice = choose(*arguments, min_accuracy=most, standard_errors=standard_errors)
        assert choice.columns == (1,)
    with pytest.raises(calibration.UnreachableGoal) as error:
        choose(*arguments, min_accuracy=0.96, standard_errors=1)
    assert error.value.reachable == 0.95
    assert str(error.value) == (
        "`min_accuracy` cannot be reached. Received: min_accuracy=0.96. The highest "
        "accuracy reachable on the data given is 0.95; the full network's is 0.6."
    )


@pytest.mark.parametrize("num_early", [1, 2])
def test_a_least_accuracy_is_a_drop_from_the_final_exit(num_early):
    for seed in range(3):
        arguments = problem(seed, 200, num_early, limit=12)
        right = int(arguments[1][:, -1].sum())
        for standard_errors in (0, 1):
            choice, other = (
                calibration.choose_thresholds(
                    *arguments, **goal, standard_errors=standard_errors
                )
                for goal in (
                    {"min_accuracy": (right - 10) / 200},
                    {"max_accuracy_drop": 0.05},
                )
            )
            assert choice == other
            assert check(choice, *arguments) >= right - 10
        optimum = best_by_exhaustion(*arguments, drop=0.05)
        free = calibration.choose_thresholds(
            *arguments, min_accuracy=(right - 10) / 200
        )
        assert free.mean_cost == pytest.approx(optimum[1])


def test_an_unreachable_goal_is_carried_to_other_processes():
    correct = np.ones((4, 2), dtype=bool)
    correct[0] = False
    arguments = [np.tile([False, True], (4, 1))], correct, [0.5, 1.0]
    for goal, reachable in (("budget", 0.5), ("min_accuracy", 0.75)):
        wanted = {"budget": 0.4, "min_accuracy": 0.8}[goal]
        with pytest.raises(ValueError) as caught:
            calibration.choose_thresholds(*arguments, **{goal: wanted})
        error = pickle.loads(pickle.dumps(caught.value))
        assert type(error) is calibration.UnreachableGoal
        assert (error.goal, error.wanted, error.reachable) == (goal, wanted, reachable)
        assert str(error) == str(caught.value) and f"{goal}={wanted}" in str(error)
        # What was reachable is.
        calibration.choose_thresholds(*arguments, **{goal: reachable})


def test_a_goal_of_nothing_lost_finds_the_exits_that_change_nothing():
    # 60 easy rows are right everywhere; of 40 others the exit answers 5 wrong, and the
    # final exit another 6. The easy ones, and a few more, can leave without a loss.
    scores = np.concatenate([np.linspace(0.9, 0.99, 60), np.linspace(0.1, 0.8, 40)])
    correct = np.ones((100, 2), dtype=bool)
    correct[60:100:8, 0] = correct[61:100:7, 1] = False
    thresholds = calibration.candidate_thresholds(scores)
    leaves = np.hstack([np.zeros((100, 1), bool), scores[:, None] > thresholds])
    choice = calibration.choose_thresholds(
        [leaves],
        correct,
        [0.4, 1.1],
        max_accuracy_drop=0.0,
        standard_errors=1.0,
    )
    assert 0.6 <= choice.exit_rates[0] <= 0.7
    assert choice.accuracy >= correct[:, 1].mean()


def test_the_margin_keeps_the_promise_on_other_data():
    # Confidence and correctness as of a well calibrated exit; the final exit is right
    # in 95 % of the cases. The same rule on fresh data loses less with the margin.
    generator = np.random.default_rng(0)

    def draw(number):
        scores = generator.beta(4, 1, number)
        correct = generator.uniform(size=(number, 2)) < np.stack(
            [scores, np.full(number, 0.95)], axis=1
        )
        return scores, correct

    drops = {0.0: [], 1.0: []}
    fresh_scores, fresh_correct = draw(100_000)
    for _ in range(20):
        scores, correct = draw(400)
        thresholds = calibration.candidate_thresholds(scores)
        closed = np.zeros((400, 1), dtype=bool)
        for standard_errors, values in drops.items():
            choice = calibration.choose_thresholds(
                [np.hstack([closed, scores[:, None] > thresholds])],
                correct,
                [0.4, 1.1],
                max_accuracy_drop=0.02,
                standard_errors=standard_errors,
            )
            threshold = np.inf
            if choice.columns[0]:
                threshold = thresholds[choice.columns[0] - 1]
            early = fresh_scores > threshold
            dynamic = np.where(early, fresh_correct[:, 0], fresh_correct[:, 1])
            values.append(fresh_correct[:, 1].mean() - dynamic.mean())
    exceeded = {key: np.mean(np.array(values) > 0.02) for key, values in drops.items()}
    assert exceeded[1.0] < exceeded[0.0]
    assert np.mean(drops[1.0]) < np.mean(drops[0.0]) and np.mean(drops[1.0]) < 0.02
