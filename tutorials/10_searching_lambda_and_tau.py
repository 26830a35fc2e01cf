# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Searching lambda and tau
#
# A network with early exits has settings that no gradient reaches: how much each exit's
# loss weighs, at which temperature choices are made, what computing costs. This
# tutorial searches them with keras-tuner, by a score that none of them can cheat.

# %%
import keras
import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_dynamic as kd

digits = load_digits()
images = (digits.images / 16.0).astype("float32")[..., None]


def split(x, y, size):
    return train_test_split(x, y, test_size=size, random_state=0, stratify=y)


x_train, x, y_train, y = split(images, digits.target, 1100)
x_calib, x, y_calib, y = split(x, y, 700)
x_valid, x_test, y_valid, y_test = split(x, y, 350)
sizes = [len(labels) for labels in (y_train, y_calib, y_valid, y_test)]
print("train, calibrate, validate, test:", sizes)

# %% [markdown]
# Four sets, for each use leaves a mark: weights fit the first, thresholds the second,
# the search's winner the third. Only the fourth tells what to expect.
#
# ## The loss is no score
#
# Exits are trained together,
#
# $$\mathcal{L} = L(y, \hat y) + \sum_e \lambda_e\, L(y, \hat y_e) ,$$
#
# and the temptation is to search $\lambda$ by the validation loss. Here are three
# networks that differ in $\lambda$ alone. Each is then calibrated to cost 0.3 of the
# plain network, and scored as it will run.

# %%
BUDGET, EPOCHS = 0.3, 10


