"""SavedModels of the dynamic road: without Python the same answers, and skipping."""

import os
import pickle
import subprocess
import sys
from collections import OrderedDict

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_dynamic as kd
from tests.models.small_exports import (
    KINDS,
    Trap,
    make,
    normal,
    rows_of,
    two_exits,
)
from tests.models.small_models import dense_model

BATCHES = (0, 1, 7, 128)
COLUMNS = ("outputs", "exit_index", "confidence", "probabilities", "cost")

# What a server runs: it knows TensorFlow and the files.
SERVING = """
import pickle, sys
sys.modules.update(keras=None, tf_keras=None, keras_dynamic=None)  # not to be had
import tensorflow as tf
found = {}
with open(sys.argv[1], "rb") as file:
    fed = pickle.load(file)
for name, (folder, batches) in fed.items():
    loaded = tf.saved_model.load(folder)
    found[name] = [
        {key: tensor.numpy() for key, tensor in loaded.serve(x).items()}
        for x in batches
    ]
with open(sys.argv[1], "wb") as file:
    pickle.dump(found, file)
"""


def served_elsewhere(fed, folder):
    """Answers of SavedModels in a process without Keras: {name: [dict of arrays]}.

    Args:
        fed: {name: (folder of the SavedModel, list of batches)}.
    """
    path = folder / "batches.pickle"
    path.write_bytes(pickle.dumps(fed))
    done = subprocess.run(
        [sys.executable, "-c", SERVING, str(path)],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return pickle.loads(path.read_bytes())


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """{kind: (predictions of the model, answers of its SavedModel)} by batches."""
    folder = tmp_path_factory.mktemp("exported")
    fed, expected = {}, {}
    for kind in KINDS:
        model, x = make(kind)
        model.export(folder / kind, verbose=False)
        batches = [rows_of(x, rows) for rows in BATCHES]
        arrays = [keras.tree.map_structure(np.asarray, batch) for batch in batches]
        fed[kind] = str(folder / kind), arrays
        expected[kind] = [
            model.predict_dynamic(batch, verbose=0, batch_size=128) for batch in batches
        ]
    found = served_elsewhere(fed, folder)
    return {kind: (expected[kind], found[kind]) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_served_without_keras_equals_predict_dynamic(kind, exported):
    for expected, found in zip(*exported[kind], strict=True):
        assert set(found) == set(COLUMNS)
        for name in COLUMNS:
            one, other = found[name], getattr(expected, name)
            assert one.shape == other.shape and one.dtype == other.dtype, name
            np.testing.assert_allclose(
                one.astype("float64"),
                other.astype("float64"),
                rtol=1e-5,
                atol=1e-5,
                err_msg=name,
            )


def trapped(threshold, units=6):
    """Who gets past exit 1 falls into a trap."""
    inputs = keras.Input((units,), name="features")
    hidden = keras.layers.Dense(8, "tanh")(inputs)
    rule = kd.rules.MaxProbability(threshold)
    return two_exits(inputs, hidden, Trap(), exit_rule=rule)


def test_segments_that_nobody_reaches_do_not_run(tmp_path):
    x = normal(9, 6)
    # Any largest probability of four is above 0.1, and a closed exit keeps everyone.
    trapped(0.1).export(tmp_path / "leaving", verbose=False)
    leaving = tf.saved_model.load(tmp_path / "leaving")
    assert np.all(leaving.serve(x)["exit_index"] == 0)
    trapped(None).export(tmp_path / "staying", verbose=False)
    staying = tf.saved_model.load(tmp_path / "staying")
    with pytest.raises(tf.errors.InvalidArgumentError, match="1000000"):
        staying.serve(x)
    assert staying.serve(x[:0])["outputs"].shape == (0, 4)  # nor the first one


def test_rule_is_frozen_as_it_stood(tmp_path):
    model, x = dense_model(compiled=False), normal(8, 6)
    model.exit_rule = kd.rules.MaxProbability([None, 0.1])
    model.export(tmp_path / "model", verbose=False)
    model.exit_rule = kd.rules.MaxProbability(0.1)
    loaded = tf.saved_model.load(tmp_path / "model")
    assert np.all(loaded.serve(x)["exit_index"] == 1)


def test_nan_never_leaves_early(tmp_path):
    model, x = dense_model(compiled=False), normal(3, 6)
    model.exit_rule = kd.rules.MaxProbability(0.1)
    model.export(tmp_path / "model", verbose=False)
    x[1, 2] = np.nan
    loaded = tf.saved_model.load(tmp_path / "model")
    found = loaded.serve(x)
    np.testing.assert_array_equal(found["exit_index"], [0, 2, 0])
    assert np.isnan(found["confidence"][1])


def test_serving_default_names_inputs_and_outputs(tmp_path):
    model, x = make("two_inputs")
    model.export(tmp_path / "model", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "model")
    serve = loaded.signatures["serving_default"]
    found = serve(**{name: tf.constant(array) for name, array in x.items()})
    expected = model.predict_dynamic(x, verbose=0)
    np.testing.assert_allclose(found["outputs"], expected.outputs, atol=1e-5)


def test_open_sizes_cost_nothing_until_they_are_given(tmp_path):
    inputs = keras.Input((None, None, 1))
    hidden = keras.layers.Conv2D(3, 3)(inputs)
    first = kd.EarlyExit(4, name="exit_1")(hidden)
    final = kd.EarlyExit(4, name="final")(keras.layers.Conv2D(3, 3)(hidden))
    model = kd.DynamicModel(inputs, [first, final])
    x = normal(5, 7, 8, 1)
    expected = model.predict_dynamic(x, verbose=0)
    model.export(tmp_path / "open", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "open")
    found = loaded.serve(x)
    np.testing.assert_allclose(found["outputs"], expected.outputs, atol=1e-5)
    assert "cost" not in found
    spec = keras.InputSpec(shape=(None, 7, 8, 1), dtype="float32")
    model.export(tmp_path / "fixed", verbose=False, input_signature=[spec])
    loaded = tf.saved_model.load(tmp_path / "fixed")
    np.testing.assert_array_equal(loaded.serve(x)["cost"], expected.cost)


def test_one_exit_with_gates(tmp_path):
    inputs = keras.Input((6,))
    gate = kd.SkipGate(keras.layers.Dense(6), gate=keras.layers.Dense(1))
    final = keras.layers.Dense(4, "softmax")(gate(inputs))
    model, x = kd.DynamicModel(inputs, [final]), normal(16, 6)
    model.export(tmp_path / "model", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "model")
    found, expected = loaded.serve(x), model.predict_dynamic(x, verbose=0)
    np.testing.assert_allclose(found["outputs"], expected.outputs, atol=1e-5)
    np.testing.assert_array_equal(found["cost"], expected.cost)
    assert len(set(expected.cost.tolist())) == 2  # closed for some


def test_a_dict_in_another_order_is_fed_by_name(tmp_path):
    z, a = keras.Input((3,), name="z"), keras.Input((3,), name="a")
    hidden = keras.layers.concatenate([z, keras.layers.Rescaling(5.0)(a)])
    x = {"z": normal(8, 3), "a": normal(8, 3)[::-1]}
    for kind in (dict, OrderedDict):
        model = two_exits(kind(z=z, a=a), hidden)
        model.exit_rule = kd.rules.MaxProbability(None)
        model.export(tmp_path / kind.__name__, verbose=False)
        loaded = tf.saved_model.load(tmp_path / kind.__name__)
        # Layer by layer, without a structure in which inputs could be confused.
        by_hand = np.concatenate([x["z"], 5 * x["a"]], axis=1)
        expected = model.get_layer("final")(model.get_layer("deep")(by_hand))
        served = loaded.signatures["serving_default"]
        found = served(**{name: tf.constant(array) for name, array in x.items()})
        np.testing.assert_allclose(found["outputs"], expected, atol=1e-5)
        for order in ("za", "az"):
            found = loaded.serve(kind((name, x[name]) for name in order))
            np.testing.assert_allclose(found["outputs"], expected, atol=1e-5)


# What `verbose` says


@pytest.mark.parametrize(
    "kind, said",
    [
        (
            "patient",
            "Patience(threshold=2) with temperatures [1.0, 1.0, 1.0]: the",
        ),
        ("images", "MaxProbability(threshold=[0."),
        ("calibrated", "as calibrated."),
        ("selected", "the selector's choice of exits"),
    ],
)
def test_verbose_says_what_was_frozen(kind, said, tmp_path, capsys):
    model, _ = make(kind)
    model.export(tmp_path / "model")
    told = capsys.readouterr().out
    assert said in told and "Saved artifact" in told
    assert ("default; the model was not calibrated" in told) == (kind == "patient")
    assert ("set by hand" in told) == (kind == "images")


def test_verbose_false_says_nothing(tmp_path, capsys):
    dense_model(compiled=False).export(tmp_path / "model", verbose=False)
    assert capsys.readouterr().out == ""


# Errors


@pytest.mark.parametrize("format", ["openvino", "torch", "tflite"])
def test_other_formats_are_refused(format, tmp_path):
    message = rf"'litert', 'onnx', 'tf_saved_model'.*Received: format='{format}'"
    with pytest.raises(ValueError, match=message):
        dense_model(compiled=False).export(tmp_path / "model", format=format)
    assert not list(tmp_path.iterdir())


def test_further_arguments_are_refused(tmp_path):
    with pytest.raises(TypeError, match=r"Received: \['is_static'\]"):
        dense_model(compiled=False).export(tmp_path / "model", is_static=True)


def test_signature_of_another_length_is_refused(tmp_path):
    specs = [keras.InputSpec(shape=(None, 6), dtype="float32")] * 2
    with pytest.raises(ValueError, match=r"each of the 1 inputs. Received: 2 specs"):
        dense_model(compiled=False).export(tmp_path / "m", input_signature=specs)
