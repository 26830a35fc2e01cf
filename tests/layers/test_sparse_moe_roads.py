"""Ragged, capacity and dense: three roads, one answer and one gradient."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_dynamic as kd
from tests.layers.moe_reference import mixture_of, router_kernel, scattered
from tests.ops.gradients import normal

ROADS = ("ragged", "capacity", "dense")


@st.composite
def settings_of_layers(draw):
    """(arguments of a layer, shape of its inputs, mask)."""
    number = draw(st.integers(1, 4))
    router = draw(st.sampled_from(["top_k", "top_k", "dense", "expert_choice"]))
    factor = draw(st.sampled_from([0.3, 0.5, 0.9, 1.0, 1.3, 8.0]))
    arguments = {
        "num_experts": number,
        "hidden_units": draw(st.integers(1, 3)),
        "router": router,
        "capacity_factor": factor,
        "activation": draw(st.sampled_from(["gelu", "relu", "tanh"])),
        "gated": draw(st.booleans()),
        "use_bias": draw(st.booleans()),
        "balance_loss": draw(st.sampled_from(["kl", "importance", None])),
        "z_weight": 0.1,
    }
    if router == "top_k":
        arguments["top_k"] = top_k = draw(st.integers(1, number))
        arguments["renormalize"] = top_k > 1 and draw(st.booleans())
    if router == "expert_choice":
        arguments["capacity_factor"] = min(factor, number)
    else:
        arguments["batch_prioritized"] = draw(st.booleans())
        arguments["route"] = draw(st.sampled_from(["token", "token", "input"]))
    inner = draw(st.sampled_from([(5,), (1,), (2, 3)]))
    shape = (draw(st.integers(1, 4)), *inner, draw(st.integers(1, 3)))
    bits = st.lists(st.booleans(), min_size=24, max_size=24)
    mask = np.resize(draw(bits), shape[:-1]) if draw(st.booleans()) else None
    return arguments, shape, mask


def answers(layer, x, mask, training, upstream):
    """The answer, the loss, and the gradients of the inputs and all weights."""
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        answer = layer(x, mask=mask, training=training)
        loss = tf.reduce_sum(answer * upstream) + tf.add_n([0.0, *layer.losses])
    found = tape.gradient(
        loss, [x, *layer.trainable_variables], unconnected_gradients="zero"
    )
    return [answer, loss, *map(tf.convert_to_tensor, found)]


@settings(max_examples=15)
@given(settings_of_layers())
def test_all_roads_lead_to_the_same(drawn):
    arguments, shape, mask = drawn
    x, upstream = normal(*shape), normal(*shape, seed=1)
    found = []
    for road in ROADS:
        layer = kd.SparseMoE(dispatch=road, noise_stddev=0, **arguments)
        scattered(layer, shape)
        found.append(answers(layer, x, mask, True, upstream))
    expected = mixture_of(layer, x, mask, True).output.reshape(shape)
    for answer, *rest in found:
        np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-4)
        for one, other in zip(rest, found[0][1:], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def test_gradients_by_differences():
    """Of inputs and all weights, in training, with dropped tokens and losses."""
    shape = (3, 4, 2)
    x, upstream = normal(*shape), normal(*shape, seed=1)
    layer = kd.SparseMoE(
        3,
        4,
        top_k=2,
        noise_stddev=0,
        capacity_factor=0.8,
        activation="tanh",
        gated=True,
        balance_loss=["kl", "importance"],
        balance_weight=0.5,
        z_weight=0.3,
    )
    scattered(layer, shape)
    start = [weight.numpy() for weight in layer.trainable_variables]

    @tf.function(autograph=False)
    def loss_at(x, *weights):
        for weight, value in zip(layer.trainable_variables, weights, strict=True):
            weight.assign(value)
        answer = layer(x, training=True)
        # Summed in float64, or the differences would drown in rounding.
        products = tf.cast(answer, tf.float64) * upstream.astype("float64")
        losses = [tf.cast(loss, tf.float64) for loss in layer.losses]
        return tf.reduce_sum(products) + tf.add_n(losses)

    _, _, *gradients = answers(layer, x, None, True, upstream)
    point = [x, *start]
    step = 1e-2
    generator = np.random.default_rng(0)
    for index, gradient in enumerate(gradients):
        # The slope in a random direction is the product with the gradient. Near a
        # change of mind of the router it would not be: the logits here are far apart.
        direction = generator.normal(size=gradient.shape).astype("float32")
        direction /= np.linalg.norm(direction)
        values = []
        for sign in (1, -1):
            moved = list(point)
            moved[index] = point[index] + np.float32(sign * step) * direction
            values.append(float(loss_at(*moved)))
        slope = (values[0] - values[1]) / (2 * step)
        expected = float(np.sum(gradient.numpy() * direction))
        assert slope == pytest.approx(expected, rel=2e-2, abs=2e-3)


@pytest.mark.parametrize("road", ROADS)
def test_second_order_gradients(road):
    x = tf.constant(normal(2, 5, 3))
    found = []
    for each in (road, "dense"):
        layer = kd.SparseMoE(
            3,
            4,
            top_k=2,
            noise_stddev=0,
            capacity_factor=1.5,
            dispatch=each,
            activation="tanh",
        )
        scattered(layer, x.shape)
        with tf.GradientTape() as outer:
            with tf.GradientTape() as tape:
                tape.watch(x)
                answer = tf.reduce_sum(layer(x, training=True) ** 2)
            steepness = tf.reduce_sum(tape.gradient(answer, x) ** 2)
        found.append(outer.gradient(steepness, layer.trainable_variables))
    for one, other in zip(*found, strict=True):
        one, other = (0.0 if each is None else each for each in (one, other))
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision(road, policy):
    """Each road rounds for itself; routes and weights are those of float32."""
    x = tf.cast(normal(4, 5, 3), policy.removeprefix("mixed_"))
    layer = kd.SparseMoE(
        3,
        4,
        top_k=2,
        noise_stddev=0,
        capacity_factor=0.8,
        dispatch=road,
        dtype=policy,
    )
    scattered(layer, x.shape)
    upstream = tf.ones(x.shape, x.dtype)
    with tf.GradientTape() as tape:
        tape.watch(x)
        answer = layer(x, training=True)
        loss = tf.reduce_sum(answer * upstream)
    assert answer.dtype == x.dtype
    exact = mixture_of(layer, tf.cast(x, "float64").numpy(), training=True).output
    np.testing.assert_allclose(
        tf.cast(answer, "float64"), exact, rtol=0.1, atol=0.1 * np.abs(exact).max()
    )
    for gradient in tape.gradient(loss, [x, *layer.trainable_variables]):
        assert np.isfinite(tf.cast(gradient, "float32")).all()
    assert all(loss.dtype == "float32" for loss in layer.losses)


# XLA


def compiled(layer, **arguments):
    def run(x, upstream):
        with tf.GradientTape() as tape:
            tape.watch(x)
            answer = layer(x, **arguments)
            loss = tf.reduce_sum(answer * upstream) + tf.add_n([0.0, *layer.losses])
        return [answer, loss, *tape.gradient(loss, [x, *layer.trainable_variables])]

    return tf.function(run, jit_compile=True, autograph=False, reduce_retracing=True)


@pytest.mark.parametrize("prioritized", [False, True])
def test_capacity_under_xla_is_the_ragged_road(prioritized):
    x, upstream = normal(3, 5, 4), normal(3, 5, 4, seed=1)
    mask = np.random.default_rng(0).uniform(size=(3, 5)) > 0.3
    found = []
    for road in ("ragged", "auto"):
        layer = kd.SparseMoE(
            3,
            4,
            top_k=2,
            noise_stddev=0,
            capacity_factor=0.7,
            dispatch=road,
            batch_prioritized=prioritized,
            balance_loss=["kl", "switch"],
        )
        scattered(layer, x.shape)
        if road == "ragged":
            found.append(answers(layer, x, mask, True, upstream))
        else:  # no warning: it need not compute everything
            found.append(compiled(layer, mask=mask, training=True)(x, upstream))
    for expected, actual in zip(*found, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("number, top_k, times", [(4, 1, "4 times"), (4, 3, "1.33")])
def test_without_a_capacity_xla_computes_everything_and_says_so(number, top_k, times):
    x, upstream = normal(3, 5, 4), normal(3, 5, 4, seed=1)
    layer = kd.SparseMoE(number, 4, top_k=top_k, noise_stddev=0, name="moe")
    scattered(layer, x.shape)
    run = compiled(layer, training=True)
    with pytest.warns(UserWarning, match=f"'moe' computes every expert.*{times}"):
        actual = run(x, upstream)
    for one, other in zip(actual, answers(layer, x, None, True, upstream), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def test_all_experts_under_xla_need_no_warning():
    x = normal(3, 5, 4)
    layer = scattered(kd.SparseMoE(3, 4, router="dense"), x.shape)
    run = tf.function(layer, jit_compile=True, autograph=False)
    np.testing.assert_allclose(run(x), layer(x), rtol=1e-4, atol=1e-5)


def test_expert_choice_under_xla_says_so():
    x = normal(3, 5, 4)
    layer = scattered(kd.SparseMoE(3, 4, router="expert_choice", name="moe"), x.shape)
    run = tf.function(layer, jit_compile=True, autograph=False)
    with pytest.warns(UserWarning, match="'moe' computes every expert for every token"):
        actual = run(x)
    np.testing.assert_allclose(actual, layer(x), rtol=1e-4, atol=1e-5)


def test_layers_as_experts_under_xla():
    x = normal(3, 5, 4)
    experts = [keras.layers.Dense(3), keras.Sequential([keras.layers.Dense(3)])]
    layer = kd.SparseMoE(experts=experts, noise_stddev=0, inference_capacity_factor=2.0)
    scattered(layer, x.shape)
    run = tf.function(layer, jit_compile=True, autograph=False)
    np.testing.assert_allclose(run(x), layer(x), rtol=1e-4, atol=1e-5)


def test_fit_compiled_by_xla():
    """The same weights as without, several sizes of batches included."""
    x, y = normal(10, 5, 4), normal(10, 5, 4, seed=1)
    found = []
    for jit in (False, True):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((5, 4))
        moe = kd.SparseMoE(3, 4, noise_stddev=0, capacity_factor=1.0, name="moe")
        model = keras.Model(inputs, keras.layers.Add()([inputs, moe(inputs)]))
        model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=jit)
        logs = model.fit(x, y, 4, epochs=2, shuffle=False, verbose=0).history
        found.append((model.get_weights(), logs))
    (weights, logs), (compiled_weights, compiled_logs) = found
    for one, other in zip(weights, compiled_weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
    for name, values in logs.items():
        np.testing.assert_allclose(values, compiled_logs[name], rtol=1e-3, atol=1e-5)


# Devices


def test_experts_on_two_devices():
    x, upstream = normal(3, 5, 4), normal(3, 5, 4, seed=1)
    found = []
    for devices in (None, ["CPU:0", "CPU:1"]):
        layer = kd.SparseMoE(3, 4, top_k=2, noise_stddev=0, devices=devices)
        scattered(layer, x.shape)
        found.append(answers(layer, x, None, True, upstream))
    places = [expert.first_kernel.value.device[-5:] for expert in layer.experts]
    assert places == ["CPU:0", "CPU:1", "CPU:0"]
    for expected, actual in zip(*found, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError, match=r"jit_compile=False.*Received: devices=\["):
        tf.function(layer, jit_compile=True, autograph=False)(x)


def test_layers_on_two_devices():
    x = normal(3, 5, 4)
    experts = [keras.layers.Dense(4, "tanh") for _ in range(2)]
    layer = kd.SparseMoE(experts=experts, noise_stddev=0, devices=["CPU:1", "CPU:0"])
    scattered(layer, x.shape)
    assert [each.kernel.value.device[-5:] for each in experts] == ["CPU:1", "CPU:0"]
    answer = layer(x)
    kernel = router_kernel(layer).numpy()
    chosen = (x @ kernel).argmax(axis=-1)
    p = keras.ops.softmax(x @ kernel).numpy().max(axis=-1)
    both = np.stack([expert(x) for expert in experts])
    expected = np.where(chosen[..., None] == 0, both[0], both[1]) * p[..., None]
    np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-5)
