import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from keras_dynamic.ops import confidence

SCORES = [confidence.max_probability, confidence.margin, confidence.entropy]


def random_probabilities(seed, rows=50, classes=7, sharpness=3.0):
    logits = sharpness * np.random.default_rng(seed).normal(size=(rows, classes))
    return special.softmax(logits, axis=1)


# Scores


@pytest.mark.parametrize(
    "score, expected",
    [
        (confidence.max_probability, [0.5, 1, 0.25]),
        (confidence.margin, [0.25, 1, 0]),
        # log 2 / 2 + 2 (log 4 / 4) = 1.5 log 2; nothing; log 4
        (confidence.entropy, [1.5 * np.log(2), 0, np.log(4)]),
    ],
)
def test_score_by_hand(score, expected):
    probabilities = np.array([[0.25, 0.5, 0.25, 0], [0, 0, 0, 1], [0.25] * 4])
    scores = score(probabilities)
    assert scores.dtype == tf.float32
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "score, expected",
    [
        (confidence.max_probability, [0.75, 0.75, 0.5, 1, 1]),
        (confidence.margin, [0.5, 0.5, 0, 1, 1]),
        # (3/4) log (4/3) + (1/4) log 4 = 2 log 2 - (3/4) log 3
        (
            confidence.entropy,
            [2 * np.log(2) - 0.75 * np.log(3)] * 2 + [np.log(2), 0, 0],
        ),
    ],
)
def test_score_of_a_binary_head_by_hand(score, expected):
    scores = score(np.array([[0.25], [0.75], [0.5], [0.0], [1.0]]))
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.floats(0.1, 20))
def test_scores_against_numpy_and_scipy(seed, classes, sharpness):
    probabilities = random_probabilities(seed, 8, classes, sharpness)
    ordered = np.sort(probabilities, axis=1)
    close = {"rtol": 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(
        confidence.max_probability(probabilities), ordered[:, -1], **close
    )
    np.testing.assert_allclose(
        confidence.margin(probabilities), ordered[:, -1] - ordered[:, -2], **close
    )
    np.testing.assert_allclose(
        confidence.entropy(probabilities), stats.entropy(probabilities, axis=1), **close
    )


@pytest.mark.parametrize("score", SCORES)
def test_order_of_the_classes_does_not_matter(score):
    probabilities = random_probabilities(0)
    np.testing.assert_allclose(
        score(probabilities[:, ::-1]), score(probabilities), rtol=1e-6
    )


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("classes", [1, 2, 3, 40])
def test_a_row_with_a_nan_scores_nan_wherever_it_stands(score, jit, classes):
    # Row k has its NaN in column k; the last row has none.
    rows = np.full((classes + 1, classes), 1 / (classes + 1), "float32")
    np.fill_diagonal(rows, np.nan)
    scores = tf.function(score, jit_compile=jit)(tf.constant(rows)).numpy()
    np.testing.assert_array_equal(np.isnan(scores), [True] * classes + [False])


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_scores_are_float32_of_any_float(score, dtype):
    probabilities = tf.constant([[0.25, 0.5, 0.25], [0, 0, 1]], dtype)
    scores = score(probabilities)
    assert scores.dtype == tf.float32
    np.testing.assert_array_equal(scores, score(tf.cast(probabilities, "float32")))


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("classes", [1, 3])
def test_scores_of_no_rows(score, classes):
    assert score(np.zeros((0, classes))).shape == (0,)


def test_predicted_class():
    probabilities = np.array([[0.25, 0.5, 0.25], [0.4, 0.2, 0.4]])
    predicted = confidence.predicted_class(probabilities)
    assert predicted.dtype == tf.int32
    assert predicted.numpy().tolist() == [1, 0]  # the first of equals
    binary = confidence.predicted_class(np.array([[0.25], [0.75], [0.5]]))
    assert binary.numpy().tolist() == [0, 1, 0]


def test_two_columns():
    columns = confidence.two_columns(tf.constant([[0.25], [1.0]]))
    assert columns.numpy().tolist() == [[0.75, 0.25], [0, 1]]
    same = tf.constant([[0.2, 0.3, 0.5]])
    assert confidence.two_columns(same) is same


# Logarithms


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_log_probabilities(dtype):
    logits = np.random.default_rng(0).normal(size=(20, 5)).astype(dtype)
    expected = special.log_softmax(logits.astype("float64"), axis=1)
    actual = confidence.log_probabilities(logits, "logits")
    assert actual.dtype == tf.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    probabilities = np.exp(expected).astype(dtype)
    actual = confidence.log_probabilities(probabilities, "probabilities")
    assert actual.dtype == tf.float32
    np.testing.assert_allclose(actual, np.log(probabilities.astype("f8")), rtol=1e-5)


def test_log_probabilities_of_one_unit_by_hand():
    # A logit of log 3 is a probability of 3/4.
    expected = np.log([[0.25, 0.75], [0.5, 0.5]])
    logits = np.array([[np.log(3)], [0.0]])
    actual = confidence.log_probabilities(logits, "logits")
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    probabilities = np.array([[0.75], [0.5]])
    actual = confidence.log_probabilities(probabilities, "probabilities")
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "outputs, kind",
    [
        ([[0.0, 1.0, 0.0]], "probabilities"),
        ([[0.0], [1.0]], "probabilities"),
        ([[1e30, -1e30, 0.0], [-1e4, 1e4, 0.0]], "logits"),
        ([[1e30], [-1e30], [1e4]], "logits"),
    ],
)
def test_log_probabilities_are_finite_at_the_ends(outputs, kind):
    values = confidence.log_probabilities(np.array(outputs), kind).numpy()
    assert np.isfinite(values).all()
    # One class is certain, and the least probability is below any that matters.
    np.testing.assert_allclose(values.max(axis=1), 0, atol=1e-6)
    assert (values.min(axis=1) < np.log(1e-30)).all()
    for temperature in (0.05, 1.0, 20.0):
        answer = confidence.calibrated_probabilities(
            np.array(outputs), kind, temperature
        )
        assert np.isfinite(answer).all()


