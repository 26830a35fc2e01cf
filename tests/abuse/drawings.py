"""The entries of `kd.plots`: the records that they compute, and a drawing now and then.

A drawing takes a tenth of a second, so it is made for one answer in twenty.
"""

import functools
import math

import keras
import numpy as np
from matplotlib import pyplot

import keras_dynamic as kd
from tests.abuse import drawing as d
from tests.abuse.judging import Entry
from tests.abuse.models import (
    BATCH,
    CLASSES,
    NO_RULE,
    X,
    Y,
    gated,
    no_labels,
    plain,
    selected,
)
from tests.abuse.surgery import choosing, network

p = kd.plots
COUNTER = {"drawn": 0}


def drawn(record, **arguments):
    COUNTER["drawn"] += 1
    if COUNTER["drawn"] % 20 == 1:
        record.plot()
        pyplot.close("all")


NO_MODEL = d.of("nonsense", 3, True, [], 0.5, None, *d.JUNK)


def model(*makers, wrong=()):
    strangers = [lambda r, make=make: make() for make in wrong]
    return d.Kind(lambda r: r.choice(makers)(), d.any_of(NO_MODEL, *strangers))


DATA = d.Kind(
    d.of(X, X[:3]),
    d.of(None, "nonsense", d.NOTHING, {}, [], X[:0], X[:, :2], X[0], 3, True),
)


def labelled(makers, wrong=(), **others):
    """Arguments (model, x, y, batch_size) and others."""

    def arguments(r):
        rows = r.choice([1, 3, 8])
        given = {"model": r.choice(makers)(), "x": X[:rows], "y": Y[:rows]}
        given["batch_size"] = BATCH.right(r)
        given |= {key: kind.right(r) for key, kind in others.items()}
        if r.random() < 0.5:
            return given, False
        key = r.choice(list(given))
        kinds = {"model": model(*makers, wrong=wrong), "x": DATA, "batch_size": BATCH}
        if key == "y":
            given[key] = no_labels(r, rows)
        else:
            given[key] = (kinds | others)[key].wrong(r)
        return given, None if key == "y" else True

    return arguments


HISTORY = {
    "val_exit_0_rate": [0.2, 0.5],
    "val_exit_1_rate": [0.8, 0.5],
    "val_mean_cost": [0.9, 0.7],
    "val_dynamic_accuracy": [0.80, 0.85],
    "moe_load_0": [0.9, math.nan],
    "moe_load_1": [0.1, 0.4],
}
LOGS = d.Kind(d.of(HISTORY), d.of(None, 3, "nonsense", [], {}, {"a": [1]}, d.NOTHING))
BINS = d.required(d.integer(1))
FLAG = d.required(d.boolean())
NAMES = d.Kind(d.of(None, list("abcd")), d.of([], ["a"], 3, d.NOTHING, True))
RULE = d.Kind(d.of(None, "entropy", kd.rules.Margin(0.3)), NO_RULE)


@functools.cache
def pictures():
    keras.utils.set_random_seed(5)
    inputs = keras.Input((4, 4, 3))
    first = kd.EarlyExit(3)(inputs)
    hidden = kd.SparseMoE(2, hidden_units=4, name="moe")(inputs)
    final = keras.layers.Flatten()(hidden)
    final = keras.layers.Dense(3, "softmax")(final)
    return kd.DynamicModel(inputs, [first, final])


def load_by_class(model, x, y, layer, **arguments):
    return p.expert_load_by_class(model, layer, x, y, **arguments)


IMAGES = np.random.default_rng(0).normal(size=(4, 4, 4, 3)).astype("float32")


def simplex(r):
    given = {
        "logits": None,
        "probabilities": r.choice([[0.6, 0.3, 0.1], (1.0, 0.0, 0.0)]),
        "temperatures": r.choice([1.0, (5.0, 0.5), [0.1]]),
        "num_samples": r.randint(1, 9),
        "estimator": "gumbel_softmax",
        "seed": 0,
    }
    if r.random() < 0.3:
        given["probabilities"] = None
        given["logits"] = d.floats(r, (3,), 0, dtypes=(np.float32, np.float64))
    if r.random() < 0.5:
        return given, False
    wrong = {
        "logits": [[1.0], "abc", [math.nan] * 3, d.NOTHING, [math.inf] * 3, {}, [None]],
        "probabilities": [[0.5, 0.5], [1.0, 1.0, 1.0], [math.nan] * 3, "abc", {}, [1j]],
        "temperatures": [0.0, -1.0, [], [math.nan], "a", None, d.NOTHING, [[1.0]], {}],
        "num_samples": [0, -1, 2.5, True, None, "3", d.NOTHING],
        "estimator": ["soft", "nonsense", None, 3, [], d.NOTHING],
        "seed": ["a", 2.5, [], d.NOTHING],
    }
    key = r.choice([k for k in wrong if given[k] is not None])
    given[key] = r.choice(wrong[key])
    return given, True


