"""Exits on a transformer for sentiment (SST-2), as in DeeBERT: accuracy, cost and time.

A transformer of six blocks, its words' vectors included, is trained from scratch on
the 6,920 training sentences. `kd.add_exits` puts an exit after each block but the last,
`fit_exits` trains these heads alone, and a sample leaves at the first exit whose answer
has an entropy below a threshold, the same at all exits (DeeBERT). Entropies are of
calibrated probabilities, with one temperature an exit. Temperatures, and the thresholds
of the row "calibrate" (`rule="entropy"`, `max_accuracy_drop=0.01`), come from the 872
validation sentences; all figures are of the 1,821 test sentences, on which nothing is
trained or calibrated.

Printed are, for each threshold, the accuracy, the mean cost (1.0 is the network without
exits) and how many answers are not the final exit's, again after each of three seeds.
For the first seed there is also how long `predict_dynamic` takes on the test sentences.
That time is divided by the times of the network without exits: by `Model.predict`, and
by a compiled call of it on tensors that lie ready, by XLA or TensorFlow's kernels,
whichever is faster. All take turns; the ratios are medians over the turns. Beside them
stands a network with one block, trained alone in the same way.

    python benchmarks/sst2_transformer.py [--seeds 3] [--repeats 7]
"""

import argparse
import collections
import statistics
import time

import keras
import numpy as np
import tensorflow as tf
from data import load_sst2
from keras import layers
from small_transformers import Positions

import keras_dynamic as kd

BLOCKS, WIDTH, HEADS, LENGTH = 6, 64, 4, 48
BATCH, EPOCHS, EXIT_EPOCHS = 64, 6, 2
DROPOUT, WORDS_HIDDEN = 0.3, 0.2
# In nats; an even answer has ln 2 = 0.693.
THRESHOLDS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.65, 0.68)
PREDICTED = 128  # sentences in a batch, where time is taken
WARM_UP = 6  # seconds of calls before anything is timed
PADDING, UNKNOWN = 0, 1
ROWS = {f"{value:.2f}": kd.rules.Entropy(value) for value in THRESHOLDS}
ROWS["calibrate"] = None  # the model's own rule


def vocabulary(sentences):
    """The words that occur twice or more, most frequent first, as numbers from 2 on."""
    counts = collections.Counter(word for text in sentences for word in text.split())
    known = [word for word, count in counts.most_common() if count > 1]
    return {word: number for number, word in enumerate(known, start=UNKNOWN + 1)}


def numbered(sentences, numbers):
    """(n, LENGTH) int32: the words of each sentence, cut off or padded at its end."""
    rows = np.full((len(sentences), LENGTH), PADDING, "int32")
    for row, text in zip(rows, sentences, strict=True):
        found = [numbers.get(word, UNKNOWN) for word in text.split()[:LENGTH]]
        row[: len(found)] = found
    return rows


