import keras
import numpy as np
import pytest
from scipy import special, stats

import keras_dynamic as kd
from keras_dynamic.layers._selector import soft_weights
from keras_dynamic.ops.estimators import (
    ESTIMATORS,
    HARD_ESTIMATORS,
    SAMPLING_ESTIMATORS,
)
from tests.layers.checks import check_layer


def features(rows=6, seed=0):
    """What two exits read: vectors of different sizes."""
    generator = np.random.default_rng(seed)
    return [generator.normal(size=(rows, n)).astype("float32") for n in (4, 3)]


def built(**arguments):
    layer = kd.LayerwiseSelector(**arguments)
    layer.probabilities(features())  # builds it as well
    return layer


def gates(layer, x):
    """(rows, 2) logits of stopping."""
    return np.concatenate(
        [gate(part).numpy() for gate, part in zip(layer.gates, x, strict=True)], axis=1
    )


def composed(stopping):
    s, t = stopping.T
    return np.stack([s, (1 - s) * t, (1 - s) * (1 - t)], axis=1)


# The whole contract of a layer


def test_is_a_layer():
    arguments = {
        "num_exits": 3,
        "temperature": 0.3,
        "hidden_units": [3],
        "entropy_weight": 0.3,
        "prior": [0.1, 0.3, 0.6],
        "prior_weight": 0.7,
        "prior_per_sample": True,
        "exit_costs": [0.1, 0.7, 1.0],
        "cost_weight": 1.3,
    }
    check_layer(
        lambda: kd.LayerwiseSelector(**arguments),
        features(),
        config=arguments,
        half_tolerance=None,
    )


def test_is_a_layer_on_images_and_tokens_that_samples():
    generator = np.random.default_rng(0)
    shapes = [(4, 6, 6, 2), (4, 5, 3)]
    check_layer(
        lambda: kd.LayerwiseSelector(estimator="gumbel_straight_through", seed=7),
        [generator.normal(size=shape).astype("float32") for shape in shapes],
        config={"num_exits": None, "seed": 7},
        random_training=True,
        every_weight_trains=False,  # nobody may have come to the second gate
        half_tolerance=None,
    )


def test_a_layer_that_pools_is_made_anew_for_every_gate():
    pooling = keras.layers.Dense(2)
    layer = kd.LayerwiseSelector(pooling=pooling)
    layer.probabilities(features())  # builds it as well
    assert [gate.pooling.kernel.shape for gate in layer.gates] == [(4, 2), (3, 2)]
    again = kd.LayerwiseSelector.from_config(layer.get_config())
    assert isinstance(again.pooling, keras.layers.Dense)


# Training and inference


def test_composition_by_hand():
    layer = built()
    for gate, bias in zip(layer.gates, (np.log(1 / 3), np.log(3)), strict=True):
        gate.classifier.kernel.assign(np.zeros_like(gate.classifier.kernel))
        gate.classifier.bias.assign([bias])
    # Gates 1/4 and 3/4: 1/4, 3/4 * 3/4 = 9/16, and 3/4 * 1/4 = 3/16 go on.
    found = layer.probabilities(features(rows=1)).numpy()
    np.testing.assert_allclose(found, [[4 / 16, 9 / 16, 3 / 16]], rtol=1e-6)
    np.testing.assert_array_equal(layer(features(rows=1)), [[0, 1, 0]])
    # The first gate above 1/2 counts, not the largest weight: with gates 0.51 and
    # 0.99 both are above; with 0.4 and 0.4 none is, though exit 0 weighs most.
    for stopping, weights, largest in (
        ((0.51, 0.99), [1, 0, 0], 0),
        ((0.4, 0.4), [0, 0, 1], 0),
    ):
        for gate, s in zip(layer.gates, stopping, strict=True):
            gate.classifier.bias.assign([special.logit(s)])
        np.testing.assert_array_equal(layer(features(rows=1)), [weights])
        assert layer.probabilities(features(rows=1)).numpy().argmax() == largest


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_estimators_in_training_and_at_inference(estimator):
    layer = built(estimator=estimator, temperature=2.0, seed=3)
    x = features(rows=500)
    logits = gates(layer, x)
    answer = layer(x, training=True).numpy()
    np.testing.assert_allclose(answer.sum(axis=1), 1, rtol=1e-5)
    assert np.isin(answer, (0, 1)).all() == (estimator in HARD_ESTIMATORS)
    again = layer(x, training=True).numpy()
    assert (answer != again).any() == (estimator in SAMPLING_ESTIMATORS)
    hard = composed((logits > 0).astype("float32"))
    if estimator == "straight_through":
        np.testing.assert_array_equal(answer, hard)
    np.testing.assert_array_equal(layer(x), hard)
    tau = 1 if estimator in SAMPLING_ESTIMATORS else 2
    soft = composed(special.expit(logits / tau))
    np.testing.assert_allclose(layer.probabilities(x), soft, rtol=1e-4)
    np.testing.assert_allclose(soft_weights(layer(x)), soft, rtol=1e-4)
    if estimator == "soft":
        np.testing.assert_allclose(answer, soft, rtol=1e-4)


