# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Mixture of experts
#
# A gate splits a network along its depth: whole layers run, or do not. A *mixture of
# experts* splits one layer: it becomes several networks side by side, of which each
# token uses a few. Parameters grow with the number of experts, computation does not.
# This tutorial builds a small vision transformer with such layers, looks at who goes
# where, and ends with a router that is trained by reward alone.

# %%
import functools
import os
import statistics
import time
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from keras import layers, ops

import keras_dynamic as kd

COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")  # safe for color-blind readers
LINES = ("-", "--", "-.", ":")

# %% [markdown]
# ## One layer
#
# Experts $E_e$ answer, and a *router* says how much each answer counts:
#
# $$f(x) = \sum_e p_e\, E_e(x), \qquad
# p = \mathrm{TopK}\big(\mathrm{softmax}(W x + \varepsilon)\big) .$$
#
# $\mathrm{TopK}$ keeps the $K$ largest entries and sets the others to zero. An expert
# with $p_e = 0$ need not be computed, and `SparseMoE` does not compute it. The Gaussian
# noise $\varepsilon$ lets tokens try other experts in training; when not training there
# is none. By hand, and as a layer:

# %%
keras.utils.set_random_seed(3)
moe = kd.SparseMoE(4, hidden_units=8, top_k=2)
tokens = np.random.default_rng(0).normal(size=(2, 6)).astype("float32")
answers = moe(tokens)

p = ops.softmax(tokens @ moe.router.kernel)
kept = np.where(p >= np.sort(p)[:, -2:-1], p, 0.0)
by_hand = sum(kept[:, [e]] * expert(tokens) for e, expert in enumerate(moe.experts))
print("p, two kept:\n", np.round(kept, 2))
print("largest difference:", np.max(np.abs(by_hand - answers)))

# %% [markdown]
# Those two tokens and their experts, as a picture. What is gray is not computed:


# %%
def draw_mixture(axis, weights, token):
    """The layer for one token, with the weights that the router gave it."""
    box = {"boxstyle": "round,pad=0.45", "facecolor": "white", "edgecolor": "black"}
    arrow = {"arrowstyle": "-|>", "color": "black", "shrinkA": 0, "shrinkB": 0}

    def connect(start, end, **style):
        axis.annotate("", end, start, arrowprops={**arrow, **style})

    axis.text(1.5, 0, f"token {token}", ha="center", va="center", bbox=box)
    axis.text(4.3, 0, "router", ha="center", va="center", bbox=box)
    connect((2.05, 0), (3.85, 0))
    for e, weight in enumerate(weights):
        used = weight > 0
        color, line = (COLORS[e], "-") if used else ("0.7", "--")
        style = {"color": color if used else "0.75", "linestyle": line}
        axis.text(
            *(e, 1.6),
            f"$E_{e + 1}$",
            color="black" if used else "0.6",
            ha="center",
            va="center",
            bbox={
                "boxstyle": "round,pad=0.6",
                "facecolor": f"{color}40" if used else "white",
                "edgecolor": color,
                "linestyle": line,
                "linewidth": 2 if used else 1,
            },
        )
        connect((1.5, 0.3), (e, 1.2), **style)
        connect((e, 2.0), (1.5 + 0.12 * (e - 1.5), 2.95), **style)
        if used:
            side, align = (-0.12, "right") if e < 2 else (0.12, "left")
            x = e + (1.5 - e) * 0.4 + side
            axis.text(x, 2.42, f"$\\times$ {weight:.2f}", ha=align, color="black")
    # The router's way to the weights.
    axis.plot([4.3, 4.3, 3.55], [0.3, 2.5, 2.5], color="black", linewidth=1)
    axis.text(4.4, 1.25, "$p$", fontsize=11)
    axis.text(1.5, 3.2, "+", ha="center", va="center", fontsize=13, bbox=box)
    connect((1.5, 3.5), (1.5, 4.1))
    axis.text(1.5, 4.3, "$f(x)$", ha="center", va="center")
    axis.set(xlim=(-0.7, 4.9), ylim=(-0.5, 4.6))
    axis.axis("off")


figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
for token, axis in enumerate(axes):
    draw_mixture(axis, kept[token], token + 1)
figure.savefig("mixture_of_experts.png", dpi=150)

# %% [markdown]
# ## A vision transformer
#
# Digits from MNIST, cut into 4 x 4 patches of 7 x 7 pixels. Each patch is a token. The
# feed-forward part of a block works on each token by itself, and that is the part that
# becomes a mixture, in every second block; attention stays as it is.


# %%
def load_mnist():
    """From the folder `KERAS_DYNAMIC_DATA`, if that is set; else downloaded, 11 MB."""
    file = Path(os.environ.get("KERAS_DYNAMIC_DATA", "")) / "mnist.npz"
    if not file.is_file():
        return keras.datasets.mnist.load_data()
    with np.load(file) as arrays:
        train = arrays["x_train"], arrays["y_train"]
        return train, (arrays["x_test"], arrays["y_test"])


(x_train, y_train), (x_test, y_test) = load_mnist()
x_train, y_train = x_train[:10_000] / np.float32(255), y_train[:10_000]
x_test, y_test = x_test[::2] / np.float32(255), y_test[::2]
print(f"{len(x_train)} to train, {len(x_test)} to test")

WIDTH, HIDDEN, EXPERTS = 48, 96, 4
MOES = ("moe_1", "moe_2")


