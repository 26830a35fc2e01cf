"""The package reaches no network, and no file that it loads runs code."""

import ast
from pathlib import Path

import pytest

import keras_dynamic
from tests import processes
from tests.processes import finish

FORBIDDEN = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml"}
FORBIDDEN |= {"eval", "exec", "allow_pickle", "safe_mode", "socket", "requests"}
FORBIDDEN |= {"urllib", "http", "ftplib", "subprocess", "get_file"}


@pytest.mark.fault(
    case="no network, and files that want to run code",
    made="an audit hook of Python that raises at any use of a socket, from the import "
    "on, in a run of fit, calibrate, predict_dynamic, save, load, export, plots and "
    "reports; and, while files are loaded, at pickle, marshal, exec, compile, imports "
    "and processes",
    lost="nothing: all of it runs, and neither happens",
)
def test_all_works_without_network_and_code(tmp_path):
    finish(processes.start("tests.faults.alone", tmp_path))


def test_nothing_in_the_package_could_run_what_a_file_says():
    package = Path(keras_dynamic.__file__).parent
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = []
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [getattr(node, "module", None) or ""]
                names += [alias.name for alias in node.names]
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                names = [called] if called in ("eval", "exec") else []
                names += [word.arg for word in node.keywords if word.arg]
            found = {name.split(".")[0] for name in names} & FORBIDDEN
            assert not found, f"{path}, line {node.lineno}: {found}"
