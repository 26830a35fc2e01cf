"""The table of reproductions says what the raw results say, and how to repeat them."""

import argparse
import importlib
import json
import math
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import record, reproduction

BENCHMARKS = Path(reproduction.__file__).parent
RECORDS = reproduction.records()


def test_the_page_has_the_table_of_the_raw_results():
    _, rest = reproduction.PAGE.read_text("utf-8").split(reproduction.BEGIN)
    found, _ = rest.split(reproduction.END)
    assert found.strip() == reproduction.table(RECORDS).strip(), (
        "run `python benchmarks/reproduction.py --write`"
    )


def test_there_are_no_other_raw_results():
    files = {path.stem for path in reproduction.RESULTS.iterdir()}
    assert files and files <= reproduction.CLAIMS.keys()


@pytest.mark.parametrize("name", RECORDS)
def test_a_command_is_one_that_its_script_takes(monkeypatch, name):
    python, script, *arguments = shlex.split(RECORDS[name]["command"])
    assert (python, script) == ("python", f"benchmarks/{name}.py")
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # its scripts import each other
    module = importlib.import_module(name)

    class Parsed(Exception):
        pass

    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self):
        raise Parsed(parse(self).json)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    monkeypatch.setattr(sys, "argv", [script, *arguments, "--json", "file"])
    with pytest.raises(Parsed, match="file"):
        module.main()


def test_a_row_of_the_table():
    row = {"points": [1.0, 2.0], "points_mean": 1.5, "points_interval": 6.353, "x": 0.5}
    assert reproduction.signed(row, "points", 1) == "+1.50 ± 6.35"
    assert reproduction.shown(row, "x") == "50.00"
    assert reproduction.signed({"x": -0.001}, "x", digits=1) == "-0.1"
    assert reproduction.signed({"x": -0.0001}, "x", digits=1) == "0.0"
    assert reproduction.span([1.204, 0.7, 1.0]) == "0.70 to 1.20"
    assert reproduction.span([0.701, 0.699]) == "0.70"
    with pytest.raises(ValueError, match="too many values"):
        reproduction.the([row, row], x=0.5)


def test_writing_leaves_the_rest_of_the_page(monkeypatch, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"a\n{reproduction.BEGIN}old\n{reproduction.END}b\n", "utf-8")
    monkeypatch.setattr(reproduction, "PAGE", page)
    for _ in range(2):
        reproduction.write("new\n")
        assert page.read_text("utf-8") == (
            f"a\n{reproduction.BEGIN}\nnew\n\n{reproduction.END}b\n"
        )


def recorded(tmp_path, monkeypatch, rows, *arguments, **options):
    file = tmp_path / "x.json"
    line = ["/somewhere/x.py", *arguments, "--json", str(file)]
    monkeypatch.setattr(sys, "argv", line)
    record.write(str(file), rows, (3, 4), **options)
    return json.loads(file.read_text("utf-8"))


def test_what_is_recorded(tmp_path, monkeypatch):
    rows = [
        {"name": "a", "score": np.float32([1.0, 3.0]), "one": np.float64(2.5)},
        {"name": "b", "score": [math.nan, 1.0], "other": math.inf, "single": [7]},
    ]
    found = recorded(tmp_path, monkeypatch, rows, "--parts", "a b", packages=["scipy"])
    assert found["command"] == "python benchmarks/x.py --parts 'a b'"
    assert found["seeds"] == [3, 4] and found["cores"] >= 1
    assert {"python", "keras_dynamic", "tensorflow", "scipy"} <= found[
        "versions"
    ].keys()
    first, second = found["rows"]
    # Standard error 1, and t = 12.706 with one degree of freedom.
    assert first == {
        "name": "a",
        "score": [1.0, 3.0],
        "score_mean": 2.0,
        "score_interval": pytest.approx(12.706, abs=1e-3),
        "one": 2.5,
    }
    assert second == {"name": "b", "single": [7.0]}  # JSON has neither
    assert str(tmp_path) not in json.dumps(found)


def test_turns_get_their_median(tmp_path, monkeypatch):
    rows = [{"seconds": [5.0, 1.0, 2.0]}]
    (row,) = recorded(tmp_path, monkeypatch, rows, lists="turns")["rows"]
    assert row == {
        "seconds": [5.0, 1.0, 2.0],
        "seconds_median": 2.0,
        "seconds_least": 1.0,
        "seconds_greatest": 5.0,
    }


def test_nothing_is_written_without_a_file():
    record.write(None, [{"x": 1}], [0])


def test_the_option_may_have_an_equals_sign():
    line = ["x.py", "--json=a.json", "--quick"]
    assert record.command(line) == "python benchmarks/x.py --quick"


def test_a_folder_that_is_not_there_is_refused_before_the_work(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    record.add_option(parser)
    file = str(tmp_path / "x.json")
    assert parser.parse_args(["--json", file]).json == file
    with pytest.raises(SystemExit):
        parser.parse_args(["--json", str(tmp_path / "nowhere" / "x.json")])
    assert "a folder that is not there" in capsys.readouterr().err
