"""The hypermodel with every tuner of keras-tuner: what is scored, what is kept."""

import json

import keras
import keras_tuner
import numpy as np
import pytest
import tensorflow as tf

import keras_dynamic as kd
from keras_dynamic import tuning
from tests.layers.checks import two_replicas
from tests.tuning import searches
from tests.tuning.searches import VALIDATION, hypermodel, search


@pytest.fixture(scope="module")
def random_search(tmp_path_factory):
    """(tuner, histories) of a random search of three trials."""
    model, histories = hypermodel(), []
    fit = model.fit

    def noting(*args, **kwargs):
        histories.append(fit(*args, **kwargs))
        return histories[-1]

    model.fit = noting
    directory = tmp_path_factory.mktemp("search")
    tuner = model.tuner("random", max_trials=3, seed=1, directory=directory)
    return search(tuner), [history.history for history in histories]


def test_scores_are_the_objective_of_what_was_logged(random_search):
    tuner, histories = random_search
    assert isinstance(tuner, keras_tuner.RandomSearch)
    objective = tuner.hypermodel.objective
    trials = [tuner.oracle.trials[str(index)] for index in range(3)]
    for trial, history in zip(trials, histories, strict=True):
        assert len(history["loss"]) == 2
        by_hand = [
            accuracy - max(0.0, cost - 0.6)
            for accuracy, cost in zip(
                history["val_dynamic_accuracy"], history["val_mean_cost"], strict=True
            )
        ]
        np.testing.assert_allclose(history[objective.name], by_hand)
        assert trial.score == pytest.approx(max(by_hand))
        assert trial.best_step == int(np.argmax(by_hand))
        assert {"exit_1_loss_weight", "exit_2_loss_weight"} == set(
            trial.hyperparameters.values
        )
        assert trial.metrics.get_last_value("val_exit_0_rate") == pytest.approx(
            history["val_exit_0_rate"][trial.best_step]
        )


def test_best_model_is_ready_to_run(random_search):
    tuner, _ = random_search
    (best,) = tuner.get_best_models(1)
    found = best.evaluate_dynamic(*VALIDATION, verbose=0)
    trial = tuner.oracle.get_best_trials(1)[0]
    metrics = trial.metrics
    assert found["accuracy"] == pytest.approx(
        metrics.get_last_value("val_dynamic_accuracy")
    )
    assert found["mean_cost"] == pytest.approx(metrics.get_last_value("val_mean_cost"))
    weights = [
        float(best.get_layer(name).current_loss_weight) for name in ("exit_1", "exit_2")
    ]
    values = trial.hyperparameters.values
    np.testing.assert_allclose(
        weights, [values["exit_1_loss_weight"], values["exit_2_loss_weight"]], rtol=1e-6
    )


def test_a_second_search_in_its_directory_goes_on(random_search, tmp_path):
    tuner, _ = random_search
    scores = {key: trial.score for key, trial in tuner.oracle.trials.items()}
    again = hypermodel().tuner(
        "random", max_trials=4, seed=1, directory=tuner.directory
    )
    search(again)
    assert len(again.oracle.trials) == 4
    kept = {key: again.oracle.trials[key].score for key in scores}
    assert kept == scores


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("bayesian", {"max_trials": 2, "num_initial_points": 1}),
        ("grid", {"max_trials": 2}),
        (keras_tuner.RandomSearch, {"max_trials": 2, "executions_per_trial": 2}),
    ],
)
def test_every_tuner(name, arguments, tmp_path):
    tuner = hypermodel().tuner(name, directory=tmp_path, **arguments)
    search(tuner, epochs=1)
    trials = tuner.oracle.trials.values()
    assert len(trials) == 2
    assert all(trial.status == "COMPLETED" for trial in trials)
    record = tuning.pareto(tuner)
    assert len(record.trials) == len(trials)


