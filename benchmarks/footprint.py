"""What the package weighs: import time, and memory that stays.

(a) The time of `import keras_dynamic` over that of `import keras,
    tensorflow_probability`, each in a fresh process, in turns; and whether the import
    warns of anything, with `-W error`.
(b) Resident memory after 1,000 and after 10,000 calls of `predict_dynamic` on one
    model, of 1 to 300 samples in batches of 1 to 32, under rules that change.
(c) Resident memory after 50 and after 200 models: each is made, calibrated, walked, and
    deleted; beside it the same with a step of training first. And for each a
    `keras.Model` of the same graph that predicts instead: what Keras and TensorFlow
    keep by themselves. With `keras.backend.clear_session()` after each model as well.

Each kind of models has a process of its own. Linux only: it reads /proc.

    python benchmarks/footprint.py [--parts abc] [--repeats 9]
"""

import argparse
import gc
import statistics
import subprocess
import sys
import time
from pathlib import Path

KINDS = ("keras", "dynamic")
# Seconds of calls before any is counted: functions are compiled, and compared, when
# there was enough work for it.
WARM_UP = 20
CALLS, FIRST_CALLS = 10_000, 1000
MODELS, FIRST_MODELS = 200, 50


def run(*arguments):
    """What a fresh process prints."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def import_seconds(statement):
    code = (
        f"import time; start = time.perf_counter(); {statement};"
        "print(time.perf_counter() - start)"
    )
    return float(run("-c", code))


def import_time(repeats):
    ours, theirs = "import keras_dynamic", "import keras, tensorflow_probability"
    for statement in (ours, theirs):  # the files are read from disk once
        import_seconds(statement)
    pairs = []
    for turn in range(repeats):
        order = (ours, theirs) if turn % 2 else (theirs, ours)
        seconds = {statement: import_seconds(statement) for statement in order}
        pairs.append((seconds[ours], seconds[theirs]))
    ratio = statistics.median(one / other for one, other in pairs)
    first, second = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(
        f"import: keras_dynamic / keras + tensorflow_probability {ratio:.3f} "
        f"({first:.2f} s and {second:.2f} s)"
    )
    said = run("-W", "error", "-c", "import keras_dynamic")
    print(f"import with -W error: {said or 'nothing said'}", flush=True)


def resident():
    """MB of resident memory now."""
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def small_model(kind):
    """A small network with two early exits, compiled."""
    import keras

    import keras_dynamic as kd

    layers = keras.layers
    inputs = x = keras.Input((16,))
    outputs = []
    for name in ("exit_1", "exit_2"):
        x = layers.Dense(32, "relu")(x)
        if kind == "dynamic":
            outputs.append(kd.EarlyExit(4, name=name)(x))
        else:
            outputs.append(layers.Dense(4, "softmax", name=name)(x))
    outputs.append(layers.Dense(4, "softmax", name="final")(layers.Dense(32)(x)))
    make = kd.DynamicModel if kind == "dynamic" else keras.Model
    model = make(inputs, outputs)
    loss = "sparse_categorical_crossentropy"
    if kind == "dynamic":
        model.compile("sgd", loss, metrics=["accuracy"])
    else:
        model.compile("sgd", [loss] * 3, metrics=[["accuracy"]] * 3)
    return model


def samples(rows):
    import numpy as np

    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 16)).astype("float32")
    return x, rng.integers(0, 4, rows)


def calls():
    """Prints the resident memory after some calls, and after all."""
    import keras_dynamic as kd

    model, (x, _) = small_model("dynamic"), samples(300)
    sizes = ((1, 1), (7, 32), (32, 32), (33, 8), (300, 32))
    start = time.perf_counter()
    while time.perf_counter() - start < WARM_UP:  # all that is tried is tried
        model.predict_dynamic(x, batch_size=32, verbose=0)
    for call in range(1, CALLS + 1):
        # The longest, of many batches, one time in twenty.
        rows, batch = sizes[4 if call % 20 == 0 else call % 4]
        rule = (
            kd.rules.MaxProbability(0.25 + 0.1 * (call % 7)),
            kd.rules.Entropy(0.2 * (call % 5)),
            kd.rules.Patience(1),
            None,
        )[call // 5 % 4]
        found = model.predict_dynamic(x[:rows], batch_size=batch, rule=rule, verbose=0)
        assert len(found) == rows
        if call in (FIRST_CALLS, CALLS):
            print(resident(), flush=True)


def models(kind, trained, clear):
    """Prints the resident memory after some models, and after all."""
    import keras

    x, y = samples(64)
    for number in range(1, MODELS + 1):
        model = small_model(kind)
        targets = y if kind == "dynamic" else [y] * 3
        if trained:
            model.fit(x, targets, batch_size=64, verbose=0)
        if kind == "dynamic":
            model.calibrate(x, y, budget=1.0)
            model.predict_dynamic(x, verbose=0)
        else:
            model.predict(x, verbose=0)
        del model
        if clear:
            keras.backend.clear_session()
        if number in (FIRST_MODELS, MODELS):
            print(resident(), flush=True)


def memory_of_calls():
    first, last = map(float, run(__file__, "--calls").split())
    print(
        f"predict_dynamic: {first:.1f} MB after {FIRST_CALLS:,} calls, {last:.1f} MB "
        f"after {CALLS:,}: {last - first:+.1f} MB",
        flush=True,
    )


def memory_of_models():
    for options in ([], ["--clear"], ["--trained"], ["--trained", "--clear"]):
        for kind in KINDS:
            found = run(__file__, "--models", kind, *options)
            first, last = map(float, found.split())
            each = 1024 * (last - first) / (MODELS - FIRST_MODELS)
            print(
                f"{kind} {' '.join(options) or 'models'}: {first:.1f} MB after "
                f"{FIRST_MODELS}, {last:.1f} MB after {MODELS}: {each:+.0f} KB a model",
                flush=True,
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", default="abc")
    parser.add_argument("--repeats", type=int, default=9)
    # What the script calls itself with, in processes of their own.
    parser.add_argument("--calls", action="store_true")
    parser.add_argument("--models", choices=KINDS)
    parser.add_argument("--trained", action="store_true")
    parser.add_argument("--clear", action="store_true")
    arguments = parser.parse_args()
    if arguments.calls:
        return calls()
    if arguments.models:
        return models(arguments.models, arguments.trained, arguments.clear)
    if "a" in arguments.parts:
        import_time(arguments.repeats)
    if "b" in arguments.parts:
        memory_of_calls()
    if "c" in arguments.parts:
        memory_of_models()


if __name__ == "__main__":
    main()
