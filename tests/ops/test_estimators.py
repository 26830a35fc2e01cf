import numpy as np
import pytest
import tensorflow as tf
from scipy import special, stats
from tensorflow_probability import distributions

from keras_dynamic.ops import estimators
from keras_dynamic.ops.estimators import (
    ESTIMATORS,
    HARD_ESTIMATORS,
    SAMPLING_ESTIMATORS,
    binary,
    categorical,
    check_temperature,
)
from keras_dynamic.ops.seeds import replica_seed
from tests.layers.checks import two_replicas
from tests.ops.gradients import normal, value_and_gradient

NOISELESS = [name for name in ESTIMATORS if name not in SAMPLING_ESTIMATORS]
SEED = tf.constant([3, 14])


def one_hot_argmax(logits):
    return np.eye(logits.shape[-1])[np.argmax(logits, axis=-1)]


# Without noise


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("temperature", [1, 1.5])
def test_inference(estimator, temperature):
    logits = normal(50, 4)
    expected = special.softmax(logits / temperature, axis=-1)
    if estimator in HARD_ESTIMATORS:
        expected = one_hot_argmax(logits)
    answer = categorical(logits, estimator, temperature)
    np.testing.assert_allclose(answer, expected, atol=1e-6)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_binary_inference(estimator):
    logits = np.array([[-2.0, 0.0], [0.5, 3.0]])
    expected = special.expit(logits / 1.5)
    if estimator in HARD_ESTIMATORS:
        expected = [[0, 0], [1, 1]]  # a logit of 0 is a no
    np.testing.assert_allclose(binary(logits, estimator, 1.5), expected, atol=1e-6)


@pytest.mark.parametrize("estimator", NOISELESS)
def test_estimators_without_noise_train_as_they_infer(estimator):
    logits = normal(50, 4)
    for function in (categorical, binary):
        np.testing.assert_array_equal(
            function(logits, estimator, 0.5, training=True),
            function(logits, estimator, 0.5),
        )


def test_first_of_equals():
    assert categorical([1.0, 2.0, 2.0], "straight_through").numpy().tolist() == [
        0,
        1,
        0,
    ]


# l = (0, tau log 3), so that softmax(l / tau) = p = (1/4, 3/4). For f(z) = 8 z_0 the
# gradient is (p_0 (8 - 2), p_1 (0 - 2)) / tau = (1.5, -1.5) / tau, as p . (8, 0) = 2.
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("temperature", [1, 2])
def test_straight_through_gradient_by_hand(temperature, training):
    logits = np.array([0, temperature * np.log(3)], "float32")
    answer, gradient = value_and_gradient(
        lambda x: categorical(x, "straight_through", temperature, training=training),
        logits,
        lambda z: 8 * z[0],
    )
    assert answer.tolist() == [0, 1]
    np.testing.assert_allclose(
        gradient, [1.5 / temperature, -1.5 / temperature], rtol=1e-6
    )


def test_straight_through_gradient_is_taken_at_the_hard_choice():
    # f(z) = 4 z_1^2 has the slope 8 at z_1 = 1, not 6 at 3/4: p_1 p_0 8 = 1.5.
    _, gradient = value_and_gradient(
        lambda x: categorical(x, "straight_through"),
        np.array([0, np.log(3)], "float32"),
        lambda z: 4 * z[1] ** 2,
    )
    np.testing.assert_allclose(gradient, [-1.5, 1.5], rtol=1e-6)


def test_binary_straight_through_gradient_by_hand():
    # sigmoid(log 3) = 3/4; 3/4 * 1/4 * 8 / tau
    answer, gradient = value_and_gradient(
        lambda x: binary(x, "straight_through", 2, training=True),
        np.array([2 * np.log(3), -2 * np.log(3)], "float32"),
        lambda z: 8 * z,
    )
    assert answer.tolist() == [1, 0]
    np.testing.assert_allclose(gradient, [0.75, 0.75], rtol=1e-6)


# With noise: the same draws, put together again in NumPy or as the papers write it


