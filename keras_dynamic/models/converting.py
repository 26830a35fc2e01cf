"""A serving function in the formats of other runtimes, and run there."""

import importlib.util
import logging
import re
import tempfile

import keras
import numpy as np
import tensorflow as tf

__all__ = ["check_installed", "to_litert", "to_onnx"]

_NEEDED = {
    "litert": ("ai_edge_litert",),
    "onnx": ("tf2onnx", "onnx", "onnxruntime"),
}


def check_installed(format):
    """Raises an ImportError where a package that a format needs is missing."""
    missing = [name for name in _NEEDED[format] if not importlib.util.find_spec(name)]
    if missing:
        raise ImportError(
            f"`format={format!r}` needs {' and '.join(missing)}: "
            'pip install "keras_dynamic[export]"'
        )


def to_litert(write_saved_model):
    """A LiteRT model of what a SavedModel serves.

    Of the ways into LiteRT this is the one that gives right numbers: variables that
    were not frozen are converted without an error and read as something else.

    Args:
        write_saved_model: function that writes a SavedModel to the folder it is given.

    Returns:
        (model, run): bytes, and a function that runs them, from a dict of arrays by
        name to a dict of arrays.

    Raises:
        ValueError: for operations that LiteRT does not have; names them.
    """
    from ai_edge_litert.interpreter import Interpreter

    with tempfile.TemporaryDirectory() as folder:
        write_saved_model(folder)
        converter = tf.lite.TFLiteConverter.from_saved_model(
            folder, signature_keys=["serve"]
        )
        try:
            model = converter.convert()
        except Exception as error:  # its own class is private
            raise _not_for_litert(str(error)) from error

    def run(arrays):
        # A new one each time: resized after a run, it writes beyond its memory.
        interpreter = Interpreter(model_content=model)
        return interpreter.get_signature_runner("serve")(**arrays)

    return model, run


def to_onnx(model, serve, specs, opset_version=None):
    """An ONNX model of a serving function.

    The variables become constants where they are read, in the branch that reads them,
    and the graph goes to tf2onnx as it is. `tf2onnx.convert` would have TensorFlow
    inline and optimize it first, which takes the shapes off the tensors in branches
    that lie in branches; convolutions cannot be converted then.

    Args:
        model: the model that `serve` runs.
        serve: function of a flat list of tensors that returns a dict of tensors.
        specs: flat list of `tf.TensorSpec`s, named.
        opset_version: int, or None for tf2onnx' own.

    Returns:
        (model, run), as of `to_litert`.

    Raises:
        ValueError: for operations that cannot be converted; names them.
    """
    import onnxruntime
    from tf2onnx import optimizer, tfonnx

    # The graph's own names get a prefix, so that those of the outputs are free.
    fed = [tf.TensorSpec(s.shape, s.dtype, name=f"fed_{s.name}") for s in specs]
    constants = _Constants(model)

    def frozen(*tensors):
        with constants:
            return serve(list(tensors))

    traced = tf.function(frozen, autograph=False, input_signature=fed)
    traced = traced.get_concrete_function()
    # Arrays that layers hold besides their variables come after what is fed.
    held = zip(traced.inputs[len(specs) :], traced.captured_inputs, strict=True)
    found = traced.structured_outputs
    taken = zip(traced.inputs, specs, strict=False)
    renamed = {tensor.name: spec.name for tensor, spec in taken}
    renamed |= {tensor.name: name for name, tensor in found.items()}
    graph_def = traced.graph.as_graph_def(add_shapes=True)
    complaints = _Complaints()
    with complaints, tf.device("/cpu:0"), tf.Graph().as_default() as graph:
        known = {
            inner.name: tf.constant(outer.numpy())
            for inner, outer in held
            if outer.dtype != tf.resource
        }
        tf.import_graph_def(graph_def, known, name="")
        try:
            converted = tfonnx.process_tf_graph(
                graph,
                input_names=[tensor.name for tensor in traced.inputs[: len(specs)]],
                output_names=[tensor.name for tensor in found.values()],
                tensors_to_rename=renamed,
                opset=opset_version,
                custom_op_handlers=_HANDLERS,
                continue_on_error=True,  # and tell all of them at once
            )
        except Exception as error:
            raise ValueError(
                f"`format='onnx'` cannot hold this model, so nothing was written: "
                f"{error}"
            ) from error
        converted = optimizer.optimize_graph(converted, catch_errors=True)
        content = converted.make_model(model.name).SerializeToString()
    if complaints.operations:
        raise _unsupported("onnx", complaints.operations)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]

    def run(arrays):
        return dict(zip(outputs, session.run(None, arrays), strict=True))

    return content, run


