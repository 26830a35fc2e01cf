"""The functions of `ops`: values of every sort, and plain NumPy to compare.

Layers hand them tensors that they have checked, so what is wrong in type or shape is
not tried here but there.
"""

import math

import numpy as np
import tensorflow as tf

from keras_dynamic.ops import (
    _means,
    balancing,
    blending,
    dispatch,
    distillation,
    estimators,
    feed_forward,
    penalties,
    pooling,
    seeds,
)
from keras_dynamic.ops.rows import run_on_rows
from tests.abuse import drawing as d
from tests.abuse.calibration import same
from tests.abuse.judging import Entry

SEED = np.array([3, 4], np.int32)
TAUS = (0.01, 0.3, 1.0, 20.0, 1e4)


def choices(r):
    shape = tuple(r.choice((1, 2, 3)) for _ in range(r.randint(1, 3)))
    if len(shape) > 1 and r.random() < 0.2:
        shape = (0, *shape[1:])
    estimator = r.choice(estimators.ESTIMATORS)
    tau = r.choice(TAUS)
    return {
        "logits": d.floats(r, shape),
        "estimator": estimator,
        "temperature": max(tau, 1.0) if estimator == "reinmax" else tau,
        "axis": r.choice([-1, len(shape) - 1]),
        "training": r.random() < 0.5,
    }, False


def choose(logits, estimator, temperature, axis, training):
    answer = estimators.categorical(
        logits, estimator, temperature, axis=axis, seed=SEED, training=training
    )
    return answer.numpy()


def check_choice(answer, logits, estimator, temperature, axis, training):
    logits = np.asarray(logits, np.float64)
    assert answer.shape == logits.shape and answer.dtype == np.float32
    hard = estimator in estimators.HARD_ESTIMATORS
    pairs = zip(
        answer.reshape(-1, logits.shape[-1]),
        logits.reshape(-1, logits.shape[-1]),
        strict=True,
    )
    for row, given in pairs:
        if np.isnan(given).any() or (given == -math.inf).all():
            assert np.isnan(row).all(), (row, given)
            continue
        same(row.sum(), 1.0, 1e-4)
        assert (row >= 0).all() and (row <= 1).all()
        if hard:
            assert set(row.tolist()) <= {0.0, 1.0}
        if not (training and estimator in estimators.SAMPLING_ESTIMATORS):
            clear = np.sort(given)
            if len(given) > 1 and clear[-1] - clear[-2] > 1e-2 * temperature + 1e-3:
                assert np.argmax(row) == np.argmax(given)
        if not np.isinf(given).any():
            assert row[given == -math.inf].sum() == 0


def yes_or_no(r):
    given, _ = choices(r)
    del given["axis"]
    return given, False


def decide(logits, estimator, temperature, training):
    return estimators.binary(
        logits, estimator, temperature, seed=SEED, training=training
    ).numpy()


def check_decision(answer, logits, estimator, temperature, training):
    logits = np.asarray(logits, np.float64)
    broken = np.isnan(logits)
    hard = estimator in estimators.HARD_ESTIMATORS
    assert answer.dtype == np.float32 and answer.shape == logits.shape
    if not hard:
        assert np.isnan(answer[broken]).all()
    assert (answer[~broken] >= 0).all() and (answer[~broken] <= 1).all()
    if not (training and estimator in estimators.SAMPLING_ESTIMATORS):
        sure = np.abs(np.where(broken, 0, logits)) > 1e-3
        np.testing.assert_array_equal(answer[sure] >= 0.5, logits[sure] > 0)


def check_logits(answer, probabilities, binary):
    p = np.asarray(probabilities, np.float64)
    answer = np.asarray(answer)
    inside = (p > 1e-30) & (p < 1 - 1e-3)
    expected = np.log(p[inside])
    if binary:
        expected = expected - np.log1p(-p[inside])
    same(answer[inside], expected, 1e-3)
    assert (answer[p == 0] == -math.inf).all()


def some_probabilities(r, classes=None):
    return d.probabilities(r, r.randint(0, 4), classes or r.randint(1, 4))


def tokens(r):
    """Probabilities of tokens, some of which do not count and are NaN."""
    count, experts = r.randint(0, 5), r.randint(1, 4)
    given = d.probabilities(r, count, experts, spoiled=0, dtypes=(np.float32,))
    counted = None
    if r.random() < 0.6:
        counted = np.array([r.random() < 0.6 for _ in range(count)], bool)
        given[~counted] = math.nan
    return given, counted


def of_tokens(r):
    given, counted = tokens(r)
    return {"probabilities": given, "counted": counted}, False


