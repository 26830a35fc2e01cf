# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Which layer?
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
import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from keras import layers

import keras_dynamic as kd

COLORS = ("#999999", "#56B4E9", "#009E73", "#E69F00", "#0072B2")
LINES = (":", "-.", "--", (0, (5, 1, 1, 1, 1, 1)), "-")

# %% [markdown]
# ## A task whose best layer is known
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
# After training, the network with only the winner in place of the choice is an ordinary
# Keras model, and it shares its weights.


# %%
def with_winner(model):
    kept = [
        layer.winner() if isinstance(layer, kd.LayerChoice) else layer
        for layer in model.layers
    ]
    return keras.Sequential([keras.Input((32, 1)), *kept])


# %% [markdown]
# ## All at once
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
    alone = with_winner(model)
    print(f"  accuracy {accuracy(model):.1%}, the winner alone {accuracy(alone):.1%}")


fit("soft, joint", network())

# %% [markdown]
# The right layer wins, but nothing makes the mixture decide: a layer with larger
# weights does its work at a small probability as well. The layers after the choice then
# rely on the sum, and the winner alone may be worth little.
#
# ## Two levels
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
# ## Draws, and a temperature that falls
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
figure, axes = plt.subplots(1, 4, figsize=(11, 3), sharey=True, layout="constrained")
names = models["soft, joint"].get_layer("choice").layer_names
for axis, (title, values) in zip(axes, recorded.items(), strict=True):
    for index, name in enumerate(names):
        curve = [value[index] for value in values]
        axis.plot(curve, color=COLORS[index], linestyle=LINES[index], label=name)
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
# ## What to try next
#
# - `costs=[...]` with a `cost_weight`: a layer has to be worth its cost.
# - `keras.layers.Identity()` among the layers lets the network decide how deep it is.
# - Sub-layers may be models: blocks of several layers.
# - With a hard estimator, `predict` runs the winner only, without any further step.
