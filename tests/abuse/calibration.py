"""The entries of `kd.calibration`: arguments at random, and plain NumPy to compare."""

import math

import numpy as np
from scipy import stats

import keras_dynamic as kd
from tests.abuse import drawing as d
from tests.abuse.judging import Entry

c = kd.calibration
TINY = float(np.finfo(np.float32).tiny)


def with_labels(draw_scores, name, **others):
    """Arguments (scores, labels), which have to fit each other, and others."""

    def arguments(r):
        rows, classes = r.randint(0, 6), r.randint(2, 4)
        given = {name: draw_scores(r, rows, classes)}
        dtype = r.choice([np.int8, np.uint8, np.int32, np.int64])
        labels = np.array([r.randrange(classes) for _ in range(rows)], dtype)
        given["labels"] = labels if r.random() < 0.7 else labels.tolist()
        given |= {key: kind.right(r) for key, kind in others.items()}
        if r.random() < 0.5:
            return given, False
        key = r.choice(list(given))
        if key == name:
            given[key] = d.array_not_of(2)(r)
        elif key == "labels":
            given[key] = _wrong_labels(r, rows, classes)
        else:
            given[key] = others[key].wrong(r)
        return given, True

    return arguments


def _wrong_labels(r, rows, classes):
    wrong = [
        np.zeros(rows + 1, int),
        np.full(rows, classes) if rows else np.zeros(1, int),
        np.full(rows, -1) if rows else np.zeros(1, int),
        np.full(rows, 0.5) if rows else np.zeros((1, 1), int),
        np.full(rows, math.nan) if rows else np.zeros(2, int),
        np.ones(rows, bool) if rows else np.zeros(2, int),
        ["a"] * rows if rows else ["a"],
        np.zeros((rows, classes), int),
    ]
    return r.choice([*wrong, None, d.NOTHING, 1.5, {"a": 1}])


def logs(r, rows, classes):
    return d.floats(r, (rows, classes), scale=3.0)


def _per_row(probabilities, labels):
    """(p as float64, labels, whose answer is right), plainly."""
    p, y = np.asarray(probabilities, float), np.asarray(labels, int)
    right = [
        not np.isnan(row).any() and int(np.argmax(row)) == label
        for row, label in zip(p, y, strict=True)
    ]
    return p, y, np.array(right, bool)


def same(answer, expected, tolerance=1e-9):
    np.testing.assert_allclose(answer, expected, rtol=tolerance, atol=tolerance)


def mean(values):
    return float(np.mean(values)) if len(values) else math.nan


def check_accuracy(answer, probabilities, labels):
    same(answer, mean(_per_row(probabilities, labels)[2]))


def check_likelihood(answer, probabilities, labels):
    p, y, _ = _per_row(probabilities, labels)
    same(
        answer,
        mean(
            [
                -math.log(max(row[k], TINY)) if row[k] == row[k] else math.nan
                for row, k in zip(p, y, strict=True)
            ]
        ),
    )


def check_brier(answer, probabilities, labels):
    p, y, _ = _per_row(probabilities, labels)
    same(
        answer,
        mean(
            [
                np.sum((row - np.eye(len(row))[k]) ** 2)
                for row, k in zip(p, y, strict=True)
            ]
        ),
    )


def check_error(answer, probabilities, labels, num_bins):
    p, _, _ = _per_row(probabilities, labels)
    if len(p) == 0 or np.isnan(p).any():
        assert math.isnan(answer)
    else:
        assert 0 <= answer <= 1 + 1e-9


def check_softmax(answer, log_probabilities, temperature):
    rows = np.asarray(log_probabilities, float)
    assert answer.shape == rows.shape and answer.dtype == np.float64
    for row, given in zip(answer, rows, strict=True):
        broken = np.isnan(given).any() or (given == math.inf).any()
        if broken or not np.isfinite(given).any():
            assert np.isnan(row).all()
        else:
            same(row.sum(), 1.0)
            best = int(np.argmax(given))
            assert row[best] == row.max()


def check_fit(answer, log_probabilities, labels):
    assert 0.05 <= answer.temperature <= 20 and answer.status
    if answer.status == "fitted":
        assert answer.nll_after <= answer.nll_before
    else:
        assert answer.temperature == 1.0


def scores(r):
    return d.floats(r, (r.randint(0, 8),))


