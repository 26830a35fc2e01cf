"""What any layer of Keras is expected to do, in one harness for all layers.

Every layer is checked alone and in a small functional model: input -> trunk -> layer.
The trunk is a dense layer that starts as the identity, so that the layer sees the
given inputs and, in mixed precision, tensors of the compute dtype.
"""

import contextlib
import inspect
import json
import tempfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import tree


def check_layer(
    make,
    inputs,
    *,
    targets=None,
    loss="mse",
    call_arguments=None,
    config=None,
    independent_rows=True,
    random_training=False,
    every_weight_trains=True,
    half_tolerance=0.03,
    jit=True,
):
    """Checks configuration, shapes, files, training, precision, replicas, XLA, rows.

    Args:
        make: function without arguments that returns a new layer, each time with the
            same arguments. It must not fix a `dtype`.
        inputs: array, or list of arrays where the layer is called with a list. An
            even number of rows, at least 2.
        targets: array that a step of training fits the output to. Random numbers by
            default.
        loss: of that step.
        call_arguments: dict of further arrays for `call`, batch first.
        config: dict of entries that `get_config` has to give back exactly: the
            numbers as the user wrote them.
        independent_rows: whether a row's answer at inference depends on that row
            alone.
        random_training: whether training draws random numbers, which two replicas
            draw differently.
        every_weight_trains: whether one step changes every trainable weight; if not,
            one of them is enough.
        half_tolerance: largest difference of an output in mixed precision, absolute
            and relative; None where a rounded last bit may change the whole answer.
        jit: whether the layer runs under XLA.
    """
    case = _Case(make, inputs, call_arguments or {}, targets, loss)
    model, layer = case.model()
    expected = case.call(layer)
    case.set_default_targets(expected)

    _check_config(layer, config or {})
    _check_specs(case, model, layer, expected)
    _check_file(case, model, layer, expected)
    _equal(_nested(case, model)(case.feed, training=False), expected, "nested")
    if independent_rows:
        _check_rows(case, layer, expected)
    if jit:
        compiled = tf.function(model, jit_compile=True, autograph=False)
        _equal(compiled(case.feed, training=False), expected, "under XLA")
    for policy in ("mixed_float16", "mixed_bfloat16"):
        _check_half_precision(case, policy, model, expected, half_tolerance)
    _check_training(case, model, layer, every_weight_trains, random_training, jit)


@contextlib.contextmanager
def dtype_policy(name):
    """Keras' global policy, for a while."""
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(previous)


def two_replicas():
    """A `MirroredStrategy` over the two CPU devices that `conftest.py` makes.

    It reduces without collective operations: two strategies in one process give
    theirs the same keys, and the second one fails.
    """
    return tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice()
    )


class _Case:
    """The layer's maker with what it is called and trained with."""

    def __init__(self, make, inputs, arguments, targets, loss):
        self.make, self.arguments, self.loss = make, arguments, loss
        self.inputs, self.targets = inputs, targets

    @property
    def feed(self):
        """What the functional model takes: masks as numbers.

        Under a strategy Keras averages the first batch, which booleans refuse.
        """
        arrays = tree.flatten((self.inputs, self.arguments))
        return [a.astype("int32") if a.dtype == bool else a for a in arrays]

    def call(self, layer, rows=slice(None)):
        """The layer's answer at inference, for some rows."""
        inputs, arguments = tree.map_structure(
            lambda array: array[rows], (self.inputs, self.arguments)
        )
        return layer(inputs, training=False, **arguments)

    def model(self):
        """A new functional model and the layer in it."""
        layer = self.make()
        given = [keras.Input(array.shape[1:], dtype=array.dtype) for array in self.feed]
        arrays = tree.flatten((self.inputs, self.arguments))
        called = [
            keras.ops.cast(tensor, "bool") if array.dtype == bool else tensor
            for tensor, array in zip(given, arrays, strict=True)
        ]
        wanted = (self.inputs, self.arguments)
        inputs, arguments = tree.pack_sequence_as(wanted, called)
        outputs = layer(tree.map_structure(_trunk, inputs), **arguments)
        return keras.Model(given, outputs), layer

    def set_default_targets(self, outputs):
        if self.targets is None:
            generator = np.random.default_rng(0)
            self.targets = generator.normal(size=outputs.shape).astype("float32")

    def fit(self, model, jit=False):
        """One step on all rows; returns its loss."""
        model.compile(keras.optimizers.SGD(0.5), self.loss, jit_compile=jit)
        rows = len(self.targets)
        history = model.fit(self.feed, self.targets, rows, shuffle=False, verbose=0)
        return history.history["loss"][0]