def kept(given, counted):
    given = np.asarray(given, np.float64)
    return given if counted is None else given[counted]


def check_divergence(answer, probabilities, counted):
    rows = kept(probabilities, counted)
    if len(rows) == 0:
        return same(answer, 0.0)
    p = rows.mean(axis=0)
    p = p[p > 0]
    return same(answer, np.sum(p * np.log(p * rows.shape[1])), 1e-4)


def check_variation(answer, probabilities, counted):
    rows = kept(probabilities, counted)
    average = rows.mean(axis=0) if len(rows) else np.zeros(1)
    expected = np.var(average) / np.mean(average) ** 2 if average.any() else 0.0
    same(answer, expected, 1e-4)


def switched(r):
    given, counted = tokens(r)
    count, experts = given.shape
    shape = (count, r.randint(1, experts))
    chosen = np.random.default_rng(r.getrandbits(32)).integers(0, experts, shape)
    return {
        "probabilities": given,
        "experts": chosen.astype(np.int32),
        "counted": counted,
    }, False


def check_switch(answer, probabilities, experts, counted):
    rows, chosen = kept(probabilities, counted), kept(experts, counted).astype(int)
    if len(rows) == 0:
        return same(answer, 0.0)
    number = rows.shape[1]
    share = np.bincount(chosen.ravel(), minlength=number) / chosen.size
    return same(answer, number * np.sum(share * rows.mean(axis=0)), 1e-4)


def of_logits(r):
    count = r.randint(0, 5)
    given = d.floats(r, (count, r.randint(1, 4)), 0, 5.0, (np.float32, np.float16))
    counted = np.array([r.random() < 0.6 for _ in range(count)], bool)
    given[~counted] = math.nan
    return {"logits": given, "counted": counted}, False


def check_z(answer, logits, counted):
    rows = kept(logits, counted)
    size = np.log(np.exp(rows).sum(axis=1))
    same(answer, np.mean(size**2) if len(rows) else 0.0, 1e-3)


def penalized(r):
    p = d.probabilities(r, r.randint(0, 4), r.randint(2, 4), 0)
    prior = (
        np.random.default_rng(r.getrandbits(32)).dirichlet(np.ones(p.shape[1])) + 0.01
    )
    return {"probabilities": p, "prior": prior / prior.sum()}, False


def check_kl(answer, probabilities, prior):
    if len(probabilities) == 0:
        return None
    p = probabilities.astype(np.float64).mean(axis=0)
    terms = [a * math.log(a / b) for a, b in zip(p, prior, strict=True) if a > 0]
    return same(answer, sum(terms), 1e-4)


def check_entropy(answer, probabilities):
    p = np.asarray(probabilities, np.float64)
    if np.isnan(p).any():
        return
    logs = np.where(p > 0, np.log(np.where(p > 0, p, 1)), 0)
    same(answer, -np.sum(p * logs) / max(len(p), 1), 1e-4)


def check_cost(answer, probabilities, prior):
    p = np.asarray(probabilities, np.float64)
    same(answer, (p @ prior).mean() if len(p) else 0.0, 1e-4)


def gates(r):
    count = r.randint(1, 5)
    return {
        "opened": np.array([float(r.random() < 0.5) for _ in range(count)], np.float32),
        "probabilities": np.array([r.random() for _ in range(count)], np.float32),
        "target": r.choice([0.1, 0.5, 1.0]),
    }, False


def check_penalty(answer, opened, probabilities, target):
    same(answer, (opened.mean() - target) ** 2, 1e-5)


def teachers(r):
    shape = (r.randint(0, 4), r.randint(1, 4))
    both = [d.floats(r, shape, 0, 5.0, (np.float32,)) for _ in range(2)]
    return dict(zip(("teacher", "student"), both, strict=True)) | {
        "temperature": r.choice([0.5, 1.0, 8.0])
    }, False


def check_softened(answer, teacher, student, temperature):
    def log_softmax(z):
        z = z.astype(np.float64) / temperature
        return z - np.log(np.exp(z).sum(axis=1, keepdims=True))

    p, q = log_softmax(teacher), log_softmax(student)
    same(answer, temperature**2 * np.sum(np.exp(p) * (p - q), axis=1), 1e-3)


def parameters(r):
    constraint = r.choice(blending.CONSTRAINTS[1:])
    shape = (r.randint(1, 4), *[2] * r.randint(0, 2))
    return {"parameters": d.floats(r, shape), "constraint": constraint}, False


