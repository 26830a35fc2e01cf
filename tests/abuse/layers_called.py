"""The layers called: inputs of every shape, dtype and value, against plain NumPy.

Whatever a row holds, a NaN or an infinity, the rows beside it are answered as they are
alone; and wherever there is a sparse road, its answer is the dense one's.
"""

import functools
import math

import keras
import numpy as np
import tensorflow as tf

import keras_dynamic as kd
from tests.abuse import drawing as d
from tests.abuse.calibration import same
from tests.abuse.judging import Entry

FEATURES = 3
POLICIES = ("float32", "float64", "mixed_float16", "mixed_bfloat16")
TOLERANCES = {"float32": 1e-4, "float64": 1e-4, "mixed_float16": 2e-2}


def vectors(r):
    """(batch, 3): right for every layer here."""
    return d.floats(r, (d.rows(r, 0, 1, 1, 2, 5), FEATURES))


def sequences(r):
    return d.floats(r, (d.rows(r, 0, 1, 2, 3), r.randint(1, 3), FEATURES))


def images(r):
    return d.floats(r, (d.rows(r, 0, 1, 2), 4, 4, FEATURES))


def wrong_inputs(*ranks):
    """Other ranks, other features, and what is no tensor."""

    def draw(r):
        kind = r.random()
        if kind < 0.3:
            rank = r.choice(ranks)
            return d.floats(r, (*[2] * (rank - 1), FEATURES + 1))
        if kind < 0.6:  # three positive sizes are a volume, which may be as good
            others = [rank for rank in range(5) if rank not in ranks]
            shape = d.shape_of(r, others)
            return d.floats(r, (*shape[:-1], FEATURES + 1) if shape else ())
        return r.choice(
            [None, "nonsense", d.NOTHING, {}, [], np.array(["a", "b", "c"]), 1j]
        )

    return draw


def wrong_features(*ranks):
    """For layers that take any rank."""

    def draw(r):
        if r.random() < 0.5:
            return d.floats(r, (*[2] * (r.choice(ranks) - 1), FEATURES + 1))
        return r.choice(
            [None, "nonsense", d.NOTHING, {}, [], np.array(["a", "b", "c"]), 1j, 2.5]
        )

    return draw


VECTORS = d.Kind(vectors, wrong_features(2))


def inputs_of(draw, *ranks, **others):
    """Arguments of a call, policy first; `draw` makes right inputs."""
    return {
        "inputs": d.Kind(draw, wrong_inputs(*ranks)),
        "policy": d.free(*POLICIES),
        **others,
    }


def float64(answer):
    return np.asarray(tf.cast(answer, tf.float64))


def rows_alone(layer, inputs, answer, policy, known=None):
    """Checks some rows: each is answered as in a batch of its own."""
    tolerance = TOLERANCES.get(policy, 0.1)
    for number in {*range(min(len(inputs), 2)), len(inputs) - 1} - {-1}:
        alone = float64(layer(inputs[number : number + 1]))[0]
        same(float64(answer)[number], alone, tolerance)


def finite_where_input_is(inputs, answer, limit=1e3):
    """No infinity and no NaN from numbers of ordinary size."""
    if not len(inputs):
        return
    flat = np.asarray(inputs, np.float64).reshape(len(inputs), -1)
    fine = np.isfinite(flat).all(axis=1) & (np.abs(flat).max(axis=1, initial=0) < limit)
    out = float64(answer).reshape(len(inputs), -1)[fine]
    assert np.isfinite(out).all(), out


# Exits, selectors, choices ------------------------------------------------------


def check_exit(answer, inputs, policy, rank):
    assert answer.dtype == "float32" and answer.shape == (len(inputs), 3)
    finite_where_input_is(inputs, answer)
    rows = float64(answer)
    whole = np.isfinite(rows).all(axis=1)
    same(rows[whole].sum(axis=1), np.ones(whole.sum()), 1e-3)
    rows_alone(_exit(rank, policy), inputs, answer, policy)


@functools.cache
def _exit(rank, policy):
    keras.utils.set_random_seed(5)
    layer = kd.EarlyExit(3, hidden_units=4, dtype=policy)
    layer.build({2: (None, 3), 3: (None, None, 3), 4: (None, 4, 4, 3)}[rank])
    return layer


def exits(rank, draw):
    return Entry(
        f"EarlyExit, rank {rank}",
        lambda inputs, policy: _exit(rank, policy)(inputs),
        inputs_of(draw, rank),
        lambda answer, inputs, policy: check_exit(answer, inputs, policy, rank),
    )


