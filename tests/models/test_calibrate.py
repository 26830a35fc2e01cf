import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import keras_dynamic as kd
from tests.models.random_graphs import dense_road
from tests.models.small_models import dense_data, dense_model


@pytest.fixture(scope="module")
def trained():
    keras.utils.set_random_seed(0)
    model = dense_model()
    x, y = dense_data(1200)
    # A tenth of the labels is wrong, so that no exit is right about everything.
    generator = np.random.default_rng(0)
    y = np.where(generator.uniform(size=1200) < 0.1, generator.integers(0, 4, 1200), y)
    model.compile(
        keras.optimizers.Adam(0.01),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    model.fit(x[:600], y[:600], epochs=8, verbose=0)
    return model, x[600:], y[600:]


RULES = ["max_probability", "entropy", "margin", "patience"]


@pytest.mark.parametrize("rule", RULES)
def test_the_report_is_what_the_dynamic_road_does(trained, rule):
    model, x, y = trained
    report = model.calibrate(x, y, rule=rule, max_accuracy_drop=0.02)
    p = model.predict_dynamic(x, verbose=0)
    right = p.outputs.argmax(1) == y
    final = model.predict(x, verbose=0)[2].argmax(1) == y
    assert report.num_samples == 600
    assert report.exit_rates == pytest.approx(p.exit_rates)
    assert report.mean_cost == pytest.approx(p.mean_cost)
    assert report.dynamic_accuracy == pytest.approx(right.mean())
    assert report.final_accuracy == pytest.approx(final.mean())
    assert report.dynamic_accuracy >= report.final_accuracy - 0.02
    assert report.mean_cost < 1
    temperatures = [exit_report.temperature for exit_report in report.exits]
    np.testing.assert_allclose(model.calibration_temperatures, temperatures, rtol=1e-6)
    thresholds = [exit_report.threshold for exit_report in report.exits[:-1]]
    assert model.exit_rule.threshold == thresholds
    expected = dense_road(model, x, model.exit_rule)
    np.testing.assert_array_equal(p.exit_index, expected["exit_index"])
    assert "mean cost" in str(report) and "exit_2" in str(report)


@pytest.mark.parametrize("rule", RULES)
def test_a_budget_is_kept(trained, rule):
    model, x, y = trained
    shares = model.compute_costs().shares()
    budget = 0.3 * shares[0] + 0.7 * shares[2]
    report = model.calibrate(x, y, rule=rule, budget=budget)
    assert report.mean_cost <= budget
    assert model.predict_dynamic(x, verbose=0).mean_cost <= budget + 1e-9


def test_a_tighter_goal_costs_more_or_answers_worse(trained):
    model, x, y = trained
    costs = [
        model.calibrate(x, y, max_accuracy_drop=drop).mean_cost
        for drop in (0.0, 0.02, 0.1)
    ]
    assert costs == sorted(costs, reverse=True)
    shares = model.compute_costs().shares()
    accuracies = [
        model.calibrate(x, y, budget=budget).dynamic_accuracy
        for budget in (shares[0], shares[1], shares[2])
    ]
    assert accuracies == sorted(accuracies)


@pytest.mark.parametrize("rule", RULES)
def test_a_least_accuracy_is_kept(trained, rule):
    model, x, y = trained
    final = np.mean(model.predict(x, verbose=0)[2].argmax(1) == y)
    report = model.calibrate(x, y, rule=rule, min_accuracy=0.8)
    right = model.predict_dynamic(x, verbose=0).outputs.argmax(1) == y
    assert 0.8 <= report.dynamic_accuracy == pytest.approx(right.mean())
    assert report.mean_cost < 1
    assert report.goal == ("min_accuracy", 0.8)
    assert f"rule {report.rule}, min_accuracy = 0.8." in str(report)
    thresholds = repr(model.exit_rule)
    # A drop to the same accuracy is the same goal: 600 samples, 480 right ones.
    drop = (round(final * 600) - 480) / 600
    same = model.calibrate(x, y, rule=rule, max_accuracy_drop=drop)
    assert repr(model.exit_rule) == thresholds and same.mean_cost == report.mean_cost


def test_a_least_accuracy_above_the_full_networks_says_so(trained):
    model, x, y = trained
    final = np.mean(model.predict(x, verbose=0)[2].argmax(1) == y)
    before = repr(model.exit_rule)
    with pytest.raises(kd.calibration.UnreachableGoal, match="min_accuracy=1") as error:
        model.calibrate(x, y, min_accuracy=1)
    assert f"the full network's is {final:.4g}" in str(error.value)
    assert error.value.goal == "min_accuracy" and final <= error.value.reachable < 1
    assert repr(model.exit_rule) == before
    model.calibrate(x, y, min_accuracy=error.value.reachable)


def test_temperatures_make_probabilities_honest(trained):
    model, x, y = trained
    report = model.calibrate(x, y)
    for exit_report in report.exits:
        before = exit_report.all_before.negative_log_likelihood
        after = exit_report.all_after.negative_log_likelihood
        assert after <= before
    assert report.goal is None


def test_without_a_goal_the_thresholds_stay(trained):
    model, x, y = trained
    model.exit_rule = kd.rules.MaxProbability([0.7, None])
    model.calibrate(x, y)
    assert model.exit_rule.threshold == [0.7, None]
    model.calibrate(x, y, rule=kd.rules.Entropy(0.25))
    assert repr(model.exit_rule) == "Entropy(threshold=0.25)"


def test_data_and_labels_of_every_kind(trained):
    model, x, y = trained
    expected = model.calibrate(x, y, budget=0.9)
    forms = [
        (x, y.astype("float32")),
        (x, y[:, None]),
        (x, np.eye(4)[y]),
        (tf.data.Dataset.from_tensor_slices((x, y)).batch(64), None),
        (x, [y, y, y]),
    ]
    for data, labels in forms:
        report = model.calibrate(data, labels, budget=0.9)
        assert report.mean_cost == pytest.approx(expected.mean_cost)
        assert report.dynamic_accuracy == pytest.approx(expected.dynamic_accuracy)


def test_binary_heads_and_logits():
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model = dense_model(None, loss, units=1)
    x, y = dense_data(200, classes=2)
    model.fit(x, y, epochs=3, verbose=0)
    report = model.calibrate(x, y[:, None], budget=1.0)
    p = model.predict_dynamic(x, verbose=0)
    assert report.mean_cost == pytest.approx(p.mean_cost)
    right = (p.outputs[:, 0] > 0) == y
    assert report.dynamic_accuracy == pytest.approx(right.mean())


def test_a_rule_of_the_users_own(trained):
    model, x, y = trained

    @keras.saving.register_keras_serializable(package="test_calibrate")
    class Doubt(kd.rules.ExitRule):
        leaves_below = True

        def __init__(self, scale):  # no threshold among its arguments
            super().__init__(0.1)
            self.scale = scale

        def score(self, probabilities):
            return self.scale * (1.0 - ops.max(probabilities, axis=-1))

    own = model.calibrate(x, y, rule=Doubt(2.0), budget=0.9)
    built_in = model.calibrate(x, y, budget=0.9)
    assert own.dynamic_accuracy == pytest.approx(built_in.dynamic_accuracy, abs=0.01)
    assert own.mean_cost <= 0.9


def test_errors(trained):
    model, x, y = trained
    with pytest.raises(RuntimeError, match="`compile` before `calibrate`"):
        dense_model(compiled=False).calibrate(x, y)
    for none in (x[:0], tf.data.Dataset.from_tensor_slices((x, y)).batch(8).take(0)):
        with pytest.raises(ValueError, match="`x` must hold at least one sample"):
            model.calibrate(
                none, y[:0] if none is not None and hasattr(none, "shape") else None
            )
    with pytest.raises(ValueError, match="class numbers from 0 to 3.*: [4-6] at row"):
        model.calibrate(x, y + 3)
    with pytest.raises(ValueError, match="class numbers from 0 to 3.*: -1 at row"):
        model.calibrate(x, y - 1)
    with pytest.raises(ValueError, match=r"one-hot rows \(n, 4\).*\(600, 3\)"):
        model.calibrate(x, np.eye(3)[y % 3])
    with pytest.raises(ValueError, match="`y` must be given"):
        model.calibrate(x)
    with pytest.raises(ValueError, match="no sample weights"):
        data = (x, y, np.ones(600))
        model.calibrate(tf.data.Dataset.from_tensor_slices(data).batch(8))
    with pytest.raises(
        ValueError, match="Give one of.*budget=0.5, max_accuracy_drop=0.1"
    ):
        model.calibrate(x, y, budget=0.5, max_accuracy_drop=0.1)
    with pytest.raises(ValueError, match="`budget` or `min_accuracy`.*accuracy=0.9"):
        model.calibrate(x, y, budget=0.5, min_accuracy=0.9)
    with pytest.raises(ValueError, match=r"`min_accuracy` must lie in \[0, 1\].*=1.5"):
        model.calibrate(x, y, min_accuracy=1.5)
    with pytest.raises(ValueError, match="`rule` must be one of.*'loudest'"):
        model.calibrate(x, y, rule="loudest")
    with pytest.raises(ValueError, match=r"`max_accuracy_drop` must lie in \[0, 1\)"):
        model.calibrate(x, y, max_accuracy_drop=1.5)
    with pytest.raises(ValueError, match="NaN.*1 of 600 samples.*row 5"):
        model.calibrate(np.where(np.arange(600)[:, None] == 5, np.nan, x), y)


def test_errors_of_type(trained):
    model, x, y = trained
    with pytest.raises(TypeError, match="`budget` must be a number.*budget='0.5'"):
        model.calibrate(x, y, budget="0.5")
    with pytest.raises(TypeError, match=r"`max_accuracy_drop` .* Received: .*\[0.5\]"):
        model.calibrate(x, y, max_accuracy_drop=[0.5])
    with pytest.raises(TypeError, match="`min_accuracy` must be a number.*'high'"):
        model.calibrate(x, y, min_accuracy="high")
    with pytest.raises(TypeError, match="`budget` must be a number.*True"):
        model.calibrate(x, y, budget=True)
    with pytest.raises(TypeError, match="`y` must be an array of labels.*'list'"):
        model.calibrate(x, y.tolist())


def test_steps_end_an_endless_dataset(trained):
    model, x, y = trained
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(50).repeat()
    assert model.calibrate(data, steps=4, budget=0.9).num_samples == 200


def test_logits_that_pass_for_probabilities_are_found_on_data():
    inputs = keras.Input((6,))
    halved = layers.Dense(4, name="halved")(inputs) / 2.0  # no activation to be seen
    model = kd.DynamicModel(inputs, [kd.EarlyExit(4)(inputs), halved])
    model.compile("sgd", "sparse_categorical_crossentropy")
    x, y = dense_data()
    with pytest.raises(ValueError, match="must give probabilities.*sums from"):
        model.calibrate(x, y)


def test_a_model_made_for_two_replicas_is_calibrated_as_one(tmp_path):
    x, y = dense_data(60)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        model = dense_model()
    alone = dense_model()
    alone.set_weights(model.get_weights())
    one, other = (m.calibrate(x, y, rule="margin", budget=1.0) for m in (model, alone))
    assert str(one) == str(other)
    assert repr(model.exit_rule) == repr(alone.exit_rule)
    first, second = (m.predict_dynamic(x, verbose=0) for m in (model, alone))
    np.testing.assert_array_equal(first.exit_index, second.exit_index)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert repr(loaded.exit_rule) == repr(alone.exit_rule)


def test_a_budget_out_of_reach_says_what_is_reachable_and_changes_nothing(trained):
    model, x, y = trained
    model.exit_rule = kd.rules.MaxProbability(0.7)
    temperatures = model.calibration_temperatures.numpy()
    least = model.compute_costs().shares()[0]
    unreachable = kd.calibration.UnreachableGoal
    with pytest.raises(unreachable, match=f"budget=0.01.*{least:.4g}") as error:
        model.calibrate(x, y, rule="entropy", budget=0.01)
    assert error.value.reachable == pytest.approx(least)
    assert repr(model.exit_rule) == "MaxProbability(threshold=0.7)"
    np.testing.assert_array_equal(model.calibration_temperatures, temperatures)


class Centered(layers.Layer):
    """Mixes rows where no rule over the graph can see it."""

    def call(self, inputs):
        return inputs - ops.mean(inputs, axis=0)

    def compute_output_shape(self, input_shape):
        return input_shape


class PlaceInBatch(layers.Layer):
    """Gives every sample its place in the batch."""

    def call(self, inputs):
        place = ops.cumsum(ops.ones_like(inputs[:, :1]), axis=0)
        return inputs + place

    def compute_output_shape(self, input_shape):
        return input_shape


@pytest.mark.parametrize("mixing", [Centered, PlaceInBatch])
def test_layers_that_mix_rows_are_found_on_data(mixing):
    inputs = keras.Input((6,))
    early = kd.EarlyExit(4, name="early")(inputs)
    late = layers.Dense(4, "softmax", name="late")(mixing()(inputs))
    model = kd.DynamicModel(inputs, [early, late])
    model.compile("sgd", "sparse_categorical_crossentropy")
    x, y = dense_data()
    with pytest.raises(ValueError, match=r"other samples of its batch.*\['late'\]"):
        model.calibrate(x, y)
