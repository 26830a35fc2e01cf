import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops
from scipy import special, stats

from keras_dynamic._compat import get_mask
from keras_dynamic.layers.gumbel_softmax import GumbelSoftmax
from keras_dynamic.ops.estimators import ESTIMATORS, HARD_ESTIMATORS
from tests.layers.checks import check_layer, two_replicas

PROBABILITIES = np.array([0.03, 0.07, 0.15, 0.25, 0.5])


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


# The whole contract of a layer


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({"temperature": 0.3, "seed": 7}, id="relaxed"),
        pytest.param(
            {"estimator": "reinmax", "temperature": 1.3, "axis": 1}, id="hard"
        ),
    ],
)
def test_is_a_layer(arguments):
    check_layer(
        lambda: GumbelSoftmax(**arguments),
        normal(6, 3, 2),
        config={**arguments, "sample_at_inference": False},
        random_training=True,
    )


def test_is_a_layer_without_noise():
    check_layer(lambda: GumbelSoftmax(0.3, "straight_through"), normal(6, 4))


def test_is_a_softmax_in_the_neutral_setting():
    logits = normal(6, 3, 4)
    for axis in (1, -1):
        soft = GumbelSoftmax(estimator="soft", axis=axis)
        expected = keras.layers.Softmax(axis)(logits)
        for training in (False, True):
            answer = soft(logits, training=training)
            np.testing.assert_allclose(answer, expected, rtol=1e-6)


# Noise


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_noise_is_new_at_every_call_and_none_at_inference(estimator):
    layer = GumbelSoftmax(estimator=estimator, seed=3)
    logits = normal(50, 4)
    first, second = (layer(logits, training=True).numpy() for _ in range(2))
    noisy = estimator not in ("soft", "straight_through")
    assert np.any(first != second) == noisy
    np.testing.assert_array_equal(layer(logits), layer(logits, training=False))
    expected = special.softmax(logits, axis=-1)
    if estimator in HARD_ESTIMATORS:
        expected = np.eye(4)[logits.argmax(axis=-1)]
    np.testing.assert_allclose(layer(logits), expected, atol=1e-6)


def test_same_seed_gives_the_same_run():
    def run(seed):
        keras.utils.set_random_seed(5)
        layer = GumbelSoftmax(seed=seed)
        inputs = keras.Input((4,))
        model = keras.Model(inputs, layer(keras.layers.Dense(3)(inputs)))
        model.compile("sgd", "mse")
        model.fit(normal(8, 4), normal(8, 3, seed=1), 2, epochs=2, verbose=0)
        return model.get_weights()[0]

    np.testing.assert_array_equal(run(seed=3), run(seed=3))
    np.testing.assert_array_equal(run(seed=None), run(seed=None))
    assert (run(seed=3) != run(seed=4)).any()


def test_layers_have_noise_of_their_own():
    logits = normal(50, 4)
    first, second = (GumbelSoftmax()(logits, training=True) for _ in range(2))
    assert np.any(first.numpy() != second.numpy())


def test_sample_at_inference():
    inputs = keras.Input((4,))
    layer = GumbelSoftmax(sample_at_inference=True)
    model = keras.Model(inputs, layer(inputs))
    first, second = (model.predict(normal(50, 4), verbose=0) for _ in range(2))
    assert (first != second).any()


def test_noise_differs_between_replicas():
    strategy = two_replicas()
    with strategy.scope():
        layer = GumbelSoftmax()
        layer.build((None, 4))
    logits = tf.constant(normal(50, 4))

    @tf.function
    def draw():
        return strategy.run(lambda: layer(logits, training=True))

    draws = [
        each.numpy()
        for _ in range(2)
        for each in strategy.experimental_local_results(draw())
    ]
    for index, one in enumerate(draws):
        for other in draws[:index]:
            assert (one != other).any()


@pytest.mark.parametrize("estimator", ["gumbel_straight_through", "reinmax"])
@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_draws_follow_the_probabilities(policy, estimator):
    layer = GumbelSoftmax(estimator=estimator, seed=11, dtype=policy)
    logits = np.tile(np.log(PROBABILITIES), (100_000, 1))
    draws = layer(logits.astype("float32"), training=True)
    assert draws.dtype == layer.compute_dtype
    counts = tf.cast(draws, "float32").numpy().sum(axis=0)
    assert counts.sum() == 100_000
    assert stats.chisquare(counts, 100_000 * PROBABILITIES).pvalue > 0.001


@pytest.mark.parametrize("policy", ["float16", "bfloat16"])
def test_logits_of_half_precision(policy):
    # The least that there is, and nothing but half precision anywhere.
    layer = GumbelSoftmax(0.001, "gumbel_straight_through", seed=11, dtype=policy)
    logits = tf.cast(np.tile(np.log(PROBABILITIES), (100_000, 1)), policy)
    counts = tf.cast(layer(logits, training=True), "float32").numpy().sum(axis=0)
    rounded = special.softmax(tf.cast(logits[0], "float64"))
    assert stats.chisquare(counts, 100_000 * rounded).pvalue > 0.001


