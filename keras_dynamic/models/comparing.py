"""A converted model beside the one that it was made from, on random inputs."""

import dataclasses
import itertools

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from keras_dynamic._compat import layers_within
from keras_dynamic.models.graph import build_graph

__all__ = ["check_same_answers"]

# Batches that a converted model answers beside the one it was made from.
_BATCHES = (1, 5, 32)
# What an open size of an input is taken to be there, the first that the model takes.
_OPEN_SIZES = (32, 16, 8, 4, 2, 1, 64, 256)
# The layers that look numbers up, and the attribute that says how many they know.
_TABLES = {
    keras.layers.Embedding: "input_dim",
    keras.layers.CategoryEncoding: "num_tokens",
}
# Those that hand the numbers on which they are given.
_CARRIERS = (keras.layers.Reshape, keras.layers.Flatten, keras.layers.Identity)


def check_same_answers(model, run, specs, format):
    """Compares a converted model with the one that it was made from.

    Outputs are compared with those that Keras computes for the exits taken, each input
    fed by its place in `model.inputs`; the rest with `predict_dynamic`.

    Args:
        model: a `DynamicModel`.
        run: function from a dict of arrays by name to a dict of arrays.
        specs: flat list of `tf.TensorSpec`s, named, in the order of `model.inputs`.
        format: string, for messages.

    Returns:
        (exits,) ints, how many of the samples that were compared left at each exit.

    Raises:
        ValueError: if the answers differ; names the output. If the model itself takes
            none of the inputs that are tried.
    """
    half = {getattr(layer, "compute_dtype", "") for layer in layers_within(model)}
    tolerance = 2e-2 if half & {"float16", "bfloat16"} else 1e-4
    seen = np.zeros(len(model.exit_names), int)
    for arrays, expected in _answered(model, specs, format):
        fed = {spec.name: a for spec, a in zip(specs, arrays, strict=True)}
        try:
            found = run(fed)
        except Exception as error:
            raise ValueError(
                f"`format={format!r}` converts this model, but {format} cannot run it "
                f"on a batch of {len(arrays[0])}, so nothing was written: {error}"
            ) from error
        _compare(model, expected, found, tolerance, format)
        seen += np.bincount(expected.exit_index, minlength=len(seen))
    return seen


def _answered(model, specs, format):
    """Pairs (arrays, `DynamicPrediction`) of random inputs that the model takes."""
    batches = _BATCHES if specs[0].shape[0] is None else specs[0].shape[:1]
    ranges = _ranges(model)
    is_open = any(None in spec.shape[1:] for spec in specs)
    sizes = _OPEN_SIZES if is_open else _OPEN_SIZES[:1]
    first = None
    for whole, size in itertools.product((None, 0, 1), sizes):
        generator = np.random.default_rng(0)
        drawn = [
            [
                _random(generator, spec, rows, size, each, whole)
                for spec, each in zip(specs, ranges, strict=True)
            ]
            for rows in batches
        ]
        try:
            return [(arrays, _expected(model, arrays)) for arrays in drawn]
        except (tf.errors.InvalidArgumentError, ValueError) as error:
            first = first or error
    raise ValueError(
        f"`format={format!r}`: what was converted is compared with the model on random "
        "inputs, and the model itself takes none of those that were tried, so nothing "
        f"was written. {_remedy(specs, is_open)} Received: {_last_lines(first)}"
    ) from first


def _remedy(specs, is_open):
    if is_open:
        given = [spec.shape.as_list() for spec in specs]
        return (
            f"Sizes of inputs are open, {given}: give `input_signature` with such as "
            "the model takes, for example [keras.InputSpec(shape=(None, 8), "
            "dtype='int32')]."
        )
    return (
        "Numbers that are looked up, in a table or as positions, have to lie in it: "
        "let an `Embedding` or a `CategoryEncoding` read such an input, which says how "
        "many there are, or clip them inside the model. 'tf_saved_model' is written "
        "without a comparison."
    )


