import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_dynamic import calibration


def make_report(seed=0, num_samples=400, num_early=2, **changes):
    """A report, and the arguments that it was computed from."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(3, size=num_samples)
    scores = [
        3 * generator.normal(size=(num_samples, 3)) + (1 + e) * np.eye(3)[labels]
        for e in range(num_early + 1)
    ]
    arguments = {
        "log_probabilities": scores,
        "labels": labels,
        "temperatures": [calibration.fit_temperature(s, labels) for s in scores],
        "exit_index": generator.integers(num_early + 1, size=num_samples),
        "thresholds": [0.9, None, 0.8, 0.7][:num_early],
        "exit_costs": np.linspace(0.3, 1.1, num_early + 1),
        "names": [f"exit_{e + 1}" for e in range(num_early)] + ["final"],
        "rule": "max_probability",
        "goal": ("max_accuracy_drop", 0.01),
    } | changes
    return calibration.build_report(**arguments), arguments


def by_hand():
    """Four rows and one early exit; rows 0 and 1 leave there.

    Probabilities of class 0 at the exit: .8 .8 .6 .5, labels 0 1 0 1: right, wrong,
    right, wrong (a tie is class 0). At T = 2 the odds 4, 4, 1.5, 1 become 2, 2,
    sqrt(1.5), 1. The final exit gives .9 to the label, except for row 3.
    """
    early = np.log([[0.8, 0.2], [0.8, 0.2], [0.6, 0.4], [0.5, 0.5]])
    final = np.log([[0.9, 0.1], [0.1, 0.9], [0.9, 0.1], [0.9, 0.1]])
    return calibration.build_report(
        [early, final],
        np.array([0, 1, 0, 1]),
        temperatures=[
            calibration.TemperatureFit(2.0, "fitted", 0.0, 0.0),
            calibration.TemperatureFit(1.0, "kept at 1.0: no improvement", 0.0, 0.0),
        ],
        exit_index=np.array([0, 0, 1, 1]),
        thresholds=[0.7],
        exit_costs=[0.4, 1.2],
        names=["early", "final"],
        rule="max_probability",
        goal=("budget", 0.8),
    )


def test_hand_worked_values():
    report = by_hand()
    assert report.num_samples == 4
    assert report.final_accuracy == 0.75
    # Row 0 right, row 1 wrong at the exit; row 2 right, row 3 wrong at the end.
    assert report.dynamic_accuracy == 0.5
    assert report.mean_cost == pytest.approx((0.4 + 0.4 + 1.2 + 1.2) / 4)
    assert report.exit_rates == (0.5, 0.5)
    early, final = report.exits
    assert (early.name, early.threshold, early.temperature) == ("early", 0.7, 2.0)
    assert (final.name, final.threshold, final.temperature) == ("final", None, 1.0)
    assert (early.accuracy, early.accuracy_of_leavers) == (0.5, 0.5)
    assert (final.accuracy, final.accuracy_of_leavers) == (0.75, 0.5)
    assert (early.relative_cost, final.relative_cost) == (0.4, 1.2)
    # Everyone reaches exit 0: -(log .8 + log .2 + log .6 + log .5) / 4.
    assert early.all_before == early.reached_before
    assert early.all_before.negative_log_likelihood == pytest.approx(
        -math.log(0.8 * 0.2 * 0.6 * 0.5) / 4
    )
    # At T = 2: 2/3, 1/3, sqrt(1.5) / (1 + sqrt(1.5)) = .550510, 1/2.
    assert early.all_after.negative_log_likelihood == pytest.approx(
        -math.log(2 / 3 * 1 / 3 * 0.550510 * 0.5) / 4, abs=1e-6
    )
    # (2 * .2^2 + 2 * .8^2 + 2 * .4^2 + 2 * .5^2) / 4
    assert early.all_before.brier_score == pytest.approx(0.545)
    # Confidences .5 (wrong) .6 (right) .8 .8 (one of two right): .5 + .4 + .3 + .3
    assert early.all_before.expected_calibration_error == pytest.approx(1.5 / 4)
    # Rows 2 and 3 reach the end: -(log .9 + log .1) / 2; all: -(3 log .9 + log .1) / 4
    assert final.reached_before.negative_log_likelihood == pytest.approx(1.203973)
    assert final.all_before.negative_log_likelihood == pytest.approx(0.654667)
    assert final.reached_after == final.reached_before


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(0, 30), st.integers(0, 3))
def test_against_the_measures_themselves(seed, num_samples, num_early):
    report, arguments = make_report(seed, num_samples, num_early)
    labels, taken = arguments["labels"], arguments["exit_index"]
    assert len(report.exits) == len(report.exit_rates) == num_early + 1
    for number, exit_report in enumerate(report.exits):
        scores = arguments["log_probabilities"][number]
        fit = arguments["temperatures"][number]
        for rows, before, after in (
            (taken >= 0, exit_report.all_before, exit_report.all_after),
            (taken >= number, exit_report.reached_before, exit_report.reached_after),
        ):
            for value, quality in ((1.0, before), (fit.temperature, after)):
                probabilities = calibration.apply_temperature(scores[rows], value)
                np.testing.assert_allclose(
                    dataclasses.astuple(quality),
                    [
                        calibration.expected_calibration_error(
                            probabilities, labels[rows]
                        ),
                        calibration.negative_log_likelihood(
                            probabilities, labels[rows]
                        ),
                        calibration.brier_score(probabilities, labels[rows]),
                    ],
                )
        np.testing.assert_allclose(
            [exit_report.all_before.negative_log_likelihood], [fit.nll_before]
        )
    if num_samples:
        assert sum(report.exit_rates) == pytest.approx(1)
        # Each row's answer is that of the exit taken.
        leavers = [
            exit_report.exit_rate * exit_report.accuracy_of_leavers
            for exit_report in report.exits
            if exit_report.exit_rate
        ]
        assert report.dynamic_accuracy == pytest.approx(sum(leavers))
        assert report.mean_cost == pytest.approx(
            np.dot(report.exit_rates, arguments["exit_costs"])
        )
        assert report.final_accuracy == report.exits[-1].accuracy
    else:
        assert math.isnan(report.mean_cost)
        assert math.isnan(report.dynamic_accuracy)
    json.dumps(report.to_dict(), allow_nan=False)
    assert max(map(len, str(report).splitlines())) <= 110


def test_exits_that_nobody_reaches_or_leaves():
    report, _ = make_report(exit_index=np.zeros(400, int))
    first, second, final = report.exits
    assert report.exit_rates == (1.0, 0.0, 0.0)
    assert first.accuracy_of_leavers == first.accuracy == report.dynamic_accuracy
    for exit_report in (second, final):
        assert math.isnan(exit_report.accuracy_of_leavers)
        assert math.isnan(exit_report.reached_after.brier_score)
        assert not math.isnan(exit_report.all_after.brier_score)
    assert report.to_dict()["exits"][1]["accuracy_of_leavers"] is None

    report, _ = make_report(exit_index=np.full(400, 2))
    assert report.exits[-1].accuracy_of_leavers == report.final_accuracy
    assert report.dynamic_accuracy == report.final_accuracy
    assert report.mean_cost == pytest.approx(1.1)


def test_table():
    assert str(by_hand()) == TABLE


# ECE of the early exit at T = 2: 1/2 (wrong), .5505 (right), 2/3 twice (one right):
# (.5 + .4495 + 1/6 + 1/6) / 4 = .3207. Final exit: confidence .9, one of two right
# among those that reach it, |.5 - .9|, and three of four of all, |.75 - .9|.
TABLE = """\
Calibration on 4 samples, rule max_probability, budget = 0.8.
Accuracy 75.00 % at the final exit -> 50.00 % dynamic, at a mean cost of 0.800 \
(1 = the plain network).