def _trunk(tensor):
    if len(tensor.shape) < 2 or not keras.backend.is_float_dtype(tensor.dtype):
        return tensor
    return keras.layers.Dense(tensor.shape[-1], kernel_initializer="identity")(tensor)


def _check_config(layer, own_numbers):
    config = _config_in_json(layer)
    for name, parameter in inspect.signature(type(layer).__init__).parameters.items():
        if name != "self" and parameter.kind is not parameter.VAR_KEYWORD:
            assert name in config, f"`{name}` is missing from the config"
            assert hasattr(layer, name), f"`{name}` is not an attribute"
    for name, value in own_numbers.items():
        assert config[name] == value, f"`{name}` came back as {config[name]!r}"
    again = type(layer).from_config(config)
    assert _config_in_json(again) == config
    assert again.dtype_policy.name == layer.dtype_policy.name


def _config_in_json(layer):
    return json.loads(json.dumps(layer.get_config()))


def _check_specs(case, model, layer, expected):
    shapes = tree.map_structure(lambda array: array.shape, case.inputs)
    computed = layer.compute_output_shape(shapes)
    assert tuple(computed) == tuple(expected.shape), "`compute_output_shape`"
    (symbolic,) = model.outputs
    assert symbolic.shape == (None, *expected.shape[1:]), "the symbolic shape"
    assert symbolic.dtype == expected.dtype.name, "the symbolic dtype"


def _check_file(case, model, layer, expected):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        model.save(path)
        loaded = keras.saving.load_model(path)  # safe_mode is on by default
    _equal(loaded(case.feed, training=False), expected, "reloaded")
    config = _config_in_json(loaded.get_layer(layer.name))
    assert config == _config_in_json(layer), "the reloaded config"


def _nested(case, model):
    """The functional model called by another one."""
    given = [keras.Input(array.shape[1:], dtype=array.dtype) for array in case.feed]
    return keras.Model(given, model(given))


def _check_rows(case, layer, expected):
    expected = expected.numpy()
    order = np.random.default_rng(0).permutation(len(expected))
    _equal(case.call(layer, order), expected[order], "permuted")
    _equal(case.call(layer, slice(1)), expected[:1], "one row")
    _equal(case.call(layer, slice(1, None)), expected[1:], "without the first row")
    none = case.call(layer, slice(0))
    assert none.shape == (0, *expected.shape[1:]), "no rows"


def _check_half_precision(case, policy, full_model, expected, tolerance):
    with dtype_policy(policy):
        model, layer = case.model()
        model.set_weights(full_model.get_weights())
        assert layer.compute_dtype == policy.removeprefix("mixed_")
        outputs = case.call(layer)
        assert model.outputs[0].dtype == outputs.dtype.name, f"dtype under {policy}"
        outputs = tf.cast(outputs, "float32").numpy()
        assert np.isfinite(outputs).all(), f"outputs under {policy}"
        if tolerance is not None:
            _equal(outputs, tf.cast(expected, "float32"), f"in {policy}", tolerance)
        loss = case.fit(model)
    assert np.isfinite(loss), f"loss {loss} under {policy}"
    for weight in model.weights:
        assert np.isfinite(weight.numpy()).all(), f"{weight.path} under {policy}"
        assert weight.dtype != layer.compute_dtype, f"dtype of {weight.path}"


def _check_training(case, model, layer, every_weight, random_training, jit):
    start = model.get_weights()
    # A layer without weights has to hand the gradient on to the trunk.
    weights = layer.trainable_weights or model.trainable_weights
    before = [weight.numpy() for weight in weights]
    loss = case.fit(model, jit)
    assert np.isfinite(loss), f"loss {loss}"
    changed = []
    for weight, old in zip(weights, before, strict=True):
        assert np.isfinite(weight.numpy()).all(), weight.path
        changed.append(bool(np.any(weight.numpy() != old)))
    assert (all if every_weight else any)(changed), "a step left weights as they were"

    with two_replicas().scope():
        mirrored, _ = case.model()
        mirrored.set_weights(start)
        mirrored_loss = case.fit(mirrored)
    if random_training:
        assert np.isfinite(mirrored_loss)
        return
    _equal(mirrored_loss, loss, "loss of two replicas")
    for new, one in zip(mirrored.weights, model.weights, strict=True):
        _equal(new.numpy(), one.numpy(), f"{one.path} of two replicas", 1e-4)


def _equal(actual, expected, message, tolerance=1e-5):
    np.testing.assert_allclose(
        actual, expected, rtol=tolerance, atol=tolerance, err_msg=message
    )
