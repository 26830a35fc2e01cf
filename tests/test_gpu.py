"""What has to hold on a GPU: `pytest -m gpu`.

A copy of each check runs on any machine where that has a meaning: on the CPU, or by
what TensorFlow has registered for GPUs.
"""

import types

import keras
import pytest
import tensorflow as tf
from keras import layers

import keras_dynamic as kd
from keras_dynamic.models.inference import _under
from tests.models import every_layer, worker
from tests.models.every_layer import compiled, fitted, improves, same, same_training

DEVICES = ["CPU:0", pytest.param("GPU:0", marks=pytest.mark.gpu)]
GPUS = tf.config.list_physical_devices("GPU")
needs_two = pytest.mark.skipif(len(GPUS) < 2, reason="TensorFlow sees no second GPU")


@pytest.fixture(autouse=True)
def exact_products():
    """Float32 as on a CPU, without the rounding of TF32."""
    usual = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    yield
    tf.config.experimental.enable_tensor_float_32_execution(usual)


@pytest.fixture
def strict_placement():
    """An operation that has no kernel for the device asked for is an error."""
    usual = tf.config.get_soft_device_placement()
    tf.config.set_soft_device_placement(False)
    yield
    tf.config.set_soft_device_placement(usual)


# Training


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", every_layer.MODELS)
def test_keras_turns_xla_on_by_itself(name, device, monkeypatch):
    if device == "CPU:0":  # a machine that has a GPU, as far as Keras asks
        real = tf.config.list_physical_devices
        found = [*real(), types.SimpleNamespace(device_type="GPU", name="GPU:0")]
        monkeypatch.setattr(
            tf.config,
            "list_physical_devices",
            lambda kind=None: found if kind is None else real(kind),
        )
    model = compiled(name)  # jit_compile="auto"
    assert model.jit_compile is True
    if device != "CPU:0":
        assert improves(fitted(model, name))


@pytest.mark.gpu
@pytest.mark.parametrize("name", every_layer.WITHOUT_NOISE)
def test_trains_as_a_cpu_does(name):
    logs, models = [], []
    for device in ("CPU:0", "GPU:0"):
        with tf.device(device):
            model = compiled(name, jit_compile=False)
            logs.append(fitted(model, name))
        models.append(model)
    for weight in models[1].trainable_weights:
        assert weight.value.device.endswith("GPU:0")
    same_training(models[1], logs[1], models[0], logs[0], 1e-4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy, device):
    def run(policy):
        usual = keras.config.dtype_policy()
        keras.config.set_dtype_policy(policy)
        try:
            with tf.device(device):
                model = compiled("layerwise")
                return model, fitted(model, "layerwise")
        finally:
            keras.config.set_dtype_policy(usual)

    model, logs = run(policy)
    assert improves(logs)
    scales = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scales == (policy == "mixed_float16")
    same(logs["loss"], run("float32")[1]["loss"], "loss", 0.03)


@pytest.mark.gpu
@needs_two
@pytest.mark.parametrize("name", every_layer.WITHOUT_NOISE)
def test_two_gpus_train_as_one(name):
    strategy = tf.distribute.MirroredStrategy(
        ["GPU:0", "GPU:1"], cross_device_ops=tf.distribute.NcclAllReduce()
    )
    with strategy.scope():
        mirrored = compiled(name)
    alone = compiled(name, jit_compile=False)
    assert not mirrored.jit_compile  # Keras leaves XLA off under a strategy
    logs = fitted(mirrored, name)
    same_training(mirrored, logs, alone, fitted(alone, name))


# Experts on several devices


PLACES = [
    ["CPU:0", "CPU:1"],
    pytest.param(["GPU:0", "CPU:0"], marks=pytest.mark.gpu),
    pytest.param(["GPU:0", "GPU:1"], marks=[pytest.mark.gpu, needs_two]),
]


@pytest.mark.parametrize("devices", PLACES, ids="-".join)
def test_placed_experts_train_as_those_on_one_device(devices):
    x, y = worker.data()

    def run(devices):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((6,))
        moe = kd.SparseMoE(2, 8, noise_stddev=0.0, devices=devices, name="moe")
        h = moe(layers.Reshape((2, 4))(layers.Dense(8)(inputs)))
        final = layers.Dense(worker.CLASSES, "softmax")(layers.Flatten()(h))
        model = keras.Model(inputs, final)
        optimizer = keras.optimizers.SGD(0.1)
        model.compile(
            optimizer, "sparse_categorical_crossentropy", jit_compile=not devices
        )
        assert model.jit_compile == (devices is None)
        return moe, model, model.fit(x, y, 16, shuffle=False, verbose=0).history

    with pytest.warns(UserWarning, match="computes every expert"):
        alone = run(None)
    moe, *placed = run(devices)
    same_training(*placed, *alone[1:], 1e-4)
    for expert, device in zip(moe.experts, devices, strict=True):
        for weight in expert.weights:
            assert weight.value.device.endswith(device)