def vit(mixture=None):
    """Four blocks; `mixture(name=...)` makes the feed-forward part of two of them."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((28, 28))
    h = layers.Permute((1, 3, 2, 4))(layers.Reshape((4, 7, 4, 7))(inputs))
    h = layers.Reshape((16, 49))(h)
    # One kernel for all patches, and a bias for each: the positions.
    h = layers.EinsumDense(
        "btp,pd->btd",
        output_shape=(16, WIDTH),
        bias_axes="td",
        bias_initializer=keras.initializers.RandomNormal(stddev=0.5),
    )(h)
    for block in range(4):
        normal = layers.LayerNormalization()(h)
        h = layers.Add()([h, layers.MultiHeadAttention(2, WIDTH // 2)(normal, normal)])
        normal = layers.LayerNormalization()(h)
        if mixture is not None and block % 2:
            answer = mixture(name=MOES[block // 2])(normal)
        else:
            answer = layers.Dense(WIDTH)(layers.Dense(HIDDEN, "gelu")(normal))
        h = layers.Add()([h, answer])
    h = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(h))
    return keras.Model(inputs, layers.Dense(10, "softmax")(h))


def train(model, epochs):
    rate = keras.optimizers.schedules.CosineDecay(4e-3, epochs * len(x_train) // 100)
    model.compile(
        keras.optimizers.Adam(rate),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model.fit(x_train, y_train, batch_size=100, epochs=epochs, verbose=0).history


# %% [markdown]
# Three networks of equal *active* size. In the first mixture each token uses one of
# four experts, each as large as the dense network that it replaces. In the second it
# uses two of eight that are half as large. In FLOPs the mixtures are ahead only by
# their routers and by the weighted sum. (`balance_weight` is the matter of the next
# section.)

# %%
mixture = functools.partial(kd.SparseMoE, EXPERTS, HIDDEN, balance_weight=0.05, seed=0)
halves = functools.partial(
    kd.SparseMoE, 2 * EXPERTS, HIDDEN // 2, top_k=2, balance_weight=0.05, seed=0
)
networks = {
    "dense": vit(),
    "4 experts, K = 1": vit(mixture),
    "8 halves, K = 2": vit(halves),
}
histories = {name: train(model, epochs=4) for name, model in networks.items()}


def milliseconds(model):
    """To predict 1,000 images."""
    model.predict_on_batch(x_test[:1000])
    times = []
    for _ in range(7):
        start = time.perf_counter()
        model.predict_on_batch(x_test[:1000])
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


per_token = 2 * 2 * WIDTH * HIDDEN
print(f"a feed-forward part: {per_token:,} FLOPs a token in products")
print(f"a router: {2 * WIDTH * EXPERTS / per_token:.1%} of that for 4 experts\n")
print("network           parameters  test accuracy  1,000 images")
for name, model in networks.items():
    scores = model.evaluate(x_test, y_test, batch_size=500, verbose=0, return_dict=True)
    print(
        f"{name:16s}  {model.count_params():10,d}  {scores['accuracy']:13.1%}"
        f"  {milliseconds(model):9.0f} ms"
    )

# %% [markdown]
# Nearly twice the parameters, and the accuracies lie close together: on 5,000 images
# they are uncertain by half a point, and ten thousand easy images do not need a larger
# network. Mixtures show their worth where there are more data than a dense network of
# that cost can learn. What this table does show is the price. FLOPs are equal, time is
# not: sorting tokens by expert, and several small products in place of a large one,
# take time of their own, which weighs much in a network as small as this.
# `benchmarks/sparse_moe.py` in the repository measures a layer of a realistic size.
#
# And **memory is not saved**: all experts stay loaded, whoever is chosen.

# %%
model = networks["4 experts, K = 1"]
for name in MOES:
    moe = model.get_layer(name)
    total = sum(expert.count_params() for expert in moe.experts)
    active = moe.top_k * moe.experts[0].count_params()
    print(f"{name}: {total:,} parameters of experts in memory, {active:,} for a token")

# %% [markdown]
# ## Collapse, and balance
#
# An expert that gets more tokens learns faster, and so gets more tokens. To see where
# this leads, we give the first expert a head start. A router is a small class, and to
# change where it starts takes two methods:


# %%
class Preferring(kd.routers.TopKRouter):
    """Begins with a preference for expert 0, which training may change."""

    def build(self, input_shape):
        super().build(input_shape)
        self.bias = self.add_weight(
            name="bias", shape=(self.num_experts,), initializer="zeros"
        )
        self.bias.assign([5.0] + [0.0] * (self.num_experts - 1))

    def logits(self, inputs):
        return super().logits(inputs) + self.bias


def preferring(**arguments):
    return mixture(router=Preferring(EXPERTS, seed=0), **arguments)


alone = vit(functools.partial(preferring, balance_loss=None))
balanced = vit(preferring)
loads = {
    "no preference": histories["4 experts, K = 1"],
    "preference, no balancing": train(alone, epochs=4),
    "preference, balancing": train(balanced, epochs=4),
}

figure, axes = plt.subplots(
    2, 3, figsize=(9, 4.6), sharex=True, sharey=True, layout="constrained"
)
for column, (title, history) in enumerate(loads.items()):
    for row, name in enumerate(MOES):
        axis = axes[row, column]
        for e in range(EXPERTS):
            curve = history[f"{name}_load_{e}"]
            style = {"color": COLORS[e], "linestyle": LINES[e], "marker": "o"}
            epochs = range(1, len(curve) + 1)
            axis.plot(epochs, curve, markersize=3, label=f"expert {e}", **style)
        axis.axhline(1 / EXPERTS, color="gray", linewidth=1)
        axis.set(ylim=(-0.03, 1.03), xticks=epochs)
        axis.grid(alpha=0.3)
    axes[0, column].set_title(title, fontsize=10)
    axes[1, column].set_xlabel("epoch")
for row, name in enumerate(MOES):
    axes[row, 0].set_ylabel(f"{name}\nshare of the tokens")
axes[0, 0].legend(fontsize=8)
figure.savefig("expert_loads.png", dpi=150)

# %% [markdown]
# All this is in the logs of `fit`. Without balancing the favorite stays the favorite,
# and the others are paid for and hardly used. `balance_loss="kl"`, the default, adds
#
# $$w \sum_e \bar p_e \log (E\, \bar p_e),$$
#
# the divergence of the mean routing probability $\bar p$ from the uniform distribution.
# (The average *load* is what should be even, but a count has no gradient; the mean
# probability stands in for it.) It undoes the head start within an epoch or two. And
# what are the four experts good for, if one does nearly all?

# %%
for name, network in (("no balancing", alone), ("balancing", balanced)):
    scores = network.evaluate(
        x_test, y_test, batch_size=500, verbose=0, return_dict=True
    )
    busiest = " / ".join(f"{scores[f'{moe}_max_load']:.1f}" for moe in MOES)
    print(
        f"{name:12s}: accuracy {scores['accuracy']:.1%}, largest / mean load {busiest}"
    )

# %% [markdown]
# ## Who goes where
#
# A layer's router can be asked: called with the layer's input it returns a `Routing`,
# with `experts` of shape (batch, tokens, $K$). Loads by class, on test images:


# %%
def chosen_experts(model, name, images):
    """(images, tokens), the first choice of each token."""
    moe = model.get_layer(name)
    features = keras.Model(model.input, moe.input).predict(images, 500, verbose=0)
    return ops.convert_to_numpy(moe.router(features).experts)[..., 0]


def table_by_class(axis, chosen, title):
    """Draws the share of each expert, in %, of the tokens of each digit."""
    shares = [
        [np.mean(chosen[y_test == digit] == e) for e in range(EXPERTS)]
        for digit in range(10)
    ]
    image = axis.imshow(
        np.multiply(100, shares), cmap="cividis", vmin=0, vmax=100, aspect="auto"
    )
    for (row, column), share in np.ndenumerate(shares):
        color = "black" if share > 0.5 else "white"
        axis.text(
            column, row, f"{100 * share:.0f}", color=color, ha="center", va="center"
        )
    axis.set_xticks(range(EXPERTS), [f"expert {e}" for e in range(EXPERTS)], fontsize=8)
    axis.set_yticks(range(10))
    axis.set_title(title, fontsize=10)
    return image


chosen = {name: chosen_experts(model, name, x_test) for name in MOES}
figure, axes = plt.subplots(1, 2, figsize=(8, 4.6), layout="constrained")
for axis, name in zip(axes, MOES, strict=True):
    image = table_by_class(axis, chosen[name], name)
axes[0].set_ylabel("digit")
figure.colorbar(image, label="share of the digit's tokens (%)")
figure.savefig("loads_by_class.png", dpi=150)

# %% [markdown]
# And patch by patch: each is colored by the expert that it was sent to, whose number
# stands in its corner.

# %%
examples = [np.flatnonzero(y_test == digit)[0] for digit in range(10)]
rgb = np.array([[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in COLORS])
figure, axes = plt.subplots(3, 10, figsize=(10, 3.4), layout="constrained")
for column, index in enumerate(examples):
    for row, name in enumerate((None, *MOES)):
        axis = axes[row, column]
        axis.imshow(x_test[index], cmap="gray_r", extent=(0, 4, 4, 0))
        axis.set_xticks([])
        axis.set_yticks([])
        if name is None:
            continue
        experts = chosen[name][index].reshape(4, 4)
        axis.imshow(rgb[experts], extent=(0, 4, 4, 0), alpha=0.6)
        axis.hlines(range(1, 4), 0, 4, color="white", linewidth=1)
        axis.vlines(range(1, 4), 0, 4, color="white", linewidth=1)
        for (i, j), e in np.ndenumerate(experts):
            axis.text(j + 0.08, i + 0.08, e, fontsize=5, va="top")
for row, name in enumerate(("image", *MOES)):
    axes[row, 0].set_ylabel(name)
figure.savefig("patches_and_experts.png", dpi=150)

# %% [markdown]
# PATCHES
#
# ## A router of one's own, trained by reward
#
# So far the router learned through $p_e$, which multiplies the answer. Where a choice
# has no such weight, there is *policy gradient*. The router is a policy $\pi$ that
# draws one expert, and the reward $R$ is minus the sample's loss. Whatever $R$ is,
#
# $$\nabla\, \mathbb{E}[R] = \mathbb{E}\big[(R - b)\, \nabla \log \pi(e \mid x)\big] ,$$
#
# with any baseline $b$ that does not depend on the choice; a running mean of the
# rewards keeps the variance down. This is REINFORCE. To have it in Keras we need a
# router that draws, and a loss that knows $\log \pi$ of what was drawn. They meet by a
# trick: the router's weight is $\pi / \pi = 1$ with the denominator held constant, so
# its value is 1 and its gradient is that of $\log \pi$.


# %%
class Policy(kd.routers.Router):
    """Draws one expert in training, and takes the most probable one otherwise."""

    routes_all = True

    def call(self, inputs, mask=None, training=False):
        logits = self.logits(inputs)
        experts = ops.argmax(logits, axis=-1, keepdims=True)
        if training:
            flat = ops.reshape(logits, (-1, self.num_experts))
            drawn = keras.random.categorical(flat, 1, seed=self.seed_generator)
            experts = ops.reshape(drawn, ops.shape(experts))
        log_pi = ops.take_along_axis(ops.log_softmax(logits), experts, axis=-1)
        weights = ops.exp(log_pi - ops.stop_gradient(log_pi))
        return kd.routers.Routing(weights, logits, ops.cast(experts, "int32"))


class Reinforce(keras.Model):
    """Of a mixture whose experts answer with probabilities."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.baseline = self.add_weight(
            name="baseline", shape=(), trainable=False, aggregation="mean"
        )

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        if not training:
            return loss
        # Probabilities of weight w add up to w. (The cross-entropy divides by it.)
        log_pi = ops.log(ops.sum(y_pred, axis=-1))
        reward = -keras.losses.sparse_categorical_crossentropy(y, y_pred)
        advantage = ops.stop_gradient(reward) - self.baseline
        self.baseline.assign_add(0.05 * ops.mean(advantage))
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        return loss - ops.mean(advantage * log_pi) / replicas


