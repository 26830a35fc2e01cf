# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Several devices and several machines
#
# Data-parallel training: every device holds the whole network, each takes its part of
# a batch, and their gradients are summed before the one step that all of them make.
# `tf.distribute` does it, and `fit` needs no other line. What is worth knowing is when
# the result is the one that a single device would have had, and when it is not.

# %%
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_dynamic as kd

COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")  # safe for color-blind readers

# %% [markdown]
# ## Two devices
#
# On a machine with GPUs `tf.distribute.MirroredStrategy()` takes all of them, and
# nothing has to be set up. So that this page can be run anywhere, it makes two
# devices of one processor. That shows that the numbers are right; it can't be faster.

# %%
(processor,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(
    processor, [tf.config.LogicalDeviceConfiguration()] * 2
)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
print("replicas:", strategy.num_replicas_in_sync)

# %% [markdown]
# A network with an early exit and a gated block. It is made and compiled inside
# `strategy.scope()`, which gives each variable a copy on each device. The gate is
# "soft" at first, so that nothing is drawn, and no decision is hard: one that flips
# because a last bit was rounded otherwise would be another network from there on.

# %%
x, y = load_digits(return_X_y=True)
x = x.reshape(-1, 8, 8, 1).astype("float32") / 16
x, x_test, y, y_test = train_test_split(x, y, test_size=450, random_state=0)
x, x_valid, y, y_valid = train_test_split(x, y, test_size=372, random_state=0)
print(len(x), "digits to train on")


def network(estimator="soft"):
    inputs = keras.Input((8, 8, 1))
    h = keras.layers.Conv2D(16, 3, padding="same", activation="relu")(inputs)
    exit_1 = kd.EarlyExit(10, loss_weight=0.5, name="exit_1")(h)
    block = keras.layers.Conv2D(16, 3, padding="same", activation="relu")
    h = kd.SkipGate(
        block, estimator, target_rate=0.5, rate_weight=1.0, seed=1, name="gate"
    )(h)
    h = keras.layers.Flatten()(keras.layers.MaxPooling2D()(h))
    final = keras.layers.Dense(10, activation="softmax", name="final")(h)
    model = kd.DynamicModel(inputs, [exit_1, final])
    optimizer = keras.optimizers.Adam(0.005)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def trained(strategy, rows, **kwargs):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = network(**kwargs)
    history = model.fit(
        x[:rows], y[:rows], batch_size=64, epochs=6, shuffle=False, verbose=0
    )
    return model, np.array(history.history["loss"])


one_device = tf.distribute.get_strategy()  # outside of any scope: the usual one
alone, loss_alone = trained(one_device, 960)
mirrored, loss_mirrored = trained(strategy, 960)


def distance(model, other):
    """The largest difference between two weights of two models."""
    pairs = zip(model.get_weights(), other.get_weights(), strict=True)
    return max(np.abs(a - b).max() for a, b in pairs)


print(f"largest difference of a weight: {distance(alone, mirrored):.1e}")

# %% [markdown]
# The batch of 64 went as 32 and 32. With $R$ replicas and a batch $B$ cut into parts
# $B_1, \dots, B_R$, what each replica minimizes is the mean over its own part divided
# by $R$, and the gradients are summed:
#
# $$\frac{1}{R} \sum_{r=1}^{R} \frac{1}{|B_r|} \sum_{i \in B_r} \ell_i
# \;=\; \frac{1}{|B|} \sum_{i \in B} \ell_i
# \qquad\text{if all parts have the same size.}$$
#
# What layers add to the loss, here the price that the gate pays for being open, is
# divided by $R$ as well.
#
# ## A batch that can't be shared evenly
#
# 960 is 15 times 64. With 975 rows there is a sixteenth batch of 15 rows, which two
# replicas share as 8 and 7. The left side of the formula still gives each *part* the
# same weight, so each of the 7 rows counts a little more than each of the 8. Nothing
# fails, but it is another mean:

# %%
# Caption: How far the losses of two replicas are from those of one device.
# Alt: A logarithmic plot over six epochs. Where every batch is shared evenly the
# difference stays below a millionth; with the uneven last batch it is a thousandth and
# more.
uneven_alone, loss_uneven_alone = trained(one_device, 975)
uneven, loss_uneven = trained(strategy, 975)
print(f"largest difference of a weight: {distance(uneven_alone, uneven):.1e}")

figure, axes = plt.subplots(figsize=(7, 3.5))
epochs = np.arange(1, len(loss_alone) + 1)
for label, one, two, color in (
    ("every batch shared evenly", loss_alone, loss_mirrored, COLORS[0]),
    ("last batch 8 and 7", loss_uneven_alone, loss_uneven, COLORS[1]),
):
    gap = np.maximum(np.abs(one - two), 1e-9)
    axes.semilogy(epochs, gap, "o-", color=color, label=label)
axes.set(
    xlabel="epoch",
    ylabel="|loss by two - loss by one|",
    title="Two replicas against one device",
)
axes.legend(frameon=False)
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# Rounding alone parts the first pair. To have the second on the same road, let the
# batch size be a multiple of the number of replicas and drop what is left over
# (`tf.data.Dataset.batch(64, drop_remainder=True)`). Batch normalization is another
# thing that sees parts instead of batches: `BatchNormalization(synchronized=True)`
# takes its moments over all replicas. What the layers of this package compute from a
# whole batch, a rate of open gates or the balance of experts, they do take over all.
#
# ## Noise
#
# The Gumbel noise of a gate, a selector or a mixture of experts is drawn by each
# replica for itself, as it has to be: with one noise for all, a batch cut in two would
# hold each draw twice. The same six rows of equal logits, on both replicas:

# %%
with strategy.scope():
    gumbel = kd.GumbelSoftmax(estimator="gumbel_straight_through", seed=0)
rows = tf.zeros((6, 4))


@tf.function
def draw():
    return strategy.run(lambda: tf.argmax(gumbel(rows, training=True), -1))


for number, values in enumerate(strategy.experimental_local_results(draw())):
    print(f"replica {number} chose", values.numpy())

# %% [markdown]
# So a network with noise gets other weights on two replicas than on one, as it would
# with another seed. What it learns is as good:

# %%
for name, where in (("one device", one_device), ("two replicas", strategy)):
    model, _ = trained(where, 960, estimator="gumbel_straight_through")
    scores = model.evaluate(x_valid, y_valid, verbose=0, return_dict=True)
    print(f"{name:12}  accuracy {scores['accuracy']:.3f}")

# %% [markdown]
# ## Calibrate, predict, save
#
# `calibrate` and `predict_dynamic` take the strategy of the model too: each replica
# walks its own part of a batch, so that on each of them the rows that have left are
# computed no further. The answers are those of one device, and so is the file.

# %%
report = model.calibrate(x_valid, y_valid, budget=0.4)
print(report)
by_two = model.predict_dynamic(x_test, verbose=0)

with tempfile.TemporaryDirectory() as folder:
    model.save(Path(folder) / "model.keras")
    loaded = keras.saving.load_model(Path(folder) / "model.keras")
by_one = loaded.predict_dynamic(x_test, verbose=0)
accuracy = np.mean(by_one.outputs.argmax(-1) == y_test)
print(f"accuracy {accuracy:.3f} at a mean cost of {by_one.mean_cost:.3f}")
print("the same exits:", np.array_equal(by_one.exit_index, by_two.exit_index))

# %% [markdown]
# ## A loop of one's own
#
# In a custom loop, `compute_loss` gives the loss of all exits and layers, divided by
# the number of replicas already; the optimizer sums the gradients. Losses and optimizer
# make variables at their first use, and inside a `tf.function` that is too late. So one
# batch is evaluated before, and the optimizer built.

# %%
with strategy.scope():
    model = network()
    model.evaluate(x[:64], y[:64], verbose=0)
    model.optimizer.build(model.trainable_variables)


@tf.function
def step(images, labels):
    def on_replica(images, labels):
        with tf.GradientTape() as tape:
            outputs = model(images, training=True)
            loss = model.compute_loss(images, labels, outputs, training=True)
        gradients = tape.gradient(loss, model.trainable_variables)
        model.optimizer.apply(gradients, model.trainable_variables)
        return loss

    losses = strategy.run(on_replica, (images, labels))
    return strategy.reduce("SUM", losses, axis=None)


batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(64, drop_remainder=True)
for epoch in range(3):
    losses = [
        step(*batch).numpy()
        for batch in strategy.experimental_distribute_dataset(batches)
    ]
    print(f"epoch {epoch + 1}: loss {np.mean(losses):.3f}")

# %% [markdown]
# ## Two machines
#
# `tf.distribute.MultiWorkerMirroredStrategy` does the same over a network. Every
# machine runs the same script. The environment variable `TF_CONFIG` says who takes
# part, and which of them this one is; nothing else differs. Here both machines are this
# one:

# %%
SCRIPT = """
import sys
import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

import keras_dynamic as kd

# Before anything else of TensorFlow.
strategy = tf.distribute.MultiWorkerMirroredStrategy()
x, y = load_digits(return_X_y=True)
x, y = x[:1280].astype("float32") / 16, y[:1280]
keras.utils.set_random_seed(0)
with strategy.scope():
    inputs = keras.Input((64,))
    h = keras.layers.Dense(64, activation="relu")(inputs)
    exit_1 = kd.EarlyExit(10, loss_weight=0.5, name="exit_1")(h)
    h = keras.layers.Dense(64, activation="relu")(h)
    final = keras.layers.Dense(10, activation="softmax", name="final")(h)
    model = kd.DynamicModel(inputs, [exit_1, final])
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
history = model.fit(x, y, batch_size=64, epochs=3, shuffle=False, verbose=0)
model.save(sys.argv[1])
print(*(f"{loss:.5f}" for loss in history.history["loss"]))
"""


def free_addresses(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    return addresses


def started(script, config, *arguments):
    environment = {**os.environ, "TF_CONFIG": json.dumps(config)}
    return subprocess.Popen(
        [sys.executable, script, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


with tempfile.TemporaryDirectory() as folder:
    folder = Path(folder)
    (folder / "train.py").write_text(SCRIPT)
    addresses = free_addresses(2)
    processes = [
        started(
            folder / "train.py",
            {
                "cluster": {"worker": addresses},
                "task": {"type": "worker", "index": index},
            },
            folder / f"worker_{index}.keras",
        )
        for index in range(2)
    ]
    outputs = [process.communicate()[0].strip() for process in processes]
    models = [
        keras.saving.load_model(folder / f"worker_{index}.keras") for index in range(2)
    ]
for index, output in enumerate(outputs):
    print(f"losses, worker {index}: {output}")
print(f"largest difference of a weight: {distance(*models):.1e}")

# %% [markdown]
# Both workers report the losses of the whole batch and end with the same weights, so
# that one file is enough; each writes to a place of its own all the same, since two
# processes that write one file spoil it.
#
# Keras 3.15's own `fit` fails under this strategy; `DynamicModel` brings what it lacks.
# For a plain `keras.Model` with layers of this package (or without),
# `keras_dynamic.models.several_workers.SeveralWorkers` is that remedy as a mixin.
#
# ## What does not work
#
# - XLA together with several devices of one processor: TensorFlow refuses variables of
#   another device. (On GPUs it has not been tried.)
# - `tf.distribute.ParameterServerStrategy` and `keras.distribution`: Keras 3.15 does
#   not support the first in `fit`, nor the second on TensorFlow.
#
# ## What to try next
#
# - Give one replica more rows than the other by a batch size of 63, and see how far the
#   weights part.
# - Put a `BatchNormalization` into the block, with `synchronized=True` and without.
# - Train with [`BackupAndRestore`](https://keras.io/api/callbacks/backup_and_restore/),
#   kill the script, and start it again.
