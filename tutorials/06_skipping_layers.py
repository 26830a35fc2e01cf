# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Skipping layers
#
# An early exit ends the computation. A *gate* leaves out something in the middle: it
# looks at what comes in, and lets a layer run for the samples that need it. The others
# pass by. This tutorial trains a network of gated blocks, checks what inference really
# runs, and shows what goes wrong where training computes something else.

# %%
import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_dynamic as kd

COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")  # safe for color-blind readers
LINES = ("-", "--", "-.", ":")

# %% [markdown]
# ## One gate
#
# The gate $g$ gives one logit for each sample, and $s$ makes yes or no of it:
#
# $$h(x) = s(g(x))\, f(x) + (1 - s(g(x)))\, x .$$
#
# When not training $s$ is 1 where the logit is positive, and 0 elsewhere. By hand, with
# a gate of our own (the first feature is the logit), and as a layer:

# %%
f = keras.layers.Dense(3, activation="tanh")
g = keras.layers.Lambda(lambda x: x[:, :1])
x = np.array([[2.0, 1.0, 0.0], [-1.0, 1.0, 0.0], [0.5, 0.0, 3.0]], "float32")

gate = kd.SkipGate(f, gate=g)
h = gate(x)
s = (x[:, :1] > 0).astype("float32")
print("layer:\n", np.round(h, 3))
print("by hand:\n", np.round(s * f(x) + (1 - s) * x, 3))

# %% [markdown]
# The second sample came out as it went in. With `additive=True`, $f$ is a correction,
# $h(x) = x + s f(x)$, as in a residual network. Without a `gate` there is a small one:
# the mean over the positions, 16 hidden units, and the logit.
#
# ## A gated network
#
# Four residual blocks, each in a gate, read handwritten digits. To the loss that `fit`
# is asked for, each gate adds
#
# $$w\, (\mathrm{rate} - \mathrm{target})^2 .$$
#
# The *open rate* is the share of the batch with a positive logit, which is what
# inference would run. It has no gradient; that of the mean *probability* of being open
# stands in for it.
#
# Two things make the open rates come to rest at the target. The learning rate falls to
# zero. And the estimator is `"straight_through"`, which in training decides as
# inference does. (The default decides with noise; more of that below.)

# %%
digits = load_digits()
images = (digits.images / 16.0).astype("float32")[..., None]
x_train, x_test, y_train, y_test = train_test_split(
    images, digits.target, test_size=0.5, random_state=0, stratify=digits.target
)
print(f"{len(x_train)} to train, {len(x_test)} to test")


class CountRows(keras.layers.Layer):
    """Hands its input on, and counts the samples that it has seen at inference."""

    def build(self, input_shape):
        self.rows = self.add_weight(
            name="rows", initializer="zeros", dtype="int32", trainable=False
        )

    def call(self, inputs, training=False):
        if not training:
            self.rows.assign_add(tf.shape(inputs)[0])
        return inputs


def block(name):
    """The correction of a residual block."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 16)),
            CountRows(name="count"),
            keras.layers.Conv2D(16, 3, padding="same", activation="relu"),
            keras.layers.Conv2D(16, 3, padding="same"),
        ],
        name=name,
    )


BLOCKS = [f"block_{index}" for index in range(1, 5)]


def network(**arguments):
    """A stem, four gated blocks, an answer."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    h = keras.layers.Conv2D(16, 3, padding="same", activation="relu")(inputs)
    for name in BLOCKS:
        h = kd.SkipGate(
            block(f"{name}_f"), additive=True, seed=0, name=name, **arguments
        )(h)
        h = keras.layers.ReLU()(h)
    h = keras.layers.Flatten()(keras.layers.MaxPooling2D()(h))
    return keras.Model(inputs, keras.layers.Dense(10, "softmax", name="answer")(h))


