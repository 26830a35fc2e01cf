"""What a selector saves, in time: the dynamic road against its ideal and `predict`.

The ResNet-20-like CNN of early_exit.py on CIFAR-10, batch 128, with an `ExitSelector`
that sends 60, 20 and 20 % of the images to the three exits. It is not trained: its
weights are set so that the choice follows from the image's mean brightness m. With
the logits 0, m - t1 and 2 m - t1 - t2 the second exit beats the first where m > t1, and
the third the second where m > t2; t1 and t2 are quantiles of the images' brightness.

Prints ratios of medians taken alternately in one run:

- dynamic / ideal, the ideal being the selector's time, plus sum_k (share that reaches
  trunk k x its time), plus sum_k (share that chooses exit k x its head's time), each on
  full batches as a `tf.function`, plus the time that `Model.predict` of a model that
  only pools takes on the same input;
- dynamic / `Model.predict` of the final output alone, beside the ideal's share of it.

    python benchmarks/selected_walk.py
"""

import statistics

import keras
import numpy as np
import tensorflow as tf
from data import load_cifar10
from early_exit import BATCH, REPEATS, SAMPLES, SHARES, resnet20, timed

import keras_dynamic as kd


def with_selector(model, x):
    """The same network under a selector that sends `SHARES` of `x` to its exits."""
    selector = kd.ExitSelector(len(SHARES), pooling="average", name="selector")
    selected = kd.DynamicModel(
        model.input, model.outputs, selector=selector(model.input)
    )
    ranked = np.sort(x.mean(axis=(1, 2, 3)))
    counts = np.round(np.cumsum(SHARES[:-1]) * len(x)).astype(int)
    first, second = (float(ranked[n - 1] + ranked[n]) / 2 for n in counts)
    slopes, offsets = [0.0, 1.0, 2.0], [0.0, -first, -first - second]
    channels = x.shape[-1]
    kernel = np.repeat([slopes], channels, axis=0) / channels
    selector.head.classifier.set_weights([kernel, np.array(offsets)])
    return selected


def pieces_of(model, x):
    """Trunks, heads and selector alone: {name: function that runs it on all of x}."""
    # The last trunk and the last head are one piece: whoever enters it needs both.
    cuts = [model.get_layer(name).input for name in ("exit_1", "exit_2")]
    heads = [model.get_layer(name).output for name in ("exit_1", "exit_2", "final")]
    batches = [tf.constant(x[i : i + BATCH]) for i in range(0, len(x), BATCH)]

    def compiled(inputs, outputs):
        piece = keras.Model(inputs, outputs)
        return tf.function(lambda batch: piece(batch, training=False))

    def over(function, batches):
        return lambda: [function(batch) for batch in batches]

    first = compiled(model.input, cuts[0])
    second = compiled(cuts[0], cuts[1])
    after_first = [first(batch) for batch in batches]
    after_second = [second(batch) for batch in after_first]
    selector = compiled(model.input, model.get_layer("selector").output)
    return {
        "selector": over(selector, batches),
        "trunk 1": over(first, batches),
        "trunk 2": over(second, after_first),
        "trunk 3 and final": over(compiled(cuts[1], heads[2]), after_second),
        "exit_1": over(compiled(cuts[0], heads[0]), after_first),
        "exit_2": over(compiled(cuts[1], heads[1]), after_second),
    }


def measure(model, plain, x):
    """Medians in seconds of everything, measured in turns so that noise is shared."""
    pooling = keras.Sequential(
        [keras.Input(x.shape[1:]), keras.layers.GlobalAveragePooling2D()]
    )
    options = {"batch_size": BATCH, "verbose": 0}
    runs = {
        **pieces_of(model, x),
        "pooling only, predict": lambda: pooling.predict(x, **options),
        "final alone, predict": lambda: plain.predict(x, **options),
        "dynamic": lambda: model.predict_dynamic(x, **options),
    }
    for run in runs.values():
        run()
    times = {name: [] for name in runs}
    for _ in range(REPEATS):
        for name, run in runs.items():
            times[name].append(timed(run))
    return {name: statistics.median(values) for name, values in times.items()}


def main():
    keras.utils.set_random_seed(0)
    x = load_cifar10()[1][0][:SAMPLES]
    exits = resnet20()
    model = with_selector(exits, x)
    rates = model.predict_dynamic(x, batch_size=BATCH, verbose=0).exit_rates
    times = measure(model, kd.strip_exits(exits), x)
    for name, seconds in times.items():
        print(f"{name:24s} {seconds:7.3f} s")
    shares = {
        "selector": 1.0,
        "trunk 1": 1.0,
        "trunk 2": rates[1] + rates[2],
        "trunk 3 and final": rates[2],
        "exit_1": rates[0],
        "exit_2": rates[1],
        "pooling only, predict": 1.0,
    }
    ideal = sum(share * times[name] for name, share in shares.items())
    static = times["final alone, predict"]
    print("exit rates:", " ".join(f"{rate:.3f}" for rate in rates))
    print(f"dynamic / ideal: {times['dynamic'] / ideal:.3f}")
    print(f"dynamic / predict: {times['dynamic'] / static:.3f}")
    print(f"ideal / predict: {ideal / static:.3f}")


if __name__ == "__main__":
    main()
