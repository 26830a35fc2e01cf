"""The whole layer, by hand and against the reference in NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_dynamic as kd
from keras_dynamic._compat import get_mask
from keras_dynamic.layers.routers import Router, Routing
from tests.layers.moe_reference import (
    close,
    mixture_of,
    networks,
    router_kernel,
    scattered,
    some_mask,
)
from tests.ops.gradients import normal


def moe(number=4, hidden=5, router="top_k", **arguments):
    if router is Certain:
        return kd.SparseMoE(number, hidden, router=Certain(number), **arguments)
    arguments = {"noise_stddev": 0.0, **arguments}
    return kd.SparseMoE(number, hidden, router=router, **arguments)


@keras.saving.register_keras_serializable(package="tests")
class Times(keras.layers.Layer):
    """y = factor x."""

    def __init__(self, factor, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, inputs):
        return self.factor * inputs

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


@keras.saving.register_keras_serializable(package="tests")
class Certain(Router):
    """Experts with more than the share 1 / E, two at most; nobody for the rest."""

    def call(self, inputs, mask=None, training=False):
        logits = self.logits(inputs)
        weights, experts = tf.math.top_k(tf.nn.softmax(logits), 2)
        experts = tf.where(weights > 1 / self.num_experts, experts, -1)
        return Routing(weights, logits, experts)


def certain(p):
    best = np.argsort(-p)[:2]
    return [(expert, p[expert]) for expert in best if p[expert] > 1 / len(p)]


@keras.saving.register_keras_serializable(package="tests")
class Places(Router):
    """Expert e takes token e of every sample, where there is one."""

    def call(self, inputs, mask=None, training=False):
        logits = self.logits(inputs)
        places = tf.range(self.num_experts)
        places = tf.where(places < tf.shape(logits)[1], places, -1)
        tokens = tf.tile(places[None, :, None], [tf.shape(logits)[0], 1, 1])
        return Routing(2.0 * tf.ones_like(tokens, tf.float32), logits, tokens=tokens)


# By hand


def by_hand(**arguments):
    """Two experts, 10 x and 100 x; the logits are the inputs."""
    layer = kd.SparseMoE(
        experts=[Times(10.0), Times(100.0)],
        noise_stddev=arguments.pop("noise_stddev", 0.0),
        **arguments,
    )
    layer.build((None, 2))
    router_kernel(layer).assign(np.eye(2))
    return layer


LOG_3 = float(np.log(3))


def test_one_expert_by_hand():
    # p = softmax(log 3, 0) = (3/4, 1/4): 3/4 * 10 x.
    answer = by_hand()(np.array([[LOG_3, 0.0], [0.0, LOG_3]]))
    # p = (1/4, 3/4): 3/4 * 100 x.
    close(answer, [[7.5 * LOG_3, 0], [0, 75 * LOG_3]])


def test_two_experts_by_hand():
    x = np.array([[LOG_3, 0.0]])
    # 3/4 * 10 x + 1/4 * 100 x = 32.5 x, whichever way all experts are chosen.
    for arguments in ({"router": "dense"}, {"top_k": 2}):
        close(by_hand(**arguments)(x), 32.5 * x)
    close(by_hand(top_k=2, renormalize=True)(x), 32.5 * x)


def test_capacity_by_hand():
    # Tokens 0, 1 and 3 want expert 0, with p = 0.6, 0.7, 0.8; token 2 wants expert 1.
    # At a factor of 1 each takes 1 * 1 * 4 / 2 = 2 tokens: token 3 is dropped.
    p = np.array([0.6, 0.7, 0.1, 0.8])
    x = np.log(np.stack([p, 1 - p], axis=1))
    factors = np.array([6, 7, 90, 8])[:, None]  # p times 10, or 0.9 times 100
    all_in = factors * x
    layer = by_hand(capacity_factor=1.0)
    close(layer(x, training=True), all_in * [[1], [1], [1], [0]])
    close(layer(x), all_in)  # nothing is dropped at inference ...
    layer = by_hand(inference_capacity_factor=1.0)
    close(layer(x), all_in * [[1], [1], [1], [0]])  # ... unless asked for
    close(layer(x, training=True), all_in)
    # The largest p first: token 0 is dropped.
    layer = by_hand(capacity_factor=1.0, batch_prioritized=True)
    close(layer(x, training=True), all_in * [[0], [1], [1], [1]])
    # Padding takes no room, and is not counted: 1 * 3 / 2, rounded up, is 2 again.
    mask = np.array([False, True, True, True])
    layer = by_hand(capacity_factor=1.0)
    close(layer(x, mask=mask, training=True), all_in * [[0], [1], [1], [1]])
    # A factor of 0.01 is still room for one: tokens 0 and 2.
    layer = by_hand(capacity_factor=0.01)
    close(layer(x, training=True), all_in * [[1], [0], [1], [0]])


def test_second_choices_come_last_by_hand():
    # Everybody wants both; first choices are 0 0 1. Room for 0.5 * 2 * 3 / 2, 2 each:
    # expert 0 takes tokens 0 and 1, expert 1 token 2 and then token 0.
    p = np.array([0.6, 0.7, 0.2])
    x = np.log(np.stack([p, 1 - p], axis=1))
    layer = by_hand(top_k=2, capacity_factor=0.5)
    factors = np.array([6 + 40, 7, 80])[:, None]
    close(layer(x, training=True), factors * x)
    # With priority (0.8, 0.7, 0.6) expert 1 takes token 2, and then token 1.
    layer = by_hand(top_k=2, capacity_factor=0.5, batch_prioritized=True)
    factors = np.array([6, 7 + 30, 80])[:, None]
    close(layer(x, training=True), factors * x)


# Against NumPy

CASES = {
    "dense": {"router": "dense"},
    "top_1": {},
    "top_2": {"top_k": 2, "activation": "relu", "use_bias": False},
    "renormalized": {"top_k": 2, "renormalize": True, "activation": "tanh"},
    "top_all": {"top_k": 4},
    "capacity": {
        "top_k": 2,
        "capacity_factor": 0.7,
        "inference_capacity_factor": 0.5,
    },
    "prioritized": {
        "top_k": 3,
        "capacity_factor": 0.6,
        "inference_capacity_factor": 0.4,
        "batch_prioritized": True,
    },
    "gated": {"top_k": 2, "gated": True, "activation": "silu"},
    "certain": {"router": Certain},
    "certain_capacity": {"router": Certain, "capacity_factor": 0.6},
    "expert_choice": {"router": "expert_choice", "top_k": 1.5},
    "expert_choice_capacity": {"router": "expert_choice", "capacity_factor": 1.3},
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "case, shape",
    [
        (case, shape)
        for case, arguments in CASES.items()
        for shape in [(9, 3), (3, 5, 3), (2, 3, 2, 3)]
        # Where there is one token a sample, experts have nothing to choose.
        if len(shape) > 2 or arguments.get("router") != "expert_choice"
    ],
)
def test_every_token_against_numpy(case, shape, masked):
    arguments = CASES[case]
    others = {"router": certain} if arguments.get("router") is Certain else {}
    x = normal(*shape)
    mask = some_mask(shape[:-1]) if masked else None
    layer = scattered(moe(**arguments), shape)
    for training in (False, True):
        answer = layer(x, mask=mask, training=training)
        expected = mixture_of(layer, x, mask, training, **others)
        close(answer, expected.output.reshape(shape))
        if masked:
            assert not answer.numpy()[~mask].any()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "arguments", [{}, {"router": "dense"}, {"top_k": 2, "capacity_factor": 0.5}]
)
def test_one_choice_for_an_input_against_numpy(arguments, masked):
    x = normal(6, 3, 2, 4)
    mask = some_mask(x.shape[:-1]) if masked else None
    if masked:
        mask[1] = False  # nothing but padding
    layer = scattered(moe(route="input", **arguments), x.shape)
    for training in (False, True):
        answer = layer(x, mask=mask, training=training)
        expected = mixture_of(layer, x, mask, training)
        close(answer, expected.output.reshape(x.shape))
    samples = {entry[0] for entry in expected.wanted}
    assert samples == set(range(6)) - ({1} if masked else set())


def test_experts_that_take_places():
    x = normal(2, 3, 4)
    layer = scattered(kd.SparseMoE(4, 5, router=Places(4), balance_loss="kl"), x.shape)
    experts = networks(layer)
    expected = [
        [2 * experts[token](x[sample, token]) for token in range(3)]
        for sample in range(2)
    ]
    for training in (False, True):
        close(layer(x, training=training), expected)
    mask = np.array([[True, False, True], [False, True, True]])
    close(layer(x, mask=mask), np.where(mask[..., None], expected, 0))


# Neutral settings


def test_one_expert_is_a_dense_network():
    x = normal(3, 5, 4)
    layer = scattered(moe(1, 6), x.shape)
    network = keras.Sequential([keras.layers.Dense(6, "gelu"), keras.layers.Dense(4)])
    network.build(x.shape)
    (expert,) = layer.experts
    network.set_weights(
        [
            expert.first_kernel,
            expert.first_bias,
            expert.second_kernel,
            expert.second_bias,
        ]
    )
    for training in (False, True):
        close(layer(x, training=training), network(x))


def test_equal_experts_are_a_dense_network():
    x = normal(3, 5, 4)
    for arguments in ({"top_k": 2, "renormalize": True}, {"router": "dense"}):
        layer = scattered(moe(3, 6, **arguments), x.shape)
        for expert in layer.experts[1:]:
            expert.set_weights(layer.experts[0].get_weights())
        close(layer(x), networks(layer)[0](x))


def test_all_of_top_k_are_dense():
    x = normal(3, 5, 4)
    dense = scattered(moe(router="dense"), x.shape)
    for road in ("auto", "ragged", "dense"):
        every = scattered(moe(top_k=4, dispatch=road), x.shape)
        close(every(x), dense(x))


# Edges


@pytest.mark.parametrize("router", ["top_k", "dense", "expert_choice"])
@pytest.mark.parametrize("road", ["ragged", "dense", "capacity"])
def test_no_sample_and_one_token(router, road):
    layer = moe(router=router, dispatch=road, capacity_factor=1.0)
    x = normal(1, 1, 3)
    scattered(layer, (None, None, 3))
    for training in (False, True):
        with tf.GradientTape() as tape:
            answer = layer(x[:0], training=training)
        assert answer.shape == (0, 1, 3)
        for gradient in tape.gradient(answer, layer.trainable_variables):
            assert gradient is None or not tf.convert_to_tensor(gradient).numpy().any()
        assert all(np.isfinite(loss) for loss in layer.losses)
        close(layer(x, training=training), mixture_of(layer, x, None, training).output)


@pytest.mark.parametrize("road", ["ragged", "dense", "capacity"])
def test_all_tokens_to_one_expert(road):
    x = np.abs(normal(2, 4, 3)) + 0.1
    layer = scattered(moe(dispatch=road, capacity_factor=4.0), x.shape)
    router_kernel(layer).assign([[0, 0, 50, 0]] * 3)
    with tf.GradientTape() as tape:
        answer = layer(x, training=True)
    close(answer, networks(layer)[2](x))
    weights = [w for expert in layer.experts for w in expert.trainable_variables]
    gradients = [np.any(gradient) for gradient in tape.gradient(answer, weights)]
    assert gradients == [False] * 8 + [True] * 4 + [False] * 4


@pytest.mark.parametrize("road", ["ragged", "dense", "capacity"])
@pytest.mark.parametrize("router", ["top_k", "dense", "expert_choice", Certain])
def test_padding_may_be_a_nan(router, road):
    """It comes into no answer, no loss and no gradient."""
    x = normal(3, 5, 4)
    mask = some_mask(x.shape[:-1])
    dirty = np.where(mask[..., None], x, np.nan)
    layer = moe(router=router, dispatch=road, capacity_factor=1.0, z_weight=0.1)
    scattered(layer, x.shape)
    found = []
    for inputs in (x, dirty):
        inputs = tf.constant(inputs)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            answer = layer(inputs, mask=mask, training=True)
            loss = tf.reduce_sum(answer**2) + tf.add_n(layer.losses)
        gradients = tape.gradient(loss, [inputs, *layer.trainable_variables])
        found.append([answer, loss, *gradients])
    for expected, actual in zip(*found, strict=True):
        close(actual, expected)


def test_masks_come_with_the_inputs_and_are_passed_on():
    tokens = np.array([[3, 1, 0], [2, 0, 0]])
    embedding = keras.layers.Embedding(4, 3, mask_zero=True)
    embedded = embedding(tokens)
    layer = scattered(moe(), (None, None, 3))
    answer = layer(embedded)
    close(answer, mixture_of(layer, embedded.numpy(), tokens > 0).output)
    assert get_mask(answer).numpy().tolist() == (tokens > 0).tolist()
    whole = scattered(moe(route="input"), (None, 3, 3))
    assert get_mask(whole(embedding(tokens))).numpy().tolist() == (tokens > 0).tolist()


def test_batch_mates_do_not_matter():
    """A sample's answer, whoever else is there, and whatever they are."""
    x = normal(6, 5, 4)
    mask = some_mask(x.shape[:-1])
    for arguments in CASES.values():
        if "inference_capacity_factor" in arguments:
            continue
        layer = scattered(moe(**arguments), x.shape)
        together = layer(x, mask=mask).numpy()
        crowded = np.concatenate([1e3 * normal(20, 5, 4, seed=1), x])
        crowd = np.concatenate([np.ones((20, 5), bool), mask])
        close(layer(crowded, mask=crowd)[20:], together)
        for index in range(6):
            alone = slice(index, index + 1)
            close(layer(x[alone], mask=mask[alone]), together[alone])
