"""Is anything lost when things go wrong? Repeats every fault and abuse, for a table.

    python benchmarks/reliability.py            # prints the table
    python benchmarks/reliability.py --write    # puts it into docs/reliability.md

Each row is a test that carries `pytest.mark.fault`, in which the test says what goes
wrong, how it is made to, and what is checked afterwards. All of them are run. A test
that fails has the words "LOST" in its row, and the script returns 1.
"""

import argparse
import ast
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- the table begins -->\n", "<!-- the table ends -->\n"


@dataclass(frozen=True)
class Row:
    """One test of a fault: what its marker says."""

    test: str  # file::function, from the project's root
    case: str
    made: str
    lost: str


def rows():
    """The marked tests, in the order of the files and of the tests in them."""
    found = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.FunctionDef):
                found += [
                    Row(f"{path.relative_to(ROOT).as_posix()}::{node.name}", **marker)
                    for marker in map(_fault, node.decorator_list)
                    if marker
                ]
    return found


def _fault(decorator):
    """The arguments of `pytest.mark.fault(...)`, None for another decorator."""
    if not isinstance(decorator, ast.Call):
        return None
    if ast.unparse(decorator.func) != "pytest.mark.fault":
        return None
    return {word.arg: ast.literal_eval(word.value) for word in decorator.keywords}


class Outcomes:
    """A plugin of pytest that counts how the runs of each test ended."""

    def __init__(self):
        self.of = defaultdict(Counter)

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome != "passed":
            self.of[report.nodeid.split("[")[0]][report.outcome] += 1


def run(all_rows):
    """Runs the tests of rows; returns a `Counter` of outcomes for each test."""
    outcomes = Outcomes()
    tests = [row.test for row in all_rows]
    pytest.main(["-q", f"--rootdir={ROOT}", *tests], plugins=[outcomes])
    return outcomes.of


def result(row, outcomes):
    """What the table says was lost."""
    counts = outcomes[row.test]
    if counts["failed"] or not counts:
        return f"**LOST** ({counts['failed']} failed): {row.lost}"
    if not counts["passed"]:
        return "not run here"
    return row.lost


def table(all_rows, outcomes):
    lines = ["| what goes wrong | how it is made | what is lost | repeat with |"]
    lines += ["| --- | --- | --- | --- |"]
    for row in all_rows:
        cells = row.case, row.made, result(row, outcomes), f"`{row.test}`"
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells))
        lines[-1] += " |"
    return "\n".join(lines) + "\n"


def write(text):
    """Puts the table between its two marks on the page."""
    before, rest = PAGE.read_text("utf-8").split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", "utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="also into the page")
    arguments = parser.parse_args()
    all_rows = rows()
    text = table(all_rows, run(all_rows))
    print(text)
    if arguments.write:
        write(text)
    return 1 if "**LOST**" in text else 0


if __name__ == "__main__":
    sys.exit(main())
