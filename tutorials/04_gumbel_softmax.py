# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Gumbel-Softmax: training a choice
#
# A network that chooses (an exit, a layer, an expert) has to choose *one* of them to
# save anything. But a choice has no gradient. This tutorial shows what is done about
# it, what each remedy costs, and how `GumbelSoftmax` puts them behind one argument.

# %%
import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

import keras_dynamic as kd

keras.utils.set_random_seed(0)
BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"  # safe for color-blind readers

# %% [markdown]
# ## An argmax has no gradient
#
# Three choices with the probabilities $p = (0.2, 0.3, 0.5)$, and a value for each. The
# value of the choice does not change when the logits change a little, so that nothing
# can be learned from it.

# %%
probabilities = np.array([0.2, 0.3, 0.5], "float32")
logits = tf.Variable(np.log(probabilities))
values = tf.constant([1.0, 2.0, 4.0])

with tf.GradientTape() as tape:
    choice = tf.one_hot(tf.argmax(logits), 3)
    value = tf.reduce_sum(choice * values)
print("value:", value.numpy(), "  gradient:", tape.gradient(value, logits))

# %% [markdown]
# ## The Gumbel-max trick
#
# An argmax also never tries anything else. A draw from the categorical distribution
# does, and it can be had from an argmax, with noise from the standard Gumbel
# distribution in front of it:
#
# $$z = \arg\max_e\,(\log p_e + g_e) .$$

# %%
gumbel = tfp.distributions.Gumbel(0.0, 1.0)
draws = tf.argmax(logits + gumbel.sample((100_000, 3), seed=1), axis=-1)
print("drawn:", np.bincount(draws) / 100_000, "  wanted:", probabilities)

# %% [markdown]
# Now the randomness comes from outside, and only the argmax is left to be replaced. A
# softmax does it, with a *temperature* $\tau > 0$:
#
# $$z = \mathrm{softmax}\left(\frac{\log p + g}{\tau}\right) .$$
#
# By hand, and as a layer, at $\tau = 1$:

# %%
soft_sample = tf.nn.softmax(logits + gumbel.sample(3, seed=1))
print("by hand:      ", soft_sample.numpy())

relax = kd.GumbelSoftmax(temperature=1.0, seed=1)
print("layer:        ", relax(logits, training=True).numpy())
print("once more:    ", relax(logits, training=True).numpy())
print("not training: ", relax(logits).numpy())

# %% [markdown]
# The layer draws new noise at every call, and none when it is not training: then it is
# an ordinary softmax. It takes logits; of probabilities take the logarithm.
#
# ## What the temperature does
#
# Each answer of the layer is a point of a triangle whose corners are the three
# choices. As $\tau$ falls, the points leave the middle for the corners; at every
# temperature, a share $p_e$ of them lies nearest to corner $e$.

# %%
# Caption: Six hundred draws at four temperatures: from blends to choices.
# Alt: Four triangles with points in three colors. At temperature 5 the points crowd in
# the middle, at 0.1 they lie in the corners and on the edges.
corners = np.array([[0, 0], [1, 0], [0.5, np.sqrt(3) / 2]])
names, colors, markers = "ABC", (BLUE, ORANGE, GREEN), "o^s"
many = np.tile(np.log(probabilities), (600, 1))

figure, axes = plt.subplots(1, 4, figsize=(10, 2.9), layout="constrained")
for axis, temperature in zip(axes, [5.0, 1.0, 0.5, 0.1], strict=True):
    relax.temperature = temperature
    samples = relax(many, training=True).numpy()
    nearest = samples.argmax(axis=-1)
    axis.fill(*corners.T, facecolor="none", edgecolor="gray", linewidth=1)
    for index, corner in enumerate(corners):
        points = samples[nearest == index] @ corners
        axis.scatter(*points.T, s=9, c=colors[index], marker=markers[index], alpha=0.6)
        x, y = corner + (0, 0.1 if corner[1] > 0 else -0.1)
        share = np.mean(nearest == index)
        axis.text(x, y, f"{names[index]} {share:.2f}", ha="center", va="center")
    axis.set(title=rf"$\tau$ = {temperature}", xlim=(-0.2, 1.2), ylim=(-0.2, 1.05))
    axis.set_aspect("equal")
    axis.axis("off")
figure.suptitle(
    "Samples by their largest entry, with its share; wanted: A 0.20, B 0.30, C 0.50"
)
figure.savefig("gumbel_softmax_simplex.png", dpi=150)

