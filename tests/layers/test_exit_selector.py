import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import special, stats

import keras_dynamic as kd
from keras_dynamic.layers._selector import soft_weights
from keras_dynamic.ops.estimators import (
    ESTIMATORS,
    HARD_ESTIMATORS,
    SAMPLING_ESTIMATORS,
)
from tests.layers.checks import check_layer


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def built(num_exits=3, width=4, **arguments):
    layer = kd.ExitSelector(num_exits, **arguments)
    layer(normal(2, width))
    return layer


# The whole contract of a layer


@pytest.mark.parametrize(
    "shape, arguments",
    [
        pytest.param((6, 4), {"temperature": 0.3, "seed": 7}, id="vectors"),
        pytest.param(
            (6, 5, 4),
            {
                "hidden_units": [3],
                "pooling": "max",
                "entropy_weight": 0.3,
                "prior": [0.1, 0.3, 0.6],
                "prior_weight": 0.7,
                "prior_per_sample": True,
                "exit_costs": [0.1, 0.7, 1.0],
                "cost_weight": 1.3,
            },
            id="regularized_tokens",
        ),
    ],
)
def test_is_a_layer(shape, arguments):
    # One-hot answers: a last bit may change them in half precision.
    check_layer(
        lambda: kd.ExitSelector(3, **arguments),
        normal(*shape),
        config=arguments,
        half_tolerance=None,
    )


def test_is_a_layer_that_samples():
    check_layer(
        lambda: kd.ExitSelector(
            3, "gumbel_straight_through", pooling=keras.layers.GlobalAveragePooling2D()
        ),
        normal(4, 6, 6, 2),
        random_training=True,
        half_tolerance=None,
    )


# Training and inference


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_estimators_in_training_and_at_inference(estimator):
    tau = 2.0
    layer = built(estimator=estimator, temperature=tau, seed=3)
    x = normal(500, 4)
    logits = layer.head(x).numpy()
    answer = layer(x, training=True).numpy()
    np.testing.assert_allclose(answer.sum(axis=1), 1, rtol=1e-5)
    is_hard = np.isin(answer, (0, 1)).all()
    assert is_hard == (estimator in HARD_ESTIMATORS)
    again = layer(x, training=True).numpy()
    assert (answer != again).any() == (estimator in SAMPLING_ESTIMATORS)
    if estimator == "soft":
        expected = special.softmax(logits / tau, axis=1)
        np.testing.assert_allclose(answer, expected, rtol=1e-5)
    if estimator == "straight_through":
        np.testing.assert_array_equal(answer, np.eye(3)[logits.argmax(axis=1)])
    # One-hot at the argmax when not training, whatever the estimator.
    for inference in (layer(x), layer(x, training=False)):
        np.testing.assert_array_equal(inference, np.eye(3)[logits.argmax(axis=1)])


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_probabilities(estimator):
    layer = built(estimator=estimator, temperature=2.0)
    x = normal(50, 4)
    # Samples are drawn from softmax(c), whatever tau.
    tau = 1 if estimator in SAMPLING_ESTIMATORS else 2
    expected = special.softmax(layer.head(x).numpy() / tau, axis=1)
    np.testing.assert_allclose(layer.probabilities(x), expected, rtol=1e-5)
    np.testing.assert_allclose(soft_weights(layer(x)), expected, rtol=1e-5)
    assert layer.probabilities(x).dtype == "float32"


def test_samples_follow_the_probabilities():
    layer = built(estimator="gumbel_straight_through", temperature=5.0, seed=11)
    x = np.tile(normal(1, 4), (20_000, 1))
    counts = layer(x, training=True).numpy().sum(axis=0)
    expected = layer.probabilities(x[:1]).numpy()[0].astype("float64")
    assert stats.chisquare(counts, 20_000 * expected / expected.sum()).pvalue > 0.001


def test_masked_tokens_do_not_count():
    layer = kd.ExitSelector(3)
    tokens, mask = normal(8, 5, 4), np.arange(5) < 2
    mask = np.tile(mask, (8, 1))
    expected = layer.probabilities(tokens[:, :2])
    found = layer.probabilities(tokens, mask=tf.constant(mask))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    found = soft_weights(layer(tokens, mask=tf.constant(mask)))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_is_a_softmax_classifier_in_the_neutral_setting():
    layer, x = built(), normal(7, 4)
    dense = keras.layers.Dense(3, "softmax")
    dense.build((None, 4))
    dense.set_weights([w.numpy() for w in layer.head.classifier.weights])
    np.testing.assert_allclose(layer(x, training=True), dense(x), rtol=1e-5)
    assert not layer.losses


# Regularizers


def losses(layer, x):
    layer(x, training=True)
    return [float(loss) for loss in layer.losses]


