"""Mixtures of experts in a DynamicModel: answers, costs, and what is refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_dynamic as kd


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def with_two_exits(moe, shape=(6, 8)):
    inputs = keras.Input(shape)
    first = kd.EarlyExit(3, name="early")(inputs)
    hidden = moe(inputs)
    return kd.DynamicModel(inputs, [first, kd.EarlyExit(3, name="final")(hidden)])


# FLOPs of a mixture by hand, for N tokens of d features and h hidden units:
# router 2 d E and softmax 5 E a token; an expert 2 d h + h (bias) + h (activation)
# + 2 h d + d (bias) a token, and 2 d for its place in the weighted sum.
def router_flops(tokens, d, number):
    return tokens * number * (2 * d + 5)


def expert_flops(d, h):
    return 2 * d * h + h + h + 2 * h * d + d + 2 * d


@pytest.mark.parametrize(
    ("arguments", "experts"),
    [
        ({}, 6),
        ({"top_k": 2}, 12),
        ({"router": "dense"}, 24),
        ({"dispatch": "dense"}, 24),
        # 4 experts take 6 / 4 tokens each, rounded up
        ({"router": "expert_choice"}, 8),
    ],
)
def test_flops_by_hand(arguments, experts):
    moe = kd.SparseMoE(4, 16, activation="relu", **arguments)
    expected = router_flops(6, 8, 4) + experts * expert_flops(8, 16)
    head = 2 * 8 * 2 + 6 * 8  # products; the pool's sum
    inputs = keras.Input((6, 8))
    outputs = layers.Dense(2, use_bias=False)(
        layers.GlobalAveragePooling1D()(moe(inputs))
    )
    model = kd.DynamicModel(inputs, [outputs])
    assert model.exit_costs == [expected + head]
    prediction = model.predict_dynamic(normal(5, 6, 8), verbose=0)
    np.testing.assert_array_equal(prediction.cost, [expected + head] * 5)


def test_flops_of_one_choice_for_an_input():
    moe = kd.SparseMoE(4, 16, activation="relu", route="input")
    inputs = keras.Input((6, 8))
    outputs = layers.Dense(2, use_bias=False)(layers.Flatten()(moe(inputs)))
    model = kd.DynamicModel(inputs, [outputs])
    mean = 6 * 8
    experts = 6 * expert_flops(8, 16)
    expected = mean + router_flops(1, 8, 4) + experts + 2 * 48 * 2
    assert model.exit_costs == [expected]


def test_gated_experts_have_three_products():
    moe = kd.SparseMoE(2, 16, activation="silu", gated=True, use_bias=False)
    inputs = keras.Input((8,))
    model = kd.DynamicModel(inputs, [layers.Dense(2, use_bias=False)(moe(inputs))])
    expert = 3 * 2 * 8 * 16 + 16 + 16 + 2 * 8  # activation; product of both halves
    assert model.exit_costs == [router_flops(1, 8, 2) + expert + 2 * 8 * 2]


def test_padding_and_unequal_experts_cost_what_they_cost():
    """A token that is padding pays for the router only, one at a small expert less."""
    small = layers.Dense(8, use_bias=False)
    large = keras.Sequential(
        [layers.Dense(32, use_bias=False), layers.Dense(8, use_bias=False)]
    )
    moe = kd.SparseMoE(experts=[small, large])
    inputs = keras.Input((4, 8))
    hidden = moe(layers.Masking()(inputs))
    model = kd.DynamicModel(
        inputs,
        [layers.Dense(2, use_bias=False)(layers.GlobalAveragePooling1D()(hidden))],
    )
    # Feature 0 decides: positive, the small expert.
    kernel = np.zeros((8, 2), "float32")
    kernel[0] = 1.0, -1.0
    moe.router.kernel.assign(kernel)
    x = np.abs(normal(3, 4, 8)) + 0.1
    x[1, :3, 0] *= -1  # three tokens to the large one
    x[2, 1:] = 0.0  # three are padding
    of_small, of_large = 2 * 8 * 8 + 16, 2 * 8 * 32 + 2 * 32 * 8 + 16
    rest = model.exit_costs[0] - 4 * of_large  # the dearest expert four times
    assert rest > router_flops(4, 8, 2) + 2 * 8 * 2
    expected = [4 * of_small, of_small + 3 * of_large, of_small]
    prediction = model.predict_dynamic(x, verbose=0)
    np.testing.assert_array_equal(
        prediction.cost, [rest + experts for experts in expected]
    )


def test_cost_behind_a_closed_gate():
    """Who does not get to the mixture pays nothing of it."""
    moe = kd.SparseMoE(
        experts=[layers.Dense(8), keras.Sequential([layers.Dense(32), layers.Dense(8)])]
    )
    first = layers.Dense(1, use_bias=False)
    gate = kd.SkipGate(moe, gate=first)
    inputs = keras.Input((8,))
    model = kd.DynamicModel(inputs, [layers.Dense(2)(gate(inputs))])
    kernel = np.zeros((8, 1), "float32")
    kernel[0] = 1.0
    first.kernel.assign(kernel)
    moe.router.kernel.assign(normal(8, 2))
    x = normal(40, 8)
    prediction = model.predict_dynamic(x, verbose=0)
    closed = x[:, 0] <= 0
    chosen = np.argmax(x @ moe.router.kernel.numpy(), axis=1)
    of_experts = np.array([2 * 64 + 8 + 16, 2 * 8 * 32 * 2 + 32 + 8 + 16])
    rest = prediction.cost[closed]
    assert len(set(rest)) == 1
    expected = rest[0] + np.where(closed, 0, router_flops(1, 8, 2) + of_experts[chosen])
    np.testing.assert_array_equal(prediction.cost, expected)


@pytest.mark.parametrize("router", ["top_k", "expert_choice"])
def test_leaving_changes_no_answer(router):
    keras.utils.set_random_seed(0)
    model = with_two_exits(kd.SparseMoE(4, 16, router=router))
    x = normal(30, 6, 8)
    early, final = model.predict(x, verbose=0)
    threshold = float(np.median(early.max(axis=1)))
    model.exit_rule = kd.rules.MaxProbability(threshold + 1e-4)
    prediction = model.predict_dynamic(x, batch_size=16, verbose=0)
    leaves = prediction.exit_index == 0
    assert 0 < leaves.sum() < 30
    expected = np.where(leaves[:, None], early, final)
    np.testing.assert_allclose(prediction.outputs, expected, rtol=1e-5, atol=1e-6)


def test_dropping_at_inference_is_refused():
    moe = kd.SparseMoE(4, 16, inference_capacity_factor=1.5, name="moe")
    with pytest.raises(ValueError, match="'moe'.*inference_capacity_factor=1.5"):
        with_two_exits(moe)


def test_logs_behind_a_gate_and_in_a_choice():
    """What runs in a branch is counted by `evaluate` as well."""
    moe = kd.SparseMoE(3, 8, noise_stddev=0.0, name="moe")
    gate = kd.SkipGate(moe, name="gate")
    choice = kd.LayerChoice([gate, layers.Dense(8)], estimator="straight_through")
    inputs = keras.Input((8,))
    model = keras.Model(inputs, choice(inputs))
    choice.logits.assign([1.0, 0.0])
    moe.router.kernel.assign(normal(8, 3))
    model.compile("sgd", "mse")
    x = normal(32, 8)
    logs = model.evaluate(x, x, verbose=0, return_dict=True)
    opened = np.array(gate.decider(x))[:, 0] > 0
    chosen = np.argmax(x @ moe.router.kernel.numpy(), axis=1)[opened]
    loads = np.bincount(chosen, minlength=3) / len(chosen)
    found = [logs[f"moe_load_{expert}"] for expert in range(3)]
    np.testing.assert_allclose(found, loads, rtol=1e-6)
    assert logs["gate_open_rate"] == pytest.approx(opened.mean())


def test_exported_model_and_copies(tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 8))
    experts = [layers.Dense(8), keras.Sequential([layers.Dense(4), layers.Dense(8)])]
    hidden = kd.SparseMoE(experts=experts)(kd.SparseMoE(4, 16)(inputs))
    model = keras.Model(inputs, hidden)
    x = normal(5, 6, 8)
    expected = model.predict(x, verbose=0)
    model.export(tmp_path / "saved", verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    np.testing.assert_allclose(loaded.serve(x), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(kd.discretize(model)(x), expected, rtol=1e-5, atol=1e-6)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    np.testing.assert_allclose(clone(x), expected, rtol=1e-5, atol=1e-6)
