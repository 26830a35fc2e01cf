import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops
from scipy import stats

import keras_dynamic as kd
from keras_dynamic.models import rules

NAN = math.nan


def float32(values):
    return np.asarray(values, "float32")


def leaving(rule, exits, num_classes=None):
    """Who leaves at each exit, and the scores: lists of exits of rows.

    `exits` holds the probabilities at each exit, or the classes that are certain.
    """
    if num_classes is not None:
        exits = [np.eye(num_classes)[classes] for classes in exits]
    state = rule.initial_state(tf.constant(len(exits[0])))
    leaves, scores = [], []
    for exit_index, probabilities in enumerate(exits):
        score, state = rule.update(state, float32(probabilities), exit_index)
        scores.append(score.numpy().tolist())
        leaves.append(rule.leaves(score, exit_index).numpy().tolist())
    return leaves, scores


# Scores and strictness

PROBABILITIES = [[0.5, 0.25, 0.25, 0], [0, 0, 1, 0], [0.25] * 4]
BINARY = [[0.25], [1.0], [0.5]]


@pytest.mark.parametrize(
    "rule, scores, binary_scores",
    [
        (rules.MaxProbability(), [0.5, 1, 0.25], [0.75, 1, 0.5]),
        (rules.Margin(), [0.25, 1, 0], [0.5, 1, 0]),
        # (1/2) log 2 + 2 (1/4) log 4 = 1.5 log 2; 0; log 4
        # (1/4) log 4 + (3/4) log (4/3) = 2 log 2 - (3/4) log 3; 0; log 2
        (
            rules.Entropy(),
            [1.5 * math.log(2), 0, math.log(4)],
            [2 * math.log(2) - 0.75 * math.log(3), 0, math.log(2)],
        ),
        (rules.Patience(), [1, 1, 1], [1, 1, 1]),
    ],
)
def test_score_by_hand(rule, scores, binary_scores):
    for probabilities, expected in [(PROBABILITIES, scores), (BINARY, binary_scores)]:
        actual = rule.score(float32(probabilities))
        assert actual.dtype == tf.float32
        np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_entropy_is_that_of_scipy():
    probabilities = np.random.default_rng(0).dirichlet(np.ones(5), size=20)
    expected = stats.entropy(probabilities, axis=1)
    actual = rules.Entropy().score(float32(probabilities))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "rule, scores, expected",
    [
        # Exactly at the threshold a row stays.
        (rules.MaxProbability(0.75), [0.74, 0.75, 0.76], [False, False, True]),
        (rules.Margin(0.5), [0.49, 0.5, 0.51], [False, False, True]),
        (rules.Entropy(0.5), [0.49, 0.5, 0.51], [True, False, False]),
        # So many agreeing exits are enough.
        (rules.Patience(2), [1, 2, 3], [False, True, True]),
        # The ends of the range.
        (rules.MaxProbability(0), [0.1, 1.0], [True, True]),
        (rules.MaxProbability(1), [0.1, 1.0], [False, False]),
        (rules.Margin(0), [0.0, 1.0], [False, True]),
        (rules.Margin(1), [0.0, 1.0], [False, False]),
        (rules.Entropy(0), [0.0, 0.1], [False, False]),
        (rules.Entropy(10), [0.0, 9.9], [True, True]),
        (rules.Patience(1), [1, 5], [True, True]),
    ],
)
def test_leaves_at_the_threshold(rule, scores, expected):
    for _ in range(2):
        assert rule.leaves(tf.constant(scores, tf.float32), 0).numpy().tolist() == (
            expected
        )
        # The same once the model holds the threshold.
        rule = rule.bind(tf.constant(rule.thresholds(1)))


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.9, 1 / 3])
def test_a_decimal_threshold_is_met_by_its_float32_neighbor(threshold):
    score = np.float32(threshold)
    around = [np.nextafter(score, 0), score, np.nextafter(score, 1)]
    rule = rules.MaxProbability(threshold)
    assert rule.leaves(tf.constant(around), 0).numpy().tolist() == [False, False, True]


