"""`calibrate` with `risk_confidence`: what is promised, by which rows, and what not."""

import json

import keras
import numpy as np
import pytest

import keras_dynamic as kd
from keras_dynamic.models.certifying import split_rows
from tests.models.small_models import dense_data, dense_model


@pytest.fixture(scope="module")
def trained():
    keras.utils.set_random_seed(0)
    model = dense_model()
    x, y = dense_data(2600)
    # A tenth of the labels is wrong, so that no exit is right about everything.
    generator = np.random.default_rng(0)
    y = np.where(generator.uniform(size=2600) < 0.1, generator.integers(0, 4, 2600), y)
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    model.fit(x[:600], y[:600], epochs=8, verbose=0)
    return model, x[600:], y[600:]


@keras.saving.register_keras_serializable(package="tests")
class Doubt(kd.rules.ExitRule):
    """A rule of a user's own, which leaves below its threshold."""

    leaves_below = True

    def score(self, probabilities):
        return 1.0 - keras.ops.max(probabilities, axis=-1)


@pytest.mark.parametrize(
    "rule", ["max_probability", "entropy", "margin", "patience", Doubt(0.1)], ids=str
)
def test_what_is_certified_is_what_the_dynamic_road_does(trained, rule):
    model, x, y = trained
    report = model.calibrate(
        x, y, rule=rule, max_accuracy_drop=0.02, risk_confidence=0.9
    )
    certificate = report.certificate
    _, rows = split_rows(2000)
    assert certificate.num_selection_samples == certificate.num_samples == 1000
    assert report.num_samples == 1000
    p = model.predict_dynamic(x[rows], verbose=0)
    final = model.predict(x[rows], verbose=0)[2].argmax(1) == y[rows]
    lost = int(np.sum(final & (p.outputs.argmax(1) != y[rows])))
    assert certificate.num_certified > 0
    assert certificate.step.num_lost == lost
    assert certificate.p_value == kd.calibration.risk_p_value(lost, 1000, 0.02) <= 0.1
    assert list(certificate.step.thresholds) == model.exit_rule.threshold
    assert certificate.step.mean_cost == pytest.approx(p.mean_cost)
    assert report.mean_cost == pytest.approx(p.mean_cost)
    assert certificate.certified_risk == 0.02 and certificate.samples_needed is None
    p_values = [step.p_value for step in certificate.path]
    tested = [value for value in p_values if value is not None]
    assert all(value <= 0.1 for value in tested[: certificate.num_certified])
    assert all(value > 0.1 for value in tested[certificate.num_certified :])
    assert len(tested) <= certificate.num_certified + 1
    costs = [step.mean_cost for step in certificate.path]
    assert costs == pytest.approx(sorted(costs, reverse=True), abs=0.02)


def test_the_two_halves_share_no_row():
    first, second = split_rows(11)
    assert len(first) == 5
    np.testing.assert_array_equal(np.sort(np.concatenate([first, second])), range(11))
    np.testing.assert_array_equal(split_rows(11)[0], first)
    assert [len(rows) for rows in split_rows(1)] == [0, 1]


def test_each_half_does_its_own_part(trained):
    """Labels of the certifying rows move no threshold of the path, and no T."""
    model, x, y = trained
    goal = {"max_accuracy_drop": 0.02, "risk_confidence": 0.9}
    report = model.calibrate(x, y, **goal)
    temperatures = model.calibration_temperatures.numpy()
    again = model.calibrate(x, y, **goal)
    assert str(again) == str(report)
    _, rows = split_rows(2000)
    other = y.copy()
    other[rows] = model.predict(x[rows], verbose=0)[2].argmax(1)  # always right there
    changed = model.calibrate(x, other, **goal)
    np.testing.assert_array_equal(model.calibration_temperatures, temperatures)
    first, second = [
        [step.thresholds for step in each.certificate.path]
        for each in (report, changed)
    ]
    assert first == second
    assert changed.certificate.step != report.certificate.step


def test_a_bolder_promise_costs_less(trained):
    model, x, y = trained

    def cost(drop, confidence):
        return model.calibrate(
            x, y, max_accuracy_drop=drop, risk_confidence=confidence
        ).mean_cost

    assert cost(0.08, 0.9) < cost(0.03, 0.9) <= cost(0.03, 0.99)


