# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Exits on a trained model
#
# You have a transformer that is trained, and trusted. It spends four blocks on every
# sentence, on the easy ones too. *DeeBERT* puts a small classifier after some of the
# blocks, trains these alone, and leaves the network as it is. Here that is one line,
# first for text, then for images in the style of ViT.
#
# Everything is small, so that it runs in a minute on two cores. Nothing is downloaded.

# %%
import statistics
import time

import keras
import matplotlib.pyplot as plt
import numpy as np
from keras import layers
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_dynamic as kd

keras.utils.set_random_seed(0)
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")  # safe for color-blind readers

# %% [markdown]
# ## Film reviews, easy and hard
#
# DeeBERT was shown on sentiment: is a review good or bad? The reviews here are made by
# rules. That is less than real text, but has one merit: we know which are hard.
#
# - *plain*: "the plot is quite dull". One word says it.
# - *negated*: "nobody says the cast is not clever". One has to count.
# - *contrast*: "the score is never warm even though nobody finds the ending dull". One
#   has to know which half counts.

# %%
GOOD = """good great fine warm funny moving clever bright honest tender brilliant lovely
gripping fresh wise""".split()
BAD = """bad dull weak cold boring clumsy silly empty false tired awful ugly tedious
stale shallow""".split()
THINGS = """film story acting plot music ending script cast score dialog opening camera
pace humor mood hero villain finale""".split()
ADVERBS = "really quite so often always just rather still".split()
KINDS = ("plain", "negated", "contrast")
NEGATIONS = (
    ["the {} is {adverb} {}"],
    ["the {} is not {}", "nobody finds the {} {}", "the {} is never {}"],
    ["nobody says the {} is not {}", "nobody finds that the {} is never {}"],
)


def clause(generator, negations):
    """(words, whether they praise)"""
    praises = generator.random() < 0.5
    words = generator.choice(NEGATIONS[negations]).format(
        generator.choice(THINGS),
        generator.choice(GOOD if praises else BAD),
        adverb=generator.choice(ADVERBS),
    )
    return words, praises ^ (negations == 1)


def review(generator):
    """(words, 1 if it is good, number of its kind)"""
    kind = generator.choice(3, p=[0.5, 0.25, 0.25])
    if kind < 2:
        words, praises = clause(generator, kind * generator.integers(1, 3))
        return words, int(praises), kind
    one, other = (clause(generator, generator.integers(3)) for _ in range(2))
    form, counts = [
        ("{} but {}", other),
        ("although {} {}", other),
        ("{} even though {}", one),
    ][generator.integers(3)]
    return form.format(one[0], other[0]), int(counts[1]), kind


generator = np.random.default_rng(0)
reviews = {}  # no sentence twice: none is in training and test
while len(reviews) < 6400:
    words, *rest = review(generator)
    reviews[words] = rest
# Plain sentences become rare among the last ones: shuffled, all three parts are alike.
texts = list(reviews)
generator.shuffle(texts)
y, kinds = np.array([reviews[text] for text in texts]).T

# %% [markdown]
# Words become numbers: 0 is padding, 1 the class token, which stands first and collects
# what the classifier will read.

# %%
LENGTH = 20
vocabulary = sorted({word for text in texts for word in text.split()})
number_of = {word: number for number, word in enumerate(vocabulary, start=2)}
x = np.zeros((len(texts), LENGTH), "int32")
for row, text in zip(x, texts, strict=True):
    numbers = [1, *(number_of[word] for word in text.split())]
    row[: len(numbers)] = numbers

train, calib, test = np.split(np.arange(len(x)), [3200, 4800])
x_train, x_calib, x_test = x[train], x[calib], x[test]
y_train, y_calib, y_test = y[train], y[calib], y[test]
print(f"{len(x_train)} to train, {len(x_calib)} to calibrate, {len(x_test)} to test")
for kind, name in enumerate(KINDS):
    print(f"{name:8s} {texts[int(np.flatnonzero(kinds == kind)[0])]}")

# %% [markdown]
# ## The network as it is
#
# A plain functional Keras model with four blocks, and BERT's head: a pooler on the
# class token, dropout, a classifier. It knows nothing of exits.


