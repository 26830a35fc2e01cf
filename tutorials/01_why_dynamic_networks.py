# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Why dynamic networks?
#
# A neural network does the same work for every input. It spends on a clearly written 1
# what it spends on the scrawl that nobody can read. This first tutorial looks at what
# networks cost, at the usual ways to make them cheaper, and at the other way that this
# package is about: to let the *input* decide how much is computed.

# %%
import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_dynamic as kd

COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")

# %% [markdown]
# ## Costs grow
#
# How much computing does it take to train a well-known network, and how much memory to
# hold it? Both can be worked out from what the papers say. A multiply-add counts as two
# floating-point operations (FLOPs), and a training step as three times a forward pass:
# forward, gradient of the activations, gradient of the weights. So
#
# $$\text{FLOPs to train} = 3 \times \text{FLOPs of an input} \times
# \text{inputs seen} .$$
#
# In a language model each of $N$ weights takes part in one multiply-add for each of $D$
# tokens, which makes $3 \times 2 N D = 6 N D$.

# %%
# Caption: Six well-known networks: the computing that trained them, and the memory that
# holds their weights.
# Alt: Two scatter plots over the years 2012 to 2022 with logarithmic axes. Training
# costs rise from hundreds of PFLOPs to billions; weights rise from a tenth of a
# gigabyte to a thousand, and pass the line of what one accelerator holds.
# name, year, weights, FLOPs to train
NETWORKS = (
    # Krizhevsky et al. 2012: 0.72 G multiply-adds an image; 90 rounds of 1.2 M images.
    ("AlexNet", 2012, 61e6, 3 * 2 * 0.72e9 * 90 * 1.2e6),
    # Simonyan and Zisserman 2014: 15.5 G; 74 rounds of 1.28 M images.
    ("VGG-16", 2014, 138e6, 3 * 2 * 15.5e9 * 74 * 1.28e6),
    # He et al. 2015: 11.3 G; 600,000 steps of 256 images.
    ("ResNet-152", 2015, 60e6, 3 * 2 * 11.3e9 * 600e3 * 256),
    # Devlin et al. 2018: 1 M steps of 256 sequences of (at most) 512 tokens.
    ("BERT-Large", 2018, 340e6, 6 * 340e6 * 1e6 * 256 * 512),
    # Brown et al. 2020: 300 G tokens.
    ("GPT-3", 2020, 175e9, 6 * 175e9 * 300e9),
    # Chowdhery et al. 2022: 780 G tokens.
    ("PaLM", 2022, 540e9, 6 * 540e9 * 780e9),
)
# name, year, bytes of memory of one accelerator, by its maker's data sheet
ACCELERATORS = (
    ("GTX 580", 2010, 3e9),
    ("K40", 2013, 12e9),
    ("V100", 2018, 32e9),
    ("A100", 2020, 80e9),
    ("H200", 2024, 141e9),
)

figure, (work, memory) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for name, year, weights, flops in NETWORKS:
    work.semilogy(year, flops / 1e15, "o", color=COLORS[0])
    below = (5, 5) if name == "ResNet-152" else (5, -10)
    work.annotate(name, (year, flops / 1e15), below, textcoords="offset points")
    memory.semilogy(year, 2 * weights / 1e9, "o", color=COLORS[0])
    memory.annotate(
        name, (year, 2 * weights / 1e9), (5, -10), textcoords="offset points"
    )
work.set(xlabel="year", ylabel="PFLOPs", title="To train it", xlim=(2011, 2024.5))
memory.plot(
    [year for _, year, _ in ACCELERATORS],
    [size / 1e9 for *_, size in ACCELERATORS],
    "s--",
    color=COLORS[4],
    label="one accelerator has",
)
memory.set(xlabel="year", ylabel="GB", title="To hold its weights, 2 bytes each")
memory.set_xlim(2009, 2026)
memory.legend(frameon=False, loc="upper left")
for axes in (work, memory):
    axes.spines[["top", "right"]].set_visible(False)
plt.show()

growth = NETWORKS[-1][3] / NETWORKS[0][3]
print(f"in ten years the training cost grew {growth:.1e} times")

# %% [markdown]
# The accelerators did not keep up: from 2010 to 2024 their memory grew fifty-fold. And
# what is trained once is *used* for ever after, each time at full cost: all six
# networks do for every input all that they can.
#
# ## A static network, and its bill
#
# Scikit-learn's digits: 1,797 scanned digits of 8 x 8 pixels. A third is held back for
# the figures on this page, and a quarter of the rest to choose thresholds with.

# %%
keras.utils.set_random_seed(0)
x, y = load_digits(return_X_y=True)
x = x.reshape(-1, 8, 8, 1).astype("float32") / 16
x, x_test, y, y_test = train_test_split(x, y, test_size=0.33, random_state=0)
x_train, x_valid, y_train, y_valid = train_test_split(
    x, y, test_size=0.25, random_state=0
)