def gumbel(shape):
    return distributions.Gumbel(0.0, 1.0).sample(shape, seed=SEED).numpy()


@pytest.mark.parametrize("temperature", [1, 2.5])
@pytest.mark.parametrize("estimator", SAMPLING_ESTIMATORS)
def test_training(estimator, temperature):
    logits = normal(50, 4)
    noisy = logits + gumbel((50, 4)).astype("float64")
    expected = special.softmax(noisy / temperature, axis=-1)
    if estimator in HARD_ESTIMATORS:
        expected = one_hot_argmax(noisy)
    answer = categorical(logits, estimator, temperature, seed=SEED, training=True)
    np.testing.assert_allclose(answer, expected, atol=1e-6)


def test_gumbel_straight_through_has_the_gradient_of_gumbel_softmax():
    weights = normal(50, 4, seed=1)
    _, gradient = value_and_gradient(
        lambda x: categorical(
            x, "gumbel_straight_through", 0.5, seed=SEED, training=True
        ),
        normal(50, 4),
        lambda z: weights * z,
    )
    _, expected = value_and_gradient(
        lambda x: categorical(x, "gumbel_softmax", 0.5, seed=SEED, training=True),
        normal(50, 4),
        lambda z: weights * z,
    )
    np.testing.assert_array_equal(gradient, expected)


def reinmax_as_published(logits, draw, temperature):
    """Algorithm 2 of Liu et al. (2023), in float64."""
    pi_0 = tf.nn.softmax(logits)
    pi_1 = (draw + tf.nn.softmax(logits / temperature)) / 2
    pi_1 = tf.nn.softmax(tf.stop_gradient(tf.math.log(pi_1) - logits) + logits)
    pi_2 = 2 * pi_1 - pi_0 / 2
    return pi_2 - tf.stop_gradient(pi_2) + draw