def check_blend(answer, parameters, constraint):
    given, answer = np.asarray(parameters, np.float64), np.asarray(answer)
    assert answer.dtype == np.float32 and answer.shape == given.shape
    if np.isfinite(given).all() and np.abs(given).max(initial=0) < 1e30:
        assert np.isfinite(answer).all()
        if constraint == "absolute_normalized":
            total = np.abs(given).sum(axis=0)
            ones = np.abs(answer.astype(np.float64)).sum(axis=0)[total >= 1e-2]
            same(ones, np.ones_like(ones), 1e-4)


def assignments(r):
    """Experts of assignments, -1 for nobody."""
    experts, count = r.randint(1, 4), r.randint(0, 7)
    lowest = r.choice([-1, 0])
    chosen = [r.randint(lowest, experts - 1) for _ in range(count)]
    return {
        "experts": np.array(chosen, np.int32),
        "num_experts": experts,
        "complete": lowest == 0,
    }, False


def check_places(answer, experts, num_experts, complete):
    places, held = np.asarray(answer.place_of), np.asarray(answer.held_by)
    wanted = sorted((e, k) for k, e in enumerate(experts) if e >= 0)
    assert [k for _, k in wanted] == held.tolist()
    for place, (_, assignment) in enumerate(wanted):
        assert places[assignment] == place
    assert (places[experts < 0] == -1).all()
    count = np.bincount(experts[experts >= 0], minlength=num_experts)
    np.testing.assert_array_equal(answer.counts, count)


def fixed(experts, num_experts, complete):
    count = np.bincount(experts[experts >= 0], minlength=num_experts)
    capacity = max(int(count.max(initial=0)), 1)
    return capacity, dispatch.fixed_places(experts, num_experts, capacity)


def check_fixed(answer, experts, num_experts, complete):
    capacity, places = answer
    held = np.asarray(places.held_by).reshape(num_experts, capacity)
    for expert in range(num_experts):
        own = [k for k, e in enumerate(experts) if e == expert]
        assert held[expert].tolist() == own + [-1] * (capacity - len(own))


def drops(r):
    experts, times, rows = r.randint(1, 3), r.randint(1, 3), r.randint(0, 5)
    random = np.random.default_rng(r.getrandbits(32))
    ranked = r.random() < 0.5
    return {
        "capacity": r.randint(1, 3),
        "experts": random.integers(-1, experts, (times, rows)).astype(np.int32),
        "num_experts": experts,
        "priority": random.normal(size=rows).astype(np.float32) if ranked else None,
    }, False


def check_drops(answer, capacity, experts, num_experts, priority):
    order = range(experts.shape[1])
    if priority is not None:
        order = sorted(order, key=lambda row: -priority[row])
    room, expected = [capacity] * num_experts, np.full(experts.shape, -1)
    for time in range(len(experts)):
        for row in order:
            expert = experts[time, row]
            if expert >= 0 and room[expert]:
                room[expert] -= 1
                expected[time, row] = expert
    np.testing.assert_array_equal(answer, expected)


def check_capacity(answer, rows, per_row, num_experts, factor):
    wanted = math.ceil(factor * rows * per_row / num_experts - 1e-6)
    assert int(answer) == max(min(wanted, rows), 1)


def moves(r):
    rows, places = r.randint(1, 4), r.randint(0, 4)
    sources = [r.randint(-1, rows - 1) for _ in range(places)]
    return {
        "tensor": d.floats(r, (rows, 2)),
        "sources": np.array(sources, np.int32),
    }, False


def move(tensor, sources):
    return dispatch.move_rows(
        tf.constant(tensor), sources, tf.zeros([1, 1], tf.int32), 0
    )


def check_moves(answer, tensor, sources):
    padded = np.concatenate([tensor, np.zeros((1, 2), tensor.dtype)])
    same(np.asarray(answer, np.float64), padded[sources].astype(np.float64))


def sequences(r):
    batch, length = r.choice([0, 1, 3]), r.randint(1, 4)
    inputs = d.floats(r, (batch, length, 2), 0, dtypes=(np.float32, np.float16))
    mask = None
    if r.random() < 0.7:
        random = np.random.default_rng(r.getrandbits(32))
        mask = random.random((batch, length)) < 0.5
        inputs[~mask] = r.choice([math.nan, math.inf, 1.0])
    return {"inputs": inputs, "mask": mask}, False


def check_pooled(function):
    def check(answer, inputs, mask):
        answer = np.asarray(answer, np.float64)
        for number, sample in enumerate(np.asarray(inputs, np.float64)):
            rows = sample if mask is None else sample[mask[number]]
            expected = function(rows, axis=0) if len(rows) else np.zeros(2)
            same(answer[number], expected, 2e-3)

    return check


