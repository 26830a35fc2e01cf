"""Where the batch is: which values have it on axis 0, and who mixes its rows.

Samples can leave one by one only if every operation treats the rows of its batch
alike and apart. Layers of Keras do, save for a wrong `axis`; a `keras.ops`
operation is tried on random rows. What a layer of the user's own does is
tried on real data, when the model is calibrated.
"""

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from keras_dynamic._compat import functional_of
from keras_dynamic.layers.layer_choice import LayerChoice
from keras_dynamic.layers.skip_gate import SkipGate
from keras_dynamic.models.graph import Step, Value, build_graph, infer_step

__all__ = ["check_rows", "same_rows"]

# Layers that hold others and run some of them.
_HOLDING_LAYERS = (LayerChoice, SkipGate)
# A batch size that no real dimension is likely to be a multiple of: where it turns
# up in an output's shape, there is the batch.
_TELLTALE_BATCH = 7919
# Rows of the trial: two of them, and one, are then tried alone.
_TRIAL_ROWS = 5
# What an unknown (None) dimension is taken to be in the trial of an operation.
_TRIAL_SIZE = 4


def check_rows(graph):
    """Marks in `graph` which values carry the batch on axis 0, and which otherwise.

    Args:
        graph: a `Graph`; `batched` and `misplaced` of its values are set.

    Raises:
        ValueError: if an operation mixes rows of the batch; names it.
    """
    # Shapes with a telltale batch size of the values that carry the batch.
    shapes = {value: (_TELLTALE_BATCH, *value.spec.shape[1:]) for value in graph.inputs}
    for step in graph.steps:
        carrying = [value for value in step.inputs if value in shapes]
        if not carrying:
            for value in step.outputs:
                value.batched = False
            continue
        is_layer = isinstance(step.operation, keras.layers.Layer)
        orderly = all(value.batched for value in carrying)
        if orderly and not is_layer and not step.glue:
            _check_operation(step)
        if isinstance(step.operation, _HOLDING_LAYERS):
            _check_held(step, shapes)
        elif is_layer:
            _check_layer(step)
        trusted = step.glue or not is_layer or _is_known(step.operation)
        if not (orderly and trusted) or _loses_batch(step):
            _locate_batch(step, shapes)
        for value in step.outputs:
            if value.batched:
                shapes.setdefault(value, (_TELLTALE_BATCH, *value.spec.shape[1:]))


def same_rows(whole, part, rows, rtol=1e-4, atol=1e-5):
    """Whether `part`, computed from `rows` alone, equals those rows of `whole`.

    Args:
        whole: structure of arrays, axis 0 the batch.
        part: the same structure, computed from the batch's `rows` only.
        rows: integer array.
        rtol, atol: tolerances, as in `numpy.allclose`.
    """
    for one, other in zip(tree.flatten(whole), tree.flatten(part), strict=True):
        one, other = np.asarray(one), np.asarray(other)
        if one.ndim == 0 or one.shape[0] <= rows.max():
            return False
        expected = one[rows]
        if expected.shape != other.shape:
            return False
        if expected.dtype.kind in "fV":  # V: bfloat16 and its like
            close = np.allclose(
                expected.astype("float64"),
                other.astype("float64"),
                rtol=rtol,
                atol=atol,
                equal_nan=True,
            )
        else:
            close = np.array_equal(expected, other)
        if not close:
            return False
    return True


def _is_known(layer):
    """Layers of Keras and of this package leave the batch where it is."""
    return type(layer).__module__.startswith(("keras.", "keras_dynamic."))


def _loses_batch(step):
    return not all(value.batched for value in step.outputs)


def _locate_batch(step, shapes):
    """Finds the batch in the outputs by a batch size that nothing else has."""

    def enlarged(value):
        return keras.KerasTensor(shapes.get(value, value.spec.shape), value.spec.dtype)

    specs = infer_step(step, {value: enlarged(value) for value in step.inputs})
    if specs is None:  # no shape to be had that way: believe the recorded ones
        return
    for value, spec in zip(step.outputs, specs, strict=True):
        holding = [
            axis
            for axis, size in enumerate(spec.shape)
            if size is not None and size > 0 and size % _TELLTALE_BATCH == 0
        ]
        value.batched = holding == [0] and spec.shape[0] == _TELLTALE_BATCH
        value.misplaced = bool(holding) and not value.batched
        if holding:
            shapes[value] = spec.shape