@pytest.mark.parametrize("temperature", [1, 2.5])
def test_reinmax_is_the_published_one(temperature):
    def objective(z):
        return tf.cast(normal(50, 4, seed=1), z.dtype) * z**3 + z[..., ::-1] * z

    answer, gradient = value_and_gradient(
        lambda x: categorical(x, "reinmax", temperature, seed=SEED, training=True),
        normal(50, 4),
        objective,
    )
    draw = one_hot_argmax(normal(50, 4) + gumbel((50, 4)))
    expected, expected_gradient = value_and_gradient(
        lambda x: reinmax_as_published(x, draw, temperature),
        normal(50, 4).astype("float64"),
        objective,
    )
    np.testing.assert_allclose(answer, expected, atol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_binary_is_the_two_way_case(estimator, training, monkeypatch):
    noise = gumbel((50, 2))

    def shared_noise(distribution, logits, seed):
        # The difference of two Gumbel variables is a logistic one.
        return noise if distribution == "Gumbel" else noise[:, 1] - noise[:, 0]

    monkeypatch.setattr(estimators, "_noise", shared_noise)
    logits = 2 * normal(50)
    one, gradient = value_and_gradient(
        lambda x: binary(x, estimator, 1.5, training=training),
        logits,
        lambda z: (z + 0.5) ** 2,
    )
    two, expected = value_and_gradient(
        lambda x: categorical(
            tf.stack([tf.zeros_like(x), x], -1), estimator, 1.5, training=training
        )[:, 1],
        logits,
        lambda z: (z + 0.5) ** 2,
    )
    np.testing.assert_allclose(one, two, atol=1e-6)
    np.testing.assert_allclose(gradient, expected, atol=1e-5)


# Draws

PROBABILITIES = np.array([0.03, 0.07, 0.15, 0.25, 0.5])


@pytest.mark.parametrize("estimator", ["gumbel_straight_through", "reinmax"])
def test_draws_follow_the_probabilities(estimator):
    logits = tf.fill((100_000, 1), 7.0) + np.log(PROBABILITIES)
    draws = categorical(logits, estimator, seed=SEED, training=True).numpy()
    assert set(np.unique(draws)) == {0, 1}
    counts = draws.sum(axis=0)
    assert counts.sum() == 100_000
    assert stats.chisquare(counts, 100_000 * PROBABILITIES).pvalue > 0.001


@pytest.mark.parametrize("estimator", ["gumbel_straight_through", "reinmax"])
@pytest.mark.parametrize("probability", [0.03, 0.5, 0.8])
def test_binary_draws_follow_the_probability(estimator, probability):
    logits = tf.fill([100_000], float(special.logit(probability)))
    draws = binary(logits, estimator, seed=SEED, training=True).numpy()
    assert set(np.unique(draws)) == {0, 1}
    assert stats.binomtest(int(draws.sum()), 100_000, probability).pvalue > 0.001


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_gumbel_softmax_is_distributed_as_in_tensorflow_probability(temperature):
    logits = np.log(PROBABILITIES).astype("float32")
    ours = categorical(
        np.tile(logits, (20_000, 1)),
        "gumbel_softmax",
        temperature,
        seed=SEED,
        training=True,
    )
    relaxed = distributions.RelaxedOneHotCategorical(temperature, logits=logits)
    theirs = relaxed.sample(20_000, seed=SEED + 1)
    for choice in (1, 4):
        samples = ours.numpy()[:, choice], theirs.numpy()[:, choice]
        assert stats.ks_2samp(*samples).pvalue > 0.001


def test_binary_gumbel_softmax_is_distributed_as_in_tensorflow_probability():
    ours = binary(
        tf.fill([20_000], 0.7), "gumbel_softmax", 0.5, seed=SEED, training=True
    )
    relaxed = distributions.RelaxedBernoulli(0.5, logits=0.7)
    theirs = relaxed.sample(20_000, seed=SEED + 1)
    assert stats.ks_2samp(ours.numpy(), theirs.numpy()).pvalue > 0.001


def test_seeds():
    def draw(seed):
        return categorical(
            normal(50, 4), "gumbel_softmax", seed=seed, training=True
        ).numpy()

    np.testing.assert_array_equal(draw(SEED), draw(SEED))
    assert (draw(SEED) != draw(SEED + 1)).all()


def test_replica_seed_differs_between_replicas():
    seed = tf.constant([1, 5], tf.int64)
    assert replica_seed(seed).dtype == tf.int32
    np.testing.assert_array_equal(replica_seed(seed), replica_seed(seed))
    strategy = two_replicas()
    first, second = strategy.experimental_local_results(
        strategy.run(replica_seed, (seed,))
    )
    assert (first.numpy() != second.numpy()).any()
    np.testing.assert_array_equal(first, replica_seed(seed))
    with strategy.scope():  # where no replica runs
        assert replica_seed(seed).dtype == tf.int32
        np.testing.assert_array_equal(replica_seed(seed), [1, 5])


# Shapes


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("axis", [0, 1, -2, 2, -1])
def test_axis(estimator, axis, monkeypatch):
    noise = gumbel((2, 3, 4))
    monkeypatch.setattr(
        estimators,
        "_noise",
        lambda distribution, logits, seed: (
            noise if logits.shape == noise.shape else np.moveaxis(noise, axis, -1)
        ),
    )
    logits = normal(2, 3, 4)
    answer = categorical(logits, estimator, 2.0, axis=axis, training=True)
    expected = categorical(np.moveaxis(logits, axis, -1), estimator, 2.0, training=True)
    np.testing.assert_allclose(np.moveaxis(answer, axis, -1), expected, atol=1e-6)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_open_shapes(estimator):
    @tf.function(input_signature=[tf.TensorSpec([None, None, None])])
    def answers(logits):
        return (
            categorical(logits, estimator, axis=1, seed=SEED, training=True),
            binary(logits, estimator, seed=SEED, training=True),
        )

    for shape in [(2, 3, 4), (0, 3, 4)]:
        one, each = answers(np.zeros(shape, "float32"))
        assert one.shape == each.shape == shape
        np.testing.assert_allclose(tf.reduce_sum(one, 1), 1, rtol=1e-6)


def test_temperature_may_be_a_tensor_of_its_own_gradient():
    logits, temperatures = normal(4, 3), tf.constant([[0.5], [1.0], [2.0], [4.0]])
    with tf.GradientTape() as tape:
        tape.watch(temperatures)
        answer = categorical(logits, "soft", temperatures)
        loss = tf.reduce_sum(answer**2)
    np.testing.assert_allclose(
        answer, special.softmax(logits / temperatures.numpy(), axis=-1), rtol=1e-5
    )
    # Against the difference quotient
    low, high = (
        (special.softmax(logits / t, axis=-1) ** 2).sum(axis=-1)
        for t in (temperatures.numpy() - 1e-3, temperatures.numpy() + 1e-3)
    )
    gradient = tape.gradient(loss, temperatures)[:, 0]
    np.testing.assert_allclose(gradient, (high - low) / 2e-3, atol=1e-3)


# Errors


@pytest.mark.parametrize("function", [categorical, binary])
@pytest.mark.parametrize("estimator", ["gumbel", None, ["soft"]])
def test_unknown_estimator(function, estimator):
    with pytest.raises(ValueError, match=r"'reinmax'\)\. Received: estimator="):
        function([0.0, 1.0], estimator)


@pytest.mark.parametrize("function", [categorical, binary])
@pytest.mark.parametrize(
    "temperature, received",
    [
        (0, "0"),
        (-1.5, "-1.5"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (1e-50, "1e-50"),
        (1e50, "1e.50"),
        (np.float32(0), r"np.float32\(0.0\)"),
        (tf.constant(-1.0), "-1.0"),
        (tf.constant([1.0, 0.0]), r"\[1. 0.\]"),
        (tf.Variable(0.0), "0.0"),
    ],
)
def test_temperature_out_of_range(function, temperature, received):
    with pytest.raises(ValueError, match=f"> 0. Received: temperature={received}"):
        function([0.0, 1.0], "soft", temperature)


@pytest.mark.parametrize("temperature", ["1", None, True])
def test_temperature_of_a_wrong_type(temperature):
    with pytest.raises(TypeError, match=f"temperature={temperature!r} of type"):
        categorical([0.0, 1.0], "soft", temperature)


@pytest.mark.parametrize("temperature", [0.99, tf.constant(0.99)])
def test_reinmax_needs_a_temperature_of_one(temperature):
    message = ">= 1 with estimator='reinmax'. Received: temperature=0.99"
    with pytest.raises(ValueError, match=message):
        categorical([0.0, 1.0], "reinmax", temperature)
    assert float(check_temperature(1, "reinmax")) == 1


def test_error_says_where_the_temperature_comes_from():
    with pytest.raises(ValueError, match="temperature=0 at step 3."):
        check_temperature(0, "soft", origin=" at step 3")


@pytest.mark.parametrize("estimator", ["soft", "reinmax"])
def test_temperature_out_of_range_in_a_graph(estimator):
    def answer(temperature, training):
        logits = tf.constant([0.0, 1.0])
        return categorical(logits, estimator, temperature, seed=SEED, training=training)

    wrong = tf.constant(0.0 if estimator == "soft" else 0.9)
    graph = tf.function(answer)
    with pytest.raises(tf.errors.InvalidArgumentError, match="`temperature` must be"):
        graph(wrong, True)
    assert np.isnan(graph(wrong, False)).all()
    assert np.isfinite(graph(tf.constant(1.0), True)).all()
    compiled = tf.function(answer, jit_compile=True)
    assert np.isnan(compiled(wrong, True)).all()
    assert np.isfinite(compiled(tf.constant(1.0), True)).all()


@pytest.mark.parametrize("function", [categorical, binary])
def test_noise_needs_a_seed(function):
    with pytest.raises(ValueError, match="Received: seed=None"):
        function([0.0, 1.0], "gumbel_softmax", training=True)
    function([0.0, 1.0], "gumbel_softmax")
    function([0.0, 1.0], "straight_through", training=True)
