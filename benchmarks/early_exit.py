"""What early exits save, in time: the dynamic road against its ideal and `predict`.

A ResNet-20-like CNN on CIFAR-10, batch 128, exits after the first and second stage,
60, 20 and 20 % of the samples leaving at the three exits. Prints ratios of medians
taken alternately in one run:

- dynamic / ideal, the ideal being sum_k (share that reaches segment k x the time of
  segment k on full batches, as a `tf.function`) plus the time that `Model.predict` of
  a model that only pools takes on the same input;
- dynamic / `Model.predict` of the final output alone, beside the ideal's share of it;
- the same when nobody leaves.

    python benchmarks/early_exit.py [--memory]

`--memory` compares the peak resident memory of two processes that only predict.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from data import load_cifar10

import keras_dynamic as kd

SAMPLES, BATCH, REPEATS = 2048, 128, 9
SHARES = (0.6, 0.2, 0.2)


def residual_block(x, filters, strides=1):
    layers = keras.layers
    shortcut = x
    x = layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization()(x)
    if shortcut.shape != x.shape:
        shortcut = layers.Conv2D(filters, 1, strides, use_bias=False)(shortcut)
        shortcut = layers.BatchNormalization()(shortcut)
    return layers.ReLU()(layers.add([x, shortcut]))


def resnet20():
    layers = keras.layers
    inputs = keras.Input((32, 32, 3))
    x = layers.Conv2D(16, 3, padding="same", use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    exits = []
    for stage, filters in enumerate((16, 32, 64)):
        for block in range(3):
            x = residual_block(x, filters, 2 if stage and not block else 1)
        if stage < 2:
            head = kd.EarlyExit(10, pooling="average", name=f"exit_{stage + 1}")
            exits.append(head(x))
    x = layers.GlobalAveragePooling2D()(x)
    exits.append(layers.Dense(10, "softmax", name="final")(x))
    return kd.DynamicModel(inputs, exits)


def thresholds_for(model, x, shares):
    """Thresholds under which the given shares of `x` leave."""
    early = [output.max(axis=1) for output in model.predict(x, verbose=0)[:-1]]
    inside, thresholds = np.ones(len(x), bool), []
    for scores, share in zip(early, shares, strict=False):
        ranked = np.sort(scores[inside])[::-1]
        count = round(share * len(x))
        thresholds.append(float((ranked[count - 1] + ranked[count]) / 2))
        inside &= scores <= np.float32(thresholds[-1])
    return thresholds


def segment_functions(model):
    """Each segment alone as a `tf.function`, with full batches of its inputs."""
    names = ("exit_1", "exit_2", "final")
    cuts = [model.get_layer(name).input for name in names[:2]]
    heads = [model.get_layer(name).output for name in names]
    pieces = [
        keras.Model(model.input, [cuts[0], heads[0]]),
        keras.Model(cuts[0], [cuts[1], heads[1]]),
        keras.Model(cuts[1], heads[2]),
    ]
    functions = [tf.function(lambda t, m=m: m(t, training=False)) for m in pieces]
    return functions


def timed(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(model, x):
    """Medians in seconds of everything, measured in turns so that noise is shared."""
    functions = segment_functions(model)
    batches = [
        tf.constant(x[start : start + BATCH]) for start in range(0, len(x), BATCH)
    ]
    carried = [batches]
    for function in functions[:-1]:
        carried.append([function(batch)[0] for batch in carried[-1]])

    def segment(k):
        def run():
            for batch in carried[k]:
                functions[k](batch)

        return run

    final = kd.strip_exits(model)
    pooling = keras.Sequential(
        [keras.Input((32, 32, 3)), keras.layers.GlobalAveragePooling2D()]
    )
    leaving = kd.rules.MaxProbability(thresholds_for(model, x, SHARES))
    nobody = kd.rules.MaxProbability(1.0)
    options = {"batch_size": BATCH, "verbose": 0}
    rates = model.predict_dynamic(x, rule=leaving, **options).exit_rates
    runs = {
        "segment 1": segment(0),
        "segment 2": segment(1),
        "segment 3": segment(2),
        "pooling only, predict": lambda: pooling.predict(x, **options),
        "final alone, predict": lambda: final.predict(x, **options),
        "dynamic": lambda: model.predict_dynamic(x, rule=leaving, **options),
        "nobody leaves": lambda: model.predict_dynamic(x, rule=nobody, **options),
    }
    for run in runs.values():
        run()
    times = {name: [] for name in runs}
    for _ in range(REPEATS):
        for name, run in runs.items():
            times[name].append(timed(run))
    return {name: statistics.median(values) for name, values in times.items()}, rates


def compare_memory():
    """Peak resident memory of processes that only predict."""
    peaks = {"static": [], "dynamic": []}
    with tempfile.TemporaryDirectory() as folder:
        # A file of the images alone: decoding them would be the peak otherwise.
        images = f"{folder}/images.npy"
        np.save(images, load_cifar10()[1][0][:SAMPLES])
        for _ in range(3):
            for mode, values in peaks.items():
                command = [sys.executable, __file__, "--predict", mode, images]
                answer = subprocess.run(
                    command, capture_output=True, text=True, check=True
                ).stdout
                values.append(float(answer.split()[-1]) / 1024)
    static, dynamic = (statistics.median(values) for values in peaks.values())
    print(f"peak resident memory: static {static:.0f} MiB, dynamic {dynamic:.0f} MiB")
    print(f"dynamic / static: {dynamic / static:.3f}")


def only_predict(mode, images):
    keras.utils.set_random_seed(0)
    model = resnet20()
    x = np.load(images)
    if mode == "dynamic":
        rule = kd.rules.MaxProbability([0.13, 0.13])
        model.predict_dynamic(x, batch_size=BATCH, verbose=0, rule=rule)
    else:
        kd.strip_exits(model).predict(x, batch_size=BATCH, verbose=0)
    # Not `getrusage`, whose peak a process inherits from the one that started it.
    status = Path("/proc/self/status").read_text().splitlines()
    print(next(line.split()[1] for line in status if line.startswith("VmHWM")))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--predict", nargs=2, metavar=("ROAD", "IMAGES"))
    arguments = parser.parse_args()
    if arguments.predict:
        return only_predict(*arguments.predict)
    if arguments.memory:
        return compare_memory()
    keras.utils.set_random_seed(0)
    model = resnet20()
    x = load_cifar10()[1][0][:SAMPLES]
    times, rates = measure(model, x)
    for name, seconds in times.items():
        print(f"{name:24s} {seconds:7.3f} s")
    reach = (1.0, rates[1] + rates[2], rates[2])
    ideal = times["pooling only, predict"] + sum(
        share * times[f"segment {k + 1}"] for k, share in enumerate(reach)
    )
    static = times["final alone, predict"]
    print("exit rates:", " ".join(f"{rate:.3f}" for rate in rates))
    print(f"dynamic / ideal: {times['dynamic'] / ideal:.3f}")
    print(f"dynamic / predict: {times['dynamic'] / static:.3f}")
    print(f"ideal / predict: {ideal / static:.3f}")
    print(f"nobody leaves / predict: {times['nobody leaves'] / static:.3f}")


if __name__ == "__main__":
    main()