def _check_layer(step):
    layer = step.operation
    if getattr(layer, "inference_capacity_factor", None) is not None:
        raise ValueError(
            f"Layer '{layer.name}' drops tokens at inference, so that what it gives "
            "for one sample depends on the others, and samples cannot leave the batch "
            "one by one. Received: inference_capacity_factor="
            f"{layer.inference_capacity_factor}."
        )
    if getattr(layer, "stateful", False):
        raise ValueError(
            f"Layer '{layer.name}' keeps a state for every row of the batch "
            "(`stateful=True`), so samples cannot leave the batch one by one. "
            "Use `stateful=False`."
        )
    if _is_known(layer):
        _check_axis(step)


def _check_held(step, shapes):
    """Asks of every layer that may be chosen what is asked of a layer by itself."""
    given = step.args[:1] or (step.kwargs["inputs"],)
    for layer in _held(step.operation):
        functional = functional_of(layer)
        if functional is not None:
            graph = build_graph(functional)
            check_rows(graph)
            outputs = graph.outputs
        else:
            outputs = tuple(Value(layer.name, value.spec) for value in step.outputs)
            inner = Step(layer, given, {}, outputs)
            if isinstance(layer, _HOLDING_LAYERS):
                _check_held(inner, shapes)
            else:
                _check_layer(inner)
            if not _is_known(layer) or _loses_batch(inner):
                _locate_batch(inner, shapes)
        if not all(value.batched for value in outputs):
            raise ValueError(
                f"Layer '{layer.name}', of which '{step.name}' has the choice, does "
                "not leave the batch on axis 0, so samples cannot leave the batch one "
                "by one."
            )


def _held(layer):
    """The layers inside of one that runs some of them."""
    if isinstance(layer, LayerChoice):
        return layer.layers
    return [layer.layer] if layer.bypass is None else [layer.layer, layer.bypass]


def _check_axis(step):
    layer, rank = step.operation, len(step.inputs[0].spec.shape)
    for attribute in ("axis", "axes"):
        axes = getattr(layer, attribute, None)
        axes = axes if isinstance(axes, (list, tuple)) else [axes]
        if any(type(axis) is int and axis % rank == 0 for axis in axes):
            raise ValueError(
                f"Layer '{layer.name}' ({type(layer).__name__}) works along the batch "
                f"axis, so samples cannot leave the batch one by one. Received: "
                f"{attribute}={getattr(layer, attribute)} for an input of shape "
                f"{tuple(step.inputs[0].spec.shape)}."
            )


def _check_operation(step):
    if all(value.batched for value in step.outputs) and not _mixes_rows(step):
        return
    shapes = [tuple(value.spec.shape) for value in step.inputs]
    raise ValueError(
        f"Operation '{step.name}' (keras.ops, {type(step.operation).__name__}) mixes "
        "the rows of the batch: what it gives for one sample depends on the others, "
        "or the batch does not stay on axis 0. Samples then cannot leave the batch "
        "one by one. Write it so that axis 0 stays the batch (layers such as "
        f"`Reshape` and `Permute` do). Received: inputs of shapes {shapes}, outputs "
        f"of shapes {[tuple(value.spec.shape) for value in step.outputs]}."
    )


def _mixes_rows(step):
    """Tries the operation on five random rows, then on some of them alone."""
    generator = np.random.default_rng(0)

    def draw(value):
        sizes = [_TRIAL_SIZE if size is None else size for size in value.spec.shape]
        if value.batched:
            sizes[0] = _TRIAL_ROWS
        dtype = value.spec.dtype
        if dtype == "bool" or "int" in dtype:
            return generator.integers(0, 2, sizes).astype(dtype)
        return generator.uniform(0.1, 0.9, sizes).astype("float32")

    drawn = {value: draw(value) for value in step.inputs}

    def run(rows):
        def fill(argument):
            if not isinstance(argument, Value):
                return argument
            array = drawn[argument][rows] if argument.batched else drawn[argument]
            return tf.cast(array, argument.spec.dtype)

        args = tree.map_structure(fill, step.args)
        kwargs = tree.map_structure(fill, step.kwargs)
        with tf.init_scope():
            return tree.map_structure(np.asarray, step.operation(*args, **kwargs))

    failures = (ValueError, TypeError, tf.errors.OpError)
    try:
        whole = run(np.arange(_TRIAL_ROWS))
    except failures:
        # The guessed sizes or values do not fit this operation: nothing is known,
        # and the probe on real data decides.
        return False
    for rows in (np.array([3, 0]), np.array([1])):
        try:
            part = run(rows)
        except failures:
            return True  # it works on five rows and not on fewer
        if not same_rows(whole, part, rows):
            return True
    return False
