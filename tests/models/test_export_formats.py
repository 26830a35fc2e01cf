"""LiteRT and ONNX of the dynamic road: run there, compared, and nothing left behind."""

import importlib.util

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_dynamic as kd
from keras_dynamic.models import export as exporting
from keras_dynamic.models.comparing import check_same_answers
from tests.models.small_exports import Bessel, Trap, make, normal, rows_of, two_exits
from tests.models.small_models import dense_model

FORMATS = ("litert", "onnx")
pytest.importorskip("ai_edge_litert")
onnxruntime = pytest.importorskip("onnxruntime")


def runner(path, format):
    """Function that runs a file of a format: from arrays by name to arrays by name."""
    if format == "litert":
        from ai_edge_litert.interpreter import Interpreter

        def run(arrays):
            # One for each batch size: resized after a run, it corrupts its memory.
            interpreter = Interpreter(str(path))
            return interpreter.get_signature_runner("serve")(**arrays)

        return run
    session = onnxruntime.InferenceSession(str(path))
    names = [output.name for output in session.get_outputs()]
    return lambda arrays: dict(zip(names, session.run(None, arrays), strict=True))


def trapped(threshold):
    """Who gets past exit 1 falls into a trap."""
    inputs = keras.Input((6,), name="features")
    hidden = keras.layers.Dense(8, "tanh")(inputs)
    rule = kd.rules.MaxProbability(threshold)
    return two_exits(inputs, hidden, Trap(), exit_rule=rule)


@pytest.mark.parametrize(
    "kind, format",
    [
        ("images", "litert"),
        ("selected", "litert"),
        ("gate", "litert"),
        ("images", "onnx"),
        ("calibrated", "onnx"),
        ("gated", "onnx"),
        ("two_inputs", "onnx"),
        ("tokens", "onnx"),
    ],
)
def test_converted_equals_predict_dynamic(kind, format, tmp_path, capsys):
    model, x = make(kind)
    path = tmp_path / "deeper" / "model"
    model.export(path, format=format)
    told = capsys.readouterr().out
    assert "Run on 38 random samples" in told and "Frozen in it" in told
    assert [file.name for file in path.parent.iterdir()] == ["model"]
    run = runner(path, format)
    # LiteRT has no empty batches.
    for rows in (1, 7, 128) if format == "litert" else (0, 1, 7, 128):
        batch = rows_of(x, rows)
        expected = model.predict_dynamic(batch, verbose=0, batch_size=128)
        found = run(batch if isinstance(batch, dict) else {model.inputs[0].name: batch})
        np.testing.assert_array_equal(found["exit_index"], expected.exit_index)
        for name in ("outputs", "confidence", "probabilities"):
            np.testing.assert_allclose(
                found[name], getattr(expected, name), rtol=1e-4, atol=1e-4
            )
        # Nor has it float64, in which the savings of gates are counted.
        assert ("cost" in found) == (format == "onnx" or kind != "gate")
        if "cost" in found:
            np.testing.assert_array_equal(found["cost"], expected.cost)


@pytest.mark.parametrize("format", FORMATS)
def test_segments_that_nobody_reaches_do_not_run(format, tmp_path):
    # The table lacks the entry that the last segment takes: whoever runs it fails.
    trapped(0.1).export(tmp_path / "model", format=format, verbose=False)
    found = runner(tmp_path / "model", format)({"features": normal(9, 6)})
    assert np.all(found["exit_index"] == 0)


NAMES = {  # as given: as written
    "a b": "a_b_2",
    "a_b": "a_b",
    "A_B": "A_B_1",
    "outputs": "outputs_1",
    "größe": "gr__e",
    "_1x": "input_1x",
    "x": "x",
}


