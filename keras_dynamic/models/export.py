"""Leaving Python: SavedModel, LiteRT and ONNX of the dynamic road."""

import contextlib
import copy
import io
import os
import re
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from keras_dynamic._files import whole_file, whole_folder
from keras_dynamic.models.comparing import check_same_answers
from keras_dynamic.models.converting import check_installed, to_litert, to_onnx
from keras_dynamic.models.rules import Selected
from keras_dynamic.models.saying import say

__all__ = ["export", "named_specs", "write_saved_model"]

_OPTIONS = {"tf_saved_model": (), "litert": (), "onnx": ("opset_version",)}
_WORD = re.compile(r"[A-Za-z]\w*", re.ASCII)
_COLUMNS = ("outputs", "exit_index", "confidence", "probabilities")


def export(model, filepath, format, verbose, input_signature, options):
    """See `DynamicModel.export`."""
    if not isinstance(format, str) or format not in _OPTIONS:
        raise ValueError(
            f"`format` must be one of {sorted(_OPTIONS)}: elsewhere the exits would "
            f"all be computed. Received: format={format!r}."
        )
    unknown = sorted(set(options) - set(_OPTIONS[format]))
    if unknown:
        raise TypeError(
            f"`export` with `format={format!r}` takes no further arguments but "
            f"{list(_OPTIONS[format])}. Received: {unknown}."
        )
    specs = named_specs(model, input_signature)
    verbose = verbose is None or bool(verbose)
    if format == "tf_saved_model":
        _write(model, specs, filepath, counts=True, verbose=verbose)
    else:
        check_installed(format)
        path = Path(filepath)
        if path.is_dir():
            raise IsADirectoryError(
                f"`filepath` must be a file with `format={format!r}`. Received: "
                f"filepath='{filepath}', which is a folder."
            )
        content, seen = _converted(model, specs, format, options)
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial:
            partial.write_bytes(content)
    if verbose:
        if format != "tf_saved_model":
            left = zip(seen, model.exit_names, strict=True)
            left = ", ".join(f"{count} at {name}" for count, name in left)
            say(
                f"Saved artifact at '{filepath}'. Run on {sum(seen)} random samples it "
                f"gives the model's answers; they left: {left}."
            )
        names = {i.name: spec.name for i, spec in zip(model.inputs, specs, strict=True)}
        changed = [f"'{n}' as '{word}'" for n, word in names.items() if n != word]
        if changed:
            say(f"Names of inputs had to change: {', '.join(changed)}.")
        say(_frozen(model))
    if verbose and format == "litert":
        say("LiteRT: make an interpreter for each batch size; one resized may crash.")


def write_saved_model(filepath, serve, signature, resources, verbose=False):
    """Writes a SavedModel with one endpoint, "serve".

    It is written into a hidden folder within the folder, and moved out when it is
    whole: of a SavedModel that was there, all stays as it was until then.

    Args:
        filepath: string or path of the folder.
        serve: function that returns a flat dict of tensors.
        signature: list of structures of `tf.TensorSpec`s, the arguments of `serve`.
        resources: Keras models or layers whose variables and tables it uses.
        verbose: whether Keras prints the endpoint's signature.
    """
    archive = keras.export.ExportArchive()
    for resource in resources:
        archive.track(resource)
    archive.add_endpoint("serve", serve, input_signature=signature)
    if "://" in os.fspath(filepath):
        archive.write_out(os.fspath(filepath), verbose=verbose)
        return
    with whole_folder(filepath) as partial:
        with contextlib.redirect_stdout(io.StringIO()) as said:
            archive.write_out(os.fspath(partial), verbose=verbose)
    if verbose:
        say(said.getvalue().replace(os.fspath(partial), os.fspath(filepath)).rstrip())


def named_specs(model, input_signature=None):
    """A flat list of `tf.TensorSpec`s, one an input, with names that are words.

    Args:
        model: a functional model.
        input_signature: structure of specs with a shape and a dtype each, in the order
            of the model's inputs. Defaults to `None`, the model's own.

    Raises:
        ValueError: for another number of specs.
    """
    given = list(model.inputs)
    if input_signature is not None:
        given = tree.flatten(input_signature)
    if len(given) != len(model.inputs):
        raise ValueError(
            "`input_signature` must hold one spec for each of the "
            f"{len(model.inputs)} inputs. Received: {len(given)} specs: {given}."
        )
    names = _words([tensor.name for tensor in model.inputs])
    return [
        tf.TensorSpec(spec.shape, spec.dtype, name=name)
        for spec, name in zip(given, names, strict=True)
    ]


