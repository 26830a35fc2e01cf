import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_dynamic as kd
from keras_dynamic.models.batch_axis import check_rows, same_rows
from keras_dynamic.models.graph import build_graph
from keras_dynamic.models.segments import cut_at_exits, needed_steps


class Turned(layers.Layer):
    """Puts the batch on the last axis: no mixing of rows, but nothing to gather."""

    def call(self, inputs):
        return ops.transpose(inputs, (1, 0))


class Rows(layers.Layer):
    """Merges the batch with the second axis."""

    def call(self, inputs):
        return ops.reshape(inputs, (-1, inputs.shape[-1]))


class Gram(layers.Layer):
    """Every row with every other: the batch on both axes."""

    def call(self, inputs):
        return ops.matmul(inputs, ops.transpose(inputs))


class Positions(layers.Layer):
    """As many rows of a table as there are tokens: no batch, size unknown."""

    def build(self, input_shape):
        self.table = self.add_weight(shape=(20, input_shape[-1]), initializer="normal")

    def call(self, inputs):
        return self.table[: ops.shape(inputs)[1]]


def cut(model):
    graph = build_graph(model)
    check_rows(graph)
    return graph, cut_at_exits(graph)


def names(steps):
    return [step.name for step in steps]


def test_every_step_runs_in_the_first_segment_that_needs_it():
    inputs = keras.Input((3,))
    a = layers.Dense(3, name="a")(inputs)
    b = layers.Dense(3, name="b")(a)
    side = layers.Dense(3, name="side")(inputs)  # needed at the end only
    c = layers.add([b, side, a], name="c")  # skips over the second exit
    outputs = [layers.Dense(2, name=f"exit_{k}")(t) for k, t in enumerate((a, b, c))]
    graph, segments = cut(keras.Model(inputs, outputs))
    assert [names(s.steps) for s in segments] == [
        ["a", "exit_0"],
        ["b", "exit_1"],
        ["side", "c", "exit_2"],
    ]
    # After the first exit `a` and the input live on; after the second `b` as well.
    assert {v.name for v in segments[0].live} == {"a", graph.inputs[0].name}
    assert {v.name for v in segments[1].live} == {"a", "b", graph.inputs[0].name}
    assert segments[2].live == ()
    assert {v.name for v in segments[1].inputs} == {"a"}
    assert names(needed_steps(graph, graph.outputs[-1:])) == [
        "a",
        "b",
        "side",
        "c",
        "exit_2",
    ]


def test_cuts_inside_a_nested_model():
    inner_input = keras.Input((3,))
    hidden = layers.Dense(3, name="inner_a")(inner_input)
    inner = keras.Model(inner_input, [hidden, layers.Dense(3, name="inner_b")(hidden)])
    inputs = keras.Input((3,))
    early, late = inner(inputs)
    outputs = [layers.Dense(2, name="e")(early), layers.Dense(2, name="f")(late)]
    _, segments = cut(keras.Model(inputs, outputs))
    assert [names(s.steps) for s in segments] == [["inner_a", "e"], ["inner_b", "f"]]


def test_values_without_a_batch_axis_are_told_apart_even_at_unknown_size():
    inputs = keras.Input((None, 4))
    positions = Positions(name="positions")(inputs)
    assert positions.shape == (None, 4)  # which looks like a batch
    summed = layers.Dense(4)(inputs) + positions
    early = layers.Dense(2, "softmax")(layers.GlobalAveragePooling1D()(summed))
    late = layers.Dense(2, "softmax")(
        layers.GlobalAveragePooling1D()(summed * positions)
    )
    model = kd.DynamicModel(inputs, [early, late])
    live = model.road.segments[0].live
    assert [value.batched for value in live if value.name == "positions"] == [False]
    assert [value.batched for value in live if value.name != "positions"] == [True]
    # As many samples as tokens: a table taken for a batch would be gathered.
    x = np.random.default_rng(0).normal(size=(5, 5, 4)).astype("float32")
    rule = kd.rules.MaxProbability(0.0)
    scores = np.max(model.predict(x, verbose=0)[0], axis=1)
    middle = float(np.mean(np.sort(scores)[2:4]))
    prediction = model.predict_dynamic(
        x, rule=kd.rules.MaxProbability(middle), verbose=0
    )
    expected = np.where(scores > middle, 0, 1)
    assert 0 < expected.sum() < 5
    np.testing.assert_array_equal(prediction.exit_index, expected)
    dense = np.stack(model.predict(x, verbose=0), 1)[np.arange(5), expected]
    np.testing.assert_allclose(prediction.outputs, dense, rtol=1e-5, atol=1e-6)
    assert model.predict_dynamic(x, rule=rule, verbose=0).exit_index.max() == 0


def test_a_tensor_whose_batch_is_elsewhere_cannot_cross_an_exit():
    inputs = keras.Input((4,))
    turned = Turned(name="to_columns")(inputs)
    back = Turned()(turned)
    early = layers.Dense(2, name="early")(back)
    with pytest.raises(ValueError, match="cut at exit 'early'.*'to_columns'"):
        kd.DynamicModel(inputs, [early, layers.Dense(2)(Turned()(turned))])
    # Inside a segment it does no harm.
    model = kd.DynamicModel(inputs, [early, layers.Dense(2)(back)])
    assert all(value.batched for value in model.road.segments[0].live)


