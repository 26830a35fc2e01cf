"""The documentation as README.md builds it: tutorials run, and every page is whole."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs/_build/html"
NEEDED = ("sphinx", "myst_nb", "jupytext", "furo", "onnxruntime", "ai_edge_litert")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
# Those of a test process would leave the notebooks one thread each, and are not the
# user's.
OWN = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")


def run(*arguments):
    environment = {name: v for name, v in os.environ.items() if name not in OWN}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
def test_the_documentation_is_built_and_whole():
    """The longest test of all, which conftest.py therefore puts first."""
    shutil.rmtree(PAGES, ignore_errors=True)  # else what did not change is not run
    flags = "-m sphinx -E -W --keep-going -q -j 2 -b html docs".split()
    built = run(*flags, str(PAGES))
    assert built.returncode == 0, built.stdout
    scripts = {path.stem for path in (ROOT / "tutorials").glob("*.py")}
    pages = {path.stem for path in (PAGES / "tutorials").glob("*.html")}
    assert scripts and scripts == pages
    checked = run("docs/check_site.py", str(PAGES))
    assert checked.returncode == 0, checked.stdout
