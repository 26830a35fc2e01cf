"""Does `LayerChoice` find the operation that is known to be the best?

The task: noise n with an echo, x_t = n_t + s n_(t - 3), where s is 0.9 in one class and
-0.9 in the other. The classes differ in nothing but how points three steps apart go
together. Five operations are to choose from: the identity, an average over three
points, and convolutions of three points that lie one, two or three steps apart. Those
but the last see pairs at distances 1, 2 and 4 only, in which the classes are alike: the
convolution of dilation 3 is right, and without it the accuracy is near one half.

Ten seeds (of data and weights) each, for five ways of training with as many steps:

- joint: all weights together, on all the data, by `fit`; without and with the entropy
  term;
- bi-level: the logits on one half of the data, the rest on the other, in turns (the
  first-order form of DARTS), with the entropy term;
- joint with `gumbel_softmax`, whose temperature falls from 1 to 0.1;
- joint with `gumbel_straight_through`.

It prints how often the right operation won and the least probability that it won with;
on new data the accuracy of the trained network, of the plain network that
`kd.discretize` makes of it, and of that one after three epochs more; and the size of
the plain network's file over that of the other: means over the seeds. The entropy's
weight and the temperatures were chosen on three other seeds.

    python benchmarks/layer_choice.py [--seeds 10]
"""

import argparse
import tempfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import keras_dynamic as kd

LENGTH, LAG, CHANNELS = 32, 3, 8
SAMPLES, TEST, BATCH, EPOCHS, RATE = 4000, 2000, 100, 15, 0.01
FIRST_SEED, FINE_TUNING = 100, 3
RIGHT = f"dilation_{LAG}"


def echoes(count, generator):
    """Signals (count, LENGTH, 1), and the sign of their echo as a class."""
    y = generator.integers(0, 2, count)
    noise = generator.normal(size=(count, LENGTH + LAG))
    signs = np.where(y == 1, 0.9, -0.9)[:, None]
    x = noise[:, LAG:] + signs * noise[:, :-LAG]
    return x[..., None].astype("float32"), y


def network(**arguments):
    """A model with a choice among the five operations."""
    options = [
        layers.Identity(name="identity"),
        layers.AveragePooling1D(3, strides=1, padding="same", name="average"),
        *(
            layers.Conv1D(
                CHANNELS,
                3,
                padding="same",
                dilation_rate=steps,
                name=f"dilation_{steps}",
            )
            for steps in (1, 2, 3)
        ),
    ]
    before = [layers.Conv1D(CHANNELS, 1)]
    after = [
        layers.Activation("relu"),
        layers.GlobalAveragePooling1D(),
        layers.Dense(2),
    ]
    choice = kd.LayerChoice(options, name="choice", **arguments)
    return keras.Sequential([keras.Input((LENGTH, 1)), *before, choice, *after])


def loss_function():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def train_jointly(model, x, y, callbacks=(), epochs=EPOCHS):
    model.compile(keras.optimizers.Adam(RATE), loss_function())
    model.fit(
        x, y, batch_size=BATCH, epochs=epochs, verbose=0, callbacks=list(callbacks)
    )


def train_while_cooling(model, x, y):
    schedule = kd.callbacks.TemperatureSchedule(
        lambda epoch: 0.1 ** (epoch / (EPOCHS - 1)), "epoch"
    )
    train_jointly(model, x, y, [schedule])


def train_on_two_levels(model, x, y):
    """A step of the logits and one of the rest count as two."""
    choices = [layer for layer in model.layers if isinstance(layer, kd.LayerChoice)]
    upper = [weight for layer in choices for weight in layer.choice_weights]
    lower = [
        weight
        for weight in model.trainable_weights
        if not any(weight is other for other in upper)
    ]
    groups = (upper, keras.optimizers.Adam(RATE)), (lower, keras.optimizers.Adam(RATE))
    for weights, optimizer in groups:
        optimizer.build(weights)
    loss_of = loss_function()

    @tf.function
    def step(validation, training):
        for (weights, optimizer), (x, y) in zip(
            groups, (validation, training), strict=True
        ):
            with tf.GradientTape() as tape:
                loss = loss_of(y, model(x, training=True)) + sum(model.losses)
            optimizer.apply(tape.gradient(loss, weights), weights)

    half = len(x) // 2
    halves = [
        tf.data.Dataset.from_tensor_slices(pair).shuffle(half, seed=0).batch(BATCH)
        for pair in ((x[:half], y[:half]), (x[half:], y[half:]))
    ]
    for _ in range(EPOCHS):
        for validation, training in zip(*halves, strict=True):
            step(validation, training)


def file_size(model):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        model.save(path)
        return path.stat().st_size


def accuracy(model, x, y):
    return np.mean(model.predict(x, batch_size=500, verbose=0).argmax(axis=1) == y)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    seeds = parser.parse_args().seeds
    print(
        "training  settings                 found  least p  trained  winner  fine-tuned"
        "  file"
    )
    decided = {"entropy_weight": 0.1}
    for name, train, arguments in (
        ("joint", train_jointly, {}),
        ("joint", train_jointly, decided),
        ("bi-level", train_on_two_levels, decided),
        ("cooling", train_while_cooling, {"estimator": "gumbel_softmax"}),
        ("joint", train_jointly, {"estimator": "gumbel_straight_through"}),
    ):
        probabilities, scores = [], []
        for seed in range(FIRST_SEED, FIRST_SEED + seeds):
            keras.utils.set_random_seed(seed)
            generator = np.random.default_rng(seed)
            x, y = echoes(SAMPLES, generator)
            model = network(**arguments)
            train(model, x, y)
            choice = model.get_layer("choice")
            if choice.winner().name == RIGHT:
                probabilities.append(choice.probabilities().max())
            test = echoes(TEST, generator)
            plain = kd.discretize(model)
            alone = accuracy(plain, *test)
            train_jointly(plain, x, y, epochs=FINE_TUNING)
            tuned, smaller = accuracy(plain, *test), file_size(plain) / file_size(model)
            scores.append((accuracy(model, *test), alone, tuned, smaller))
        trained, alone, tuned, smaller = np.mean(scores, axis=0)
        settings = arguments.get("estimator", "soft")
        if "entropy_weight" in arguments:
            settings += f", entropy {arguments['entropy_weight']}"
        print(
            f"{name:8s}  {settings:23s}  {len(probabilities):2d}/{seeds:d}  "
            f"{min(probabilities, default=np.nan):7.3f}  {trained:7.4f}  {alone:6.4f}"
            f"  {tuned:10.4f}  {smaller:4.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
