"""Mixtures of experts against a dense network of the same FLOPs for each token.

Two tasks, two small transformers of two blocks: a language model of characters
(tinyshakespeare, context 64) and a vision transformer for CIFAR-10 (16 patches of 8x8).
In each block the feed-forward layer, 64 -> 256 -> 64, is

- dense: Keras' own layers;
- K = 1: the best of eight experts of that size, for each token;
- K = 2: the best two of sixteen experts of half that size, weights renormalized;
- input: the best of eight experts, one choice for a whole image;
- expert choice: eight experts take the tokens of an image that they are most probable
  for, on average one expert a token.

The last two are left out of the language model: their choices depend on characters
still to come, which a model that predicts them must not see.

Three seeds. A seed gives all contenders the same batches. Learning rates and the
balancing loss were chosen on held-out training data, in trainings of a third of the
steps with another seed (`--choose` prints these figures), the rates for dense and for
K = 1; nothing was chosen by the test data. The intervals are 95 %
intervals of Student's t over the seeds; differences from dense are taken seed by seed.
FLOPs are those of one block's feed-forward layer for one token, router included. Time
is the median step of `fit` over that of dense, contenders trained in turns.

    python benchmarks/moe_quality.py [--tasks characters images] [--quick] [--choose]
"""

import argparse
import time

import keras
import numpy as np
from data import load_cifar10, load_tinyshakespeare
from scipy import stats
from small_transformers import (
    all_windows,
    cross_entropy,
    dense,
    language_model,
    random_windows,
    vision_transformer,
)

import keras_dynamic as kd

WIDTH, HIDDEN, BLOCKS, EXPERTS = 64, 256, 2, 8
CONTEXT, VOCABULARY, PATCH = 64, 65, 8
SEEDS, CHOOSING_SEED = (0, 1, 2), 100
RATES = (1e-3, 3e-3, 6e-3)
BALANCES = (("kl", 0.01), ("kl", 0.1), ("switch", 0.01))
CHOSEN = {"balance_loss": "kl", "balance_weight": 0.01}

MIXTURES = {
    "K = 1": {},
    "K = 2": {
        "num_experts": 2 * EXPERTS,
        "hidden_units": HIDDEN // 2,
        "top_k": 2,
        "renormalize": True,
    },
    "input": {"route": "input"},
    "expert choice": {"router": "expert_choice"},
}


def feed_forward(contender, seed, **arguments):
    """A function that makes the feed-forward layer of a block."""

    def make(block):
        if contender == "dense":
            return dense(WIDTH, HIDDEN)
        settings = {"num_experts": EXPERTS, "hidden_units": HIDDEN}
        settings |= CHOSEN | MIXTURES[contender] | arguments
        if contender == "expert choice":  # balanced as it is
            settings["balance_loss"] = None
        return kd.SparseMoE(name=f"moe_{block}", seed=seed, **settings)

    return make


class Characters:
    name, batch, steps, rate = "characters", 32, 1000, 6e-3
    contenders = ("dense", "K = 1", "K = 2")
    tokens = CONTEXT

    def __init__(self):
        self.text, held_out, test = load_tinyshakespeare()
        self.held_out, self.test = (
            all_windows(text, CONTEXT) for text in (held_out, test)
        )

    def model(self, make):
        return language_model(CONTEXT, VOCABULARY, WIDTH, BLOCKS, make)

    def samples(self, count, generator):
        return random_windows(self.text, CONTEXT, count, generator)


