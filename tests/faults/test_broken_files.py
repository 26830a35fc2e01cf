"""Files of models and weights that are cut short or changed: an error, and no harm."""

import io
import json
import sys
import warnings
import zipfile

import h5py
import keras
import numpy as np
import pytest

from tests.golden.make import ROOT
from tests.models.worker import data, exits

GOLDEN = ROOT / "0.1"

FOREIGN = {"module": "os", "class_name": "function", "config": "system"}
LAMBDA = {
    "module": "keras.layers",
    "class_name": "Lambda",
    "registered_name": None,
    "config": {
        "name": "dense",
        "function": {
            "class_name": "__lambda__",
            "config": {"code": "4wEAAAA=", "defaults": None, "closure": None},
        },
    },
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(model, bytes of its .keras file, bytes of its weights), trained a little."""
    folder = tmp_path_factory.mktemp("saved")
    model = exits()
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(*data(), verbose=0)
    model.save(folder / "m.keras")
    model.save_weights(folder / "m.weights.h5")
    files = [(folder / name).read_bytes() for name in ("m.keras", "m.weights.h5")]
    return model, *files


def load_model(folder, content):
    (folder / "m.keras").write_bytes(content)
    return keras.saving.load_model(folder / "m.keras")


def values(model):
    return [each.numpy() for each in (*model.variables, *model.optimizer.variables)]


def check_refused(model, folder, content, error, message):
    """`load_weights` raises, names the file, and leaves all as it was."""
    path = folder / "m.weights.h5"
    path.write_bytes(content)
    before = values(model)
    with pytest.raises(error, match=message) as caught:
        model.load_weights(path)
    assert f"filepath='{path}'" in str(caught.value)
    for old, new in zip(before, values(model), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.fault(
    case="a `.keras` file is cut short",
    made="the file cut at ten lengths from none to all but one byte",
    lost="the file: loading raises a ValueError that names it",
)
def test_truncated_model(tmp_path, saved):
    _, content, _ = saved
    for part in range(10):
        with pytest.raises(ValueError, match="m.keras"):
            load_model(tmp_path, content[: (len(content) - 1) * part // 9])


@pytest.mark.fault(
    case="bits of a `.keras` file are flipped",
    made="bits of one byte at twenty places of its parts",
    lost="the file: loading raises, by the checksum of the part",
)
def test_flipped_bits(tmp_path, saved):
    _, content, _ = saved
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        first = archive.getinfo("config.json").header_offset + 64
        last = archive.start_dir - 1
    refusals = zipfile.BadZipFile, ValueError
    if sys.version_info >= (3, 12):  # Keras reads on, and HDF5 finds no name there
        refusals += (RuntimeError,)
    for place in np.linspace(first, last, 20).astype(int):
        changed = bytearray(content)
        changed[place] ^= 0x55
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras', of parts that it does not find
            with pytest.raises(refusals):
                load_model(tmp_path, bytes(changed))


def parts_of(content):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(parts):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return stream.getvalue()


@pytest.mark.parametrize("part", ["config.json", "model.weights.h5"])
def test_missing_part(tmp_path, saved, part):
    parts = parts_of(saved[1])
    del parts[part]
    with pytest.raises((KeyError, ValueError), match=part):
        load_model(tmp_path, packed(parts))


def with_threshold(value):
    return lambda config: config["exit_rule"]["config"].update(threshold=value)


def with_rule(rule):
    return lambda config: config.update(exit_rule=rule)


def unknown_rule(config):
    config["exit_rule"].update(class_name="Nope", registered_name="x>Nope")


def with_layer(name, /, **changes):
    def change(config):
        (layer,) = (each for each in config["layers"] if each["name"] == name)
        layer["config"].update(changes)
        if "name" in changes:
            layer["name"] = changes["name"]

    return change


def with_lambda(config):
    config["layers"][1] |= LAMBDA


@pytest.mark.fault(
    case="the configuration in a `.keras` file is tampered with",
    made="thresholds too many, out of range, of another type; an unknown rule, another "
    "class in its place; exits renamed, of another size or gone; a selector that is "
    "none; a Lambda; a function of the module `os`",
    lost="the file: loading raises, and runs nothing that the file names",
)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            with_threshold([0.1, 0.2, 0.3]),
            r"`threshold` must.*\[0.1, 0.2, 0.3\] with 3",
        ),
        (with_threshold(1.5), r"`threshold` must lie in \[0, 1\].*1.5"),
        (with_threshold("high"), "`threshold` must be a number.*'high'"),
        (unknown_rule, "Nope"),
        (with_rule("nope"), "`rule` must be one of.*'nope'"),
        (with_rule(3), "`rule` must be a name or an instance.*3"),
        (with_rule(FOREIGN), "Could not locate function 'system'"),
        (with_layer("exit_1", name="other"), "exit_1"),
        (with_layer("exit_1", units=7), "`outputs` must all have the same shape"),
        (lambda config: config["output_layers"].pop(), "`outputs` must hold at least"),
        (lambda config: config.update(selector=True), "`selector` must have"),
        (with_lambda, "arbitrary code execution"),
    ],
)
def test_tampered_configuration(tmp_path, saved, change, message):
    parts = parts_of(saved[1])
    config = json.loads(parts["config.json"])
    change(config["config"])
    parts["config.json"] = json.dumps(config)
    with pytest.raises((ValueError, TypeError, RuntimeError)) as caught:
        load_model(tmp_path, packed(parts))
    assert pytest.RaisesExc(Exception, match=f"(?s){message}").matches(caught.value)


def config_of(config, class_name):
    """The configuration of the first layer of a class, however deep."""
    if isinstance(config, dict) and config.get("class_name") == class_name:
        return config["config"]
    if isinstance(config, dict):
        config = list(config.values())
    parts = config if isinstance(config, list) else []
    found = (config_of(part, class_name) for part in parts)
    return next(filter(None, found), None)


@pytest.mark.fault(
    case="a layer within a layer of the package is tampered with",
    made="a Lambda, or a function of the module `os`, for the layer of a gate, of a "
    "choice, of experts, for an activation and for the pooling of an exit",
    lost="the file: loading raises, and runs nothing that the file names",
)
@pytest.mark.parametrize("evil", [LAMBDA, FOREIGN], ids=["lambda", "os.system"])
@pytest.mark.parametrize(
    ("name", "class_name", "key"),
    [
        ("gated", "SkipGate", "layer"),
        ("gated", "LayerChoice", "layers"),
        ("gated", "BlendedActivation", "activations"),
        ("experts", "SparseMoE", "router"),
        ("images", "EarlyExit", "pooling"),
    ],
)
def test_tampered_layers_within(tmp_path, name, class_name, key, evil):
    parts = parts_of((GOLDEN / f"{name}.keras").read_bytes())
    config = json.loads(parts["config.json"])
    inner = config_of(config, class_name)
    evil = {**evil, "registered_name": None}
    inner[key] = [evil, *inner[key][1:]] if isinstance(inner[key], list) else evil
    parts["config.json"] = json.dumps(config)
    with pytest.raises((ValueError, TypeError)) as caught:
        load_model(tmp_path, packed(parts))
    message = "arbitrary code|Could not locate function 'system'"
    assert pytest.RaisesExc(Exception, match=message).matches(caught.value)


@pytest.mark.fault(
    case="a file of weights is cut short",
    made="the file cut at six lengths from none to all but one byte",
    lost="the file: `load_weights` raises an OSError that names it, and the model's "
    "weights and optimizer state are what they were",
)
def test_truncated_weights(tmp_path, saved):
    model, _, content = saved
    for part in range(6):
        short = content[: (len(content) - 1) * part // 5]
        check_refused(model, tmp_path, short, OSError, "No weights were loaded")


def changed_weights(content, change):
    stream = io.BytesIO(content)
    with h5py.File(stream, "a") as file:
        change(file)
    return stream.getvalue()


def with_value(place, value):
    def change(file):
        file[place][...] = value

    return change


def without(place):
    return lambda file: file.__delitem__(place)


def with_shape(place, shape):
    def change(file):
        del file[place]
        file[place] = np.zeros(shape, "float32")

    return change


@pytest.mark.fault(
    case="a file of weights is tampered with",
    made="arrays gone, of another shape or type, of a layer and of the optimizer; "
    "thresholds and temperatures that mean nothing; in `.weights.h5` and in `.keras`",
    lost="the file: loading raises an error that says what is wrong, and the weights "
    "and optimizer state of the model that was to take them are what they were",
)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("vars"), "expected 3 variables, but received 0"),
        (without("vars/1"), "expected 3 variables, but received 2"),
        (with_shape("vars/0", (4,)), "shape.*must match"),
        (without("layers/dense_2"), "expected 2 variables, but received 0"),
        (with_shape("layers/dense_2/vars/0", (8, 5)), "shape.*must match"),
        (with_shape("optimizer/vars/9", (1,)), "shape.*must match"),
        (with_value("vars/0", np.nan), "`exit_thresholds` must be finite.*nan"),
        (with_value("vars/0", -np.inf), "`exit_thresholds` must be finite.*-inf"),
        (with_value("vars/0", 7), r"`threshold` must lie in \[0, 1\].*7.0"),
        (with_value("vars/1", 0), r"`calibration_temperatures` must be.*\[0.0, 0.0\]"),
        (with_value("vars/1", [1, np.nan]), r"`calibration_temperatures`.*\[1.0, nan"),
        (with_value("vars/1", np.inf), r"`calibration_temperatures`.*\[inf, inf"),
    ],
)
@pytest.mark.filterwarnings("ignore:Skipping nested container")
def test_tampered_weights(tmp_path, saved, change, message):
    model, content, weights = saved
    message = f"(?s){message}"
    changed = changed_weights(weights, change)
    check_refused(model, tmp_path, changed, ValueError, message)
    parts = parts_of(content)
    parts["model.weights.h5"] = changed_weights(parts["model.weights.h5"], change)
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path, packed(parts))


# `pytest.warns` gives every other warning out again, as one of the test's own.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_value("vars/1", np.nan), "`calibration_temperatures` must be"),
        (with_shape("vars/1", (4,)), "shape.*must match"),
    ],
)
def test_tampered_weights_skipped(tmp_path, saved, change, message):
    """With `skip_mismatch` the rule's thresholds and temperatures stay together."""
    model, _, weights = saved
    before = model.exit_thresholds.numpy(), model.calibration_temperatures.numpy()

    def both(file):
        file["vars/0"][...] = 0.3
        change(file)

    path = tmp_path / "m.weights.h5"
    path.write_bytes(changed_weights(weights, both))
    with pytest.warns(UserWarning, match=f"(?s){message}"):
        model.load_weights(path, skip_mismatch=True)
    after = model.exit_thresholds.numpy(), model.calibration_temperatures.numpy()
    np.testing.assert_array_equal(before[0], after[0])
    np.testing.assert_array_equal(before[1], after[1])


def test_closed_exits_load(tmp_path, saved):
    """An infinite threshold on the right side is a closed exit, and no fault."""
    model, _, weights = saved
    path = tmp_path / "m.weights.h5"
    path.write_bytes(changed_weights(weights, with_value("vars/0", np.inf)))
    model.load_weights(path)
    assert model.exit_rule.threshold == [None]
    path.write_bytes(weights)
    model.load_weights(path)
    assert model.exit_rule.threshold == 0.9


def test_missing_weights(tmp_path, saved):
    with pytest.raises(FileNotFoundError, match="nowhere.weights.h5"):
        saved[0].load_weights(tmp_path / "nowhere.weights.h5")
    with pytest.raises(ValueError, match="(?s)m.keras.*no_such"):
        (tmp_path / "m.keras").write_bytes(saved[1])
        saved[0].load_weights(tmp_path / "m.keras", no_such=True)
