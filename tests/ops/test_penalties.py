import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from keras_dynamic.ops.penalties import (
    divergence_from_prior,
    expected_cost,
    mean_entropy,
)

LOG_2, LOG_3 = np.log(2), np.log(3)


def probabilities(rows=7, choices=4, seed=0):
    generator = np.random.default_rng(seed)
    return generator.dirichlet(np.ones(choices), rows).astype("float32")


# By hand


def test_mean_entropy_by_hand():
    # 0 for a decided sample, log 2 for an even one: the mean is log(2) / 2.
    p = [[1.0, 0.0], [0.5, 0.5]]
    assert mean_entropy(p).numpy() == pytest.approx(LOG_2 / 2)
    # H(3/4, 1/4) = 2 log 2 - 3/4 log 3.
    assert mean_entropy([[0.75, 0.25]]).numpy() == pytest.approx(
        2 * LOG_2 - 0.75 * LOG_3
    )


def test_divergence_by_hand():
    # The mean over the batch is (1/2, 1/2): KL from an even prior is 0 ...
    p = [[1.0, 0.0], [0.0, 1.0]]
    assert divergence_from_prior(p, [0.5, 0.5]).numpy() == pytest.approx(0, abs=1e-7)
    # ... each sample alone is log 2 away ...
    each = divergence_from_prior(p, [0.5, 0.5], per_sample=True)
    assert each.numpy() == pytest.approx(LOG_2)
    # ... and from (1/4, 3/4) the mean is log 2 / 2 + log(2/3) / 2.
    far = divergence_from_prior(p, [0.25, 0.75]).numpy()
    assert far == pytest.approx(LOG_2 - LOG_3 / 2)


def test_expected_cost_by_hand():
    # 0.2 and 0.5 * 0.2 + 0.5 = 0.6: the mean is 0.4.
    p = [[1.0, 0.0], [0.5, 0.5]]
    assert expected_cost(p, [0.2, 1.0]).numpy() == pytest.approx(0.4)


# Against SciPy


@pytest.mark.parametrize("dtype, rtol", [("float32", 1e-5), ("float16", 5e-3)])
def test_against_scipy(dtype, rtol):
    p = probabilities()
    prior, costs = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.1, 0.5, 0.7, 1.0])
    given = tf.cast(p, dtype)
    results = {
        "entropy": mean_entropy(given),
        "batch": divergence_from_prior(given, prior),
        "sample": divergence_from_prior(given, prior, per_sample=True),
        "cost": expected_cost(given, costs),
    }
    expected = {
        "entropy": stats.entropy(p, axis=1).mean(),
        "batch": stats.entropy(p.mean(axis=0), prior),
        "sample": stats.entropy(p, prior[None], axis=1).mean(),
        "cost": (p @ costs).mean(),
    }
    for name, result in results.items():
        assert result.dtype == "float32" and result.shape == ()
        assert result.numpy() == pytest.approx(expected[name], rel=rtol), name


def test_order_of_the_samples_does_not_matter():
    p, prior = probabilities(), [0.1, 0.2, 0.3, 0.4]
    for function in (
        mean_entropy,
        lambda q: divergence_from_prior(q, prior),
        lambda q: expected_cost(q, prior),
    ):
        np.testing.assert_allclose(function(p), function(p[::-1]), rtol=1e-5)


# Edges


def penalties(p):
    prior = [0.25] * 4
    return [
        mean_entropy(p),
        divergence_from_prior(p, prior),
        divergence_from_prior(p, prior, per_sample=True),
        expected_cost(p, prior),
    ]


def test_a_choice_of_probability_0_has_a_finite_gradient():
    p = tf.constant([[1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 1e-42, 0.0]])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(p)
        results = penalties(p)
    assert results[0].numpy() == pytest.approx(0, abs=1e-6)
    for result in results:
        assert np.isfinite(result)
        assert np.isfinite(tape.gradient(result, p)).all()


def test_no_sample_adds_nothing():
    # What a replica gets at the end of an epoch.
    for result in penalties(tf.zeros([0, 4])):
        assert result.numpy() == 0
