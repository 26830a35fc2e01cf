"""What the package gains and costs on a GPU: ratios, in one table.

The first line says which GPU was found. Then, taken in turns in one run, from medians:

- dynamic / static: `predict_dynamic` over `predict` of the final output alone, for
  given shares of the samples that leave at the three exits of a ResNet-20;
- dynamic / ideal, with TensorFlow's own kernels and with XLA: the ideal is sum_k (share
  that reaches segment k x the time of segment k on full batches);
- a step of training in mixed_float16 and mixed_bfloat16 over one in float32;
- a step of training with XLA over one without;
- `SparseMoE`, K = 1 of 8 experts with room for 1.25 times the even load, over a dense
  network of the size of one expert, forward and backward.

    python benchmarks/gpu.py [--repeats 5]
    python benchmarks/gpu.py --cpu

Without a GPU it stops, unless `--cpu` is given: then it runs in little, to see that it
runs, and says that its figures are a CPU's.
"""

import argparse
import statistics
import sys

import keras
import numpy as np
import tensorflow as tf
from early_exit import SHARES, resnet20, thresholds_for
from engine import full_batches, seconds
from sparse_moe import dense_network, functions, median_times, mixture, random_tokens

import keras_dynamic as kd

EXPERTS = 8


def device_line():
    """(what was found, in words; whether that is a GPU)."""
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return "No GPU found", False
    details = tf.config.experimental.get_device_details(gpus[0])
    name = details.get("device_name", "of unknown name")
    return f"GPU found: {len(gpus)} x {name}, TensorFlow {tf.__version__}", True


def ratio_of_medians(runs, base, repeats):
    """{name: median time / that of `base`}, all taken in turns after a first call."""
    for run in runs.values():
        run()
    times = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(seconds(run))
    medians = {name: statistics.median(each) for name, each in times.items()}
    return {name: value / medians[base] for name, value in medians.items()}


def inference(count, batch, repeats):
    """Rows of the table: the walk against the whole network and its ideal."""
    keras.utils.set_random_seed(0)
    model = resnet20()
    x = np.random.default_rng(0).normal(size=(count, 32, 32, 3)).astype("float32")
    model.exit_rule = kd.rules.MaxProbability(thresholds_for(model, x, SHARES))
    static = keras.Model(model.input, model.outputs[-1])
    reach = np.cumsum([1.0, *(-share for share in SHARES[:-1])])
    segments = full_batches(model, x[:batch])
    runs = {
        "static": lambda: static.predict(x, batch_size=batch, verbose=0),
        "dynamic": lambda: model.predict_dynamic(x, batch_size=batch, verbose=0),
    }
    for run in (*runs.values(), *runs.values()):  # all that is tried is tried
        run()
    ratios = {"dynamic / static": [], "own kernels": [], "XLA": []}
    for _ in range(repeats):
        whole, walked = (seconds(run) for run in runs.values())
        alone = np.array([[seconds(way, 5) for way in ways] for ways in segments])
        plain, _, compiled = reach @ alone * count / batch
        ratios["dynamic / static"].append(walked / whole)
        ratios["own kernels"].append(walked / plain)
        ratios["XLA"].append(walked / compiled)
    shown = "/".join(f"{100 * share:.0f}" for share in SHARES)
    medians = {name: statistics.median(each) for name, each in ratios.items()}
    return [
        (f"dynamic / static, {shown} leaving", medians["dynamic / static"]),
        ("dynamic / ideal by TensorFlow's own kernels", medians["own kernels"]),
        ("dynamic / ideal by XLA", medians["XLA"]),
    ]


def one_step(policy, jit_compile, batch):
    """A function that trains the ResNet for a step on one batch."""
    usual = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        keras.utils.set_random_seed(0)
        model = resnet20()
        model.compile(
            "adam", "sparse_categorical_crossentropy", jit_compile=jit_compile
        )
    finally:
        keras.config.set_dtype_policy(usual)
    generator = np.random.default_rng(0)
    x = tf.constant(generator.normal(size=(batch, 32, 32, 3)), "float32")
    y = tf.constant(generator.integers(0, 10, batch))

    def step():
        loss = model.train_on_batch(x, y, return_dict=True)["loss"]
        assert np.isfinite(loss)

    return step


def training(batch, repeats):
    """Rows of the table: half precision and XLA, against float32 without XLA."""
    runs = {
        "float32": one_step("float32", False, batch),
        "mixed_float16": one_step("mixed_float16", False, batch),
        "mixed_bfloat16": one_step("mixed_bfloat16", False, batch),
        "XLA": one_step("float32", True, batch),
        "mixed_float16 and XLA": one_step("mixed_float16", True, batch),
    }
    ratios = ratio_of_medians(runs, "float32", repeats)
    return [
        (f"a step of training, {name} / float32", ratio)
        for name, ratio in ratios.items()
        if name != "float32"
    ]


def experts(repeats):
    """Rows of the table: a mixture against a dense network of equal active size."""
    keras.utils.set_random_seed(0)
    x, targets = tf.Variable(random_tokens()), tf.constant(random_tokens()[::-1])
    sparse = mixture(EXPERTS, 1, capacity_factor=1.25, inference_capacity_factor=1.25)
    hidden = sparse.hidden_units
    networks = {
        "dense": dense_network(hidden),
        "experts": (sparse, sparse.trainable_weights),
    }
    pairs = {name: functions(*each, x, targets) for name, each in networks.items()}
    rows = []
    for index, what in enumerate(("forward", "forward and backward")):

        def finished(run):  # a GPU answers before it has finished
            return lambda: [t.numpy() for t in tf.nest.flatten(run())[:1]]

        calls = {name: finished(pair[index]) for name, pair in pairs.items()}
        times = median_times(calls, repeats)
        ratio = times["experts"] / times["dense"]
        rows.append((f"{EXPERTS} experts, K = 1 / dense, {what}", ratio))
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    found, on_gpu = device_line()
    print(found, flush=True)
    if not on_gpu and not arguments.cpu:
        sys.exit(
            "This script measures a GPU, and TensorFlow sees none: nothing was "
            "measured. `--cpu` runs it in little on this machine's CPU."
        )
    if on_gpu and not arguments.cpu:
        count, batch, repeats = 8192, 256, arguments.repeats
    else:
        tf.config.set_visible_devices([], "GPU")
        count, batch, repeats = 128, 32, 1
        print("A CPU's figures, of few and small runs: they say nothing of a GPU.")
    rows = [
        *inference(count, batch, repeats),
        *training(batch, repeats),
        *experts(repeats),
    ]
    width = max(len(what) for what, _ in rows)
    for what, ratio in rows:
        print(f"{what:{width}}  {ratio:6.2f}")


if __name__ == "__main__":
    main()