def targets(r):
    rows = r.randint(0, 4)
    labels = np.array([r.randrange(3) for _ in range(rows)])
    given = {"inputs": d.floats(r, (rows, 3), 0), "targets": labels}
    if r.random() < 0.5:
        return given, False
    given["targets"] = r.choice(
        [np.zeros((rows, 2)), np.zeros((rows, 3, 2)), "nonsense", d.NOTHING, {"a": 1}]
    )
    return given, None  # Keras' losses take some of it


def with_targets(inputs, targets):
    layer = _exit(2, "float32")
    answer = layer(inputs, targets=targets)
    return answer, [float(loss) for loss in layer.losses]


def check_loss(answer, inputs, targets):
    outputs, losses = answer
    if np.shape(targets) != (len(inputs),) or not len(inputs):
        return
    chosen = float64(outputs)[np.arange(len(inputs)), targets]
    same(losses[-1], np.mean(-np.log(np.maximum(chosen, 1e-7))), 1e-3)


@functools.cache
def _selector(policy, estimator):
    keras.utils.set_random_seed(5)
    layer = kd.ExitSelector(3, estimator, dtype=policy, hidden_units=4)
    layer.build((None, FEATURES))
    return layer


def check_weights(answer, inputs, policy, estimator, training=False):
    rows = float64(answer)
    assert answer.dtype == "float32" and answer.shape == (len(inputs), 3)
    finite_where_input_is(inputs, answer)
    whole = np.isfinite(rows).all(axis=1)
    same(rows[whole].sum(axis=1), np.ones(whole.sum()), 1e-3)
    if not training:
        assert set(np.unique(rows[whole])) <= {0.0, 1.0}
        rows_alone(_selector(policy, estimator), inputs, answer, policy)


@functools.cache
def _layerwise(policy):
    keras.utils.set_random_seed(5)
    layer = kd.LayerwiseSelector(hidden_units=4, dtype=policy)
    layer.build([(None, FEATURES), (None, FEATURES)])
    return layer


def pair(r):
    rows = d.rows(r, 0, 1, 3)
    both = [d.floats(r, (rows, FEATURES)) for _ in range(2)]
    if r.random() < 0.6:
        return {"inputs": both, "policy": r.choice(POLICIES)}, False
    wrong = [both[0], [both[0]], [*both, both[0]], [], None, "nonsense", [None, None]]
    wrong += [[both[0], d.floats(r, (rows, 5))], {"a": both[0]}, d.NOTHING]
    return {"inputs": r.choice(wrong), "policy": r.choice(POLICIES)}, True


def check_layerwise(answer, inputs, policy):
    rows = float64(answer)
    assert rows.shape == (len(inputs[0]), 3)
    assert set(np.unique(rows)) <= {0.0, 1.0}
    same(rows.sum(axis=1), np.ones(len(rows)))
    for number in range(len(rows)):
        if np.isnan(np.asarray(inputs[0], float)[number]).any():
            assert rows[number, 2] == 1  # nobody leaves early on a NaN


@functools.cache
def _gumbel(policy, estimator):
    return kd.GumbelSoftmax(1.0, estimator, seed=3, dtype=policy)


def check_gumbel(answer, inputs, policy, estimator, training):
    rows, given = float64(answer), np.asarray(inputs, np.float64)
    assert rows.shape == given.shape
    for row, logits in zip(rows, given, strict=True):
        if np.isnan(logits).any() or (logits == -math.inf).all():
            assert np.isnan(row).all()
        else:  # stable whatever the size of the logits and the policy
            assert np.isfinite(row).all() and row.min() >= 0
            same(row.sum(), 1.0, 2e-2)


@functools.cache
def _blend(policy, estimator):
    return kd.BlendedActivation(["relu", "tanh"], estimator=estimator, dtype=policy)


def check_blended(answer, inputs, policy, estimator):
    finite_where_input_is(inputs, answer)
    x = np.asarray(inputs, np.float64)
    fine = np.isfinite(x) & (np.abs(x) < 1e3)
    expected = np.maximum(x, 0)
    if estimator in ("soft", "gumbel_softmax"):
        expected = (expected + np.tanh(x)) / 2
    same(float64(answer)[fine], expected[fine], TOLERANCES.get(policy, 0.1) * 2)


def own_dense(scale, units=FEATURES):
    return keras.layers.Dense(
        units, kernel_initializer=keras.initializers.Constant(scale)
    )


