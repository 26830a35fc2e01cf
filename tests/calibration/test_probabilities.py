import json
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from keras_dynamic import calibration

MEASURES = (
    calibration.accuracy,
    calibration.negative_log_likelihood,
    calibration.brier_score,
    calibration.expected_calibration_error,
)


def random_rows(seed, num_samples, num_classes, sharpness=2.0):
    generator = np.random.default_rng(seed)
    logits = sharpness * generator.normal(size=(num_samples, num_classes))
    probabilities = np.exp(logits)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return probabilities, generator.integers(num_classes, size=num_samples)


def calibration_error_by_loops(probabilities, labels, num_bins):
    """The definition, row by row; for confidences without ties."""
    rows = sorted(range(len(labels)), key=lambda row: probabilities[row].max())
    num_bins = min(num_bins, len(rows))
    total = 0.0
    for number in range(num_bins):
        start = number * len(rows) // num_bins
        stop = (number + 1) * len(rows) // num_bins
        assert stop - start in (len(rows) // num_bins, -(-len(rows) // num_bins))
        right = confidence = 0.0
        for row in rows[start:stop]:
            right += probabilities[row].argmax() == labels[row]
            confidence += probabilities[row].max()
        total += abs(right - confidence)
    return total / len(rows)


def test_hand_worked_values():
    # Four rows, right, right, wrong, wrong.
    probabilities = np.array([[0.9, 0.1], [0.3, 0.7], [0.8, 0.2], [0.4, 0.6]])
    labels = np.array([0, 1, 1, 0])
    assert calibration.accuracy(probabilities, labels) == 0.5
    # -(log .9 + log .7 + log .2 + log .4) / 4
    assert calibration.negative_log_likelihood(probabilities, labels) == pytest.approx(
        -np.log(0.9 * 0.7 * 0.2 * 0.4) / 4
    )
    # (2 * .1^2 + 2 * .3^2 + 2 * .8^2 + 2 * .6^2) / 4 = 2 * 1.10 / 4
    assert calibration.brier_score(probabilities, labels) == pytest.approx(0.55)
    # One bin: |2/4 - (.9 + .7 + .8 + .6) / 4| = .25
    assert calibration.expected_calibration_error(
        probabilities, labels, num_bins=1
    ) == pytest.approx(0.25)
    # Two bins, confidences .6 (wrong) .7 (right) | .8 (wrong) .9 (right):
    # |1/2 - .65| / 2 + |1/2 - .85| / 2 = .075 + .175
    assert calibration.expected_calibration_error(
        probabilities, labels, num_bins=2
    ) == pytest.approx(0.25)
    # Four bins, as many as rows: (.6 + .3 + .8 + .1) / 4
    for num_bins in (4, 15):
        assert calibration.expected_calibration_error(
            probabilities, labels, num_bins=num_bins
        ) == pytest.approx(0.45)


def test_ties_share_their_right_answers():
    # Confidence .8 four times, two right. Any cut gives bins with accuracy 1/2:
    # |.5 - .8| = .3; without sharing, the order right, right, wrong, wrong would give
    # (|1 - .8| + |0 - .8|) / 2 = .5 for two bins.
    probabilities = np.full((4, 2), [0.8, 0.2])
    for labels in ([0, 0, 1, 1], [0, 1, 0, 1], [1, 1, 0, 0]):
        for num_bins in (1, 2, 3, 4):
            assert calibration.expected_calibration_error(
                probabilities, np.array(labels), num_bins=num_bins
            ) == pytest.approx(0.3)


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 60),
    st.integers(2, 5),
    st.integers(1, 20),
)
def test_calibration_error_against_loops(seed, num_samples, num_classes, num_bins):
    probabilities, labels = random_rows(seed, num_samples, num_classes)
    assert calibration.expected_calibration_error(
        probabilities, labels, num_bins=num_bins
    ) == pytest.approx(calibration_error_by_loops(probabilities, labels, num_bins))


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 9))
def test_row_order_does_not_matter(seed, num_samples, num_bins):
    generator = np.random.default_rng(seed)
    # Few distinct confidences, so that nearly every cut falls among equals.
    first = generator.integers(0, 6, size=num_samples) / 5
    probabilities = np.stack([first, 1 - first], axis=1)
    labels = generator.integers(2, size=num_samples)
    order = generator.permutation(num_samples)
    for measure in MEASURES:
        assert measure(probabilities[order], labels[order]) == pytest.approx(
            measure(probabilities, labels)
        )
    # To the last bit.
    assert calibration.expected_calibration_error(
        probabilities[order], labels[order], num_bins
    ) == calibration.expected_calibration_error(probabilities, labels, num_bins)


