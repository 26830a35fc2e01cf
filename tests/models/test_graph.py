import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_dynamic.models.graph import build_graph, run_steps


def run(model, x):
    graph = build_graph(model)
    values = dict(zip(graph.inputs, keras.tree.flatten(x), strict=True))
    run_steps(graph.steps, values)
    return [np.asarray(values[value]) for value in graph.outputs]


def test_steps_are_the_calls_in_order():
    inputs = keras.Input((3,))
    shared = layers.Dense(3, name="shared")
    hidden = shared(inputs)
    output = layers.add([shared(hidden), inputs], name="sum")
    graph = build_graph(keras.Model(inputs, output))
    assert [step.name for step in graph.steps] == ["shared", "shared", "sum"]
    assert graph.steps[2].inputs == [graph.steps[1].outputs[0], graph.inputs[0]]


def test_a_nested_model_called_twice_is_inlined_twice():
    inner_input = keras.Input((3,))
    inner = keras.Model(inner_input, layers.Dense(3, "relu")(inner_input))
    nested = keras.Sequential([keras.Input((3,)), inner, layers.Dense(3)])
    inputs = keras.Input((3,))
    model = keras.Model(inputs, nested(layers.Dense(3)(nested(inputs))))
    x = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    graph = build_graph(model)
    assert len(graph.steps) == 5
    assert all(type(step.operation) is layers.Dense for step in graph.steps)
    np.testing.assert_allclose(run(model, x)[0], model(x), rtol=1e-6)


def test_building_a_graph_leaves_no_trace_on_the_layers():
    inputs = keras.Input((3,))
    dense = layers.Dense(3)
    model = keras.Model(inputs, keras.Sequential([keras.Input((3,)), dense])(inputs))
    nodes = len(dense._inbound_nodes)
    build_graph(model)
    assert len(dense._inbound_nodes) == nodes


def test_dict_inputs_and_keyword_tensors():
    a, b = keras.Input((4, 6), name="a"), keras.Input((5, 6), name="b")
    attended = layers.MultiHeadAttention(2, 3)(query=a, value=b, key=b)
    model = keras.Model({"b": b, "a": a}, attended)
    generator = np.random.default_rng(0)
    x = {
        "a": generator.normal(size=(2, 4, 6)).astype("float32"),
        "b": generator.normal(size=(2, 5, 6)).astype("float32"),
    }
    np.testing.assert_allclose(run(model, x)[0], model(x), rtol=1e-5, atol=1e-6)


def test_nested_inputs_fed_by_name_and_cast_and_reshaped_as_keras_does():
    a, b = keras.Input((3,), name="a"), keras.Input((1,), name="b")
    inner = keras.Model([a, b], layers.concatenate([a, b]))
    first = keras.Input((3,), dtype="int32")
    second = keras.Input((), dtype="float32")
    model = keras.Model([first, second], inner({"a": first, "b": second}))
    x = [np.arange(6).reshape(2, 3), np.array([0.5, 1.5], "float32")]
    # Rows (0, 1, 2, 0.5) and (3, 4, 5, 1.5), all float32.
    expected = [[0, 1, 2, 0.5], [3, 4, 5, 1.5]]
    np.testing.assert_allclose(model(x), expected)
    np.testing.assert_allclose(run(model, x)[0], expected)
    assert [step.glue for step in build_graph(model).steps] == [True, True, False]


@pytest.mark.filterwarnings("ignore:.*does not support masking.*:UserWarning")
def test_masks_cross_a_nested_model():
    inner_input = keras.Input((4, 3))
    inner = keras.Model(inner_input, layers.LayerNormalization()(inner_input))
    ids = keras.Input((4,), dtype="int32")
    embedded = layers.Embedding(5, 3, mask_zero=True)(ids)
    pooled = layers.GlobalAveragePooling1D()(inner(embedded))
    model = keras.Model(ids, pooled)
    x = np.array([[1, 2, 0, 0], [3, 0, 0, 0], [1, 1, 1, 1]])
    assert inner not in [step.operation for step in build_graph(model).steps]
    np.testing.assert_allclose(run(model, x)[0], model(x), rtol=1e-5, atol=1e-6)


def test_masks_survive_the_cast_where_a_nested_model_begins():
    inner_input = keras.Input((4, 3), dtype="float64")
    pooling = layers.GlobalAveragePooling1D(dtype="float64")
    inner = keras.Model(inner_input, pooling(inner_input))
    ids = keras.Input((4,), dtype="int32")
    embedded = layers.Embedding(5, 3, mask_zero=True)(ids)
    with pytest.warns(UserWarning, match="does not support masking"):
        model = keras.Model(ids, inner(embedded))
    x = np.array([[1, 2, 0, 0], [3, 0, 0, 0]])
    table = model.layers[1].embeddings.numpy()
    expected = [(table[1] + table[2]) / 2, table[3]]
    np.testing.assert_allclose(run(model, x)[0], expected, rtol=1e-6)


def test_an_opaque_nested_model_stays_one_step():
    @keras.saving.register_keras_serializable(package="test_graph")
    class Doubling(keras.Model):
        def call(self, inputs, training=None, mask=None):
            return 2.0 * super().call(inputs)

    inner_input = keras.Input((3,))
    inner = Doubling(inner_input, layers.Dense(3)(inner_input))
    inputs = keras.Input((3,))
    model = keras.Model(inputs, inner(inputs))
    x = np.ones((2, 3), "float32")
    assert len(build_graph(model).steps) == 1
    np.testing.assert_allclose(run(model, x)[0], model(x))


def test_steps_run_in_inference_mode_even_where_training_was_recorded():
    inputs = keras.Input((3,))
    hidden = layers.Dropout(0.5)(inputs, training=True)
    model = keras.Model(inputs, layers.BatchNormalization()(hidden, training=True))
    x = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
    np.testing.assert_allclose(run(model, x)[0], model(x, training=False), rtol=1e-6)


def test_operations_with_several_outputs_and_constants():
    inputs = keras.Input((4,))
    left, right = ops.split(inputs, 2, axis=1)
    model = keras.Model(inputs, [ops.add(left, np.ones(2, "float32")), right])
    x = np.arange(8, dtype="float32").reshape(2, 4)
    np.testing.assert_allclose(run(model, x)[0], x[:, :2] + 1)
    np.testing.assert_allclose(run(model, x)[1], x[:, 2:])
