"""Small models that hold, between them, every layer and every loss of the package.

`of_batch`, where a function takes it, is the weight of penalties that are no means over
the samples, but computed from such a mean: 0 leaves those that are.
"""

import functools

import keras
import numpy as np
from keras import layers

import keras_dynamic as kd
from tests.models.worker import CLASSES, Model, data

BATCH = 16


def penalties(of_batch):
    """Those of a selector."""
    return {
        "entropy_weight": 0.1,
        "prior": [0.3, 0.7],
        "prior_weight": 0.5 * of_batch,
        "exit_costs": "auto",
        "cost_weight": 0.1,
        "seed": 0,
    }


def with_exits(activity_regularizer="l2"):
    """An exit on a trunk with penalties of Keras' own."""
    inputs = keras.Input((6,))
    h = layers.Dense(8, "tanh", kernel_regularizer="l2")(inputs)
    h = layers.Dense(8, "relu", activity_regularizer=activity_regularizer)(h)
    early = kd.EarlyExit(CLASSES, hidden_units=8, loss_weight=0.5, name="exit_1")(h)
    final = layers.Dense(CLASSES, "softmax", name="final")(layers.Dense(8, "relu")(h))
    return kd.DynamicModel(inputs, [early, final])


def with_targets():
    """An exit that adds its loss by itself, in a model that knows nothing of exits."""
    inputs, targets = keras.Input((6,)), keras.Input((), dtype="int32")
    h = layers.Dense(8, "tanh")(inputs)
    early = kd.EarlyExit(CLASSES, loss_weight=0.5, name="exit_1")
    h = layers.Concatenate()([h, early(h, targets=targets)])
    final = layers.Dense(CLASSES, "softmax", name="final")(h)
    return Model([inputs, targets], final)


def layerwise(estimator="soft", of_batch=1.0):
    """A selector that asks layer by layer, and a mixture of all experts."""
    selector = kd.LayerwiseSelector(2, estimator, **penalties(of_batch))
    inputs = keras.Input((6,))
    h = layers.Dense(8, "tanh")(inputs)
    early = kd.EarlyExit(CLASSES, loss_weight=0.5, name="exit_1")(h)
    weight, noise = 0.1 * of_batch, 0.0 if estimator == "soft" else 1.0
    experts = kd.SparseMoE(
        2,
        4,
        router="dense",
        balance_weight=weight,
        noise_stddev=noise,
        seed=0,
        name="all_experts",
    )
    final = layers.Dense(CLASSES, "softmax", name="final")(experts(h))
    return kd.DynamicModel(inputs, [early, final], selector=selector([h]))


def all_others(
    estimator="soft", gate_estimator="straight_through", noise=0.0, of_batch=1.0
):
    """All other layers, and all losses of mixtures.

    The capacity has room for every token, so that nothing is dropped on any road.
    """
    chosen = {"estimator": estimator, "seed": 0}
    inputs = keras.Input((6,))
    h = layers.Dense(8, "tanh")(inputs)
    selector = kd.ExitSelector(2, estimator, hidden_units=4, **penalties(of_batch))
    weights = selector(h)
    h = kd.SkipGate(
        layers.Dense(8),
        gate_estimator,
        target_rate=0.5,
        rate_weight=of_batch,
        cost_weight=0.1,
        initial_open_rate=0.5,
        seed=0,
        name="gate",
    )(h)
    h = kd.BlendedActivation(["relu", "tanh"], name="blend", **chosen)(h)
    both = [layers.Dense(8), layers.Dense(8, "tanh")]
    priced = {"entropy_weight": 0.1, "costs": [1.0, 2.0], "cost_weight": 0.1}
    h = kd.LayerChoice(both, name="choice", **priced, **chosen)(h)
    early = kd.EarlyExit(CLASSES, name="exit_1")(h)
    h = kd.GumbelSoftmax(name="gumbel", **chosen)(h)
    losses = ["kl", "importance", "switch", *(["load"] if noise else [])]
    h = kd.SparseMoE(
        2,
        4,
        noise_stddev=noise,
        balance_loss=losses,
        balance_weight=[0.1 * of_batch] * len(losses),
        z_weight=0.01,
        capacity_factor=2.0,
        seed=0,
        name="tokens_choose",
    )(layers.Reshape((2, 4))(h))
    h = kd.SparseMoE(
        2,
        4,
        router="expert_choice",
        balance_weight=0.1 * of_batch,
        noise_stddev=noise,
        seed=0,
        name="experts_choose",
    )(h)
    final = layers.Dense(CLASSES, "softmax", name="final")(layers.Flatten()(h))
    return kd.DynamicModel(inputs, [early, final], selector=weights)


def noisy_layerwise():
    return layerwise("gumbel_straight_through")


def noisy():
    return all_others("gumbel_softmax", "gumbel_straight_through", noise=1.0)


WITHOUT_NOISE = {
    "exits": with_exits,
    "targets": with_targets,
    "layerwise": layerwise,
    "all others": all_others,
}
MODELS = {**WITHOUT_NOISE, "noisy layerwise": noisy_layerwise, "noisy": noisy}


def feed(name, rows=None):
    """(x, y) for the model of that name."""
    x, y = data()
    x, y = x[:rows], y[:rows].astype("int32")
    return ([x, y] if name == "targets" else x), y


def compiled(name, optimizer=None, make=None, **kwargs):
    """The model of that name, always with the same weights to begin with."""
    keras.utils.set_random_seed(0)
    model = (make or MODELS[name])()
    if name == "exits":
        kwargs = {"distillation_weight": 0.3, **kwargs}
    if optimizer is None:
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=0.01)
    model.compile(
        optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"], **kwargs
    )
    return model


def schedules(name):
    """Callbacks that change weights of the package's layers from epoch to epoch."""
    if name == "targets":
        return []
    if name == "exits":
        weights = {"exit_1": lambda epoch: 0.5 + 0.2 * epoch}
        return [kd.callbacks.LossWeightSchedule(weights, "epoch")]
    return [kd.callbacks.TemperatureSchedule(lambda epoch: 2.0 / (1 + epoch), "epoch")]


def fitted(model, name, batch_size=BATCH, rows=None, callbacks=(), **kwargs):
    """Trains for two epochs; returns the logs, a dict of lists."""
    x, y = feed(name, rows)
    return model.fit(
        x,
        y,
        batch_size,
        **{"epochs": 2, **kwargs},
        shuffle=False,
        verbose=0,
        callbacks=[*schedules(name), *callbacks],
    ).history


@functools.cache
def plainly(name):
    """(model, logs) of the usual way: a compiled function for each step."""
    model = compiled(name)
    return model, fitted(model, name)


def improves(logs):
    losses = logs["final_loss" if "final_loss" in logs else "loss"]
    return np.isfinite(losses).all() and losses[-1] < losses[0]


def same_training(model, logs, other, other_logs, tolerance=1e-5):
    """Checks that two models have the same logs and, all of them, weights."""
    assert logs.keys() == other_logs.keys()
    for key, values in other_logs.items():
        same(logs[key], values, key, tolerance)
    for weight, wanted in zip(model.weights, other.weights, strict=True):
        same(weight.numpy(), wanted.numpy(), wanted.path, tolerance)


def same(found, expected, message, tolerance=1e-5):
    np.testing.assert_allclose(
        found, expected, rtol=tolerance, atol=tolerance, err_msg=message
    )
