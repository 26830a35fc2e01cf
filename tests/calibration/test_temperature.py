import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, special
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator

from keras_dynamic import calibration
from keras_dynamic.calibration import temperature


def overconfident_rows(seed, num_samples=2000, num_classes=4, factor=2.5):
    """Logits that are `factor` times those from which the labels were drawn."""
    generator = np.random.default_rng(seed)
    logits = 1.5 * generator.normal(size=(num_samples, num_classes))
    uniform = generator.random((num_samples, 1))
    labels = (special.softmax(logits, axis=1).cumsum(axis=1) < uniform).sum(axis=1)
    return factor * logits, np.minimum(labels, num_classes - 1)


def test_fit_by_hand():
    # Each row says .99; three of four are right. The best probability is 3/4:
    # (99)^(1/T) = 3, T = log 99 / log 3 = 4.18266; the loss there is the entropy of
    # (3/4, 1/4), .562335; before it was -(3 log .99 + log .01) / 4 = 1.158830.
    log_probabilities = np.log([[0.99, 0.01], [0.01, 0.99]] * 2)
    fit = calibration.fit_temperature(log_probabilities, np.array([0, 1, 0, 0]))
    assert fit.status == "fitted"
    assert fit.temperature == pytest.approx(4.18266, rel=1e-5)
    assert fit.nll_before == pytest.approx(1.158830, abs=1e-6)
    assert fit.nll_after == pytest.approx(0.562335, abs=1e-6)


@pytest.mark.parametrize("factor", [0.25, 0.7, 2.5, 8.0])
def test_finds_the_factor(factor):
    logits, labels = overconfident_rows(seed=3, num_samples=20000, factor=factor)
    fit = calibration.fit_temperature(logits, labels)
    assert fit.status == "fitted"
    assert fit.temperature == pytest.approx(factor, rel=0.03)
    assert fit.nll_after < fit.nll_before
    after = calibration.apply_temperature(logits, fit.temperature)
    assert calibration.expected_calibration_error(after, labels) < 0.02


@given(st.integers(0, 2**32 - 1), st.floats(0.3, 5))
def test_against_a_root_of_the_slope(seed, factor):
    logits, labels = overconfident_rows(seed, num_samples=200, factor=factor)
    fit = calibration.fit_temperature(logits, labels)
    rows = np.arange(len(labels))

    def slope(inverse):
        probabilities = special.softmax(inverse * logits, axis=1)
        return np.mean(np.sum(probabilities * logits, axis=1) - logits[rows, labels])

    expected = 1 / optimize.brentq(slope, 1 / 20, 1 / 0.05, xtol=1e-12)
    if fit.status == temperature.FITTED:
        assert fit.temperature == pytest.approx(expected, rel=1e-4)
    else:
        assert expected == pytest.approx(1, abs=0.02)
    log_loss = -special.log_softmax(logits / fit.temperature, axis=1)[rows, labels]
    assert fit.nll_after == pytest.approx(log_loss.mean(), abs=1e-12)


class PassesLogits(ClassifierMixin, BaseEstimator):
    """A classifier of scikit-learn whose samples are their own logits."""

    def fit(self, logits, labels):
        self.classes_ = np.unique(labels)
        return self

    def decision_function(self, logits):
        return logits

    def predict(self, logits):
        return self.classes_[logits.argmax(axis=1)]


@pytest.mark.parametrize("factor", [0.4, 2.5])
def test_against_scikit_learn(factor):
    logits, labels = overconfident_rows(seed=0, factor=factor)
    classifier = FrozenEstimator(PassesLogits().fit(logits, labels))
    calibrated = CalibratedClassifierCV(classifier, method="temperature")
    calibrated.fit(logits, labels)
    fit = calibration.fit_temperature(logits, labels)
    np.testing.assert_allclose(
        calibration.apply_temperature(logits, fit.temperature),
        calibrated.predict_proba(logits),
        atol=1e-6,
    )


@given(st.integers(0, 2**32 - 1), st.floats(-50, 50))
def test_logits_or_log_probabilities_in_any_order(seed, constant):
    logits, labels = overconfident_rows(seed, num_samples=100)
    fit = calibration.fit_temperature(logits, labels)
    order = np.random.default_rng(seed).permutation(len(labels))
    for same in (special.log_softmax(logits, axis=1), logits + constant):
        other = calibration.fit_temperature(same[order], labels[order])
        assert other.status == fit.status
        assert other.temperature == pytest.approx(fit.temperature, rel=1e-4)
        assert other.nll_after == pytest.approx(fit.nll_after, abs=1e-8)


def kept(log_probabilities, labels):
    fit = calibration.fit_temperature(np.asarray(log_probabilities), np.array(labels))
    assert fit.temperature == 1.0
    np.testing.assert_equal(fit.nll_after, fit.nll_before)
    return fit.status


def test_every_sample_right_or_wrong():
    logits = np.array([[2.0, 0.0], [0.0, 2.0], [1.0, 0.0]])
    assert kept(logits, [0, 1, 0]) == temperature.KEPT_LOWEST
    assert kept(logits, [1, 0, 1]) == temperature.KEPT_HIGHEST
    assert "every sample right?" in temperature.KEPT_LOWEST
    assert "no better than a guess?" in temperature.KEPT_HIGHEST


