"""Makes the golden files of a release, once, before it is published:

    python -m tests.golden.make

in the environment of the oldest supported versions (CONTRIBUTING.md): Keras writes
arguments into a file that an older Keras does not know.

They go to a folder named after the release and are never made again: whatever was
saved by a release has to load, and to answer as it did, in all that follow. A release
that adds a layer, a rule or an argument that is saved gets a folder of its own.
"""

import json
import zipfile
from pathlib import Path

import keras
import numpy as np
from keras import layers

import keras_dynamic as kd
from keras_dynamic import rules

ROOT = Path(__file__).resolve().parent
CLASSES, ROWS = 3, 16


def classes_of(x):
    return x.reshape(len(x), -1)[:, :CLASSES].argmax(axis=1)


def numbers(rng, *shape):
    # Few digits, so that they are the same wherever they are read.
    return rng.normal(size=shape).round(3).astype("float32")


def scatter(model, rng):
    """Weights of which the choices of gates depend on the input."""
    for weight in model.trainable_weights:
        weight.assign(numbers(rng, *weight.shape))


def images(rng):
    """Convolutions; calibrated, with a certificate and a report, and an optimizer."""
    inputs = keras.Input((4, 4, 1))
    h = layers.Conv2D(3, 3, padding="same", activation="relu")(inputs)
    first = kd.EarlyExit(CLASSES, "flatten", loss_weight=0.3, name="first")(h)
    h = layers.BatchNormalization()(h)
    h = layers.Conv2D(8, 3, padding="same", activation="relu")(h)
    second = kd.EarlyExit(CLASSES, "flatten", hidden_units=4, name="second")(h)
    h = layers.Conv2D(8, 3, padding="same", activation="relu")(h)
    last = layers.Dense(CLASSES, "softmax", name="last")(layers.Flatten()(h))
    model = kd.DynamicModel(inputs, [first, second, last], name="images")
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    x = numbers(rng, 600, 4, 4, 1)
    model.fit(x, classes_of(x), epochs=25, verbose=0)
    report = model.calibrate(
        x, classes_of(x), max_accuracy_drop=0.05, risk_confidence=0.9
    )
    return model, numbers(rng, ROWS, 4, 4, 1), report


def tokens(rng):
    """Tokens with a mask, two kinds of pooling, `Entropy`."""
    inputs = keras.Input((5,), dtype="int32")
    spread = keras.initializers.RandomUniform(-2, 2)
    h = layers.Embedding(7, 4, spread, mask_zero=True)(inputs)
    first = kd.EarlyExit(CLASSES, "average", name="first")(h)
    h = layers.MultiHeadAttention(1, 4)(h, h)
    second = kd.EarlyExit(CLASSES, "first", name="second")(h)
    h = layers.GlobalAveragePooling1D()(h)
    last = layers.Dense(CLASSES, "softmax", name="last")(h)
    rule = rules.Entropy([0.9, 1.05])
    model = kd.DynamicModel(inputs, [first, second, last], exit_rule=rule)
    return model, rng.integers(0, 7, (ROWS, 5)), None


def dense(rng, rule, activation="softmax"):
    inputs = keras.Input((6,))
    h = layers.Dense(6, "relu")(inputs)
    exits = [kd.EarlyExit(CLASSES, activation=activation, name="first")(h)]
    for name in ("second", "third"):
        h = layers.Dense(6, "relu")(h)
        exits.append(kd.EarlyExit(CLASSES, activation=activation, name=name)(h))
    exits.append(layers.Dense(CLASSES, activation, name="last")(h))
    model = kd.DynamicModel(inputs, exits, exit_rule=rule)
    logits = activation is None
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(logits))
    return model, numbers(rng, ROWS, 6), None


def margins(rng):
    """Logits, `Margin`, a closed exit, temperatures set by hand."""
    model, x, _ = dense(rng, rules.Margin([0.15, None, 0.2]), activation=None)
    model.calibration_temperatures.assign([0.5, 1.0, 1.5, 2.0])
    return model, x, None


def patient(rng):
    """`Patience`."""
    return dense(rng, rules.Patience(2))


def selected(rng, layerwise=False):
    """`ExitSelector`, `Selected`."""
    inputs = keras.Input((6,))
    h = layers.Dense(6, "tanh")(inputs)
    first = kd.EarlyExit(CLASSES, name="first")(h)
    deeper = layers.Dense(6, "tanh")(h)
    last = layers.Dense(CLASSES, "softmax", name="last")(deeper)
    arguments = {
        "estimator": "gumbel_straight_through",
        "temperature": 2.0,
        "hidden_units": 3,
        "entropy_weight": 0.01,
        "prior": [0.5, 0.5],
        "prior_weight": 0.1,
        "exit_costs": "auto",
        "cost_weight": 0.1,
        "seed": 1,
    }
    if layerwise:
        weights = kd.LayerwiseSelector(2, **arguments)([h])
    else:
        weights = kd.ExitSelector(2, **arguments)(h)
    model = kd.DynamicModel(inputs, [first, last], selector=weights)
    return model, numbers(rng, ROWS, 6), None


