"""Balancing losses, by hand and against NumPy."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import special, stats

from keras_dynamic.ops.balancing import (
    divergence_from_even,
    importance_loss,
    load_loss,
    switch_loss,
    z_loss,
)
from tests.ops.gradients import normal, value_and_gradient

LOG_2, LOG_3 = np.log(2), np.log(3)


def logits(rows=9, experts=4):
    return normal(rows, experts, seed=rows)


def choices(rows=9, experts=4, per_row=2):
    order = np.argsort(normal(rows, experts, seed=5), axis=1)
    return order[:, :per_row].astype("int32")


# By hand


def test_divergence_by_hand():
    # The mean of (1, 0) and (1/2, 1/2) is (3/4, 1/4), and
    # 3/4 log(2 * 3/4) + 1/4 log(2 * 1/4) = 3/4 log 3 - log 2.
    loss = divergence_from_even(tf.constant([[1.0, 0.0], [0.5, 0.5]]))
    assert float(loss) == pytest.approx(0.75 * LOG_3 - LOG_2)
    # One expert for all of four: log 4, the largest value.
    alone = divergence_from_even(tf.constant([[0.0, 1.0, 0.0, 0.0]]))
    assert float(alone) == pytest.approx(2 * LOG_2)


@pytest.mark.parametrize("loss", [importance_loss, load_loss])
def test_variation_by_hand(loss):
    # Sums over the tokens: (1.5, 0.5), mean 1, variance 0.25: 0.25 / 1.
    assert float(loss(tf.constant([[1.0, 0.0], [0.5, 0.5]]))) == pytest.approx(0.25)
    # One expert for all of four: sums (2, 0, 0, 0), mean 0.5, variance
    # (2.25 + 3 * 0.25) / 4 = 0.75: 3 = E - 1.
    alone = tf.constant([[1.0, 0, 0, 0]] * 2)
    assert float(loss(alone)) == pytest.approx(3.0)


def test_switch_by_hand():
    # Of three tokens two choose expert 0: f = (2/3, 1/3). Mean p = (0.6, 0.4):
    # 2 (0.4 + 0.4 / 3) = 16 / 15.
    p = tf.constant([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8]])
    loss = switch_loss(p, tf.constant([[0], [0], [1]]))
    assert float(loss) == pytest.approx(16 / 15)
    # Two choices of three experts: f = (1/2, 1/4, 1/4), P = (0.5, 0.3, 0.2):
    # 3 (0.25 + 0.075 + 0.05).
    p = tf.constant([[0.6, 0.3, 0.1], [0.4, 0.3, 0.3]])
    loss = switch_loss(p, tf.constant([[0, 1], [0, 2]]))
    assert float(loss) == pytest.approx(1.125)


def test_z_by_hand():
    # log(1 + 1) and log(1 + 3): (log^2 2 + 4 log^2 2) / 2.
    loss = z_loss(tf.constant([[0.0, 0.0], [0.0, np.log(3)]]))
    assert float(loss) == pytest.approx(2.5 * LOG_2**2)


# Against NumPy


def in_numpy(z, chosen):
    p = special.softmax(z, axis=1)
    shares = [np.mean(np.any(chosen == e, axis=1)) for e in range(p.shape[1])]
    shares = np.array(shares) / chosen.shape[1]
    return {
        "kl": stats.entropy(p.mean(0), np.full(p.shape[1], 1 / p.shape[1])),
        "importance": stats.variation(p.sum(0)) ** 2,
        "load": stats.variation(p.sum(0)) ** 2,
        "switch": p.shape[1] * np.sum(shares * p.mean(0)),
        "z": np.mean(special.logsumexp(z, axis=1) ** 2),
    }


def losses(z, chosen, counted=None):
    p = tf.nn.softmax(tf.cast(z, tf.float32))
    return {
        "kl": divergence_from_even(p, counted),
        "importance": importance_loss(p, counted),
        "load": load_loss(p, counted),
        "switch": switch_loss(p, chosen, counted),
        "z": z_loss(z, counted),
    }


@pytest.mark.parametrize("experts, per_row", [(1, 1), (2, 1), (4, 2), (7, 7)])
def test_against_numpy(experts, per_row):
    z, chosen = logits(experts=experts), choices(9, experts, per_row)
    expected = in_numpy(z.astype("float64"), chosen)
    for name, loss in losses(z, chosen).items():
        assert loss.dtype == "float32" and loss.shape == ()
        assert float(loss) == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name


def test_what_is_not_counted_may_be_anything():
    z, chosen = logits(), choices()
    counted = np.array([True, False, True] * 3)
    expected = in_numpy(z[counted].astype("float64"), chosen[counted])
    z[~counted], chosen[~counted] = np.nan, 0
    for name, loss in losses(z, chosen, counted).items():
        assert float(loss) == pytest.approx(expected[name], rel=1e-5), name
    no_one = losses(z, chosen, np.zeros(9, bool))
    nothing = losses(z[:0], chosen[:0])
    for name in expected:
        assert float(no_one[name]) == float(nothing[name]) == 0, name


@pytest.mark.parametrize("name", ["kl", "importance", "load", "switch", "z"])
def test_half_precision_is_computed_in_float32(name):
    z = tf.cast(logits(4096, 8), "bfloat16")
    chosen = choices(4096, 8)
    loss = losses(z, chosen)[name]
    assert loss.dtype == "float32"
    expected = in_numpy(tf.cast(z, "float64").numpy(), chosen)[name]
    assert float(loss) == pytest.approx(expected, rel=1e-3, abs=1e-6)


# What they are for


def test_even_probabilities_are_best():
    even, chosen = np.zeros((8, 4), "float32"), np.arange(8)[:, None] % 4
    found = losses(even, chosen)
    for name in ("kl", "importance", "load"):
        assert float(found[name]) == pytest.approx(0, abs=1e-6)
    assert float(found["switch"]) == pytest.approx(1)


@pytest.mark.parametrize("name", ["kl", "importance", "load", "switch"])
def test_the_gradient_takes_from_the_busiest_expert(name):
    z = logits() * 0.1 + np.array([1.0, 0, 0, 0], "float32")
    chosen = np.zeros((9, 1), "int32")
    _, gradient = value_and_gradient(
        lambda z: losses(z, chosen)[name], z, lambda loss: loss
    )
    assert np.isfinite(gradient).all()
    assert (gradient[:, 0] > 0).all() and (gradient[:, 1:].sum(axis=1) < 0).all()


def test_gradients_by_differences():
    """In the direction of each logit, of what is no constant."""
    z, chosen = logits(3, 3), choices(3, 3, 1)
    step = 1e-5
    for name in ("kl", "importance", "load", "switch", "z"):
        _, gradient = value_and_gradient(
            lambda z, name=name: losses(z, chosen)[name], z, lambda loss: loss
        )
        for index in np.ndindex(z.shape):
            up, down = z.astype("float64"), z.astype("float64")
            up[index] += step
            down[index] -= step
            slope = in_numpy(up, chosen)[name] - in_numpy(down, chosen)[name]
            slope /= 2 * step
            assert gradient[index] == pytest.approx(slope, rel=1e-3, abs=1e-5), name


def test_certain_probabilities_have_a_finite_gradient():
    z = np.array([[0.0, -200, -200], [0, -200, -200]], "float32")
    for name in ("kl", "importance", "load", "switch"):
        value, gradient = value_and_gradient(
            lambda z, name=name: losses(z, np.zeros((2, 1), int))[name], z, tf.identity
        )
        assert np.isfinite(value) and np.isfinite(gradient).all(), name
