"""What leaving early saves outside of Python: SavedModel, LiteRT, ONNX Runtime.

The ResNet-20-like CNN of early_exit.py, untrained, is exported in each format under
four rules: everyone leaves at the first exit; 60, 20 and 20 % leave at the three exits;
nobody leaves early; and as the plain network, its final output alone by Keras' own
export. CIFAR-10 test images at batch 1 and 128, two threads. At batch 1 the shares are
those of 100 images one after the other.

Prints medians of calls taken alternately in one run, and their ratios to the plain
network of the same format. The same calls are repeated on one loaded artifact: for
LiteRT on an interpreter of its own for each batch size.

    python benchmarks/export.py
"""

import statistics
import tempfile
from pathlib import Path

import keras
import numpy as np
import onnxruntime
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from data import load_cifar10
from early_exit import SHARES, resnet20, thresholds_for, timed

import keras_dynamic as kd

FORMATS = ("tf_saved_model", "litert", "onnx")
BATCHES = {1: 100, 128: 3}  # batch size: calls in one measurement
REPEATS = 7
THREADS = 2


def runner(path, format):
    """A function that answers a batch with a loaded artifact."""
    if format == "tf_saved_model":
        loaded = tf.saved_model.load(path)

        def serve(x):
            return loaded.serve(x)

        return serve
    if format == "litert":
        interpreter = Interpreter(path, num_threads=THREADS)
        serve = interpreter.get_signature_runner()
        (name,) = serve.get_input_details()
        return lambda x: serve(**{name: x})
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(path, options)
    (given,) = session.get_inputs()
    return lambda x: session.run(None, {given.name: x})


def export_all(x, folder):
    """{format: {variant: path}} of the network under every rule, and of the plain one.

    Each variant has the same weights.
    """
    model = resnet20()
    rules = {
        "all leave first": kd.rules.MaxProbability(0.0),
        "60/20/20": kd.rules.MaxProbability(thresholds_for(model, x, SHARES)),
        "nobody leaves": kd.rules.MaxProbability(None),
    }
    plain = kd.strip_exits(model)
    plain(x[:1])  # Keras exports to ONNX what was called
    paths = {}
    for format in FORMATS:
        paths[format] = {"plain": str(Path(folder) / f"{format}_plain.tflite")}
        plain.export(paths[format]["plain"], format=format, verbose=False)
        for name, rule in rules.items():
            model.exit_rule = rule
            path = str(Path(folder) / f"{format}_{name}".replace("/", "_"))
            model.export(path, format=format, verbose=False)
            paths[format][name] = path
    return paths


def measure(paths, x, batch, calls):
    """Medians in seconds of `calls` calls of every variant."""
    serves = {
        (format, name): runner(path, format)
        for format, variants in paths.items()
        for name, path in variants.items()
    }
    batches = [x[i * batch : (i + 1) * batch] for i in range(calls)]
    times = {key: [] for key in serves}
    for repeat in range(REPEATS + 1):
        for key, serve in serves.items():
            seconds = timed(lambda serve=serve: [serve(each) for each in batches])
            if repeat:  # the first is to warm up
                times[key].append(seconds)
    return {key: statistics.median(values) for key, values in times.items()}


def main():
    keras.utils.set_random_seed(0)
    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    x = load_cifar10()[1][0][: max(batch * n for batch, n in BATCHES.items())]
    x = np.ascontiguousarray(x)
    with tempfile.TemporaryDirectory() as folder:
        paths = export_all(x, folder)
        for batch, calls in BATCHES.items():
            times = measure(paths, x, batch, calls)
            print(f"batch {batch}: ms a call, ratio to the plain network")
            for format in FORMATS:
                cells = [
                    f"{name} {1000 * times[format, name] / calls:.2f} "
                    f"({times[format, name] / times[format, 'plain']:.2f})"
                    for name in paths[format]
                ]
                print(f"  {format:15s} {'; '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
