"""The entries of `kd.callbacks` and `kd.tuning`."""

import functools
import math
import tempfile

import keras
import keras_tuner
import numpy as np
import tensorflow as tf

import keras_dynamic as kd
from tests.abuse import drawing as d
from tests.abuse.calibration import same
from tests.abuse.judging import Entry
from tests.abuse.models import BATCH, NO_RULE, X, Y, plain

t = kd.tuning
PAIRS = d.Kind(
    d.of((X, Y), [X, Y]),
    d.of((X,), (X, Y, Y), X, iter([1]), None, "nonsense", 3, 2.5, *d.JUNK[:5]),
)
GOALS = {
    "budget": d.optional(d.number(0, above=True)),
    "max_accuracy_drop": d.optional(d.number(0, 1, below=True)),
}


@functools.cache
def tempered():
    keras.utils.set_random_seed(5)
    inputs = keras.Input((6,))
    choice = kd.GumbelSoftmax(2.0, "soft", name="choice")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2)(choice))
    model.compile("sgd", "mse")
    return model


def begun(callback, model):
    """A callback at the first step of a training."""
    callback.set_model(model)
    callback.set_params({"steps": 1, "epochs": 1})
    callback.on_train_begin()
    callback.on_epoch_begin(0)
    callback.on_train_batch_begin(0)
    logs = {}
    callback.on_epoch_end(0, logs)
    callback.on_train_end()
    return logs


VALUES = d.Kind(
    d.any_of(
        lambda r: r.random() + 0.01,
        d.of(1, np.float32(0.5), np.array([0.5]), tf.constant(0.5), np.float64(3)),
    ),
    d.of(None, math.nan, math.inf, -1.0, "0.5", True, [], [0.5], np.ones(2), *d.JUNK),
)
FREQUENCY = d.name("batch", "epoch", wrong=(None,))
VERBOSE = d.free(0)
SCHEDULE = d.Kind(
    d.of(lambda step: 0.5, keras.optimizers.schedules.ExponentialDecay(1.0, 2, 0.5)),
    d.of(None, 3, 0.5, "nonsense", [], d.NOTHING, 1j, b"bytes"),
)
LAYERS = d.Kind(
    d.of(None, ["choice"], ("choice",)), d.of("choice", [], [3], 3, [None], d.NOTHING)
)


def temperatures(value, update_freq):
    callback = kd.callbacks.TemperatureSchedule(lambda step: value, update_freq)
    return begun(callback, tempered())


def weights(value, update_freq):
    callback = kd.callbacks.LossWeightSchedule(lambda step: value, update_freq)
    return begun(callback, plain())


def check_logged(answer, value, update_freq):
    same(next(iter(answer.values())), float(np.asarray(value).item()), 1e-6)


@functools.cache
def folder():
    return tempfile.mkdtemp(prefix="keras_dynamic_abuse_")


def board(data, data_freq, batch_size, log_dir):
    log_dir = folder() if log_dir == "logs" else log_dir
    return kd.callbacks.TensorBoard(log_dir, data, data_freq, batch_size)


def validated(**arguments):
    callback = kd.callbacks.DynamicValidation(**arguments)
    callback.set_model(plain())
    callback.on_train_begin()
    return callback


def searched(function):
    """A hyperparameter in a search of its own."""

    def call(**arguments):
        hp = keras_tuner.HyperParameters()
        hp = arguments.pop("hp") if "hp" in arguments else hp
        return function(hp, **arguments)

    return call


def ranged(kind, highest=10.0, **layer):
    """Arguments (layer, min_value, max_value, default), which have to fit."""
    numbers = d.number(1e-4, highest)

    def arguments(r):
        low, high = sorted(
            float(np.round(r.uniform(1e-3, highest), 4)) for _ in range(2)
        )
        given = {
            "layer": "a_layer",
            "min_value": low,
            "max_value": high + 1e-2 if highest > 1 else min(high + 1e-2, 1.0),
            "default": r.choice([None, (low + high) / 2]),
        }
        given = {
            ("exit" if kind == "exit" and k == "layer" else k): v
            for k, v in given.items()
        }
        wrong = r.random() < 0.5
        if wrong:
            key = r.choice(list(given))
            given[key] = {
                "min_value": d.of(0, -1, high + 1, math.nan, math.inf, True, "1", []),
                "max_value": d.of(0, -1, low / 2, math.nan, math.inf, True, "1", None),
                "default": d.of(1e9, -1, math.nan, math.inf, True, "1", [], d.NOTHING),
            }.get(key, d.of(3, [], 0.5, True, *d.JUNK))(r)
        return given, wrong

    del numbers
    return arguments


def check_in_range(answer, min_value, max_value, default, **layer):
    assert isinstance(answer, float) and min_value <= answer <= max_value
    if default is not None:
        same(answer, default, 1e-6)