def train(model, epochs=20):
    rate = keras.optimizers.schedules.CosineDecay(3e-3, epochs * (len(x_train) // 32))
    model.compile(
        keras.optimizers.Adam(rate),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model.fit(x_train, y_train, batch_size=32, epochs=epochs, verbose=0).history


asked_for = {"target_rate": 0.5, "rate_weight": 3.0}
hard = network(estimator="straight_through", **asked_for)
history = train(hard)
scores = hard.evaluate(x_test, y_test, verbose=0, return_dict=True)
print(f"accuracy on test digits {scores['accuracy']:.1%}")
for name in BLOCKS:
    print(
        f"{name}: open rate {scores[f'{name}_open_rate']:.1%}, "
        f"mean probability {scores[f'{name}_open_probability']:.2f}"
    )

# %% [markdown]
# Both are in the logs of `fit`, one of each for every gate. They start with
# `initial_open_rate=0.9`, so that the blocks learn something before they are closed.

# %%
# Caption: Four gates in training, with a target of one half (gray).
# Alt: Two panels of four curves over twenty epochs. Open rates start near 1, swing for
# ten epochs and come to rest near one half; the probabilities do so sooner.
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
for axis, what in zip(axes, ("open_rate", "open_probability"), strict=True):
    for name, color, line in zip(BLOCKS, COLORS, LINES, strict=True):
        curve = history[f"{name}_{what}"]
        axis.plot(
            range(1, len(curve) + 1), curve, color=color, linestyle=line, label=name
        )
    axis.axhline(0.5, color="gray", linewidth=1)
    axis.set(xlabel="epoch", ylim=(0, 1.02), xticks=range(0, 21, 5))
    axis.grid(alpha=0.3)
axes[0].set(title="open rate: share of samples that would run", ylabel="share")
axes[1].set(title="mean probability of being open")
axes[0].legend(fontsize=8)
figure.savefig("gates_in_training.png", dpi=150)

# %% [markdown]
# ## What inference really runs
#
# In training each block runs on the whole batch. At inference it gets the open samples
# only; the layer `CountRows` in each block has counted them:

# %%
for name in BLOCKS:
    hard.get_layer(name).layer.get_layer("count").rows.assign(0)
hard.predict(x_test, batch_size=128, verbose=0)
print(f"{len(x_test)} digits were predicted")
for name in BLOCKS:
    rows = int(hard.get_layer(name).layer.get_layer("count").rows)
    print(f"{name} ran for {rows} of them, {rows / len(x_test):.1%}")

# %% [markdown]
# Fewer rows are less time once a block is large enough to outweigh gathering them;
# `benchmarks/skip_gate.py` and `benchmarks/gated_resnet.py` in the repository measure
# it. The blocks here are too small for that.
#
# ## Which digits run which block
#
# A gate has its own little network in `gate.decider`, which makes the logit of what the
# gate gets:

# %%
# Caption: Which digits run which block.
# Alt: A table of ten digits and four gates, colored by the open rate in percent. Rates
# differ from digit to digit, in every column.
gates = [hard.get_layer(name) for name in BLOCKS]
inputs_of_gates = keras.Model(hard.input, [gate.input for gate in gates])
logits = [
    gate.decider(features)
    for gate, features in zip(gates, inputs_of_gates(x_test), strict=True)
]
opened = np.concatenate(logits, axis=1) > 0
table = np.stack([opened[y_test == digit].mean(axis=0) for digit in range(10)])

figure, axis = plt.subplots(figsize=(5, 4.8), layout="constrained")
image = axis.imshow(100 * table, cmap="cividis", vmin=0, vmax=100, aspect="auto")
for (row, column), rate in np.ndenumerate(table):
    color = "black" if rate > 0.5 else "white"
    axis.text(column, row, f"{100 * rate:.0f}", color=color, ha="center", va="center")
axis.set_xticks(range(4), BLOCKS)
axis.set_yticks(range(10))
axis.set(ylabel="digit", title="Open rate by class and gate")
figure.colorbar(image, label="open rate (% of the digit's test images)")
figure.savefig("open_rates.png", dpi=150)

# %% [markdown]
# Nobody told the gates about classes, and yet some digits run a block several times as
# often as others.
#
# ## What is trained, and what is run
#
# `estimator="soft"` puts the probability in the place of $s$: no noise, a smooth
# gradient. But what it trains is a blend of $f(x)$ and $x$, and inference runs either
# one or the other. `"gumbel_straight_through"`, the default, draws yes or no: with a
# probability near one half, that is tossing a coin. With `training=True` a model gives
# what training has seen:

# %%
models = {
    "soft": network(estimator="soft", **asked_for),
    "gumbel_straight_through": network(**asked_for),
}
for model in models.values():
    train(model)
models["straight_through"] = hard


def accuracy_in_training(model, draws=10):
    answers = [model(x_test, training=True) for _ in range(draws)]
    return np.mean([np.argmax(answer, axis=1) == y_test for answer in answers])


print("estimator                in training  at inference  open rates at inference")
for name, model in models.items():
    scores = model.evaluate(x_test, y_test, verbose=0, return_dict=True)
    rates = " / ".join(f"{scores[f'{name}_open_rate']:4.0%}" for name in BLOCKS)
    print(
        f"{name:23s}  {accuracy_in_training(model):11.1%}  {scores['accuracy']:12.1%}"
        f"  {rates}"
    )

# %% [markdown]
# The soft gates lose points when they are hardened. The default's gain some, since at
# inference there is no noise. With both, some open rates miss the target: it holds in
# training, where later gates get blends or random draws from the earlier ones, and at
# inference they get something else. `straight_through` has no such gap. (Its danger is
# another one: a gate that is closed for a sample never learns what it would have gained
# by being open. The target keeps some samples open here.)
#
# ## In a `DynamicModel`
#
# Gates and exits work together: an exit ends the computation, a gate thins it out.
# `cost` counts both, in FLOPs for each sample, and `mean_cost` puts them over the plain
# network with all gates open. The blocks and gates of `hard` go on learning, now with
# an exit after the second block.

# %%
early = kd.EarlyExit(10, pooling="average", grid=2, name="early")(
    hard.get_layer("block_2").output
)
dynamic = kd.DynamicModel(hard.input, [early, hard.output])
train(dynamic, epochs=10)
for label, threshold in (("gates alone", None), ("gates and exit", 0.6)):
    prediction = dynamic.predict_dynamic(
        x_test, rule=kd.rules.MaxProbability(threshold), batch_size=500, verbose=0
    )
    right = np.mean(prediction.outputs.argmax(axis=1) == y_test)
    print(
        f"{label:15s} accuracy {right:.1%}, mean cost {prediction.mean_cost:.2f}, "
        f"from {prediction.cost.min():,} to {prediction.cost.max():,} FLOPs"
    )

# %% [markdown]
# ## A price in place of a target
#
# A target is the same for every gate. With a price they share the budget as they see
# fit: `cost_weight` times the probability of being open times `cost`, the block's share
# of the network's FLOPs. A `DynamicModel` fills the shares in by itself; for any other
# model `bind_costs` does.

# %%
priced = network(cost_weight=0.5)
for name, (share,) in kd.bind_costs(priced).items():
    print(f"{name} has {share:.1%} of the network's FLOPs")
train(priced)
scores = priced.evaluate(x_test, y_test, verbose=0, return_dict=True)
rates = " / ".join(f"{scores[f'{name}_open_rate']:.0%}" for name in BLOCKS)
print(f"accuracy {scores['accuracy']:.1%}, open rates {rates}")

# %% [markdown]
# At this price two blocks will do. The gates no longer look at the sample: each is open
# for all or for none, and `fit` has warned that they collapsed. With a target that
# would be a failure. With a price it can answer how deep the network should be.
#
# ## Gates that have nothing to decide
#
# A gate that is open for every sample, or for none, can go. `discretize` looks at some
# data and puts the block, or the shortcut, in its place; the others stay.

# %%
plain, report = kd.discretize(priced, x_train, return_report=True)
print(report)

# %% [markdown]
# ## What to try next
#
# - `rate_weight` and other targets: how few blocks will do?
# - `SkipGate(layer)` without `additive`, around a layer that changes shapes: closed
#   samples go through a linear projection, trained with the rest.
# - A gate of your own: `gate=keras.Sequential([...])`, from the input to (batch, 1).
# - `train` with a constant learning rate: how far do the open rates go astray?
# - Gates in gates: a block inside a stage, both with a gate.
