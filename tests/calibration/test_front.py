"""The front of accuracy against cost."""

import itertools

import numpy as np
import pytest

from keras_dynamic.calibration import exit_indices, pareto_front, threshold_front


def test_by_hand():
    # (0.5, 0.7) is dominated by (0.4, 0.8), (0.6, 0.8) too: as accurate, but dearer.
    costs = [0.5, 0.4, 0.9, 0.6, 0.4, 0.1]
    accuracies = [0.7, 0.8, 0.9, 0.8, 0.6, 0.3]
    front = pareto_front(costs, accuracies)
    assert front.tolist() == [False, True, True, False, False, True]


def test_equal_points_are_on_it_together_and_nan_never():
    costs = [0.5, 0.5, np.nan, 0.1, 0.5]
    accuracies = [0.7, 0.7, 1.0, np.nan, 0.6]
    assert pareto_front(costs, accuracies).tolist() == [True, True, False, False, False]
    assert pareto_front([], []).tolist() == []


def test_definition_on_random_points():
    rng = np.random.default_rng(0)
    costs, accuracies = rng.integers(0, 12, (2, 60)) / 12
    expected = [
        not any(
            (c <= cost and a >= accuracy) and (c < cost or a > accuracy)
            for c, a in zip(costs, accuracies, strict=True)
        )
        for cost, accuracy in zip(costs, accuracies, strict=True)
    ]
    assert pareto_front(costs, accuracies).tolist() == expected


def test_bad_input():
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(3,\)"):
        pareto_front([1, 2], [1, 2, 3])


def answers(num_early, candidates=5, num_samples=60, seed=0):
    """(leaves, correct): column 0 is closed, each further one lets more go."""
    generator = np.random.default_rng(seed)
    scores = generator.random((num_early, num_samples))
    limits = np.linspace(0, 1.01, candidates)
    leaves = [score[:, None] < limits for score in scores]
    chance = np.linspace(0.6, 0.9, num_early + 1) * np.ones((num_samples, 1))
    return leaves, generator.random((num_samples, num_early + 1)) < chance


def pricing(num_early, heads):
    """Trunk parts of 1 / (E + 1) each; closed exits give their head back."""
    trunk = np.arange(1, num_early + 2) / (num_early + 1)
    heads = np.array([*heads, 0.0])

    def costs_of(closed):
        paid = np.where(np.isin(np.arange(num_early + 1), closed), 0.0, heads)
        before = np.cumsum(paid) - paid  # a head is paid by those who leave there
        return trunk + before + heads

    return costs_of


def all_outcomes(leaves, correct, costs_of):
    """{columns: (mean cost, accuracy)}, exits that nobody leaves at being closed."""
    rows = np.arange(len(correct))
    found = {}
    for columns in itertools.product(*[range(m.shape[1]) for m in leaves]):
        taken = exit_indices([m[:, c] for m, c in zip(leaves, columns, strict=True)])
        closed = tuple(e for e in range(len(leaves)) if not np.any(taken == e))
        cost = costs_of(closed)[taken].mean()
        found[columns] = cost, correct[rows, taken].mean()
    return found


@pytest.mark.parametrize(
    "heads",
    [(0.3,), (0.02, 0.4), (0.4, 0.02), (0.5, 0.01, 0.3), (0.2, 0.2, 0.2)],
)
def test_closed_exits_are_passed_by(heads):
    leaves, correct = answers(len(heads))
    costs_of = pricing(len(heads), heads)
    outcomes = all_outcomes(leaves, correct, costs_of)
    expected = np.array(list(outcomes.values()))
    expected = np.unique(expected[pareto_front(*expected.T)].round(9), axis=0)
    columns, costs, accuracies = threshold_front(leaves, correct, costs_of)
    found = np.stack([costs, accuracies], axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-9)
    for choice, point in zip(columns.tolist(), found, strict=True):
        assert outcomes[tuple(choice)] == pytest.approx(tuple(point))
    # Another front than where every head is paid, whatever is closed.
    paid = threshold_front(leaves, correct, costs_of(()))
    assert len(paid[1]) != len(costs) or not np.allclose(paid[1], costs)


def test_beyond_three_exits_points_have_their_price():
    heads = (0.3, 0.0005, 0.2, 0.3)
    leaves, correct = answers(4)
    costs_of = pricing(4, heads)
    outcomes = all_outcomes(leaves, correct, costs_of)
    columns, costs, accuracies = threshold_front(leaves, correct, costs_of)
    for choice, *point in zip(columns.tolist(), costs, accuracies, strict=True):
        assert outcomes[tuple(choice)] == pytest.approx(tuple(point))
    assert (np.diff(costs) > 0).all() and (np.diff(accuracies) > 0).all()
    best = np.array(list(outcomes.values()))
    plain = np.mean(correct[:, -1])
    # The cheapest of all that are as good as the plain network; within two percent.
    cheapest = best[best[:, 1] >= plain, 0].min()
    assert costs[accuracies >= plain].min() <= 1.02 * cheapest


def test_costs_that_nothing_changes():
    leaves, correct = answers(3)
    fixed = pricing(3, (0.1, 0.2, 0.3))(())
    array = threshold_front(leaves, correct, fixed)
    function = threshold_front(leaves, correct, lambda closed: fixed)
    for one, other in zip(array, function, strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match=r"`exit_costs` must have shape \(4,\).*3"):
        threshold_front(leaves, correct, lambda closed: fixed[:3])
