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
import tensorflow as tf
from keras import layers
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
# Caption: What has become of the mean of four activations, after each layer.
# Alt: Three panels with the four activation functions in faint colors, and in black the
# blend before training, dotted, and after it, under two constraints; the unrestricted
# one is the steepest.
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
# Caption: The weights of the blends after training, by layer.
# Alt: Bars of four activations for three layers. Under softmax they part from the
# dashed starting line at 0.25; unrestricted, all have grown alike.
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
# `kd.discretize(model)` puts the strongest activation in each blend's place, and copies
# the kernels: an ordinary network, which pays for one activation a layer.


# %%
print("                 blended   winners only")
for title, model in {"always warm": blended, "cooled down": decided}.items():
    plain = kd.discretize(model)
    plain.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
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

# %% [markdown]
# ## Which layer?
#
# What works for activations works for layers. `LayerChoice` holds $E$ layers with the
# same output shape and a logit $l_e$ for each, and computes the *mixed operation* of
# DARTS,
#
# $$
# y = \sum_e p_e f_e(x), \qquad
# p_e = \frac{\exp(l_e / \tau)}{\sum_k \exp(l_k / \tau)} .
# $$
#
# It is differentiable in the logits, so that the choice is trained with the layers. At
# the end one keeps the layer with the largest logit.

# %%
LAYER_COLORS = ("#999999", "#56B4E9", "#009E73", "#E69F00", "#0072B2")
LINES = (":", "-.", "--", (0, (5, 1, 1, 1, 1, 1)), "-")

# %% [markdown]
# ### A task whose best layer is known
#
# The signals are noise $n$ with an echo, $x_t = n_t \pm 0.9\, n_{t-3}$. The class is
# the sign of the echo, and it shows in nothing but how points *three* steps apart go
# together.


# %%
def echoes(count, seed):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, count)
    noise = rng.normal(size=(count, 32 + 3))
    x = noise[:, 3:] + np.where(y == 1, 0.9, -0.9)[:, None] * noise[:, :-3]
    return x[..., None].astype("float32"), y


x, y = echoes(4_000, seed=0)
x_test, y_test = echoes(2_000, seed=1)

# %% [markdown]
# Five layers to choose from. Convolutions of three points with dilation 1 or 2 see
# pairs that are one, two or four steps apart, and so does not help what they see; the
# one with dilation 3 is right.


# %%
def candidates():
    convolutions = [
        layers.Conv1D(
            8, 3, padding="same", dilation_rate=steps, name=f"dilation_{steps}"
        )
        for steps in (1, 2, 3)
    ]
    average = layers.AveragePooling1D(3, strides=1, padding="same", name="average")
    return [layers.Identity(name="identity"), average, *convolutions]


def network(**arguments):
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((32, 1)),
            layers.Conv1D(8, 1),
            kd.LayerChoice(candidates(), name="choice", **arguments),
            layers.Activation("relu"),
            layers.GlobalAveragePooling1D(),
            layers.Dense(2),
        ]
    )


def accuracy(model):
    return np.mean(model.predict(x_test, verbose=0).argmax(axis=1) == y_test)


# %% [markdown]
# After training, `kd.discretize(model)` copies the network with the winner in place of
# the choice: an ordinary, smaller Keras model, whose file needs no `keras_dynamic`.

# %% [markdown]
# ### All at once
#
# The plainest way is `fit`, which trains logits and layers together. A callback notes
# the probabilities.