# %%
@keras.saving.register_keras_serializable(package="tutorial")
class Positions(layers.Layer):
    """Adds a learned vector to each position; masks go through."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def build(self, input_shape):
        self.vectors = self.add_weight(shape=input_shape[1:], initializer="normal")

    def call(self, inputs):
        return inputs + self.vectors


def block(x, name, heads=4):
    """A transformer's block; attention, then two dense layers, both with shortcuts."""
    width = x.shape[-1]
    h = layers.LayerNormalization(name=f"{name}_norm_1")(x)
    h = layers.MultiHeadAttention(heads, width // heads, name=f"{name}_attention")(h, h)
    x = layers.Add(name=f"{name}_middle")([x, h])
    h = layers.LayerNormalization(name=f"{name}_norm_2")(x)
    h = layers.Dense(2 * width, activation="gelu", name=f"{name}_dense_1")(h)
    h = layers.Dense(width, name=f"{name}_dense_2")(h)
    return layers.Add(name=f"{name}_out")([x, h])


def text_network(width=32, blocks=4):
    ids = keras.Input((LENGTH,), dtype="int32", name="ids")
    x = layers.Embedding(len(vocabulary) + 2, width, mask_zero=True, name="words")(ids)
    x = Positions(name="positions")(x)
    for number in range(1, blocks + 1):
        x = block(x, f"block_{number}")
    x = layers.LayerNormalization(name="norm")(x)
    x = layers.Dense(width, activation="tanh", name="pooler")(x[:, 0])
    x = layers.Dropout(0.1, name="dropout")(x)
    return keras.Model(ids, layers.Dense(2, activation="softmax", name="praise")(x))


network = text_network()
network.compile(
    keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy", metrics=["accuracy"]
)
network.fit(x_train, y_train, batch_size=128, epochs=6, verbose=0)
before = network.predict(x_test, verbose=0)
weights_before = network.get_weights()
print(f"accuracy on test reviews: {np.mean(before.argmax(axis=1) == y_test):.1%}")

# %% [markdown]
# ## Where could exits stand?
#
# `suggest_exits` lists the places: after which layer, what share of the FLOPs is spent
# until there, what the head would cost, and how many tensors the rest of the network
# would still have to be given. One is a clean cut.

# %%
suggestions = kd.suggest_exits(network)
print(suggestions)

# %% [markdown]
# ## Exits in one line
#
# `at` takes shares of the cost or names of layers. The heads are made like the
# network's own: normalization, class token, pooler with tanh, dropout, softmax.

# %%
model = kd.add_exits(network, at=("block_1_out", "block_2_out", "block_3_out"))
model.compile(
    keras.optimizers.Adam(5e-3), "sparse_categorical_crossentropy", metrics=["accuracy"]
)

# %% [markdown]
# `fit_exits` is DeeBERT's second stage: it freezes all but the new heads. `fit` would
# train everything together, which makes better exits, and another network. Here the
# network's answers are to stay what they were.

# %%
start = time.perf_counter()
model.fit_exits(x_train, y_train, batch_size=128, epochs=2, verbose=0)
print(f"two epochs of the exits alone: {time.perf_counter() - start:.0f} s")

print(f"\n{'':8s}  cost   " + " ".join(f"{kind:>8s}" for kind in ("all", *KINDS)))
accuracies = []
for name, output, share in zip(
    model.exit_names,
    model.predict(x_test, verbose=0),
    model.compute_costs().shares(),
    strict=True,
):
    right = output.argmax(axis=1) == y_test
    by_kind = [right[kinds[test] == kind].mean() for kind in range(3)]
    accuracies.append(right.mean())
    shown = "".join(f"{accuracy:9.1%}" for accuracy in (right.mean(), *by_kind))
    print(f"{name:8s} {share:.3f} {shown}")

same = all(map(np.array_equal, weights_before, network.get_weights()))
print("the network's weights are untouched:", same)
print(
    "and so are its answers:",
    np.array_equal(network.predict(x_test, verbose=0), before),
)

# %% [markdown]
# The table is the reason for exits: who asks for one word only needs no four blocks.
#
# ## Thresholds
#
# DeeBERT leaves at the first exit $e$ whose answer $\hat y_e$ has a low entropy,
#
# $$H[\hat y_e] = -\sum_c \hat y_{e,c} \log \hat y_{e,c} < \gamma_e .$$
#
# How low, `calibrate` finds on reviews that nothing was trained on: the cheapest
# thresholds $\gamma_e$ that lose at most one point of accuracy there, with a standard
# error to spare.

# %%
report = model.calibrate(x_calib, y_calib, rule="entropy", max_accuracy_drop=0.01)
print(report)

# %% [markdown]
# An exit that is not worth its head would be closed. On new reviews:

# %%
p = model.predict_dynamic(x_test, batch_size=256, verbose=0)
answers = p.outputs.argmax(axis=1)
print(p)
print(f"full network {accuracies[-1]:.1%}, dynamic {np.mean(answers == y_test):.1%}")

# %% [markdown]
# One point was asked for, and on the calibration reviews it was kept. On new ones it
# may be more or less: a figure is no promise. The next tutorial makes one.
#
# ## Does it save time?
#
# FLOPs are counted, time has to be measured: medians of calls taken in turns, the
# network as it was against the dynamic road.


# %%
def seconds_in_turns(*functions, repeats=3):
    """Median time of each function, called in turns after one call to warm up."""
    times = [[] for _ in functions]
    for _ in range(repeats + 1):
        for function, taken in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken[1:]) for taken in times]


