# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Confidence, entropy, calibration
#
# A network with early exits stops where it is sure enough. This tutorial is about that
# word: how to measure how sure a classifier is, how to find out whether it is right to
# be, and how to correct it where it is not.

# %%
import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_dynamic as kd

COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
LINES = ("-", "--", "-.", ":")

# %% [markdown]
# ## Three ways to be sure
#
# An exit gives probabilities $y_c$ for classes $c$. One number has to be made of them:
#
# | score | formula | leaves when |
# | --- | --- | --- |
# | confidence | $p = \max_c y_c$ | $p > \gamma$ |
# | margin | the largest less the second largest | margin $> \gamma$ |
# | entropy | $H = -\sum_c y_c \log y_c$ | $H < \gamma$ |
#
# The entropy is 0 for a one-hot vector and $\log C$ for $C$ equal classes. Two answers
# of the same confidence, by hand and by the package:

# %%
SCORES = {
    "confidence": kd.rules.MaxProbability(0.5).score,
    "margin": kd.rules.Margin(0.5).score,
    "entropy": kd.rules.Entropy(0.5).score,
}
two_left = np.array([0.5, 0.5, 0.0, 0.0], "float32")
all_left = np.array([0.5, 0.2, 0.2, 0.1], "float32")
for name, y in (("two left", two_left), ("all left", all_left)):
    first, second = np.sort(y)[::-1][:2]
    entropy = -sum(value * np.log(value) for value in y if value > 0)
    by_package = [float(score(y[None])[0]) for score in SCORES.values()]
    print(f"{name}: {first:.3f} {first - second:.3f} {entropy:.3f}", end="   ")
    print("package:", *(f"{value:.3f}" for value in by_package))

# %% [markdown]
# The confidence can't tell them apart. The margin finds the first less sure (it is a
# toss-up), the entropy the second (more is possible). With three classes all answers
# lie in a triangle, and the lines of equal score show what each measure calls sure:

# %%
# Caption: Each point of a triangle is an answer for three classes; the color is its
# score.
# Alt: Three triangles. Confidence and margin are high at the corners only, the margin
# low along three lines where two classes tie; entropy is high in the middle.
points = np.random.default_rng(0).dirichlet((1, 1, 1), 20000).astype("float32")
corners = np.array([[0, 0], [1, 0], [0.5, 0.75**0.5]])
flat = points @ corners
figure, all_axes = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained")
for axes, (name, score) in zip(all_axes, SCORES.items(), strict=True):
    filled = axes.tricontourf(*flat.T, np.asarray(score(points)), 10, cmap="cividis")
    figure.colorbar(filled, ax=axes, shrink=0.8)
    axes.set_title(name)
    axes.axis("off")
    axes.set_aspect("equal")
plt.show()

# %% [markdown]
# ## A network that is too sure
#
# A small network for scikit-learn's digits, with two exits, trained on 600 of them for
# long: by then it knows them by heart, and has learned that it is always right.

# %%
keras.utils.set_random_seed(0)
x, y = load_digits(return_X_y=True)
x = x.reshape(-1, 8, 8, 1).astype("float32") / 16
x_train, x_rest, y_train, y_rest = train_test_split(
    x, y, train_size=600, random_state=0, stratify=y
)
x_valid, x_test, y_valid, y_test = train_test_split(
    x_rest, y_rest, test_size=0.5, random_state=0, stratify=y_rest
)


def convolution(h, filters):
    return keras.layers.Conv2D(filters, 3, padding="same", activation="relu")(h)


inputs = keras.Input((8, 8, 1))
h = convolution(inputs, 4)
exit_1 = kd.EarlyExit(10, pooling="average", grid=2, name="exit_1")(h)
h = convolution(convolution(h, 16), 16)
exit_2 = kd.EarlyExit(10, pooling="average", grid=2, name="exit_2")(h)
h = keras.layers.Flatten()(convolution(convolution(h, 64), 64))
final = keras.layers.Dense(10, "softmax", name="final")(h)
model = kd.DynamicModel(inputs, [exit_1, exit_2, final])
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
model.fit(x_train, y_train, batch_size=32, epochs=60, verbose=0)