class Images:
    name, batch, steps, rate = "images", 64, 1000, 1e-3
    contenders = ("dense", *MIXTURES)
    tokens = (32 // PATCH) ** 2

    def __init__(self):
        (x, y), self.test = load_cifar10()
        self.training, self.held_out = (x[:-5000], y[:-5000]), (x[-5000:], y[-5000:])

    def model(self, make):
        return vision_transformer((32, 32, 3), 10, PATCH, WIDTH, BLOCKS, make)

    def samples(self, count, generator):
        x, y = self.training
        epochs = -(-count // len(x))
        orders = [generator.permutation(len(x)) for _ in range(epochs)]
        rows = np.concatenate(orders)[:count]
        return x[rows], y[rows]


class StepTimes(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.seconds = []

    def on_train_batch_begin(self, batch, logs=None):
        self._start = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.seconds.append(time.perf_counter() - self._start)


def train(task, contender, seed, steps, rate=None, **arguments):
    """A trained model, and the median seconds of its steps."""
    keras.utils.set_random_seed(seed)
    model = task.model(feed_forward(contender, seed, **arguments))
    schedule = keras.optimizers.schedules.CosineDecay(rate or task.rate, steps)
    model.compile(
        keras.optimizers.Adam(schedule),
        cross_entropy(),
        metrics=["accuracy"],
        jit_compile=False,
    )
    times = StepTimes()
    x, y = task.samples(task.batch * steps, np.random.default_rng(seed))
    model.fit(x, y, task.batch, shuffle=False, verbose=0, callbacks=[times])
    return model, np.median(times.seconds)


def scores(model, data):
    """Loss, accuracy (%), and the largest load over the mean one in each block."""
    results = model.evaluate(*data, 250, verbose=0, return_dict=True)
    loads = [value for name, value in results.items() if name.endswith("_max_load")]
    return results["loss"], 100 * results["accuracy"], loads


def flops_of_a_token(layer, tokens):
    """Of a feed-forward layer, for one of the tokens of an input."""
    if isinstance(layer, keras.Sequential):
        # Two products with biases, and an activation.
        return 4 * WIDTH * HIDDEN + HIDDEN + WIDTH + HIDDEN
    expert = layer.experts[0].compute_flops((1, WIDTH))
    router = 2 * WIDTH * layer.num_experts
    return layer.top_k * expert + router / (tokens if layer.route == "input" else 1)


def interval(values):
    """Mean and half the width of its 95 % interval."""
    values = np.asarray(values)
    quantile = stats.t.ppf(0.975, len(values) - 1)
    return values.mean(), quantile * values.std(ddof=1) / np.sqrt(len(values))


def compare(task, steps, seeds):
    runs = {contender: [] for contender in task.contenders}
    sizes = {}
    for seed in seeds:
        for contender in task.contenders:
            model, seconds = train(task, contender, seed, steps)
            loss, accuracy, loads = scores(model, task.test)
            print(f"  seed {seed}, {contender}: {loss:.4f}", flush=True)
            runs[contender].append((loss, accuracy, loads, seconds))
            layer = feed_forward(contender, seed)(0)
            flops = flops_of_a_token(layer, task.tokens)
            sizes[contender] = model.count_params(), flops
    print(f"\n{task.name}, {steps} steps, {len(seeds)} seeds, on test data")
    print(
        "  contender     parameters  FLOPs/token  loss               - dense          "
        "    accuracy (%)    ms/step  / dense  largest load / mean"
    )
    plain_losses, _, _, plain_seconds = zip(*runs["dense"], strict=True)
    for contender, results in runs.items():
        losses, accuracies, loads, seconds = zip(*results, strict=True)
        parameters, flops = sizes[contender]
        loss, half = interval(losses)
        difference, its_half = interval(np.subtract(losses, plain_losses))
        accuracy, accuracy_half = interval(accuracies)
        ratio = np.mean(np.divide(seconds, plain_seconds))
        busiest = ", ".join(f"{load:.2f}" for load in np.mean(loads, axis=0))
        print(
            f"  {contender:13s}{parameters:11,}  {flops:11,.0f}  "
            f"{loss:.4f} +- {half:.4f}  {difference:+.4f} +- {its_half:.4f}  "
            f"{accuracy:5.2f} +- {accuracy_half:5.2f}  {1e3 * np.mean(seconds):7.1f}  "
            f"{ratio:7.2f}  {busiest}"
        )


def choose(task, steps):
    """Prints losses on held-out training data, after a third of the steps."""
    steps //= 3
    print(f"\n{task.name}, {steps} steps: held-out loss and largest loads")

    def show(contender, **arguments):
        model, _ = train(task, contender, CHOOSING_SEED, steps, **arguments)
        loss, _, loads = scores(model, task.held_out)
        busiest = ", ".join(f"{load:.2f}" for load in loads)
        print(f"  {contender:13s} {loss:.4f}  {busiest:10s}  {arguments}", flush=True)

    for contender in ("dense", "K = 1"):
        for rate in RATES:
            show(contender, rate=rate)
    for loss, weight in BALANCES:
        show("K = 1", balance_loss=loss, balance_weight=weight)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=["characters", "images"])
    parser.add_argument("--quick", action="store_true", help="few steps, two seeds")
    parser.add_argument("--choose", action="store_true", help="on held-out data")
    arguments = parser.parse_args()
    for task in (Characters, Images):
        if task.name in arguments.tasks:
            steps = 40 if arguments.quick else task.steps
            if arguments.choose:
                choose(task(), steps)
            else:
                compare(task(), steps, SEEDS[:2] if arguments.quick else SEEDS)


if __name__ == "__main__":
    main()