Exits: cost of leaving there (1 = the plain network); accuracy on all rows, and on \
those that leave
 exit  | threshold |  cost |   leave | accuracy | leavers' accuracy
-------+-----------+-------+---------+----------+-------------------
 early |       0.7 | 0.400 | 50.00 % |  50.00 % |           50.00 %
 final |         - | 1.200 | 50.00 % |  75.00 % |           50.00 %

Probabilities before -> after temperature (T): expected calibration error (ECE),
negative log-likelihood (NLL, nats), Brier score (0 to 2); on the rows that reach the \
exit, and on all
 exit  | rows  |     T |              ECE |              NLL |            Brier
-------+-------+-------+------------------+------------------+------------------
 early | reach | 2.000 | 0.3750 -> 0.3207 | 0.7591 -> 0.6985 | 0.5450 -> 0.5038
       | all   |       | 0.3750 -> 0.3207 | 0.7591 -> 0.6985 | 0.5450 -> 0.5038
 final | reach | 1.000 | 0.4000 -> 0.4000 | 1.2040 -> 1.2040 | 0.8200 -> 0.8200
       | all   |       | 0.1500 -> 0.1500 | 0.6547 -> 0.6547 | 0.4200 -> 0.4200

final: temperature kept at 1.0: no improvement"""


def test_table_of_odd_values(monkeypatch):
    # What makes rich use color elsewhere must not matter here.
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    long_name = "[red]" + "a_rather_long_name_" * 5
    report, _ = make_report(
        exit_index=np.zeros(400, int),
        names=[long_name, "exit_2", "final"],
        thresholds=[np.float32(0.25), None],
        goal=None,
    )
    text = str(report)
    assert text.isascii()
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 110
    assert "no goal" in text
    assert "[red]" in text
    second = next(line for line in text.splitlines() if line.startswith(" exit_2"))
    # Closed, and nobody there: "-" for the accuracy of nobody.
    assert "closed" in second
    assert second.split("|")[-1].strip() == "-"
    second = [line for line in text.splitlines() if line.startswith(" exit_2")][1]
    assert [cell.strip() for cell in second.split("|")[3:]] == ["-"] * 3


def test_repr_is_short():
    assert repr(by_hand()) == (
        "<CalibrationReport of 4 samples: early 50.00 %, final 50.00 %; accuracy "
        "75.00 % -> 50.00 %, mean cost 0.800>"
    )


def test_to_dict():
    report, _ = make_report(
        thresholds=[np.float32(0.25), -math.inf],
        goal=("budget", np.float64(0.5)),
        exit_index=np.zeros(400, "int32"),
    )
    plain = report.to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["goal"] == ["budget", 0.5]
    assert [entry["threshold"] for entry in plain["exits"]] == [0.25, "-inf", None]
    assert plain["exits"][1]["reached_before"] == {
        "expected_calibration_error": None,
        "negative_log_likelihood": None,
        "brier_score": None,
    }
    assert set(plain) == {field.name for field in dataclasses.fields(report)}

    def leaves_of(value):
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list):
            for entry in value:
                yield from leaves_of(entry)
        else:
            yield value

    assert {type(value) for value in leaves_of(plain)} <= {
        int,
        float,
        str,
        type(None),
    }


def test_report_is_frozen():
    report = by_hand()
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.mean_cost = 0.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.exits[0].threshold = 0.0


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"log_probabilities": []}, ValueError, "`log_probabilities`.*Received: none"),
        ({"temperatures": []}, ValueError, "`temperatures` must have 3.*Received: 0"),
        ({"thresholds": [0.5] * 3}, ValueError, "`thresholds` must have 2.*: 3"),
        ({"exit_costs": [1.0]}, ValueError, "`exit_costs` must have 3.*Received: 1"),
        ({"names": ["a"]}, ValueError, "`names` must have 3.*Received: 1"),
        ({"exit_index": np.zeros(3, int)}, ValueError, r"shape=\(3,\)"),
        ({"exit_index": np.full(400, 3)}, ValueError, "Received: from 3 to 3"),
        ({"exit_index": np.full(400, -1)}, ValueError, "Received: from -1 to -1"),
        ({"labels": np.full(400, 3)}, ValueError, "Received: from 3 to 3"),
        ({"labels": np.zeros(400)}, TypeError, "dtype=float64"),
        (
            {"log_probabilities": [np.zeros((400, 3))] * 2 + [np.zeros((4, 3))]},
            ValueError,
            r"one for each row of `log_probabilities\[2\]`",
        ),
    ],
)
def test_errors(changes, error, message):
    _, arguments = make_report()
    with pytest.raises(error, match=message):
        calibration.build_report(**(arguments | changes))
