"""What any release has saved loads in this one, and answers as it did."""

import io
import json
import zipfile

import h5py
import keras
import numpy as np
import pytest

import keras_dynamic as kd
from keras_dynamic import rules
from tests.golden.make import ROOT, answers

FOLDERS = sorted(path for path in ROOT.iterdir() if (path / "answers.npz").is_file())
FILES = [path for folder in FOLDERS for path in sorted(folder.glob("*.keras"))]


def name_of(path):
    return f"{path.parent.name}/{path.stem}"


def golden(path):
    """What was written beside a model: (inputs, its answers, facts)."""
    with np.load(path.parent / "answers.npz", allow_pickle=False) as arrays:
        start = f"{path.stem}/"
        found = {
            key.removeprefix(start): arrays[key]
            for key in arrays.files
            if key.startswith(start)
        }
    facts = json.loads((path.parent / "facts.json").read_text())[path.stem]
    return found.pop("x"), found, facts


def check_same(model, path):
    x, expected, facts = golden(path)
    found = answers(model, x)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert np.shape(found[name]) == values.shape, name
        if values.dtype.kind == "f" and name != "exit_thresholds":
            np.testing.assert_allclose(found[name], values, 1e-4, 1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(found[name], values, name)
    assert repr(model.exit_rule) == facts["rule"]
    assert model.exit_names == facts["exit_names"]


def test_there_are_some():
    """The folder of each release, with all that it can save."""
    assert FOLDERS and len(FILES) >= 8 * len(FOLDERS)
    texts = [zipfile.ZipFile(path).read("config.json").decode() for path in FILES]
    public = [*vars(kd).values(), *vars(rules).values(), *vars(kd.routers).values()]
    for each in public:
        if isinstance(each, type) and issubclass(each, (keras.Layer, rules.ExitRule)):
            if each not in (rules.ExitRule, kd.routers.Router):
                found = any(f'"{each.__name__}"' in text for text in texts)
                assert found, f"no golden file holds {each.__name__}"


@pytest.mark.fault(
    case="a newer release reads what an older one saved",
    made="the files that each release saved: every layer, rule and router, calibrated "
    "models, weights, reports with a certificate",
    lost="nothing: outputs to 1e-4, exits, costs, thresholds, temperatures and rules "
    "are those of the release that saved them",
)
@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_models_load_for_ever(path):
    check_same(keras.saving.load_model(path), path)


@pytest.mark.parametrize(
    "weights",
    [path for folder in FOLDERS for path in sorted(folder.glob("*.weights.h5"))],
    ids=name_of,
)
def test_weights_load_for_ever(weights):
    path = weights.with_name(weights.name.replace(".weights.h5", ".keras"))
    model = keras.saving.load_model(path)
    for variable in model.weights:
        if variable.dtype == "float32":
            variable.assign(np.ones(variable.shape))
    model.load_weights(weights)
    check_same(model, path)


@pytest.mark.parametrize(
    "path",
    [path.with_suffix(".json") for path in FILES if path.with_suffix(".json").exists()],
    ids=name_of,
)
def test_reports_load_for_ever(path):
    report = kd.calibration.CalibrationReport.load(path)
    written = json.loads(path.read_text())
    found = json.loads(json.dumps(report.to_dict()))
    assert found.items() >= {key: written[key] for key in found}.items()
    assert report.certificate.chosen is not None
    assert f"Accuracy {report.final_accuracy:.2%}".replace("%", " %") in str(report)


@pytest.mark.fault(
    case="a saved file that runs code when it is loaded",
    made="all that the package saved, looked through: every layer, rule and router",
    lost="nothing: no pickle, no Lambda, no object arrays; modules of Keras "
    "and of the package only",
)
@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_code_is_in_them(path):
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    assert parts.keys() == {"metadata.json", "config.json", "model.weights.h5"}
    config = parts["config.json"].decode()
    assert "ambda" not in config.replace("lambda_", "") and "pickle" not in config
    for module in modules_of(json.loads(config)):
        assert module is None or module.split(".")[0] in (
            "keras",
            "keras_dynamic",
            "builtins",
        ), module
    with h5py.File(io.BytesIO(parts["model.weights.h5"])) as file:
        file.visititems(check_plain)


def modules_of(config):
    """All that a configuration names as the module of something."""
    if isinstance(config, dict):
        if "class_name" in config:
            yield config.get("module")
        config = list(config.values())
    if isinstance(config, list):
        for each in config:
            yield from modules_of(each)


def check_plain(name, item):
    if isinstance(item, h5py.Dataset):
        assert item.dtype.kind in "fiu", (name, item.dtype)
    for value in item.attrs.values():
        assert np.asarray(value).dtype.kind in "fiuSUO" and not isinstance(value, bytes)
