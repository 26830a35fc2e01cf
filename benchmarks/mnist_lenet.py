"""A LeNet on MNIST with a branch after its first convolution, trained and calibrated.

The smallest network of Teerapittayanon, McDanel and Kung, "BranchyNet: Fast Inference
via Early Exiting from Deep Neural Networks", ICPR 2016.

For each of three seeds: the network with its branch is trained jointly, calibrated on
10,000 held-out training images with `max_accuracy_drop=0.002`, and run dynamically on
the test images; the plain network is trained alone in the same way. Prints accuracies
and mean costs of each seed, and the final exit of the joint network against the plain
one: exits may help even where they are not used.

The paper's row is about one sample at a time. So the first test images run one by one
through `dynamic_function` and, in turns, through the compiled call of the plain
network, on ready tensors: with the calibrated thresholds, and with the paper's own, by
which an image leaves where the branch's entropy is below 0.025 nats. "speed" is the
plain network's time over the dynamic one, of medians, for each of the two ways to
compile the plain one, with XLA and without.

    python benchmarks/mnist_lenet.py [--json FILE]
"""

import argparse
import statistics
import time

import keras
import record
import tensorflow as tf
from data import load_mnist
from keras import layers

import keras_dynamic as kd

EPOCHS, BATCH, SEEDS = 5, 128, (0, 1, 2)
PAPERS_RULE = kd.rules.Entropy(0.025)
TIMED, TURNS = 500, 7


def lenet(with_branch):
    """LeNet-5 with ReLU; its branch reads a 7 x 7 grid of the first maps."""
    inputs = keras.Input((28, 28, 1))
    x = layers.Conv2D(6, 5, padding="same", activation="relu")(inputs)
    x = layers.MaxPooling2D()(x)
    branch = kd.EarlyExit(10, pooling="max", grid=7, hidden_units=64, name="branch")(x)
    x = layers.Conv2D(16, 5, activation="relu")(x)
    x = layers.Flatten()(layers.MaxPooling2D()(x))
    x = layers.Dense(120, activation="relu")(x)
    x = layers.Dense(84, activation="relu")(x)
    final = layers.Dense(10, activation="softmax", name="final")(x)
    if with_branch:
        return kd.DynamicModel(inputs, [branch, final])
    return keras.Model(inputs, final)


def train(model, x, y):
    steps = EPOCHS * (len(x) // BATCH)
    rate = keras.optimizers.schedules.CosineDecay(2e-3, steps)
    model.compile(
        keras.optimizers.Adam(rate),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    model.fit(x, y, batch_size=BATCH, epochs=EPOCHS, verbose=0)


def seconds_one_by_one(model, plain, images):
    """Median seconds for all images, one at a time: of each road, in turns."""
    one = tf.TensorSpec((1, 28, 28, 1))
    roads = {
        "calibrated": model.dynamic_function(batch_size=1),
        "paper": model.dynamic_function(batch_size=1, rule=PAPERS_RULE),
    }
    for name, jit_compile in (("plain", False), ("plain, XLA", True)):
        call = tf.function(
            lambda image: plain(image, training=False), jit_compile=jit_compile
        )
        roads[name] = call.get_concrete_function(one)
    samples = [tf.constant(images[index : index + 1]) for index in range(len(images))]

    def run(road):
        start = time.perf_counter()
        for sample in samples:
            answer = road(sample)
            (answer["outputs"] if isinstance(answer, dict) else answer).numpy()
        return time.perf_counter() - start

    for road in roads.values():
        run(road)
    turns = [{name: run(road) for name, road in roads.items()} for _ in range(TURNS)]
    return {name: statistics.median(turn[name] for turn in turns) for name in roads}


def speed(model, plain, images):
    """How many times as fast as the plain network, under both rules."""
    seconds = seconds_one_by_one(model, plain, images)
    return {
        f"speed_{rule}{way}": seconds[f"plain{comma}"] / seconds[rule]
        for rule in ("calibrated", "paper")
        for way, comma in (("", ""), ("_xla", ", XLA"))
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    record.add_option(parser)
    file = parser.parse_args().json
    (x, y), (x_test, y_test) = load_mnist()
    x, y, x_calib, y_calib = x[:-10000], y[:-10000], x[-10000:], y[-10000:]
    found = []
    print("seed  branch  final   dynamic  drop (points)  mean cost  plain alone")
    for seed in SEEDS:
        keras.utils.set_random_seed(seed)
        model = lenet(with_branch=True)
        train(model, x, y)
        static = model.evaluate(x_test, y_test, verbose=0, return_dict=True)
        model.calibrate(x_calib, y_calib, max_accuracy_drop=0.002)
        dynamic = model.evaluate_dynamic(x_test, y_test, verbose=0)
        keras.utils.set_random_seed(seed)
        plain = lenet(with_branch=False)
        train(plain, x, y)
        alone = plain.evaluate(x_test, y_test, verbose=0)[1]
        paper = model.evaluate_dynamic(x_test, y_test, rule=PAPERS_RULE, verbose=0)
        found.append(
            {
                "branch": static["branch_accuracy"],
                "final": static["accuracy"],
                "plain": alone,
                "calibrated": dynamic["accuracy"],
                "cost_calibrated": dynamic["mean_cost"],
                "leave_calibrated": dynamic["exit_rates"][0],
                "paper": paper["accuracy"],
                "cost_paper": paper["mean_cost"],
                "leave_paper": paper["exit_rates"][0],
            }
            | speed(model, plain, x_test[:TIMED])
        )
        print(
            f"{seed:4d}  {static['branch_accuracy']:.4f}  {static['accuracy']:.4f}  "
            f"{dynamic['accuracy']:.4f}   "
            f"{100 * (static['accuracy'] - dynamic['accuracy']):13.2f}  "
            f"{dynamic['mean_cost']:9.3f}  {alone:.4f}",
            flush=True,
        )
    row = {name: [each[name] for each in found] for name in found[0]}
    row["final_less_plain"] = differences = [e["final"] - e["plain"] for e in found]
    print(
        f"final exit, joint: {statistics.mean(row['final']):.4f}; plain alone: "
        f"{statistics.mean(row['plain']):.4f}; difference "
        f"{100 * statistics.mean(differences):+.2f} points "
        f"(standard deviation {100 * statistics.stdev(differences):.2f})"
    )
    for rule in ("calibrated", "paper"):
        names = (rule, f"leave_{rule}", f"speed_{rule}", f"speed_{rule}_xla")
        print(rule, *(f"{name} {statistics.mean(row[name]):.4f}" for name in names))
    record.write(file, [row], SEEDS)


if __name__ == "__main__":
    main()