def _last_lines(error):
    """What is said of an error, without the trace that TensorFlow puts before."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(("File ", "Detected at"))]
    return f"{type(error).__name__}: {' '.join(said[-3:])[-400:]}"


def _expected(model, arrays):
    """What a converted model is to give: a `DynamicPrediction`."""
    tensors = [tf.constant(array) for array in arrays]
    x = tree.pack_sequence_as(model.input, tensors)
    expected = model.predict_dynamic(x, batch_size=len(arrays[0]), verbose=0)
    # Later exits may not be able to run on these samples, and need not.
    last = int(expected.exit_index.max())
    plain = keras.Model(list(model.inputs), model.outputs[: last + 1])
    # There a number that is not in a table is an error, and elsewhere may give zeros.
    with tf.device("/cpu:0"):
        outputs = tree.flatten(plain(tensors, training=False))
    outputs = np.stack([np.asarray(each, "float32") for each in outputs])
    rows = np.arange(len(expected.exit_index))
    return dataclasses.replace(expected, outputs=outputs[expected.exit_index, rows])


@dataclasses.dataclass
class _Range:
    """The numbers that an input may hold: whole ones from 0 to `end` - 1, or any."""

    whole: bool
    end: int


def _ranges(model):
    """A `_Range` for each input, as far as the layers that read it tell."""
    graph = build_graph(model)
    ranges = []
    for value in graph.inputs:
        dtype = tf.as_dtype(value.spec.dtype)
        carried, ends = {value}, []
        for step in graph.steps:
            if not step.inputs or step.inputs[0] not in carried:
                continue
            if step.glue or isinstance(step.operation, _CARRIERS):
                carried.update(step.outputs)
            for kind, attribute in _TABLES.items():
                if isinstance(step.operation, kind):
                    ends.append(getattr(step.operation, attribute))
        whole = bool(ends) or not dtype.is_floating
        ranges.append(_Range(whole, min(ends, default=256 if dtype == tf.uint8 else 2)))
    return ranges


def _random(generator, spec, rows, open_size, range, whole):
    """Rows of an input; floats at several scales, so that some are easy, some hard.

    Args:
        open_size: int, what an open size is taken to be.
        range: a `_Range`.
        whole: None, or the first of the whole numbers to draw, whatever the range.
    """
    shape = [rows, *(size or open_size for size in spec.shape[1:])]
    if spec.dtype == tf.bool:
        return generator.random(shape) < 0.5
    if spec.dtype == tf.string:
        return generator.integers(0, 10, shape).astype(str).astype(object)
    dtype = spec.dtype.as_numpy_dtype
    if range.whole or whole is not None:
        start = min(whole or 0, range.end - 1)
        return generator.integers(start, range.end, shape).astype(dtype)
    scales = 10 ** generator.uniform(-2, 1, [rows] + [1] * (len(shape) - 1))
    return (scales * generator.normal(size=shape)).astype(dtype)


def _compare(model, expected, found, tolerance, format):
    """Raises a ValueError that names the first output that differs."""
    same = found["exit_index"] == expected.exit_index
    # Where a score lies on the threshold, the last bit decides, and both are right.
    excused = same | _on_the_threshold(model, expected, found, tolerance)
    if not excused.all():
        row = int(np.argmin(excused))
        raise _differing(
            format,
            "exit_index",
            f"{found['exit_index'][row]} in place of {expected.exit_index[row]}",
        )
    for name, array in found.items():
        one = np.asarray(array, "float64")[same]
        other = np.asarray(getattr(expected, name), "float64")[same]
        size = np.abs(other[np.isfinite(other)]).max(initial=1.0)
        if one.shape != other.shape or not np.allclose(
            one, other, rtol=tolerance, atol=tolerance * size, equal_nan=True
        ):
            received = f"shape {one.shape} in place of {other.shape}"
            if one.shape == other.shape:
                received = f"a difference of {np.abs(one - other).max():.3g}"
            raise _differing(format, name, received)


def _on_the_threshold(model, expected, found, tolerance):
    earlier = np.minimum(expected.exit_index, found["exit_index"])
    left_here = earlier == expected.exit_index
    score = np.where(left_here, expected.confidence, found["confidence"])
    thresholds = model.exit_rule.thresholds(len(model.exit_names) - 1)
    thresholds = np.append(thresholds, np.inf)[earlier]
    return np.abs(score - thresholds) <= tolerance


def _differing(format, name, received):
    return ValueError(
        f"`format={format!r}`: the converted model gives another `{name}` than the "
        f"model itself for the same random input, so nothing was written. Received: "
        f"{received}."
    )
