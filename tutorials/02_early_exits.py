# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Early exits
#
# Let $f_e(x)$ be what a network has computed after its block $e$. An *early exit* is a
# small classifier on top of it,
#
# $$\hat y_e = c_e(f_e(x)),$$
#
# so that the network gives a sequence of answers $\hat y_1, \hat y_2, \dots$ before its
# last, $\hat y$. Three questions come up: *where* to put exits, *how to train* a
# network with several answers, and *when to leave*. This tutorial takes them one by
# one.

# %%
import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_dynamic as kd

COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")

x, y = load_digits(return_X_y=True)
x = x.reshape(-1, 8, 8, 1).astype("float32") / 16
x, x_test, y, y_test = train_test_split(x, y, test_size=450, random_state=0)
x_train, x_valid, y_train, y_valid = train_test_split(
    x, y, test_size=347, random_state=0
)
print(
    f"{len(x_train)} digits to train, {len(x_valid)} to choose, {len(x_test)} to test"
)

# %% [markdown]
# ## A network that has none
#
# Three stages of convolutions, as plain as can be: every digit goes through all of it.


# %%
def block(h, filters, name):
    h = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False)(h)
    h = keras.layers.BatchNormalization(momentum=0.9)(h)
    return keras.layers.ReLU(name=name)(h)


def trunk():
    """The input, and the tensors after each of three stages."""
    inputs = keras.Input((8, 8, 1))
    first = block(block(inputs, 4, "block_1"), 4, "block_2")
    second = block(block(first, 16, "block_3"), 16, "block_4")
    third = block(block(second, 64, "block_5"), 64, "block_6")
    return inputs, first, second, third


def final_head(h):
    h = keras.layers.GlobalAveragePooling2D()(h)
    return keras.layers.Dense(10, "softmax", name="final")(h)


inputs, *_, last = trunk()
plain = keras.Model(inputs, final_head(last))

# %% [markdown]
# ## Where?
#
# An exit is worth what lies behind it. `suggest_exits` lists the places where a network
# can be cut, with the share of its FLOPs that is spent up to there (the column *Cost*)
# and what a default exit would cost there (*Head*).

# %%
print(kd.suggest_exits(plain))

# %% [markdown]
# A rule of thumb is to put exits after 25, 50 and 75 % of the cost, which
# `kd.add_exits(plain, at=(0.25, 0.5, 0.75))` does. Here the third stage is nearly
# everything, and exits after the first and the second come very early.
#
# **The exit itself has a price.** Early feature maps are wide and not yet abstract. A
# dense layer on the whole map is dear, so exits pool first: over the whole image, or
# over a coarse grid, which keeps some of *where* something was seen:

# %%
wide = keras.Input((32, 32, 64))  # an early map of a larger network
for pooling, grid in (("flatten", None), ("average", 4), ("average", 1)):
    head = kd.EarlyExit(1000, pooling=pooling, grid=grid)
    head(wide)
    weights = sum(np.prod(weight.shape) for weight in head.trainable_weights)
    print(
        f"pooling={pooling!r:10} grid={grid}: {weights:12,} weights for 1,000 classes"
    )

# %% [markdown]
# In a vision transformer the question hardly comes up: a class token is as long as any
# other, wherever the exit stands (`pooling="first"`).
#
# ## How to train?
#
# With the last answer $\hat y$ and early ones $\hat y_e$, the joint loss is
#
# $$L(y, \hat y) + \sum_e \lambda_e\, L(y, \hat y_e),$$
#
# with weights $\lambda_e$ that say how much the exits matter. In Keras' functional API
# an exit is a layer, and the outputs of a `DynamicModel` are the exits in their order:


# %%
def with_exits(loss_weight=1.0):
    inputs, first, second, third = trunk()
    exit_1 = kd.EarlyExit(10, loss_weight=loss_weight, name="exit_1")(first)
    exit_2 = kd.EarlyExit(10, loss_weight=loss_weight, name="exit_2")(second)
    return kd.DynamicModel(inputs, [exit_1, exit_2, final_head(third)])


