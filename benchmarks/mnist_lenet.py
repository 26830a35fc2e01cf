"""A LeNet on MNIST with a branch after its first convolution, trained and calibrated.

For each of three seeds: the network with its branch is trained jointly, calibrated on
10,000 held-out training images with `max_accuracy_drop=0.002`, and run dynamically on
the test images; the plain network is trained alone in the same way. Prints accuracies
and mean costs of each seed, and the final exit of the joint network against the plain
one: exits may help even where they are not used.

    python benchmarks/mnist_lenet.py
"""

import statistics

import keras
from data import load_mnist
from keras import layers

import keras_dynamic as kd

EPOCHS, BATCH, SEEDS = 5, 128, (0, 1, 2)


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


def main():
    (x, y), (x_test, y_test) = load_mnist()
    x, y, x_calib, y_calib = x[:-10000], y[:-10000], x[-10000:], y[-10000:]
    joint_finals, plain_finals = [], []
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
        joint_finals.append(static["accuracy"])
        plain_finals.append(alone)
        print(
            f"{seed:4d}  {static['branch_accuracy']:.4f}  {static['accuracy']:.4f}  "
            f"{dynamic['accuracy']:.4f}   "
            f"{100 * (static['accuracy'] - dynamic['accuracy']):13.2f}  "
            f"{dynamic['mean_cost']:9.3f}  {alone:.4f}",
            flush=True,
        )
    differences = [a - b for a, b in zip(joint_finals, plain_finals, strict=True)]
    print(
        f"final exit, joint: {statistics.mean(joint_finals):.4f}; plain alone: "
        f"{statistics.mean(plain_finals):.4f}; difference "
        f"{100 * statistics.mean(differences):+.2f} points "
        f"(standard deviation {100 * statistics.stdev(differences):.2f})"
    )


if __name__ == "__main__":
    main()