# The walk


def three_exits(rule="max_probability", **kwargs):
    inputs = keras.Input((6,))
    h, exits = inputs, []
    for number in range(2):
        h = layers.Dense(8, "relu")(h)
        exits.append(kd.EarlyExit(worker.CLASSES, name=f"exit_{number}")(h))
    final = layers.Dense(worker.CLASSES, "softmax", name="final")(h)
    return kd.DynamicModel(inputs, [*exits, final], exit_rule=rule, **kwargs)


WALKS = {
    "max_probability": lambda: three_exits(kd.rules.MaxProbability(0.3)),
    "entropy": lambda: three_exits(kd.rules.Entropy(1.2)),
    "margin": lambda: three_exits(kd.rules.Margin(0.1)),
    "patience": lambda: three_exits(kd.rules.Patience(1)),
    "layerwise": every_layer.layerwise,
    "selector, gate and mixtures": every_layer.all_others,
}


def walk_of(model, x):
    """(answers, compiled function) of one batch by the model's own walk."""
    under = _under(model, None)
    answers = under.walk(x, *under.knobs)
    (function,) = under.walk._functions.values()
    return answers, function


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", WALKS)
def test_a_walk_is_one_function_on_its_device(name, device, strict_placement):
    """Python does nothing between the segments, and no operation is moved elsewhere."""
    x = tf.constant(worker.data()[0])
    with tf.device(device):
        keras.utils.set_random_seed(0)
        answers, function = walk_of(WALKS[name](), tf.identity(x))
    assert isinstance(function, tf.types.experimental.ConcreteFunction)
    assert not {node.op for node in nodes_of(function)} & {"PyFunc", "EagerPyFunc"}
    for part in ("outputs", "probabilities", "confidence"):
        assert answers[part].device.endswith(device)
    with tf.device("CPU:0"):
        keras.utils.set_random_seed(0)
        expected, _ = walk_of(WALKS[name](), x)
    for part, tensor in expected.items():
        same(answers[part].numpy(), tensor.numpy(), part, 1e-4)


def nodes_of(function):
    """The nodes of a compiled function, branches of its conditionals included."""
    graph = function.graph.as_graph_def()
    yield from graph.node
    for branch in graph.library.function:
        yield from branch.node_def


def gpu_kernels(node):
    """What TensorFlow has registered for a node on a GPU, types considered."""
    from tensorflow.python.framework import kernels

    def fits(kernel):
        return all(
            node.attr[each.name].type in each.allowed_values.list.type
            for each in kernel.constraint
        )

    every = kernels.get_registered_kernels_for_op(node.op).kernel
    return [k for k in every if k.device_type in ("GPU", "DEFAULT") and fits(k)]


@pytest.mark.skipif(
    not tf.test.is_built_with_cuda(), reason="TensorFlow has no kernels for GPUs"
)
@pytest.mark.parametrize("name", WALKS)
def test_no_row_travels_between_segments(name):
    """On a GPU, by the kernels that TensorFlow has registered for it.

    Vectors of int32 are kept on the host there: a conditional that they enter and a
    scatter that writes them would fetch them, segment by segment. What does travel are
    the predicate of a conditional and the number of rows that `tf.where` finds.
    """
    model = WALKS[name]()
    _, function = walk_of(model, tf.constant(worker.data()[0]))
    for node in nodes_of(function):
        kernels = gpu_kernels(node)
        assert kernels or not node.op or node.op.startswith("Placeholder"), node
        if node.op == "TensorScatterUpdate":
            assert all(not kernel.host_memory_arg for kernel in kernels), node
    conditionals = [
        operation
        for operation in function.graph.get_operations()
        if operation.type in ("If", "StatelessIf")
    ]
    assert conditionals
    for operation in conditionals:
        for tensor in (*operation.inputs, *operation.outputs):
            if tensor.dtype == tf.int32:  # sizes, but nothing for each row
                assert tensor.shape.is_fully_defined(), (operation.name, tensor)