def check_largest(answer, inputs, mask):
    given = np.asarray(inputs, np.float64)
    if not np.isnan(given).any():
        same(np.asarray(answer, np.float64), given.max(axis=1, initial=-np.inf))


def maps(r):
    shape = (r.choice([0, 1, 2]), r.randint(1, 9), r.randint(1, 9), r.randint(1, 3))
    kind = r.choice(["average", "max"])
    return {
        "inputs": d.floats(r, shape, 0, dtypes=(np.float32,)),
        "grid": r.choice([1, 2, 4]),
        "kind": kind,
        "data_format": "channels_last",
    }, False


def check_grid(answer, inputs, grid, kind, data_format):
    answer = np.asarray(answer)
    assert answer.shape[0] == len(inputs) and np.isfinite(answer).all()
    if grid == 1:
        reduce = np.mean if kind == "average" else np.max
        same(answer, reduce(inputs, axis=(1, 2)) if len(inputs) else answer, 1e-5)
    elif answer.size:
        assert max(answer.shape[1:3]) <= grid
        assert (
            inputs.min() - 1e-6 <= answer.min() and answer.max() <= inputs.max() + 1e-6
        )


def batches(r):
    rows = r.randint(0, 5)
    return {
        "rows": d.floats(r, (rows, 2), dtypes=(np.float32,)),
        "chosen": np.array([r.random() < 0.5 for _ in range(rows)], bool),
        "adds": r.random() < 0.3,
    }, False


def run_some(rows, chosen, adds):
    return run_on_rows(
        lambda t: (2 * t[0], [tf.ones_like(t[0][:, 0])]),
        lambda t: t[0] + 1,
        [tf.constant(rows)],
        tf.constant(chosen),
        adds=adds,
    )


def check_some(answer, rows, chosen, adds):
    output, notes = answer
    with np.errstate(over="ignore"):
        open_rows = 2 * rows + (rows + 1 if adds else 0)
    expected = np.where(chosen[:, None], open_rows, rows + 1)
    same(np.asarray(output), expected, 1e-6)  # denormals become 0
    for note in notes:  # none where nobody was chosen: the function never ran
        np.testing.assert_array_equal(np.asarray(note) > 0, chosen)
    assert len(notes) == int(chosen.any())


def networks(r):
    counts = [r.randint(0, 3) for _ in range(r.randint(1, 3))]
    return {
        "rows": d.floats(r, (sum(counts), 2), dtypes=(np.float32,)),
        "counts": np.array(counts, np.int32),
        "seed": r.getrandbits(16),
    }, False


def two_layers(counts, seed):
    random = np.random.default_rng(seed)
    shapes = ((2, 3), (3,), (3, 2), (2,))
    return [
        tuple(random.normal(size=shape).astype(np.float32) for shape in shapes)
        for _ in counts
    ]


def grouped(rows, counts, seed):
    return feed_forward.grouped_feed_forward(
        tf.constant(rows), tf.constant(counts), _tensors(counts, seed), tf.nn.relu
    )


def dense(rows, counts, seed):
    return feed_forward.dense_feed_forward(
        tf.constant(rows), _tensors(counts, seed)[0], tf.nn.relu
    )


def check_seed(answer, seed):
    assert answer.shape == (2,) and answer.dtype == "int32"
    np.testing.assert_array_equal(answer, seeds.replica_seed(seed))


def _tensors(counts, seed):
    return [tuple(map(tf.constant, each)) for each in two_layers(counts, seed)]


def check_networks(answer, rows, counts, seed, single=False):
    networks = two_layers(counts, seed)
    groups = [rows] if single else np.split(rows, np.cumsum(counts)[:-1])
    expected = []
    with np.errstate(all="ignore"):
        for group, (w1, b1, w2, b2) in zip(groups, networks, strict=False):
            inner = group @ w1 + b1
            expected.append(np.where(inner < 0, 0, inner) @ w2 + b2)
    expected = np.concatenate(expected)
    fine = np.isfinite(expected).all(axis=1) & (np.abs(rows).max(axis=1) < 1e6)
    same(np.asarray(answer)[fine], expected[fine], 2e-3)


def check_first_network(answer, **arguments):
    check_networks(answer, **arguments, single=True)


def stacked(rows, counts, seed):
    each = np.stack([rows] * len(counts))
    return feed_forward.stacked_feed_forward(
        tf.constant(each), _tensors(counts, seed), tf.nn.relu
    )[0]


