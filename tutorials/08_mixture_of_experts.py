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
import dataclasses
import functools
import time

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
tokens = np.random.default_rng(6).normal(size=(2, 6)).astype("float32")
answers = moe(tokens)

p = ops.softmax(tokens @ moe.router.kernel)
kept = np.where(p >= np.sort(p)[:, -2:-1], p, 0.0)
by_hand = sum(kept[:, [e]] * expert(tokens) for e, expert in enumerate(moe.experts))
print("p, two kept:\n", np.round(kept, 2))
print("largest difference:", np.max(np.abs(by_hand - answers)))

# %% [markdown]
# Those two tokens and their experts, as a picture. What is gray is not computed:


# %%
# Caption: One layer, two tokens, and the experts that each is given.
# Alt: Two drawings of a router and four experts. For each token arrows in color lead
# through two experts, whose answers are weighted and summed; the other two experts are
# gray.
def draw_mixture(axis, weights, token):
    """The layer for one token, with the weights that the router gave it."""
    box = {"boxstyle": "round,pad=0.45", "facecolor": "white"}
    centered = {"ha": "center", "va": "center"}

    def arrow(start, end, **style):
        shape = {"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0, "color": "black"}
        axis.annotate("", end, start, arrowprops={**shape, **style})

    axis.text(1.5, 0, f"token {token}", bbox=box, **centered)
    axis.text(4.4, 0, "router", bbox=box, **centered)
    arrow((2.1, 0), (3.9, 0))
    for e, weight in enumerate(weights):
        used = weight > 0
        color, line = (COLORS[e], "-") if used else ("0.7", "--")
        text = {"color": "black" if used else "0.6", **centered}
        frame = {"edgecolor": color, "linestyle": line, "linewidth": 2 if used else 1}
        frame["facecolor"] = f"{color}40" if used else "white"
        axis.text(
            e, 1.5, f"$E_{e}$", bbox={"boxstyle": "round,pad=0.6", **frame}, **text
        )
        axis.text(e, 2.35, rf"$\times$ {weight:.2f}" if used else r"$\times$ 0", **text)
        arrow((1.5 + 0.1 * (e - 1.5), 0.25), (e, 1.15), color=color, linestyle=line)
        arrow((e, 2.55), (1.5 + 0.1 * (e - 1.5), 3.3), color=color, linestyle=line)
    axis.plot([4.4, 4.4], [0.25, 2.35], color="black", linewidth=1)
    arrow((4.4, 2.35), (3.5, 2.35), linewidth=1)
    axis.text(4.5, 1.5, "$p$", va="center")
    axis.text(1.5, 3.55, "+", bbox=box, **centered)
    arrow((1.5, 3.8), (1.5, 4.3))
    axis.text(1.5, 4.5, "$f(x)$", **centered)
    axis.set(xlim=(-0.5, 5), ylim=(-0.4, 4.7))
    axis.axis("off")


figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
for token, axis in enumerate(axes):
    draw_mixture(axis, kept[token], token + 1)
figure.savefig("mixture_of_experts.png", dpi=150)

# %% [markdown]
# ## A vision transformer
#
# Digits from MNIST (which Keras downloads at its first use, 11 MB), cut into 4 x 4
# patches of 7 x 7 pixels. Each patch is a token. The feed-forward part of a block works
# on each token by itself, and that is the part that becomes a mixture, in every second
# block; attention stays as it is.


# %%
(x_train, y_train), (x_test, y_test) = keras.datasets.mnist.load_data()
x_train, y_train = x_train[:5_000, ..., None] / np.float32(255), y_train[:5_000]
x_test, y_test = x_test[::2, ..., None] / np.float32(255), y_test[::2]
print(f"{len(x_train)} to train, {len(x_test)} to test")

WIDTH, HIDDEN, EXPERTS = 48, 96, 4
MOES = ("moe_1", "moe_2")


def vit(mixture=None):
    """Four blocks; `mixture(name=...)` makes the feed-forward part of two of them."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((28, 28, 1))
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
    compile_for(model, rate)
    options = {"batch_size": 100, "epochs": epochs, "verbose": 0}
    return model.fit(x_train, y_train, **options).history


def compile_for(model, rate):
    loss, optimizer = "sparse_categorical_crossentropy", keras.optimizers.Adam(rate)
    model.compile(optimizer, loss, metrics=["accuracy"])


def scores_of(model):
    return model.evaluate(x_test, y_test, batch_size=500, verbose=0, return_dict=True)


# %% [markdown]
# Two networks of equal *active* size. In the mixture each token uses one of four
# experts, each as large as the dense network that it replaces. In FLOPs the mixture is
# ahead only by its routers and by the weighted sum. (`balance_weight` is the matter of
# the next section.)

# %%
mixture = functools.partial(kd.SparseMoE, EXPERTS, HIDDEN, balance_weight=0.05)
networks = {"dense": vit(), "4 experts, K = 1": vit(mixture)}
histories = {name: train(model, epochs=4) for name, model in networks.items()}


def milliseconds(models, rounds=9):
    """To predict 1,000 images; one model after the other, so that all are disturbed."""
    times = [[] for _ in models]
    for _ in range(rounds):
        for model, own in zip(models, times, strict=True):
            start = time.perf_counter()
            model.predict_on_batch(x_test[:1000])
            own.append(1000 * (time.perf_counter() - start))
    return np.median(times, axis=1)


router, feed_forward = 2 * WIDTH * EXPERTS, 2 * 2 * WIDTH * HIDDEN
print(f"a router has {router / feed_forward:.1%} of a feed-forward part's FLOPs\n")
print("network           parameters  test accuracy  1,000 images")
times = milliseconds(networks.values())
for (name, model), own in zip(networks.items(), times, strict=True):
    accuracy = scores_of(model)["accuracy"]
    print(f"{name:16s}  {model.count_params():10,d}  {accuracy:13.1%}  {own:9.0f} ms")

# %% [markdown]
# Nearly twice the parameters, of which a token uses as many as before, and a router's.
# The accuracies lie close together, and on 5,000 images each is uncertain by nearly
# half a point: a few thousand easy images do not need a larger network. Mixtures show
# their worth where there are more data than a dense network of that cost can learn.
#
# FLOPs are equal, and time need not be: sorting tokens by expert, and several small
# products in place of a large one, take time of their own, which weighs much in a
# network as small as this. (`benchmarks/sparse_moe.py` in the repository measures a
# layer of a realistic size.) And **memory is not saved**: all experts stay loaded,
# whoever is chosen.
#
# ## Collapse, and balance
#
# An expert that gets more tokens learns faster, and so gets more tokens. To see where
# this leads, we give the first expert a head start. A router is a small class, and to
# change where it starts takes two methods:


# %%
# Caption: The share of the tokens that each expert gets, in two mixtures.
# Alt: Six panels over the epochs. Without a preference four lines lie near one quarter;
# with one and no balancing a single expert gets nearly all; with balancing its line
# comes down to the others.
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
        for e, curve in enumerate(kd.plots.expert_load(history, name).loads.T):
            style = {"color": COLORS[e], "linestyle": LINES[e], "marker": "o"}
            epochs = range(1, len(curve) + 1)
            axis.plot(epochs, curve, markersize=3, label=f"expert {e}", **style)
        axis.axhline(1 / EXPERTS, color="gray", linewidth=1)
        axis.set(ylim=(-0.03, 1.03), xticks=range(1, 5))
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
# probability stands in for it.) It undoes most of the head start in two epochs.

# %%
for name, network in (("no balancing", alone), ("balancing", balanced)):
    scores = scores_of(network)
    busiest = " / ".join(f"{scores[f'{moe}_max_load']:.1f}" for moe in MOES)
    print(
        f"{name:12s}: accuracy {scores['accuracy']:.1%}, largest / mean load {busiest}"
    )

# %% [markdown]
# That lies within the uncertainty. With one busy expert the layer is nearly the dense
# one again, which was good enough here; the others are memory for little. With experts
# on several devices, or a `capacity_factor`, an uneven load would cost time or tokens.
#
# ## Who goes where
#
# `kd.plots` has pictures of what a mixture does. Each is a record of arrays first, and
# a drawing second; above we took the loads of `kd.plots.expert_load` and drew them
# ourselves. By class, on test images:

# %%
# Caption: Which class goes to which expert.
# Alt: Two tables of ten classes and four experts, colored by share: shares are spread
# in the first mixture, and many classes have a favorite in the second.
model = networks["4 experts, K = 1"]
figure, axes = plt.subplots(1, 2, figsize=(8, 4.2), layout="constrained")
for axis, name in zip(axes, MOES, strict=True):
    kd.plots.expert_load_by_class(model, name, x_test, y_test, batch_size=500).plot(
        axis
    )
figure.savefig("loads_by_class.png", dpi=150)

# %% [markdown]
# And patch by patch, for the first image of each digit:

# %%
# Caption: The expert of each patch, for the first image of each digit.
# Alt: Two rows of ten digits in sixteen colored squares. In the upper row one image has
# patches of several colors, in the lower row mostly of one or two.
examples = x_test[[np.flatnonzero(y_test == digit)[0] for digit in range(10)]]
figure, axes = plt.subplots(2, 10, figsize=(11, 2.6), layout="constrained")
for row, name in zip(axes, MOES, strict=True):
    record = kd.plots.patch_experts(model, name, examples)
    dataclasses.replace(record, images=1 - examples).plot(row)  # black on white
    row[0].set_title("", loc="left")
    row[0].set_ylabel(name)
figure.savefig("patches_and_experts.png", dpi=150)

# %% [markdown]
# Nobody told the routers about classes. The first mixture still looks at the patch: one
# digit's patches go to several experts, and neighbors often to different ones. Before
# the second one, attention has mixed the tokens, and an image's tokens have become
# alike: background and stroke often go together, and many digits have a favorite
# expert. (For arrays of your own: `layer.routing(inputs)` returns the decision itself.)
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
            name="baseline",
            shape=(),
            initializer="zeros",
            trainable=False,
            aggregation="mean",
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
# router that nobody trains. Accuracy on test images:


# %%
def four(**arguments):
    experts = [layers.Dense(10, "softmax") for _ in range(EXPERTS)]
    return kd.SparseMoE(experts=experts, router=Policy(EXPERTS, seed=0), **arguments)


def classifier(layer, model_class=Reinforce):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((28, 28, 1))
    model = model_class(inputs, layer(layers.Flatten()(inputs)))
    compile_for(model, 3e-3)
    model.fit(x_train, y_train, batch_size=100, epochs=15, verbose=0)
    return model


untrained = four(balance_loss=None)
untrained.router.trainable = False
classifiers = {
    "one linear classifier": classifier(layers.Dense(10, "softmax"), keras.Model),
    "four, router not trained": classifier(untrained, keras.Model),
    "four, REINFORCE": classifier(four(balance_weight=0.3, name="policy")),
    "four, REINFORCE, no balancing": classifier(four(balance_loss=None)),
}
for name, model in classifiers.items():
    print(f"{name:30s} {scores_of(model)['accuracy']:.1%}")

# %%
# Caption: How the policy has divided the digits among four experts.
# Alt: A table of ten classes and four experts, colored by share; several classes go to
# one expert for the greater part.
figure, axis = plt.subplots(figsize=(4.6, 4.2), layout="constrained")
model = classifiers["four, REINFORCE"]
kd.plots.expert_load_by_class(model, "policy", x_test, y_test, batch_size=500).plot(
    axis
)
figure.savefig("choices_of_the_policy.png", dpi=150)

# %% [markdown]
# The router got no gradient but that of the reward (and of the balancing loss), and yet
# the experts have divided the digits among themselves, each with a part that straight
# lines can tell apart. The balancing loss keeps the policy exploring: without it, the
# expert that is ahead by chance gets more and more of the images, and less is gained.
# The gradient is noisy, and this is one run; other seeds gain a little less or more.
#
# ## What to try next
#
# - `kd.SparseMoE(8, HIDDEN // 2, top_k=2)`: eight experts half as large cost the same,
#   mix two answers, and move each token twice.
# - `router="expert_choice"`: each expert takes its best tokens, and loads are even.
# - `capacity_factor=1.0`: experts with limited room. Watch `moe_1_dropped` in the logs.
# - `route="input"`: one choice for all patches of an image.
# - `balance_loss=["importance", "load"]`, those of the V-MoE; `z_weight=1e-3`.
# - `experts=[...]`: any layers, also of different sizes.
# - The policy without its baseline, and with `balance_loss=None`.