def check_candidates(answer, scores, limit):
    with np.errstate(over="ignore"):
        finite = np.asarray(scores).astype(np.float32)
    finite = finite[np.isfinite(finite)]
    assert answer.ndim == 1 and len(answer) <= limit
    assert np.all(np.diff(answer) > 0)
    for threshold in answer:
        assert not np.any(finite == threshold)
        assert np.any(finite < threshold) and np.any(finite > threshold)


def check_open(answer, scores, leaves_above):
    with np.errstate(over="ignore"):
        finite = np.asarray(scores).astype(np.float32)
    finite = finite[np.isfinite(finite)]
    assert math.isfinite(answer) and float(np.float32(answer)) == answer
    ends = np.abs(finite) >= np.finfo(np.float32).max
    finite = finite[~ends]
    assert np.all(finite > answer) if leaves_above else np.all(finite < answer)


def points(r):
    """Two arrays of one length, or not."""
    n = r.randint(0, 6)
    given = {"costs": d.floats(r, (n,)), "accuracies": d.floats(r, (n,))}
    if r.random() < 0.5:
        return given, False
    given[r.choice(list(given))] = r.choice(
        [d.no_array, lambda r: d.floats(r, (n + 1,)), lambda r: d.floats(r, (2, 2))]
    )(r)
    return given, True


def check_front(answer, costs, accuracies):
    costs, accuracies = (np.asarray(a, float) for a in (costs, accuracies))
    for k in range(len(costs)):
        beaten = any(
            costs[j] <= costs[k]
            and accuracies[j] >= accuracies[k]
            and (costs[j] < costs[k] or accuracies[j] > accuracies[k])
            for j in range(len(costs))
        )
        broken = np.isnan(costs[k]) or np.isnan(accuracies[k])
        lost = accuracies[k] == -math.inf
        assert lost or answer[k] == (not beaten and not broken), (k, answer)


def walks(*goals, functions=False, **others):
    """Arguments (leaves, correct, exit_costs, ...), which have to fit each other."""

    def arguments(r):
        early, rows = r.randint(1, 3), r.randint(1, 6)
        random = np.random.default_rng(r.getrandbits(32))
        leaves = []
        for _ in range(early):
            matrix = random.random((rows, r.randint(1, 4))) < 0.5
            matrix[:, 0] = False
            leaves.append(matrix)
        given = {
            "leaves": leaves,
            "correct": random.random((rows, early + 1)) < 0.6,
            "exit_costs": np.sort(random.random(early + 1) + 0.01).tolist(),
        }
        goal = r.choice(goals) if goals else None
        if goal is not None:
            key, kind = goal
            given[key] = kind.right(r)
        given |= {key: kind.right(r) for key, kind in others.items()}
        if r.random() < 0.5:
            return given, False
        key = r.choice(list(given))
        if key == "leaves":
            given[key] = _wrong_leaves(r, leaves, rows)
        elif key == "correct":
            wrong = [d.floats(r, (rows, early + 1)), np.ones((rows, early), bool)]
            wrong += [np.ones((0, early + 1), bool), np.ones(rows, bool)]
            given[key] = r.choice([*wrong, None, "nonsense", d.NOTHING, [], [[1]]])
        elif key == "exit_costs":
            wrong = [[1.0] * early, [0.0] * (early + 1), [-1.0] * (early + 1)]
            wrong += [[math.nan] * (early + 1), [math.inf] * (early + 1), "nonsense"]
            given[key] = r.choice([*wrong, None, d.NOTHING, [["a"]], {}, 1.0])
        else:
            kind = others.get(key) or dict(goals)[key]
            given[key] = kind.wrong(r)
        return given, True

    return arguments


def _wrong_leaves(r, leaves, rows):
    opened = [matrix.copy() for matrix in leaves]
    opened[0][:, 0] = True
    wrong = [opened, [m.astype(int) for m in leaves], [m[:, 0] for m in leaves]]
    wrong += [[m[:, :0] for m in leaves], [np.zeros((rows + 1, 2), bool)] * len(leaves)]
    return r.choice([*wrong, None, [], 3, "nonsense", d.NOTHING, [None], {}])


def check_choice(answer, leaves, correct, exit_costs, budget=None, **goals):
    taken = exits_of(leaves, answer.columns)
    rows = np.arange(len(correct))
    same(answer.accuracy, correct[rows, taken].mean())
    same(answer.mean_cost, np.asarray(exit_costs)[taken].mean())
    if budget is not None:
        assert answer.mean_cost <= budget * (1 + 1e-6)