print("exit     training digits       test digits")
print("        accuracy  confidence  accuracy  confidence")
on_train, on_test = (model.predict(part, verbose=0) for part in (x_train, x_test))
for index, name in enumerate(model.exit_names):
    numbers = []
    for outputs, labels in ((on_train, y_train), (on_test, y_test)):
        numbers.append(np.mean(outputs[index].argmax(-1) == labels))
        numbers.append(outputs[index].max(-1).mean())
    print(f"{name:8}" + "   ".join(f"{value:7.3f}" for value in numbers))

# %% [markdown]
# No exit is as right as it is sure. The first has too little to go by and is too
# modest; the last is surer than it should be on new digits, and on the old ones quite
# certain. Where? Sort the test digits into bins by confidence; in each bin $B$ compare
# the mean confidence with the share of right answers. The *expected calibration error*
# is the mean of the differences,
#
# $$\mathrm{ECE} = \sum_B \frac{|B|}{n}
# \,\bigl|\,\mathrm{acc}(B) - \mathrm{conf}(B)\,\bigr| .$$


# %%
def ece(probabilities, labels, bins=15):
    confidence = probabilities.max(axis=-1)
    right = probabilities.argmax(axis=-1) == labels
    number = np.minimum((confidence * bins).astype(int), bins - 1)
    return sum(
        np.mean(number == b)
        * abs(right[number == b].mean() - confidence[number == b].mean())
        for b in np.unique(number)
    )


print("ECE:", [round(float(ece(outputs, y_test)), 4) for outputs in on_test])

# %% [markdown]
# ## One number mends it
#
# *Temperature scaling* divides the logits by a number $T$ before the softmax,
#
# $$\hat y = \mathrm{softmax}(z / T) ,$$
#
# with the $T$ that makes the probabilities of the right answers largest on digits that
# were not trained with. $T > 1$ makes a network more modest. The order of the classes
# stays, and so does every answer; only the confidence changes. `calibrate` fits one $T$
# for each exit (and chooses thresholds; here the rule and goal do not matter yet).

# %%
# Caption: Each exit before and after its temperature. On the dotted diagonal an exit is
# right as often as it says.
# Alt: Three reliability diagrams. The first exit, well above the diagonal, comes close
# to it; the second hardly changes; the last is pulled from the right edge towards the
# diagonal.
report = model.calibrate(x_valid, y_valid, max_accuracy_drop=0.01)
print("temperatures:", np.round(model.calibration_temperatures.numpy(), 2))
kd.plots.reliability(model, x_test, y_test, num_bins=10).plot()
plt.show()

# %% [markdown]
# (Above the diagonal: more often right than it says. Below: less often.)
#
# Why does it matter for exits? A threshold compares confidences of *different* exits
# with one another, and a promise such as "leave when 95 % sure" means something only if
# 95 % is what it says. Of the digits that an exit is at least $\gamma$ sure of, how
# many are answered rightly?

# %%
# Caption: Of the digits that an exit is at least $\gamma$ sure of, the share that it
# answers rightly.
# Alt: Curves over the threshold for the first and the last exit, dotted as trained and
# solid calibrated, beside the line of what they say.
figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
gammas = np.linspace(0.3, 0.99, 70)
temperatures = model.calibration_temperatures.numpy()
for index in (0, 2):
    name = model.exit_names[index]
    logits = np.log(np.maximum(on_test[index], 1e-30))
    right = on_test[index].argmax(-1) == y_test
    for scale, line in ((1.0, ":"), (temperatures[index], "-")):
        scaled = keras.ops.softmax(logits / scale).numpy().max(axis=-1)
        share = [
            right[scaled > g].mean() if any(scaled > g) else np.nan for g in gammas
        ]
        label = f"{name}, T = {scale:.2f}"
        axes.plot(gammas, share, line, color=COLORS[index], label=label)
