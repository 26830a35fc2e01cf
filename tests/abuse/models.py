"""`DynamicModel` and its methods: whatever is fed, against the dense road by hand."""

import functools
import math

import keras
import numpy as np

import keras_dynamic as kd
from tests.abuse import drawing as d
from tests.abuse.calibration import same
from tests.abuse.judging import Entry
from tests.models.small_models import dense_data, dense_model

FEATURES, CLASSES = 6, 4


@functools.cache
def plain():
    """Three exits, two classes of them sure of themselves, compiled."""
    keras.utils.set_random_seed(5)
    model = dense_model()
    for weight in model.trainable_weights:
        weight.assign(3 * weight)
    return model


@functools.cache
def gated():
    """A gate and a mixture on the way to the last of two exits."""
    keras.utils.set_random_seed(5)
    inputs = keras.Input((FEATURES,))
    first = kd.EarlyExit(CLASSES, name="exit_1")(inputs)
    gate = kd.SkipGate(keras.layers.Dense(FEATURES, "tanh"), name="gate")
    hidden = gate(keras.layers.Dense(FEATURES)(inputs))
    hidden = kd.SparseMoE(3, hidden_units=4, name="moe")(hidden)
    final = keras.layers.Dense(CLASSES, "softmax", name="final")(hidden)
    model = kd.DynamicModel(inputs, [first, final])
    gate.decider.classifier.kernel.assign(
        np.random.default_rng(0).normal(size=gate.decider.classifier.kernel.shape)
    )
    gate.decider.classifier.bias.assign([0.0])
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


@functools.cache
def selected():
    """A selector chooses among two exits."""
    keras.utils.set_random_seed(5)
    inputs = keras.Input((FEATURES,))
    weights = kd.ExitSelector(2)(inputs)
    first = kd.EarlyExit(CLASSES, name="exit_1")(inputs)
    hidden = keras.layers.Dense(8, "tanh")(inputs)
    final = keras.layers.Dense(CLASSES, "softmax", name="final")(hidden)
    model = kd.DynamicModel(inputs, [first, final], selector=weights)
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


MODELS = {"plain": plain, "gated": gated, "selected": selected}


def features(r):
    rows = d.rows(r, 0, 1, 1, 2, 5, 12)
    dtypes = (np.float32, np.float32, np.float64, np.float16)
    return d.floats(r, (rows, FEATURES), scale=1.0, dtypes=dtypes)


def no_features(r):
    kind = r.random()
    if kind < 0.3:
        return d.floats(r, (r.choice([0, 1, 3]), r.choice([0, FEATURES + 1])))
    if kind < 0.6:
        shape = d.shape_of(r, (0, 1, 3, 4), (1, 2, 3))
        return d.floats(r, shape)
    wrong = [None, "nonsense", d.NOTHING, [], {}, 3, 2.5, 1j, [None], {"a": None}]
    wrong += [np.array([["a"] * FEATURES]), np.full((2, FEATURES), None), True]
    wrong += [[np.zeros((2, FEATURES), np.float32)] * 2, range(0)]
    return r.choice(wrong)


BATCH = d.optional(d.integer(1, 40))
BATCH = d.Kind(
    d.of(None, 1, 2, 3, 32), d.of(0, -1, 2.5, True, "2", [], [2], math.nan, *d.JUNK)
)
STEPS = d.Kind(d.of(None), d.of(0, -1, 2.5, True, "2", [], math.nan, *d.JUNK))
NO_RULE = d.of("nonsense", "", 3, True, [], 0.5, kd.rules.Margin, *d.JUNK)


def a_rule(r, early):
    """A rule with thresholds for so many early exits."""
    name = r.choice(["MaxProbability", "Entropy", "Margin", "Patience"])

    def one():
        if r.random() < 0.15:
            return None
        if name == "Patience":
            return r.randint(1, 3)
        return r.choice([0.0, 0.3, 0.5, 0.8, 1.0])

    values = [one() for _ in range(early)]
    return getattr(kd.rules, name)(r.choice([values, one()]))