@pytest.mark.parametrize("kind", ["probabilities", "logits"])
@pytest.mark.parametrize("classes", [1, 3])
def test_nan_stays_in_its_row(kind, classes):
    outputs = np.full((3, classes), 1 / max(classes, 2))
    outputs[1, 0] = np.nan
    values = confidence.log_probabilities(outputs, kind).numpy()
    assert np.isnan(values[1]).any()
    assert np.isfinite(values[[0, 2]]).all()
    answer = confidence.calibrated_probabilities(outputs, kind, 2.0).numpy()
    assert np.isnan(answer[1]).any()
    assert np.isfinite(answer[[0, 2]]).all()
    for score in SCORES:
        scores = score(answer).numpy()
        np.testing.assert_array_equal(np.isnan(scores), [False, True, False])


def test_what_is_no_probability_becomes_nan():
    # Such a row never leaves early; logits that were taken for probabilities, say.
    values = confidence.log_probabilities(np.array([[-0.5, 1.5]]), "probabilities")
    assert np.isnan(values[0, 0])


# Temperature


def test_temperature_by_hand():
    # T = 2 takes square roots: (0.9, 0.1) becomes (3, 1) / 4. T = 1/2 squares:
    # (0.75, 0.25) becomes (9, 1) / 10.
    def calibrated(outputs, kind, temperature):
        outputs = np.array(outputs)
        answer = confidence.calibrated_probabilities(outputs, kind, temperature)
        assert answer.shape == outputs.shape
        assert answer.dtype == tf.float32
        return answer.numpy()

    close = {"rtol": 1e-6}
    soft, sharp = [[0.75, 0.25]], [[0.9, 0.1]]
    for kind, function in {"probabilities": np.array, "logits": np.log}.items():
        np.testing.assert_allclose(calibrated(function(sharp), kind, 2), soft, **close)
        np.testing.assert_allclose(
            calibrated(function(soft), kind, 0.5), sharp, **close
        )
    np.testing.assert_allclose(
        calibrated([[0.9], [0.1]], "probabilities", 2), [[0.75], [0.25]], **close
    )
    # The logit of 0.9 is log 9.
    np.testing.assert_allclose(
        calibrated([[np.log(9)]], "logits", 2), [[0.75]], **close
    )


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 20))
def test_temperature_against_scipy(seed, temperature):
    logits = np.random.default_rng(seed).normal(size=(8, 5))
    expected = special.softmax(logits / temperature, axis=1)
    for kind, outputs in {
        "logits": logits + 3.0,
        "probabilities": special.softmax(logits, axis=1),
    }.items():
        actual = confidence.calibrated_probabilities(outputs, kind, temperature)
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("classes", [1, 2, 100])
def test_temperature_one_leaves_probabilities_alone(classes):
    probabilities = random_probabilities(1, classes=max(classes, 2), sharpness=10.0)
    probabilities[0] = 0.0
    probabilities[0, 0] = 1.0
    probabilities = probabilities[:, :classes]
    actual = confidence.calibrated_probabilities(probabilities, "probabilities", 1.0)
    np.testing.assert_allclose(actual, probabilities, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("kind", ["probabilities", "logits"])
def test_temperature_keeps_the_answer(kind, temperature):
    outputs = random_probabilities(2, sharpness=1.0)
    outputs = np.log(outputs) if kind == "logits" else outputs
    answer = confidence.calibrated_probabilities(outputs, kind, temperature).numpy()
    np.testing.assert_array_equal(answer.argmax(axis=1), outputs.argmax(axis=1))
    np.testing.assert_allclose(answer.sum(axis=1), 1, rtol=1e-6)


def test_sigmoid_is_a_softmax_over_two_classes():
    logit = np.random.default_rng(0).normal(size=(20, 1)).astype("float32")
    pair = np.concatenate([np.zeros_like(logit), logit], axis=1)
    one = confidence.calibrated_probabilities(logit, "logits", 1.7)
    two = confidence.calibrated_probabilities(pair, "logits", 1.7)
    np.testing.assert_allclose(one[:, 0], two[:, 1], rtol=1e-6)
    np.testing.assert_allclose(one, keras.ops.sigmoid(logit / 1.7), rtol=1e-5)
    for score in SCORES:
        np.testing.assert_allclose(score(one), score(two), rtol=1e-5, atol=1e-6)
