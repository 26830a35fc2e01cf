"""Experts on several devices: the two logical CPUs that conftest.py makes."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_dynamic as kd
from tests.layers.checks import two_replicas

TWO = ["CPU:0", "CPU:1"]


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def small_model(devices, experts=None, **arguments):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 8))
    if experts is None:
        arguments |= {"num_experts": 4, "hidden_units": 16}
    else:
        arguments["experts"] = experts()
    moe = kd.SparseMoE(devices=devices, name="moe", **arguments)
    return keras.Model(inputs, keras.layers.Dense(2)(moe(inputs))), moe


def layers_of_two_kinds():
    return [
        keras.layers.Dense(8, "tanh"),
        keras.Sequential([keras.layers.Dense(4, "relu"), keras.layers.Dense(8)]),
        keras.layers.Dense(8),
    ]


@pytest.mark.parametrize("experts", [None, layers_of_two_kinds])
@pytest.mark.parametrize("top_k", [1, 2])
def test_trains_to_the_weights_of_one_device(experts, top_k):
    x, y = normal(32, 6, 8), normal(32, 6, 2, seed=1)
    weights, losses = [], []
    for devices in (None, TWO):
        model, moe = small_model(devices, experts, top_k=top_k)
        model.compile(keras.optimizers.Adam(0.01), "mse")
        history = model.fit(x, y, batch_size=8, epochs=3, shuffle=False, verbose=0)
        weights.append(model.get_weights())
        losses.append(history.history["loss"])
        for index, expert in enumerate(moe.experts):
            expected = "CPU:1" if devices and index % 2 else "CPU:0"
            for weight in expert.weights:
                assert weight.value.device.endswith(expected)
    np.testing.assert_allclose(*losses, rtol=1e-5)
    for one, other in zip(*weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("experts", [None, layers_of_two_kinds])
def test_computation_is_placed(experts):
    """The products of experts 1 and 3 stand on the second device, in both passes."""
    model, moe = small_model(TWO, experts)
    x = tf.constant(normal(4, 6, 8))

    @tf.function(autograph=False)
    def gradients():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(x, training=True))
        return tape.gradient(loss, moe.trainable_weights)

    graph = gradients.get_concrete_function().graph.as_graph_def(add_shapes=False)
    nodes = [*graph.node]
    for function in graph.library.function:  # the branches of conditionals
        nodes.extend(function.node_def)
    products = [node.device for node in nodes if "MatMul" in node.op]
    assert sum("CPU:1" in device for device in products) >= 4
    assert sum("CPU:0" in device for device in products) >= 4


def test_compile_turns_xla_off():
    model, _ = small_model(TWO)
    with pytest.warns(UserWarning, match="doesn't support `jit_compile=True`"):
        model.compile("sgd", "mse", jit_compile=True)
    assert not model.jit_compile
    model.fit(normal(8, 6, 8), normal(8, 6, 2), verbose=0)


def test_xla_by_hand_is_an_error():
    _, moe = small_model(TWO)
    compiled = tf.function(moe.__call__, jit_compile=True, autograph=False)
    with pytest.raises(RuntimeError, match="'moe'.*jit_compile=False.*CPU:1"):
        compiled(tf.constant(normal(4, 6, 8)))


def test_is_an_error_under_a_strategy():
    moe = kd.SparseMoE(4, 16, devices=TWO)
    with (
        two_replicas().scope(),
        pytest.raises(ValueError, match="data parallel.*CPU:1"),
    ):
        moe.build((None, 8))


def test_a_saved_model_loads_where_a_device_is_missing(tmp_path, monkeypatch):
    model, moe = small_model(TWO)
    x = normal(5, 6, 8)
    expected = model(x)
    path = tmp_path / "model.keras"
    model.save(path)
    loaded = keras.saving.load_model(path)
    assert loaded.get_layer("moe").devices == TWO
    np.testing.assert_allclose(loaded(x), expected, rtol=1e-6)
    only = tf.config.list_logical_devices()[:1]
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda *_: only)
    with pytest.warns(UserWarning, match=r"devices=\['CPU:0', 'CPU:1'\].*\['CPU:0'\]"):
        loaded = keras.saving.load_model(path)
    assert loaded.get_layer("moe").devices is None
    np.testing.assert_allclose(loaded(x), expected, rtol=1e-6)