def scored(cls, goal):
    def call(accuracy, mean_cost, value, penalty):
        return cls(value, penalty).score(accuracy, mean_cost)

    def check(answer, accuracy, mean_cost, value, penalty):
        if goal == "budget":
            expected = accuracy - penalty * max(0, mean_cost - value)
        else:
            expected = mean_cost + penalty * max(0, value - accuracy)
        same(answer, float(expected), 1e-6)

    return call, check


def objective(cls):
    name = cls.__name__
    goal = "budget" if cls is t.AccuracyUnderBudget else "min_accuracy"
    top = math.inf if goal == "budget" else 1
    call, check = scored(cls, goal)
    return [
        Entry(
            f"tuning.{name}",
            cls,
            {
                goal: d.required(d.number(0, top, above=True)),
                "penalty": d.required(d.number(0)),
                "metric": d.Kind(
                    d.of("accuracy", "acc"), d.of(None, 3, [], True, *d.JUNK)
                ),
            },
        ),
        Entry(
            f"tuning.{name}.score",
            call,
            {
                "accuracy": d.free(0.0, 0.5, 1.0),
                "mean_cost": d.free(0.2, 1.0, 1.3),
                "value": d.number(0, top, above=True),
                "penalty": d.number(0),
            },
            check,
        ),
    ]


PAIR = d.Kind(
    d.of((1.0, 5.0), [0.5, 2]),
    d.of(None, (1.0,), (2.0, 1.0), (0.0, 1.0), (1.0, math.nan), ("a", "b"), 3, "ab"),
)


def build(hp):
    raise AssertionError("nobody builds")


ENTRIES = [
    Entry(
        "callbacks.DynamicValidation",
        validated,
        {
            "calibration_data": PAIRS,
            "validation_data": PAIRS,
            "rule": d.Kind(d.of(None, "entropy", kd.rules.Margin(0.5)), NO_RULE),
            **GOALS,
            "batch_size": BATCH,
            "update_freq": d.required(d.integer(1)),
        },
        may_refuse=True,
    ),
    Entry(
        "callbacks.TemperatureSchedule",
        kd.callbacks.TemperatureSchedule,
        {
            "schedule": SCHEDULE,
            "update_freq": FREQUENCY,
            "layers": LAYERS,
            "verbose": VERBOSE,
        },
    ),
    Entry(
        "callbacks.TemperatureSchedule, in fit",
        temperatures,
        {"value": VALUES, "update_freq": d.free("batch", "epoch")},
        check_logged,
    ),
    Entry(
        "callbacks.LossWeightSchedule",
        kd.callbacks.LossWeightSchedule,
        {"schedule": SCHEDULE, "update_freq": FREQUENCY, "verbose": VERBOSE},
    ),
    Entry(
        "callbacks.LossWeightSchedule, in fit",
        weights,
        {"value": VALUES, "update_freq": d.free("batch", "epoch")},
        check_logged,
    ),
    Entry(
        "callbacks.TensorBoard",
        board,
        {
            "data": d.Kind(d.of(None, X), d.of(iter([1]))),
            "data_freq": d.required(d.integer(1)),
            "batch_size": BATCH,
            "log_dir": d.Kind(d.of("logs"), d.of(None, 3, [], True, *d.JUNK[:4])),
        },
    ),
    *(
        Entry(
            f"tuning.{kind}",
            searched(getattr(t, kind)),
            ranged("exit" if kind == "loss_weight" else kind),
            check_in_range,
        )
        for kind in (
            *("balance_weight", "cost_weight", "entropy_weight", "loss_weight"),
            *("prior_weight", "rate_weight", "temperature", "z_weight"),
        )
    ),
    Entry(
        "tuning.target_rate",
        searched(t.target_rate),
        ranged("target_rate", highest=0.9),
        check_in_range,
    ),
    *objective(t.AccuracyUnderBudget),
    *objective(t.CostUnderAccuracy),
    Entry(
        "tuning.temperature_schedule",
        searched(t.temperature_schedule),
        {
            "decay_steps": d.required(d.integer(1)),
            "layers": LAYERS,
            "update_freq": FREQUENCY,
            "initial": PAIR,
            "final": PAIR,
            "name": d.Kind(d.of("schedule", "other"), d.of(None, 3, [], *d.JUNK)),
        },
    ),
    Entry(
        "tuning.DynamicHyperModel",
        t.DynamicHyperModel,
        {
            "build": d.Kind(d.of(build), d.of(None, 3, "nonsense", [], d.NOTHING)),
            "calibration_data": PAIRS,
            "validation_data": PAIRS,
            "objective": d.Kind(
                d.of(t.AccuracyUnderBudget(0.5)),
                d.of(None, 3, "val_loss", [], t.AccuracyUnderBudget, d.NOTHING),
            ),
            "rule": d.Kind(d.of(None, "entropy"), NO_RULE),
            "callbacks": d.Kind(d.of(None, lambda hp: []), d.of(3, "a", [], d.NOTHING)),
            "batch_size": BATCH,
        },
    ),
    Entry(
        "tuning.pareto",
        t.pareto,
        lambda r: (
            {"tuner": r.choice([None, 3, "nonsense", [], plain(), *d.JUNK])},
            True,
        ),
    ),
]
