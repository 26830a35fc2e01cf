"""The front of accuracy against cost."""

import numpy as np
import pytest

from keras_dynamic.calibration import pareto_front


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