axes.plot(gammas, gammas, color="gray", linewidth=0.8, label="as it says, at least")
axes.set(
    xlabel="threshold $\\gamma$",
    ylabel="right, of those that leave",
    title="Dotted as trained, solid calibrated",
)
axes.legend(frameon=False)
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# ## Which score?
#
# Each score with its own best thresholds, at every cost, on the test digits. `Patience`
# is another idea: leave when so many exits in a row agree, however sure they are.

# %%
# Caption: Three scores, each with its own best thresholds at every cost, and two kinds
# of patience.
# Alt: Accuracy over mean cost: three step curves that nearly cover one another, and two
# dots for patience 1 and 2, near both ends.
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for number, rule in enumerate(("max_probability", "margin", "entropy")):
    record = kd.plots.accuracy_cost(model, x_test, y_test, rule=rule)
    front = record.on_front
    axes.step(
        record.costs[front],
        100 * record.accuracies[front],
        LINES[number],
        where="post",
        color=COLORS[number],
        label=rule,
    )
for patience in (1, 2):
    p = model.predict_dynamic(x_test, rule=kd.rules.Patience(patience), verbose=0)
    right = 100 * np.mean(p.outputs.argmax(-1) == y_test)
    axes.plot(p.mean_cost, right, "o", color=COLORS[3])
    axes.annotate(
        f"patience {patience}",
        (p.mean_cost, right),
        (5, -12),
        textcoords="offset points",
    )
axes.set(xlabel="mean cost (1 is the plain network)", ylabel="accuracy (%)")
axes.legend(frameon=False, loc="lower right")
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# They differ little: an exit that is sure by one score mostly is by the others. The
# curves are what could be had with thresholds chosen on the very digits that they are
# measured on, which nobody has. For a choice that holds on new data:
#
# ## Calibrate on new data
#
# The same goal, a drop of at most one point, once with the digits that the network was
# trained on and once with others:

# %%
for name, images, labels in (
    ("training digits", x_train, y_train),
    ("other digits", x_valid, y_valid),
):
    model.calibrate(images, labels, max_accuracy_drop=0.01)
    scores = model.evaluate_dynamic(x_test, y_test, verbose=0)
    print(
        f"calibrated on {name:16} temperatures "
        f"{np.round(model.calibration_temperatures.numpy(), 2)}  "
        f"accuracy {scores['accuracy']:.3f}  mean cost {scores['mean_cost']:.3f}"
    )
full = np.mean(on_test[-1].argmax(-1) == y_test)
print(f"the last exit's accuracy: {full:.3f}")

# %% [markdown]
# On what it knows by heart the network is right even where it has no reason to be sure,
# and thresholds chosen there are no guide. How large a drop on new data can be
# excluded, and with which confidence, is the subject of [Thresholds one can
# promise](13_thresholds_one_can_promise.py).
#
# **And what is no number is never sure.** A digit with a broken pixel:

# %%
broken = x_test[:3].copy()
broken[1, 4, 4] = np.nan
print("leaves at", model.predict_dynamic(broken, verbose=0).exit_index)

# %% [markdown]
# ## What to try next
#
# - `rule="entropy"` in `calibrate`, and `report.save("report.html")`: the reliability
#   diagrams before and after, and all the numbers behind them.
# - Label smoothing (`keras.losses.SparseCategoricalCrossentropy` has none;
#   `CategoricalCrossentropy(label_smoothing=0.1)` does) makes a network too modest:
#   what does $T$ become?
# - Where no threshold is wanted at all: [learning where to
#   exit](05_learning_where_to_exit.py).
#
# ## Sources
#
# Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks", 2017.
# Xin, Tang, Lee, Yu and Lin, "DeeBERT: Dynamic early exiting for accelerating BERT
# inference", 2020, leaves by entropy. Zhou, Xu, Ge, McAuley, Xu and Wei, "BERT loses
# patience: Fast and robust inference with early exit", 2020.