def block(h, filters, separable=False):
    kind = keras.layers.SeparableConv2D if separable else keras.layers.Conv2D
    h = kind(filters, 3, padding="same", use_bias=False)(h)
    return keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.9)(h))


def static(filters=(8, 32, 64), separable=False):
    inputs = h = keras.Input((8, 8, 1))
    for width in filters:
        h = block(h, width, separable and width > filters[0])
        h = block(h, width, separable)
    h = keras.layers.GlobalAveragePooling2D()(h)
    return keras.Model(inputs, keras.layers.Dense(10, "softmax", name="final")(h))


def train(model, loss="sparse_categorical_crossentropy", targets=y_train, **kwargs):
    model.compile(keras.optimizers.Adam(0.003), loss, metrics=["accuracy"])
    kwargs = {"epochs": 15, **kwargs}
    model.fit(x_train, targets, batch_size=64, verbose=0, **kwargs)
    return model


def accuracy(probabilities):
    return float(np.mean(np.argmax(probabilities, -1) == y_test))


def flops(model):
    """Of one digit, by the package's counter: what the network costs without exits."""
    return kd.add_exits(model, at=(0.5,)).compute_costs().reference


def nonzero(model):
    return sum(np.count_nonzero(weight) for weight in model.get_weights())


bill = {}  # name: (accuracy, MFLOPs a digit on average, KB of weights)


def enter(name, probabilities, cost, kilobytes):
    bill[name] = accuracy(probabilities), cost / 1e6, kilobytes
    print("{:28} accuracy {:.3f}  {:.2f} MFLOPs  {:5.0f} KB".format(name, *bill[name]))


plain = train(static())
enter("static", plain.predict(x_test, verbose=0), flops(plain), nonzero(plain) / 250)

# %% [markdown]
# (A weight of four bytes: so many thousands of weights times four are kilobytes.)
#
# ## The usual ways to pay less
#
# They make another, cheaper network, once for all inputs.
#
# 1. **Cheaper layers.** A depthwise separable convolution filters each channel by
#    itself and mixes the channels afterwards.
# 2. **Distillation.** A smaller network learns from the larger one's probabilities
#    instead of the labels.
# 3. **Pruning and quantization.** Weights near zero are dropped; the others are kept in
#    fewer bits.

# %%
separable = train(static(separable=True))
enter(
    "separable convolutions",
    separable.predict(x_test, verbose=0),
    flops(separable),
    nonzero(separable) / 250,
)

small = static(filters=(4, 16, 32))
train(small, loss="kl_divergence", targets=plain.predict(x_train, verbose=0))
enter(
    "distilled, half as wide",
    small.predict(x_test, verbose=0),
    flops(small),
    nonzero(small) / 250,
)


def changed(model, change):
    """A copy of a network whose kernels are changed."""
    copy = keras.models.clone_model(model)
    weights = model.get_weights()
    copy.set_weights([change(w) if w.ndim > 1 else w for w in weights])
    return copy


def pruned(kernel, share=0.5):
    return np.where(np.abs(kernel) < np.quantile(np.abs(kernel), share), 0, kernel)


def in_8_bits(kernel):
    step = np.abs(kernel).max() / 127
    return np.round(kernel / step) * step


sparse = changed(plain, pruned)
kept = [weight != 0 for weight in sparse.get_weights()]


def zeros_again(batch, logs):
    weights = sparse.get_weights()
    kernels = [w * k if w.ndim > 1 else w for w, k in zip(weights, kept, strict=True)]
    sparse.set_weights(kernels)


# The weights that are left make up for those that are gone.
again = keras.callbacks.LambdaCallback(on_train_batch_end=zeros_again)
train(sparse, epochs=5, callbacks=[again])
enter(
    "half of the weights pruned",
    sparse.predict(x_test, verbose=0),
    flops(plain),
    nonzero(sparse) / 250,
)
eight = changed(plain, in_8_bits)
enter(
    "weights in 8 bits",
    eight.predict(x_test, verbose=0),
    flops(plain),
    nonzero(plain) / 1000,
)

# %% [markdown]
# The last two save memory, and time only where the hardware skips zeros or computes in
# eight bits: the count of operations is what it was. All of them treat the clear digit
# and the scrawl alike.
#
# ## The dynamic way
#
# Three things can depend on the input: *how far* it goes through the network (early
# exits), *which layers* it passes (gates), and *which part of a layer* it meets
# (experts). One of each, in little; the following tutorials take their time.
#
# **Early exits**: small classifiers on the way. Who is sure enough leaves.

# %%
inputs = keras.Input((8, 8, 1))
h = block(block(inputs, 8), 8)
exit_1 = kd.EarlyExit(10, name="exit_1")(h)
h = block(block(h, 32), 32)
exit_2 = kd.EarlyExit(10, name="exit_2")(h)
h = keras.layers.GlobalAveragePooling2D()(block(block(h, 64), 64))
exits = kd.DynamicModel(
    inputs, [exit_1, exit_2, keras.layers.Dense(10, "softmax", name="final")(h)]
)
train(exits)
exits.calibrate(x_valid, y_valid, max_accuracy_drop=0.005)
left = exits.predict_dynamic(x_test, verbose=0)
enter("early exits", left.outputs, left.cost.mean(), nonzero(exits) / 250)

