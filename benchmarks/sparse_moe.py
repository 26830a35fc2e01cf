"""What a mixture of experts costs, against a dense network of equal active size.

Random tokens go through `SparseMoE` with random router weights, so the loads are uneven
as they fall: the largest one over the mean is printed. Beside it run a dense network of
the size of the chosen experts (Keras' own layers), the experts' products alone for an
even split (what reading so many weights costs by itself), dispatch by one-hot products
as in GShard, and all experts on all tokens. Forward, and forward and backward of a step
of training with the gradients of the input and of all weights. Peak memory is measured
in processes of their own.

With `--pytorch` the blocks of `transformers` run beside ours, with the same weights and
tokens, after their answers have been compared: Switch's (one expert a token, ReLU, its
capacity as large as the number of tokens, so that it drops none, as ours), and
Mixtral's (two of 8, gated linear units) in its two ways, a loop over experts and
PyTorch's grouped product. PyTorch runs eagerly in a process of its own, in turns with
ours; it needs the extra `bench`.

    python benchmarks/sparse_moe.py [--quick] [--experts 8 16 64] [--pytorch] \
        [--json FILE]
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
import record
import tensorflow as tf
from pytorch_process import PyTorchProcess, median_seconds

import keras_dynamic as kd

TOKENS, FEATURES, HIDDEN = 4096, 256, 1024


def dense_network(hidden):
    """A feed-forward network with `hidden` units."""
    network = keras.Sequential(
        [
            keras.Input((FEATURES,)),
            keras.layers.Dense(hidden, activation="relu"),
            keras.layers.Dense(FEATURES),
        ]
    )
    return network, network.trainable_weights


def mixture(num_experts, top_k, **arguments):
    arguments = {"activation": "relu", **arguments}
    layer = kd.SparseMoE(
        num_experts,
        HIDDEN,
        top_k=top_k,
        noise_stddev=0.0,
        balance_loss=None,
        **arguments,
    )
    layer.build((TOKENS, FEATURES))
    return layer


class OneHot:
    """Dispatch by products with one-hot tensors, capacity 1.25 (Lepikhin et al., 2020).

    It has the mixture's own weights, stacked once.
    """

    def __init__(self, layer):
        self.number = layer.num_experts
        self.router = tf.Variable(layer.router.kernel)
        tensors = [expert.tensors() for expert in layer.experts]
        self.weights = [
            tf.Variable(tf.stack(each)) for each in zip(*tensors, strict=True)
        ]
        self.capacity = -(-5 * TOKENS // (4 * self.number))

    @property
    def trainable(self):
        return [self.router, *self.weights]

    def __call__(self, x, training=False):
        first, first_bias, second, second_bias = self.weights
        probabilities = tf.nn.softmax(x @ self.router)
        weight, expert = tf.math.top_k(probabilities, 1)
        chosen = tf.one_hot(expert[:, 0], self.number)
        position = tf.cast(tf.cumsum(chosen, axis=0) * chosen - 1, tf.int32)
        slots = tf.one_hot(position, self.capacity)  # (tokens, experts, capacity)
        rows = tf.einsum("tec,td->ecd", slots, x)
        hidden = tf.nn.relu(rows @ first + first_bias[:, None])
        answers = hidden @ second + second_bias[:, None]
        return tf.einsum("tec,ecd->td", slots * weight[..., None], answers)


class ProductsAlone:
    """The experts' products for an even split: no router, no sorting, no weighing."""

    def __init__(self, layer):
        self.experts = layer.experts
        self.size = TOKENS // layer.num_experts

    @property
    def trainable(self):
        return [weight for expert in self.experts for weight in expert.weights]

    def __call__(self, x, training=False):
        parts = tf.split(x, [self.size] * len(self.experts))
        pairs = zip(self.experts, parts, strict=True)
        return tf.concat([expert(part) for expert, part in pairs], axis=0)


