"""Do the balancing losses bring a collapsed mixture of experts back to even loads?

Two small transformers of two blocks: a language model of characters (tinyshakespeare)
and a vision transformer for MNIST, 16 patches an image. The feed-forward layer of the
second block is a mixture of eight experts, one for each token.

(a) The router starts biased: one expert's logit is larger by about 4 for every token.
    It is trained without a loss for the balance, with the z-loss alone, and with each
    balancing loss alone.
(b) The router starts as it does by default, with several losses and weights, for a
    longer training. The first row of losses is the layer's default.

Printed is the largest load over the mean one (8: all tokens go to one expert; 1: even):
for (a) at the start, then as `fit` logs it in a few epochs; at the end for held-out
data, to which no noise is added, with the number of experts that nobody uses and the
loss. An epoch is a hundred steps. The weight of (a) was the best of 0.1, 0.3, 1 and 3
for the divergence and the importance on the held-out text; for the load and Switch's
loss it was the first one tried. Nothing here sees the test data.

    python benchmarks/moe_balancing.py [--parts ab] [--quick]
"""

import argparse

import keras
import numpy as np
from data import load_mnist, load_tinyshakespeare
from small_transformers import (
    all_windows,
    cross_entropy,
    dense,
    language_model,
    random_windows,
    vision_transformer,
)

import keras_dynamic as kd

EXPERTS, WIDTH, HIDDEN, BLOCKS = 8, 48, 96, 2
CONTEXT, VOCABULARY = 32, 65
BATCH, STEPS, HELD_OUT = 32, 100, 2000  # steps of an epoch
BIAS = 4.0
WITHOUT = {"balance_loss": None}
SHOWN = (1, 4, 8)  # epochs of (a)
LONGER = 12  # epochs of (b)


def only(loss, weight):
    return {"balance_loss": loss, "balance_weight": weight}


COLLAPSED = (
    WITHOUT,
    {**WITHOUT, "z_weight": 0.001},
    only("kl", 0.1),
    only("importance", 0.1),
    only("load", 0.1),
    only("switch", 0.1),
)
ORDINARY = (
    WITHOUT,
    only("kl", 0.01),
    only("kl", 0.1),
    only("importance", 0.01),
    only("load", 0.01),
    only("switch", 0.01),
    only("switch", 0.1),
)


def one_mixture(**arguments):
    """Makes the feed-forward layer of a block: the last one's is a mixture."""

    def feed_forward(block):
        if block < BLOCKS - 1:
            return dense(WIDTH, HIDDEN)
        return kd.SparseMoE(EXPERTS, HIDDEN, name="moe", seed=0, **arguments)

    return feed_forward


class Text:
    name, rate = "characters", 2e-3

    def __init__(self):
        self.text, held_out, _ = load_tinyshakespeare()
        x, y = all_windows(held_out, CONTEXT)
        self.held_out = x[:HELD_OUT], y[:HELD_OUT]

    def model(self, **arguments):
        return language_model(
            CONTEXT, VOCABULARY, WIDTH, BLOCKS, one_mixture(**arguments)
        )

    def epoch(self, generator):
        return random_windows(self.text, CONTEXT, BATCH * STEPS, generator)


class Digits:
    name, rate = "digits", 1e-3

    def __init__(self):
        (x, y), _ = load_mnist()
        self.training = x[:-HELD_OUT], y[:-HELD_OUT]
        self.held_out = x[-HELD_OUT:], y[-HELD_OUT:]

    def model(self, **arguments):
        return vision_transformer(
            (28, 28, 1), 10, 7, WIDTH, BLOCKS, one_mixture(**arguments)
        )

    def epoch(self, generator):
        x, y = self.training
        rows = generator.choice(len(x), BATCH * STEPS, replace=False)
        return x[rows], y[rows]


def bias(model, x):
    """Gives the first expert a logit that is larger by about `BIAS` for every token."""
    layer = model.get_layer("moe")
    tokens = keras.Model(model.input, layer.input).predict(x, verbose=0)
    tokens = tokens.reshape(-1, WIDTH)
    to_one, *_ = np.linalg.lstsq(tokens, np.ones(len(tokens)), rcond=None)
    kernel = np.random.default_rng(0).normal(scale=0.02, size=(WIDTH, EXPERTS))
    kernel[:, 0] += BIAS * to_one
    # The router's kernel is the mixture's only weight of this shape.
    (weight,) = (w for w in layer.weights if w.shape == kernel.shape)
    weight.assign(kernel)


def scores(model, task):
    results = model.evaluate(*task.held_out, 250, verbose=0, return_dict=True)
    return results["moe_max_load"], results["moe_dead_experts"], results["loss"]


def train(task, arguments, epochs, biased):
    """The loads at the start and in each epoch, and scores at the end."""
    keras.utils.set_random_seed(0)
    model = task.model(**arguments)
    if biased:
        bias(model, task.held_out[0][:200])
    model.compile(keras.optimizers.Adam(task.rate), cross_entropy(), jit_compile=False)
    loads, generator = [scores(model, task)[0]], np.random.default_rng(0)
    for _ in range(epochs):
        x, y = task.epoch(generator)
        history = model.fit(x, y, BATCH, verbose=0, shuffle=False).history
        loads.append(history["moe_max_load"][-1])
    return loads, scores(model, task)


def described(arguments):
    if "z_weight" in arguments:
        return f"z-loss, {arguments['z_weight']}"
    loss = arguments["balance_loss"]
    return "none" if loss is None else f"{loss}, {arguments['balance_weight']}"


def compare(part, task, settings, epochs, shown, biased):
    columns = "".join(f"{100 * epoch:>8}" for epoch in shown)
    print(f"\n({part}) {task.name:16s} start{columns}   held-out  unused  loss")
    for arguments in settings:
        loads, (load, unused, loss) = train(task, arguments, epochs, biased)
        course = "".join(f"{loads[epoch]:8.2f}" for epoch in (0, *shown))
        print(
            f"    {described(arguments):16s}{course}  {load:9.2f}  {unused:6.0f}  "
            f"{loss:.3f}",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default="ab")
    parser.add_argument("--quick", action="store_true", help="few steps")
    arguments = parser.parse_args()
    shown, longer = ((1, 2), 3) if arguments.quick else (SHOWN, LONGER)
    for task in (Text(), Digits()):
        if "a" in arguments.parts:
            compare("a", task, COLLAPSED, shown[-1], shown, biased=True)
        if "b" in arguments.parts:
            compare("b", task, ORDINARY, longer, (1, longer), biased=False)


if __name__ == "__main__":
    main()