def test_nothing_to_certify_closes_the_exits_and_says_so(trained):
    model, x, y = trained
    # 299 samples without a loss are the fewest for 0.01 at 0.95; half of 400 are 200.
    with pytest.warns(UserWarning, match="it would take 598 samples in all"):
        report = model.calibrate(
            x[:400], y[:400], max_accuracy_drop=0.01, risk_confidence=0.95
        )
    certificate = report.certificate
    assert certificate.path[0].num_lost == 0 and certificate.samples_needed == 598
    assert certificate.num_certified == 0 and certificate.p_value is None
    assert certificate.certified_risk == 0
    assert model.exit_rule.threshold == [None, None]
    assert report.exit_rates == (0, 0, 1)
    assert report.dynamic_accuracy == report.final_accuracy
    assert set(model.predict_dynamic(x[:50], verbose=0).exit_index) == {2}
    text = str(report)
    assert "Nothing could be certified" in text and "failed" in text
    assert max(len(line) for line in text.splitlines()) <= 110


def test_without_a_sample_to_choose_on_the_number_needed_is_named(trained):
    model, x, y = trained
    # 29 without a loss certify 0.1 at 0.95: 0.9 ** 29 = 0.047; half of 58 are 29.
    with pytest.warns(UserWarning, match="was left to choose.*take 58 samples in all"):
        model.calibrate(x[:1], y[:1], max_accuracy_drop=0.1, risk_confidence=0.95)


def test_no_step_dearer_than_the_full_network_is_in_force():
    """A quarter leaves where thresholds are chosen, nobody where they are tested."""
    inputs = hidden = keras.Input((2,))
    early = keras.layers.Dense(2, "softmax", name="early")(inputs)
    for units in (16, 16, 2):
        hidden = keras.layers.Dense(units, kernel_initializer="identity")(hidden)
    model = kd.DynamicModel(inputs, [early, keras.layers.Softmax()(hidden)])
    model.get_layer("early").set_weights([np.eye(2), np.array([-0.4, 0.0])])
    model.compile("sgd", "sparse_categorical_crossentropy")
    # The last exit is right about all; the early one, logits (x - 0.4, 0), is sure and
    # right where x = 3, and wrong where x = 0.1.
    x = np.tile([[0.1, 0.0]], (400, 1))
    x[split_rows(400)[0][:50], 0] = 3.0
    y = np.zeros(400, int)
    with pytest.warns(UserWarning, match="Nothing that could be certified saves"):
        report = model.calibrate(x, y, max_accuracy_drop=0.1, risk_confidence=0.95)
    assert report.certificate.num_certified > 0
    assert report.mean_cost == 1 and model.exit_rule.threshold == [None]
    assert "Nothing that could be certified saves" in str(report)


def test_no_number_of_samples_certifies_no_risk(trained):
    model, x, y = trained
    with pytest.warns(UserWarning, match="no number of samples would do"):
        model.calibrate(x, y, max_accuracy_drop=0, risk_confidence=0.5)


@pytest.mark.filterwarnings("ignore:Nothing could be certified")
@pytest.mark.parametrize("num_rows", [1, 2, 3])
def test_few_samples(trained, num_rows):
    model, x, y = trained
    report = model.calibrate(
        x[:num_rows], y[:num_rows], max_accuracy_drop=0.1, risk_confidence=0.9
    )
    assert report.certificate.num_certified == 0
    assert report.exit_rates == (0, 0, 1) and "Nothing" in str(report)


def test_the_report_of_a_certificate(trained):
    model, x, y = trained
    report = model.calibrate(x, y, max_accuracy_drop=0.02, risk_confidence=0.9)
    text = str(report)
    assert "Certified with a confidence of 0.9: of new samples, at most 2.00 %" in text
    assert "chosen" in text and "seed 0" in text
    numbers = json.loads(json.dumps(report.to_dict()))["certificate"]
    assert numbers["certified_risk"] == 0.02
    assert numbers["p_value"] == report.certificate.p_value
    assert numbers["path"][0]["num_lost"] == report.certificate.path[0].num_lost


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"risk_confidence": 0.9}, ValueError, "needs a `max_accuracy_drop`"),
        ({"risk_confidence": 0.9, "budget": 0.5}, ValueError, "`max_accuracy_drop`"),
        (
            {"risk_confidence": 0, "max_accuracy_drop": 0.1},
            ValueError,
            "risk_confidence=0",
        ),
        (
            {"risk_confidence": 1, "max_accuracy_drop": 0.1},
            ValueError,
            "risk_confidence=1",
        ),
        ({"risk_confidence": "0.9", "max_accuracy_drop": 0.1}, TypeError, "'0.9'"),
        ({"risk_confidence": True, "max_accuracy_drop": 0.1}, TypeError, "True"),
        ({"risk_confidence": 0.9, "max_accuracy_drop": 1.0}, ValueError, "drop=1.0"),
    ],
)
def test_what_is_refused(trained, arguments, error, message):
    model, x, y = trained
    before = repr(model.exit_rule), model.calibration_temperatures.numpy()
    with pytest.raises(error, match=message):
        model.calibrate(x, y, **arguments)
    assert repr(model.exit_rule) == before[0]
    np.testing.assert_array_equal(model.calibration_temperatures, before[1])