@pytest.mark.parametrize("format", ["tf_saved_model", *FORMATS])
def test_inputs_have_names_that_every_format_takes(format, tmp_path, capsys):
    inputs = [keras.Input((1,), name=name) for name in NAMES]
    hidden = keras.layers.Dense(8, "tanh")(keras.layers.concatenate(inputs))
    model, x = two_exits(inputs, hidden), list(normal(len(NAMES), 5, 1))
    model.export(tmp_path / "model", format=format)
    assert "'a b' as 'a_b_2', " in capsys.readouterr().out
    fed = dict(zip(NAMES.values(), x, strict=True))
    if format == "tf_saved_model":
        loaded = tf.saved_model.load(tmp_path / "model")
        fed = {name: tf.constant(array) for name, array in fed.items()}
        found = loaded.signatures["serving_default"](**fed)
    else:
        found = runner(tmp_path / "model", format)(fed)
    expected = model.predict_dynamic(x, verbose=0)
    np.testing.assert_allclose(found["outputs"], expected.outputs, atol=1e-5)


def test_models_that_cannot_be_run_there_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(
        kd.DynamicModel,
        "predict_dynamic",
        lambda self, x, **_: answers(x),
    )

    def answers(x):
        return kd.DynamicPrediction(
            outputs=np.zeros((len(x), 4), "float32"),
            exit_index=np.zeros(len(x), "int32"),
            confidence=np.ones(len(x), "float32"),
            cost=np.zeros(len(x), "int64"),
            probabilities=np.zeros((len(x), 4), "float32"),
            exit_names=("exit_1", "final"),
            segment_rows=np.zeros(2, "int64"),
            reference_cost=1,
        )

    with pytest.raises(ValueError, match="onnx cannot run it on a batch of 1"):
        trapped(None).export(tmp_path / "model", format="onnx", verbose=False)
    assert not list(tmp_path.iterdir())


# What is fed to compare


class Positions(keras.layers.Layer):
    """Adds one of sixteen vectors to each place of a sequence."""

    def build(self, input_shape):
        self.table = self.add_weight(shape=(16, 4), name="table")

    def call(self, inputs):
        return inputs + tf.gather(self.table, tf.range(tf.shape(inputs)[1]))

    def compute_output_shape(self, input_shape):
        return input_shape

    def compute_flops(self, input_shape):
        return 0


def sequences(inputs, hidden):
    return two_exits(inputs, keras.layers.GlobalAveragePooling1D()(hidden))


def compared(model):
    """What a model is fed when it is compared: a list of lists of arrays."""
    fed = []

    def run(arrays):
        fed.append(list(arrays.values()))
        x = keras.tree.pack_sequence_as(model.input, fed[-1])
        p = model.predict_dynamic(x, verbose=0, batch_size=32)
        names = ("outputs", "exit_index", "confidence", "probabilities")
        return {name: getattr(p, name) for name in names}

    check_same_answers(model, run, exporting.named_specs(model), "onnx")
    return fed


def test_numbers_that_are_looked_up_lie_in_the_smallest_table():
    wide, narrow = keras.layers.Embedding(20, 4), keras.layers.Embedding(5, 4)
    for dtype in ("float32", "int32"):
        for order in ((wide, narrow), (narrow, wide)):
            inputs = keras.Input((5,), dtype=dtype, name="ids")
            model = sequences(inputs, order[0](inputs) + order[1](inputs))
            numbers = np.concatenate([batch[0] for batch in compared(model)])
            assert set(numbers.ravel()) == {0, 1, 2, 3, 4}, dtype
    inputs = keras.Input((1,), name="kind")
    hidden = keras.layers.CategoryEncoding(6, output_mode="one_hot")(inputs)
    numbers = np.concatenate([b[0] for b in compared(two_exits(inputs, hidden))])
    assert set(numbers.ravel()) == {0, 1, 2, 3, 4, 5}


def test_open_lengths_are_those_that_the_model_takes():
    inputs = keras.Input((None,), dtype="int32", name="ids")
    model = sequences(inputs, Positions()(keras.layers.Embedding(20, 4)(inputs)))
    assert {batch[0].shape[1] for batch in compared(model)} == {16}