ENTRIES = [
    Entry(
        "plots.exit_rates",
        p.exit_rates,
        {
            "history": LOGS,
            "update_freq": d.required(d.integer(1)),
            "metric": d.Kind(d.of("accuracy"), d.of("nonsense", None, 3, [])),
        },
        drawn,
    ),
    Entry(
        "plots.expert_load",
        p.expert_load,
        {
            "history": LOGS,
            "layer": d.Kind(d.of("moe"), d.of("nobody", None, 3, [], d.NOTHING)),
            "prefix": d.Kind(d.of(""), d.of("val_", None, 3, [])),
        },
        drawn,
    ),
    Entry(
        "plots.expert_load_by_class",
        load_by_class,
        labelled(
            [gated],
            [plain],
            layer=d.Kind(d.of("moe"), d.of("nobody", "gate", None, 3, [], d.NOTHING)),
            class_names=NAMES,
        ),
        drawn,
    ),
    Entry(
        "plots.gates_by_class",
        p.gates_by_class,
        labelled([gated], [plain], class_names=NAMES, probability=FLAG),
        drawn,
    ),
    Entry(
        "plots.accuracy_cost",
        p.accuracy_cost,
        labelled(
            [plain, gated],
            [network],
            rule=RULE,
            num_settings=d.Kind(
                d.of(2, 5), d.of(0, -1, 2.5, True, None, "3", math.nan, *d.JUNK)
            ),
        ),
        drawn,
        slow=True,
    ),
    Entry(
        "plots.confidence_histograms",
        p.confidence_histograms,
        labelled(
            [plain, gated], [network], rule=RULE, reached_only=FLAG, num_bins=BINS
        ),
        drawn,
    ),
    Entry(
        "plots.reliability",
        p.reliability,
        labelled([plain, gated], [network], reached_only=FLAG, num_bins=BINS),
        drawn,
    ),
    Entry(
        "plots.exit_selection",
        p.exit_selection,
        labelled([selected], [plain, network], class_names=NAMES),
        drawn,
    ),
    Entry(
        "plots.samples_by_exit",
        p.samples_by_exit,
        {
            "model": model(pictures, wrong=[plain]),
            "images": d.Kind(
                d.of(IMAGES, IMAGES[:1]), d.of(None, "nonsense", X, d.NOTHING, 3, [])
            ),
            "y": d.Kind(d.of(None), d.of("abc", np.ones(3), 3)),
            "per_exit": d.required(d.integer(1)),
            "class_names": d.free(None, list("abc")),
            "rule": RULE,
            "batch_size": BATCH,
        },
        drawn,
    ),
    Entry(
        "plots.patch_experts",
        p.patch_experts,
        {
            "model": model(pictures, wrong=[plain]),
            "layer": d.Kind(d.of("moe"), d.of("nobody", None, 3, [], d.NOTHING)),
            "images": d.Kind(
                d.of(IMAGES),
                d.of(None, "nonsense", IMAGES[:0], X, d.NOTHING, 3, []),
            ),
            "grid": d.Kind(d.of(None, (4, 4)), d.of(3, (2,), "ab", (0, 4), (5, 4), [])),
        },
        may_refuse=True,
    ),
    Entry(
        "plots.blend",
        p.blend,
        {
            "layer_or_model": model(choosing, wrong=[plain]),
            "limits": d.Kind(
                d.of((-4.0, 4.0), [0, 1]),
                d.of(
                    None, 3, (1.0,), (2.0, 1.0), (1.0, 1.0), (math.nan, 1.0), "ab", []
                ),
            ),
        },
        drawn,
    ),
    Entry(
        "plots.layer_choices",
        p.layer_choices,
        {"layer_or_model": model(choosing, wrong=[plain])},
        drawn,
    ),
    Entry(
        "plots.model_diagram",
        p.model_diagram,
        {
            "model": model(plain, gated),
            "logs": d.Kind(d.of(None), d.of(3, "nonsense", d.NOTHING, True)),
            "input_shape": d.Kind(d.of(None, (6,)), d.of("a", 3, (2, 3), d.NOTHING)),
        },
        drawn,
    ),
    Entry("plots.gumbel_simplex", p.gumbel_simplex, simplex, drawn),
]
assert CLASSES == 4
