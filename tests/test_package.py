"""The package as a whole: how it is imported, and what it says about itself."""

import importlib.metadata
import os
import subprocess
import sys

import pytest

import keras_dynamic


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