def functions(network, weights, x, targets):
    """(forward, forward and backward), compiled and without arguments."""

    @tf.function(autograph=False)
    def forward():
        return network(x)

    @tf.function(autograph=False)
    def both():
        with tf.GradientTape() as tape:
            # The loss is returned: TensorFlow leaves out what nobody asks for.
            loss = tf.reduce_mean(tf.square(network(x, training=True) - targets))
        return loss, tape.gradient(loss, [x, *map(tf_variable, weights)])

    return forward, both


def tf_variable(weight):
    return weight.value if isinstance(weight, keras.Variable) else weight


def median_times(calls, rounds):
    """Median seconds of each of the calls, taken in turn.

    In each turn a call is run three times and the last two count: as in training, where
    a step follows its like, and not one that needed other memory.
    """
    for call in calls.values():
        call()
    times = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            call()
            for _ in range(2):
                start = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(each) for name, each in times.items()}


def random_tokens():
    generator = np.random.default_rng(0)
    return generator.normal(size=(TOKENS, FEATURES)).astype("float32")


def compare(num_experts, rounds):
    """Prints the ratios for one number of experts, and returns them as rows."""
    rows = []
    keras.utils.set_random_seed(0)
    x, targets = tf.Variable(random_tokens()), tf.constant(random_tokens()[::-1])
    one, two = mixture(num_experts, 1), mixture(num_experts, 2)
    everyone = mixture(num_experts, 1, dispatch="dense")
    one_hot, products = OneHot(one), ProductsAlone(one)
    networks = {
        "dense": dense_network(HIDDEN),
        "dense, twice the size": dense_network(2 * HIDDEN),
        "K = 1": (one, one.trainable_weights),
        "K = 1, products alone": (products, products.trainable),
        "K = 2": (two, two.trainable_weights),
        "one-hot": (one_hot, one_hot.trainable),
        "all experts": (everyone, everyone.trainable_weights),
    }
    chosen = tf.argmax(x @ one.router.kernel, axis=1).numpy()
    counts = np.bincount(chosen, minlength=num_experts)
    uneven = counts.max() / counts.mean()
    pairs = {n: functions(*each, x, targets) for n, each in networks.items()}
    for index, what in enumerate(("forward", "forward and backward")):
        times = median_times({n: pair[index] for n, pair in pairs.items()}, rounds)
        base, sparse = times["dense"], times["K = 1"]
        print(f"\nE = {num_experts}, {what}; largest load / mean {uneven:.2f}")
        for name, seconds in times.items():
            print(
                f"  {name:24}{seconds * 1e3:8.1f} ms  {seconds / base:6.2f} x dense  "
                f"{seconds / sparse:6.2f} x K = 1"
            )
            rows.append(
                {"experts": num_experts, "what": what, "largest_load": uneven}
                | {"network": name, "seconds": seconds}
                | {"over_dense": seconds / base, "over_one": seconds / sparse}
            )
    return rows


def against_pytorch(num_experts, rounds):
    """Prints and returns the ratios to the blocks of `transformers`."""
    tokens = random_tokens()
    x, targets = tf.Variable(tokens), tf.constant(tokens[::-1])
    mixtral = {"activation": "silu", "gated": True, "renormalize": True}
    blocks = {"switch": (1, {})}
    if num_experts == 8:  # as Mixtral has
        blocks |= {f"mixtral {way}": (2, mixtral) for way in ("eager", "grouped_mm")}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder, "tokens.npy"), tokens)
        np.save(Path(folder, "targets.npy"), tokens[::-1])
        with PyTorchProcess(folder, "pytorch_moe.py") as pytorch:
            for way, (top_k, arguments) in blocks.items():
                keras.utils.set_random_seed(0)
                layer = mixture(num_experts, top_k, use_bias=False, **arguments)
                hand_over(layer, way, pytorch)
                pair = functions(layer, layer.trainable_weights, x, targets)
                for backward, ours in enumerate(pair):
                    times = times_in_turns(ours, pytorch, way, bool(backward), rounds)
                    what = ("forward", "forward and backward")[backward]
                    mine, theirs = map(statistics.median, times)
                    print(
                        f"E = {num_experts}, {what}: {way} of transformers / ours "
                        f"{theirs / mine:.2f} ({mine * 1e3:.1f} ms)",
                        flush=True,
                    )
                    rows.append(
                        {"experts": num_experts, "what": what, "block": way}
                        | {"top_k": top_k, "theirs_over_ours": theirs / mine}
                        | dict(
                            zip(("seconds_ours", "seconds_theirs"), times, strict=True)
                        )
                    )
    return rows