def test_samples_follow_the_probabilities():
    layer = built(estimator="gumbel_straight_through", temperature=5.0, seed=11)
    x = [np.tile(part, (20_000, 1)) for part in features(rows=1)]
    counts = layer(x, training=True).numpy().sum(axis=0)
    expected = layer.probabilities(features(rows=1)).numpy()[0].astype("float64")
    assert stats.chisquare(counts, 20_000 * expected / expected.sum()).pvalue > 0.001


def test_what_the_walk_asks_gate_by_gate():
    layer, x = built(temperature=2.0), features()
    expected = gates(layer, x)
    for index in range(2):
        logit = layer.gate_logit(index, x[index])
        assert logit.dtype == "float32"
        np.testing.assert_allclose(logit, expected[:, index], rtol=1e-6)
    stopping = layer.stopping_probabilities(expected)
    np.testing.assert_allclose(stopping, special.expit(expected / 2), rtol=1e-5)


def test_regularizers_against_numpy():
    prior, costs = [0.2, 0.3, 0.5], [0.1, 0.4, 1.0]
    layer = built(
        estimator="gumbel_softmax",
        entropy_weight=0.7,
        prior=prior,
        prior_weight=0.9,
        exit_costs=costs,
        cost_weight=1.1,
    )
    x = features(rows=9)
    p = composed(special.expit(gates(layer, x)))
    layer(x, training=True)
    expected = [
        0.7 * stats.entropy(p, axis=1).mean(),
        0.9 * stats.entropy(p.mean(axis=0), prior),
        1.1 * (p @ costs).mean(),
    ]
    assert [float(loss) for loss in layer.losses] == pytest.approx(expected, rel=1e-4)
    layer(x)
    assert not layer.losses


def test_costs_wait_for_the_number_of_exits():
    layer = built(exit_costs="auto", cost_weight=1.0)
    with pytest.raises(RuntimeError, match="exit_costs='auto'"):
        layer(features(), training=True)
    layer.bind_costs([0.1, 0.2, 1.0])
    layer(features(), training=True)
    assert len(layer.losses) == 1


# Wrong arguments


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_exits": 4}, r"3 early exits \(num_exits=4\).*2 features"),
        ({"prior": [0.5, 0.5]}, "`prior` must have 3 entries.*2 entries"),
        ({"exit_costs": [0.5, 1]}, "`exit_costs` must have 3 entries.*2 entries"),
        ({"prior": [0.5, 0.5, 0.0]}, r"positive.*\[0\.5, 0\.5, 0\.0\]"),
        ({"estimator": "hard"}, "`estimator` must be one of.*'hard'"),
        ({"temperature": 0}, "> 0.*temperature=0"),
        ({"temperature": 0.5, "estimator": "reinmax"}, r">= 1.*temperature=0\.5"),
        ({"cost_weight": 1.0}, r"needs `exit_costs`.*cost_weight=1\.0"),
        ({"pooling": "middle"}, "`pooling` must be one of.*'middle'"),
    ],
)
def test_wrong_values(arguments, message):
    with pytest.raises(ValueError, match=message):
        built(**arguments)


@pytest.mark.parametrize(
    "arguments", [{"pooling": "middle"}, {"hidden_units": 0}, {"hidden_units": [4, 0]}]
)
def test_wrong_gates_are_refused_before_there_are_features(arguments):
    with pytest.raises(ValueError, match="pooling='middle'|hidden_units=0"):
        kd.LayerwiseSelector(**arguments)


def test_wants_a_list():
    with pytest.raises(ValueError, match=r"list of the early exits' features.*\(6, 4"):
        kd.LayerwiseSelector()(features()[0])
