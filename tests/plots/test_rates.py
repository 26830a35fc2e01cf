"""Shares of exits over epochs, from the logs of a training."""

import numpy as np
import pytest
from matplotlib import pyplot

import keras_dynamic as kd
from tests.models.small_models import dense_data, dense_model
from tests.plots.checks import save


def test_a_training(tmp_path):
    model, (x, y) = dense_model(), dense_data(90)
    validation = kd.callbacks.DynamicValidation(
        (x[:30], y[:30]), (x[30:60], y[30:60]), budget=1.0, update_freq=2
    )
    history = model.fit(x, y, epochs=4, verbose=0, callbacks=[validation])
    record = kd.plots.exit_rates(history, update_freq=2)
    np.testing.assert_array_equal(record.epochs, [2, 4])
    # The rule and the weights are still those of the last epoch.
    last = model.predict_dynamic(x[30:60], verbose=0)
    np.testing.assert_allclose(record.rates[-1], last.exit_rates)
    assert record.mean_costs[-1] == pytest.approx(last.mean_cost)
    right = np.mean(last.outputs.argmax(axis=1) == y[30:60])
    assert record.accuracies[-1] == pytest.approx(right)
    save(record.plot(), tmp_path / "training.png")


def test_drawing(tmp_path):
    logs = {
        "val_exit_0_rate": [0.25, 0.5],
        "val_exit_1_rate": [0.25, 0.3],
        "val_exit_2_rate": [0.5, 0.2],
        "val_mean_cost": [1.1, 0.6],
        "val_dynamic_accuracy": [0.7, 0.8],
    }
    record = kd.plots.exit_rates(logs)
    _, given = pyplot.subplots()
    ax = record.plot(given)
    assert ax is given
    heights = [[bar.get_height() for bar in bars] for bars in ax.containers]
    np.testing.assert_allclose(heights, record.rates.T)
    # Stacked: each begins where the one before ends, and the last ends at 1.
    starts = [[bar.get_y() for bar in bars] for bars in ax.containers]
    np.testing.assert_allclose(starts, [[0, 0], [0.25, 0.5], [0.5, 0.8]])
    assert len({bars[0].get_facecolor() for bars in ax.containers}) == 3
    cost, accuracy = ax.lines
    np.testing.assert_array_equal(cost.get_xydata(), [[1, 1.1], [2, 0.6]])
    np.testing.assert_array_equal(accuracy.get_xydata(), [[1, 0.7], [2, 0.8]])
    assert cost.get_linestyle() != accuracy.get_linestyle()
    assert ax.get_ylim()[1] > 1.1 and ax.get_xlabel() == "epoch"
    _, labels = ax.get_legend_handles_labels()
    assert labels == ["mean cost", "accuracy", "exit 0", "exit 1", "exit 2 (final)"]
    save(ax, tmp_path / "rates.png")
    del logs["val_dynamic_accuracy"]
    without = kd.plots.exit_rates(logs)
    assert without.accuracies is None and len(without.plot().lines) == 1


def test_bad_input():
    with pytest.raises(ValueError, match=r"`history`.*val_exit_0_rate.*\['loss'\]"):
        kd.plots.exit_rates({"loss": [1.0]})
    with pytest.raises(ValueError, match="`update_freq`.*update_freq=0"):
        kd.plots.exit_rates({"val_exit_0_rate": [1.0]}, update_freq=0)
    with pytest.raises(TypeError, match="`history`.*`fit`.*history=None"):
        kd.plots.exit_rates(None)
    logs = {"val_exit_0_rate": [1.0], "val_mean_cost": [1.0]}
    with pytest.raises(ValueError, match="`metric`.*metric='acc'.*val_mean_cost"):
        kd.plots.exit_rates(logs, metric="acc")


def test_nine_exits_and_another_metric(tmp_path):
    rates = np.random.default_rng(0).dirichlet(np.ones(9), 4)
    logs = {f"val_exit_{index}_rate": list(rates[:, index]) for index in range(9)}
    logs |= {"val_mean_cost": [1.0] * 4, "val_dynamic_acc": [0.5, 0.6, 0.7, 0.8]}
    assert kd.plots.exit_rates(logs).accuracies is None
    record = kd.plots.exit_rates(logs, metric="acc")
    np.testing.assert_array_equal(record.accuracies, [0.5, 0.6, 0.7, 0.8])
    ax = record.plot()
    assert ax.lines[1].get_label() == "acc" and "acc;" in ax.get_ylabel()
    first = [bars[0] for bars in ax.containers]
    assert len({(bar.get_facecolor(), bar.get_hatch()) for bar in first}) == 9
    # Exit 7 has the color of exit 0, and the first hatching.
    assert first[7].get_facecolor() == first[0].get_facecolor()
    assert [bar.get_hatch() for bar in first] == [""] * 7 + ["///"] * 2
    save(ax, tmp_path / "nine.png")