def predictions(r):
    which = r.choice(["plain", "plain", "gated", "selected"])
    early = {"plain": 2, "gated": 1, "selected": 1}[which]
    ruled = which != "selected" and r.random() < 0.8
    given = {
        "model": which,
        "x": features(r),
        "batch_size": BATCH.right(r),
        "steps": None,
        "rule": a_rule(r, early) if ruled else None,
    }
    if r.random() < 0.6:
        return given, False
    key = r.choice(["x", "x", "batch_size", "steps", "rule"])
    rules = [NO_RULE, d.of(kd.rules.Margin([0.5] * 4), "selected")]
    if which == "selected":
        rules = [NO_RULE]
    given[key] = {
        "x": no_features,
        "batch_size": BATCH.wrong,
        "steps": STEPS.wrong,
        "rule": r.choice(rules),
    }[key](r)
    if key in ("batch_size", "steps") and not len(given["x"]):
        given["x"] = np.zeros((1, FEATURES), np.float32)
    return given, True


def predict(model, x, batch_size, steps, rule):
    return MODELS[model]().predict_dynamic(
        x, batch_size=batch_size, steps=steps, rule=rule, verbose=0
    )


def stream(model, x, batch_size, steps, rule):
    return list(
        MODELS[model]().stream_dynamic(x, batch_size=batch_size, steps=steps, rule=rule)
    )


def by_hand(model, x, rule):
    """(exit, output, whether it is certain) of each row, from all outputs."""
    exits, outputs, sure = _by_hand(model, x, rule)
    # Near the end of float32 the order of a sum decides whether it overflows: Keras'
    # `predict` gives NaN for rows that the same model, called, answers.
    sizes = np.abs(np.asarray(x, np.float32))
    return exits, outputs, sure & ~(np.isfinite(sizes) & (sizes > 1e36)).any(axis=1)


def _by_hand(model, x, rule):
    network = MODELS[model]()
    x = np.asarray(x, np.float32)
    outputs = [np.asarray(each) for each in network(x, training=False)]
    rule = network.exit_rule if rule is None else rule
    if model == "selected":
        chosen = [int(np.argmax(row)) if row[0] == row[0] else 1 for row in outputs[2]]
        sure = np.abs(outputs[2][:, 0] - 0.5) > 1e-3
        if rule is network.exit_rule or isinstance(rule, kd.rules.Selected):
            return np.array(chosen, int), outputs, sure
    early = len(network.exit_names) - 1
    thresholds, exits, sure = rule.thresholds(early), [], []
    for row in range(len(x)):
        state, taken, certain = (None, 0), early, True
        for number in range(early):
            probabilities = outputs[number][row].astype(np.float64)
            score, state = _score(rule, probabilities, state)
            limit = thresholds[number]
            leaves = (
                score >= limit
                if isinstance(rule, kd.rules.Patience)
                else (score < limit if rule.leaves_below else score > limit)
            )
            near = abs(score - limit) < 1e-5 and not isinstance(rule, kd.rules.Patience)
            certain &= not near
            if leaves and np.isfinite(limit) and not np.isnan(x[row]).any():
                taken = number
                break
        exits.append(taken)
        sure.append(certain)
    return np.array(exits, int), outputs, np.array(sure, bool)


def _score(rule, p, state):
    if np.isnan(p).any():
        return (0 if isinstance(rule, kd.rules.Patience) else math.nan), (None, 0)
    top = np.sort(p)[::-1]
    if isinstance(rule, kd.rules.Patience):
        answer = int(np.argmax(p))
        count = state[1] + 1 if answer == state[0] else 1
        return count, (answer, count)
    if isinstance(rule, kd.rules.Entropy):
        return -sum(v * math.log(v) for v in p if v > 0), state
    return top[0] - (top[1] if isinstance(rule, kd.rules.Margin) else 0), state


def check_prediction(answer, model, x, batch_size, steps, rule):
    assert len(answer) == len(x) == len(answer.cost)
    if not len(x):
        return
    exits, outputs, sure = by_hand(model, x, rule)
    np.testing.assert_array_equal(answer.exit_index[sure], exits[sure])
    for row in np.flatnonzero(sure):
        expected = outputs[exits[row]][row]
        got = answer.outputs[row]
        if np.isfinite(expected).all():
            same(got, expected, 1e-4)
        else:
            np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    assert (answer.cost > 0).all() and answer.segment_rows[0] == len(x)
    assert repr(answer) and abs(sum(answer.exit_rates) - 1) < 1e-6


