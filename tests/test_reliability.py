"""The page on reliability tells of all tests of faults, and of no others."""

from benchmarks import reliability


def test_the_page_has_a_row_for_every_fault():
    page = reliability.PAGE.read_text("utf-8")
    _, rest = page.split(reliability.BEGIN)
    shown, _ = rest.split(reliability.END)
    expected = reliability.rows()
    assert len(expected) > 20
    assert [line.split("`")[-2] for line in shown.splitlines() if "::" in line] == [
        row.test for row in expected
    ], "run `python benchmarks/reliability.py --write`"
    assert "**LOST**" not in shown


def test_what_a_row_says():
    row = reliability.Row("tests/test_x.py::test_y", "kill -9", "SIGKILL", "nothing")
    outcomes = reliability.Outcomes()
    assert "LOST" in reliability.result(row, outcomes.of)  # it did not run at all

    class Report:
        nodeid, when, outcome = f"{row.test}[1]", "call", "passed"

    outcomes.pytest_runtest_logreport(Report)
    assert reliability.result(row, outcomes.of) == "nothing"
    assert "| kill -9 | SIGKILL | nothing |" in reliability.table([row], outcomes.of)
    Report.outcome = "failed"
    outcomes.pytest_runtest_logreport(Report)
    assert "LOST** (1 failed)" in reliability.result(row, outcomes.of)