@functools.cache
def _choice(estimator):
    keras.utils.set_random_seed(5)
    layer = kd.LayerChoice([own_dense(0.5), own_dense(-1.0)], estimator)
    layer.build((None, FEATURES))
    layer.logits.assign([0.3, -0.2])
    return layer


def check_chosen(answer, inputs, estimator):
    layer = _choice(estimator)
    one, two = (float64(each(inputs)) for each in layer.layers)
    share = 1 / (1 + math.exp(-0.5))
    expected = one
    if estimator in ("soft", "gumbel_softmax"):
        with np.errstate(invalid="ignore"):
            expected = share * one + (1 - share) * two
    fine = np.isfinite(expected) & (np.abs(expected) < 1e30)
    same(float64(answer)[fine], expected[fine], 1e-4)


# Gates: the sparse road against the dense one -----------------------------------


@functools.cache
def _gate(additive, shortcut, rank):
    keras.utils.set_random_seed(5)
    units = 2 if shortcut else FEATURES
    inner = keras.layers.Dense(units, kernel_initializer="glorot_normal")
    layer = kd.SkipGate(inner, additive=additive)
    layer.build({2: (None, 3), 3: (None, None, 3), 4: (None, 4, 4, 3)}[rank])
    layer.decider.classifier.kernel.assign(
        np.random.default_rng(0).normal(size=layer.decider.classifier.kernel.shape)
    )
    layer.decider.classifier.bias.assign([0.0])
    return layer


def call_gate(inputs, additive, shortcut, rank):
    return _gate(additive, shortcut, rank)(inputs)


def check_gate(answer, inputs, additive, shortcut, rank):
    layer = _gate(additive, shortcut, rank)
    x = tf.cast(tf.convert_to_tensor(inputs), tf.float32)
    logits = float64(layer.decider(x))[:, 0] if len(x) else np.zeros(0)
    opened = (logits > 0).reshape(-1, *[1] * (rank - 1))  # a NaN is closed
    output = float64(layer.layer(x))
    bypass = float64(layer.bypass(x) if shortcut else x)
    with np.errstate(all="ignore"):
        expected = np.where(opened, output + (bypass if additive else 0), bypass)
    sure = np.abs(np.where(np.isfinite(logits), logits, 1)) > 1e-4
    with np.errstate(all="ignore"):
        fine = ~(np.abs(expected) > 1e30)
    keep = fine & sure.reshape(opened.shape)
    same(float64(answer)[keep], expected[keep], 1e-3)


def gates(rank, draw):
    return Entry(
        f"SkipGate, rank {rank}",
        functools.partial(call_gate, rank=rank),
        {
            "inputs": d.Kind(draw, wrong_features(rank)),
            "additive": d.free(True, False),
            "shortcut": d.free(True, False),
        },
        functools.partial(check_gate, rank=rank),
    )


# Mixtures: the sparse roads against the dense one -------------------------------


@functools.cache
def _mixture(dispatch, route, router, top_k):
    keras.utils.set_random_seed(5)
    limited = dispatch == "capacity" and router != "expert_choice"
    layer = kd.SparseMoE(
        3,
        hidden_units=4,
        top_k=top_k,
        route=route,
        router=router,
        capacity_factor=1.0 if limited else None,
        inference_capacity_factor=100.0 if limited else None,
        dispatch=dispatch,
        activation="relu",
    )
    layer.build((None, None, FEATURES) if router == "expert_choice" else (None, 3))
    return layer


def mixtures(r):
    route, router = r.choice(["token", "input"]), r.choice(["top_k", "expert_choice"])
    if router == "expert_choice":
        route = "token"
    inputs = sequences(r)
    if router == "top_k" and r.random() < 0.4:
        inputs = vectors(r)
    mask = None
    if inputs.ndim == 3 and r.random() < 0.4:
        random = np.random.default_rng(r.getrandbits(32))
        mask = random.random(inputs.shape[:2]) < 0.7
    given = {
        "inputs": inputs,
        "mask": mask,
        "dispatch": r.choice(["ragged", "capacity", "auto"]),
        "route": route,
        "router": router,
        "top_k": r.choice([1, 2]),
    }
    if r.random() < 0.7:
        return given, False
    if r.random() < 0.6:
        given["inputs"] = wrong_inputs(2, 3)(r)
        given["mask"] = None
        known = hasattr(given["inputs"], "ndim") and given["inputs"].ndim > 2
        taken = known and given["inputs"].shape[-1] == FEATURES
        return given, None if taken else True
    rows = len(inputs)
    given["mask"] = r.choice(
        [np.ones((rows + 1, 9), bool), np.ones((rows, 9)), "a", d.NOTHING, [[True]] * 9]
    )
    return given, True