# %% [markdown]
# ## Straight-through
#
# Nearly one-hot is not one-hot: a relaxed choice still pays for all three. The
# *straight-through* estimator uses the argmax forward, and the softmax backward. By
# hand, and as a layer:

# %%
with tf.GradientTape() as tape:
    soft_sample = tf.nn.softmax(logits + gumbel.sample(3, seed=1))
    hard_sample = tf.stop_gradient(tf.one_hot(tf.argmax(soft_sample), 3))
    choice = hard_sample - tf.stop_gradient(soft_sample) + soft_sample
    value = tf.reduce_sum(choice * values)
print("by hand:", choice.numpy(), "  gradient:", tape.gradient(value, logits).numpy())

choose = kd.GumbelSoftmax(estimator="gumbel_straight_through", seed=1)
with tf.GradientTape() as tape:
    choice = choose(logits, training=True)
    value = tf.reduce_sum(choice * values)
print("layer:  ", choice.numpy(), "  gradient:", tape.gradient(value, logits).numpy())

# %% [markdown]
# The noise differs between the two, so the choices may as well. There are five
# estimators:
#
# | `estimator`               | noise in training | forward | backward              |
# | ------------------------- | ----------------- | ------- | --------------------- |
# | `soft`                    | no                | softmax | the same              |
# | `gumbel_softmax`          | yes               | softmax | the same              |
# | `straight_through`        | no                | argmax  | that of the softmax   |
# | `gumbel_straight_through` | yes               | argmax  | that of the softmax   |
# | `reinmax`                 | yes               | argmax  | second order          |
#
# When not training there is no noise: the first two give a softmax, the others the
# argmax. Without noise, `straight_through` can stay with its first choice for good.
#
# ## What the gradient is worth
#
# What one wants is the gradient of the *expected* value,
#
# $$
# \frac{\partial}{\partial l_e} \sum_k p_k f(k)
# = p_e \Big(f(e) - \sum_k p_k f(k)\Big),
# $$
#
# which for five choices is quickly computed. An estimator's gradient is random: how far
# is its mean from that (the bias), and how much does it vary? Both are given as shares
# of the exact gradient's length, for a quadratic $f$ and a cubic one.

# %%
# Caption: How far the mean of each estimator's gradient is from the exact one, and how
# much it varies.
# Alt: Three panels over the temperature. Bias rises with the temperature and deviation
# falls; reinmax starts at temperature 1, without bias in the quadratic case.
rng = np.random.default_rng(2)
matrix, linear, cubic = rng.normal(size=(5, 5)), rng.normal(size=5), rng.normal(size=5)
matrix = (matrix + matrix.T).astype("float32")
logits_5 = np.array([0.5, -0.3, 0.1, -0.8, 0.0], "float32")


def objective(z, cubes):
    return tf.reduce_sum((z @ matrix) * z / 2 + linear * z + cubes * z**3, axis=-1)


def bias_and_deviation(estimator, temperature, cubes, draws=20_000):
    p = np.exp(logits_5) / np.exp(logits_5).sum()
    f = objective(tf.eye(5), cubes).numpy()
    exact = p * (f - p @ f)

    layer = kd.GumbelSoftmax(temperature, estimator, seed=1)
    repeated = tf.constant(np.tile(logits_5, (draws, 1)))
    with tf.GradientTape() as tape:
        tape.watch(repeated)
        value = objective(layer(repeated, training=True), cubes)
    gradients = tape.gradient(value, repeated).numpy()
    length = np.linalg.norm(exact)
    bias = np.linalg.norm(gradients.mean(axis=0) - exact) / length
    return bias, np.sqrt(gradients.var(axis=0).sum()) / length


temperatures = np.geomspace(0.1, 4, 9)
styles = {
    "gumbel_softmax": (ORANGE, "--", "^", temperatures),
    "gumbel_straight_through": (BLUE, "-.", "o", temperatures),
    "reinmax": (GREEN, "-", "s", temperatures[temperatures >= 1]),
}
figure, axes = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained")
for name, (color, line, marker, taus) in styles.items():
    quadratic = [bias_and_deviation(name, tau, 0 * cubic) for tau in [*taus, 1.0]]
    with_cubes = [bias_and_deviation(name, tau, cubic) for tau in taus]
    style = {"color": color, "linestyle": line, "marker": marker, "label": name}
    axes[0].plot(taus, [bias for bias, _ in quadratic[:-1]], **style)
    axes[1].plot(taus, [bias for bias, _ in with_cubes], **style)
    axes[2].plot(taus, [deviation for _, deviation in quadratic[:-1]], **style)
    bias, deviation = quadratic[-1]
    print(f"{name:24s} tau = 1: bias {bias:.2f}, standard deviation {deviation:.2f}")
