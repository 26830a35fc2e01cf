"""The dynamic engine against its ideal, on a CNN and a transformer.

(a) `predict_dynamic` on many inputs, for given shares of the samples that leave at the
    three exits. The *ideal* is sum_k (share that reaches segment k x the time of
    segment k on full batches, each as a `tf.function`); the *best ideal* takes for each
    segment the fastest of that, XLA, and constants for weights. Beside it the same by
    `Model.predict` of all exits plus a selection in NumPy, which is what a user would
    write without this package.
(b) One sample at a time, by `dynamic_function`: leaving at the first exit over segment
    1 alone, and staying to the end over the final output alone. Those two are compiled
    functions of their own, with XLA or without, whichever is faster.

(c) A million samples through `stream_dynamic` and `predict_dynamic`, from a `tf.data`
    pipeline: how much the peak of resident memory grows after the first tenth.
(d) A thousand calls by eight threads at once on one model, all answers compared.

All ratios are taken in turns in one run, from medians. The networks are a ResNet-20 on
32 x 32 images, a transformer with 6 layers on 64 tokens, and for (b) a LeNet; random
weights and inputs, since only time counts, with thresholds that give the shares.

    python benchmarks/engine.py [--parts abcd] [--inputs 10000] [--repeats 5] \
        [--json FILE]
"""

import argparse
import resource
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import record
import tensorflow as tf
from early_exit import resnet20, segment_functions, thresholds_for

import keras_dynamic as kd
from keras_dynamic._compat import frozen

SHARES = ((0.6, 0.2, 0.2), (0.9, 0.05, 0.05))
BATCHES = (128, 16)
# Seconds of calls before anything is timed.
WARM_UP = 30
TOKENS, VOCABULARY, WIDTH = 64, 1000, 128


