# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Thresholds one can promise
#
# `calibrate(max_accuracy_drop=0.01)` finds thresholds that lose at most one point of
# accuracy *on the data it was given*. What do they lose on other data? Sometimes more.
# This tutorial counts how often, and then makes a promise of it: *Learn then Test*, by
# hand and by the package.

# %%
import tempfile
import warnings
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import PercentFormatter
from scipy import stats
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_dynamic as kd

keras.utils.set_random_seed(0)
BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"  # safe for color-blind readers

# %% [markdown]
# ## A source of new data
#
# To see how often a promise is broken, we need more data than anyone has. So we make a
# source: a digit of scikit-learn's, drawn at random from 899 that training never sees,
# moved by up to a pixel, with noise. Draws from it are independent, there are as many
# as we like, and "new data" means draws from the same source. A promise speaks of
# nothing else.

# %%
digits = load_digits()
seen, unseen, label_seen, label_unseen = train_test_split(
    (digits.images / 16.0).astype("float32"),
    digits.target,
    test_size=0.5,
    random_state=0,
    stratify=digits.target,
)


def draws(images, labels, number, seed):
    """Images from the source, and their labels."""
    generator = np.random.default_rng(seed)
    rows = generator.integers(len(images), size=number)
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))[rows]
    down, right = generator.integers(3, size=(2, number, 1))
    rows_at = down + np.arange(8)
    columns_at = right + np.arange(8)
    moved = padded[
        np.arange(number)[:, None, None], rows_at[:, :, None], columns_at[:, None, :]
    ]
    noisy = moved + 0.1 * generator.normal(size=moved.shape)
    return noisy.astype("float32")[..., None], labels[rows]


x_train, y_train = draws(seen, label_seen, 6000, seed=0)
x_many, y_many = draws(unseen, label_unseen, 40_000, seed=1)

# %% [markdown]
# A small network with two early exits.