for axis, title in zip(
    axes, ["bias, quadratic", "bias, cubic", "deviation, quadratic"], strict=True
):
    axis.set(title=title, xlabel=r"temperature $\tau$", xscale="log")
    axis.set_xticks([0.1, 0.2, 0.5, 1, 2, 4], ["0.1", "0.2", "0.5", "1", "2", "4"])
    axis.minorticks_off()
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
axes[0].set_ylabel("share of the exact gradient's length")
axes[0].legend(fontsize=8)
figure.savefig("gumbel_softmax_bias.png", dpi=150)

# %% [markdown]
# The lower the temperature, the smaller the bias and the larger the variance: one pays
# for the other. `reinmax`, which needs a temperature of at least 1, has no bias at
# $\tau = 1$ if $f$ is quadratic, and varies no more than straight-through where that
# still has a bias of a quarter. If $f$ is cubic it has some: a hard estimator sees the
# slope of $f$ at one-hot points only, not how $f$ bends in between, and for
# `gumbel_straight_through` a lower temperature does not help with that either.
#
# ## Annealing
#
# So one starts warm, where the gradient is smooth and everything is tried, and ends
# cold, where training sees what inference will do. Here a gate has to find out which of
# thirty sensors to trust, in each of four situations. The right one tells the target up
# to noise of variance 0.25, which is the best loss that there can be; the others tell
# nothing.

# %%
rng = np.random.default_rng(0)
right = rng.integers(0, 30, size=4)
situation = rng.integers(0, 4, size=4_000)
sensors = rng.normal(size=(4_000, 30)).astype("float32")
target = sensors[np.arange(4_000), right[situation]] + rng.normal(0, 0.5, size=4_000)
inputs = [np.eye(4, dtype="float32")[situation], sensors]
epochs, steps = 10, 400  # 40 batches an epoch


def train(temperature, schedule=None):
    keras.utils.set_random_seed(0)
    situation_input, sensor_input = keras.Input((4,)), keras.Input((30,))
    gate_logits = keras.layers.Dense(30, use_bias=False)(situation_input)
    choice = kd.GumbelSoftmax(temperature)(gate_logits)
    answer = keras.layers.Dot(axes=-1)([choice, sensor_input])
    model = keras.Model([situation_input, sensor_input], answer)
    model.compile(keras.optimizers.Adam(0.02), "mse")
    callbacks = [kd.callbacks.TemperatureSchedule(schedule)] if schedule else []
    options = {"batch_size": 100, "epochs": epochs, "verbose": 0}
    history = model.fit(inputs, target[:, None], callbacks=callbacks, **options)
    return model, history.history


from_5_to_01 = keras.optimizers.schedules.ExponentialDecay(5.0, steps, 0.1 / 5.0)
runs = {
    "always 5": (5.0,),
    "always 0.1": (0.1,),
    "from 5 to 0.1": (5.0, from_5_to_01),
}
print("temperature     loss in training   at inference   right sensors")
for name, arguments in runs.items():
    model, history = train(*arguments)
    found = np.sum(model.get_weights()[0].argmax(axis=-1) == right)
    loss = model.evaluate(inputs, target[:, None], verbose=0)
    print(f"{name:15s} {history['loss'][-1]:16.3f} {loss:14.3f} {found:10d} of 4")
print("\ntemperature at the end of each epoch:", np.round(history["temperature"], 2))

# %% [markdown]
# All three find the sensors. But always warm, the gate never commits itself: even at
# inference it mixes the right sensor with the others. Always cold, its noisy gradient
# learns more slowly, and training has not settled yet. Annealed, it is good at both,
# and training sees nearly what inference does.
#
# ## What to try next
#
# - `estimator="gumbel_straight_through"` in the gate: at inference its choice is
#   one-hot, whatever the temperature.
# - `estimator="reinmax"`, with a schedule that ends at 1.
# - `update_freq="epoch"` and a function: `TemperatureSchedule(lambda epoch: 5 / (1 +
#   epoch), "epoch")`.
# - A choice that must not be taken gets the logit `-np.inf`.