@pytest.mark.parametrize(
    "rule", [rules.MaxProbability, rules.Margin, rules.Entropy, rules.Patience]
)
def test_none_closes_exits(rule):
    scores = tf.constant([0.0, 0.5, 1.0, 99.0])
    closed = rule(None)
    assert not np.any(closed.leaves(scores, 0))
    assert not np.any(closed.bind(closed.thresholds(2)).leaves(scores, 1))
    # An open exit, a closed one, and an open one.
    some = rule([1, None, 1])
    for each in (some, some.bind(tf.constant(some.thresholds(3)))):
        counts = [int(np.sum(each.leaves(scores, k))) for k in range(3)]
        assert counts[0] == counts[2] > 0 == counts[1]


def test_a_threshold_for_each_exit():
    rule = rules.MaxProbability([0.9, 0.5, None])
    answers = [[[0.7, 0.3], [0.95, 0.05]]] * 3
    leaves, scores = leaving(rule, answers)
    assert leaves == [[False, True], [True, True], [False, False]]
    np.testing.assert_allclose(scores, [[0.7, 0.95]] * 3, rtol=1e-6)


@pytest.mark.parametrize(
    "rule",
    [
        rules.MaxProbability(0),
        rules.Margin(0),
        rules.Entropy(10),
        rules.Patience(1),
    ],
)
@pytest.mark.parametrize("classes", [1, 3])
def test_a_row_with_a_nan_stays(rule, classes):
    probabilities = np.full((3, classes), 0.1)
    probabilities[:, -1] = 0.9
    probabilities[1, 0] = NAN
    assert leaving(rule, [probabilities])[0] == [[True, False, True]]


# Patience


def test_patience_by_hand():
    # A column is a row of the batch: 0 0 1 1 1, 2 1 2 1 2, 1 1 1 1 1, 0 1 1 0 0.
    answers = [[0, 2, 1, 0], [0, 1, 1, 1], [1, 2, 1, 1], [1, 1, 1, 0], [1, 2, 1, 0]]
    leaves, scores = leaving(rules.Patience(3), answers, num_classes=3)
    np.testing.assert_array_equal(
        np.transpose(scores),
        [[1, 2, 1, 2, 3], [1, 1, 1, 1, 1], [1, 2, 3, 4, 5], [1, 1, 2, 1, 2]],
    )
    np.testing.assert_array_equal(leaves, np.array(scores) >= 3)


def test_patience_of_a_binary_head():
    # Yes, yes, no; and no, no, no. Exactly 1/2 counts as no, the first of equals.
    answers = [[[0.9], [0.2]], [[0.6], [0.5]], [[0.4], [0.1]]]
    assert leaving(rules.Patience(), answers)[1] == [[1, 1], [2, 2], [1, 3]]


def test_nan_agrees_with_nobody():
    sure, broken = [0.0, 1.0], [NAN, NAN]
    answers = [[sure, broken], [broken, broken], [sure, sure], [sure, sure]]
    leaves, scores = leaving(rules.Patience(1), answers)
    assert scores == [[1, 0], [0, 0], [1, 1], [2, 2]]
    assert leaves == [[True, False], [False, False], [True, True], [True, True]]


# Arguments


def test_defaults():
    found = [str(rules.get(name)) for name in sorted(rules._BY_NAME)]
    assert found == [
        "Entropy(threshold=0.3)",
        "Margin(threshold=0.8)",
        "MaxProbability(threshold=0.9)",
        "Patience(threshold=2)",
        "Selected()",
    ]


def test_get():
    rule = rules.Margin(0.2)
    assert rules.get(rule) is rule
    assert type(rules.get("max_probability")) is kd.rules.MaxProbability
    with pytest.raises(ValueError, match="Received: rule='confidence'"):
        rules.get("confidence")
    with pytest.raises(TypeError, match="Received: rule=0.9"):
        rules.get(0.9)
    with pytest.raises(TypeError, match="Received: rule=<class .*Entropy"):
        rules.get(rules.Entropy)