# %% [markdown]
# **Gates**: each residual block has a small network in front that says whether the
# block runs for this digit.

# %%
inputs = keras.Input((8, 8, 1))
h = block(inputs, 8)
for width in (16, 32, 64):
    h = block(h, width)
    body = keras.layers.Conv2D(width, 3, padding="same", activation="relu")
    h = kd.SkipGate(body, additive=True, target_rate=0.5, rate_weight=1.0)(h)
h = keras.layers.GlobalAveragePooling2D()(h)
gated = kd.DynamicModel(inputs, keras.layers.Dense(10, "softmax", name="final")(h))
train(gated)
passed = gated.predict_dynamic(x_test, verbose=0)
enter("gates", passed.outputs, passed.cost.mean(), nonzero(gated) / 250)

# %% [markdown]
# **Experts**: a layer made of four networks, one of which is computed for each of the
# image's positions. It has four times the weights at the price of one.

# %%
inputs = keras.Input((8, 8, 1))
h = block(inputs, 32)
h = keras.layers.Reshape((64, 32))(h)
h = kd.SparseMoE(4, 64, balance_weight=0.01, name="experts")(h)
h = keras.layers.Reshape((8, 8, 32))(h)
h = keras.layers.GlobalAveragePooling2D()(block(h, 64))
mixture = kd.DynamicModel(inputs, keras.layers.Dense(10, "softmax", name="final")(h))
train(mixture)
routed = mixture.predict_dynamic(x_test, verbose=0)
enter("experts", routed.outputs, routed.cost.mean(), nonzero(mixture) / 250)

# %% [markdown]
# ## What is saved, and what is not

# %%
# Caption: What each network pays for a digit, and how often it is right.
# Alt: A scatter plot of accuracy over MFLOPs a digit. Static networks are blue, those
# that depend on the input orange; early exits cost least, and their disk, the memory,
# is no smaller.
figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
dynamic = ("early exits", "gates", "experts")
beside = {"static": (10, 8), "half of the weights pruned": (10, -14)}
for name, (right, cost, kilobytes) in bill.items():
    color = COLORS[4] if name in dynamic else COLORS[0]
    axes.scatter(cost, 100 * right, s=kilobytes, color=color, alpha=0.7)
    place = beside.get(name, (10, -3))
    axes.annotate(name, (cost, 100 * right), place, textcoords="offset points")
axes.set(
    xlabel="MFLOPs a digit, on average",
    ylabel="accuracy on test digits (%)",
    title="Area: memory for the weights. Orange: depends on the input",
)
axes.spines[["top", "right"]].set_visible(False)
axes.set_xlim(-0.5, 12.5)
axes.margins(y=0.15)
plt.show()

# %% [markdown]
# Read it with care: one seed, 593 test digits, so a point of accuracy is six digits and
# nothing here ranks the methods. What the picture does show holds in general:
#
# - **Operations are saved**, by as much as the inputs are easy. Where each digit paid
#   its own price can be looked at one by one:

# %%
shares = left.cost / exits.compute_costs().reference
for index, name in enumerate(exits.exit_names):
    here = left.exit_index == index
    if here.any():
        print(f"{here.mean():6.1%} of the digits paid {shares[here][0]:.2f} ({name})")

# %% [markdown]
#   This network is far too large for most of these digits. A static one would have to
#   be made smaller, tried, and made smaller again to find out.
# - **Memory is not.** The next digit may be a hard one, so all weights stay loaded; the
#   exits, gates and experts add their own. Who is short of memory wants the smaller
#   networks above, [split computing](12_export_and_split_computing.py), or both.
# - **Time is saved where computing takes it.** Choosing and gathering rows costs time
#   as well. A network as small as this one may gain nothing.
# - **It adds up.** A distilled network can have exits, an exported one with exits can
#   be quantized: static and dynamic savings multiply.
#
# ## What to try next
#
# - A larger `max_accuracy_drop` for the exits, and another `target_rate` for the gates.
# - Exits on the separable network: `kd.add_exits(separable, at=(0.25, 0.5))`, and then
#   `fit_exits`.
# - The next tutorial, on [early exits](02_early_exits.py).
#
# ## Sources
#
# Krizhevsky, Sutskever and Hinton, "ImageNet classification with deep convolutional
# neural networks", 2012. Simonyan and Zisserman, "Very deep convolutional networks for
# large-scale image recognition", 2014. He et al., "Deep residual learning for image
# recognition", 2015. Devlin et al., "BERT", 2018. Brown et al., "Language models are
# few-shot learners", 2020. Chowdhery et al., "PaLM: Scaling language modeling with
# pathways", 2022. Han et al., "Dynamic neural networks: A survey", 2021.
