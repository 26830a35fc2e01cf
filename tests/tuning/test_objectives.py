"""Objectives: values by hand, what they need, what they refuse."""

import pytest

from keras_dynamic.tuning import AccuracyUnderBudget, CostUnderAccuracy


def test_accuracy_under_budget():
    objective = AccuracyUnderBudget(0.5, penalty=4.0)
    assert (objective.name, objective.direction) == ("accuracy_under_budget", "max")
    assert objective.score(0.9, 0.5) == 0.9
    assert objective.score(0.9, 0.1) == 0.9  # what is saved beyond it earns nothing
    assert objective.score(0.9, 0.55) == pytest.approx(0.7)  # 0.9 - 4 * 0.05
    assert objective.goal == {"budget": 0.5}
    logs = {"val_dynamic_accuracy": 0.8, "val_mean_cost": 0.6}
    assert objective.score_of(logs) == pytest.approx(0.4)


def test_cost_under_accuracy():
    objective = CostUnderAccuracy(0.9, penalty=10.0)
    assert (objective.name, objective.direction) == ("cost_under_accuracy", "min")
    assert objective.score(0.9, 0.5) == objective.score(1.0, 0.5) == 0.5
    assert objective.score(0.88, 0.5) == pytest.approx(0.7)  # 0.5 + 10 * 0.02
    assert objective.goal == {"min_accuracy": 0.9}


def test_another_metric_counts_as_accuracy():
    objective = AccuracyUnderBudget(0.5, metric="top_5")
    logs = {"val_dynamic_top_5": 0.8, "val_mean_cost": 0.4}
    assert objective.score_of(logs) == 0.8
    with pytest.raises(ValueError, match=r"'val_dynamic_top_5'.*\['top_5'\].*\['loss'"):
        objective.score_of({"loss": 1.0, "val_mean_cost": 0.4})


def test_config_says_what_distinguishes_a_search():
    configs = [
        AccuracyUnderBudget(0.5).get_config(),
        AccuracyUnderBudget(0.6).get_config(),
        AccuracyUnderBudget(0.5, penalty=2).get_config(),
        AccuracyUnderBudget(0.5, metric="auc").get_config(),
        CostUnderAccuracy(0.5).get_config(),
    ]
    assert len({str(config) for config in configs}) == 5
    assert configs[0] == AccuracyUnderBudget(0.5, 1).get_config()


def test_bad_input():
    with pytest.raises(ValueError, match="`budget` must be above 0"):
        AccuracyUnderBudget(0)
    with pytest.raises(ValueError, match="`budget`.*budget=-1"):
        AccuracyUnderBudget(-1)
    with pytest.raises(TypeError, match="`budget` must be a number.*'half'"):
        AccuracyUnderBudget("half")
    with pytest.raises(ValueError, match=r"\(0, 1\].*min_accuracy=95"):
        CostUnderAccuracy(95)
    with pytest.raises(TypeError, match="`metric` must be the name.*metric=5"):
        AccuracyUnderBudget(0.5, metric=5)
    with pytest.raises(ValueError, match="`penalty`.*penalty=nan"):
        CostUnderAccuracy(0.9, penalty=float("nan"))