def exits_of(leaves, columns):
    """The exit of each row under one column an exit, by a loop."""
    taken = []
    for row in range(len(leaves[0])):
        left = [e for e, m in enumerate(leaves) if m[row, columns[e]]]
        taken.append(left[0] if left else len(leaves))
    return np.array(taken)


def check_threshold_front(answer, leaves, correct, exit_costs):
    columns, costs, accuracies = answer
    rows = np.arange(len(correct))
    for each, cost, share in zip(columns, costs, accuracies, strict=True):
        taken = exits_of(leaves, each)
        same(share, correct[rows, taken].mean())
        same(cost, np.asarray(exit_costs)[taken].mean())


def check_path(answer, leaves, correct, exit_costs, max_risk):
    costs = [np.asarray(exit_costs)[exits_of(leaves, each)].mean() for each in answer]
    assert all(low > high for low, high in zip(costs, costs[1:], strict=False))


def leave_columns(r):
    rows = r.randint(0, 5)
    columns = [
        np.array([r.random() < 0.4 for _ in range(rows)], bool)
        for _ in range(r.randint(1, 4))
    ]
    if r.random() < 0.5:
        return {"leave_columns": columns}, False
    wrong = [[*columns, np.ones(rows + 1, bool)], [np.ones((2, 2), bool)], [], None]
    wrong += [[np.ones(rows + 1)], [[0, 1]], 3, "nonsense", [None], {}, d.NOTHING]
    return {"leave_columns": r.choice(wrong)}, True


def check_exits(answer, leave_columns):
    expected = exits_of([column[:, None] for column in leave_columns], [0] * 9)
    np.testing.assert_array_equal(answer, expected)


def losses(r):
    rows, steps = r.randint(0, 6), r.randint(0, 4)
    given = {
        "lost": np.array([[r.random() < 0.2] * steps for _ in range(rows)], bool),
        "max_risk": d.number(0, 1, below=True).right(r),
        "confidence": d.number(0, 1, above=True, below=True).right(r),
    }
    given["lost"] = given["lost"].reshape(rows, steps)
    if r.random() < 0.5:
        return given, False
    key = r.choice(list(given))
    given[key] = {
        "lost": d.of(None, [], [[0.5]], np.ones(3, bool), "nonsense", d.NOTHING, {}),
        "max_risk": d.required(d.number(0, 1, below=True)).wrong,
        "confidence": d.required(d.number(0, 1, above=True, below=True)).wrong,
    }[key](r)
    return given, True


def check_certify(answer, lost, max_risk, confidence):
    passed, values = answer
    assert len(values) == lost.shape[1]
    for step in range(passed):
        expected = stats.binom.cdf(int(lost[:, step].sum()), len(lost), float(max_risk))
        same(values[step], expected)
        assert values[step] <= 1 - confidence


def counts_of_losses(r):
    n = r.randint(0, 30)
    given = {
        "num_lost": r.randint(0, n),
        "num_samples": n,
        "max_risk": d.number(0, 1).right(r),
    }
    if r.random() < 0.5:
        return given, False
    key = r.choice(list(given))
    wrong = {
        "num_lost": [-1, n + 1, 0.5, math.nan, None, "1", {}, True],
        "num_samples": [-1, 2.5, math.nan, None, "3", [], True],
        "max_risk": [-0.1, 1.1, math.nan, None, "0.1", [], True],
    }[key]
    given[key] = r.choice(wrong)
    return given, True


def check_p_value(answer, num_lost, num_samples, max_risk):
    q = float(max_risk)
    expected = sum(
        math.comb(num_samples, k) * q**k * (1 - q) ** (num_samples - k)
        for k in range(num_lost + 1)
    )
    same(answer, expected, 1e-7)


def check_samples(answer, max_risk, confidence, risk):
    if risk >= max_risk:
        assert answer is None
    elif risk == 0:
        level = 1 - float(confidence)
        assert (1 - float(max_risk)) ** answer <= level * (1 + 1e-9)
        assert answer < 2 or (1 - float(max_risk)) ** (answer - 1) > level * (1 - 1e-9)


