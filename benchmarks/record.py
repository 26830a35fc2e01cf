"""Raw results of a benchmark as a JSON file, with what is needed to repeat them.

A script offers the option by `add_option`, and at its end calls `write` with rows: flat
dicts, whose lists hold one number for each seed, or for each turn of a measurement of
time.
"""

import argparse
import json
import math
import os
import platform
import shlex
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
from scipy import stats

import keras_dynamic as kd

PACKAGES = ("tensorflow", "keras", "numpy")


def add_option(parser):
    parser.add_argument(
        "--json", metavar="FILE", type=_writable, help="where to write raw results"
    )


def _writable(file):
    """Refuses a file in no folder at once, not after an hour's work."""
    if not Path(file).parent.is_dir():
        raise argparse.ArgumentTypeError(f"{file} lies in a folder that is not there")
    return file


def write(file, rows, seeds, *, lists="seeds", packages=()):
    """Writes the results of the script that runs.

    Args:
        file: path of the file, or `None`, for which nothing is written.
        rows: list of flat dicts of strings, numbers and lists of numbers. What is NaN
            or infinite is left out, since JSON has neither.
        seeds: list of int, those that were used.
        lists: what the lists in rows run over. `"seeds"`: each gets its mean and half
            of its 95 % interval beside it; `"turns"`: its median, least and greatest.
        packages: names of what was used besides `PACKAGES`.
    """
    if file is None:
        return
    summary = {"seeds": of_seeds, "turns": of_turns}[lists]
    record = {
        "command": command(sys.argv),
        "versions": versions((*PACKAGES, *packages)),
        "cores": os.cpu_count(),
        "seeds": list(seeds),
        "lists": lists,
        "rows": [_summarized(row, summary) for row in rows],
    }
    text = json.dumps(record, indent=1, allow_nan=False, default=_plain)
    Path(file).write_text(text + "\n", "utf-8")


def command(argv):
    """The line that repeats a run, without where its results go."""
    words = iter(argv[1:])
    kept = [f"benchmarks/{Path(argv[0]).name}"]
    for word in words:
        if word == "--json":
            next(words)
        elif not word.startswith("--json="):
            kept.append(word)
    return shlex.join(["python", *kept])


def versions(packages):
    found = {"python": platform.python_version(), "keras_dynamic": kd.__version__}
    return found | {name: metadata.version(name) for name in packages}


def of_seeds(values):
    """Mean, and half of the 95 % interval by Student's t."""
    error = stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)
    return {"mean": np.mean(values), "interval": error}


def of_turns(values):
    return {
        "median": np.median(values),
        "least": np.min(values),
        "greatest": np.max(values),
    }


def _summarized(row, summary):
    result = {}
    for name, value in row.items():
        if isinstance(value, (list, tuple, np.ndarray)):
            value = [float(each) for each in value]
        if np.any(_not_finite(value)):
            continue
        result[name] = value
        if isinstance(value, list) and len(value) > 1:
            for what, number in summary(value).items():
                result[f"{name}_{what}"] = number
    return result


def _not_finite(value):
    values = value if isinstance(value, list) else [value]
    return [
        isinstance(each, (float, np.floating)) and not math.isfinite(each)
        for each in values
    ]


def _plain(value):
    """NumPy's numbers as Python's."""
    return value.item()