class Table(keras.layers.Layer):
    """Nine vectors, looked up from a number on, by hand."""

    def __init__(self, start):
        super().__init__()
        self.start = start

    def call(self, inputs):
        return tf.gather(tf.eye(9, 4), tf.cast(inputs, "int32") - self.start)

    def compute_output_shape(self, input_shape):
        return (*input_shape, 4)

    def compute_flops(self, input_shape):
        return 0


@pytest.mark.parametrize(
    "start, dtype, numbers",
    [(0, "float32", {0, 1}), (1, "int32", {1}), (1, "float32", {1})],
)
def test_numbers_looked_up_by_hand(start, dtype, numbers):
    inputs = keras.Input((5,), dtype=dtype, name="ids")
    fed = compared(sequences(inputs, Table(start)(inputs)))
    assert set(np.concatenate([batch[0] for batch in fed]).ravel()) == numbers


@pytest.mark.parametrize(
    "length, message",
    [
        (None, r"`input_signature` with such as .*'int32'.* Received: InvalidArgument"),
        (5, r"nothing was written.* clip them inside the model.*is not in \[0, 9\)"),
    ],
)
def test_a_model_that_takes_none_of_them_says_what_to_do(length, message):
    inputs = keras.Input((length,), dtype="int32", name="ids")
    with pytest.raises(ValueError, match=message):
        compared(sequences(inputs, Table(5)(inputs)))


def test_outputs_are_compared_with_those_of_keras(monkeypatch):
    # Both sides have swapped the inputs: each other's image, and not what Keras gives.
    one, two = keras.Input((3,), name="one"), keras.Input((3,), name="two")
    scaled = keras.layers.Rescaling(5.0)(two)
    model = two_exits([one, two], keras.layers.concatenate([one, scaled]))
    predict = model.predict_dynamic
    monkeypatch.setattr(model, "predict_dynamic", lambda x, **k: predict(x[::-1], **k))
    with pytest.raises(ValueError, match="another `outputs` than the model"):
        compared(model)


# Errors


@pytest.mark.parametrize("format", FORMATS)
def test_operations_that_a_format_lacks_are_named(format, tmp_path):
    inputs = keras.Input((6,), name="features")
    model = two_exits(inputs, keras.layers.Dense(8)(inputs), Bessel())
    with pytest.raises(ValueError, match=rf"`format='{format}'`.* BesselI0, which"):
        model.export(tmp_path / "model", format=format)
    assert not list(tmp_path.iterdir())


def test_bfloat16_is_refused_by_onnx(tmp_path):
    model, _ = make("half_precision")
    with pytest.raises(ValueError, match="cannot hold this model.*'bfloat16'"):
        model.export(tmp_path / "model", format="onnx")
    assert not list(tmp_path.iterdir())


def test_mixtures_are_refused_by_litert(tmp_path):
    model, _ = make("gated")
    with pytest.raises(ValueError, match="DenseBincount, InvertPermutation, which"):
        model.export(tmp_path / "model", format="litert")
    assert not list(tmp_path.iterdir())


def recurrent(layer):
    inputs = keras.Input((3, 2), name="steps")
    hidden = keras.layers.Dense(4, "tanh")(inputs)
    first = kd.EarlyExit(4, name="exit_1")(hidden)
    final = keras.layers.Dense(4, "softmax", name="final")(layer(hidden))
    return kd.DynamicModel(inputs, [first, final])


def test_recurrent_layers_are_to_be_unrolled_for_litert(tmp_path):
    layer = keras.layers.LSTM(4)
    model, x = recurrent(layer), normal(5, 3, 2)
    message = "TensorList.*nothing was written.*`unroll = True`"
    with pytest.raises(ValueError, match=message):
        model.export(tmp_path / "model", format="litert")
    assert not list(tmp_path.iterdir())
    layer.unroll = True
    model.export(tmp_path / "model", format="litert", verbose=False)
    expected = model.predict_dynamic(x, verbose=0)
    found = runner(tmp_path / "model", "litert")({"steps": x})
    np.testing.assert_allclose(found["outputs"], expected.outputs, atol=1e-5)