nobody = kd.rules.Entropy(0.0)
static, everyone, dynamic = seconds_in_turns(
    lambda: network.predict(x_test, batch_size=256, verbose=0),
    lambda: model.predict_dynamic(x_test, batch_size=256, verbose=0, rule=nobody),
    lambda: model.predict_dynamic(x_test, batch_size=256, verbose=0),
)
print(f"{len(x_test)} reviews     time    over predict   mean cost")
for name, duration, cost in (
    ("predict", static, 1.0),
    ("nobody leaves", everyone, model.compute_costs().shares()[-1]),
    ("dynamic", dynamic, p.mean_cost),
):
    print(
        f"{name:14s} {1000 * duration:6.0f} ms {duration / static:10.2f} {cost:13.3f}"
    )

# %% [markdown]
# "Nobody leaves" is the dynamic road with every exit asked in vain. What it differs by
# from `predict` is no merit of the exits; the fair comparison is with that line.
#
# ## What leaves where
#
# A few reviews by the exit they left at:

# %%
for index, exit_name in enumerate(model.exit_names):
    here = np.flatnonzero(p.exit_index == index)
    print(f"\n{exit_name}: {len(here)} reviews")
    for row in here[:4]:
        answer = "good" if answers[row] else "bad"
        wrong = "" if answers[row] == y_test[row] else " (wrong)"
        print(f"  {answer:4s}  {texts[test[row]]}{wrong}")

# %% [markdown]
# Nobody told the network of the three kinds. And at right, what every threshold would
# buy. The star is what `calibrate` chose, drawn on the test reviews: it need not lie on
# their front.

# %%
# Caption: Where the reviews leave, by kind, and what thresholds could buy.
# Alt: Left, stacked bars: nearly all plain reviews leave at the first exit, negated
# ones and contrasts go further. Right, accuracy over mean cost with the front of
# thresholds, and a star for the rule as it stands.
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
bottom = np.zeros(3)
for index, exit_name in enumerate(model.exit_names):
    leaving = p.exit_index == index
    share = np.array([leaving[kinds[test] == kind].mean() for kind in range(3)])
    left.bar(KINDS, share, bottom=bottom, color=COLORS[index], label=exit_name)
    bottom += share
left.set(ylabel="share of the test reviews", title="Where they leave, by kind")
left.legend(loc="upper left", bbox_to_anchor=(0, -0.1), ncols=4, frameon=False)
kd.plots.accuracy_cost(model, x_test, y_test).plot(right)
figure.savefig("exits_on_text.png", dpi=120)

# %% [markdown]
# ## A vision transformer
#
# The same with images: an 8 x 8 digit is cut into sixteen patches of 2 x 2, a class
# token is put before them, and three blocks follow. This is ViT, small.


# %%
@keras.saving.register_keras_serializable(package="tutorial")
class ClassToken(layers.Layer):
    """Puts one learned token before the others."""

    def build(self, input_shape):
        self.token = self.add_weight(shape=(1, 1, input_shape[-1]), name="token")

    def call(self, inputs):
        token = keras.ops.repeat(self.token, keras.ops.shape(inputs)[0], axis=0)
        return keras.ops.concatenate([token, inputs], axis=1)