def call_mixture(inputs, mask, dispatch, **form):
    return _mixture(dispatch, **form)(inputs, mask=mask)


def check_mixture(answer, inputs, mask, dispatch, **form):
    dense = _mixture("dense", **form)
    dense.set_weights(_mixture(dispatch, **form).get_weights())
    expected = float64(dense(inputs, mask=mask))
    got = float64(answer)
    assert got.shape == expected.shape
    with np.errstate(all="ignore"):
        fine = ~(np.abs(expected) > 1e30)
    same(got[fine], expected[fine], 1e-3)


def routed(inputs, router, top_k):
    layer = _mixture("ragged", "token", router, top_k)
    return layer.routing(inputs)


def check_routed(answer, inputs, router, top_k):
    if router == "top_k":
        experts = np.asarray(answer.experts)
        assert experts.shape[-1] == top_k
        assert experts.size == 0 or (0 <= experts.min() and experts.max() < 3)
    finite_where_input_is(inputs, answer.logits)


def changed(attribute, maker):
    """Assigning to an attribute of a layer, which reads as it was assigned."""

    def call(value):
        layer = maker()
        setattr(layer, attribute, value)
        return getattr(layer, attribute)

    return call


def check_changed(answer, value):
    same(answer, float(value), 1e-6)


def bound(maker, values):
    return lambda costs: maker().bind_costs(costs)


TRAINING = {"training": d.free(True, False)}
ALL = d.free(*kd.layers._choosing.estimators.ESTIMATORS)
HARD = d.free("straight_through", "gumbel_straight_through", "reinmax", "soft")
ENTRIES = [
    exits(2, vectors),
    exits(3, sequences),
    exits(4, images),
    Entry("EarlyExit, targets", with_targets, targets, check_loss),
    Entry(
        "ExitSelector, called",
        lambda inputs, policy, estimator, training: _selector(policy, estimator)(
            inputs, training=training
        ),
        inputs_of(vectors, 2, estimator=HARD, **TRAINING),
        check_weights,
    ),
    Entry(
        "ExitSelector.probabilities",
        lambda inputs, policy: _selector(policy, "soft").probabilities(inputs),
        {"inputs": d.Kind(vectors), "policy": d.free("float32", "mixed_float16")},
        lambda answer, inputs, policy: finite_where_input_is(inputs, answer),
    ),
    Entry(
        "LayerwiseSelector, called",
        lambda inputs, policy: _layerwise(policy)(inputs),
        pair,
        check_layerwise,
    ),
    Entry(
        "GumbelSoftmax, called",
        lambda inputs, policy, estimator, training: _gumbel(policy, estimator)(
            inputs, training=training
        ),
        {
            "inputs": d.Kind(
                vectors, lambda r: r.choice([None, "a", d.NOTHING, {}, np.float32(1)])
            ),
            "policy": d.free(*POLICIES),
            "estimator": ALL,
            **TRAINING,
        },
        check_gumbel,
    ),
    Entry(
        "BlendedActivation, called",
        lambda inputs, policy, estimator: _blend(policy, estimator)(inputs),
        {
            "inputs": d.Kind(
                d.any_of(vectors, sequences, images),
                lambda r: r.choice([None, "a", d.NOTHING, {}]),
            ),
            "policy": d.free(*POLICIES),
            "estimator": ALL,
        },
        check_blended,
    ),
    Entry(
        "LayerChoice, called",
        lambda inputs, estimator: _choice(estimator)(inputs),
        {"inputs": VECTORS, "estimator": ALL},
        check_chosen,
    ),
    gates(2, vectors),
    gates(3, sequences),
    gates(4, images),
    Entry("SparseMoE, called", call_mixture, mixtures, check_mixture),
    Entry(
        "SparseMoE.routing",
        routed,
        {
            "inputs": d.Kind(sequences, wrong_inputs(3)),
            "router": d.free("top_k", "expert_choice"),
            "top_k": d.free(1, 2),
        },
        check_routed,
    ),
    Entry(
        "GumbelSoftmax.temperature",
        changed("temperature", lambda: _gumbel("float32", "soft")),
        {"value": d.required(d.number(1e-3, wrong=(0, -1)))},
        check_changed,
    ),
    Entry(
        "EarlyExit.loss_weight",
        changed("loss_weight", lambda: _exit(2, "float32")),
        {"value": d.required(d.number(0))},
        check_changed,
    ),
]