def layerwise(rng):
    """`LayerwiseSelector`."""
    return selected(rng, layerwise=True)


def gated(rng):
    """`SkipGate`, `BlendedActivation`, `LayerChoice`, `GumbelSoftmax`."""
    inputs = keras.Input((6,))
    h = kd.SkipGate(
        layers.Dense(6, "relu"),
        "gumbel_straight_through",
        temperature=0.7,
        target_rate=0.5,
        rate_weight=0.1,
        cost_weight=0.1,
        initial_open_rate=0.5,
        seed=2,
    )(inputs)
    h = kd.SkipGate(layers.Dense(6), "straight_through", additive=True, seed=3)(h)
    h = kd.BlendedActivation(["relu", "tanh"], shared_axes=[1], initial_activation=1)(h)
    h = kd.BlendedActivation(["gelu", "linear"], constraint="sum_normalized")(h)
    both = [layers.Dense(6), layers.Dense(6, "tanh")]
    h = kd.LayerChoice(both, "reinmax", costs="auto", cost_weight=0.1, seed=4)(h)
    h = layers.Multiply()([h, kd.GumbelSoftmax(3.0, "soft")(layers.Dense(6)(h))])
    model = kd.DynamicModel(inputs, [layers.Dense(CLASSES, "softmax", name="last")(h)])
    scatter(model, rng)
    return model, numbers(rng, ROWS, 6), None


def experts(rng):
    """`SparseMoE` with every router, its own experts and others, beside exits."""
    inputs = keras.Input((4, 4))
    h = kd.SparseMoE(3, 4, top_k=2, z_weight=0.01, capacity_factor=2.0, seed=5)(inputs)
    first = kd.EarlyExit(CLASSES, name="first")(h)
    h = kd.SparseMoE(
        2, 3, router=kd.routers.DenseRouter(2), gated=True, activation="relu"
    )(h)
    h = kd.SparseMoE(2, 3, router=kd.routers.ExpertChoiceRouter(2), use_bias=False)(h)
    h = kd.SparseMoE(
        experts=[layers.Dense(4), layers.Dense(4, "tanh"), layers.Dense(4, "elu")],
        router=kd.routers.TopKRouter(3, 2, renormalize=True, noise_stddev=0.1),
        route="input",
    )(h)
    last = layers.Dense(CLASSES, "softmax", name="last")(layers.Flatten()(h))
    model = kd.DynamicModel(inputs, [first, last], exit_rule=rules.MaxProbability(0.42))
    return model, numbers(rng, ROWS, 4, 4), None


MODELS = (images, tokens, margins, patient, selected, layerwise, gated, experts)


def answers(model, x):
    """What has to stay: all that the two roads say of some inputs."""
    dense = model.predict(x, verbose=0)
    dense = dense if isinstance(dense, list) else [dense]
    p = model.predict_dynamic(x, verbose=0)
    found = {f"predict_{number}": part for number, part in enumerate(dense)}
    found |= {name: getattr(p, name) for name in ("outputs", "confidence", "cost")}
    found |= {"exit_index": p.exit_index, "exit_costs": model.exit_costs}
    found["exit_thresholds"] = model.exit_thresholds.numpy()
    found["calibration_temperatures"] = model.calibration_temperatures.numpy()
    return found


def check_decided(model, x, found):
    """No exit, gate or expert may hang on a last digit."""
    if x.dtype.kind != "f":
        return
    for shift in (1e-4, -1e-4):
        near = answers(model, x + np.float32(shift))
        for name in ("exit_index", "cost"):
            np.testing.assert_array_equal(near[name], found[name], model.name)
        np.testing.assert_allclose(near["outputs"], found["outputs"], atol=0.02)


def compress(path):
    """HDF5 is mostly zeros, which Keras stores as they are. The parts stay the same."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


def make(folder):
    folder.mkdir()
    arrays, facts = {}, {}
    for number, build in enumerate(MODELS):
        keras.backend.clear_session()
        keras.utils.set_random_seed(number)
        model, x, report = build(np.random.default_rng(number))
        name, found = build.__name__, answers(model, x)
        check_decided(model, x, found)
        model.save(folder / f"{name}.keras")
        compress(folder / f"{name}.keras")
        if report is not None:
            model.save_weights(folder / f"{name}.weights.h5")
            report.save(folder / f"{name}.json")
        arrays |= {f"{name}/{key}": value for key, value in found.items()}
        arrays[f"{name}/x"] = x
        facts[name] = {"rule": repr(model.exit_rule), "exit_names": model.exit_names}
    np.savez_compressed(folder / "answers.npz", **arrays)
    (folder / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    make(ROOT / kd.__version__.rpartition(".")[0])