def hand_over(layer, way, pytorch):
    """Gives a layer's weights to PyTorch; both have to answer alike."""
    experts = [expert.tensors() for expert in layer.experts]
    first, _, second, _ = zip(*experts, strict=True)
    np.savez(
        pytorch.folder / "weights.npz",
        router=layer.router.kernel.numpy(),
        first=np.stack(first),
        second=np.stack(second),
    )
    pytorch.ask("build", way=way)
    theirs = pytorch.answers(way=way)["outputs"]
    apart = np.abs(layer(random_tokens()).numpy() - theirs)
    # Where two experts are as good as each other, rounding decides.
    if not np.mean(apart.max(axis=1) < 1e-4) > 0.999:
        raise AssertionError(f"The outputs of {way} differ by up to {apart.max()}.")


def times_in_turns(ours, pytorch, way, backward, rounds):
    """(seconds of ours, seconds of theirs), one for each round."""

    def mine():
        ours()
        return median_seconds(ours, 2)

    def theirs():
        return pytorch.ask("seconds", way=way, backward=backward, calls=2)

    for run in (mine, theirs):
        run()
    pairs = [(mine(), theirs()) for _ in range(rounds)]
    return list(map(list, zip(*pairs, strict=True)))


def peak_memory(which, num_experts):
    """MiB that a process holds at most, running forward and backward (Linux)."""
    keras.utils.set_random_seed(0)
    x, targets = tf.Variable(random_tokens()), tf.constant(random_tokens()[::-1])
    if which == "dense":
        network, weights = dense_network(HIDDEN)
    else:
        network = mixture(num_experts, 1)
        weights = network.trainable_weights
    _, both = functions(network, weights, x, targets)
    for _ in range(5):
        both()
    # Not `ru_maxrss`, in which a process starts with the peak of the one it came from.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) / 1024


def print_memory(num_experts):
    """Peak of the mixture over that of the dense network plus the experts' weights."""
    command = [sys.executable, __file__, "--memory"]

    def measure(which):
        out = subprocess.run(
            [*command, which, "--experts", str(num_experts)],
            check=True,
            capture_output=True,
            text=True,
        )
        return float(out.stdout.split()[-1])

    dense, sparse = measure("dense"), measure("mixture")
    per_expert = 2 * FEATURES * HIDDEN + HIDDEN + FEATURES
    # Each weight is held once more as its gradient.
    weights = 2 * (num_experts - 1) * per_expert * 4 / 2**20
    print(
        f"\nE = {num_experts}, peak memory: dense {dense:.0f} MiB, K = 1 "
        f"{sparse:.0f} MiB, the further experts' weights and their gradients "
        f"{weights:.0f} MiB: {sparse / (dense + weights):.2f} of the sum"
    )
    peaks = {"mib_dense": dense, "mib_sparse": sparse, "mib_weights": weights}
    ratio = sparse / (dense + weights)
    return {"experts": num_experts, "what": "peak memory", "of_sum": ratio, **peaks}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument("--memory", choices=["dense", "mixture"], help="one process")
    parser.add_argument("--experts", type=int, nargs="+", default=[8, 16, 64])
    parser.add_argument("--pytorch", action="store_true", help="also transformers'")
    record.add_option(parser)
    arguments = parser.parse_args()
    if arguments.memory:
        print(peak_memory(arguments.memory, arguments.experts[0]))
        return
    rounds, rows, packages = 3 if arguments.quick else 15, [], []
    for num_experts in arguments.experts:
        rows += compare(num_experts, rounds)
        rows.append(print_memory(num_experts))
    if arguments.pytorch:
        packages = ["torch", "transformers"]
        for num_experts in arguments.experts:
            rows += against_pytorch(num_experts, rounds)
    record.write(arguments.json, rows, [0], lists="turns", packages=packages)


if __name__ == "__main__":
    main()
