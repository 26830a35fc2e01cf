# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Which activation, which layer?
#
# ReLU or tanh? The usual answer is to try both. But a choice of one out of $E$ things
# can be trained like everything else, if it is first made soft: instead of choosing
# one activation function, take all of them, with weights,
#
# $$f(x) = \sum_{e=1}^{E} a_e\,\varphi_e(x), \qquad a = \mathrm{softmax}(w),$$
#
# and let gradient descent find the $w_e$ together with the kernels. This is an
# *adaptive blending unit*; here it is the layer `BlendedActivation`.

# %%
import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_dynamic as kd

keras.utils.set_random_seed(0)
NAMES = ["relu", "tanh", "elu", "swish"]
COLORS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7"]  # safe for color-blind readers

# %% [markdown]
# ## A blend by hand
#
# At first all weights are the same. The blend is then the mean of the four functions:

# %%
x = np.linspace(-3, 3, 121).astype("float32")
activations = [keras.activations.get(name) for name in NAMES]
by_hand = sum(activation(x) / 4 for activation in activations)

blend = kd.BlendedActivation(NAMES)
print("weights:", blend.blend())
print("farthest from the mean:", np.abs(blend(x[:, None])[:, 0] - by_hand).max())

# %% [markdown]
# ## Real digits
#
# Scikit-learn's 1,797 digits of 8 x 8 pixels, half of them to train on. The network has
# two convolutions and a dense layer, and behind each a blend of its own.

# %%
digits = load_digits()
images = (digits.images / 16.0).astype("float32")[..., None]
x_train, x_test, y_train, y_test = train_test_split(
    images, digits.target, test_size=0.5, random_state=0, stratify=digits.target
)
BLENDS = ["after conv 1", "after conv 2", "after dense"]


def network(make_activation):
    """A small CNN; `make_activation` makes each of its activations, from a name."""
    names = iter(name.replace(" ", "_") for name in BLENDS)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(16, 3),
            make_activation(next(names)),
            keras.layers.Conv2D(32, 3),
            make_activation(next(names)),
            keras.layers.Flatten(),
            keras.layers.Dense(64),
            make_activation(next(names)),
            keras.layers.Dense(10, "softmax"),
        ]
    )


