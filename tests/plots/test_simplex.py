"""Samples in the triangle: held against a softmax in NumPy, and against their law."""

import numpy as np
import pytest
from matplotlib import pyplot

import keras_dynamic as kd
from tests.plots.checks import save

P = np.array([0.6, 0.3, 0.1])


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def test_the_same_noise_at_every_temperature():
    record = kd.plots.gumbel_simplex(probabilities=P, num_samples=200, seed=3)
    assert record.samples.shape == (4, 200, 3)
    np.testing.assert_allclose(record.samples.sum(axis=-1), 1, rtol=1e-5)
    # At tau = 1 the logarithm of a sample is the noisy logits, up to a constant.
    noisy = np.log(record.samples[1].astype("float64"))
    for tau, samples in zip((5.0, 1.0, 0.5), record.samples[:3], strict=True):
        np.testing.assert_allclose(samples, softmax(noisy / tau), atol=1e-4)
    np.testing.assert_allclose(record.temperatures, [5, 1, 0.5, 0.1], rtol=1e-6)


def test_the_law_of_the_samples():
    record = kd.plots.gumbel_simplex(
        probabilities=P, temperatures=(2.0, 0.02), num_samples=4000
    )
    # A share of 4000 has a standard deviation of at most 0.008.
    for samples in record.samples:
        shares = np.bincount(samples.argmax(axis=1), minlength=3) / 4000
        np.testing.assert_allclose(shares, P, atol=0.025)
    np.testing.assert_allclose(record.samples[1].mean(axis=0), P, atol=0.025)
    assert record.samples[0].mean(axis=0)[0] < 0.5  # pulled to the middle
    # log(s_a / s_b) is (l_a - l_b + a logistic variable) / tau: with equal logits
    # s_a > 3 s_b has the probability 1 / (1 + 3^tau), 0.1 at tau = 2.
    even = kd.plots.gumbel_simplex(
        logits=[0, 0, 0], temperatures=2.0, num_samples=4000
    ).samples[0]
    assert np.mean(even[:, 0] > 3 * even[:, 1]) == pytest.approx(0.1, abs=0.015)
    np.testing.assert_allclose(record.probabilities, P, rtol=1e-6)


def test_logits_and_seeds():
    arguments = {"temperatures": 1.0, "num_samples": 20}
    by_logits = kd.plots.gumbel_simplex(np.log(P) + 7, **arguments)
    by_probabilities = kd.plots.gumbel_simplex(probabilities=P, **arguments)
    np.testing.assert_allclose(
        by_logits.samples, by_probabilities.samples, rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(by_logits.probabilities, P, rtol=1e-5)
    other = kd.plots.gumbel_simplex(probabilities=P, seed=1, **arguments)
    assert np.abs(other.samples - by_probabilities.samples).max() > 0.1


def test_a_probability_of_zero_is_never_drawn():
    record = kd.plots.gumbel_simplex(probabilities=[0.5, 0.5, 0.0], num_samples=50)
    np.testing.assert_array_equal(record.samples[1:, :, 2], 0)
    record = kd.plots.gumbel_simplex(logits=[0, 0, -np.inf], num_samples=50)
    np.testing.assert_array_equal(record.samples[..., 2], 0)
    np.testing.assert_allclose(record.probabilities, [0.5, 0.5, 0])


def test_hard_samples_lie_in_the_corners():
    record = kd.plots.gumbel_simplex(
        probabilities=P, estimator="gumbel_straight_through", num_samples=50
    )
    np.testing.assert_array_equal(np.sort(record.samples, axis=-1)[..., :2], 0)


def test_drawing(tmp_path):
    record = kd.plots.gumbel_simplex(probabilities=P, num_samples=300)
    axes = record.plot(labels=("a", "b", "c"))
    assert len(axes) == 4
    points, star, mean = axes[0].collections
    # By hand: category a at (0, 0), b at (1, 0), c at (1/2, sqrt(3)/2), so that
    # p lies at (0.3 + 0.05, 0.0866).
    np.testing.assert_allclose(star.get_offsets(), [[0.35, 0.0866]], atol=1e-4)
    samples = record.samples[0]
    expected = samples[:, 1] + samples[:, 2] / 2, samples[:, 2] * np.sqrt(3) / 2
    np.testing.assert_allclose(points.get_offsets().T, expected, atol=1e-6)
    np.testing.assert_allclose(
        mean.get_offsets()[0], np.mean(expected, axis=1), atol=1e-6
    )
    share = 100 * np.mean(samples.argmax(axis=1) == 2)
    assert [text.get_text() for text in axes[0].texts][2] == f"c\n{share:.0f} %"
    assert [ax.get_title() for ax in axes][2] == "$\\tau$ = 0.5"
    save(axes, tmp_path / "simplex.png")


def test_given_axes():
    record = kd.plots.gumbel_simplex(logits=[0, 0, 0], temperatures=[1.0])
    _, given = pyplot.subplots()
    assert record.plot(given)[0] is given
    with pytest.raises(ValueError, match="`axes`.*temperatures, 1. Received: 2"):
        record.plot(pyplot.subplots(1, 2)[1])
    with pytest.raises(ValueError, match="`labels`.*'ab'"):
        record.plot(labels="ab")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "`logits` or `probabilities`.*logits=None, probabilities=None"),
        ({"logits": [1, 2, 3], "probabilities": P}, "one of them.*1, 2, 3"),
        ({"logits": [1, 2]}, r"`logits`.*no triangle.*shape \(2,\)"),
        ({"logits": [1, 2, np.nan]}, "`logits`.*-inf.*nan"),
        ({"logits": [1, 2, np.inf]}, "`logits`.*inf"),
        ({"logits": [-np.inf] * 3}, "`logits`.*at most two"),
        ({"probabilities": [0.5, 0.6, 0.1]}, "`probabilities`.*sum to 1.*0.6"),
        ({"probabilities": [1.5, -0.5, 0.0]}, "`probabilities`.*>= 0.*1.5"),
        ({"logits": P, "estimator": "soft"}, "`estimator`.*draw.*'soft'"),
        ({"logits": P, "temperatures": (1.0, 0.0)}, "temperature=0.0 among the"),
        ({"logits": P, "estimator": "reinmax"}, ">= 1.*temperature=0.5 among the"),
        ({"logits": P, "temperatures": ()}, r"`temperatures`.*shape \(0,\)"),
        ({"logits": P, "num_samples": 0}, "`num_samples`.*num_samples=0"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        kd.plots.gumbel_simplex(**arguments)