def transformer():
    layers = keras.layers
    inputs = keras.Input((TOKENS,), dtype="int32")
    x = layers.Embedding(VOCABULARY, WIDTH)(inputs)
    exits = []
    for block in range(6):
        attention = layers.MultiHeadAttention(4, WIDTH // 4)
        x = layers.LayerNormalization()(x + attention(x, x))
        hidden = layers.Dense(4 * WIDTH, "gelu")(x)
        x = layers.LayerNormalization()(x + layers.Dense(WIDTH)(hidden))
        if block in (1, 3):
            exits.append(kd.EarlyExit(4, name=f"exit_{len(exits) + 1}")(x))
    x = layers.GlobalAveragePooling1D()(x)
    exits.append(layers.Dense(4, "softmax", name="final")(x))
    return kd.DynamicModel(inputs, exits)


def lenet():
    layers = keras.layers
    inputs = keras.Input((28, 28, 1))
    x = layers.Conv2D(6, 5, padding="same", activation="relu")(inputs)
    x = layers.MaxPooling2D()(x)
    exits = [kd.EarlyExit(10, grid=2, name="exit_1")(x)]
    x = layers.MaxPooling2D()(layers.Conv2D(16, 5, activation="relu")(x))
    x = layers.Dense(84, "relu")(layers.Dense(120, "relu")(layers.Flatten()(x)))
    exits.append(layers.Dense(10, "softmax", name="final")(x))
    return kd.DynamicModel(inputs, exits)


def inputs_of(model, count):
    rng = np.random.default_rng(0)
    shape = (count, *model.input_shape[1:])
    if model.inputs[0].dtype == "int32":
        return rng.integers(0, VOCABULARY, shape).astype("int32")
    return rng.normal(size=shape).astype("float32")


def seconds(run, repeats=1):
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def full_batches(model, x):
    """For each segment, ways to run it alone on a whole batch; the plain one first."""
    fed, segments = tf.constant(x), []
    for function in segment_functions(model):
        plain = function.get_concrete_function(tf.TensorSpec(fed.shape, fed.dtype))
        compiled = tf.function(function.python_function, jit_compile=True)
        segments.append(
            [
                lambda f=way, t=fed: np.asarray(tf.nest.flatten(f(t))[-1])
                for way in (plain, frozen(plain), compiled)
            ]
        )
        fed = tf.nest.flatten(plain(fed))[0]
    return segments


def many_inputs(make, count, repeats):
    """Prints, and returns rows of raw results."""
    keras.utils.set_random_seed(0)
    model, rows = make(), []
    x = inputs_of(model, count)
    for shares in SHARES:
        model.exit_rule = kd.rules.MaxProbability(thresholds_for(model, x, shares))
        thresholds = np.float32(model.exit_rule.threshold)
        reach = np.cumsum([1.0, *(-share for share in shares[:-1])])
        for batch in BATCHES:
            segments = full_batches(model, x[:batch])

            def dynamic(batch=batch):
                return model.predict_dynamic(x, batch_size=batch, verbose=0)

            def selected(batch=batch, thresholds=thresholds):
                outputs = model.predict(x, batch_size=batch, verbose=0)
                answers = outputs[-1].copy()
                for output, threshold in reversed(
                    list(zip(outputs[:-1], thresholds, strict=True))
                ):
                    leaves = output.max(axis=1) > threshold
                    answers[leaves] = output[leaves]
                return answers

            start = time.perf_counter()
            found = [dynamic().outputs]
            while time.perf_counter() - start < WARM_UP:  # all that is tried is tried
                found.append(dynamic().outputs)
            assert np.allclose(found[-1], selected(), atol=1e-4)
            times = {"ideal": [], "best": [], "dynamic": [], "selected": []}
            for _ in range(repeats):
                runs = max(3, min(20, count // batch // 4))
                alone = [[seconds(way, runs) for way in ways] for ways in segments]
                times["ideal"].append(reach @ [way[0] for way in alone] * count / batch)
                times["best"].append(
                    reach @ [min(way) for way in alone] * count / batch
                )
                times["dynamic"].append(seconds(dynamic))
                times["selected"].append(seconds(selected))
            ideal, best, ours, theirs = map(statistics.median, times.values())
            shown = "/".join(f"{100 * share:.0f}" for share in shares)
            print(
                f"{make.__name__:12s} {shown:9s} batch {batch:3d}: dynamic / ideal "
                f"{ours / ideal:.2f}, / best ideal {ours / best:.2f}, predict and "
                "select / dynamic "
                f"{theirs / ours:.2f} ({ours:.2f} s)",
                flush=True,
            )
            named = {f"seconds_{way}": taken for way, taken in times.items()}
            place = {"network": make.__name__, "shares": shown, "batch": batch}
            rows.append({"part": "a", **place, **named})
            rows[-1] |= {
                "dynamic_over_ideal": ours / ideal,
                "dynamic_over_best_ideal": ours / best,
                "selected_over_dynamic": theirs / ours,
            }
    return rows


def one_at_a_time(make, repeats):
    keras.utils.set_random_seed(0)
    model = make()
    x = tf.constant(inputs_of(model, 1))

    def compiled(output):
        plain = keras.Model(model.input, output)
        return [
            tf.function(
                lambda t: plain(t, training=False),
                autograph=False,
                jit_compile=jit_compile,
            ).get_concrete_function(tf.TensorSpec(x.shape, x.dtype))
            for jit_compile in (False, True)
        ]

    static, first = compiled(model.outputs[-1]), compiled(model.outputs[0])
    leaving = model.dynamic_function(rule=kd.rules.MaxProbability(0.0))
    staying = model.dynamic_function(rule=kd.rules.MaxProbability(None))
    assert leaving(x)["exit_index"][0] == 0 and staying(x)["exit_index"][0] > 0

    def each(function):
        for _ in range(5):
            function()
        return seconds(function, 300)

    ratios = {"leaving": [], "staying": []}
    for _ in range(repeats):
        alone = min(each(lambda f=f: f(x).numpy()) for f in first)
        whole = min(each(lambda f=f: f(x).numpy()) for f in static)
        leaves = each(lambda: leaving(x)["outputs"].numpy())
        stays = each(lambda: staying(x)["outputs"].numpy())
        ratios["leaving"].append(leaves / alone)
        ratios["staying"].append(stays / whole)
    print(
        f"{make.__name__:12s} one sample: leaving first / segment 1 alone "
        f"{statistics.median(ratios['leaving']):.2f}, nobody leaves / static "
        f"{statistics.median(ratios['staying']):.2f} "
        f"({1000 * leaves:.2f} and {1000 * stays:.2f} ms)",
        flush=True,
    )
    return {"part": "b", "network": make.__name__, **ratios}


def memory(count):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((64,))
    h = keras.layers.Dense(64, "relu")(inputs)
    early = kd.EarlyExit(4, name="exit_1")(h)
    final = keras.layers.Dense(4, "softmax")(keras.layers.Dense(64, "relu")(h))
    model = kd.DynamicModel(inputs, [early, final])
    rule = kd.rules.MaxProbability(0.4)
    data = tf.data.Dataset.range(count).map(
        lambda number: tf.random.stateless_normal([64], [0, number])
    )
    seen, peaks, left = 0, [], 0
    for prediction in model.stream_dynamic(data.batch(500), rule=rule):
        seen += len(prediction)
        left += int(np.sum(prediction.exit_index == 0))
        if seen % (count // 10) == 0:
            peaks.append(peak_memory())
    assert seen == count
    rows = [{"part": "c", "streamed": seen, "mb_tenth": peaks[0], "mb": peaks[-1]}]
    print(
        f"{seen:,} samples streamed, {left / seen:.0%} left early: peak of resident "
        f"memory {peaks[0]:.0f} MB after a tenth, {peaks[-1]:.0f} MB in the end"
    )

    for part in (count // 10, count):
        prediction = model.predict_dynamic(
            data.take(part).batch(500), rule=rule, verbose=0
        )
        assert len(prediction) == part
        answers = sum(
            getattr(prediction, name).nbytes
            for name in ("outputs", "probabilities", "exit_index", "confidence", "cost")
        )
        print(
            f"{part:,} by `predict_dynamic`: peak {peak_memory():.0f} MB; the answers "
            f"themselves {answers / 1e6:.0f} MB",
            flush=True,
        )
        rows.append({"part": "c", "predicted": part, "mb": peak_memory()})
    return rows


def peak_memory():
    """MB of resident memory, the most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def threads(number=8, calls=1000):
    keras.utils.set_random_seed(0)
    model = lenet()
    x = inputs_of(model, 256)
    outputs = np.stack(model.predict(x, verbose=0))
    threshold = float(np.median(outputs[0].max(axis=1)))
    rule = kd.rules.MaxProbability(threshold)
    expected = np.where(outputs[0].max(axis=1) > np.float32(threshold), 0, 1)
    close = np.abs(outputs[0].max(axis=1) - threshold) <= 1e-6

    def call(index):
        taken = (np.arange(len(x)) + 7 * index) % len(x)
        size = (16, 50, 256)[index % 3]
        found = model.predict_dynamic(x[taken], batch_size=size, rule=rule, verbose=0)
        sure = ~close[taken]
        exits = found.exit_index[sure]
        right = np.array_equal(exits, expected[taken][sure])
        wanted = outputs[exits, taken[sure]]
        return right and np.allclose(found.outputs[sure], wanted, atol=1e-5)

    with ThreadPoolExecutor(number) as pool:
        right = sum(pool.map(call, range(calls)))
    print(f"{number} threads, {calls:,} calls: {right:,} with all answers right")
    return {"part": "d", "threads": number, "calls": calls, "right": right}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", default="abcd")
    parser.add_argument("--inputs", type=int, default=10000)
    parser.add_argument("--repeats", type=int, default=5)
    record.add_option(parser)
    arguments, rows = parser.parse_args(), []
    if "a" in arguments.parts:
        for make in (resnet20, transformer):
            rows += many_inputs(make, arguments.inputs, arguments.repeats)
    if "c" in arguments.parts:
        rows += memory(1_000_000)
    if "d" in arguments.parts:
        rows.append(threads())
    if "b" in arguments.parts:
        for make in (lenet, resnet20, transformer):
            rows.append(one_at_a_time(make, arguments.repeats))
    record.write(arguments.json, rows, [0], lists="turns")


if __name__ == "__main__":
    main()
