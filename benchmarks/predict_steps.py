"""How long a call of `Model.predict` waits after its work is done.

A layer that sleeps for a fixed time stands for a network, so that the work of a call
is known and takes no core. `predict` is called many times on arrays, for several
numbers of batches. Printed are what the batches sleep in all, the median of the calls,
and the calls that take at least a tenth longer than the median: many end near 0.31,
0.63, 1.27 or 2.55 seconds, whatever the work. Beside it the same for a pipeline of
`tf.data` whose `autotune` is off.

    python benchmarks/predict_steps.py [--calls 20]
"""

import argparse
import statistics
import time

import keras
import numpy as np
import tensorflow as tf

BATCH, SECONDS = 16, 0.04


class Sleeping(keras.layers.Layer):
    def call(self, x):
        def sleep(values):
            time.sleep(SECONDS)
            return values

        return tf.ensure_shape(tf.numpy_function(sleep, [x], x.dtype), x.shape)


def untuned(x):
    options = tf.data.Options()
    options.autotune.enabled = False
    dataset = tf.data.Dataset.from_tensor_slices(x).batch(BATCH).prefetch(2)
    return dataset.with_options(options)


def times(model, x, calls):
    """Seconds of each call but the first, which traces."""
    taken = []
    for _ in range(calls + 1):
        start = time.perf_counter()
        model.predict(x, batch_size=BATCH if hasattr(x, "shape") else None, verbose=0)
        taken.append(time.perf_counter() - start)
    return sorted(taken[1:])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=20, help="of each kind")
    arguments = parser.parse_args()
    inputs = keras.Input((32, 32, 3))
    model = keras.Model(inputs, Sleeping()(inputs))
    for batches in (4, 10, 20, 40):
        x = np.random.default_rng(0).random((BATCH * batches, 32, 32, 3), "float32")
        for name, data in (("arrays", x), ("autotune off", untuned(x))):
            taken = times(model, data, arguments.calls)
            median = statistics.median(taken)
            late = " ".join(f"{t:.2f}" for t in taken if t > 1.1 * median) or "none"
            print(
                f"{batches * SECONDS:.2f} s of work, {name:12s}: median {median:.2f}, "
                f"late: {late}",
                flush=True,
            )


if __name__ == "__main__":
    main()
