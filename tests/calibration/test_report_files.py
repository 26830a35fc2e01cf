"""Reports that are read back, and files that are no reports."""

import json
import math

import pytest

from keras_dynamic import calibration
from tests.calibration.test_report import by_hand, make_report
from tests.calibration.test_report_page import certificate

load = calibration.CalibrationReport.load


@pytest.mark.parametrize("certified", [None, 0, 2])
def test_it_comes_back(tmp_path, certified):
    made = None if certified is None else certificate(certified)
    report, _ = make_report(certificate=made)
    path = tmp_path / "report.json"
    report.save(path, baselines={"half": (0.5, 0.5)})
    again = load(path)
    assert again.to_dict() == report.to_dict()
    assert str(again) == str(report)
    assert type(again.exits[0].reliability_after[0]) is tuple


def test_what_is_undefined_comes_back(tmp_path):
    report, _ = make_report(num_samples=0, temperatures=[unfitted()] * 3)
    report.save(tmp_path / "report.json")
    again = load(tmp_path / "report.json")
    assert math.isnan(again.mean_cost) and again.exits[1].threshold is None
    assert again.to_dict() == report.to_dict()


def unfitted():
    return calibration.TemperatureFit(1.0, "no samples", math.nan, math.nan)


@pytest.fixture
def written(tmp_path):
    """A report's path and text, `by_hand` with a certificate of two steps."""
    report, _ = make_report(certificate=certificate(2))
    path = tmp_path / "report.json"
    report.save(path)
    return path, path.read_text()


@pytest.mark.fault(
    case="a report file is cut short",
    made="the file cut at twenty lengths from none to all but one line",
    lost="the report: `CalibrationReport.load` raises a ValueError that names the file",
)
def test_truncated(written):
    path, text = written
    for part in range(20):
        path.write_text(text[: (len(text) - 3) * part // 19])
        with pytest.raises(ValueError, match="no whole JSON file") as caught:
            load(path)
        assert str(path) in str(caught.value)


def changed(fields, place, value):
    *outer, last = place
    for key in outer:
        fields = fields[key]
    fields[last] = value


@pytest.mark.fault(
    case="a report file is tampered with",
    made="fields of another type, gone, NaN, infinite, too many digits, of another "
    "release, out of range, too few for the exits",
    lost="the report: `CalibrationReport.load` raises a ValueError that names the file "
    "and the field",
)
@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("format",), 2, "`report.format` must be 1.*Received: 2"),
        (("format",), "x" * 1000, "`report.format` must be 1.*Received: 'xxx"),
        (("mean_cost",), "0.5", "`report.mean_cost` must be a number.*'0.5'"),
        (("mean_cost",), True, "`report.mean_cost` must be a number.*True"),
        (("mean_cost",), 10**400, "`report.mean_cost` must be a number.*1000000"),
        (("mean_cost",), math.nan, "`report.mean_cost` must be a number.*nan"),
        (("num_samples",), 1.5, "`report.num_samples` must be a int.*1.5"),
        (("rule",), None, "`report.rule` must be a str.*None"),
        (("exits",), {}, "`report.exits` must be a list.*{}"),
        (("exits",), [], "`report.exit_rates` must have one entry.*3 for 0"),
        (("exits", 1), [1], r"`report.exits\[1\]` must be an object.*\[1\]"),
        (("exits", 0, "name"), 7, r"`report.exits\[0\].name` must be a str.*7"),
        (("exits", 2, "all_after"), {}, r"exits\[2\].all_after.*` is not there"),
        (("exits", 0, "reliability_after", 0), [1, 2], "must be a list of 3"),
        (("exit_rates",), [1.0], "`report.exit_rates` must have one entry.*1 for 3"),
        (("goal",), ["budget"], "`report.goal` must be a list of 2"),
        (("certificate", "path", 0, "num_lost"), "3", r"path\[0\].num_lost` must be"),
        (("certificate", "num_certified"), 99, r"`report.certificate.num_certified`"),
        (("certificate", "num_certified"), -1, r"must lie in \[0, .*-1"),
        (("num_samples",), -1, "`report.num_samples` must be >= 0.*-1"),
        (("final_accuracy",), 7, r"`report.final_accuracy` must lie in \[0, 1\].*7"),
        (("exit_rates", 0), -0.5, r"`report.exit_rates\[0\]` must lie in.*-0.5"),
        (("exits", 1, "accuracy"), 1.5, r"`report.exits\[1\].accuracy` must lie.*1.5"),
        (("exits", 0, "temperature"), 0, r"`report.exits\[0\].temperature` .*0.0"),
    ],
)
def test_tampered(written, place, value, message):
    path, text = written
    fields = json.loads(text)
    changed(fields, place, value)
    path.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "text", ["NaN", '{"format": Infinity}', "[" * 10**5, "[1]", '"report"', "\0", "{}"]
)
def test_other_json(tmp_path, text):
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="`path` must be a report that `save` wrote"):
        load(path)


def test_what_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.json"):
        load(tmp_path / "nowhere.json")
    (tmp_path / "report.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match="no whole JSON file"):
        load(tmp_path / "report.json")


def test_by_hand_again(tmp_path):
    by_hand().save(tmp_path / "report.json")
    assert load(tmp_path / "report.json") == by_hand()