def test_other_reasons_to_keep():
    # Right with .75 three times of four: already honest.
    honest = np.log([[0.75, 0.25], [0.25, 0.75]] * 2)
    assert kept(honest, [0, 1, 0, 0]) == temperature.KEPT_NO_IMPROVEMENT
    assert kept(np.zeros((5, 3)), [0, 1, 2, 0, 1]) == temperature.KEPT_NO_IMPROVEMENT
    # Right by so much that nothing is left to gain.
    assert kept(100 * np.eye(3), [0, 1, 2]) == temperature.KEPT_NO_IMPROVEMENT
    assert kept(honest, [0, 0, 0, 0]) == temperature.KEPT_ONE_CLASS
    assert kept(honest[:1], [1]) == temperature.KEPT_TOO_FEW
    assert kept(np.zeros((0, 2)), np.zeros(0, int)) == temperature.KEPT_TOO_FEW
    broken = honest.copy()
    broken[2] = np.nan
    assert kept(broken, [0, 1, 0, 0]) == temperature.KEPT_NOT_FINITE
    broken[2] = -np.inf
    assert kept(broken, [0, 1, 0, 0]) == temperature.KEPT_NOT_FINITE


@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 30),
    st.sampled_from([1e-3, 1.0, 30.0, 1e4]),
)
def test_never_out_of_bounds_and_never_worse(seed, num_samples, scale):
    generator = np.random.default_rng(seed)
    logits = scale * generator.standard_cauchy(size=(num_samples, 3))
    fit = calibration.fit_temperature(logits, generator.integers(3, size=num_samples))
    assert temperature.MIN_TEMPERATURE < fit.temperature < temperature.MAX_TEMPERATURE
    assert fit.nll_after <= fit.nll_before
    assert (fit.status == temperature.FITTED) == (fit.temperature != 1.0)


def test_probability_of_zero():
    # A zero counts as 2**-126, or as the least other entry of its row.
    log_probabilities = np.array(
        [[0.0, -np.inf, -np.inf], [-np.inf, -200.0, 0.0], [np.log(0.5)] * 2 + [-np.inf]]
    )
    for value in (0.05, 1.0, 20.0):
        probabilities = calibration.apply_temperature(log_probabilities, value)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    # At T = 20 a zero stands for exp(-126 log 2 / 20) = .012691 of the largest.
    np.testing.assert_allclose(
        probabilities[0], np.array([1, 0.012691, 0.012691]) / 1.025383, rtol=1e-4
    )
    # exp(-200 / 20) = 4.54e-5 for both the small entry and the zero.
    np.testing.assert_allclose(probabilities[1, :2], 4.5396e-5, rtol=1e-3)
    # A certain mistake among right answers: finite, and it raises the temperature.
    log_probabilities = np.where(np.eye(2)[[0, 1, 0, 1, 0]] > 0, 0.0, -np.inf)
    fit = calibration.fit_temperature(log_probabilities, np.array([0, 1, 0, 1, 1]))
    # Four of five right: 2**(126 / T) = 4 would be T = 63, above the bound.
    assert fit.status == temperature.KEPT_HIGHEST
    assert fit.nll_before == pytest.approx(126 * np.log(2) / 5)


def test_apply_by_hand():
    # Odds 4:1, at T = 2 their square root 2:1, at T = 0.5 their square 16:1.
    log_probabilities = np.log([[0.8, 0.2]])
    for value, expected in ((1.0, 4 / 5), (2.0, 2 / 3), (0.5, 16 / 17)):
        np.testing.assert_allclose(
            calibration.apply_temperature(log_probabilities, value),
            [[expected, 1 - expected]],
        )


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 20), st.sampled_from([1.0, 1e4]))
def test_apply_against_scipy(seed, value, scale):
    generator = np.random.default_rng(seed)
    logits = (scale * generator.normal(size=(6, 4))).astype("float32")
    probabilities = calibration.apply_temperature(logits, value)
    assert probabilities.dtype == np.float64
    np.testing.assert_allclose(
        probabilities, special.softmax(logits.astype(float) / value, axis=1)
    )
    np.testing.assert_array_equal(probabilities.argmax(axis=1), logits.argmax(axis=1))


def test_apply_to_what_is_not_finite_and_to_nothing():
    rows = np.array([[np.nan, 0.0], [np.inf, 0.0], [-np.inf, -np.inf], [0.0, 0.0]])
    np.testing.assert_array_equal(
        calibration.apply_temperature(rows, 2.0), [[np.nan] * 2] * 3 + [[0.5, 0.5]]
    )
    assert calibration.apply_temperature(np.zeros((0, 3)), 2.0).shape == (0, 3)


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_apply_errors(value):
    with pytest.raises(ValueError, match=f"Received: temperature={value}"):
        calibration.apply_temperature(np.zeros((2, 2)), value)
    with pytest.raises(ValueError, match=r"Received: shape=\(2,\)"):
        calibration.apply_temperature(np.zeros(2), 1.0)


def test_fit_errors():
    with pytest.raises(ValueError, match=r"`log_probabilities`.*shape=\(2, 1\)"):
        calibration.fit_temperature(np.zeros((2, 1)), [0, 0])
    with pytest.raises(TypeError, match="Received: dtype=float64"):
        calibration.fit_temperature(np.zeros((2, 2)), [0.0, 0.5])


def test_fit_is_frozen():
    fit = calibration.TemperatureFit(1.0, temperature.FITTED, 0.0, 0.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        fit.temperature = 2.0
