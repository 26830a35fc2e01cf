"""The package as a whole: how it is imported, and what it says about itself."""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import keras_dynamic

ROOT = Path(__file__).resolve().parent.parent


def run_python(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_version_is_that_of_the_distribution():
    assert importlib.metadata.version("keras-dynamic") == keras_dynamic.__version__


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_another_backend_is_refused_with_the_remedy(backend):
    # Neither JAX nor PyTorch need be installed: the refusal comes before Keras, which
    # would fail in words of its own, is imported.
    result = run_python("-c", "import keras_dynamic", KERAS_BACKEND=backend)
    assert result.returncode != 0
    last_line = result.stderr.strip().splitlines()[-1]
    assert last_line.startswith("ImportError: ")
    assert "KERAS_BACKEND=tensorflow" in last_line
    assert backend in last_line


def test_import_prints_nothing_and_warns_of_nothing():
    # With -W error a warning ends the process. TensorFlow's own log goes to stderr and
    # cannot be kept from it, so that one may hold something.
    result = run_python("-W", "error", "-c", "import keras_dynamic")
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""


def test_import_leaves_out_what_only_some_need():
    # Keras imports matplotlib and scikit-learn by itself where they are installed.
    code = (
        "import sys, keras, tensorflow; before = set(sys.modules);"
        "import keras_dynamic; print(*sorted(set(sys.modules) - before))"
    )
    result = run_python("-c", code)
    assert result.returncode == 0, result.stderr
    new = {name.partition(".")[0] for name in result.stdout.split()}
    heavy = {"matplotlib", "sklearn", "keras_tuner", "tensorflow_probability", "onnx"}
    assert "keras_dynamic" in new
    assert not new & heavy


def test_what_only_some_need_is_there_when_asked_for():
    code = (
        "import sys, keras_dynamic as kd; print('keras_tuner' in sys.modules,"
        "kd.plots.__name__, 'plots' in dir(kd), hasattr(kd, 'nothing'))"
    )
    result = run_python("-c", code)
    assert result.stdout.split() == ["False", "keras_dynamic.plots", "True", "False"]


def floors(requirements):
    """Dict from the name of a requirement to its lowest version."""
    return dict(re.sub(r"\[.+\]", "", each).split(">=") for each in requirements)


def test_the_oldest_environment_has_the_floors_of_setup():
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    required, extras = (
        ast.literal_eval(statement.value)
        for name in ("INSTALL_REQUIRES", "EXTRAS_REQUIRE")
        for statement in tree.body
        if isinstance(statement, ast.Assign)
        and getattr(statement.targets[0], "id", None) == name
    )
    expected = floors([*required, *extras["plots"]])
    expected["scikit-learn"] = floors(extras["test"])["scikit-learn"]
    lines = (ROOT / "tests" / "oldest.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line.split("==") for line in lines if not line.startswith("#")]
    assert sorted(map(tuple, pinned)) == sorted(expected.items())


def test_the_documented_command_makes_the_oldest_environment():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^python3\.11 -m venv .*$", text, flags=re.MULTILINE)
    assert '".[test,plots]" -c tests/oldest.txt' in command
