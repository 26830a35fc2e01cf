"""How long a call of `Model.predict` waits beyond its work.

A small convolutional network predicts several numbers of batches of random images, many
times: by `predict` on arrays, by `predict` on a pipeline of `tf.data` whose `autotune`
is off, and by a compiled function on ready tensors, in turns. Printed are the least
time, the median and the greatest of each, in seconds.

    python benchmarks/predict_steps.py [--calls 15]
"""

import argparse
import time

import keras
import numpy as np
import tensorflow as tf
from keras import layers

BATCH = 128


def network():
    inputs = x = keras.Input((32, 32, 3))
    for _ in range(4):
        x = layers.Conv2D(32, 3, padding="same", activation="relu")(x)
    return keras.Model(inputs, layers.GlobalAveragePooling2D()(x))


def untuned(x):
    options = tf.data.Options()
    options.autotune.enabled = False
    dataset = tf.data.Dataset.from_tensor_slices(x).batch(BATCH).prefetch(2)
    return dataset.with_options(options)


def ways(model, x):
    """Dict from a name to a function without arguments."""
    call = tf.function(lambda batch: model(batch, training=False))
    batches = [tf.constant(x[i : i + BATCH]) for i in range(0, len(x), BATCH)]
    dataset = untuned(x)
    return {
        "predict": lambda: model.predict(x, batch_size=BATCH, verbose=0),
        "predict, autotune off": lambda: model.predict(dataset, verbose=0),
        "compiled function": lambda: [call(batch) for batch in batches],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=15, help="of each way")
    arguments = parser.parse_args()
    model = network()
    for batches in (2, 4, 8, 16, 24):
        shape = BATCH * batches, 32, 32, 3
        x = np.random.default_rng(0).random(shape, "float32")
        functions = ways(model, x)
        taken = {name: [] for name in functions}
        for turn in range(arguments.calls + 1):
            for name, function in functions.items():
                start = time.perf_counter()
                function()
                if turn:  # the first one traces
                    taken[name].append(time.perf_counter() - start)
        for name, times in taken.items():
            least, median, greatest = np.quantile(times, (0, 0.5, 1))
            print(
                f"{batches:2d} batches, {name:21s}: {least:.2f} / {median:.2f} / "
                f"{greatest:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