class _Constants(keras.StatelessScope):
    """Within it, a Keras variable is a constant of the graph that reads it."""

    def __init__(self, model):
        super().__init__()
        self._arrays = {id(v): np.asarray(v) for v in model.variables}

    def get_current_value(self, variable):
        array = self._arrays.get(id(variable))
        return None if array is None else tf.constant(array)


def _convert_erfc(graph, node, name, _):
    """erfc(x) = 1 - erf(x), a part of GELU."""
    (x,) = node.input
    erf, subtract = _with_nodes(graph, node)
    one = graph.make_const(f"{name}_one", np.ones((), "float32")).output[0]
    subtract("Sub", [one, erf("Erf", [x])])


def _convert_xlogy(graph, node, name, _):
    """xlogy(x, y) = x log y, and 0 where x is 0: the terms of an entropy."""
    x, y = node.input
    within, last = _with_nodes(graph, node)
    zero = graph.make_const(f"{name}_zero", np.zeros((), "float32")).output[0]
    product = within("Mul", [x, within("Log", [y])])
    is_zero = graph.make_node("Equal", [x, zero]).output[0]
    last("Where", [is_zero, zero, product])


def _with_nodes(graph, node):
    """Takes a node out of a graph of tf2onnx.

    Returns:
        Two functions that make a node of a kind from inputs and return its output: one
        for those on the way, one for the last, which gives what the node gave.
    """
    (output,) = node.output
    like = {
        "shapes": [graph.get_shape(output)],
        "dtypes": [graph.get_dtype(output)],
    }
    graph.remove_node(node.name)

    def within(kind, inputs):
        return graph.make_node(kind, inputs, **like).output[0]

    def last(kind, inputs):
        graph.make_node(kind, inputs, name=node.name, outputs=[output], **like)

    return within, last


# What tf2onnx does not know, though ONNX has what it takes.
_HANDLERS = {"Erfc": (_convert_erfc, []), "Xlogy": (_convert_xlogy, [])}


class _Complaints(logging.Handler):
    """Keeps what tf2onnx logs about operations that it cannot convert."""

    def __init__(self):
        super().__init__(logging.ERROR)
        self.operations = set()
        self._logger = logging.getLogger("tf2onnx")

    def emit(self, record):
        message = record.getMessage()
        found = re.findall(r"op \[.*?: (\w+)\] is not supported", message)
        found += re.findall(r"OP=(\w+)", message)
        if message.startswith("Unsupported ops"):
            found += re.findall(r"'(\w+)'", message)
        self.operations.update(found or [message.splitlines()[0]])

    def __enter__(self):
        self._before = self._logger.propagate, self._logger.level
        self._logger.propagate = False
        self._logger.setLevel(logging.ERROR)
        self._logger.addHandler(self)

    def __exit__(self, *_):
        self._logger.removeHandler(self)
        self._logger.propagate, level = self._before
        self._logger.setLevel(level)


def _not_for_litert(message):
    """A ValueError that says what LiteRT's converter complains about."""
    found = re.findall(r"'tf\.(\w+)' op (?:is neither|requires)", message)
    found += re.findall(r"failed to legalize operation 'tf\.(\w+)'", message)
    if any(operation.startswith("TensorList") for operation in found):
        return ValueError(
            "`format='litert'` cannot run over the steps of a sequence with any number "
            f"of samples, for lack of {', '.join(sorted(set(found)))}, "
            "so nothing was written. If the number of steps is fixed, set `unroll = "
            "True` on the recurrent layers (`LSTM`, `GRU`, `RNN`), those of a trained "
            "model too; else export the model as 'onnx' or 'tf_saved_model'."
        )
    # The details give each operation with the types that it reads.
    types = re.findall(r"\btf\.(\w+)\"?\(([^\n]*)", message)
    half = {operation for operation, rest in types if "f16>" in rest} & set(found)
    if half and half == set(found):
        return ValueError(
            "`format='litert'` does not compute in half precision, as this model does "
            f"in {', '.join(sorted(half))}, so nothing was written. Give its layers "
            "dtype='float32', or export the model as 'tf_saved_model'."
        )
    if not found:
        first = next((line for line in message.splitlines() if line.strip()), message)
        return ValueError(
            f"`format='litert'` cannot hold this model, so nothing was written: {first}"
        )
    return _unsupported("litert", set(found) - half)


def _unsupported(format, operations):
    return ValueError(
        f"`format={format!r}` does not have the operation(s) "
        f"{', '.join(sorted(operations))}, which the model needs, so nothing was "
        "written. Leave such a layer outside of the model, or export the model as "
        "'tf_saved_model'."
    )