ENTRIES = [
    Entry("ops.estimators.categorical", choose, choices, check_choice),
    Entry("ops.estimators.binary", decide, yes_or_no, check_decision),
    Entry(
        "ops.estimators.logits_from_probabilities",
        estimators.logits_from_probabilities,
        {"probabilities": d.Kind(some_probabilities), "binary": d.free(True, False)},
        check_logits,
    ),
    Entry(
        "ops.estimators.check_estimator",
        estimators.check_estimator,
        {"estimator": d.name(*estimators.ESTIMATORS, wrong=(None,))},
    ),
    Entry(
        "ops.estimators.check_temperature",
        estimators.check_temperature,
        {
            "temperature": d.required(d.number(1, wrong=(1e50, 1e-50))),
            "estimator": d.free("reinmax"),
        },
    ),
    Entry(
        "ops.blending.check_constraint",
        blending.check_constraint,
        {"constraint": d.name(*blending.CONSTRAINTS, wrong=(None,))},
    ),
    Entry("ops.blending.constrained", blending.constrained, parameters, check_blend),
    Entry(
        "ops.balancing.divergence_from_even",
        balancing.divergence_from_even,
        of_tokens,
        check_divergence,
    ),
    Entry(
        "ops.balancing.importance_loss",
        balancing.importance_loss,
        of_tokens,
        check_variation,
    ),
    Entry(
        "ops.balancing.load_loss",
        lambda probabilities, counted: balancing.load_loss(probabilities, counted),
        of_tokens,
        check_variation,
    ),
    Entry("ops.balancing.switch_loss", balancing.switch_loss, switched, check_switch),
    Entry("ops.balancing.z_loss", balancing.z_loss, of_logits, check_z),
    Entry(
        "ops.penalties.divergence_from_prior",
        penalties.divergence_from_prior,
        penalized,
        check_kl,
    ),
    Entry(
        "ops.penalties.mean_entropy",
        penalties.mean_entropy,
        {"probabilities": d.Kind(some_probabilities)},
        check_entropy,
    ),
    Entry(
        "ops.penalties.expected_cost",
        lambda probabilities, prior: penalties.expected_cost(probabilities, prior),
        penalized,
        check_cost,
    ),
    Entry(
        "ops.penalties.open_rate_penalty",
        penalties.open_rate_penalty,
        gates,
        check_penalty,
    ),
    Entry(
        "ops.distillation.softened_divergence",
        distillation.softened_divergence,
        teachers,
        check_softened,
    ),
    Entry(
        "ops.dispatch.sorted_places", dispatch.sorted_places, assignments, check_places
    ),
    Entry("ops.dispatch.fixed_places", fixed, assignments, check_fixed),
    Entry("ops.dispatch.drop_above", dispatch.drop_above, drops, check_drops),
    Entry(
        "ops.dispatch.capacity_for",
        dispatch.capacity_for,
        {
            "rows": d.Kind(lambda r: r.randint(0, 100)),
            "per_row": d.free(1, 2, 3),
            "num_experts": d.free(1, 3, 8),
            "factor": d.free(0.1, 1.0, 1.1, 2.5),
        },
        check_capacity,
    ),
    Entry("ops.dispatch.move_rows", move, moves, check_moves),
    Entry(
        "ops.pooling.masked_mean", pooling.masked_mean, sequences, check_pooled(np.mean)
    ),
    Entry(
        "ops.pooling.masked_max", pooling.masked_max, sequences, check_pooled(np.max)
    ),
    Entry(
        "ops.pooling.largest",
        lambda inputs, mask: pooling.largest(inputs, 1),
        sequences,
        check_largest,
    ),
    Entry("ops.pooling.pool_to_grid", pooling.pool_to_grid, maps, check_grid),
    Entry("ops.rows.run_on_rows", run_some, batches, check_some),
    Entry("ops.feed_forward.grouped_feed_forward", grouped, networks, check_networks),
    Entry(
        "ops.feed_forward.stacked_feed_forward", stacked, networks, check_first_network
    ),
    Entry("ops.feed_forward.dense_feed_forward", dense, networks, check_first_network),
    Entry(
        "ops.seeds.replica_seed",
        seeds.replica_seed,
        {"seed": d.Kind(lambda r: np.array([r.getrandbits(31), r.getrandbits(31)]))},
        check_seed,
    ),
    Entry(
        "ops._means.log",
        _means.log,
        {"probabilities": d.Kind(some_probabilities)},
        lambda answer, probabilities: np.testing.assert_array_equal(
            np.isfinite(answer), ~np.isnan(probabilities)
        ),
    ),
]