@pytest.mark.parametrize("estimator", ["soft", "gumbel_straight_through"])
@pytest.mark.parametrize("per_sample", [False, True])
def test_regularizers_against_numpy(estimator, per_sample):
    prior, costs = [0.2, 0.3, 0.5], [0.1, 0.4, 1.0]
    layer = built(
        estimator=estimator,
        entropy_weight=0.7,
        prior=prior,
        prior_weight=0.9,
        prior_per_sample=per_sample,
        exit_costs=costs,
        cost_weight=1.1,
    )
    x = normal(9, 4)
    p = layer.probabilities(x).numpy()
    divergence = stats.entropy(p.mean(axis=0), prior)
    if per_sample:
        divergence = stats.entropy(p, np.array([prior]), axis=1).mean()
    expected = [
        0.7 * stats.entropy(p, axis=1).mean(),
        0.9 * divergence,
        1.1 * (p @ costs).mean(),
    ]
    assert losses(layer, x) == pytest.approx(expected, rel=1e-5)
    layer(x)
    assert not layer.losses  # in training only


@pytest.mark.parametrize("prior", [None, "uniform"])
def test_prior_is_uniform_by_default(prior):
    layer, x = built(prior=prior, prior_weight=1.0), normal(9, 4)
    p = layer.probabilities(x).numpy().mean(axis=0)
    expected = stats.entropy(p, np.ones(3) / 3)
    assert losses(layer, x) == pytest.approx([expected], rel=1e-4)
    assert layer.get_config()["prior"] == prior


def test_arrays_are_taken_as_lists():
    layer = kd.ExitSelector(2, prior=np.array([0.3, 0.7]), exit_costs=np.array([0, 1]))
    config = layer.get_config()
    assert config["prior"] == [0.3, 0.7] and config["exit_costs"] == [0.0, 1.0]


def test_costs_that_a_model_fills_in():
    layer = built(exit_costs="auto", cost_weight=2.0)
    x = normal(5, 4)
    with pytest.raises(RuntimeError, match="exit_costs='auto'.*give the costs"):
        layer(x, training=True)
    layer.bind_costs([0.1, 0.2, 1.0])
    p = layer.probabilities(x).numpy()
    expected = 2 * (p @ [0.1, 0.2, 1.0]).mean()
    assert losses(layer, x) == pytest.approx([expected], rel=1e-5)
    own = built(exit_costs=[0.5, 0.6, 0.7])
    own.bind_costs([0, 0, 0])
    np.testing.assert_allclose(own.current_exit_costs, [0.5, 0.6, 0.7])


# Wrong arguments


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_exits": None}, "`num_exits` must be an integer.*None"),
        ({"num_exits": 1}, "at least 2.*num_exits=1"),
        ({"prior": [0.5, 0.6, 0.1]}, r"sum to 1.*0\.6.*1\.2"),
        ({"prior": [0.5, 0.5, 0.0]}, r"positive.*\[0\.5, 0\.5, 0\.0\]"),
        ({"prior": [0.5, 0.7, -0.2]}, r"positive.*-0\.2"),
        ({"prior": [0.5, 0.5]}, "`prior` must have 3 entries.*2 entries"),
        ({"prior": "even"}, "`prior` must be a list.*'even'"),
        ({"exit_costs": [0.5, 1]}, "`exit_costs` must have 3 entries.*2 entries"),
        ({"exit_costs": [0.5, -1, 1]}, "finite and >= 0.*-1"),
        ({"exit_costs": [0.5, np.inf, 1]}, "finite and >= 0.*inf"),
        ({"exit_costs": "flops"}, "'auto' or None.*'flops'"),
        ({"cost_weight": 1.0}, r"needs `exit_costs`.*cost_weight=1\.0"),
        ({"estimator": "hard"}, "`estimator` must be one of.*'hard'"),
        ({"temperature": 0}, "> 0.*temperature=0"),
        ({"temperature": -1.0}, r"> 0.*temperature=-1\.0"),
        ({"temperature": 0.5, "estimator": "reinmax"}, r">= 1.*temperature=0\.5"),
        ({"entropy_weight": -0.1}, r"`entropy_weight` must be finite.*-0\.1"),
        ({"prior_weight": -0.1}, r"`prior_weight` must be finite.*-0\.1"),
        ({"cost_weight": -0.1}, r"`cost_weight` must be finite.*-0\.1"),
        ({"pooling": "middle"}, "`pooling` must be one of.*'middle'"),
        ({"hidden_units": 0}, "`hidden_units` must be at least 1.*0"),
    ],
)
def test_wrong_values(arguments, message):
    with pytest.raises(ValueError, match=message):
        kd.ExitSelector(**{"num_exits": 3, **arguments})


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_exits": 2.0}, r"must be an integer.*2\.0"),
        ({"num_exits": True}, "must be an integer.*True"),
        ({"cost_weight": "1"}, "`cost_weight` must be a number.*'1'"),
        ({"entropy_weight": None}, "`entropy_weight` must be a number.*None"),
    ],
)
def test_wrong_types(arguments, message):
    with pytest.raises(TypeError, match=message):
        kd.ExitSelector(**{"num_exits": 3, **arguments})