# %%
def network(width=32, exits=True):
    def convolution(filters, **options):
        return keras.layers.Conv2D(
            filters, 3, padding="same", activation="relu", **options
        )

    inputs = keras.Input((8, 8, 1))
    h = convolution(width // 2)(convolution(width // 4)(inputs))
    early = [kd.EarlyExit(10, pooling="flatten", name="exit_1")(h)] if exits else []
    h = convolution(width, strides=2)(h)
    early += [kd.EarlyExit(10, pooling="flatten", name="exit_2")(h)] if exits else []
    for _ in range(3):
        h = convolution(2 * width)(h)
    h = keras.layers.Flatten()(keras.layers.MaxPooling2D()(h))
    final = keras.layers.Dense(10, activation="softmax", name="final")(h)
    model = kd.DynamicModel if exits else keras.Model
    model = model(inputs, [*early, final] if exits else final)
    model.compile(
        keras.optimizers.Adam(3e-3),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    model.fit(x_train, y_train, batch_size=64, epochs=4, verbose=0)
    return model


model = network()
costs = np.array(model.compute_costs().shares())
many = model.predict(x_many, batch_size=1000, verbose=0)
right = np.stack([output.argmax(axis=1) == y_many for output in many], axis=1)
scores = [output.max(axis=1) for output in many[:-1]]
for name, accuracy, cost in zip(
    model.exit_names, right.mean(axis=0), costs, strict=True
):
    print(f"{name}: accuracy {accuracy:.1%} at {cost:.3f} of the cost")

# %% [markdown]
# These answers to 40,000 draws stand for the truth from now on: what thresholds lose on
# them is what they lose.
#
# ## What a calibration without a promise promises
#
# Two hundred colleagues calibrate the same network, each on 1,000 draws of their own,
# for a drop of at most one point. What do they really lose? The package's functions on
# arrays do what `calibrate` does (with temperatures, which are left out here).

# %%
DROP, ROWS, COLLEAGUES = 0.01, 1000, 200


def candidates_of(scores):
    """For each exit: closed, open, thresholds between; and who leaves under each."""
    tried = [
        np.concatenate([[np.inf, 0.0], kd.calibration.candidate_thresholds(score)])
        for score in scores
    ]
    leaves = [s[:, None] > t for s, t in zip(scores, tried, strict=True)]
    return tried, leaves


def outcome(thresholds, scores=scores, right=right):
    """(who is right, cost of each row)"""
    taken = kd.calibration.exit_indices(
        [s > t for s, t in zip(scores, thresholds, strict=True)]
    )
    return right[np.arange(len(right)), taken], costs[taken]


def plainly(scores, right, drop=DROP):
    tried, leaves = candidates_of(scores)
    choice = kd.calibration.choose_thresholds(
        leaves, right, costs, max_accuracy_drop=drop, standard_errors=1.0
    )
    return [t[column] for t, column in zip(tried, choice.columns, strict=True)]


def drawn(number):
    """Everyone's own rows."""
    generator = np.random.default_rng(2)
    for _ in range(COLLEAGUES):
        rows = generator.integers(len(right), size=number)
        yield [score[rows] for score in scores], right[rows]


def true_drop(thresholds):
    return right[:, -1].mean() - outcome(thresholds)[0].mean()


plain_drops = np.array([true_drop(plainly(*rows)) for rows in drawn(ROWS)])
exceeded = np.mean(plain_drops > DROP)
print(f"more than {DROP:.0%} of accuracy lost: {exceeded:.0%} of {COLLEAGUES}")

# %% [markdown]
# And this is with a margin: `calibrate` keeps the drop plus one standard error within
# the goal. Without it, the cheapest of thousands of choices is one that was lucky. It
# is a good rule, and it is no promise.
#
# ## A loss that can be tested
#
# Call a sample *lost* if the full network is right about it and the dynamic one wrong.
# Let $r$ be the probability of that on new data, the *risk*. The accuracy drop is at
# most $r$. For thresholds that were fixed beforehand, the number of losses $k$ among
# $n$ independent samples is binomial. If the risk were above $\alpha$, so few would be
# seen with a probability of at most
#
# $$p = P(X \le k), \qquad X \sim \mathrm{Binomial}(n, \alpha)
#     = \sum_{i=0}^{k} \binom{n}{i} \alpha^i (1 - \alpha)^{n-i} .$$
#
# Is $p \le \delta$, then "$r > \alpha$" is rejected, and that is wrong in a share of
# $\delta$ of all cases at most. By hand, and by the package:

# %%
lost, n = np.arange(6), 500
by_hand = stats.binom.cdf(lost, n, DROP)
package = kd.calibration.risk_p_value(lost, n, DROP)
for k, p_value in zip(lost, by_hand, strict=True):
    print(f"{k} of {n} lost: p = {p_value:.4f}")
print("equal:", np.array_equal(by_hand, package))

# %% [markdown]
# So with 500 samples, a bound of 1 % and $\delta = 0.05$, one loss may be seen, two
# may not.
#
# ## Two splits, and one order
#
# Which thresholds, though? Those that look best on the very samples that test them were
# not fixed beforehand. So the data is split. On the first half a *path* is laid, from
# thresholds at which few leave to such as lose about $\alpha$ there. The second half
# walks along it and tests each step, until one fails. The last that passed is taken
# (`calibrate` takes the cheapest of those that passed, which all keep the promise).
# Each step is tested at the full $\delta$, however long the path: for a promise to be
# broken, the *first* step whose risk is above $\alpha$ must have passed, and that is
# one test.

# %%
CONFIDENCE = 0.95


def path_of(scores, right, drop=DROP):
    tried, leaves = candidates_of(scores)
    return [
        [t[column] for t, column in zip(tried, columns, strict=True)]
        for columns in kd.calibration.risk_path(leaves, right, costs, drop)
    ]


def losses(thresholds, scores, right):
    return right[:, -1] & ~outcome(thresholds, scores, right)[0]


generator = np.random.default_rng(3)
rows = generator.integers(len(right), size=2000)
first, second = rows[:1000], rows[1000:]
path = path_of([score[first] for score in scores], right[first])
number_lost = [
    losses(step, [score[second] for score in scores], right[second]).sum()
    for step in path
]
p_values = stats.binom.cdf(number_lost, len(second), DROP)
passed = 0
while passed < len(path) and p_values[passed] <= 1 - CONFIDENCE:
    passed += 1
print(f"{passed} of {len(path)} steps passed")

lost = np.stack(
    [losses(s, [score[second] for score in scores], right[second]) for s in path],
    axis=1,
)
certified, found = kd.calibration.certify(lost, DROP, CONFIDENCE)
print("the package says the same:", certified == passed)
print("p-values equal:", np.allclose(found[: passed + 1], p_values[: passed + 1]))

# %%
# Caption: A path of thresholds, its tests, and what its steps really lose.
# Alt: Left, p-values of the path's steps, rising; those below 0.05 are filled. Right,
# risk over mean cost: the risk falls as the cost rises, and the filled steps lie well
# below the promised one percent.
step_costs = [outcome(step)[1].mean() for step in path]
true_risks = [losses(step, scores, right).mean() for step in path]
figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
steps = np.arange(1, len(path) + 1)
axes[0].semilogy(steps, np.maximum(p_values, 1e-6), "o", color=BLUE, mfc="none")
axes[0].semilogy(steps[:passed], np.maximum(p_values[:passed], 1e-6), "o", color=BLUE)
axes[0].axhline(1 - CONFIDENCE, color="black", linestyle="--")
axes[0].text(len(path), 0.04, "0.05: steps below it pass", ha="right", va="top")
axes[0].set(xlabel="step of the path", ylabel="p", title="Tests (filled: passed)")
axes[1].plot(step_costs, true_risks, "o-", color=ORANGE, mfc="none")
axes[1].plot(step_costs[:passed], true_risks[:passed], "o", color=ORANGE)
axes[1].axhline(DROP, color="black", linestyle="--")
axes[1].text(max(step_costs), DROP, "promised", ha="right", va="bottom")
axes[1].set(
    xlabel="mean cost (1 = plain network)",
    ylabel="risk, on all 40,000 draws",
    title="What the steps really lose",
)
figure.savefig("promise_path.png", dpi=120)

# %% [markdown]
# ## By the model itself
#
# One argument does all of this, with temperatures, and prices every step without the
# exits that it closes.

# %%
x_calib, y_calib = x_many[rows], y_many[rows]
report = model.calibrate(
    x_calib, y_calib, max_accuracy_drop=DROP, risk_confidence=CONFIDENCE
)
print(report)

certificate = report.certificate
again = stats.binom.cdf(certificate.step.num_lost, certificate.num_samples, DROP)
print("p by hand:", np.isclose(again, certificate.p_value))

# %% [markdown]
# ## Nothing to promise
#
# A digit is lost rarely, so that a promise takes many samples. Not one loss among $n$
# gives $p = (1 - \alpha)^n$; for 1 % at 0.95 that takes

# %%
print(f"log(0.05) / log(0.99) = {np.log(0.05) / np.log(0.99):.2f}")
print("samples in the second half:", kd.calibration.samples_to_certify(0.01, 0.95))
print("where 0.4 % are lost:", kd.calibration.samples_to_certify(0.01, 0.95, 0.004))

# %% [markdown]
# With 300 rows, 150 of them to test on, no thresholds can pass. Then there is a warning
# that names the number, all exits are closed, and the full network runs: the promise is
# kept.

# %%
other = kd.DynamicModel.from_config(model.get_config())
other.set_weights(model.get_weights())
other.compile(loss="sparse_categorical_crossentropy")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    nothing = other.calibrate(
        x_calib[:300], y_calib[:300], max_accuracy_drop=0.01, risk_confidence=0.95
    )
print(next(str(w.message) for w in caught if "certified" in str(w.message)))
print(f"thresholds {other.exit_rule.threshold}, mean cost {nothing.mean_cost:.3f}")

# %% [markdown]
# ## Is the promise kept?
#
# The two hundred colleagues again, with 2,000 draws each. And three who cut corners:
#
# - *same rows*: path and tests on the same 2,000 rows;
# - *by count*: the cheapest step of the path whose share of losses is at most 1 % on
#   the second half, without a test;
# - *two steps on*: after the last step that passed, two more.


# %%
def by_learn_then_test(scores, right):
    half = len(right) // 2
    path = path_of([score[:half] for score in scores], right[:half])
    scores, right = [score[half:] for score in scores], right[half:]
    lost = [losses(step, scores, right) for step in path]
    passed, _ = kd.calibration.certify(np.stack(lost, axis=1), DROP, CONFIDENCE)
    counted = [k for k, each in enumerate(lost, 1) if each.mean() <= DROP]
    further = min(passed + 2, len(path))
    return {
        "certified": passed,
        "by count": max(counted),
        "two steps on": further,
    }, path


def on_the_same_rows(scores, right):
    path = path_of(scores, right)
    lost = [losses(step, scores, right) for step in path]
    passed, _ = kd.calibration.certify(np.stack(lost, axis=1), DROP, CONFIDENCE)
    return {"same rows": passed}, path


CLOSED = [np.inf, np.inf]
risks = {}
for scores_here, right_here in drawn(2000):
    for method in (by_learn_then_test, on_the_same_rows):
        chosen, path_here = method(scores_here, right_here)
        for name, step in chosen.items():
            thresholds = path_here[step - 1] if step else CLOSED
            lost_here = losses(thresholds, scores, right).mean()
            risks.setdefault(name, []).append(
                (lost_here, outcome(thresholds)[1].mean())
            )
risks = {name: np.array(values) for name, values in risks.items()}

print(f"{'':13s} broken   95 % interval   mean cost")
broken = {}
for name, values in risks.items():
    number = int(np.sum(values[:, 0] > DROP))
    interval = stats.binomtest(number, COLLEAGUES).proportion_ci()
    broken[name] = number / COLLEAGUES, interval
    print(
        f"{name:13s} {number / COLLEAGUES:6.1%}   {interval.low:5.1%} to "
        f"{interval.high:5.1%}   {values[:, 1].mean():9.3f}"
    )

# %%
# Caption: What two hundred calibrations lose on new data, and how often the promise is
# broken.
# Alt: Left, two histograms: certified risks lie below one percent, drops without a
# certificate reach beyond. Right, bars of broken promises: few with a certificate, most
# where steps are chosen by count.
figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
bins = np.linspace(0, 0.02, 33)
percent = PercentFormatter(1)
axes[0].hist(plain_drops, bins, color=ORANGE, alpha=0.7, label="drop, no certificate")
axes[0].hist(
    risks["certified"][:, 0], bins, color=BLUE, alpha=0.7, label="risk, certified"
)
axes[0].axvline(DROP, color="black", linestyle="--", label="promised")
axes[0].set_xticks([0, 0.005, 0.01, 0.015, 0.02])
axes[0].xaxis.set_major_formatter(percent)
axes[0].set(xlabel="lost on new data", ylabel="colleagues", title="200 calibrations")
axes[0].legend()
for place, (name, (share, interval)) in enumerate(broken.items()):
    color = BLUE if name == "certified" else ORANGE
    axes[1].bar(place, share, color=color)
    axes[1].plot([place, place], [interval.low, interval.high], color="black")
axes[1].axhline(1 - CONFIDENCE, color="black", linestyle="--")
axes[1].set_xticks(range(len(broken)), broken)
axes[1].set(ylabel="share of promises broken", title="At most 5 % may be (dashed)")
axes[1].yaxis.set_major_formatter(percent)
figure.savefig("promise_coverage.png", dpi=120)

# %% [markdown]
# The certificate is broken in no more cases than it said. It is careful: a test that
# has to be passed at 5 % stops early, and that costs FLOPs. *Same rows* looks well
# here, with twice the rows to test on, but no proof stands behind it. To leave out the
# test is what breaks promises.
#
# What it does not promise: anything about digits of another source, or about rows that
# are not independent (ten photographs of one sheet), or for a network that is trained
# on. And calibrating five times with five seeds to keep the cheapest is testing five
# times.
#
# ## The front of accuracy and cost
#
# How good are thresholds at best? `threshold_front` looks at every choice. The simple
# way is greedy: set the first exit as if it were the only one, then the second for
# those who are left.


# %%
def greedily(leaves, right, price):
    """One exit after the other, by accuracy less price times cost."""
    taken = np.full(len(right), right.shape[1] - 1)
    for exit_index, columns in enumerate(leaves):
        stays = taken == right.shape[1] - 1
        values = []
        for column in columns.T:
            trial = np.where(stays & column, exit_index, taken)
            values.append(
                right[np.arange(len(right)), trial].mean() - price * costs[trial].mean()
            )
        best = columns[:, int(np.argmax(values))]
        taken = np.where(stays & best, exit_index, taken)
    return costs[taken].mean(), right[np.arange(len(right)), taken].mean()


few = [score[rows] for score in scores]
_, leaves = candidates_of(few)
_, front_costs, front_accuracies = kd.calibration.threshold_front(
    leaves, right[rows], costs
)
greedy = np.array(
    [greedily(leaves, right[rows], price) for price in np.geomspace(1e-3, 1, 40)]
)

# %% [markdown]
# Beside them, what a network of that size does without exits: the same one, narrower.
# Costs are FLOPs over those of the full network.

# %%
reference = model.compute_costs().reference
baselines = {}
for width in (12, 20):
    small = network(width, exits=False)
    cost = kd.suggest_exits(small).flops / reference
    answers = small.predict(x_many, batch_size=1000, verbose=0).argmax(axis=1)
    accuracy = np.mean(answers == y_many)
    baselines[f"width {width}, no exits"] = float(cost), float(accuracy)
print({name: (round(c, 3), round(a, 4)) for name, (c, a) in baselines.items()})

# %%
# Caption: The front of thresholds, a greedy choice, the certified one, and networks
# without exits.
# Alt: Accuracy over mean cost. The front rises steeply below a cost of 0.3; greedy
# choices lie on it or just below; the certified point is near a cost of one half, the
# narrower networks far below.
figure, axis = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
axis.step(front_costs, front_accuracies, where="post", color=BLUE, label="front")
axis.plot(*greedy.T, ".", color=ORANGE, label="greedy, 40 prices")
axis.plot(report.mean_cost, report.dynamic_accuracy, "*", ms=14, color=GREEN)
points = {"certified": (report.mean_cost, report.dynamic_accuracy)}
points["full network"] = (1.0, report.final_accuracy)
for name, point in {**points, **baselines}.items():
    if name != "certified":
        axis.plot(*point, "s", color="black", mfc="none")
    axis.annotate(name, point, (8, -12), textcoords="offset points", fontsize=8)
axis.set_xlim(0, 1.2)
axis.margins(y=0.1)
axis.set(xlabel="mean cost (1 = plain network)", ylabel="accuracy")
axis.legend(loc="lower right")
figure.savefig("promise_front.png", dpi=120)

# %% [markdown]
# (The certified point is on the half of these rows that it was tested on, the narrower
# networks on all 40,000 draws.) The front is the best *in hindsight*, for these rows;
# on new ones it is a little lower. That is why nobody should read a promise off it.
#
# ## A page to hand on
#
# All of it in one file: figures, curve, exits, reliability, the certificate and its
# path. The page holds its plots within itself and asks nothing of the network, so that
# it can be attached to a model or a ticket.

# %%
folder = Path(tempfile.mkdtemp())
report.save(folder / "report.html", baselines=baselines)
report.save(folder / "report.json", baselines=baselines)
for path in sorted(folder.iterdir()):
    print(path.name, f"{path.stat().st_size / 1024:.0f} kB")

# %% [markdown]
# ## What to try next
#
# - `max_accuracy_drop=0.02`: how much cheaper is a bolder promise?
# - `rule="patience"`: the certificate asks nothing of the rule.
# - {doc}`The certificate's page <../api/calibration_report>` has the formulas, and
#   `benchmarks/certificates.py` a thousand calibrations.
#
# Angelopoulos, Bates, Candès, Jordan and Lei, "Learn then Test: Calibrating Predictive
# Algorithms to Achieve Risk Control", 2021.