# %%
class Probabilities(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.values = []

    def on_epoch_begin(self, epoch, logs=None):
        self.values.append(self.model.get_layer("choice").probabilities())


loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
EPOCHS = 15
recorded, models = {}, {}


def fit(name, model, callbacks=()):
    notes = Probabilities()
    model.compile(keras.optimizers.Adam(0.01), loss_of)
    callbacks = [notes, *callbacks]
    model.fit(x, y, batch_size=100, epochs=EPOCHS, verbose=0, callbacks=callbacks)
    recorded[name], models[name] = notes.values, model
    report(name, model)


def report(name, model):
    choice = model.get_layer("choice")
    print(f"{name}: {choice.winner().name} with {choice.probabilities().max():.2f}")
    alone = kd.discretize(model)
    print(f"  accuracy {accuracy(model):.1%}, the winner alone {accuracy(alone):.1%}")


fit("soft, joint", network())

# %% [markdown]
# The right layer wins, but nothing makes the mixture decide: a layer with larger
# weights does its work at a small probability as well. The layers after the choice then
# rely on the sum, and the winner alone may be worth little.
#
# ### Two levels
#
# Chosen on the data that the layers were fitted to, the choice is for what *fits* best.
# DARTS therefore trains the logits on *validation* data, and all other weights on the
# training data. In its first-order form the two take turns, each with an optimizer of
# its own:
#
# 1. with a batch of validation data, a step of the logits;
# 2. with a batch of training data, a step of all the rest.
#
# Each choice hands out its logits as `choice_weights`. An `entropy_weight` in addition
# asks the mixture to decide.


# %%
def fit_on_two_levels(name, model):
    choices = [layer for layer in model.layers if isinstance(layer, kd.LayerChoice)]
    logits = [weight for layer in choices for weight in layer.choice_weights]
    chosen = {id(weight) for weight in logits}
    rest = [weight for weight in model.trainable_weights if id(weight) not in chosen]

    logits_optimizer, optimizer = (
        keras.optimizers.Adam(0.01),
        keras.optimizers.Adam(0.01),
    )
    logits_optimizer.build(logits)
    optimizer.build(rest)

    def descend(batch, weights, optimizer):
        with tf.GradientTape() as tape:
            loss = loss_of(batch[1], model(batch[0], training=True))
            loss += sum(model.losses)  # the choices' regularizers
        optimizer.apply(tape.gradient(loss, weights), weights)

    @tf.function
    def step(validation_batch, training_batch):
        descend(validation_batch, logits, logits_optimizer)
        descend(training_batch, rest, optimizer)

    data = tf.data.Dataset.from_tensor_slices((x, y))
    validation, training = (
        half.shuffle(2_000, seed=0).batch(100)
        for half in (data.take(2_000), data.skip(2_000))
    )
    recorded[name], models[name] = [], model
    for _ in range(EPOCHS):
        recorded[name].append(choices[0].probabilities())
        for batches in zip(validation, training, strict=True):
            step(*batches)
    report(name, model)


fit_on_two_levels("soft, two levels", network(entropy_weight=0.1))

# %% [markdown]
# ### Draws, and a temperature that falls
#
# With `estimator="gumbel_softmax"` the weights are random: sometimes one layer has most
# of the weight, sometimes another. Annealing the temperature, here from 1 to 0.1, makes
# the draws nearly one-hot, so that in the end a layer has to work without the others.
# `"gumbel_straight_through"` draws one-hot from the beginning: forward, a single layer,
# and backward the gradient of the softmax.

# %%
cooling = kd.callbacks.TemperatureSchedule(
    lambda epoch: 0.1 ** (epoch / (EPOCHS - 1)), "epoch"
)
fit("Gumbel-Softmax, cooling", network(estimator="gumbel_softmax", seed=0), [cooling])
fit("Gumbel straight-through", network(estimator="gumbel_straight_through", seed=0))

# %%
# Caption: The probability of each of five layers, in four ways to train the choice.
# Dilation 3 is right.
# Alt: Four panels over the epochs. The right layer wins on two levels and with cooled
# Gumbel-Softmax; it stays near one half when trained jointly, and loses with straight-
# through draws.
figure, axes = plt.subplots(1, 4, figsize=(11, 3), sharey=True, layout="constrained")
names = models["soft, joint"].get_layer("choice").layer_names
for axis, (title, values) in zip(axes, recorded.items(), strict=True):
    for index, name in enumerate(names):
        curve = [value[index] for value in values]
        axis.plot(curve, color=LAYER_COLORS[index], linestyle=LINES[index], label=name)
    axis.set(title=title, xlabel="epoch", ylim=(0, 1.02))
    axis.grid(alpha=0.3)
axes[0].set_ylabel("probability at the epoch's start")
axes[0].legend(fontsize=8)
figure.savefig("layer_choice.png", dpi=150)

# %% [markdown]
# - *Soft, joint* finds the right layer and stays undecided; the winner alone is hardly
#   better than a coin, although the mixture is nearly always right.
# - *On two levels* and with the entropy term, the same estimator decides, and the
#   winner does without the others. (Which of the two does it, this does not tell.)
# - *Gumbel-Softmax* that cools decides by itself.
# - *Gumbel straight-through* is on its way, and turns away again. Its gradient is taken
#   at the answer of the layer that was drawn, and is biased where the network after the
#   choice is not linear. Whether that is what happened here was not examined.
#
# One seed says little: `benchmarks/layer_choice.py` in the repository repeats this for
# ten.
#
# ### What to try next
#
# - `costs=[...]` with a `cost_weight`: a layer has to be worth its cost.
# - `keras.layers.Identity()` among the layers lets the network decide how deep it is.
# - Sub-layers may be models: blocks of several layers.
# - With a hard estimator, `predict` runs the winner only, without any further step.
