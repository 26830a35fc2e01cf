"""The front of a search: its record, its table and its drawing."""

from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib import pyplot

from keras_dynamic import tuning
from tests.plots.checks import save
from tests.tuning.searches import hypermodel

# (id, status, mean cost, accuracy, lambda): trial 2 costs more than 1 and knows less.
TRIALS = [
    ("0", "COMPLETED", 0.70, 0.95, 1.0),
    ("1", "COMPLETED", 0.30, 0.90, 2.0),
    ("2", "COMPLETED", 0.50, 0.88, 0.5),
    ("3", "FAILED", None, None, 0.1),
    ("4", "COMPLETED", 0.10, 0.60, 3.0),
]


def tuner_with(trials, directory):
    """What `pareto` needs of a tuner; the objective is accuracy under a cost of 0.6."""
    model = hypermodel()

    def trial(name, status, cost, accuracy, weight):
        logs = {}
        if cost is not None:
            logs = {"val_mean_cost": cost, "val_dynamic_accuracy": accuracy}
            logs[model.objective.name] = model.objective.score_of(logs)
        values = {"exit_1_loss_weight": weight, "tuner/epochs": 3}
        return SimpleNamespace(
            trial_id=name,
            status=status,
            metrics=SimpleNamespace(get_last_value=logs.__getitem__),
            hyperparameters=SimpleNamespace(values=values),
        )

    made = {each[0]: trial(*each) for each in trials}
    oracle = SimpleNamespace(trials=made)
    return SimpleNamespace(hypermodel=model, oracle=oracle, project_dir=str(directory))


@pytest.fixture
def record(tmp_path):
    return tuning.pareto(tuner_with(TRIALS, tmp_path))


def test_record(record):
    assert record.trials == ["4", "1", "2", "0"]  # the cheapest first
    np.testing.assert_array_equal(record.costs, [0.1, 0.3, 0.5, 0.7])
    np.testing.assert_array_equal(record.accuracies, [0.6, 0.9, 0.88, 0.95])
    assert record.on_front.tolist() == [True, True, False, True]
    # The last one is 0.1 over the budget, at a penalty of 1.
    np.testing.assert_allclose(record.scores, [0.6, 0.9, 0.88, 0.85])
    weights = [values["exit_1_loss_weight"] for values in record.hyperparameters]
    assert weights == [3.0, 2.0, 0.5, 1.0]
    assert record.unfinished == 1
    assert record.objective == "accuracy_under_budget"


def test_table(record):
    text = str(record)
    rows = [line.split("│") for line in text.splitlines() if line.startswith("│")]
    assert [row[1].strip() for row in rows] == ["4*", "1*", "2", "0*"]
    assert [float(row[2]) for row in rows] == [0.1, 0.3, 0.5, 0.7]
    assert [float(row[5]) for row in rows] == [3.0, 2.0, 0.5, 1.0]
    assert "tuner/epochs" not in text
    assert text.endswith("1 more failed or still run")


def test_plot(record, tmp_path):
    _, given = pyplot.subplots()
    ax = record.plot(given)
    assert ax is given
    (front,) = ax.lines
    np.testing.assert_array_equal(front.get_xdata(), [0.1, 0.3, 0.7])
    np.testing.assert_array_equal(front.get_ydata(), [0.6, 0.9, 0.95])
    # Nothing says that a setting between two of them exists.
    assert front.get_drawstyle() == "steps-post"
    (others,) = ax.collections
    np.testing.assert_array_equal(others.get_offsets(), [[0.5, 0.88]])
    assert [text.get_text() for text in ax.texts] == ["trial 4", "trial 1", "trial 0"]
    assert ax.get_xlabel() == "mean cost (1 = plain network)"
    save(ax, tmp_path / "front.png")
    pyplot.close("all")


def test_bad_input(tmp_path):
    with pytest.raises(TypeError, match="`tuner` must be a tuner of.*None"):
        tuning.pareto(None)
    with pytest.raises(ValueError, match="finished a trial.*1 trials"):
        tuning.pareto(tuner_with(TRIALS[3:4], tmp_path))
    worker = tuner_with(TRIALS, tmp_path)
    worker.oracle = SimpleNamespace()
    with pytest.raises(TypeError, match="must not be a worker"):
        tuning.pareto(worker)
