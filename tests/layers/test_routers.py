"""Routers: which experts, with which weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import special, stats

import keras_dynamic as kd
from keras_dynamic.layers.routers import (
    DenseRouter,
    ExpertChoiceRouter,
    Router,
    Routing,
    TopKRouter,
)
from tests.layers.checks import two_replicas
from tests.ops.gradients import normal

ROUTERS = [DenseRouter, TopKRouter, ExpertChoiceRouter]
LOG_2 = float(np.log(2))


def with_identity(router):
    """Its logits are then the inputs themselves."""
    router.build((None, None, router.num_experts))
    router.kernel.assign(np.eye(router.num_experts))
    return router


# By hand


def test_dense_by_hand():
    # softmax(0, log 2, log 5) = (1, 2, 5) / 8.
    router = with_identity(DenseRouter(3))
    routing = router(np.log([[[1.0, 2.0, 5.0]]]))
    np.testing.assert_allclose(routing.weights[0, 0], [1 / 8, 2 / 8, 5 / 8], rtol=1e-6)
    assert routing.experts.numpy().tolist() == [[[0, 1, 2]]]
    assert routing.tokens is None and routing.win_probabilities is None
    np.testing.assert_allclose(routing.logits[0, 0], np.log([1, 2, 5]), rtol=1e-6)


def test_top_k_by_hand():
    # The softmax comes before the choice: 5/8 and 2/8 ...
    logits = np.log([[[1.0, 2.0, 5.0]]])
    routing = with_identity(TopKRouter(3, 2))(logits)
    assert routing.experts.numpy().tolist() == [[[2, 1]]]
    np.testing.assert_allclose(routing.weights[0, 0], [5 / 8, 2 / 8], rtol=1e-6)
    # ... or after it: 5/7 and 2/7.
    routing = with_identity(TopKRouter(3, 2, renormalize=True))(logits)
    assert routing.experts.numpy().tolist() == [[[2, 1]]]
    np.testing.assert_allclose(routing.weights[0, 0], [5 / 7, 2 / 7], rtol=1e-6)


def test_of_equal_experts_the_first_is_taken():
    routing = with_identity(TopKRouter(3, 2))(np.zeros((1, 1, 3)))
    assert routing.experts.numpy().tolist() == [[[0, 1]]]


def test_expert_choice_by_hand():
    # p of expert 0 for four tokens: 0.9, 0.6, 0.2, 0.7; each of two experts takes
    # 1 * 4 / 2 = 2 tokens. Expert 0: tokens 0 and 3; expert 1: 2 and 1.
    p = np.array([0.9, 0.6, 0.2, 0.7])
    logits = np.log(np.stack([p, 1 - p], axis=-1))[None]
    router = with_identity(ExpertChoiceRouter(2))
    routing = router(logits)
    assert routing.tokens.numpy().tolist() == [[[0, 3], [2, 1]]]
    np.testing.assert_allclose(routing.weights[0], [[0.9, 0.7], [0.8, 0.4]], rtol=1e-5)
    assert routing.experts is None
    # Without tokens 0 and 2 there are two: each expert takes 1 * 2 / 2 = 1.
    routing = router(logits, mask=np.array([[False, True, False, True]]))
    assert routing.tokens.numpy().tolist() == [[[3, -1], [1, -1]]]
    np.testing.assert_allclose(routing.weights[0], [[0.7, 0], [0.4, 0]], rtol=1e-5)
    # 1.5 experts a token: 1.5 * 4 / 2 = 3 tokens each.
    routing = with_identity(ExpertChoiceRouter(2, 1.5))(logits)
    assert routing.tokens.numpy().tolist() == [[[0, 3, 1], [2, 1, 3]]]


def test_expert_choice_of_padding_alone():
    mask = np.array([[True, True, True], [False, False, False]])
    routing = with_identity(ExpertChoiceRouter(2))(normal(2, 3, 2), mask=mask)
    tokens = routing.tokens.numpy()
    assert (tokens[0] >= 0).all() and (tokens[1] == -1).all()
    assert not routing.weights[1].numpy().any()


def test_expert_choice_sees_no_padding():
    """Whatever stands there, a NaN too."""
    router = with_identity(ExpertChoiceRouter(3, 2.0))
    logits, mask = normal(4, 7, 3), np.arange(28).reshape(4, 7) % 3 > 0
    expected = router(logits, mask=mask)
    routing = router(np.where(mask[..., None], logits, np.nan), mask=mask)
    np.testing.assert_array_equal(routing.tokens, expected.tokens)
    np.testing.assert_array_equal(routing.weights, expected.weights)


def test_expert_choice_decides_within_each_sample():
    router = with_identity(ExpertChoiceRouter(3, 2.0))
    logits = normal(4, 7, 3)
    together = router(logits)
    for index in range(4):
        alone = router(logits[index : index + 1])
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[index])


# Noise


def test_automatic_deviation_is_one_over_the_experts():
    assert TopKRouter(8).sigma == 1 / 8
    assert TopKRouter(8).noise_stddev == "auto"
    assert Router(8).sigma == DenseRouter(8).sigma == ExpertChoiceRouter(8).sigma == 0
    assert TopKRouter(8, noise_stddev=0.3).sigma == 0.3


@pytest.mark.parametrize("noise, sigma", [("auto", 0.2), (1.5, 1.5)])
def test_noise_is_normal_with_that_deviation(noise, sigma):
    router = with_identity(TopKRouter(5, noise_stddev=noise, seed=3))
    logits = tf.constant(normal(100, 200, 5))
    drawn = (router.noisy(logits, training=True) - logits).numpy().ravel() / sigma
    assert stats.kstest(drawn, "norm").pvalue > 0.001
    # Of 100000 draws the deviation has an error of 1 / sqrt(200000), 0.2 percent.
    assert drawn.std() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("kind", ROUTERS)
def test_noise_is_new_at_every_call_and_none_at_inference(kind):
    router = with_identity(kind(3, noise_stddev=0.5))
    logits = normal(4, 6, 3)
    first, second = (router(logits, training=True) for _ in range(2))
    assert (first.weights.numpy() != second.weights.numpy()).any()
    np.testing.assert_allclose(first.logits, logits, rtol=1e-6)  # the noise is not here
    one, other = router(logits), router(logits, training=False)
    np.testing.assert_array_equal(one.weights, other.weights)
    quiet = with_identity(kind(3, noise_stddev=0))
    np.testing.assert_array_equal(
        quiet(logits, training=True).weights, quiet(logits).weights
    )
    np.testing.assert_array_equal(quiet(logits).weights, one.weights)


@pytest.mark.parametrize("kind", ROUTERS)
def test_the_weights_are_those_of_the_noisy_logits(kind):
    router = with_identity(kind(3, noise_stddev=2.0, seed=1))
    again = with_identity(kind(3, noise_stddev=2.0, seed=1))
    logits = normal(4, 6, 3)
    noisy = again.noisy(tf.constant(logits), training=True)
    routing = router(logits, training=True)
    expected = again(noisy)
    np.testing.assert_allclose(routing.weights, expected.weights, rtol=1e-5)
    name = "tokens" if kind is ExpertChoiceRouter else "experts"
    np.testing.assert_array_equal(getattr(routing, name), getattr(expected, name))


def test_seed():
    logits = normal(4, 6, 3)

    def draw(seed):
        router = with_identity(TopKRouter(3, seed=seed))
        return router(logits, training=True).weights.numpy()

    np.testing.assert_array_equal(draw(3), draw(3))
    assert (draw(3) != draw(4)).any() and (draw(None) != draw(None)).any()


def test_replicas_draw_differently():
    strategy = two_replicas()
    with strategy.scope():
        router = with_identity(TopKRouter(3))
    logits = tf.constant(normal(4, 6, 3))

    @tf.function
    def draw():
        return strategy.run(lambda: router(logits, training=True).weights)

    first, second = strategy.experimental_local_results(draw())
    assert (first.numpy() != second.numpy()).any()


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_win_probabilities(top_k):
    """The chance to be among the first K with one new draw, the others as they are."""
    sigma = 0.7
    router = with_identity(TopKRouter(3, top_k, sigma, seed=1))
    logits = normal(2, 4, 3)
    routing = router(logits, training=True)
    twin = with_identity(TopKRouter(3, top_k, sigma, seed=1))
    noisy = twin.noisy(tf.constant(logits), training=True).numpy()
    for place in np.ndindex(2, 4):
        weakest = sorted(noisy[place])[-top_k]
        expected = stats.norm.sf(weakest, loc=logits[place], scale=sigma)
        np.testing.assert_allclose(
            routing.win_probabilities[place], expected, rtol=1e-4, atol=1e-6
        )
    assert router(logits).win_probabilities is None
    quiet = with_identity(TopKRouter(3, top_k, 0))
    assert quiet(logits, training=True).win_probabilities is None


# Precision


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16"])
def test_routers_compute_in_float32(policy):
    keras.config.set_dtype_policy(policy)
    try:
        routers = [with_identity(kind(2)) for kind in ROUTERS]
    finally:
        keras.config.set_dtype_policy("float32")
    # In float16, as a product of half precision gives it, 2049 would be 2048.
    logits = np.array([[[2048.0, 2049.0], [0.0, 0.0]]], "float32")
    for router in routers:
        routing = router(logits)
        assert routing.weights.dtype == routing.logits.dtype == "float32"
        np.testing.assert_array_equal(routing.logits, logits)
        assert router.kernel.dtype == "float32"


def test_large_logits_are_no_nan():
    for kind in ROUTERS:
        routing = with_identity(kind(2))(np.array([[[3e4, -3e4], [-3e4, 3e4]]]))
        assert np.isfinite(routing.weights).all()


def test_the_weights_carry_the_gradient():
    logits = normal(2, 4, 3)
    for router in (DenseRouter(3), TopKRouter(3), TopKRouter(3, 2, renormalize=True)):
        router = with_identity(router)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(router(logits).weights ** 2)
        gradient = tape.gradient(loss, router.kernel.value).numpy()
        assert gradient.any()
        # A softmax does not change when all logits of a token do.
        np.testing.assert_allclose(gradient.sum(axis=1), 0, atol=1e-5)


# Configuration and errors


@pytest.mark.parametrize(
    "router",
    [
        Router(3, 0.3, "zeros", 7, name="own"),
        DenseRouter(3, noise_stddev=0.3, dtype="float64"),
        TopKRouter(3, 2, "auto", True, seed=7),
        ExpertChoiceRouter(3, 1.3),
    ],
)
def test_config(router):
    config = router.get_config()
    again = type(router).from_config(config)
    assert again.get_config() == config
    for name in ("num_experts", "noise_stddev", "seed"):
        assert config[name] == getattr(router, name)
    assert again.name == router.name and again.dtype_policy == router.dtype_policy
    assert kd.routers.Router is Router and kd.routers.Routing is Routing


@pytest.mark.parametrize(
    "error, make, received",
    [
        (ValueError, lambda: TopKRouter(3, 4), "top_k=4, num_experts=3"),
        (ValueError, lambda: TopKRouter(3, 0), "top_k=0"),
        (TypeError, lambda: TopKRouter(3, 1.5), "top_k=1.5"),
        (TypeError, lambda: TopKRouter(3, True), "top_k=True"),
        (
            ValueError,
            lambda: TopKRouter(3, 1, renormalize=True),
            "renormalize=True, top_k=1",
        ),
        (TypeError, lambda: TopKRouter(3, 2, renormalize=1), "renormalize=1"),
        (ValueError, lambda: Router(0), "num_experts=0"),
        (TypeError, lambda: Router("2"), "num_experts='2'"),
        (ValueError, lambda: Router(2, -0.1), "noise_stddev=-0.1"),
        (ValueError, lambda: Router(2, float("nan")), "noise_stddev=nan"),
        (TypeError, lambda: Router(2, "some"), "noise_stddev='some'"),
        (ValueError, lambda: ExpertChoiceRouter(2, 0), "top_k=0, num_experts=2"),
        (ValueError, lambda: ExpertChoiceRouter(2, 2.5), "top_k=2.5, num_experts=2"),
        (TypeError, lambda: ExpertChoiceRouter(2, "1"), "top_k='1'"),
    ],
)
def test_error_at_construction(error, make, received):
    with pytest.raises(error, match=f"Received: .*{received}"):
        make()


def test_a_router_must_be_written():
    class Idle(Router):
        pass

    with pytest.raises(NotImplementedError, match="Idle must implement `call"):
        Idle(2)(normal(1, 2, 2))
    with pytest.raises(NotImplementedError, match="give it to `SparseMoE"):
        DenseRouter(2)(keras.Input((3, 2)))


def test_top_k_is_softmax_in_the_neutral_setting():
    logits = normal(2, 4, 3)
    every = with_identity(TopKRouter(3, 3))(logits)
    expected = special.softmax(logits, axis=-1)
    order = every.experts.numpy()
    np.testing.assert_allclose(
        every.weights, np.take_along_axis(expected, order, axis=-1), rtol=1e-5
    )
    renormalized = with_identity(TopKRouter(3, 3, renormalize=True))(logits)
    np.testing.assert_allclose(renormalized.weights, every.weights, rtol=1e-5)