def _words(names):
    """Names that every format takes, as near as can be to those given.

    They have letters and digits of ASCII only, differ in more than capitals, and are no
    names of outputs, which ONNX keeps in one list with those of inputs.
    """
    taken = {*_COLUMNS, "cost"}
    words = {}
    # Those that may stay as they are come first.
    for name in sorted(names, key=lambda name: re.fullmatch(_WORD, name) is None):
        word = re.sub(r"\W", "_", name, flags=re.ASCII)
        if not re.fullmatch(_WORD, word):
            word = f"input_{word.lstrip('_')}"
        unique, number = word, 0
        while unique.lower() in taken:
            number += 1
            unique = f"{word}_{number}"
        taken.add(unique.lower())
        words[name] = unique
    return [words[name] for name in names]


def _converted(model, specs, format, options):
    """(content, seen): the bytes of a converted model that has stood the comparison."""
    if format == "litert":
        # It has no float64, in which the savings of gates are counted.
        counts = not model.road.has_gates
        content, run = to_litert(lambda path: _write(model, specs, path, counts))
    else:
        serve = _serving(model, specs, counts=True)
        content, run = to_onnx(model, serve, specs, **options)
    return content, check_same_answers(model, run, specs, format)


def _write(model, specs, filepath, counts, verbose=False):
    serve = _serving(model, specs, counts)

    def serve_structure(x):
        return serve(tree.flatten(x))

    signature = [tree.pack_sequence_as(model.input, specs)]
    write_saved_model(filepath, serve_structure, signature, [model], verbose)


def _serving(model, specs, counts):
    """The function to export: a flat list of tensors to a dict of answers.

    The rule, its thresholds and the temperatures are constants of it. No layer runs
    on an empty batch, which some cannot take.

    Args:
        counts: whether the cost of each sample is among the answers; where a size
            stays open it never is.
    """
    rule = model.exit_rule
    asked = model.road.asked_under(rule)
    walk, thresholds = model.road.walk_under(rule, model, asked)
    temperatures = np.asarray(model.calibration_temperatures)
    costs = _costs(model, specs, rule, asked) if counts else None
    if costs is None:
        walk = copy.copy(walk)
        walk.has_gates = False  # then it adds up no savings

    def serve(tensors):
        x = tree.pack_sequence_as(model.input, tensors)
        num_rows = tf.shape(tensors[0])[0]

        def answer():
            # Traced into the function that is exported, not compiled by itself.
            return walk(x, tf.constant(fed), tf.constant(temperatures), eagerly=True)

        answers = tf.cond(num_rows > 0, answer, lambda: walk.no_answers(num_rows))
        found = {name: answers[name] for name in _COLUMNS}
        if costs is not None:
            cost = tf.gather(tf.constant(costs, tf.int64), answers["exit_index"])
            if walk.has_gates:
                cost -= tf.cast(tf.round(answers["saved"]), tf.int64)
            found["cost"] = cost
        return found

    fed = thresholds.numpy()
    return serve


def _costs(model, specs, rule, asked):
    """FLOPs to leave at each exit, or None where they depend on an open size."""
    if not model.road.open_sizes:
        return model.road.costs(None, rule, asked).exits
    shapes = tuple(tuple(spec.shape[1:]) for spec in specs)
    if any(None in shape for shape in shapes):
        return None
    return model.road.costs(shapes, rule, asked).exits


def _frozen(model):
    """Which rule an artifact holds, in words."""
    if len(model.exit_names) == 1:
        return "No early exit in it: samples save what gates and mixtures skip."
    rule = model.exit_rule
    if isinstance(rule, Selected):
        return "Frozen in it: the selector's choice of exits, Selected()."
    num_exits = len(model.exit_names) - 1
    temperatures = [float(str(t)) for t in np.asarray(model.calibration_temperatures)]
    text = f"Frozen in it: {rule!r} with temperatures {temperatures}"
    if any(temperature != 1.0 for temperature in temperatures):
        return f"{text}, as calibrated."
    try:
        default = type(rule)().thresholds(num_exits)
    except TypeError:  # a rule of the user's own that has no default
        default = None
    if default is not None and np.array_equal(rule.thresholds(num_exits), default):
        return f"{text}: the rule's default; the model was not calibrated."
    return f"{text}: thresholds set by hand, or calibrated without a correction."