def transformer(words, blocks=BLOCKS):
    """Probabilities of a sentence's two classes, from the mean of its tokens."""
    inputs = keras.Input((LENGTH,), dtype="int32")
    x = layers.Embedding(words, WIDTH, mask_zero=True)(inputs)
    x = layers.Dropout(DROPOUT)(Positions()(x))
    for number in range(1, blocks + 1):
        h = layers.LayerNormalization()(x)
        h = layers.MultiHeadAttention(HEADS, WIDTH // HEADS)(h, h)
        x = layers.Add()([x, layers.Dropout(DROPOUT)(h)])
        h = layers.LayerNormalization()(x)
        h = layers.Dense(WIDTH)(layers.Dense(4 * WIDTH, "gelu")(h))
        x = layers.Add(name=f"block_{number}")([x, layers.Dropout(DROPOUT)(h)])
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    x = layers.Dropout(DROPOUT)(x)
    return keras.Model(inputs, layers.Dense(2, "softmax", name="final")(x))


def compiled(model, rate, steps):
    warm_up = steps // 10
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, steps - warm_up, warmup_target=rate, warmup_steps=warm_up
    )
    model.compile(
        keras.optimizers.AdamW(rate, weight_decay=0.01),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


def hide_words(x, y):
    """Sentences in which some words, drawn anew each time, are unknown."""
    drawn = tf.random.uniform(tf.shape(x)) < WORDS_HIDDEN
    return tf.where(drawn & (x != PADDING), UNKNOWN, x), y


def trained(model, x, y):
    """The network itself, from scratch."""
    compiled(model, 1e-3, EPOCHS * (len(x) // BATCH))
    batches = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x)).batch(BATCH)
    model.fit(batches.map(hide_words), epochs=EPOCHS, shuffle=False, verbose=0)
    return model


def with_exits(model, x, y):
    """The network with an exit after each block but the last; heads trained alone."""
    model = kd.add_exits(model, at=[f"block_{k}" for k in range(1, BLOCKS)])
    compiled(model, 3e-3, EXIT_EPOCHS * (len(x) // BATCH))
    model.fit_exits(x, y, batch_size=BATCH, epochs=EXIT_EPOCHS, verbose=0)
    return model


def figures(model, held_out, test):
    """Each exit's accuracy by itself; for each row its accuracy, its mean cost, and how
    many answers are not the final exit's."""
    model.calibrate(
        *held_out, rule="entropy", max_accuracy_drop=0.01, batch_size=PREDICTED
    )
    print(f"`calibrate` chose {model.exit_rule}", flush=True)
    scores = model.evaluate(*test, batch_size=PREDICTED, verbose=0, return_dict=True)
    own = [scores[f"{name}_accuracy"] for name in model.exit_names[:-1]]
    final = model.predict(test[0], batch_size=PREDICTED, verbose=0)[-1].argmax(axis=1)
    rows = {}
    for name, rule in ROWS.items():
        arguments = {"batch_size": PREDICTED, "rule": rule, "verbose": 0}
        found = model.evaluate_dynamic(*test, **arguments)
        answers = model.predict_dynamic(test[0], **arguments).outputs.argmax(axis=1)
        others = int(np.sum(answers != final))
        rows[name] = found["accuracy"], found["mean_cost"], others
    return [*own, scores["accuracy"]], rows


def ready(model, x):
    """Two functions that call a network on batches of tensors, compiled both ways."""
    batches = [
        tf.constant(x[start : start + PREDICTED])
        for start in range(0, len(x), PREDICTED)
    ]

    def caller(jit_compile):
        call = tf.function(lambda t: model(t, training=False), jit_compile=jit_compile)
        return lambda: np.concatenate([call(batch).numpy() for batch in batches])

    return caller(False), caller(True)


def times(model, network, shallow, x, repeats):
    """Dict of lists of seconds, one a turn, in which all are measured."""
    arguments = {"batch_size": PREDICTED, "verbose": 0}
    plain, by_xla = ready(network, x)
    runs = {
        "call, TensorFlow's kernels": plain,
        "call, XLA": by_xla,
        "Model.predict": lambda: network.predict(x, **arguments),
        "one block, Model.predict": lambda: shallow.predict(x, **arguments),
        **{
            name: lambda rule=rule: model.predict_dynamic(x, rule=rule, **arguments)
            for name, rule in ROWS.items()
        },
    }
    for run in runs.values():
        start = time.perf_counter()
        while time.perf_counter() - start < WARM_UP:
            run()
    found = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            found[name].append(time.perf_counter() - start)
    return found


def ratio(found, name, *others):
    """Median over the turns of a time divided by the least of the others' medians."""
    other = min(others, key=lambda each: statistics.median(found[each]))
    pairs = zip(found[name], found[other], strict=True)
    return statistics.median(ours / theirs for ours, theirs in pairs)


def show_times(found):
    print(
        "\nseconds for the test sentences (medians), first seed; over `predict`; over"
    )
    print("the faster of the two compiled calls on ready tensors")
    for name, values in found.items():
        by_predict = ratio(found, name, "Model.predict")
        by_call = ratio(found, name, "call, TensorFlow's kernels", "call, XLA")
        seconds = statistics.median(values)
        print(f"{name:28s} {seconds:7.3f}  {by_predict:5.2f}  {by_call:5.2f}")


def spread(values):
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.4f} ({deviation:.4f})"


def show_scores(alone, rows, shallow):
    print(f"\nmeans over {len(rows)} seeds (standard deviations), test sentences")
    for number, values in enumerate(zip(*alone, strict=True), start=1):
        print(f"exit {number} by itself: accuracy {spread(values)}")
    print(f"one block, trained alone: accuracy {spread(shallow)}")
    print(
        "threshold    accuracy         points to the final exit   mean cost        "
        "answers unlike it"
    )
    for name in ROWS:
        accuracies, costs, others = zip(*(found[name] for found in rows), strict=True)
        points = [
            100 * (accuracy - exits[-1])
            for accuracy, exits in zip(accuracies, alone, strict=True)
        ]
        each = " ".join(f"{value:+.2f}" for value in points)
        print(
            f"{name:10s}  {spread(accuracies)}  {statistics.mean(points):+.2f} ({each})"
            f"  {spread(costs)}  {' '.join(map(str, others))}",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    (texts, y), (held_texts, held_y), (test_texts, test_y) = load_sst2()
    numbers = vocabulary(texts)
    words = len(numbers) + UNKNOWN + 1
    x = numbered(texts, numbers)
    held_out = numbered(held_texts, numbers), held_y
    test = numbered(test_texts, numbers), test_y
    alone, rows, one_block = [], [], []
    for seed in range(arguments.seeds):
        keras.utils.set_random_seed(seed)
        network = trained(transformer(words), x, y)
        model = with_exits(network, x, y)
        shallow = trained(transformer(words, blocks=1), x, y)
        own, found = figures(model, held_out, test)
        alone.append(own)
        rows.append(found)
        one_block.append(shallow.evaluate(*test, batch_size=PREDICTED, verbose=0)[1])
        if not seed:
            shares = ", ".join(f"{s:.3f}" for s in model.compute_costs().shares())
            print(f"cost of leaving at each exit: {shares}")
            show_times(times(model, network, shallow, test[0], arguments.repeats))
        show_scores(alone, rows, one_block)


if __name__ == "__main__":
    main()
