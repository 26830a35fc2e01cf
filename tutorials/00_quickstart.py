# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Quickstart: a network that stops early
#
# Most handwritten digits are easy, a few are hard, and an ordinary network spends the
# same on both. Here a small convolutional network gets two *early exits*, small
# classifiers on intermediate feature maps,
#
# $$\hat y_e = c_e(f_e(x)),$$
#
# is trained on all of them at once, and then stops for each digit at the first exit
# that is sure enough. Everything below is measured on digits that the network has
# never seen.

# %%
import functools
import statistics
import time

import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_dynamic as kd

keras.utils.set_random_seed(0)

# %% [markdown]
# ## Data
#
# Scikit-learn's digits: 1,797 real images of 8 x 8 pixels. One part is for training,
# one for calibration, one for the final figures; none is used twice.

# %%
digits = load_digits()
images = (digits.images / 16.0).astype("float32")[..., None]
x_train, x_rest, y_train, y_rest = train_test_split(
    images, digits.target, test_size=0.5, random_state=0, stratify=digits.target
)
x_calib, x_test, y_calib, y_test = train_test_split(
    x_rest, y_rest, test_size=0.5, random_state=0, stratify=y_rest
)
print(f"{len(x_train)} to train, {len(x_calib)} to calibrate, {len(x_test)} to test")

# %% [markdown]
# ## A network with exits
#
# `EarlyExit` pools its input and classifies. `DynamicModel` is a functional
# `keras.Model` whose outputs are the exits in order. With one loss and one `y` it
# minimizes $\sum_e \lambda_e L(y, \hat y_e) + L(y, \hat y)$.

# %%
convolution = functools.partial(
    keras.layers.Conv2D, kernel_size=3, padding="same", activation="relu"
)

inputs = keras.Input((8, 8, 1))
h = convolution(16)(inputs)
exit_1 = kd.EarlyExit(10, loss_weight=0.5, name="exit_1")(h)
h = convolution(32)(convolution(32)(h))
exit_2 = kd.EarlyExit(10, loss_weight=0.5, name="exit_2")(h)
h = convolution(96)(convolution(96)(convolution(64)(h)))
h = keras.layers.MaxPooling2D(4)(h)
h = keras.layers.Flatten()(h)
final = keras.layers.Dense(10, activation="softmax", name="final")(h)

model = kd.DynamicModel(inputs, [exit_1, exit_2, final])
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
model.fit(x_train, y_train, epochs=20, batch_size=64, verbose=0)

# %% [markdown]
# ## Calibration
#
# How sure is sure enough? `calibrate` first makes the probabilities of each exit
# honest (one temperature each), then chooses the thresholds that cost least while the
# accuracy on this data stays within half a point of the final exit's.

# %%
report = model.calibrate(x_calib, y_calib, max_accuracy_drop=0.005)
print(report)

# %% [markdown]
# ## Prediction
#
# `predict_dynamic` compacts the batch at every exit: only the digits that stay are
# computed further. The plain network beside it is the same one with its exits
# stripped off. On data this small a part of `predict`'s time is its input pipeline, so
# the dynamic road is timed with nobody leaving as well.

# %%
plain = kd.strip_exits(model)


def seconds(function, repeats=15):
    """Median time of a call, after one call to warm up."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


options = {"batch_size": 128, "verbose": 0}
nobody_leaves = kd.rules.MaxProbability(1.0)
p = model.predict_dynamic(x_test, **options)
everything = model.predict_dynamic(x_test, rule=nobody_leaves, **options)
static_answers = plain.predict(x_test, **options).argmax(axis=1)
dynamic_answers = p.outputs.argmax(axis=1)
rows = {
    "static: predict": (
        static_answers,
        1.0,
        seconds(lambda: plain.predict(x_test, **options)),
    ),
    "nobody leaves": (
        everything.outputs.argmax(axis=1),
        everything.mean_cost,
        seconds(lambda: model.predict_dynamic(x_test, rule=nobody_leaves, **options)),
    ),
    "dynamic": (
        dynamic_answers,
        p.mean_cost,
        seconds(lambda: model.predict_dynamic(x_test, **options)),
    ),
}
print(f"\n{f'{len(x_test)} test digits':16s} accuracy  mean cost     time")
for name, (answers, cost, duration) in rows.items():
    accuracy = np.mean(answers == y_test)
    print(f"{name:16s} {accuracy:8.1%} {cost:10.3f} {1000 * duration:5.0f} ms")

print(f"\n{'leaving at':10s} {'digits':>7s} {'accuracy':>9s} {'cost':>6s}")
shares = model.compute_costs().shares()
for index, name in enumerate(model.exit_names):
    here = p.exit_index == index
    right = (dynamic_answers == y_test)[here]
    accuracy = f"{right.mean():.1%}" if here.any() else "-"
    print(f"{name:10s} {here.sum():7d} {accuracy:>9s} {shares[index]:6.3f}")

# %% [markdown]
# A cost of 1 is the plain network; leaving at the last exit costs a little more,
# since the early heads were paid as well. Where a digit leaves says how hard it is:

# %%
# Caption: Test digits by the exit that they leave at, each with the network's answer
# and its confidence.
# Alt: Three rows of ten small digits. Most in the first two rows are written clearly;
# in the last row, of those that go to the end, two are answered wrongly.
columns = 10
figure, axes = plt.subplots(
    len(model.exit_names), columns, figsize=(9, 3.6), layout="constrained"
)
for row, name in enumerate(model.exit_names):
    leaving = np.flatnonzero(p.exit_index == row)[:columns]
    for column, axis in enumerate(axes[row]):
        axis.set_xticks([])
        axis.set_yticks([])
        if column >= len(leaving):
            axis.axis("off")
            continue
        index = leaving[column]
        axis.imshow(x_test[index, ..., 0], cmap="gray_r")
        wrong = dynamic_answers[index] != y_test[index]
        label = f"{dynamic_answers[index]} ({p.confidence[index]:.2f})"
        axis.set_xlabel(
            f"{label} wrong" if wrong else label,
            color="#b2182b" if wrong else "black",
            fontsize=8,
        )
    share = p.exit_rates[row]
    axes[row][0].set_ylabel(f"{name}\n{share:.0%} of digits", fontsize=9)
figure.suptitle("Test digits by the exit they leave at: answer (confidence)")
figure.savefig("quickstart.png", dpi=150)
print("\nFigure saved as quickstart.png")

# %% [markdown]
# ## What to try next
#
# - `model.calibrate(x_calib, y_calib, budget=0.4)`: the best accuracy at 40 % of the
#   cost.
# - Another rule: `rule="entropy"`, `"margin"` or `"patience"`.
# - Other loss weights $\lambda_e$: `exit_1`'s trunk serves everything after it.
# - `model.save("digits.keras")` keeps the rule, thresholds and temperatures.
