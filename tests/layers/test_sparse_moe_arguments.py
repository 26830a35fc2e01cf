"""What `SparseMoE` refuses, and what it warns of."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_dynamic as kd
from keras_dynamic.layers.routers import DenseRouter, ExpertChoiceRouter, TopKRouter
from tests.layers.checks import two_replicas
from tests.ops.gradients import normal


def two_layers():
    return [layers.Dense(3, name="one"), layers.Dense(3, name="two")]


def raises(error, message):
    return pytest.raises(error, match=re.escape(message))


# Construction


@pytest.mark.parametrize(
    "error, arguments, message",
    [
        # Experts
        (ValueError, {}, "`num_experts` is needed, or `experts`. Received: neither."),
        (ValueError, {"num_experts": 0}, "`num_experts` must be at least 1. Received: "
         "num_experts=0."),
        (TypeError, {"num_experts": 2.0}, "Received: num_experts=2.0 of type"),
        (TypeError, {"num_experts": True}, "Received: num_experts=True of type"),
        (ValueError, {"num_experts": 2, "hidden_units": None},
         "`hidden_units` is needed, or `experts`. Received: neither."),
        (ValueError, {"num_experts": 2, "hidden_units": 0}, "hidden_units=0."),
        # Choices
        (ValueError, {"top_k": 3}, "Received: top_k=3, num_experts=2."),
        (ValueError, {"top_k": 0}, "Received: top_k=0."),
        (TypeError, {"top_k": 1.5}, "Received: top_k=1.5 of type"),
        (ValueError, {"renormalize": True}, "would get no gradient"),
        (ValueError, {"renormalize": True}, "Received: renormalize=True, top_k=1."),
        (TypeError, {"renormalize": 1}, "Received: renormalize=1 of type"),
        (ValueError, {"router": "best"}, "one of ['top_k', 'dense', 'expert_choice']. "
         "Received: router='best'."),
        (ValueError, {"router": None}, "Received: router=None."),
        (ValueError, {"router": TopKRouter}, "Received: router=<class"),
        (ValueError, {"router": "dense", "top_k": 2}, "Received: top_k=2."),
        (TypeError, {"router": "dense", "top_k": True}, "Received: top_k=True of type"),
        (ValueError, {"router": "dense", "renormalize": True},
         "Received: renormalize=True with router='dense'."),
        (ValueError, {"router": "expert_choice", "renormalize": True},
         "Received: renormalize=True with router='expert_choice'."),
        (ValueError, {"router": "expert_choice", "top_k": 3},
         "Received: top_k=3, capacity_factor=None, num_experts=2."),
        (ValueError, {"router": "expert_choice", "top_k": 0}, "Received: top_k=0"),
        (ValueError, {"router": "expert_choice", "top_k": 1, "capacity_factor": 3.0},
         "Received: top_k=1, capacity_factor=3.0, num_experts=2."),
        (ValueError, {"route": "tokens"}, "`route` must be one of ['token', 'input']. "
         "Received: route='tokens'."),
        # A router of one's own
        (ValueError, {"router": DenseRouter(3)},
         "Received: a router with num_experts=3 for 2 experts."),
        (ValueError, {"router": TopKRouter(2), "top_k": 2},
         "`top_k` says nothing where `router` is given as objects"),
        (ValueError, {"router": TopKRouter(2), "noise_stddev": 0.1},
         "Received: noise_stddev=0.1 beside `router`."),
        (ValueError, {"router": TopKRouter(2), "renormalize": True},
         "Received: renormalize=True beside `router`."),
        (ValueError, {"router": ExpertChoiceRouter(2), "capacity_factor": 1.0},
         "Received: capacity_factor=1.0."),
        # Noise
        (ValueError, {"noise_stddev": -0.1}, "Received: noise_stddev=-0.1."),
        (TypeError, {"noise_stddev": "none"}, "Received: noise_stddev='none'"),
        (TypeError, {"noise_stddev": None}, "Received: noise_stddev=None"),
        # Capacity
        (ValueError, {"capacity_factor": 0}, "Received: capacity_factor=0."),
        (ValueError, {"capacity_factor": -1.0}, "Received: capacity_factor=-1.0."),
        (ValueError, {"capacity_factor": float("nan")}, "capacity_factor=nan."),
        (ValueError, {"capacity_factor": float("inf")}, "capacity_factor=inf."),
        (TypeError, {"capacity_factor": "1"}, "Received: capacity_factor='1' of type"),
        (TypeError, {"capacity_factor": True}, "Received: capacity_factor=True"),
        (ValueError, {"inference_capacity_factor": 0.0},
         "Received: inference_capacity_factor=0.0."),
        (TypeError, {"batch_prioritized": None}, "Received: batch_prioritized=None"),
        (ValueError, {"batch_prioritized": True},
         "needs a `capacity_factor`. Received: batch_prioritized=True without"),
        (TypeError, {"balance_loss": 5}, "Received: balance_loss=5."),
        (ValueError, {"balance_loss": None, "balance_weight": -3.0},
         "Received: balance_weight=-3.0."),
        (ValueError, {"router": TopKRouter(2), "seed": 3}, "Received: seed=3 beside"),
        (ValueError, {"router": "expert_choice", "inference_capacity_factor": 1.0},
         "Received: inference_capacity_factor=1.0."),
        (ValueError, {"router": "expert_choice", "batch_prioritized": True},
         "Received: batch_prioritized=True."),
        (ValueError, {"router": ExpertChoiceRouter(2), "batch_prioritized": True},
         "Received: batch_prioritized=True."),
        # Losses
        (ValueError, {"balance_loss": "even"}, "Received: balance_loss='even'."),
        (ValueError, {"balance_loss": ["kl", 3]}, "Received: balance_loss=3."),
        (ValueError, {"balance_loss": ["kl", "kl"]}, "Received: ['kl', 'kl']."),
        (ValueError, {"balance_loss": "load", "noise_stddev": 0},
         "can be ['kl', 'importance', 'switch']"),
        (ValueError, {"balance_loss": "load", "noise_stddev": 0},
         "Received: balance_loss='load'."),
        (ValueError, {"balance_loss": "switch", "router": "dense"},
         "can be ['kl', 'importance']"),
        (ValueError, {"balance_loss": ["kl", "load"], "router": "expert_choice"},
         "Received: balance_loss=['kl', 'load']."),
        (ValueError, {"balance_weight": -1}, "Received: balance_weight=-1."),
        (TypeError, {"balance_weight": "1"}, "Received: balance_weight='1'"),
        (ValueError, {"balance_weight": [0.1, 0.2]},
         "Received: balance_weight=[0.1, 0.2] for balance_loss='kl'."),
        (ValueError, {"z_weight": -1}, "Received: z_weight=-1."),
        (TypeError, {"z_weight": None}, "Received: z_weight=None"),
        # Forms and roads
        (TypeError, {"gated": 1}, "Received: gated=1"),
        (TypeError, {"activation": layers.PReLU(name="own")},
         "Received: activation=<PReLU name=own"),
        (ValueError, {"activation": "rely"}, "rely"),
        (TypeError, {"use_bias": "no"}, "Received: use_bias='no'"),
        (ValueError, {"dispatch": "sparse"},
         "['auto', 'ragged', 'capacity', 'dense']. Received: dispatch='sparse'."),
        (ValueError, {"dispatch": "capacity"}, "Received: capacity_factor=None."),
        # Devices
        (TypeError, {"devices": "CPU:0"}, "Received: devices='CPU:0'."),
        (TypeError, {"devices": []}, "Received: devices=[]."),
        (ValueError, {"devices": ["CPU:0", "TPU:7"]},
         "Received: 'TPU:7' in devices=['CPU:0', 'TPU:7']."),
        (ValueError, {"devices": ["CPU:2"]}, "['CPU:0', 'CPU:1'"),
        (ValueError, {"devices": ["somewhere"]}, "Received: 'somewhere' in"),
        (ValueError, {"devices": [0]}, "Received: 0 in devices=[0]."),
        (ValueError, {"devices": ["CPU:0"], "dispatch": "dense"},
         "Received: dispatch='dense', devices=['CPU:0']."),
    ],
)  # fmt: skip
def test_error_at_construction(error, arguments, message):
    if arguments and "num_experts" not in arguments:
        arguments = {"num_experts": 2, "hidden_units": 4, **arguments}
    elif arguments:
        arguments = {"hidden_units": 4, **arguments}
    with raises(error, message):
        kd.SparseMoE(**arguments)


SAME = layers.Dense(3, name="same")


@pytest.mark.parametrize(
    "error, arguments, message",
    [
        (TypeError, {"experts": layers.Dense(3)}, "must be a list of Keras layers"),
        (TypeError, {"experts": [layers.Dense(3), "dense"]},
         "Received: experts[1]='dense' of type"),
        (ValueError, {"experts": []}, "at least one layer. Received: []."),
        (ValueError, {"experts": [SAME, SAME]}, "Received: ['same', 'same']."),
        (ValueError, {"experts": two_layers(), "num_experts": 3},
         "Received: num_experts=3 with 2 experts."),
        (ValueError, {"experts": two_layers(), "hidden_units": 5},
         "Received: hidden_units=5 beside `experts`."),
        (ValueError, {"experts": two_layers(), "activation": "relu"},
         "Received: activation='relu' beside `experts`."),
        (ValueError, {"experts": two_layers(), "gated": True},
         "Received: gated=True beside `experts`."),
        (ValueError, {"experts": two_layers(), "use_bias": False},
         "Received: use_bias=False beside `experts`."),
        (ValueError, {"experts": two_layers(), "kernel_regularizer": "l2"},
         "Received: kernel_regularizer='l2' beside `experts`."),
    ],
)  # fmt: skip
def test_error_of_experts(error, arguments, message):
    with raises(error, message):
        kd.SparseMoE(**arguments)


def test_what_looks_odd_and_is_right():
    kd.SparseMoE(2, 3, top_k=2, renormalize=True)
    kd.SparseMoE(2, 3, capacity_factor=1)
    kd.SparseMoE(2, 3, router="expert_choice", top_k=0.5, capacity_factor=3.0)
    kd.SparseMoE(np.int64(2), np.int32(3), top_k=np.int64(2))
    kd.SparseMoE(2, 3, balance_loss=("kl", "switch"), balance_weight=(1, 2))
    kd.SparseMoE(2, 3, balance_loss="load")
    kd.SparseMoE(2, 3, balance_loss="load", router=TopKRouter(2))
    for device in ("CPU:0", "cpu:1", "/CPU:0", "CPU", "/job:localhost/device:CPU:1"):
        kd.SparseMoE(2, 3, devices=[device])
    assert kd.SparseMoE(1, 3).num_experts == 1


# Build


@pytest.mark.parametrize(
    "arguments, shape, message",
    [
        ({}, (4,), "Received: inputs of shape (4,)."),
        ({}, (None, 3, None), "Received: inputs of shape (None, 3, None)."),
        ({"router": "expert_choice"}, (None, 4),
         "Received: inputs of shape (None, 4), route='token'."),
        ({"router": "expert_choice", "route": "input"}, (None, 3, 4),
         "Received: inputs of shape (None, 3, 4), route='input'."),
        ({}, [(None, 4), (None, 4)], "`inputs` must be one tensor. Received"),
        ({}, {"a": (None, 4)}, "`inputs` must be one tensor. Received"),
    ],
)  # fmt: skip
def test_error_at_build(arguments, shape, message):
    layer = kd.SparseMoE(2, 3, **arguments)
    with raises(ValueError, message):
        layer.build(shape)


def test_inputs_of_rank_one():
    with raises(ValueError, "Received: inputs of shape (3,)."):
        kd.SparseMoE(2, 3)(np.ones(3))


def test_experts_that_differ_in_shape():
    experts = [layers.Dense(3, name="one"), layers.Dense(4, name="two")]
    message = (
        "Received: 'one' (Dense), which gives (None, 3), and 'two' (Dense), which "
        "gives (None, 4), for rows of shape (None, 5)."
    )
    with raises(ValueError, message):
        kd.SparseMoE(experts=experts)(np.ones((2, 5)))


def test_experts_that_give_several_tensors():
    inputs = keras.Input((5,))
    two = keras.Model(inputs, [inputs, 2 * inputs], name="two")
    with raises(ValueError, "Received: 'two' (Functional), which gives several."):
        kd.SparseMoE(experts=[two])(np.ones((2, 5)))


def test_experts_that_give_no_vector_for_a_token():
    experts = [layers.RepeatVector(3), layers.RepeatVector(3)]
    with raises(ValueError, "Received: an output of shape (None, 3, 5)."):
        kd.SparseMoE(experts=experts)(np.ones((2, 5)))
    # With one choice for an input they may.
    answer = kd.SparseMoE(experts=[layers.RepeatVector(3)], route="input")(
        np.ones((2, 5))
    )
    assert answer.shape == (2, 3, 5)


def test_devices_in_the_scope_of_a_strategy():
    layer = kd.SparseMoE(2, 3, devices=["CPU:0", "CPU:1"])
    with two_replicas().scope():
        with raises(ValueError, "devices=['CPU:0', 'CPU:1'] in the scope"):
            layer.build((None, 3))


# Call


@pytest.mark.parametrize("shape", [(2,), (2, 4), (3, 3), (2, 3, 1)])
def test_mask_of_another_shape(shape):
    layer = kd.SparseMoE(2, 3)
    message = (
        "`mask` must have one entry a token, shape (2, 3). Received: a mask of shape "
        f"{shape} for inputs of shape (2, 3, 4)."
    )
    with raises(ValueError, message):
        layer(np.ones((2, 3, 4)), mask=np.ones(shape, bool))


def test_mask_of_another_dtype():
    layer = kd.SparseMoE(2, 3)
    with raises(TypeError, "`mask` must be bool. Received: a mask of dtype int32."):
        layer(np.ones((2, 3, 4)), mask=np.ones((2, 3), "int32"))


# Configuration


def test_config_gives_back_what_was_given():
    given = {
        "num_experts": 4,
        "hidden_units": 5,
        "top_k": 2,
        "noise_stddev": 0.3,
        "capacity_factor": 1.1,
        "inference_capacity_factor": 1.3,
        "batch_prioritized": True,
        "balance_loss": ["load", "switch"],
        "balance_weight": [0.1, 0.3],
        "z_weight": 0.001,
        "devices": ["CPU:0", "CPU:1"],
        "gated": True,
        "use_bias": False,
        "dispatch": "ragged",
        "seed": 7,
        "renormalize": True,
        "activation": "relu",
    }
    config = kd.SparseMoE(**given).get_config()
    assert {name: config[name] for name in given} == given
    again = kd.SparseMoE.from_config(config)
    assert again.get_config() == config


def test_config_of_objects():
    layer = kd.SparseMoE(
        experts=two_layers(), router=ExpertChoiceRouter(2, 1.3, noise_stddev=0.1)
    )
    config = layer.get_config()
    again = kd.SparseMoE.from_config(config)
    assert again.get_config() == config
    assert again.router is not layer.router and again.router.top_k == 1.3
    assert [expert.name for expert in again.experts] == ["one", "two"]


# Causal models


def causal_attention(x):
    return layers.MultiHeadAttention(1, 2)(x, x, use_causal_mask=True)


def nested(x):
    inputs = keras.Input(x.shape[1:])
    return keras.Model(inputs, causal_attention(inputs))(x)


def early(x):
    x = layers.Conv1D(4, 2, padding="causal")(x)
    return layers.LayerNormalization()(layers.Dense(4)(x) + x)


@pytest.mark.parametrize(
    "causal, name",
    [
        (causal_attention, "MultiHeadAttention"),
        (early, "Conv1D"),
        (nested, "MultiHeadAttention"),
        (keras.Sequential([layers.Conv1D(4, 2, padding="causal")]), "Conv1D"),
        (lambda x: causal_attention(x) + x, "MultiHeadAttention"),
    ],
)
@pytest.mark.parametrize("router", ["expert_choice", "object"])
def test_experts_that_choose_behind_something_causal(causal, name, router):
    inputs = keras.Input((6, 4))
    router = ExpertChoiceRouter(2) if router == "object" else router
    layer = kd.SparseMoE(2, 3, router=router, name="moe")
    with pytest.warns(UserWarning, match=rf"'moe' lets experts choose.*\({name}\)"):
        layer(causal(inputs))
    # Tokens that choose may.
    kd.SparseMoE(2, 3)(causal(inputs))


def test_one_choice_for_a_whole_input_behind_something_causal():
    inputs = keras.Input((6, 4))
    message = "'moe' makes one choice from the mean of all.*Use `route='token'`"
    with pytest.warns(UserWarning, match=message):
        kd.SparseMoE(2, 3, route="input", name="moe")(causal_attention(inputs))
    # Of one vector there is nothing to come.
    pooled = layers.GlobalAveragePooling1D()(causal_attention(inputs))
    kd.SparseMoE(2, 3, route="input")(pooled)
    kd.SparseMoE(2, 3, route="input")(inputs)


def test_experts_that_choose_behind_nothing_causal():
    inputs = keras.Input((6, 4))
    x = layers.Conv1D(4, 3, padding="same")(inputs)
    x = layers.MultiHeadAttention(1, 2)(x, x) + x
    x = layers.MultiHeadAttention(1, 2)(x, x, use_causal_mask=False)
    kd.SparseMoE(2, 3, router="expert_choice")(x)
    # What comes afterwards is no concern of it.
    causal_attention(kd.SparseMoE(2, 3, router="expert_choice")(inputs))
    assert tf.is_tensor(kd.SparseMoE(2, 3, router="expert_choice")(normal(2, 6, 4)))
