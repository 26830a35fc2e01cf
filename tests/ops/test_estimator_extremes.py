import numpy as np
import pytest
import tensorflow as tf
from scipy import special, stats

from keras_dynamic.ops.estimators import (
    ESTIMATORS,
    binary,
    categorical,
    logits_from_probabilities,
)
from tests.ops.gradients import value_and_gradient

SEED = tf.constant([3, 14])

ON_EDGE = np.array([[80, -80, 80, 0], [-80, -80, -80, -80], [80, 79.9, -80, -80]])


@pytest.mark.parametrize(
    "dtype, jit",
    [
        ("float16", False),
        ("float16", True),
        ("bfloat16", False),
        ("float32", True),
        ("float64", False),
    ],
)
@pytest.mark.parametrize("function", [categorical, binary])
def test_large_logits_and_a_small_temperature(function, dtype, jit):
    @tf.function(jit_compile=jit)
    def answers_and_gradients(logits):
        results = []
        for estimator in ESTIMATORS:
            for training in (False, True):
                with tf.GradientTape() as tape:
                    tape.watch(logits)
                    answer = function(
                        logits,
                        estimator,
                        1 if estimator == "reinmax" else 1e-3,
                        seed=SEED,
                        training=training,
                    )
                    loss = tf.reduce_sum(tf.range(4.0) * answer)
                results.append((answer, tape.gradient(loss, logits)))
        return results

    logits = tf.cast(np.tile(ON_EDGE, (100, 1)), dtype)
    for answer, gradient in answers_and_gradients(logits):
        assert answer.dtype == tf.float32
        assert gradient.dtype == dtype
        assert np.isfinite(answer).all()
        assert np.isfinite(tf.cast(gradient, "float32")).all()
        assert (answer.numpy() >= 0).all()
        if function is categorical:
            np.testing.assert_allclose(tf.reduce_sum(answer, -1), 1, rtol=1e-6)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_logits_may_be_infinite(estimator, training):
    infinite = tf.constant([[0, np.inf, 1.0]])
    assert categorical(infinite, estimator).numpy().tolist() == [[0, 1, 0]]
    logits = np.tile(np.array([0, -np.inf, 1], "float32"), (100, 1))
    answer, gradient = value_and_gradient(
        lambda x: categorical(x, estimator, 5.0, seed=SEED, training=training),
        logits,
        tf.square,
    )
    assert (answer[:, 1] == 0).all()
    np.testing.assert_allclose(answer.sum(axis=-1), 1, rtol=1e-6)
    assert np.isfinite(gradient).all()

    answer, gradient = value_and_gradient(
        lambda x: binary(x, estimator, 5.0, seed=SEED, training=training),
        np.array([-np.inf, np.inf], "float32"),
        tf.square,
    )
    assert answer.tolist() == [0, 1]
    assert gradient.tolist() == [0, 0]


@pytest.mark.parametrize("jit", [False, True])
def test_nan_stays(jit):
    @tf.function(jit_compile=jit)
    def answers(logits):
        return {
            (function.__name__, estimator, training): function(
                logits, estimator, seed=SEED, training=training
            )
            for function in (categorical, binary)
            for estimator in ESTIMATORS
            for training in (False, True)
        }

    nan, inf = np.nan, np.inf
    logits = tf.constant([[nan, 0, 1], [-inf, -inf, -inf], [0, 0, 1]])
    for (name, *case), answer in answers(logits).items():
        expected = {
            "categorical": [[True] * 3, [True] * 3, [False] * 3],
            "binary": [[True, False, False], [False] * 3, [False] * 3],
        }[name]
        assert np.isnan(answer).tolist() == expected, case


def test_float32_keeps_what_half_precision_would_round():
    # At 80 the steps of bfloat16 are 0.5: noise would be rounded away.
    logits = tf.cast([[80, 80, 79.5]], "bfloat16")
    assert float(logits[0, 2]) == 79.5
    draws = categorical(
        tf.tile(logits, [20_000, 1]),
        "gumbel_straight_through",
        seed=SEED,
        training=True,
    )
    expected = 20_000 * special.softmax([0.5, 0.5, 0])
    counts = draws.numpy().sum(axis=0)
    assert stats.chisquare(counts, expected).pvalue > 0.001


# Logits from probabilities


def test_logits_from_probabilities():
    probabilities = tf.constant([0, 0.25, 0.75])
    logits, gradient = value_and_gradient(
        logits_from_probabilities, probabilities, lambda z: z[1:]
    )
    np.testing.assert_allclose(logits, [-np.inf, np.log(0.25), np.log(0.75)])
    np.testing.assert_allclose(gradient, [0, 4, 4 / 3], rtol=1e-6)
    np.testing.assert_allclose(categorical(logits, "soft"), probabilities, rtol=1e-6)


def test_logits_from_probabilities_of_a_yes():
    probabilities = tf.constant([0, 0.2, 0.5, 1])
    logits = logits_from_probabilities(probabilities, binary=True)
    np.testing.assert_allclose(logits, [-np.inf, -np.log(4), 0, np.inf], rtol=1e-6)
    np.testing.assert_allclose(binary(logits, "soft"), probabilities, rtol=1e-6)


@pytest.mark.parametrize("kind", ["categorical", "binary"])
def test_gradient_through_probabilities_of_zero_and_one(kind):
    function = {"categorical": categorical, "binary": binary}[kind]
    _, gradient = value_and_gradient(
        lambda p: function(
            logits_from_probabilities(p, binary=kind == "binary"),
            "gumbel_softmax",
            seed=SEED,
            training=True,
        ),
        tf.constant([0.0, 1e-40, 0.4, 1.0]),
        tf.square,
    )
    assert np.isfinite(gradient).all()
    assert gradient[2] != 0


def test_what_is_no_probability_is_nan():
    logits = logits_from_probabilities(tf.constant([-0.1, np.nan]))
    assert np.isnan(logits).all()
    logits = logits_from_probabilities(tf.constant([-0.1, 1.1, np.nan]), binary=True)
    assert np.isnan(logits).all()


@pytest.mark.parametrize("estimator", ["soft", "gumbel_softmax"])
def test_logits_are_centered_before_they_are_divided(estimator):
    # 1e36 / 1e-3 is infinite in float32, and the difference of two infinities NaN.
    logits = tf.constant([[1e36, 1e36, 0.0], [-1e36, -1e36, -1e37]])
    weights = categorical(logits, estimator, 1e-3).numpy()
    np.testing.assert_array_equal(weights, [[0.5, 0.5, 0], [0.5, 0.5, 0]])


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_infinity_is_above_all_numbers(estimator):
    rows = [[1e30, np.inf, 0], [np.inf, np.inf, 3e38], [1e30, 3e38, -3e38]]
    logits = tf.constant(rows, tf.float32)
    answer, gradient = value_and_gradient(
        lambda logits: categorical(logits, estimator), logits, tf.square
    )
    one = [1, 0, 0] if estimator.endswith("through") or estimator == "reinmax" else None
    expected = [[0, 1, 0], one or [0.5, 0.5, 0], [0, 1, 0]]
    np.testing.assert_array_equal(answer, expected)
    assert np.isfinite(gradient).all()