def check_stream(answer, x, **others):
    assert sum(len(each) for each in answer) == len(x)
    start = 0
    for each in answer:
        rows = slice(start, start := start + len(each))
        check_prediction(each, x=x[rows], **others)


def labelled(r, least=0):
    rows = d.rows(r, least, 1, 2, 5, 12)
    x = d.floats(r, (rows, FEATURES), 0, 1.0, (np.float32,))
    y = np.array([r.randrange(CLASSES) for _ in range(rows)])
    return x, y.astype(r.choice([np.int32, np.int64, np.float32]))


def no_labels(r, rows):
    wrong = [np.zeros(rows + 1, int), np.full(rows, CLASSES), np.full(rows, -1)]
    wrong += [np.array(["a"] * rows), "nonsense", d.NOTHING, {"a": 1}, 3]
    wrong += [np.full(rows, math.nan), np.zeros((rows, 2), int), np.full(rows, 1.5)]
    return r.choice(wrong)


def evaluations(r):
    x, y = labelled(r, least=1)
    given = {"model": r.choice(["plain", "gated"]), "x": x, "y": y}
    given |= {"batch_size": BATCH.right(r), "rule": None, "sample_weight": None}
    if r.random() < 0.6:
        return given, False
    key = r.choice(["x", "y", "y", "batch_size", "rule", "sample_weight"])
    given[key] = {
        "x": no_features,
        "y": lambda r: r.choice([None, no_labels(r, len(x))]),
        "batch_size": BATCH.wrong,
        "rule": NO_RULE,
        "sample_weight": d.of(np.ones(len(x) + 1), "nonsense", d.NOTHING, 3),
    }[key](r)
    # Keras' loss takes labels beyond the classes, and fractions of them.
    return given, None if key == "y" else True


def evaluate(model, x, y, **arguments):
    return MODELS[model]().evaluate_dynamic(x, y, verbose=0, **arguments)


def check_evaluation(answer, model, x, y, batch_size, rule, sample_weight):
    if np.shape(y) != (len(x),) or np.asarray(y).dtype.kind not in "iuf":
        return
    exits, outputs, sure = by_hand(model, x, rule)
    if sure.all() and np.isin(y, range(CLASSES)).all():
        chosen = np.array([np.argmax(outputs[e][k]) for k, e in enumerate(exits)])
        same(answer["accuracy"], np.mean(chosen == y), 1e-5)


def calibrations(r):
    x, y = labelled(r, least=1)
    given = {"x": x, "y": y, "rule": r.choice(["max_probability", "entropy", "margin"])}
    kinds = {
        "budget": d.number(0, above=True),
        "max_accuracy_drop": d.number(0, 1, below=True),
        "min_accuracy": d.number(0, 1),
    }
    goal = r.choice(list(kinds))
    given[goal] = kinds[goal].right(r)
    given["batch_size"] = BATCH.right(r)
    if r.random() < 0.6:
        return given, False
    key = r.choice(["x", "y", goal, "rule", "batch_size", "two", "risk_confidence"])
    if key == "two":
        given |= {"budget": 0.5, "min_accuracy": 0.5}
        return given, True
    given[key] = {
        "x": no_features,
        "y": lambda r: r.choice([None, no_labels(r, len(x))]),
        goal: kinds[goal].wrong,
        "rule": NO_RULE,
        "batch_size": BATCH.wrong,
        "risk_confidence": d.number(0, 1, above=True, below=True).wrong,
    }[key](r)
    if key == "risk_confidence" and goal != "max_accuracy_drop":
        given["max_accuracy_drop"] = 0.5
        given.pop(goal)
    return given, True


def calibrate(**arguments):
    model = calibrated()
    return model.calibrate(**arguments)


@functools.cache
def calibrated():
    keras.utils.set_random_seed(6)
    return dense_model()


def check_calibration(answer, x, y, **arguments):
    again = calibrated().evaluate_dynamic(x, y, verbose=0)
    same(answer.num_samples, len(x))
    same(again["mean_cost"], answer.mean_cost, 1e-3)
    if "budget" in arguments:
        assert answer.mean_cost <= float(arguments["budget"]) * (1 + 1e-6)


@functools.cache
def served():
    return plain().dynamic_function(2)


def check_served(answer, x):
    exits, outputs, sure = by_hand("plain", x, None)
    np.testing.assert_array_equal(np.asarray(answer["exit_index"])[sure], exits[sure])