@given(st.integers(0, 2**32 - 1), st.integers(2, 50), st.integers(2, 6))
def test_against_scikit_learn(seed, num_samples, num_classes):
    probabilities, labels = random_rows(seed, num_samples, num_classes)
    classes = np.arange(num_classes)
    assert calibration.negative_log_likelihood(probabilities, labels) == pytest.approx(
        metrics.log_loss(labels, probabilities, labels=classes)
    )
    assert calibration.accuracy(probabilities, labels) == metrics.accuracy_score(
        labels, probabilities.argmax(axis=1)
    )
    assert calibration.brier_score(probabilities, labels) == pytest.approx(
        metrics.brier_score_loss(
            labels, probabilities, labels=classes, scale_by_half=False
        )
    )


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(2, 6))
def test_ranges(seed, num_samples, num_classes):
    probabilities, labels = random_rows(seed, num_samples, num_classes, sharpness=30)
    assert 0 <= calibration.accuracy(probabilities, labels) <= 1
    assert 0 <= calibration.expected_calibration_error(probabilities, labels) <= 1
    assert 0 <= calibration.brier_score(probabilities, labels) <= 2
    assert 0 <= calibration.negative_log_likelihood(probabilities, labels) < 87.4


def test_certain_and_right_or_wrong():
    certain = np.eye(3)
    right, wrong = np.array([0, 1, 2]), np.array([1, 2, 0])
    assert calibration.negative_log_likelihood(certain, right) == 0
    assert calibration.brier_score(certain, right) == 0
    assert calibration.expected_calibration_error(certain, right) == 0
    # A probability of 0 counts as 2**-126, the smallest normal float32.
    assert calibration.negative_log_likelihood(certain, wrong) == pytest.approx(
        126 * np.log(2)
    )
    assert calibration.brier_score(certain, wrong) == 2
    assert calibration.expected_calibration_error(certain, wrong) == 1


@pytest.mark.parametrize("measure", MEASURES)
def test_no_samples_and_one(measure):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        empty = measure(np.zeros((0, 3)), np.zeros(0, int))
        one = measure(np.array([[1.0, 0.0]], "float32"), np.array([0]))
    assert np.isnan(empty)
    assert one == (1 if measure is calibration.accuracy else 0)
    # Python floats, which JSON takes.
    assert type(empty) is type(one) is float
    json.dumps(one)


def test_nan_rows():
    probabilities = np.array([[np.nan, np.nan], [0.9, 0.1]])
    labels = np.array([0, 0])
    assert calibration.accuracy(probabilities, labels) == 0.5
    for measure in MEASURES[1:]:
        assert np.isnan(measure(probabilities, labels))


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(
    ("probabilities", "labels", "error", "message"),
    [
        (np.ones((3, 1)), [0, 0, 0], ValueError, r"Received: shape=\(3, 1\)"),
        (np.ones(3), [0, 0, 0], ValueError, r"Received: shape=\(3,\)"),
        (np.eye(2), [0, 1, 0], ValueError, r"`labels`.*Received: shape=\(3,\)"),
        (np.eye(2), [[0], [1]], ValueError, r"`labels`.*Received: shape=\(2, 1\)"),
        (np.eye(2), [0.0, 1.0], TypeError, "Received: dtype=float64"),
        (np.eye(2), [0, 2], ValueError, "Received: from 0 to 2"),
        (np.eye(2), [-1, 0], ValueError, "Received: from -1 to 0"),
        (np.array([[3.5, -1.0]]), [0], ValueError, "softmax first. Received: 3.5"),
    ],
)
def test_errors(measure, probabilities, labels, error, message):
    with pytest.raises(error, match=message):
        measure(probabilities, np.array(labels))


@pytest.mark.parametrize("num_bins", [0, 2.5])
def test_num_bins_error(num_bins):
    with pytest.raises(ValueError, match=f"Received: num_bins={num_bins}"):
        calibration.expected_calibration_error(np.eye(2), [0, 1], num_bins)