# %% [markdown]
# (A term added in `compute_loss` has to be divided by the number of replicas: gradients
# are summed over them.) The experts are four linear classifiers, and the router, linear
# as well, looks at the whole image and sends it to one of them. Together they can do
# what no linear classifier can. Beside them, one linear classifier, and four with a
# router that nobody trains:


# %%
def linear():
    return layers.Dense(10, "softmax")


def classify(layer, model_class):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((784,))
    model = model_class(inputs, layer(inputs))
    model.compile(
        keras.optimizers.Adam(2e-3),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    model.fit(x_train.reshape(-1, 784), y_train, batch_size=50, epochs=15, verbose=0)
    scores = model.evaluate(
        x_test.reshape(-1, 784), y_test, batch_size=500, verbose=0, return_dict=True
    )
    return scores["accuracy"]


def four(**arguments):
    return kd.SparseMoE(
        experts=[linear() for _ in range(EXPERTS)],
        router=Policy(EXPERTS, seed=0),
        **arguments,
    )


untrained = four(balance_loss=None)
untrained.router.trainable = False
reinforced = four(balance_weight=0.1)
for name, layer, model_class in (
    ("one linear classifier", linear(), keras.Model),
    ("four, router not trained", untrained, keras.Model),
    ("four, REINFORCE", reinforced, Reinforce),
):
    print(f"{name:24s}  test accuracy {classify(layer, model_class):.1%}")

# %%
routing = reinforced.router(x_test.reshape(-1, 1, 784))
experts = ops.convert_to_numpy(routing.experts)[..., 0]
figure, axis = plt.subplots(figsize=(5, 4.6), layout="constrained")
image = table_by_class(axis, experts, "Choices learned from the reward")
axis.set_ylabel("digit")
figure.colorbar(image, label="share of the digit's test images (%)")
figure.savefig("choices_of_the_policy.png", dpi=150)

# %% [markdown]
# REINFORCE
#
# ## What to try next
#
# - `router="expert_choice"`: each expert takes its best tokens, and loads are even.
# - `capacity_factor=1.0`: experts with limited room. Watch `moe_1_dropped` in the logs.
# - `route="input"`: one choice for all patches of an image.
# - `balance_loss=["importance", "load"]`, those of the V-MoE; `z_weight=1e-3`.
# - `experts=[...]`: any layers, also of different sizes.
# - The policy without the baseline, or with `balance_loss=None`: does it collapse?