def test_logits_are_not_rounded_to_the_compute_dtype():
    # 2049 is 2048 in float16, and so is 2048.5: the first of equals would win.
    layer = GumbelSoftmax(estimator="straight_through", dtype="mixed_float16")
    answer = layer(np.array([[2048.5, 2049.0]], "float32"))
    assert answer.numpy().tolist() == [[0, 1]]


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_small_temperature_trains(policy, estimator):
    keras.utils.set_random_seed(0)
    temperature = 1 if estimator == "reinmax" else 1e-3
    inputs = keras.Input((4,))
    logits = keras.layers.Dense(4, kernel_initializer="identity", dtype=policy)(inputs)
    layer = GumbelSoftmax(temperature, estimator, dtype=policy)
    model = keras.Model(inputs, layer(logits))
    model.compile("sgd", "mse")
    x = np.tile([[80, -80, 80, 0.0], [80, 79.9, -80, 80]], (16, 1))
    model.fit(x, np.eye(4)[[0, 1] * 16], 8, verbose=0)
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


# The temperature


def test_temperature_is_a_weight_and_a_number():
    layer = GumbelSoftmax(temperature=0.3, estimator="soft")
    assert layer.temperature == 0.3
    (weight,) = layer.non_trainable_weights
    assert weight is layer.current_temperature
    assert weight.dtype == "float32"
    logits = normal(6, 4)

    def answers():
        answer = layer(logits).numpy()
        return np.log(answer[:, 0] / answer[:, 1]) / (logits[:, 0] - logits[:, 1])

    np.testing.assert_allclose(answers(), 1 / 0.3, rtol=1e-3)
    layer.temperature = 1 / 3
    assert layer.temperature == 1 / 3
    np.testing.assert_allclose(answers(), 3, rtol=1e-3)
    layer.current_temperature.assign(0.7)
    assert layer.temperature == 0.7
    np.testing.assert_allclose(answers(), 1 / 0.7, rtol=1e-3)


@pytest.mark.parametrize("by_weight", [False, True])
def test_temperature_is_saved(tmp_path, by_weight):
    inputs = keras.Input((4,))
    layer = GumbelSoftmax(5, name="choice")
    model = keras.Model(inputs, layer(inputs))
    if by_weight:
        layer.current_temperature.assign(0.7)
    else:
        layer.temperature = 0.7
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.get_layer("choice").temperature == 0.7

    other = GumbelSoftmax(5, name="choice")
    keras.Model(inputs, other(inputs)).load_weights(tmp_path / "model.weights.h5")
    assert other.temperature == 0.7


def test_weight_out_of_range_is_an_error_in_fit():
    inputs = keras.Input((4,))
    layer = GumbelSoftmax()
    model = keras.Model(inputs, layer(keras.layers.Dense(3)(inputs)))
    model.compile("sgd", "mse")
    layer.current_temperature.assign(-1.0)
    with pytest.raises(tf.errors.InvalidArgumentError, match="`temperature` must be"):
        model.fit(normal(8, 4), normal(8, 3), verbose=0)
    with pytest.raises(ValueError, match="> 0. Received: temperature=-1.0"):
        layer(normal(8, 3))


# What goes through


def test_forbidden_choice():
    allowed = np.array([True, False, True, True])
    inputs = keras.Input((5, 4))
    logits = ops.where(allowed, inputs, -np.inf)
    layer = GumbelSoftmax(estimator="gumbel_straight_through")
    model = keras.Model(inputs, layer(logits))
    choices = model(normal(50, 5, 4), training=True).numpy()
    np.testing.assert_allclose(choices.sum(axis=-1), 1)
    assert choices[..., 1].sum() == 0
    assert (choices.sum(axis=(0, 1)) > 0).tolist() == allowed.tolist()


def test_mask_of_tokens_is_passed_on():
    tokens = np.eye(2, 5, dtype="float32")[..., None] + np.zeros(4, "float32")
    choices = GumbelSoftmax()(keras.layers.Masking(0.0)(tokens))
    assert get_mask(choices).numpy().tolist() == np.eye(2, 5).astype(bool).tolist()


# Errors


@pytest.mark.parametrize(
    "error, arguments, received",
    [
        (ValueError, {"temperature": 0}, "temperature=0"),
        (ValueError, {"temperature": -1.0}, "temperature=-1.0"),
        (TypeError, {"temperature": "1"}, "temperature='1'"),
        (
            ValueError,
            {"temperature": 0.5, "estimator": "reinmax"},
            "temperature=0.5",
        ),
        (ValueError, {"estimator": "gumbel"}, "estimator='gumbel'"),
        (TypeError, {"axis": 1.0}, "axis=1.0"),
        (TypeError, {"axis": True}, "axis=True"),
        (TypeError, {"sample_at_inference": 1}, "sample_at_inference=1"),
    ],
)
def test_error_at_construction(error, arguments, received):
    with pytest.raises(error, match=f"Received: {received}"):
        GumbelSoftmax(**arguments)


def test_temperature_refuses_what_the_constructor_refuses():
    layer = GumbelSoftmax(1.5, "reinmax")
    with pytest.raises(ValueError, match=">= 1 .* Received: temperature=0.9"):
        layer.temperature = 0.9
    assert layer.temperature == 1.5


@pytest.mark.parametrize("axis", [2, -3])
def test_axis_that_the_input_lacks(axis):
    with pytest.raises(ValueError, match=rf"axis={axis} .* \(None, 4\)"):
        GumbelSoftmax(axis=axis)(keras.Input((4,)))