def batches_of_two(r):
    return d.floats(r, (2, FEATURES), 0.3, 1.0, (np.float32,))


@functools.cache
def compiled():
    keras.utils.set_random_seed(5)
    return dense_model(compiled=False)


def compile_it(**arguments):
    compiled().compile("sgd", **arguments)


LOSS_WEIGHTS = d.Kind(
    d.of(None, [0.3, 0.5, 1.0], {"exit_1": 0.5, "exit_2": 1, "final": 1.0}),
    d.of(
        [1.0],
        [1.0] * 4,
        ["a"] * 3,
        {"nobody": 1.0},
        "nonsense",
        3,
        [math.nan] * 3,
        [math.inf, 1, 1],
        [-1.0, 1, 1],
        d.NOTHING,
    ),
)


def costs_of_open(input_shape):
    return plain().compute_costs(input_shape)


def assigned(rule):
    model = calibrated()
    model.exit_rule = rule
    return model.exit_rule


X, Y = dense_data(8)
FIT = {
    "x": d.Kind(d.of(X), d.of(X[:3], X[:, :2], "nonsense", d.NOTHING)),
    "y": d.Kind(d.of(Y), d.of(Y[:5], np.array(["a"] * 8), "nonsense", d.NOTHING)),
    "epochs": d.Kind(d.of(1), d.of(1.5, "2", [], None, math.nan, *d.JUNK)),
    "trunk_epochs": d.Kind(
        d.of(0, 1), d.of(-1, 1.5, True, "1", None, [], math.nan, *d.JUNK)
    ),
}


def fit_exits(**arguments):
    return calibrated().fit_exits(verbose=0, **arguments)


ENTRIES = [
    Entry("DynamicModel.predict_dynamic", predict, predictions, check_prediction),
    Entry("DynamicModel.stream_dynamic", stream, predictions, check_stream),
    Entry("DynamicModel.evaluate_dynamic", evaluate, evaluations, check_evaluation),
    Entry(
        "DynamicModel.calibrate",
        calibrate,
        calibrations,
        check_calibration,
        may_refuse=True,
        slow=True,
    ),
    Entry(
        "DynamicModel.dynamic_function",
        lambda batch_size, rule: plain().dynamic_function(batch_size, rule),
        {
            "batch_size": d.Kind(
                d.of(2), d.of(0, -1, 1.5, True, "1", None, [], math.nan, *d.JUNK)
            ),
            "rule": d.Kind(d.of(None), NO_RULE),
        },
        slow=True,
    ),
    Entry(
        "DynamicModel.dynamic_function, called",
        lambda x: served()(x),
        {"x": d.Kind(batches_of_two, no_features)},
        check_served,
    ),
    Entry(
        "DynamicModel.compile",
        compile_it,
        {
            "loss": d.free("sparse_categorical_crossentropy"),
            "loss_weights": LOSS_WEIGHTS,
            "distillation_weight": d.required(d.number(0, 1)),
            "distillation_temperature": d.required(d.number(0, above=True)),
        },
        may_refuse=True,
    ),
    Entry(
        "DynamicModel.compute_costs",
        costs_of_open,
        {
            "input_shape": d.Kind(
                d.of(None, (FEATURES,), [FEATURES]),
                d.of((3,), (), (None,), (2, 3), "a", 3, True, (-1,), ("a",), *d.JUNK),
            )
        },
    ),
    Entry(
        "DynamicModel.exit_rule",
        assigned,
        {
            "rule": d.Kind(
                lambda r: a_rule(r, 2),
                d.any_of(NO_RULE, d.of(None, "selected", kd.rules.Margin([0.5]))),
            )
        },
    ),
    Entry("DynamicModel.fit_exits", fit_exits, FIT, slow=True),
    Entry(
        "DynamicModel.export",
        lambda filepath, format: plain().export(filepath, format, verbose=False),
        lambda r: (
            {
                "filepath": r.choice([None, 3, d.NOTHING, [], True, b"a"]),
                "format": "tf_saved_model",
            }
            if r.random() < 0.5
            else {
                "filepath": "nowhere",
                "format": r.choice(["nonsense", None, 3, d.NOTHING, [], "h5"]),
            },
            True,
        ),
        slow=True,
    ),
]