def network(lambda_1=1.0, lambda_2=1.0):
    inputs = keras.Input((8, 8, 1))
    h = keras.layers.Conv2D(8, 3, padding="same", activation="relu")(inputs)
    y1 = kd.EarlyExit(10, loss_weight=lambda_1, grid=2, name="exit_1")(h)
    h = keras.layers.Conv2D(16, 3, padding="same", activation="relu")(h)
    y2 = kd.EarlyExit(10, loss_weight=lambda_2, grid=2, name="exit_2")(h)
    h = keras.layers.Conv2D(48, 3, padding="same", activation="relu")(h)
    h = keras.layers.Flatten()(keras.layers.MaxPooling2D()(h))
    y3 = keras.layers.Dense(10, activation="softmax", name="final")(h)
    model = kd.DynamicModel(inputs, [y1, y2, y3])
    model.compile(
        keras.optimizers.Adam(3e-3),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


print("lambda   validation loss   accuracy at a cost of 0.3")
for weight in (0.1, 1.0, 3.0):
    keras.utils.set_random_seed(0)
    model = network(weight, weight)
    model.fit(x_train, y_train, epochs=EPOCHS, verbose=0)
    loss = model.evaluate(x_valid, y_valid, verbose=0, return_dict=True)["loss"]
    model.calibrate(x_calib, y_calib, budget=BUDGET)
    found = model.evaluate_dynamic(x_valid, y_valid, verbose=0)
    print(f"{weight:6.1f} {loss:17.3f} {found['accuracy']:27.1%}")

# %% [markdown]
# The smallest $\lambda$ has by far the smallest loss, for it multiplies a part of it.
# Of what the networks are worth when they run it says nothing: there the three lie
# close together. A score must not contain what is searched.
#
# ## A build function
#
# What keras-tuner wants is a function of `hp` that returns a compiled model.
# `kd.tuning` has a hyperparameter for each setting, named after the layer, on the right
# scale: a $\lambda$ of 0.1 differs from one of 0.2 as one of 1 differs from 2.


# %%
def build(hp):
    return network(
        kd.tuning.loss_weight(hp, "exit_1"),
        kd.tuning.loss_weight(hp, "exit_2"),
    )


# %% [markdown]
# ## The score
#
# `DynamicHyperModel` trains what `build` returns. At the end of each epoch it chooses
# thresholds on the calibration data, runs the *dynamic* road over the validation data,
# and computes
#
# $$\text{accuracy} - \max(0,\ \text{mean cost} - \text{budget}) .$$
#
# (`CostUnderAccuracy` is the other way round.) Any tuner of keras-tuner will do:
# `"random"`, `"bayesian"`, `"hyperband"`, `"grid"`.

# %%
keras.utils.set_random_seed(0)
hypermodel = kd.tuning.DynamicHyperModel(
    build,
    calibration_data=(x_calib, y_calib),
    validation_data=(x_valid, y_valid),
    objective=kd.tuning.AccuracyUnderBudget(BUDGET),
    batch_size=500,
)
tuner = hypermodel.tuner(
    "random",
    max_trials=5,
    seed=0,
    directory="searches",
    project_name="lambda",
    overwrite=True,  # without it, a search that is there already goes on
)
tuner.search(x_train, y_train, epochs=EPOCHS, verbose=0)
trials = kd.tuning.pareto(tuner)
print(trials)

# %% [markdown]
# A star marks the front: no other trial is as cheap and as accurate, and better in one
# of both. As a picture:

# %%
# Caption: The trials of the search on the validation data.
# Alt: Accuracy over mean cost: a point for each trial, and a step line through those on
# the front.
figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
trials.plot(axis)
plt.show()

# %% [markdown]
# ## What was won
#
# The best trial's network comes back with the weights, thresholds and calibration
# temperatures of its best epoch, ready to run. On the test set, beside a network with
# $\lambda_1 = \lambda_2 = 1$:

# %%
(best,) = tuner.get_best_models(1)
keras.utils.set_random_seed(0)
default = network()
default.fit(x_train, y_train, epochs=EPOCHS, verbose=0)
default.calibrate(x_calib, y_calib, budget=BUDGET)
right = {}
for name, model in (("searched", best), ("default", default)):
    prediction = model.predict_dynamic(x_test, verbose=0)
    right[name] = prediction.outputs.argmax(axis=1) == y_test
    print(f"{name:9s} {right[name].mean():.1%} at a cost of {prediction.mean_cost:.3f}")

difference = right["searched"].astype(float) - right["default"]
error = 1.96 * difference.std() / len(difference) ** 0.5
print(f"difference: {100 * difference.mean():+.1f} +- {100 * error:.1f} points")

# %% [markdown]
# Both costs are near the budget and neither is on it: thresholds were chosen on other
# digits. The interval is that of 350 test digits; another seed moves the networks too,
# and the search kept its winner's best epoch, where the default has its last one.
# A search is worth its trials where settings matter more than chance does: repeat the
# winner with other seeds before you believe in it (`executions_per_trial` does it in
# every trial).
#
# ## Looking at the winner
#
# `kd.plots` shows what thresholds could buy with this network (the star is what they
# are now), and who leaves where:

# %%
# Caption: What thresholds could buy with the winner; the star is what they are.
# Alt: Accuracy over mean cost. A front rises from the first exit alone to nearly the
# plain network's accuracy, and the star lies on it or just below.
figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
kd.plots.accuracy_cost(best, x_valid, y_valid, batch_size=500).plot(axis)
plt.show()

# %%
# Caption: Who leaves the winner where, from sure to unsure: the answer, and below it
# the confidence. Framed: wrong.
# Alt: Three rows of eight digits, one row for each exit.
kd.plots.samples_by_exit(best, x_test, y_test).plot()
plt.show()

# %% [markdown]
# ## tau, its schedule, and the cost weight
#
# A selector that learns where to exit has other settings: the temperature of its
# Gumbel-Softmax, how it falls, and how much a FLOP weighs. The form of the schedule is
# a hyperparameter as well, and a start and an end exist only for one that falls. That
# is what keras-tuner calls a conditional scope; a trial is then not spent on a number
# that does nothing. The schedule is a callback, so it goes where callbacks go.


# %%
def build_selecting(hp):
    plain = network()
    selector = kd.ExitSelector(
        3,
        estimator="gumbel_softmax",
        pooling="flatten",
        hidden_units=32,
        prior_weight=1.0,
        exit_costs="auto",
        cost_weight=kd.tuning.cost_weight(hp, "selector"),
        name="selector",
    )
    model = kd.DynamicModel(plain.input, plain.outputs, selector=selector(plain.input))
    model.compile(
        keras.optimizers.Adam(3e-3),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


def callbacks(hp):
    return [kd.tuning.temperature_schedule(hp, EPOCHS, update_freq="epoch")]


keras.utils.set_random_seed(0)
hypermodel = kd.tuning.DynamicHyperModel(
    build_selecting,
    calibration_data=(x_calib, y_calib),
    validation_data=(x_valid, y_valid),
    objective=kd.tuning.AccuracyUnderBudget(BUDGET),
    callbacks=callbacks,
    batch_size=500,
)
tuner = hypermodel.tuner(
    "random",
    max_trials=5,
    seed=3,
    directory="searches",
    project_name="tau",
    overwrite=True,
)
tuner.search(x_train, y_train, epochs=EPOCHS, verbose=0)
print(kd.tuning.pareto(tuner))

# %% [markdown]
# A selector has no thresholds, so that what it costs is trained and not chosen. None of
# these five settings keeps the budget: such a search takes more trials than fit on a
# page.
#
# ## In practice
#
# - Without `overwrite=True` a search that was interrupted goes on when the script is
#   run again. Finished trials are kept, and the one that was running is run again with
#   the same values.
# - Several processes share a search when keras-tuner's variables are set
#   (`KERASTUNER_TUNER_ID` and so on; the API page shows the three lines).
# - `tuner.search(..., callbacks=[kd.callbacks.TensorBoard("logs", data=x_valid)])`
#   writes one log a trial.
#
# ## What to try next
#
# - `"hyperband"`, which stops hopeless trials early.
# - `CostUnderAccuracy(0.95)`: the least cost for an accuracy.
# - `kd.tuning.target_rate` for gates, and `kd.tuning.balance_weight` for experts.