def test_hyperband_goes_on_with_weights_and_thresholds(tmp_path):
    model, started = hypermodel(), {}
    fit = model.fit

    def noting(hp, made, *args, **kwargs):
        """Notes with what a trial's training starts: thresholds, steps made."""
        key = hp.values["tuner/initial_epoch"], hp.values["exit_1_loss_weight"]
        steps = int(made.optimizer.iterations)
        started[key] = steps, made.exit_thresholds.numpy()
        return fit(hp, made, *args, **kwargs)

    model.fit = noting
    tuner = model.tuner("hyperband", max_epochs=3, directory=tmp_path)
    tuner.search(*searches.TRAIN, verbose=0, batch_size=32)
    later = [
        trial
        for trial in tuner.oracle.trials.values()
        if trial.hyperparameters.values.get("tuner/trial_id")
    ]
    assert later
    values = later[0].hyperparameters.values
    first = tuner.oracle.trials[values["tuner/trial_id"]]
    weight = values["exit_1_loss_weight"]
    assert first.hyperparameters.values["exit_1_loss_weight"] == weight
    fresh, later = started[0, weight], started[values["tuner/initial_epoch"], weight]
    assert (fresh[0], later[0]) == (0, 3 * values["tuner/initial_epoch"])
    assert not np.array_equal(fresh[1], later[1])
    record = tuning.pareto(tuner)
    assert len(record.trials) == len(tuner.oracle.trials)
    (best,) = tuner.get_best_models(1)
    assert len(best.predict_dynamic(VALIDATION[0], verbose=0)) == len(VALIDATION[0])


def test_a_selector_is_scored_by_its_own_choice(tmp_path):
    model = hypermodel(searches.build_with_selector)
    tuner = search(model.tuner("random", max_trials=2, directory=tmp_path))
    (best,) = tuner.get_best_models(1)
    assert isinstance(best.exit_rule, kd.rules.Selected)
    found = best.evaluate_dynamic(*VALIDATION, verbose=0)
    trial = tuner.oracle.get_best_trials(1)[0]
    assert found["mean_cost"] == pytest.approx(
        trial.metrics.get_last_value("val_mean_cost")
    )
    assert set(trial.hyperparameters.values) == {"temperature", "selector_cost_weight"}


def test_rule_and_batch_size_are_used(tmp_path, monkeypatch):
    sizes = []
    evaluate = kd.DynamicModel.evaluate_dynamic

    def noting(self, *args, batch_size=None, **kwargs):
        sizes.append(batch_size)
        return evaluate(self, *args, batch_size=batch_size, **kwargs)

    monkeypatch.setattr(kd.DynamicModel, "evaluate_dynamic", noting)
    model = hypermodel(rule="entropy", batch_size=7)
    tuner = search(model.tuner("random", max_trials=1, directory=tmp_path), epochs=1)
    assert sizes == [7]
    assert isinstance(tuner.get_best_models(1)[0].exit_rule, kd.rules.Entropy)


def test_gates_alone(tmp_path):
    model = hypermodel(searches.build_gated)
    tuner = search(model.tuner("random", max_trials=1, directory=tmp_path))
    (trial,) = tuner.oracle.trials.values()
    assert trial.status == "COMPLETED"
    assert 0 < trial.metrics.get_last_value("val_mean_cost") <= 1.01


@pytest.mark.parametrize(
    "objective", [tuning.AccuracyUnderBudget(1e-3), tuning.CostUnderAccuracy(1.0)]
)
def test_a_goal_out_of_reach_is_paid_for(objective, tmp_path):
    tuner = hypermodel(objective=objective).tuner(
        "random", max_trials=1, directory=tmp_path
    )
    search(tuner, epochs=1)
    (trial,) = tuner.oracle.trials.values()
    assert trial.status == "COMPLETED"
    cost = trial.metrics.get_last_value("val_mean_cost")
    accuracy = trial.metrics.get_last_value("val_dynamic_accuracy")
    assert trial.score == pytest.approx(objective.score(accuracy, cost))
    if objective.direction == "max":
        assert trial.metrics.get_last_value("val_exit_0_rate") == 1.0
    else:
        assert accuracy < 1