@pytest.mark.parametrize(
    "error, rule, threshold, received",
    [
        (ValueError, rules.MaxProbability, 1.3, r"\[0, 1\]. Received: threshold=1.3"),
        (ValueError, rules.MaxProbability, -0.1, "Received: threshold=-0.1"),
        (ValueError, rules.MaxProbability, NAN, "Received: threshold=nan"),
        (ValueError, rules.MaxProbability, [0.5, 2], "Received: threshold=2"),
        (ValueError, rules.Margin, 1.01, r"\[0, 1\]. Received: threshold=1.01"),
        (ValueError, rules.Entropy, -0.5, "at least 0. Received: threshold=-0.5"),
        (ValueError, rules.Entropy, NAN, "Received: threshold=nan"),
        (ValueError, rules.Patience, 0, "at least 1. Received: threshold=0"),
        (ValueError, rules.Patience, 1.5, "whole number .* Received: threshold=1.5"),
        (ValueError, rules.Patience, math.inf, "finite.* Received: threshold=inf"),
        (ValueError, rules.Entropy, math.inf, "finite.* Received: threshold=inf"),
        (ValueError, rules.ExitRule, -math.inf, "finite.* Received: threshold=-inf"),
        (ValueError, rules.Patience, [2, NAN], "Received: threshold=nan"),
        (ValueError, rules.ExitRule, NAN, "Received: threshold=nan"),
        (TypeError, rules.MaxProbability, "0.5", "Received: threshold='0.5'"),
        (TypeError, rules.MaxProbability, True, "Received: threshold=True"),
        (TypeError, rules.MaxProbability, [[0.5]], r"Received: threshold=\[0.5\]"),
        (TypeError, rules.Entropy, {"a": 1}, "Received: threshold={'a': 1}"),
        (TypeError, rules.Patience, [None, "2"], "Received: threshold='2'"),
    ],
)
def test_error_of_the_threshold(error, rule, threshold, received):
    with pytest.raises(error, match=received):
        rule(threshold)


@pytest.mark.parametrize(
    "given, kept",
    [
        ((0.5, None), [0.5, None]),
        (np.array([0.25, 0.5]), [0.25, 0.5]),
        (np.array(0.25), 0.25),
        (np.float64(0.3), 0.3),
        (1, 1),
        ([], []),
    ],
)
def test_threshold_is_kept_as_plain_numbers(given, kept):
    threshold = rules.MaxProbability(given).threshold
    assert threshold == kept
    json.dumps(threshold)


def test_patience_keeps_whole_numbers():
    threshold = rules.Patience([2.0, np.int64(3), None]).threshold
    assert [type(value) for value in threshold] == [int, int, type(None)]
    assert threshold == [2, 3, None]


# What the model does with a rule


def test_thresholds():
    for rule, expected in [
        (rules.MaxProbability(0.3), [0.3, 0.3]),
        (rules.MaxProbability([0.3, None]), [0.3, math.inf]),
        (rules.Entropy([None, 0.3]), [-math.inf, 0.3]),
        (rules.Patience([2, None]), [2, math.inf]),
        (rules.Margin(None), [math.inf, math.inf]),
    ]:
        thresholds = rule.thresholds(2)
        assert thresholds.dtype == np.float32
        np.testing.assert_array_equal(thresholds, float32(expected))


@pytest.mark.parametrize("length", [0, 1, 3])
def test_thresholds_of_a_wrong_length(length):
    rule = rules.MaxProbability([0.5] * length)
    with pytest.raises(ValueError, match=f"2 early exits.*with {length} entries"):
        rule.thresholds(2)


def test_with_threshold_is_a_copy():
    rule = rules.Patience(2)
    other = rule.with_threshold([3, None])
    assert type(other) is rules.Patience
    assert (rule.threshold, other.threshold) == (2, [3, None])
    with pytest.raises(ValueError, match="Received: threshold=0"):
        rule.with_threshold(0)


@pytest.mark.parametrize(
    "rule",
    [
        rules.MaxProbability([0.3, None, 0.123456]),
        rules.Entropy([None, 1e-5, 2]),
        rules.Patience([2, None, 3]),
    ],
)
def test_values_of_a_weight_come_back_as_the_users_numbers(rule):
    values = rule.thresholds(3)
    assert rule.with_threshold(None).with_values(values).threshold == rule.threshold