def vision_transformer(width=32, blocks=3):
    image = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(width, 2, strides=2, name="patches")(image)
    x = layers.Reshape((16, width), name="tokens")(x)
    x = Positions(name="positions")(ClassToken(name="class_token")(x))
    for number in range(1, blocks + 1):
        x = block(x, f"block_{number}")
    x = layers.LayerNormalization(name="norm")(x)
    return keras.Model(image, layers.Dense(10, "softmax", name="digit")(x[:, 0]))


digits = load_digits()
images = (digits.images / 16.0).astype("float32")[..., None]
i_train, i_rest, d_train, d_rest = train_test_split(
    images, digits.target, test_size=0.5, random_state=0, stratify=digits.target
)
i_calib, i_test, d_calib, d_test = train_test_split(
    i_rest, d_rest, test_size=0.5, random_state=0, stratify=d_rest
)
vit = vision_transformer()
vit.compile(keras.optimizers.Adam(4e-3), "sparse_categorical_crossentropy")
vit.fit(i_train, d_train, batch_size=64, epochs=16, verbose=0)

# %% [markdown]
# An exit after each block but the last, by name. A name that is not there is an error
# that says what is:

# %%
vit_exits = kd.add_exits(vit, at=("block_1_out", "block_2_out"))
try:
    kd.add_exits(vit, at=("block_7_out",))
except ValueError as error:
    print(error)

vit_exits.compile(keras.optimizers.Adam(5e-3), "sparse_categorical_crossentropy")
vit_exits.fit_exits(i_train, d_train, batch_size=64, epochs=8, verbose=0)
vit_exits.calibrate(i_calib, d_calib, rule="entropy", max_accuracy_drop=0.01)
seen = vit_exits.predict_dynamic(i_test, batch_size=450, verbose=0)
full = vit.predict(i_test, verbose=0).argmax(axis=1)
print(seen)
print(f"full network {np.mean(full == d_test):.1%}, ", end="")
print(f"dynamic {np.mean(seen.outputs.argmax(axis=1) == d_test):.1%}")

# %%
# Caption: The vision transformer's digits by exit, from sure to unsure: the answer, and
# below it the entropy. Framed: wrong.
# Alt: Three rows of eight digits, one row for each exit; in the last row, where the
# entropy is largest, some are framed.
kd.plots.samples_by_exit(vit_exits, i_test, d_test).plot()
plt.savefig("exits_on_vit.png", dpi=120)

# %% [markdown]
# The early exits of a network that was not trained for them are weak: its first blocks
# never had to answer anything. If the network may change, `fit` instead of `fit_exits`
# trains both together. Compare on your data; the page on benchmarks has one such
# comparison.
#
# ## Networks that you did not write
#
# The models of `keras.applications` are functional, and nothing else is needed. (With
# `weights=None` nothing is downloaded, and nothing is known.)

# %%
mobile = keras.applications.MobileNetV2((64, 64, 3), weights=None, classes=10)
with_exits = kd.add_exits(mobile, at=(0.25, 0.5, 0.75))
for name, cost in zip(
    with_exits.exit_names, with_exits.compute_costs().shares(), strict=True
):
    print(f"{name:12s} at {cost:.3f} of the cost")

# %% [markdown]
# Classifiers of keras-hub are functional models too:
#
# ```python
# classifier = keras_hub.models.BertTextClassifier.from_preset(
#     "bert_tiny_en_uncased_sst2", preprocessor=None
# )
# model = kd.add_exits(classifier, at=(0.3, 0.6))
# ```
#
# The page of {doc}`add_exits <../api/add_exits>` says which networks were tried, and
# what their heads take over.
#
# ## What to try next
#
# - `model.compile(..., distillation_weight=0.5)` before `fit_exits`: the exits learn
#   from the last one's answers as well.
# - `rule="patience"`: leave once several exits agree.
# - `model.calibrate(..., risk_confidence=0.95)`: a promise in place of a figure, which
#   is the subject of [Thresholds one can promise](13_thresholds_one_can_promise.py).
# - `kd.strip_exits(model)`: the plain network again.
#
# Xin, Tang, Lee, Yu and Lin, "DeeBERT: Dynamic Early Exiting for Accelerating BERT
# Inference", 2020; Bakhtiarnia, Zhang and Iosifidis, "Multi-Exit Vision Transformer for
# Dynamic Inference", 2021.