def trained(loss_weight):
    keras.utils.set_random_seed(0)
    model = with_exits(loss_weight)
    model.compile(
        keras.optimizers.Adam(0.003),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    model.fit(x_train, y_train, batch_size=64, epochs=20, verbose=0)
    return model


models = {}
print("lambda   exit_1   exit_2   final    (accuracy on test digits)")
for loss_weight in (0.0, 0.1, 1.0):
    models[loss_weight] = trained(loss_weight)
    scores = models[loss_weight].evaluate(x_test, y_test, verbose=0, return_dict=True)
    row = [scores[f"{name}accuracy"] for name in ("exit_1_", "exit_2_", "")]
    print(f"{loss_weight:6.1f}   " + "   ".join(f"{value:6.3f}" for value in row))

# %% [markdown]
# With $\lambda_e = 0$ the exits learn nothing: their answers are guesses. With the
# others they are good for so little of the network, and the last exit does not suffer.
# It may even gain, since the exits bring gradients to the early layers. Then the joint
# loss is worth having though nobody leaves early, and `kd.strip_exits(model)` gives the
# plain network back.

# %%
# Caption: Where the FLOPs are: a bar for each layer, and what it costs to leave at each
# exit.
# Alt: A diagram of the network from top to bottom in three segments. The first two take
# few percent of the FLOPs, the third more than nine tenths; an exit stands after each.
model = models[1.0]
figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
kd.plots.model_diagram(model).plot(axes)
plt.show()

# %% [markdown]
# ## When to leave?
#
# The confidence $p_e$ of an exit is its largest probability. Leave at the first exit
# with $p_e > \gamma$. With $\gamma = 1$ nobody leaves, with $\gamma = 0$ everybody does
# at the first:

# %%
print("gamma   accuracy  mean cost   leave at exit_1, exit_2, final")
for gamma in (0.0, 0.5, 0.8, 0.95, 0.99, 1.0):
    p = model.predict_dynamic(
        x_test, rule=kd.rules.MaxProbability(gamma), batch_size=450, verbose=0
    )
    right = np.mean(p.outputs.argmax(axis=-1) == y_test)
    rates = "  ".join(f"{rate:6.1%}" for rate in p.exit_rates)
    print(f"{gamma:5.2f}   {right:8.3f}  {p.mean_cost:9.3f}   {rates}")

# %% [markdown]
# A mean cost of 1 is the plain network. Nothing is masked here: the digits that leave
# are taken out of the batch, and what follows is computed for the others alone.
#
# Which $\gamma$, and must it be the same for all exits? `calibrate` chooses one for
# each exit, on digits that were not trained with, so that the goal is met at the least
# cost. All that thresholds can buy, and the choice:

# %%
# Caption: What thresholds can buy, and the choice that `calibrate` made on other digits
# (the star).
# Alt: Accuracy over mean cost. The front of the best thresholds rises steeply at less
# than a tenth of the cost and is as high there as the plain network at cost 1.
model.calibrate(x_valid, y_valid, max_accuracy_drop=0.005)
print("thresholds:", model.exit_rule.threshold)

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
kd.plots.accuracy_cost(model, x_test, y_test).plot(axes)
axes.set_title("Every choice of thresholds, on test digits")
plt.show()

# %% [markdown]
# ## Who leaves where
#
# Digits that leave early should be the ones that a person finds easy:

# %%
# Caption: Who leaves where, from sure to unsure: the answer, and below it the
# confidence. Framed: wrong.
# Alt: Three rows of eight digits, one row for each exit. The digits of the first exit
# are the clearest.
kd.plots.samples_by_exit(model, x_test, y_test, per_exit=8).plot()
plt.show()

# %% [markdown]
# ## What to try next
#
# - $\lambda_1 = 1$ and $\lambda_2 = 0.1$: `EarlyExit(loss_weight=...)` is each exit's
#   own, and may change during training (`kd.callbacks.LossWeightSchedule`).
# - An exit in the middle of the third stage: after `block_5`.
# - Is a confidence of 0.95 right in 95 of 100 cases? That is the subject of
#   [the next tutorial](03_confidence_entropy_calibration.py).
#
# ## Sources
#
# Teerapittayanon, McDanel and Kung, "BranchyNet: Fast inference via early exiting from
# deep neural networks", 2016. Scardapane, Scarpiniti, Baccarelli and Uncini, "Why
# should we add early exits to neural networks?", 2020. Bakhtiarnia, Zhang and
# Iosifidis, "Multi-exit vision transformer for dynamic inference", 2021.