def test_codes_of_classes():
    classes = [rules.MaxProbability, rules.Margin, rules.Entropy, rules.Patience]
    codes = [rules.code_of(each) for each in classes]
    assert [rules.class_with_code(code) for code in codes] == classes
    codes += [rules.code_of(PowerSum), rules.code_of(Doubt), 0]
    assert len(set(codes)) == 7
    assert all(0 <= code < 2**31 for code in codes)
    assert rules.class_with_code(rules.code_of(PowerSum)) is None


def test_bind_is_a_copy():
    rule, scores = rules.Entropy(0.5), tf.constant([0.2, 0.7])
    thresholds = tf.Variable([0.1, 0.9])
    bound = rule.bind(thresholds)

    def counts():
        return [int(np.sum(bound.leaves(scores, k))) for k in range(2)]

    assert counts() == [0, 2]
    thresholds.assign([0.3, 0.3])  # a weight: what counts is what it holds now
    assert counts() == [1, 1]
    assert rule.leaves(scores, 0).numpy().tolist() == [True, False]
    assert bound.threshold == 0.5
    assert bound.with_threshold(0.1).leaves(scores, 0).numpy().tolist() == [False] * 2


SCORES = float32([0.25, 0.75, 0.5, 0.75, NAN])


@pytest.mark.parametrize(
    "rule, everyone",
    [
        (rules.MaxProbability(), 0),
        (rules.Margin(), 0),
        (rules.Entropy(), 1.75),
        (rules.ExitRule(0), 0),
    ],
)
def test_candidates(rule, everyone):
    # None, one that everyone passes, and the middles of .25 .5 .75.
    assert rule.candidates(SCORES) == [None, everyone, 0.375, 0.625]
    open_exit = rule.with_threshold(everyone)
    leaves = open_exit.leaves(tf.constant(SCORES), 0).numpy()
    assert leaves.tolist() == [True] * 4 + [False]


def test_candidates_stay_in_the_range():
    # No margin exceeds 0 where two classes tie, so that 0 is as open as it gets.
    assert rules.Margin().candidates(float32([0, 0.5])) == [None, 0, 0.25]
    assert rules.Margin().candidates(float32([])) == [None, 0]
    assert rules.ExitRule(0).candidates(float32([-2, 0.5]))[1] < -2


def test_candidates_of_patience_are_the_counts_seen():
    assert rules.Patience().candidates(float32([1, 3, 0, 3, 2])) == [None, 1, 2, 3]
    assert rules.Patience().candidates(float32([0, NAN])) == [None]


@pytest.mark.parametrize(
    "rule",
    [
        rules.MaxProbability([0.3, None]),
        rules.Margin(0.7),
        rules.Entropy(1e-7),
        rules.Patience([None, 3]),
        rules.MaxProbability(None),
    ],
)
def test_round_trip_in_json(rule):
    serialized = json.loads(json.dumps(keras.saving.serialize_keras_object(rule)))
    again = keras.saving.deserialize_keras_object(serialized)
    assert type(again) is type(rule)
    assert again.threshold == rule.threshold  # 0.3, not 0.30000001
    assert str(again) == str(rule)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize(
    "rule",
    [
        rules.MaxProbability(0.7),
        rules.Margin(0.4),
        rules.Entropy(0.6),
        rules.Patience(),
    ],
)
def test_one_trace_serves_all_thresholds(rule, classes, jit):
    def walk(first, second, thresholds):
        bound = rule.bind(thresholds)
        state = bound.initial_state(tf.shape(first)[0])
        leaves = []
        for exit_index, probabilities in enumerate((first, second)):
            score, state = bound.update(state, probabilities, exit_index)
            leaves.append(bound.leaves(score, exit_index))
        return tf.stack(leaves)

    rows = tf.TensorSpec([None, classes], tf.float32)
    thresholds = tf.TensorSpec([2], tf.float32)
    compiled = tf.function(
        walk, input_signature=[rows, rows, thresholds], jit_compile=jit
    )
    random = np.random.default_rng(0)
    for num_rows in (1, 7):
        exits = random.dirichlet(np.ones(max(classes, 2)), size=(2, num_rows))
        exits = float32(exits[..., :classes])
        for given in (rule, rule.with_threshold([None, 1])):
            actual = compiled(*exits, given.thresholds(2))
            np.testing.assert_array_equal(actual, leaving(given, exits)[0])


# A user's own


