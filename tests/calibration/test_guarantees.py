"""Exact tests along a path: tails by hand, and what must hold of every path."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import keras_dynamic as kd
from keras_dynamic import calibration
from keras_dynamic.calibration import (
    certify,
    choose_thresholds,
    exit_indices,
    risk_p_value,
    risk_path,
    samples_to_certify,
)
from keras_dynamic.calibration._tables import uncertified_message
from tests.calibration.test_search import threshold_problem


def tail(num_lost, num_samples, risk):
    """P(X <= num_lost), term by term."""
    return sum(
        math.comb(num_samples, k) * risk**k * (1 - risk) ** (num_samples - k)
        for k in range(num_lost + 1)
    )


def test_p_value_by_hand():
    # 0.8**4 = 0.4096; and one loss more: 4 * 0.2 * 0.8**3 = 0.4096.
    assert risk_p_value(0, 4, 0.2) == pytest.approx(0.4096)
    assert risk_p_value(1, 4, 0.2) == pytest.approx(0.8192)
    assert risk_p_value(4, 4, 0.2) == 1
    assert risk_p_value(0, 0, 0.2) == 1  # no samples prove nothing
    assert risk_p_value(0, 100, 0.0) == 1  # and no number of them a risk of 0
    np.testing.assert_allclose(risk_p_value(np.array([0, 1]), 4, 0.2), [0.4096, 0.8192])


@given(st.integers(0, 20), st.integers(0, 20), st.floats(0.001, 0.999))
def test_p_value_against_the_sum_of_its_terms(num_lost, more, risk):
    num_samples = num_lost + more
    expected = tail(num_lost, num_samples, risk)
    assert risk_p_value(num_lost, num_samples, risk) == pytest.approx(expected)
    # More losses prove less, more samples without one prove more.
    assert risk_p_value(num_lost, num_samples + 1, risk) <= expected + 1e-12
    if more:
        assert risk_p_value(num_lost + 1, num_samples, risk) >= expected - 1e-12


def test_samples_to_certify_by_hand():
    # log(0.05) / log(0.99) = 298.07; 0.5**4 = 0.0625 and 0.5**5 = 0.03125.
    assert samples_to_certify(0.01, 0.95) == 299
    assert samples_to_certify(0.5, 0.95) == 5
    # One loss: (1 + n) / 2**n is 9 / 256 at 8 samples, 8 / 128 = 0.0625 at 7. A rate
    # of 1 in 8 may be lost; 0.13 may not, and two losses take 11 samples: (1 + 11 +
    # 55) / 2048 = 0.033, where (1 + 10 + 45) / 1024 = 0.055.
    assert samples_to_certify(0.5, 0.95, risk=0.125) == 8
    assert samples_to_certify(0.5, 0.95, risk=0.13) == 11
    assert samples_to_certify(0.01, 0.95, risk=0.01) is None
    assert samples_to_certify(0.0, 0.95) is None


@given(st.floats(0.02, 0.5), st.floats(0.5, 0.99), st.floats(0, 0.9))
def test_samples_to_certify_are_the_fewest(max_risk, confidence, part):
    risk = part * max_risk
    found = samples_to_certify(max_risk, confidence, risk)
    passes = [
        any(
            risk_p_value(lost, size, max_risk) <= 1 - confidence
            for lost in range(math.ceil(risk * size), size + 1)
        )
        for size in (found, found - 1)
    ]
    assert passes == [True, False]


def losses(counts, num_samples):
    return np.arange(num_samples)[:, None] < np.array(counts)


def test_certify_stops_at_the_first_that_fails():
    # With 10 samples and a bound of 1/2: 1, 11, 56, 176 of 1024 for 0, 1, 2, 3 losses.
    # At a confidence of 0.94 two losses (0.0547) pass and three (0.172) do not.
    passed, values = certify(losses([0, 2, 3, 1], 10), 0.5, 0.94)
    assert passed == 2
    assert values[:3] == pytest.approx((1 / 1024, 56 / 1024, 176 / 1024))
    assert values[3] is None  # though it would pass
    assert certify(losses([0, 2, 1], 10), 0.5, 0.94)[0] == 3
    assert certify(losses([3, 0], 10), 0.5, 0.94)[0] == 0
    assert certify(np.zeros((10, 0), bool), 0.5, 0.94) == (0, ())
    assert certify(np.zeros((0, 2), bool), 0.5, 0.94) == (0, (1.0, None))
    # 0.5**5 is 1 - 0.96875: a p-value at its limit passes.
    assert certify(losses([0], 5), 0.5, 0.96875)[0] == 1
    assert certify(losses([0], 5), 0.5, 0.96876)[0] == 0


@given(st.lists(st.integers(0, 40), max_size=6), st.floats(0.05, 0.5))
def test_certify_is_monotone(counts, max_risk):
    lost = losses(counts, 40)
    passed = certify(lost, max_risk, 0.9)[0]
    assert certify(lost, max_risk + 0.1, 0.9)[0] >= passed
    assert certify(lost, max_risk, 0.95)[0] <= passed
    assert certify(np.roll(lost, 7, axis=0), max_risk, 0.9)[0] == passed


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((np.zeros((3, 1)), 0.1, 0.9), TypeError, "boolean.*float64"),
        ((np.zeros(3, bool), 0.1, 0.9), ValueError, r"shape=\(3,\)"),
        ((np.zeros((3, 1), bool), 1.0, 0.9), ValueError, "max_risk=1.0"),
        ((np.zeros((3, 1), bool), 0.1, 1.0), ValueError, "confidence=1.0"),
    ],
)
def test_certify_says_what_is_wrong(arguments, error, message):
    with pytest.raises(error, match=message):
        certify(*arguments)


def test_a_fixed_path_is_certified_too_far_as_seldom_as_promised():
    """The first step above the bound passes in at most 5 % of many draws."""
    generator = np.random.default_rng(0)
    risks = np.array([0.02, 0.04, 0.0601, 0.09])  # the bound is 0.06
    broken = further = 0
    for _ in range(2000):
        lost = generator.random((400, 1)) < risks  # nested, as thresholds are
        passed = certify(lost, 0.06, 0.95)[0]
        broken += passed > 2
        further += passed >= 2  # the choice of one step more
    # Three standard errors above 5 %.
    assert 0 < broken / 2000 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)
    assert further / 2000 > 0.2


def leaves_and_answers(seed, num_early=3):
    walk = threshold_problem(seed, num_samples=300, num_early=num_early)
    leaves = [
        patterns[rows] > 0
        for patterns, rows in zip(walk.patterns, walk.pattern_of_row, strict=True)
    ]
    return leaves, walk.correct.T > 0, walk.exit_costs


def lost_and_cost(leaves, correct, costs, columns):
    taken = exit_indices(
        [matrix[:, c] for matrix, c in zip(leaves, columns, strict=True)]
    )
    right = correct[np.arange(len(correct)), taken]
    return np.sum(correct[:, -1] & ~right), np.mean(costs[taken])


@pytest.mark.parametrize("num_early", [1, 2, 3, 4])
def test_a_path_goes_from_the_safe_to_the_cheap(num_early):
    leaves, correct, costs = leaves_and_answers(0, num_early)
    path = risk_path(leaves, correct, costs, 0.1)
    outcomes = [lost_and_cost(leaves, correct, costs, columns) for columns in path]
    lost, cost = map(np.array, zip(*outcomes, strict=True))
    assert np.all(np.diff(cost) < 0) and cost[0] < costs[-1]
    assert lost[0] <= 4 < 25 < lost[-1] <= 30
    assert path == risk_path(leaves, correct, costs, 0.1)
    safe = risk_path(leaves, correct, costs, 0.0)
    assert safe == path[: len(safe)]


def test_the_end_of_a_path_is_the_cheapest():
    leaves, correct, costs = leaves_and_answers(1)
    # Where the final exit is always right, to be lost is to be wrong.
    correct[:, -1] = True
    end = risk_path(leaves, correct, costs, 0.1)[-1]
    choice = choose_thresholds(leaves, correct, costs, max_accuracy_drop=0.1)
    assert lost_and_cost(leaves, correct, costs, end)[1] == pytest.approx(
        choice.mean_cost
    )


def test_a_path_of_nothing():
    closed = [np.zeros((4, 1), bool)]
    assert risk_path(closed, np.ones((4, 2), bool), [0.4, 1.1], 0.1) == []
    # Leaving early is dearer.
    leaves = [np.array([[False, True]] * 4)]
    assert risk_path(leaves, np.ones((4, 2), bool), [1.2, 1.1], 0.1) == []
    with pytest.raises(ValueError, match="max_risk=-1"):
        risk_path(closed, np.ones((4, 2), bool), [0.4, 1.1], -1)


def test_certificate_properties():
    steps = tuple(
        kd.calibration.PathStep((t,), c, k, p)
        for t, c, k, p in [(0.9, 0.8, 0, 0.001), (0.8, 0.7, 2, 0.03), (0.7, 0.6, 9, 1)]
    )
    certificate = kd.calibration.Certificate(0.05, 0.95, 90, 100, 0, steps, 2)
    assert certificate.step is steps[1]
    assert certificate.certified_risk == 0.05 and certificate.p_value == 0.03
    none = kd.calibration.Certificate(0.05, 0.95, 90, 100, 0, steps, 0, 500)
    assert none.step is None and none.p_value is None and none.certified_risk == 0


def certificate(costs, num_certified, **kwargs):
    steps = [calibration.PathStep((0.9,), cost, 0, 0.01) for cost in costs]
    return calibration.Certificate(
        0.1, 0.95, 50, 50, 0, tuple(steps), num_certified, **kwargs
    )


@pytest.mark.parametrize(
    ("costs", "num_certified", "closed_cost", "chosen"),
    [
        ((0.9, 0.8, 0.7), 2, 1.0, 1),
        ((0.9, 0.7, 0.8), 3, 1.0, 1),  # the last is dearer on these samples
        ((0.9, 0.7, 0.7), 3, 1.0, 1),
        ((1.2, 1.1), 2, 1.0, None),  # the full network costs less
        ((1.0,), 1, 1.0, None),
        ((1.2, 1.1), 2, 1.15, 1),  # a rule that asks closed exits too
        ((0.9,), 0, 1.0, None),
        ((), 0, 1.0, None),
    ],
)
def test_the_cheapest_step_certified_is_chosen(
    costs, num_certified, closed_cost, chosen
):
    found = certificate(costs, num_certified, closed_cost=closed_cost)
    assert found.chosen == chosen
    if chosen is None:
        assert found.step is None and found.p_value is None
        assert found.certified_risk == 0
    else:
        assert found.step is found.path[chosen] and found.p_value == 0.01
        assert found.certified_risk == 0.1


def test_why_nothing_is_in_force():
    def said(**changes):
        return uncertified_message(dataclasses.replace(certificate((), 0), **changes))

    assert "on the 50 samples that they are chosen on" in said()
    text = said(num_selection_samples=0, samples_needed=58)
    assert "no sample was left to choose them on" in text
    assert "lose none: it would take 58 samples in all." in text
    assert "a confidence of 0.95." in text
    assert "a confidence of 1 - 1e-12." in said(confidence=1 - 1e-12)
    assert "a confidence of 0.999999." in said(confidence=0.999999)
    text = uncertified_message(certificate((1.2, 1.1), 2))
    assert "it costs 1.100 or more, the full network 1.000." in text
