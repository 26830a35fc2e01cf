"""Trains small models with every layer of the package, alone or as one of two workers.

    python -m tests.models.worker FILE

With `TF_CONFIG` in the environment, as TensorFlow defines it, it is one of several
workers that train together. What came of it is written to a JSON file.
"""

import json
import os
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import keras_dynamic as kd
from keras_dynamic.models.several_workers import SeveralWorkers

CLASSES, EPOCHS, BATCH = 4, 2, 16


class Model(SeveralWorkers, keras.Model):
    """Any functional model, for layers without exits."""


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 6)).astype("float32")
    return x, (x[:, :CLASSES] @ rng.normal(size=(CLASSES, CLASSES))).argmax(axis=1)


def exits(**kwargs):
    inputs = keras.Input((6,))
    h = layers.Dense(8, "relu")(inputs)
    early = kd.EarlyExit(CLASSES, loss_weight=0.5, name="exit_1")(h)
    final = layers.Dense(CLASSES, "softmax", name="final")(layers.Dense(8, "relu")(h))
    if kwargs:
        kwargs = {"selector": kwargs["selector"](h)}
    return kd.DynamicModel(inputs, [early, final], **kwargs)


def selected():
    return exits(
        selector=kd.ExitSelector(2, "soft", exit_costs="auto", cost_weight=0.1)
    )


def layerwise():
    selector = kd.LayerwiseSelector(2, "soft", exit_costs="auto", cost_weight=0.1)
    return exits(selector=lambda features: selector([features]))


def with_layers(estimator="soft", gate_estimator="straight_through"):
    """A classifier with every other layer of the package within."""
    chosen = {"estimator": estimator, "seed": 0}
    inputs = keras.Input((6,))
    h = layers.Dense(8)(inputs)
    # Names of their own, since they stand in the logs.
    h = kd.SkipGate(
        layers.Dense(8), gate_estimator, initial_open_rate=0.5, seed=0, name="gate"
    )(h)
    h = kd.BlendedActivation(["relu", "tanh"], **chosen, name="blend")(h)
    both = [layers.Dense(8), layers.Dense(8, "tanh")]
    h = kd.LayerChoice(both, entropy_weight=0.1, **chosen, name="choice")(h)
    h = layers.Multiply()([h, kd.GumbelSoftmax(**chosen)(layers.Dense(8)(h))])
    weights = {"balance_weight": 0.1, "z_weight": 0.01}
    experts = kd.SparseMoE(3, 8, noise_stddev=0.0, **weights, name="mixture")
    h = layers.Flatten()(experts(layers.Reshape((2, 4))(h)))
    return Model(inputs, layers.Dense(CLASSES, "softmax", name="final")(h))


def noisy():
    return with_layers("gumbel_softmax", "gumbel_straight_through")


MODELS = {
    "exits": exits,
    "selected": selected,
    "layerwise": layerwise,
    "layers": with_layers,
    "noisy": noisy,
}


def trained(make, strategy):
    """What came of a model: history, weights, answers."""
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = make()
        model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    x, y = data()
    if make is selected:  # from arrays, the others from a data set
        given = {"x": x, "y": y, "batch_size": BATCH, "validation_data": (x, y)}
    else:
        batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)
        given = {"x": batches, "validation_data": batches}
    history = model.fit(**given, epochs=EPOCHS, shuffle=False, verbose=0)
    results = {
        "history": history.history,
        "weights": [weight.tolist() for weight in model.get_weights()],
    }
    if isinstance(model, kd.DynamicModel):
        report = model.calibrate(x, y, max_accuracy_drop=0.5)
        p = model.predict_dynamic(x, batch_size=BATCH, verbose=0)
        results["mean_cost"] = [report.mean_cost, p.mean_cost]
        results["exit_index"] = p.exit_index.tolist()
    return results


def by_keras_alone(strategy):
    """The error of `fit` of a plain model, None where there is none."""
    with strategy.scope():
        inputs = keras.Input((6,))
        model = keras.Model(inputs, layers.Dense(CLASSES, "softmax")(inputs))
        model.compile("adam", "sparse_categorical_crossentropy")
    try:
        model.fit(tf.data.Dataset.from_tensor_slices(data()).batch(BATCH), verbose=0)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def main(file):
    if "TF_CONFIG" in os.environ:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
        results = {"by_keras_alone": by_keras_alone(strategy)}
    else:
        strategy, results = tf.distribute.get_strategy(), {}
    for name, make in MODELS.items():
        results[name] = trained(make, strategy)
    Path(file).write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