def test_a_batch_merged_with_another_axis_cannot_cross_an_exit():
    inputs = keras.Input((3, 4))
    merged = Rows(name="all_rows")(inputs)
    early = layers.Dense(2)(layers.Flatten()(inputs))
    late = layers.Dense(2)(layers.Flatten()(inputs))
    merged_late = layers.Dense(2)(merged)
    model = keras.Model(inputs, [layers.Dense(2)(merged), early, merged_late, late])
    with pytest.raises(ValueError, match="'all_rows'"):
        cut(model)


def test_a_batch_on_two_axes_cannot_cross_an_exit():
    inputs = keras.Input((4,))
    gram = Gram(name="all_pairs")(inputs)
    late = layers.Dense(2)(ops.max(gram, axis=-1, keepdims=True))
    early = layers.Dense(2)(ops.min(gram, axis=-1, keepdims=True))
    with pytest.raises(ValueError, match="'all_pairs'"):
        cut(keras.Model(inputs, [early, late]))


MIXING = {
    "softmax over the batch": lambda t: ops.softmax(t, axis=0),
    "mean over the batch": lambda t: t - ops.mean(t, axis=0),
    "mean kept": lambda t: t - ops.mean(t, axis=0, keepdims=True),
    "mean of all": lambda t: t - ops.mean(t),
    "flip": lambda t: ops.flip(t, axis=0),
    "roll": lambda t: ops.roll(t, 1, axis=0),
    "cumulative sum": lambda t: ops.cumsum(t, axis=0),
    "sort": lambda t: ops.sort(t, axis=0),
    "reshape across the batch": lambda t: ops.reshape(t, (-1, 3)),
    "einsum": lambda t: ops.einsum("ij,kj->kj", t, t),
    "broadcast against itself": lambda t: ops.sum(
        t + ops.expand_dims(t, axis=1), axis=1
    ),
    "squeeze of a batch of one": lambda t: ops.squeeze(ops.expand_dims(t, 1)),
    "concatenate": lambda t: ops.concatenate([t, t], axis=0),
    "lower triangle": lambda t: ops.tril(t),
    "layer over the batch": lambda t: layers.Softmax(axis=0)(t),
    "layer joining batches": lambda t: layers.Concatenate(axis=0)([t, t]),
    "negative axis": lambda t: layers.Softmax(axis=-2)(t),
}


@pytest.mark.parametrize("what", MIXING)
def test_operations_that_mix_rows_are_an_error(what):
    inputs = keras.Input((6,))
    mixed = MIXING[what](layers.Dense(6)(inputs))
    outputs = [layers.Dense(2)(mixed), layers.Dense(2)(inputs)]
    with pytest.raises(ValueError, match="mixes the rows|along the batch"):
        kd.DynamicModel(inputs, outputs)


KEEPING = {
    "reshape": lambda t: ops.reshape(t, (-1, 6)),
    "softmax": lambda t: ops.softmax(t, axis=-1),
    "swap other axes": lambda t: ops.transpose(ops.reshape(t, (-1, 2, 3)), (0, 2, 1)),
    "slice": lambda t: t[:, ::2],
    "take": lambda t: ops.take(t, [0, 2], axis=1),
    "matmul": lambda t: ops.matmul(t, np.ones((6, 3), "float32")),
    "batched matmul": lambda t: ops.matmul(t[:, None, :], t[:, :, None]),
    "einsum": lambda t: ops.einsum("bi,bj->bij", t, t),
    "top": lambda t: ops.top_k(t, 3)[0],
    "one hot": lambda t: ops.one_hot(ops.argmax(t, axis=-1), 6),
    "where": lambda t: ops.where(t > 0, t, ops.zeros_like(t)),
}


@pytest.mark.parametrize("what", KEEPING)
def test_operations_that_keep_rows_apart_are_not(what):
    inputs = keras.Input((6,))
    kept = layers.Flatten()(KEEPING[what](layers.Dense(6)(inputs)))
    model = kd.DynamicModel(inputs, [layers.Dense(2)(kept), layers.Dense(2)(inputs)])
    assert all(value.batched for value in model.road.segments[0].live)


def test_stateful_layers_are_an_error():
    graph = build_graph(
        keras.Model(
            (inputs := keras.Input((5, 6), batch_size=4)),
            [layers.GRU(3, stateful=True, name="memory")(inputs)],
        )
    )
    with pytest.raises(ValueError, match="'memory' keeps a state"):
        check_rows(graph)


def test_same_rows():
    whole = np.arange(12.0).reshape(4, 3)
    rows = np.array([2, 0])
    assert same_rows(whole, whole[rows], rows)
    assert same_rows([whole, whole > 3], [whole[rows], whole[rows] > 3], rows)
    assert not same_rows(whole, whole[[0, 2]], rows)
    assert not same_rows(whole, whole[rows] + 1e-3, rows)
    assert not same_rows(whole[:2], whole[rows], rows)
    assert not same_rows(np.float32(1), np.float32(1), rows)
    nan = np.where(whole == 6, np.nan, whole)
    assert same_rows(nan, nan[rows], rows)
