"""The functions that make models from models: `DynamicModel`, `kd.add_exits`, ..."""

import functools
import math

import keras
import numpy as np

import keras_dynamic as kd
from tests.abuse import drawing as d
from tests.abuse.calibration import same
from tests.abuse.judging import Entry
from tests.abuse.models import BATCH, FEATURES, NO_RULE, gated, no_features, plain

X = np.random.default_rng(0).normal(size=(5, FEATURES)).astype("float32")


@functools.cache
def network():
    """A plain network of six layers."""
    keras.utils.set_random_seed(5)
    layers = [keras.layers.Dense(8, "tanh", name=f"dense_{k}") for k in range(5)]
    layers.append(keras.layers.Dense(3, "softmax", name="answer"))
    return keras.Sequential([keras.Input((FEATURES,)), *layers])


@functools.cache
def choosing():
    keras.utils.set_random_seed(5)
    inputs = keras.Input((FEATURES,))
    choice = kd.LayerChoice([keras.layers.Dense(4), keras.layers.Dense(4, "relu")])
    hidden = kd.BlendedActivation(["relu", "tanh"])(choice(inputs))
    hidden = kd.SkipGate(keras.layers.Dense(4), cost_weight=0.1)(hidden)
    return keras.Model(inputs, keras.layers.Dense(3)(hidden))


subclassed = keras.Model()
NO_MODEL = d.of("nonsense", 3, True, [], 0.5, keras.layers.Dense(2), *d.JUNK)
NO_MODEL = d.any_of(NO_MODEL, d.of(subclassed, keras.Sequential(), None))


def model(*makers):
    return d.Kind(lambda r: r.choice(makers)(), NO_MODEL)


AT = d.Kind(
    d.of(0.5, (0.3, 0.6), [0.25, 0.5, 0.75], "dense_1", ["dense_1", "dense_3"]),
    d.of(
        (),
        None,
        0,
        1,
        1.5,
        (1.5,),
        (0.5, 0.2),
        -0.1,
        math.nan,
        True,
        "nobody",
        ["dense_3", "dense_1"],
        ["dense_1", "dense_1"],
        [None],
        (0.5, 0.5),
        "answer",
        *d.JUNK,
    ),
)
UNITS = d.Kind(d.of(None, 3), d.of(0, -1, 2.5, True, "3", [], math.nan, *d.JUNK))
SHAPE = d.Kind(
    d.of(None, (FEATURES,)),
    d.of((3,), (), (2, 3), "a", 3, True, (-1,), ("a",), {"a": 1}, d.NOTHING),
)


def check_same_answer(answer, model, **arguments):
    """The last output of the new model is the old one's."""
    new = np.asarray(_last(answer(X, training=False)))
    same(new, np.asarray(_last(model(X, training=False))), 1e-4)


def check_same_last(answer, model):
    """Of several outputs the last that is an exit's."""
    if model is not gated():
        check_same_answer(answer, model)


def _last(outputs):
    return outputs[-1] if isinstance(outputs, (list, tuple)) else outputs


def check_names(answer, model, **arguments):
    assert str(answer)


def halves(model, exit):
    device, server = kd.split(model, exit)
    answers = device(X)
    return answers.completed(server(answers.sent))


def check_halves(answer, model, exit):
    whole = model.predict_dynamic(X, verbose=0)
    np.testing.assert_array_equal(np.asarray(answer.exit_index), whole.exit_index)
    same(np.asarray(answer.outputs), whole.outputs, 1e-4)


