"""A search that is killed and goes on, one with several workers, and wrong use."""

import json
import signal
from pathlib import Path

import keras
import keras_tuner
import pytest
import tensorflow as tf

import keras_dynamic as kd
from keras_dynamic import tuning
from tests import processes
from tests.processes import finish, free_addresses
from tests.tuning import searches
from tests.tuning.searches import hypermodel, search


def start(*arguments, **environment):
    return processes.start("tests.tuning.worker", *arguments, **environment)


def trials_in(directory):
    """The states of the trials of a project, by their ids."""
    files = sorted(Path(directory).glob("search/trial_*/trial.json"))
    return {file.parent.name: json.loads(file.read_text()) for file in files}


def values_of(trials):
    return {key: trial["hyperparameters"]["values"] for key, trial in trials.items()}


def test_killed_in_a_trial_and_resumed(tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    finish(start(killed, 3, 1), status=-signal.SIGKILL)
    before = trials_in(killed)
    assert [trial["status"] for trial in before.values()] == ["COMPLETED", "RUNNING"]
    finish(start(killed, 3))
    after = trials_in(killed)
    assert [trial["status"] for trial in after.values()] == ["COMPLETED"] * 3
    # None lost, none doubled: the finished one is untouched, the other one was run with
    # the values that it had.
    assert after["trial_0"] == before["trial_0"]
    values = values_of(after)
    assert values["trial_1"] == values_of(before)["trial_1"]
    assert len({str(each) for each in values.values()}) == 3
    state = json.loads((killed / "search" / "oracle.json").read_text())
    assert state["start_order"] == state["end_order"] == ["0", "1", "2"]
    # The same trials as without the kill.
    finish(start(whole, 3))
    assert values_of(trials_in(whole)) == values


def test_chief_and_two_tuners(tmp_path):
    (address,) = free_addresses(1)
    host, port = address.split(":")
    workers = [
        start(
            tmp_path,
            4,
            KERASTUNER_TUNER_ID=name,
            KERASTUNER_ORACLE_IP=host,
            KERASTUNER_ORACLE_PORT=port,
        )
        for name in ("chief", "tuner0", "tuner1")
    ]
    finish(*workers)
    trials = trials_in(tmp_path)
    assert [trial["status"] for trial in trials.values()] == ["COMPLETED"] * 4
    assert len({str(values) for values in values_of(trials).values()}) == 4
    tuner = hypermodel().tuner(
        "random", max_trials=4, seed=11, directory=tmp_path, project_name="search"
    )
    record = tuning.pareto(tuner)
    assert sorted(record.trials) == ["0", "1", "2", "3"]
    assert sorted(record.scores) == sorted(trial["score"] for trial in trials.values())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The directory of a finished search."""
    directory = tmp_path_factory.mktemp("finished")
    search(hypermodel().tuner("random", max_trials=1, directory=directory), epochs=1)
    return directory


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"objective": tuning.AccuracyUnderBudget(0.3)},
            r"objective.*'budget': 0.6.*there.*'budget': 0.3",
        ),
        ({"rule": "entropy"}, "rule None there, entropy here"),
        (
            {"function": searches.build_with_selector},
            "'exit_1_loss_weight' only there.*'temperature' only here",
        ),
    ],
)
def test_directory_of_another_search(finished, other, message):
    model = hypermodel(**other)
    with pytest.raises(ValueError, match=f"belongs to another search.*{message}"):
        model.tuner("random", max_trials=1, directory=finished)
    # Made without our door, the tuner finds nothing wrong; its trials do.
    tuner = keras_tuner.RandomSearch(
        model, objective=model.objective, max_trials=2, directory=finished
    )
    with pytest.raises(ValueError, match="belongs to another search"):
        tuning.pareto(tuner)


def test_another_search_is_found_by_its_first_trial(tmp_path):
    search(hypermodel().tuner("random", max_trials=1, directory=tmp_path), epochs=1)
    model = hypermodel(objective=tuning.CostUnderAccuracy(0.5))
    tuner = keras_tuner.RandomSearch(
        model, objective=model.objective, max_trials=2, directory=tmp_path
    )
    with pytest.raises(ValueError, match="belongs to another search"):
        search(tuner)


def test_directory_of_a_search_of_another_kind(tmp_path):
    def build(hp):
        inputs = keras.Input((6,))
        outputs = keras.layers.Dense(hp.Int("units", 3, 4))(inputs)
        model = keras.Model(inputs, outputs)
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
        return model

    objective = keras_tuner.Objective("loss", "min")
    search(
        keras_tuner.RandomSearch(
            build, objective=objective, max_trials=1, directory=tmp_path
        )
    )
    with pytest.raises(ValueError, match="not of a `DynamicHyperModel`.*overwrite"):
        hypermodel().tuner("random", max_trials=1, directory=tmp_path)
    tuner = hypermodel().tuner(
        "random", max_trials=1, directory=tmp_path, overwrite=True
    )
    search(tuner, epochs=1)
    assert len(tuning.pareto(tuner).trials) == 1


def test_directory_of_a_search_that_has_not_finished_a_trial(tmp_path):
    project = tmp_path / "untitled_project"
    project.mkdir()
    (project / "oracle.json").write_text("{}")
    with pytest.raises(ValueError, match="not of a `DynamicHyperModel`"):
        hypermodel().tuner("random", max_trials=1, directory=tmp_path)


def test_another_validation_beside_it(tmp_path):
    data = searches.CALIBRATION, searches.VALIDATION
    tuner = hypermodel().tuner("random", max_trials=1, directory=tmp_path)
    with pytest.raises(ValueError, match="must hold no `DynamicValidation`"):
        search(tuner, callbacks=[kd.callbacks.DynamicValidation(*data)])


def test_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="`directory` must be a place.*file"):
        hypermodel().tuner("random", max_trials=1, directory=tmp_path / "file")


@pytest.mark.parametrize("objective", [None, keras_tuner.Objective("val_auc", "max")])
def test_objective_that_nobody_logs(objective, tmp_path):
    tuner = keras_tuner.RandomSearch(
        hypermodel(), objective=objective, max_trials=1, directory=tmp_path
    )
    name = "default_objective" if objective is None else "val_auc"
    with pytest.raises(ValueError, match=rf"hypermodel.objective.*'{name}'.*val_mean"):
        search(tuner, epochs=5)


def test_metric_that_the_model_lacks(tmp_path):
    model = hypermodel(objective=tuning.AccuracyUnderBudget(0.6, metric="auc"))
    tuner = model.tuner("random", max_trials=1, directory=tmp_path)
    with pytest.raises(ValueError, match=r"'val_dynamic_auc'.*metrics=\['auc'\]"):
        search(tuner)


def test_space_without_lambda(tmp_path):
    def nothing(hp):
        return searches.build(keras_tuner.HyperParameters())

    with pytest.raises(ValueError, match="must have hyperparameters.*without any"):
        hypermodel(nothing).tuner("random", max_trials=1, directory=tmp_path)

    def rate_only(hp):
        hp.Float("learning_rate", 0.01, 0.1)
        return searches.build(keras_tuner.HyperParameters())

    with pytest.warns(UserWarning, match=r"no lambda.*\['learning_rate'\]"):
        hypermodel(rate_only).tuner("random", max_trials=1, directory=tmp_path)


def test_lambda_without_effect(tmp_path):
    def overridden(hp):
        model = searches.build(hp)
        model.compile("sgd", model.road.losses[0], loss_weights=[1.0, 0.7, 1.0])
        return model

    with pytest.raises(ValueError, match="'exit_2_loss_weight'.*0.7 in place of 1"):
        hypermodel(overridden).tuner("random", max_trials=1, directory=tmp_path)

    def halved(hp):
        model = searches.build(hp)
        model.get_layer("exit_1").loss_weight = 0.5
        return model

    hypermodel(halved).tuner("random", max_trials=1, directory=tmp_path)


def test_models_that_are_none(tmp_path):
    def plain(hp):
        tuning.temperature(hp)
        inputs = keras.Input((6,))
        return keras.Model(inputs, keras.layers.Dense(3)(inputs))

    with pytest.raises(TypeError, match="return a `DynamicModel`.*Functional"):
        hypermodel(plain).tuner("random", max_trials=1, directory=tmp_path)

    def raw(hp):
        tuning.temperature(hp)
        inputs = keras.Input((6,))
        outputs = [kd.EarlyExit(3)(inputs), keras.layers.Dense(3, "softmax")(inputs)]
        return kd.DynamicModel(inputs, outputs)

    with pytest.raises(ValueError, match="must return a compiled model"):
        hypermodel(raw).tuner("random", max_trials=1, directory=tmp_path)
    with pytest.raises(TypeError, match="`callbacks` must return a list.*None"):
        hypermodel(callbacks=lambda hp: None).tuner(
            "random", max_trials=1, directory=tmp_path
        )


def test_arguments(tmp_path):
    data, objective = searches.CALIBRATION, tuning.AccuracyUnderBudget(0.5)
    model = tuning.DynamicHyperModel
    with pytest.raises(TypeError, match="`build` must be a function.*'build'"):
        model("build", data, data, objective)
    with pytest.raises(TypeError, match="`callbacks` must be a function.*list"):
        model(searches.build, data, data, objective, callbacks=[])
    with pytest.raises(TypeError, match="`objective`.*'val_accuracy'"):
        model(searches.build, data, data, "val_accuracy")
    with pytest.raises(TypeError, match="`validation_data`.*ndarray"):
        model(searches.build, data, data[0], objective)
    with pytest.raises(ValueError, match=r"\['bayesian'.*tuner='best'"):
        hypermodel().tuner("best", directory=tmp_path)
    with pytest.raises(TypeError, match="a class of tuners.*tuner=3"):
        hypermodel().tuner(3, directory=tmp_path)
    with pytest.raises(TypeError, match="`calibration_data` must be.*int"):
        model(searches.build, 5, data, objective)
    endless = tf.data.Dataset.from_tensor_slices(data).batch(8).repeat()
    with pytest.raises(ValueError, match="`validation_data` must come to an end"):
        model(searches.build, data, endless, objective)
    with pytest.raises(TypeError, match="`calibration_data` is read after every.*iter"):
        model(searches.build, iter([data]), data, objective)
    with pytest.raises(ValueError, match="`objective` is the hypermodel's own"):
        hypermodel().tuner("random", objective="loss", directory=tmp_path)