def test_half_precision_is_the_reason_that_litert_is_given(tmp_path):
    inputs = keras.Input((6,), name="features")
    hidden = keras.layers.Dense(8, "tanh", dtype="float16")(inputs)
    with pytest.raises(ValueError, match="half precision, as this model does in Bias"):
        two_exits(inputs, hidden).export(tmp_path / "model", format="litert")
    # An operation that it lacks in any precision is named alone.
    model = two_exits(inputs, Bessel()(hidden))
    with pytest.raises(ValueError, match=r"operation\(s\) BesselI0, which"):
        model.export(tmp_path / "model", format="litert")
    assert not list(tmp_path.iterdir())


def test_a_folder_is_not_written_over(tmp_path, monkeypatch):
    model = dense_model(compiled=False)
    with monkeypatch.context() as patched:
        # Before anything is converted.
        patched.setattr(exporting, "_converted", None)
        with pytest.raises(
            IsADirectoryError, match="must be a file.*which is a folder"
        ):
            model.export(tmp_path, format="onnx")

    def refuse(*_):
        raise PermissionError("no")

    monkeypatch.setattr(exporting, "_converted", lambda *_: (b"abc", [1]))
    monkeypatch.setattr(exporting.os, "replace", refuse)
    with pytest.raises(PermissionError, match="no"):
        model.export(tmp_path / "model", format="onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["outputs", "confidence", "exit_index", "cost"])
def test_a_difference_is_an_error_that_names_the_output(name, tmp_path, monkeypatch):
    def convert_badly(model, serve, specs):
        def run(arrays):
            found = serve([tf.constant(arrays["features"])])
            found = {key: tensor.numpy() for key, tensor in found.items()}
            wrong = 1 - found[name] if name == "exit_index" else found[name] + 1
            return {**found, name: wrong}

        return b"", run

    monkeypatch.setattr(exporting, "to_onnx", convert_badly)
    model = trapped(0.1)
    with pytest.raises(ValueError, match=f"another `{name}` than the model"):
        model.export(tmp_path / "model", format="onnx")
    assert not list(tmp_path.iterdir())


def test_a_score_on_the_threshold_may_go_either_way(monkeypatch):
    inputs = keras.Input((6,), name="features")
    rule = kd.rules.MaxProbability(0.1)
    model = two_exits(inputs, keras.layers.Dense(8)(inputs), exit_rule=rule)
    specs = exporting.named_specs(model)
    predict = model.predict_dynamic

    def run_with(confidence):
        def run(arrays):
            p = predict(arrays["features"], verbose=0, batch_size=32)
            found = {
                name: getattr(p, name).copy()
                for name in ("outputs", "exit_index", "confidence", "probabilities")
            }
            # The reference goes on past exit 1, this one leaves there.
            found["exit_index"][0], found["confidence"][0] = 0, confidence
            return found

        return run

    def predict_going_on(x, **options):
        p = predict(np.asarray(x), **options)
        p.exit_index[0] = 1
        return p

    monkeypatch.setattr(model, "predict_dynamic", predict_going_on)
    check_same_answers(model, run_with(0.1 + 5e-5), specs, "onnx")
    with pytest.raises(ValueError, match="another `exit_index`.*0 in place of 1"):
        check_same_answers(model, run_with(0.1 + 5e-3), specs, "onnx")


@pytest.mark.parametrize("format", FORMATS)
def test_missing_packages_name_the_extra(format, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "keras_dynamic\[export\]"'):
        dense_model(compiled=False).export(tmp_path / "model", format=format)
    assert not list(tmp_path.iterdir())


def test_opset_version_is_that_of_the_file(tmp_path):
    onnx = pytest.importorskip("onnx")
    model = trapped(0.1)
    model.export(tmp_path / "model", format="onnx", verbose=False, opset_version=17)
    (opset,) = [
        each.version
        for each in onnx.load(str(tmp_path / "model")).opset_import
        if each.domain == ""
    ]
    assert opset == 17
