"""The entries of `kd.rules`, and of what scores are made of in `ops.confidence`."""

import math

import numpy as np

import keras_dynamic as kd
from keras_dynamic.ops import confidence
from tests.abuse import drawing as d
from tests.abuse.calibration import same
from tests.abuse.judging import Entry

RANGES = {
    "MaxProbability": (0, 1),
    "Margin": (0, 1),
    "Entropy": (0, math.inf),
    "ExitRule": (-math.inf, math.inf),
}


def thresholds(name):
    """A threshold, None, or a list of both."""
    one = d.optional(d.number(*RANGES[name]))
    if name == "ExitRule":
        one = d.Kind(one.right, d.of(math.nan, math.inf, True, "0.5", *d.JUNK))

    def right(r):
        if r.random() < 0.6:
            return one.right(r)
        values = [one.right(r) for _ in range(r.randint(0, 3))]
        return r.choice([list, tuple])(values)

    def wrong(r):
        bad = one.wrong(r)
        while isinstance(bad, list):  # a list is a list of thresholds
            bad = one.wrong(r)
        return bad if r.random() < 0.6 else [0.5, bad]

    return d.Kind(right, wrong)


def rows(r):
    """(batch, classes) probabilities; (batch, 1) for a binary head."""
    batch, classes = r.randint(0, 5), r.randint(1, 4)
    if classes > 1:
        return d.probabilities(r, batch, classes)
    return d.probabilities(r, batch, 2)[:, 1:]


def expected_score(kind, probabilities):
    """The score of each row, plainly, in float64."""
    answer = []
    for row in np.asarray(probabilities, np.float64):
        row = np.array([1 - row[0], row[0]]) if len(row) == 1 else row
        top = np.sort(row)[::-1]
        if np.isnan(row).any():
            answer.append(math.nan)
        elif kind == "Entropy":
            answer.append(-sum(p * math.log(p) for p in row if p > 0))
        else:
            answer.append(top[0] - (top[1] if kind == "Margin" else 0))
    return np.array(answer)


def scored(kind):
    """Scores probabilities, and says who leaves at 0.5."""

    def call(probabilities):
        rule = getattr(kd.rules, kind)(0.5)
        score = rule.score(probabilities)
        return np.asarray(score), np.asarray(rule.leaves(score, 0))

    def check(answer, probabilities):
        score, leaves = answer
        expected = expected_score(kind, probabilities)
        assert score.dtype == np.float32 and score.shape == (len(probabilities),)
        same(score, expected, 2e-6)
        assert not leaves[np.isnan(expected)].any()
        sure = np.abs(expected - 0.5) > 1e-5
        wanted = expected < 0.5 if kind == "Entropy" else expected > 0.5
        np.testing.assert_array_equal(leaves[sure], wanted[sure])

    return Entry(f"rules.{kind}.score", call, {"probabilities": d.Kind(rows)}, check)


def agreeing(answers):
    """Patience at four exits one after the other."""
    rule = kd.rules.Patience(2)
    state, scores = rule.initial_state(len(answers[0])), []
    for number, probabilities in enumerate(answers):
        score, state = rule.update(state, probabilities, number)
        scores.append(np.asarray(score))
    return scores


def check_agreeing(scores, answers):
    for row in range(len(answers[0])):
        count, before = 0, None
        for exit_index, probabilities in enumerate(answers):
            broken = np.isnan(probabilities[row]).any()
            answer = None if broken else int(np.argmax(probabilities[row]))
            count = 0 if broken else count + 1 if answer == before else 1
            before = answer
            assert scores[exit_index][row] == count


def four_answers(r):
    batch = r.randint(0, 4)
    return [d.probabilities(r, batch, 3, dtypes=(np.float32,)) for _ in range(4)]


def check_scaled(answer, outputs, kind, temperature):
    answer = np.asarray(answer)
    assert answer.dtype == np.float32 and answer.shape == outputs.shape
    for row, given in zip(answer, np.asarray(outputs, np.float64), strict=True):
        if np.isfinite(given).all() and np.abs(given).max(initial=0) < 1e30:
            assert np.isfinite(row).all() and (row >= 0).all() and (row <= 1).all()
        if np.isnan(given).any():
            assert np.isnan(row).any()


def heads(r):
    kind = r.choice(["logits", "probabilities"])
    outputs = rows(r)
    if kind == "logits":
        outputs = d.floats(r, (r.randint(0, 4), r.randint(1, 4)))
    return {
        "outputs": outputs,
        "kind": kind,
        "temperature": r.choice([0.5, 1, 7.0]),
    }, False


def check_class(answer, probabilities):
    for one, row in zip(np.asarray(answer), np.asarray(probabilities), strict=True):
        if not np.isnan(row).any():
            assert one == (int(row[0] > 0.5) if len(row) == 1 else int(np.argmax(row)))


def made(name):
    """Makes a rule, and brings it to its config and back."""
    cls = getattr(kd.rules, name)

    def call(threshold):
        rule = cls(threshold)
        twin = cls.from_config(rule.get_config())
        assert repr(twin) == repr(rule)
        return rule

    return call


def check_values(answer, threshold, num_exits):
    assert answer.shape == (num_exits,) and answer.dtype == np.float32


def of_threshold(threshold, num_exits):
    return kd.rules.MaxProbability(threshold).thresholds(num_exits)


PATIENCE = d.Kind(
    d.any_of(d.of(None), lambda r: r.randint(1, 9), lambda r: [r.randint(1, 4), None]),
    d.of(0, -1, 1.5, math.nan, math.inf, True, "2", [0], [1.5], [True], *d.JUNK),
)
P = {"probabilities": d.Kind(rows)}
ENTRIES = [
    *(
        Entry(f"rules.{name}", made(name), {"threshold": thresholds(name)})
        for name in RANGES
    ),
    Entry("rules.Patience", made("Patience"), {"threshold": PATIENCE}),
    Entry(
        "rules.Selected",
        made("Selected"),
        {"threshold": d.Kind(d.of(None), d.of(0.5, [0.5], "a", *d.JUNK))},
    ),
    Entry(
        "rules.get",
        kd.rules.get,
        {
            "identifier": d.Kind(
                d.of("entropy", "margin", "patience", "selected", "max_probability"),
                d.of("nonsense", "", None, 3, True, [], ["entropy"], *d.JUNK),
            )
        },
    ),
    *(scored(kind) for kind in ("MaxProbability", "Margin", "Entropy")),
    Entry(
        "rules.Patience.update",
        agreeing,
        {"answers": d.Kind(four_answers)},
        check_agreeing,
    ),
    Entry(
        "rules.ExitRule.thresholds",
        of_threshold,
        {"threshold": d.free(0.5, None, [0.5], [0.5, None]), "num_exits": d.free(2)},
        check_values,
        may_refuse=True,
    ),
    Entry(
        "ops.confidence.calibrated_probabilities",
        confidence.calibrated_probabilities,
        heads,
        check_scaled,
    ),
    Entry("ops.confidence.predicted_class", confidence.predicted_class, P, check_class),
]