def train(model, epochs=30, callbacks=()):
    model.compile(
        keras.optimizers.Adam(5e-3),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    model.fit(
        x_train,
        y_train,
        batch_size=64,
        epochs=epochs,
        callbacks=list(callbacks),
        verbose=0,
    )
    return model


def test_accuracy(model):
    return model.evaluate(x_test, y_test, verbose=0, return_dict=True)["accuracy"]


def blends_of(model):
    return [layer for layer in model.layers if isinstance(layer, kd.BlendedActivation)]


def show_weights(model):
    for layer in blends_of(model):
        weights = layer.blend().items()
        print(layer.name.ljust(14), *(f"{name} {a:5.2f}  " for name, a in weights))


blended = train(network(lambda name: kd.BlendedActivation(NAMES, name=name)))
print(f"test accuracy: {test_accuracy(blended):.3f}")
show_weights(blended)

# %% [markdown]
# In this run ELU gains in every layer; tanh gains behind the convolutions and loses
# behind the dense layer.
#
# ## Constraints
#
# The softmax keeps the weights positive and their sum at 1. There are four other ways
# to make weights $a$ of parameters $w$:
#
# | `constraint`          | weights                                     |
# | --------------------- | ------------------------------------------- |
# | `softmax`             | $a = \mathrm{softmax}(w / \tau)$            |
# | `unrestricted`        | $a = w$                                     |
# | `sum_normalized`      | $a_e = w_e / \sum_k w_k$                    |
# | `absolute_normalized` | $a_e = w_e / \sum_k \lvert w_k \rvert$      |
# | `positive`            | $a_e = p_e / \sum_k p_k$, $p = \max(w, 0)$  |
#
# Without any, the weights may be negative, and a layer learns the scale of its
# activation too:

# %%
unrestricted = train(
    network(lambda name: kd.BlendedActivation(NAMES, "unrestricted", name=name))
)
print(f"test accuracy: {test_accuracy(unrestricted):.3f}")
show_weights(unrestricted)

# %% [markdown]
# Left to itself, a layer here makes all its weights grow alike: what it looked for was
# a steeper activation rather than another one. This is what has become of the mean of
# the four, in each layer:

# %%
figure, axes = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained", sharey=True)
for index, (axis, title) in enumerate(zip(axes, BLENDS, strict=True)):
    for activation, color, name in zip(activations, COLORS, NAMES, strict=True):
        axis.plot(x, activation(x), color=color, linewidth=1, alpha=0.5, label=name)
    axis.plot(x, by_hand, "k:", linewidth=2, label="blend, before")
    for model, line in ((blended, "-"), (unrestricted, "--")):
        layer = blends_of(model)[index]
        label = f"after, {layer.constraint}"
        axis.plot(x, layer(x), "k", linestyle=line, label=label)
    axis.set(title=title, xlabel="x", ylim=(-1.5, 3))
    axis.grid(alpha=0.3)
axes[0].set_ylabel("f(x)")
axes[0].legend(fontsize=8)
figure.savefig("blended_activation_curves.png", dpi=150)


# %% [markdown]
# And these are the weights, by layer; the dashed line is where they started:

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
positions = np.arange(len(BLENDS))
for axis, model in zip(axes, (blended, unrestricted), strict=True):
    for index, (name, color) in enumerate(zip(NAMES, COLORS, strict=True)):
        weights = [layer.blend()[name] for layer in blends_of(model)]
        places = positions + 0.2 * (index - 1.5)
        axis.bar(places, weights, 0.18, color=color, label=name)
    axis.axhline(1 / 4, color="gray", linestyle="--", linewidth=1)
    axis.set_xticks(positions, BLENDS)
    axis.set(title=blends_of(model)[0].constraint, ylabel="weight in the blend")
handles, labels = axes[0].get_legend_handles_labels()
figure.legend(handles, labels, loc="outside right center", fontsize=8)
figure.savefig("blended_activation_weights.png", dpi=150)

# %% [markdown]
# ## From a blend to a choice
#
# A blend computes all $E$ activations. To end up with one, it has to make up its mind:
# as the temperature $\tau$ falls, $\mathrm{softmax}(w / \tau)$ turns the largest $w_e$
# into nearly all of the weight, and the kernels get used to that.

# %%
epochs = 30
cooling = kd.callbacks.TemperatureSchedule(
    lambda epoch: 0.02 ** (epoch / epochs), "epoch"
)
decided = train(
    network(lambda name: kd.BlendedActivation(NAMES, name=name)), epochs, [cooling]
)
show_weights(decided)

# %% [markdown]
# `winner()` gives the strongest activation as a plain layer. With it in each blend's
# place, and the kernels as they are, there is an ordinary network, which pays for one
# activation a layer:


# %%
def with_winners(model):
    winners = {layer.name: layer.winner() for layer in blends_of(model)}
    plain = network(winners.get)
    for old, new in zip(model.layers, plain.layers, strict=True):
        if old.name not in winners:
            new.set_weights(old.get_weights())
    plain.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return plain


print("                 blended   winners only")
for title, model in {"always warm": blended, "cooled down": decided}.items():
    plain = with_winners(model)
    chosen = [
        layer.activation.__name__ for layer in plain.layers if "after" in layer.name
    ]
    print(
        f"{title:12s} {test_accuracy(model):11.3f} {test_accuracy(plain):14.3f}   "
        + ", ".join(chosen)
    )

# %% [markdown]
# For the network that was cooled down nothing changes, since it had nearly made that
# step itself; the other one is asked to do without what it was trained with. (On 899
# digits, differences of less than about a point say nothing.)
#
# Whoever wants one activation during training as well takes a hard estimator:
# `estimator="gumbel_straight_through"`, for one, draws an activation for each step, and
# when not training computes the winner only.