def reports(r):
    exits, rows, classes = r.randint(1, 3), r.randint(0, 5), r.randint(2, 3)
    fit = c.TemperatureFit(1.0, "fitted", 0.3, 0.3)
    given = {
        "log_probabilities": [logs(r, rows, classes) for _ in range(exits)],
        "labels": np.array([r.randrange(classes) for _ in range(rows)], int),
        "temperatures": [fit] * exits,
        "exit_index": np.array([r.randrange(exits) for _ in range(rows)], int),
        "thresholds": [r.choice([0.5, None]) for _ in range(exits - 1)],
        "exit_costs": [0.5] * exits,
        "names": [f"exit_{k}" for k in range(exits)],
        "rule": "max_probability",
        "goal": r.choice([None, ("budget", 0.5)]),
    }
    if r.random() < 0.5:
        return given, False
    key = r.choice(list(given))
    wrong = {
        "log_probabilities": [[], None, 3, "nonsense", [None], [np.ones(3)], {}],
        "labels": [np.zeros(rows + 1, int), np.full(rows + 1, 9), None, "nonsense"],
        "temperatures": [[], None, 3, [fit] * (exits + 1), ["a"] * exits, "x" * exits],
        "exit_index": [np.full(rows + 1, 0), None, "nonsense", np.full(rows + 1, 9)],
        "thresholds": [[0.5] * exits, None, 3, "nonsense!"],
        "exit_costs": [[1.0] * (exits + 1), None, 3, "nonsense!", [d.NOTHING] * exits],
        "names": [["a"] * (exits + 1), None, 3],
        "rule": [None, 3, [], d.NOTHING],
        "goal": [3, "nonsense", ("budget",), {}, d.NOTHING],
    }[key]
    given[key] = r.choice(wrong)
    return given, True


def check_report(answer, **arguments):
    assert str(answer) and repr(answer) and answer.to_dict()
    assert answer.num_samples == len(arguments["labels"])


GOALS = (
    ("budget", d.number(0, above=True)),
    ("max_accuracy_drop", d.number(0, 1, below=True)),
    ("min_accuracy", d.number(0, 1)),
)
# Probabilities and numbers of rows that keep these searches short.
RISK = d.required(d.number(0, 1, below=True))
P = "probabilities"
ENTRIES = [
    Entry(
        "calibration.accuracy",
        c.accuracy,
        with_labels(d.probabilities, P),
        check_accuracy,
    ),
    Entry(
        "calibration.negative_log_likelihood",
        c.negative_log_likelihood,
        with_labels(d.probabilities, P),
        check_likelihood,
    ),
    Entry(
        "calibration.brier_score",
        c.brier_score,
        with_labels(d.probabilities, P),
        check_brier,
    ),
    Entry(
        "calibration.expected_calibration_error",
        c.expected_calibration_error,
        with_labels(d.probabilities, P, num_bins=d.required(d.integer(1))),
        check_error,
    ),
    Entry(
        "calibration.apply_temperature",
        c.apply_temperature,
        {
            "log_probabilities": d.Kind(
                lambda r: logs(r, r.randint(0, 5), r.randint(1, 4)), d.array_not_of(2)
            ),
            "temperature": d.required(d.number(0, above=True)),
        },
        check_softmax,
    ),
    Entry(
        "calibration.fit_temperature",
        c.fit_temperature,
        with_labels(logs, "log_probabilities"),
        check_fit,
    ),
    Entry(
        "calibration.candidate_thresholds",
        c.candidate_thresholds,
        {
            "scores": d.Kind(scores, d.array_not_of(1)),
            "limit": d.required(d.integer(1)),
        },
        check_candidates,
    ),
    Entry(
        "calibration.open_threshold",
        c.open_threshold,
        {
            "scores": d.Kind(scores, d.array_not_of(1)),
            "leaves_above": d.required(d.boolean()),
        },
        check_open,
    ),
    Entry("calibration.pareto_front", c.pareto_front, points, check_front),
    Entry(
        "calibration.choose_thresholds",
        c.choose_thresholds,
        walks(*GOALS, standard_errors=d.required(d.number(0))),
        check_choice,
        may_refuse=True,
    ),
    Entry(
        "calibration.threshold_front", c.threshold_front, walks(), check_threshold_front
    ),
    Entry("calibration.risk_path", c.risk_path, walks(max_risk=RISK), check_path),
    Entry("calibration.exit_indices", c.exit_indices, leave_columns, check_exits),
    Entry("calibration.certify", c.certify, losses, check_certify),
    Entry("calibration.risk_p_value", c.risk_p_value, counts_of_losses, check_p_value),
    Entry(
        "calibration.samples_to_certify",
        c.samples_to_certify,
        {
            "max_risk": RISK,
            "confidence": d.required(d.number(0, 1, above=True, below=True)),
            "risk": d.required(d.number(0, 1)),
        },
        check_samples,
    ),
    Entry("calibration.build_report", c.build_report, reports, check_report),
]