def test_callbacks_of_the_search(tmp_path):
    """A searched schedule, and one that monitors what is logged before it."""

    def callbacks(hp):
        return [tuning.temperature_schedule(hp, 2, update_freq="epoch")]

    stop = keras.callbacks.EarlyStopping("val_dynamic_accuracy", mode="max", patience=9)
    model = hypermodel(searches.build_with_selector, callbacks=callbacks)
    tuner = model.tuner("random", max_trials=3, seed=3, directory=tmp_path)
    names = {entry.name for entry in tuner.oracle.get_space().space}
    assert "schedule_final_temperature" in names  # known before the first trial
    search(tuner, callbacks=[stop])
    for trial in tuner.oracle.trials.values():
        values = trial.hyperparameters.values
        logged = trial.metrics.get_last_value("temperature")
        if values["schedule"] == "constant":
            assert "schedule_initial_temperature" not in values
            assert logged == pytest.approx(values["schedule_temperature"])
        else:
            assert "schedule_temperature" not in values
            first = values["schedule_initial_temperature"]
            last = values["schedule_final_temperature"]
            half = {
                "linear": (first + last) / 2,
                "exponential": (first * last) ** 0.5,
            }[values["schedule"]]
            assert logged == pytest.approx([first, half][trial.best_step])


def test_conditional_exit(tmp_path):
    """A lambda that exists only where its exit does."""

    def build(hp):
        inputs = keras.Input((6,))
        h = keras.layers.Dense(8, "relu")(inputs)
        outputs = [kd.EarlyExit(3, name="exit_1")(h)]
        two = hp.Boolean("two_exits")
        h = keras.layers.Dense(8, "relu")(h)
        with hp.conditional_scope("two_exits", [True]):
            weight = tuning.loss_weight(hp, "exit_2", default=0.5)
            if two:
                outputs.append(kd.EarlyExit(3, loss_weight=weight, name="exit_2")(h))
        outputs.append(keras.layers.Dense(3, "softmax")(h))
        model = kd.DynamicModel(inputs, outputs)
        model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        return model

    tuner = hypermodel(build).tuner("random", max_trials=2, seed=2, directory=tmp_path)
    search(tuner, epochs=1)
    trials = list(tuner.oracle.trials.values())
    assert {trial.hyperparameters.values["two_exits"] for trial in trials} == {
        True,
        False,
    }
    for trial in trials:
        values = trial.hyperparameters.values
        assert ("exit_2_loss_weight" in values) == values["two_exits"]
        assert trial.metrics.exists("val_exit_2_rate") == values["two_exits"]
    text = str(tuning.pareto(tuner))
    assert "exit_2" in text and "two_exits" in text


def test_datasets(tmp_path):
    batched = [
        tf.data.Dataset.from_tensor_slices(data).batch(16)
        for data in (searches.CALIBRATION, searches.VALIDATION)
    ]
    scores = []
    for data in ((searches.CALIBRATION, searches.VALIDATION), batched):
        keras.utils.set_random_seed(5)
        model = kd.tuning.DynamicHyperModel(
            searches.build, *data, tuning.AccuracyUnderBudget(0.6)
        )
        tuner = model.tuner(
            "random", max_trials=1, seed=1, directory=tmp_path, overwrite=True
        )
        search(tuner, epochs=1, shuffle=False)
        scores.append(tuner.oracle.trials["0"].score)
    assert scores[0] == pytest.approx(scores[1])


def test_mirrored_strategy(tmp_path):
    tuner = hypermodel().tuner(
        "random", max_trials=1, directory=tmp_path, distribution_strategy=two_replicas()
    )
    search(tuner, epochs=1)
    (trial,) = tuner.oracle.trials.values()
    assert trial.status == "COMPLETED", trial.message
    (best,) = tuner.get_best_models(1)
    found = best.evaluate_dynamic(*VALIDATION, verbose=0)
    assert found["accuracy"] == pytest.approx(
        trial.metrics.get_last_value("val_dynamic_accuracy")
    )


def test_the_mark_of_a_search(random_search):
    tuner, _ = random_search
    (file,) = [
        name
        for name in tf.io.gfile.listdir(tuner.project_dir)
        if name.startswith("keras_dynamic")
    ]
    with open(f"{tuner.project_dir}/{file}") as stream:
        found = json.load(stream)
    assert found["objective"]["budget"] == 0.6
    assert sorted(found["space"]) == ["exit_1_loss_weight", "exit_2_loss_weight"]
