"""Does anything crash, hang or answer wrongly? Random inputs through every entry.

    python benchmarks/abuse.py                     # 10,000 calls an entry
    python benchmarks/abuse.py --inputs 100        # a look
    python benchmarks/abuse.py --families ops plots --seconds 60

For each public function, class and method, arguments are drawn at random, half of them
wrong in one place or two, and the call is judged:

    answered   as the specification (plain NumPy, or the dense road) says
    refused    by an error that names what was wrong
    unclear    by an error that does not, or a crash
    accepted   although an argument was nonsense
    different  from the specification, or refused although nothing was wrong
    hung       no end after a minute

The last four are failures; the first of each entry is printed, and the script returns
1. Entries that make models or trace graphs take up to seconds a call: they stop after
`--seconds` of work, and the table says how many calls were made until then. `rows`
counts the samples in the arrays of all calls.
"""

import argparse
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MPLBACKEND", "Agg")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import keras  # noqa: E402
import numpy as np  # noqa: E402

from tests.abuse import public  # noqa: E402
from tests.abuse.judging import FAILURES, Case, draw, judge  # noqa: E402

HUNG = "hung"
ENDS = ("answered", "refused", *FAILURES, HUNG)
PATIENCE = 60  # seconds until a call counts as hanging


class Hanging(BaseException):
    """No `Exception`, which the judge would take for the entry's own."""


def _give_up(signum, frame):
    raise Hanging


def rows_in(arguments):
    """Samples in the arrays of one call, at least 1."""
    sizes = [
        value.shape[0]
        for value in arguments.values()
        if isinstance(value, np.ndarray) and value.shape
    ]
    return max([1, *sizes])


def call(entry, r):
    """(`Case`, rows) of one call with arguments drawn from `r`."""
    arguments, wrong = draw(entry, r)
    rows = rows_in(arguments)
    signal.alarm(PATIENCE)
    try:
        return judge(entry, arguments, wrong), rows
    except Hanging:
        return Case(HUNG, PATIENCE, f"{entry.name}: no end"), rows
    finally:
        signal.alarm(0)


def abuse(entry, inputs, seconds):
    """Dict of what came of an entry's calls, and the first failure or None."""
    r = random.Random(entry.name)
    keras.utils.set_random_seed(0)
    ends, rows, longest, first = Counter(), 0, 0.0, None
    begin = time.process_time()
    while sum(ends.values()) < inputs and time.process_time() - begin < seconds:
        case, samples = call(entry, r)
        ends[case.end] += 1
        rows += samples
        longest = max(longest, case.seconds)
        if first is None and case.end not in ("answered", "refused"):
            first = f"{case.end}: {case.words}"
    calls = sum(ends.values())
    return {"calls": calls, "rows": rows, **ends, "longest": longest}, first


def line(name, counts):
    cells = [name, counts["calls"], counts["rows"]]
    cells += [counts.get(end, 0) for end in ENDS]
    cells += [f"{1000 * counts['longest']:.0f}"]
    return (
        "| "
        + " | ".join(f"{cell:,}" if isinstance(cell, int) else cell for cell in cells)
        + " |"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=10_000, help="calls an entry")
    parser.add_argument("--seconds", type=float, default=300, help="of work, at most")
    parser.add_argument("--families", nargs="*", default=list(public.FAMILIES))
    parser.add_argument("--only", default="", help="entries with this in their name")
    arguments = parser.parse_args()
    signal.signal(signal.SIGALRM, _give_up)
    print("| entry | calls | rows |", " | ".join(ENDS), "| longest (ms) |")
    print("| --- |" + " ---: |" * (len(ENDS) + 3))
    total, failures = Counter(), []
    for family in arguments.families:
        for entry in public.FAMILIES[family]:
            if arguments.only not in entry.name:
                continue
            counts, first = abuse(entry, arguments.inputs, arguments.seconds)
            print(line(f"`{entry.name}`", counts), flush=True)
            longest = max(total["longest"], counts.pop("longest"))
            total.update(counts)
            total["longest"] = longest
            failures += [first] if first else []
    print(line("all", total))
    for failure in failures:
        print(failure)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