def graphs(r):
    """(inputs, outputs, ...) of a `DynamicModel`."""
    inputs = keras.Input((4,))
    first = kd.EarlyExit(3)(inputs)
    hidden = keras.layers.Dense(4, "relu")(inputs)
    final = keras.layers.Dense(3, "softmax")(hidden)
    given = {"inputs": inputs, "outputs": [first, final], "exit_rule": None}
    given["selector"] = None
    if r.random() < 0.4:
        given["exit_rule"] = r.choice(["entropy", kd.rules.Margin(0.5)])
        if r.random() < 0.5:
            given |= {"selector": kd.ExitSelector(2)(inputs), "exit_rule": None}
        return given, False
    other = keras.layers.Dense(5, "softmax")(hidden)
    stranger = keras.Input((4,))
    key = r.choice(list(given))
    given[key] = {
        "inputs": d.of(None, [], "nonsense", 3, X, stranger, d.NOTHING, {}),
        "outputs": d.of(
            None,
            [],
            "nonsense",
            3,
            [first, other],
            [first, None],
            [first, "a"],
            [X],
            d.NOTHING,
            {},
            [first, first, [final]],
        ),
        "exit_rule": d.any_of(NO_RULE, d.of(kd.rules.Margin([0.5] * 3), "selected")),
        "selector": d.of("nonsense", 3, first, X, [first], d.NOTHING, False, 0.5),
    }[key](r)
    return given, True


def make(inputs, outputs, **arguments):
    return kd.DynamicModel(inputs, outputs, **arguments)


def make_optimizer(kind):
    return {"adamw": keras.optimizers.AdamW, "sgd": keras.optimizers.SGD}[kind]()


ENTRIES = [
    Entry("DynamicModel", make, graphs, slow=True),
    Entry(
        "add_exits",
        kd.add_exits,
        {
            "model": model(network),
            "at": AT,
            "units": UNITS,
            "exit_rule": d.Kind(d.of(None, "entropy"), NO_RULE),
            "input_shape": SHAPE,
        },
        check_same_answer,
        may_refuse=True,
        slow=True,
    ),
    Entry(
        "suggest_exits",
        kd.suggest_exits,
        {"model": model(network), "units": UNITS, "input_shape": SHAPE},
        check_names,
        slow=True,
    ),
    Entry(
        "strip_exits",
        kd.strip_exits,
        {"model": d.Kind(lambda r: r.choice([plain, network])(), NO_MODEL)},
        check_same_last,
        slow=True,
    ),
    Entry(
        "split",
        halves,
        {
            "model": d.Kind(lambda r: plain(), d.any_of(NO_MODEL, lambda r: network())),
            "exit": d.Kind(
                d.of("exit_1", "exit_2", 0, 1),
                d.of("final", "nobody", 2, -1, 1.5, True, None, [], [0], *d.JUNK),
            ),
        },
        check_halves,
        slow=True,
    ),
    Entry(
        "discretize",
        kd.discretize,
        {
            "model": model(choosing, gated),
            "x": d.Kind(d.of(X), lambda r: no_features_or_rows(r)),
            "batch_size": BATCH,
            "return_report": d.required(d.boolean()),
        },
        slow=True,
    ),
    Entry(
        "upcycle",
        kd.upcycle,
        {
            "model": model(network),
            "layers": d.Kind(
                d.of(["dense_1"], [("dense_1", "dense_2")], ["dense_0"]),
                d.of(
                    *([], None, "dense_1", ["nobody"], ["answer"], [3], [None]),
                    *([("dense_1", "answer")], [("dense_1",)], 3, *d.JUNK),
                ),
            ),
            "num_experts": d.Kind(
                d.of(2, 3), d.of(1, 0, 2.5, True, "2", None, [], math.nan, *d.JUNK)
            ),
            "top_k": d.Kind(
                d.of(2), d.of(1, 0, 9, 2.5, True, "2", None, [], math.nan, *d.JUNK)
            ),
            "router": d.Kind(
                d.of("top_k"), d.of("nonsense", "expert_choice", 3, None, [], *d.JUNK)
            ),
        },
        check_same_answer,
        may_refuse=True,
        slow=True,
    ),
    Entry("bind_costs", kd.bind_costs, {"model": model(choosing, gated, plain)}),
    Entry(
        "exclude_from_weight_decay",
        kd.exclude_from_weight_decay,
        {
            "optimizer": d.Kind(
                lambda r: make_optimizer(r.choice(["adamw", "sgd"])),
                d.of("adam", None, 3, [], keras.optimizers.SGD, *d.JUNK),
            ),
            "model": d.Kind(
                lambda r: r.choice([choosing, gated])(),
                d.of("nonsense", 3, True, [], 0.5, None, *d.JUNK),
            ),
        },
    ),
]


def no_features_or_rows(r):
    wrong = no_features(r)
    return "nonsense" if wrong is None else wrong
