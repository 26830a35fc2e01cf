# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Learning where to exit
#
# A threshold asks each exit how sure it is, and goes on if it is not. An *exit
# selector* is asked once, before anything else is computed: it looks at the input and
# says which exit will do. What it says is learned, together with the network. This
# tutorial trains one, shows two things that can go wrong, and ends with a fair
# comparison.

# %%
import functools

import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_dynamic as kd

COLORS = ("#0072B2", "#E69F00", "#009E73")  # safe for color-blind readers

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
# ## Soft selection
#
# The selector is a small network with one output for each of the $E + 1$ exits,
#
# $$c = \mathrm{ExitSelector}(x), \qquad
# \tilde y = \sum_e \mathrm{softmax}_e(c)\, \hat y_e .$$
#
# In training the answer is the mixture $\tilde y$, so that the selector gets a gradient
# from every exit. At inference one exit is run, the one with the largest $c_e$.
#
# A model that may always take the last exit will. So each exit has its cost $o_e$, and
# the expected cost $\sum_e \mathrm{softmax}_e(c)\, o_e$ is added to the loss with a
# weight; `exit_costs="auto"` lets the `DynamicModel` fill in the costs. A second term,
# `prior_weight`, keeps the mean of the softmax over a batch near uniform. Without it,
# the selector may soon give every image the exit that is best on average, and a softmax
# that is nearly one-hot hardly learns anything more.

# %%
convolution = functools.partial(
    keras.layers.Conv2D, kernel_size=3, padding="same", activation="relu"
)