@keras.saving.register_keras_serializable(package="test_rules")
class PowerSum(kd.rules.ExitRule):
    """Stateless, with an argument of its own and no bounds."""

    def __init__(self, threshold, power=2.0):
        super().__init__(threshold)
        self.power = power

    def score(self, probabilities):
        return ops.sum(probabilities**self.power, axis=-1)

    def get_config(self):
        return {**super().get_config(), "power": self.power}


@keras.saving.register_keras_serializable(package="test_rules")
class Doubt(kd.rules.ExitRule):
    """Leaves below its threshold."""

    minimum, leaves_below = 0, True

    def score(self, probabilities):
        return 1.0 - ops.max(probabilities, axis=-1)


@keras.saving.register_keras_serializable(package="test_rules")
class LessDoubt(Doubt):
    """Leaves of its own: at the second exit below half of the threshold."""

    def leaves(self, score, exit_index):
        factor = 0.5 if exit_index == 1 else 1.0
        return score < factor * self.threshold_at(exit_index)


@keras.saving.register_keras_serializable(package="test_rules")
class RunningMean(kd.rules.ExitRule):
    """Scores the mean of the probabilities of all exits so far."""

    def score(self, probabilities):
        return ops.max(probabilities, axis=-1)

    def initial_state(self, num_rows):
        return tf.zeros([num_rows, 2])

    def update(self, state, probabilities, exit_index):
        state = state + probabilities
        return self.score(state / (exit_index + 1.0)), state


TWO_EXITS = [[[0.5, 0.5], [0.9, 0.1]], [[0.3, 0.7], [0.2, 0.8]]]


def test_own_rule_without_state():
    # .25 + .25 = .5 and .81 + .01 = .82; .09 + .49 = .58 and .04 + .64 = .68
    leaves, scores = leaving(PowerSum([0.6, 0.6]), TWO_EXITS)
    np.testing.assert_allclose(scores, [[0.5, 0.82], [0.58, 0.68]], rtol=1e-6)
    assert leaves == [[False, True], [False, True]]
    assert PowerSum(-7.5).threshold == -7.5


def test_own_rule_that_leaves_below():
    # .5 and .1 against .4; .3 and .2 against .5, or its half
    leaves, scores = leaving(Doubt([0.4, 0.5]), TWO_EXITS)
    np.testing.assert_allclose(scores, [[0.5, 0.1], [0.3, 0.2]], rtol=1e-6)
    assert leaves == [[False, True], [True, True]]
    rule = LessDoubt([0.4, 0.5])
    for each in (rule, rule.bind(rule.thresholds(2))):
        assert leaving(each, TWO_EXITS)[0] == [[False, True], [False, True]]
    assert not np.any(leaving(LessDoubt(None), TWO_EXITS)[0])
    with pytest.raises(ValueError, match="Received: threshold=-1"):
        Doubt(-1)
    # Everyone leaves at the greatest doubt and more.
    assert Doubt(0.5).candidates(float32([0.25, 0.75])) == [None, 1.75, 0.5]


def test_own_rule_with_state():
    # Means at the second exit: (.4, .6) and (.55, .45).
    leaves, scores = leaving(RunningMean(0.58), TWO_EXITS)
    np.testing.assert_allclose(scores, [[0.5, 0.9], [0.6, 0.55]], rtol=1e-6)
    assert leaves == [[False, True], [True, False]]


@pytest.mark.parametrize(
    "rule", [PowerSum([0.3, None], power=1.5), LessDoubt(0.3), RunningMean(0.3)]
)
def test_own_rule_comes_back(rule):
    serialized = json.loads(json.dumps(keras.saving.serialize_keras_object(rule)))
    again = keras.saving.deserialize_keras_object(serialized)
    assert type(again) is type(rule)
    assert again.get_config() == rule.get_config()
    other = rule.with_threshold(0.4)
    assert other.get_config() == {**rule.get_config(), "threshold": 0.4}
    assert leaving(again, TWO_EXITS) == leaving(rule, TWO_EXITS)


def test_base_class_asks_for_a_score():
    with pytest.raises(NotImplementedError, match="`ExitRule` must implement `score"):
        kd.rules.ExitRule(0.5).score(float32([[1.0]]))
