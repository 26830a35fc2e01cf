"""Losses, noise, and logs."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

import keras_dynamic as kd
from keras_dynamic.layers.routers import Router, Routing, TopKRouter
from tests.layers.moe_reference import (
    close,
    in_model,
    metrics_of,
    mixture_of,
    router_kernel,
    scattered,
    some_mask,
)
from tests.ops.gradients import normal

LOSSES = ["kl", "importance", "switch"]


def moe(number=4, hidden=5, **arguments):
    return kd.SparseMoE(
        number, hidden, **{"noise_stddev": 0.0, "name": "moe", **arguments}
    )


# Losses


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "names, weights",
    [
        ("kl", 0.01),
        ("importance", 0.3),
        ("switch", 2.0),
        (["kl", "importance", "switch"], 0.3),
        (["switch", "kl"], [0.3, 0.7]),
        (None, 0.01),
        ([], []),
    ],
)
def test_losses_against_numpy(names, weights, masked):
    x = normal(3, 6, 4)
    mask = some_mask((3, 6)) if masked else None
    layer = moe(top_k=2, balance_loss=names, balance_weight=weights, z_weight=0.2)
    scattered(layer, x.shape)
    layer(x, mask=mask)
    assert not layer.losses  # in training only
    layer(x, mask=mask, training=True)
    of_batch = mixture_of(layer, x, mask).losses()
    names = [names] if isinstance(names, str) else names or []
    weights = weights if isinstance(weights, list) else [weights] * len(names)
    expected = [of_batch[n] * w for n, w in zip(names, weights, strict=True)]
    close(layer.losses, [*expected, 0.2 * of_batch["z"]])
    assert all(loss.dtype == "float32" and loss.shape == () for loss in layer.losses)


@pytest.mark.parametrize("router", ["dense", "expert_choice"])
def test_losses_of_other_routers_against_numpy(router):
    x = normal(3, 6, 4)
    layer = moe(router=router, balance_loss=["importance", "kl"], balance_weight=0.3)
    scattered(layer, x.shape)
    layer(x, training=True)
    of_batch = mixture_of(layer, x).losses()
    close(layer.losses, [0.3 * of_batch["importance"], 0.3 * of_batch["kl"]])


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_the_noise_chooses_and_the_load_sees_it(masked, top_k):
    """All of one call with noise, which a router with the same seed draws again."""
    x = normal(3, 6, 4)
    mask = some_mask((3, 6)) if masked else None
    layer = moe(
        noise_stddev=0.7,
        seed=3,
        top_k=top_k,
        balance_weight=0.5,
        balance_loss=["load", "kl", "switch"],
    )
    scattered(layer, x.shape)
    answer = layer(x, mask=mask, training=True)
    losses = [float(loss) for loss in layer.losses]

    logits = x @ router_kernel(layer).numpy()
    twin = TopKRouter(4, top_k, 0.7, seed=3)
    noise = twin.noisy(tf.constant(logits), training=True).numpy() - logits
    reference = mixture_of(layer, x, mask, True, noise=noise)
    close(answer, reference.output)
    present = np.ones((3, 6), bool) if mask is None else mask
    weakest = np.sort(logits + noise, axis=-1)[..., -top_k, None]
    load = stats.norm.sf(weakest, loc=logits, scale=0.7)[present].mean(axis=0)
    of_batch = reference.losses()  # kl of p without noise, switch of noisy choices
    close(losses[0], 0.5 * (load.std() / load.mean()) ** 2, rtol=1e-3)
    close(losses[1:], [0.5 * of_batch["kl"], 0.5 * of_batch["switch"]])
    # New noise, other choices, and none of it at inference.
    assert (layer(x, mask=mask, training=True).numpy() != answer.numpy()).any()
    close(layer(x, mask=mask), mixture_of(layer, x, mask).output)


def test_losses_of_a_choice_for_an_input():
    x, mask = normal(5, 6, 4), some_mask((5, 6))
    mask[2] = False
    layer = moe(route="input", balance_loss=LOSSES, balance_weight=1, z_weight=1)
    scattered(layer, x.shape)
    layer(x, mask=mask, training=True)
    of_batch = mixture_of(layer, x, mask).losses()
    close(layer.losses, [of_batch[name] for name in [*LOSSES, "z"]])


def test_losses_of_no_token_are_zero():
    layer = moe(balance_loss=LOSSES, z_weight=0.2)
    layer(normal(2, 3, 4), mask=np.zeros((2, 3), bool), training=True)
    assert [float(loss) for loss in layer.losses] == [0, 0, 0, 0]


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_losses_in_half_precision_are_those_of_float32(policy):
    x = tf.cast(normal(64, 16, 4), policy.removeprefix("mixed_"))
    layer = moe(balance_loss=LOSSES, balance_weight=1, z_weight=1, dtype=policy)
    scattered(layer, x.shape)
    layer(x, training=True)
    of_batch = mixture_of(layer, tf.cast(x, "float64").numpy()).losses()
    close(layer.losses, [of_batch[name] for name in [*LOSSES, "z"]], rtol=1e-3)
    assert all(loss.dtype == "float32" for loss in layer.losses)


def test_a_router_that_says_too_little_for_a_loss():
    class Taking(Router):
        def call(self, inputs, mask=None, training=False):
            logits = self.logits(inputs)
            tokens = tf.zeros([tf.shape(logits)[0], self.num_experts, 1], tf.int32)
            return Routing(tf.ones_like(tokens, tf.float32), logits, tokens=tokens)

    for name, needed in (("switch", "experts"), ("load", "win_probabilities")):
        layer = kd.SparseMoE(2, 3, router=Taking(2), balance_loss=name)
        with pytest.raises(ValueError, match=f"'{name}'` needs .*`{needed}`"):
            layer(normal(2, 3, 4), training=True)


@pytest.mark.parametrize("name", ["kl", "importance", "switch", "load"])
def test_losses_even_the_load_out(name):
    """From a router that sends nearly everything to one expert."""
    x = np.abs(normal(64, 4)) + 0.1
    noise = 0.25 if name == "load" else 0.0
    layer = moe(balance_loss=name, balance_weight=1.0, noise_stddev=noise)
    layer.build(x.shape)
    router_kernel(layer).assign(normal(4, 4) * 0.3 + [[0.5, 0, 0, 0]])
    optimizer = keras.optimizers.Adam(0.02)
    before = metrics_of([mixture_of(layer, x[:, None])], "moe")
    for _ in range(40):
        with tf.GradientTape() as tape:
            layer(x, training=True)
            (loss,) = layer.losses
        kernel = router_kernel(layer)
        optimizer.apply([tape.gradient(loss, kernel.value)], [kernel])
    after = metrics_of([mixture_of(layer, x[:, None])], "moe")
    assert before["moe_max_load"] > 2.5 and after["moe_max_load"] < 2


# Logs


CAPACITY = {"top_k": 2, "capacity_factor": 0.7, "inference_capacity_factor": 0.5}


@pytest.mark.parametrize(
    "arguments, masked",
    [
        (CAPACITY, False),
        (CAPACITY, True),
        ({"router": "expert_choice", "top_k": 1.5}, True),
        ({"route": "input"}, True),
        ({"router": "dense"}, False),
    ],
)
def test_logs_against_numpy(arguments, masked):
    x, y = normal(7, 5, 4), normal(7, 5, 4, seed=1)
    mask = some_mask((7, 5))
    layer = moe(balance_loss=None, **arguments)
    model = in_model(layer, x, masked)
    feed = [x, mask.astype("int32")] if masked else x
    batches = [slice(0, 4), slice(4, 7)]

    def expected(training):
        return metrics_of(
            [
                mixture_of(layer, x[b], mask[b] if masked else None, training)
                for b in batches
            ],
            "moe",
        )

    logs = model.fit(
        feed,
        y,
        4,
        epochs=2,
        shuffle=False,
        verbose=0,
        validation_data=(feed, y),
        validation_batch_size=4,
    ).history
    # The optimizer changes nothing, so that every epoch is the same.
    for name, value in expected(training=True).items():
        close(logs[name], [value] * 2)
    for name, value in expected(training=False).items():
        close(logs[f"val_{name}"], [value] * 2)
    metrics = [variable for each in model.metrics for variable in each.variables]
    before = [variable.numpy() for variable in metrics]
    close(
        model.predict(feed, verbose=0),
        layer(x, mask=mask if masked else None),
    )
    for variable, value in zip(metrics, before, strict=True):
        np.testing.assert_array_equal(variable, value)
    logs = model.evaluate(feed, y, 4, verbose=0, return_dict=True)
    assert {name: logs[name] for name in expected(False)} == pytest.approx(
        expected(False), rel=1e-4, abs=1e-6
    )
    assert set(logs) == {"loss", *expected(False)}


def test_dead_experts_by_hand():
    # Tokens go to experts 0, 0, 2: loads 2/3, 0, 1/3 and 0; the largest over the mean
    # is 2 / (3/4). Experts 1 and 3 are dead.
    x = 9 * np.eye(4, dtype="float32")[[0, 0, 2]]
    layer = moe(balance_loss=None)
    model = in_model(layer, x)
    router_kernel(layer).assign(np.eye(4))
    logs = model.evaluate(x, x, verbose=0, return_dict=True)
    loads = [logs[f"moe_load_{expert}"] for expert in range(4)]
    close(loads, [2 / 3, 0, 1 / 3, 0])
    assert logs["moe_dead_experts"] == 2 and logs["moe_dropped"] == 0
    assert logs["moe_max_load"] == pytest.approx(8 / 3)
    # A second batch for expert 1 alone: dead is who got nothing in all of them.
    twice = np.concatenate([x, x[:3] * 0 + 9 * np.eye(4, dtype="float32")[1]])
    logs = model.evaluate(twice, twice, 3, verbose=0, return_dict=True)
    assert logs["moe_dead_experts"] == 1


def test_logs_where_nothing_counts():
    x, mask = normal(4, 3, 4), np.zeros((4, 3), "int32")
    model = in_model(moe(), x, masked=True)
    logs = model.evaluate([x, mask], x, verbose=0, return_dict=True)
    assert np.isfinite(list(logs.values())).all()
    assert logs["moe_dead_experts"] == 4 and logs["moe_max_load"] == 0


def test_logs_of_a_layer_that_is_called_twice():
    x = normal(6, 4)
    inputs = keras.Input((4,))
    layer = moe(balance_loss=None)
    model = keras.Model(inputs, layer(inputs) + layer(2 * inputs))
    scattered(layer, x.shape)
    model.compile("sgd", "mse")
    both = [mixture_of(layer, part[:, None]) for part in (x, 2 * x)]
    logs = model.evaluate(x, x, verbose=0, return_dict=True)
    for name, value in metrics_of(both, "moe").items():
        assert logs[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_logs_of_eager_steps():
    x = normal(6, 4)
    layer = moe()
    model = in_model(layer, x, run_eagerly=True)
    logs = model.fit(x, x, verbose=0).history
    evaluated = model.evaluate(x, x, verbose=0, return_dict=True)
    for name, value in metrics_of([mixture_of(layer, x[:, None])], "moe").items():
        close([logs[name][0], evaluated[name]], [value] * 2)


# Training


def test_the_same_seed_gives_the_same_run():
    x, y = normal(8, 5, 4), normal(8, 5, 4, seed=1)

    def run(seed):
        keras.utils.set_random_seed(5)
        layer = moe(noise_stddev=0.5, top_k=2, seed=seed)
        model = in_model(layer, x, optimizer=keras.optimizers.SGD(0.1))
        model.fit(x, y, 4, epochs=2, verbose=0)
        return [weight.tolist() for weight in model.get_weights()]

    first = run(seed=3)
    assert run(seed=3) == first
    assert run(seed=4) != first


def test_a_step_trains_router_and_chosen_experts_only():
    x = 9 * np.eye(4, dtype="float32")[[0, 0, 2]] + 0.1 * normal(3, 4)
    layer = moe(balance_loss=None)
    model = in_model(layer, x, optimizer=keras.optimizers.SGD(0.1))
    router_kernel(layer).assign(np.eye(4))
    before = [expert.get_weights() for expert in layer.experts]
    kernel = router_kernel(layer).numpy()
    model.fit(x, normal(3, 4), verbose=0)
    assert (router_kernel(layer).numpy() != kernel).any()
    changed = [
        [bool((a != b).any()) for a, b in zip(old, new.get_weights(), strict=True)]
        for old, new in zip(before, layer.experts, strict=True)
    ]
    assert changed == [[True] * 4, [False] * 4, [True] * 4, [False] * 4]


def test_nothing_is_dropped_at_inference():
    x = normal(8, 5, 4)
    layer = moe(capacity_factor=0.3)
    model = in_model(layer, x)
    logs = model.fit(x, x, 8, verbose=0, validation_data=(x, x)).history
    assert logs["moe_dropped"][0] > 0.3 and logs["val_moe_dropped"] == [0]
    close(model.predict(x, verbose=0), mixture_of(layer, x).output)