def network(**selector):
    """Three exits; with a selector where there are arguments for one."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    h = convolution(8)(inputs)
    exit_1 = kd.EarlyExit(10, pooling="average", grid=4, name="exit_1")(h)
    h = convolution(24)(convolution(16)(h))
    exit_2 = kd.EarlyExit(10, pooling="average", grid=2, name="exit_2")(h)
    h = convolution(48)(convolution(48)(h))
    h = keras.layers.Flatten()(keras.layers.MaxPooling2D()(h))
    final = keras.layers.Dense(10, activation="softmax", name="final")(h)
    exits = [exit_1, exit_2, final]
    if not selector:
        return kd.DynamicModel(inputs, exits)
    weights = kd.ExitSelector(
        3,
        pooling="flatten",
        hidden_units=32,
        exit_costs="auto",
        prior_weight=1.0,
        seed=0,
        name="selector",
        **selector,
    )(inputs)
    return kd.DynamicModel(inputs, exits, selector=weights)


def train(model, callbacks=()):
    model.compile(
        keras.optimizers.Adam(3e-3),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    history = model.fit(
        x_train, y_train, epochs=20, batch_size=32, verbose=0, callbacks=list(callbacks)
    )
    return history.history


soft = network(cost_weight=0.3)
train(soft)
prediction = soft.predict_dynamic(x_test, batch_size=500, verbose=0)
print(prediction)

# %% [markdown]
# `predict_dynamic` has run the selector, then for each image the layers up to its exit,
# and only that exit's head. The figure shows what the selector thought of some test
# digits: its softmax over the exits, beside each image.

# %%
# Caption: What the selector thought of test digits: the weight of each exit, beside the
# image.
# Alt: Three rows of digits, by the exit they were sent to, each with three bars. The
# longest bar is that of the exit taken.
selector = soft.get_layer("selector")
probabilities = np.asarray(selector.probabilities(x_test))

per_exit = 4
figure, axes = plt.subplots(
    3,
    2 * per_exit,
    figsize=(9, 4.2),
    width_ratios=[1, 1.3] * per_exit,
    layout="constrained",
)
for row in range(3):
    chosen = np.flatnonzero(prediction.exit_index == row)[:per_exit]
    for column in range(per_exit):
        image_axis, bar_axis = axes[row, 2 * column : 2 * column + 2]
        if column >= len(chosen):
            image_axis.axis("off")
            bar_axis.axis("off")
            continue
        index = chosen[column]
        image_axis.imshow(x_test[index, ..., 0], cmap="gray_r")
        image_axis.set_xticks([])
        image_axis.set_yticks([])
        wrong = prediction.outputs[index].argmax() != y_test[index]
        answer = prediction.outputs[index].argmax()
        image_axis.set_xlabel(f"{answer} wrong" if wrong else f"{answer}", fontsize=8)
        bar_axis.barh(range(3), probabilities[index], color=COLORS)
        bar_axis.set_xlim(0, 1)
        bar_axis.set_xticks([0, 1])
        bar_axis.tick_params(labelsize=7)
        bar_axis.set_yticks(range(3), ["1", "2", "final"])
        bar_axis.invert_yaxis()
    share = prediction.exit_rates[row]
    axes[row, 0].set_ylabel(f"to {soft.exit_names[row]}\n{share:.0%}", fontsize=9)
figure.suptitle("Test digits, the answer given, and the selector's weight of each exit")
figure.savefig("selector_weights.png", dpi=150)

# %% [markdown]
# ## Soft against hard
#
# What was trained is the mixture, and what is run is one exit. `evaluate` scores both,
# on the same data: `mixture_accuracy` and, under the plain name, the accuracy of the
# answer selected. Where the weights are undecided the two differ. The entropy of the
# weights as a penalty makes them decided, and hence the two alike.

# %%
decided = network(cost_weight=0.3, entropy_weight=0.5)
train(decided)

print("entropy_weight  mixture  selected  mean entropy (nats)")
for weight, model in ((0.0, soft), (0.5, decided)):
    scores = model.evaluate(x_test, y_test, verbose=0, return_dict=True)
    p = np.asarray(model.get_layer("selector").probabilities(x_test))
    entropy = -np.sum(p * np.log(p + 1e-12), axis=1).mean()
    print(
        f"{weight:14.1f}  {scores['mixture_accuracy']:7.1%}  {scores['accuracy']:8.1%}"
        f"  {entropy:8.2f}"
    )

# %% [markdown]
# The term closes the gap, and not for free: the mixture lost its advantage, which was
# that several exits answered together, and the answer selected got no better. What is
# gained is that the accuracy seen in training is the one to be had.

# %% [markdown]
# ## Stuck at the first choice
#
# Why not train what is run? The straight-through estimator takes the argmax in the
# forward pass and pretends in the backward pass that it was the softmax. Its gradient
# reaches only the exit that was taken, and that can go wrong.
#
# Take four classes, the signs of two numbers. The first exit sees one of the numbers,
# and can be right half of the time. The second sees both, and could always be right;
# but it starts out knowing nothing, and being right a quarter of the time. The selector
# sees a constant, so that it chooses one exit for all. It starts with the first, with
# probability 0.73. The exits learn by the mixture alone (`loss_weight=0`).

# %%
generator = np.random.default_rng(0)
bits = generator.integers(0, 2, (400, 2))
signs = 2 * bits - 1 + 0.3 * generator.normal(size=bits.shape)
x_bits = np.concatenate([signs, np.ones((400, 1))], axis=1).astype("float32")
y_bits = 2 * bits[:, 0] + bits[:, 1]


class ExitRates(keras.callbacks.Callback):
    """After each epoch: what the selector gives the last exit, softly and hard."""

    def __init__(self, features):
        super().__init__()
        self.features, self.soft, self.hard = features, [], []

    def on_epoch_end(self, epoch, logs=None):
        selector = self.model.get_layer("selector")
        probabilities = np.asarray(selector.probabilities(self.features))
        self.soft.append(probabilities[:, -1].mean())
        last = probabilities.shape[1] - 1
        self.hard.append(np.mean(probabilities.argmax(axis=1) == last))


def curves(estimator):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    first = kd.EarlyExit(4, loss_weight=0.0, name="first")(inputs[:, :1])
    hidden = keras.layers.Dense(16, "tanh")(inputs[:, :2])
    second = kd.EarlyExit(4, loss_weight=0.0, name="second")(hidden)
    selector = kd.ExitSelector(2, estimator=estimator, seed=0, name="selector")
    weights = selector(inputs[:, 2:])
    selector.head.classifier.set_weights([np.zeros((1, 2)), np.array([1.0, 0.0])])
    model = kd.DynamicModel(inputs, [first, second], selector=weights)
    for name in ("first", "second"):  # heads without an opinion
        head = model.get_layer(name)
        head.set_weights([np.zeros_like(weight) for weight in head.get_weights()])
    model.compile(keras.optimizers.Adam(0.03), "sparse_categorical_crossentropy")
    rates = ExitRates(x_bits[:, 2:])
    model.fit(x_bits, y_bits, epochs=30, batch_size=80, verbose=0, callbacks=[rates])
    answers = model.predict_dynamic(x_bits, batch_size=400, verbose=0).outputs
    print(f"{estimator:24s} accuracy {np.mean(answers.argmax(axis=1) == y_bits):.1%}")
    return rates


estimators = ("straight_through", "gumbel_straight_through")
stuck = {name: curves(name) for name in estimators}

# %%
# Caption: The same task with and without noise on the choice.
# Alt: Lines over thirty epochs. Without noise the second exit's probability falls to 0;
# with Gumbel noise it rises to 1, and the hard choice follows after three epochs.
figure, axis = plt.subplots(figsize=(6.5, 3.6), layout="constrained")
for (name, rates), color in zip(stuck.items(), COLORS, strict=False):
    epochs = range(1, len(rates.soft) + 1)
    axis.plot(epochs, rates.soft, color=color, linestyle="--", label=f"{name}, soft")
    axis.plot(epochs, rates.hard, color=color, label=f"{name}, hard")
axis.set_xlabel("epoch")
axis.set_ylabel("second exit: rate (hard),\nmean probability (soft)")
axis.set_title("One never tries the second exit, the other leaves the first")
axis.legend(fontsize=8)
figure.savefig("stuck_selector.png", dpi=150)

# %% [markdown]
# With straight-through alone, the second exit is never taken, so it is never trained,
# so it is never worth taking. Gumbel noise on the logits draws the exit from
# $\mathrm{Cat}(\mathrm{softmax}(c))$ instead: now and then the second exit is taken, it
# learns, and the gradient turns. (In the soft mixture, all exits are trained all the
# time, so that it does not get stuck in this way.)

# %% [markdown]
# ## From exploring to deciding
#
# In Gumbel-Softmax, $z = \mathrm{softmax}((c + g)/\tau)$, the temperature decides how
# close a draw comes to a single exit. `TemperatureSchedule` lowers it during training:
# mixtures of all exits first, nearly one-hot draws at the end.

# %%
# Caption: The temperature falls, and the choice settles.
# Alt: Over twenty epochs the temperature falls from nearly 3 to 0.3; the rate of the
# last exit swings at first and then keeps level.
steps = 20 * (len(x_train) // 32)
cooling = keras.optimizers.schedules.ExponentialDecay(3.0, steps, 0.1)
schedule = kd.callbacks.TemperatureSchedule(cooling)

annealed = network(cost_weight=0.3, estimator="gumbel_softmax")
rates = ExitRates(x_test)
history = train(annealed, [schedule, rates])

figure, axis = plt.subplots(figsize=(6.5, 3.2), layout="constrained")
epochs = range(1, len(rates.hard) + 1)
(line_tau,) = axis.plot(epochs, history["temperature"], color="black")
axis.set_xlabel("epoch")
axis.set_xticks(range(0, 21, 5))
axis.set_ylabel(r"temperature $\tau$")
axis.set_ylim(0)
second_axis = axis.twinx()
(line_hard,) = second_axis.plot(epochs, rates.hard, color=COLORS[0])
second_axis.set_ylabel("rate of the last exit, test digits", color=COLORS[0])
second_axis.set_ylim(0, 1)
axis.legend([line_tau, line_hard], ["temperature", "last exit, hard choice"])
axis.set_title("Annealing the temperature")
figure.savefig("annealing.png", dpi=150)

# %% [markdown]
# ## Static, threshold, selector
#
# The rival is the same network, trained for as long without a selector. For each
# selector it is calibrated with that selector's mean cost as its budget, on digits kept
# apart for that. (It may end up cheaper: where a lower threshold costs no accuracy on
# those digits, `calibrate` takes it.)

# %%
rival = network()
train(rival)
static = rival.evaluate(x_test, y_test, verbose=0, return_dict=True)

print(f"{'':36s} mean cost  accuracy")
print(f"{'static, the last exit':36s} {1.0:9.3f}  {static['accuracy']:8.1%}")
for name, model in (
    ("soft", soft),
    ("soft, entropy term", decided),
    ("Gumbel-Softmax, annealed", annealed),
):
    chosen = model.evaluate_dynamic(x_test, y_test, batch_size=500, verbose=0)
    rival.calibrate(x_calib, y_calib, budget=chosen["mean_cost"])
    ruled = rival.evaluate_dynamic(x_test, y_test, batch_size=500, verbose=0)
    for label, scores in (
        (f"selector: {name}", chosen),
        ("  threshold within that budget", ruled),
    ):
        print(f"{label:36s} {scores['mean_cost']:9.3f}  {scores['accuracy']:8.1%}")

# %% [markdown]
# On these digits the threshold rule wins: about the same accuracy for half of the cost
# or less. A likely reason, which nothing here tests: the rule has seen an exit's answer
# before it decides, while the selector has to guess from the pixels how well an exit
# will do; the rule pays for every head that it passes, but here the heads cost next to
# nothing. A selector may do better where heads are expensive, or where the exits are to
# divide the work between them; and it knows the cost before a deep layer is run.
# And one accuracy on 450 digits is not sure to a point.

# %% [markdown]
# ## What to try next
#
# - Other weights of the cost: each one is a point between the first exit and the last.
# - `prior=(0.5, 0.3, 0.2)` with a larger `prior_weight`: a wished-for share of each
#   exit. It holds for mean probabilities; with an entropy term the choices follow.
# - `kd.LayerwiseSelector()([h1, h2])`: a gate at each exit that decides on the way.
# - `estimator="reinmax"`: a hard draw with a better gradient.
