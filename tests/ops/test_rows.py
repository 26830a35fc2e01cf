import numpy as np
import pytest
import tensorflow as tf

from keras_dynamic.ops.rows import run_on_rows
from tests.ops.gradients import normal

CHOICES = {
    "some": [True, False, True, True, False],
    "none": [False] * 5,
    "all": [True] * 5,
    "first": [True, False, False, False, False],
    "one open row": [True],
    "one closed row": [False],
    "no rows": [],
}


def double(tensors):
    """2 x + 1 (or 2 x + y), and the sum of each row as a note."""
    x, y = tensors
    output = 2 * x + (1 if y is None else y)
    return output, [tf.reduce_sum(output, axis=1)]


def negative(tensors):
    return -tensors[0]


def by_hand(x, y, chosen, otherwise, adds):
    """Both for all rows, then a choice."""
    run = 2 * x + (1 if y is None else y)
    other = -x if otherwise else x
    open_rows = chosen[:, None]
    if adds:
        return np.where(open_rows, run + other, other), run + 0 * x
    return np.where(open_rows, run, other), run


def compiled(function, otherwise, present, **keywords):
    """`run_on_rows` as one graph for all batch sizes.

    Args:
        present: dtype-bearing examples of the tensors, None for an absent one.
    """

    def run(given, chosen):
        given = iter(given)
        filled = [None if tensor is None else next(given) for tensor in present]
        return run_on_rows(function, otherwise, filled, chosen, **keywords)

    specs = [
        tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype)
        for tensor in present
        if tensor is not None
    ]
    chosen = tf.TensorSpec([None], tf.bool)
    graph = tf.function(run, autograph=False, input_signature=[specs, chosen])
    return lambda tensors, chosen: graph(
        [tensor for tensor in tensors if tensor is not None], chosen
    )


def both_roads(function, otherwise, present, **keywords):
    """(eager, graph), functions of (tensors, chosen)."""

    def eager(tensors, chosen):
        return run_on_rows(
            function, otherwise, tensors, tf.constant(chosen), **keywords
        )

    return eager, compiled(function, otherwise, present, **keywords)


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("otherwise", [None, negative])
@pytest.mark.parametrize("second", [False, True])
def test_against_numpy(second, otherwise, adds):
    example = tf.zeros((1, 3))
    present = [example, example if second else None]
    roads = both_roads(double, otherwise, present, adds=adds)
    for name, chosen in CHOICES.items():
        chosen = np.array(chosen, bool)
        x = tf.constant(normal(len(chosen), 3))
        y = tf.constant(normal(len(chosen), 3, seed=1)) if second else None
        arrays = [t if t is None else t.numpy() for t in (x, y)]
        expected, run = by_hand(*arrays, chosen, otherwise, adds)
        for road, call in zip(("eager", "graph"), roads, strict=True):
            output, notes = call([x, y], chosen)
            message = f"{road}, {name}"
            np.testing.assert_allclose(output, expected, rtol=1e-6, err_msg=message)
            if road == "eager" and not chosen.any():
                assert notes == []  # the function was not run, nor traced
                continue
            (note,) = notes
            summed = np.where(chosen, run.sum(axis=1), 0)
            np.testing.assert_allclose(note, summed, rtol=1e-5, err_msg=message)


@pytest.mark.parametrize("chosen", [True, False])
@pytest.mark.parametrize("adds", [False, True])
def test_a_batch_known_to_be_of_one(chosen, adds):
    x = normal(1, 3)
    expected, _ = by_hand(x, None, np.array([chosen]), negative, adds)

    @tf.function(input_signature=[tf.TensorSpec([1, 3])], autograph=False)
    def call(given):
        return run_on_rows(
            double, negative, [given, None], tf.constant([chosen]), adds=adds
        )[0]

    # One conditional, and nothing that moves rows.
    graph = call.get_concrete_function().graph.as_graph_def()
    bodies = [graph.node, *(body.node_def for body in graph.library.function)]
    operations = {node.op for body in bodies for node in body}
    assert not operations & {"GatherV2", "TensorScatterUpdate", "ScatterNd", "Where"}
    np.testing.assert_allclose(call(x), expected, rtol=1e-6)


def test_an_example_by_hand():
    # Rows 0 and 2 become 2 x + 1, row 1 stays: 1 -> 3, 5, 4 -> 9.
    x = tf.constant([[1.0], [5.0], [4.0]])
    chosen = tf.constant([True, False, True])
    output, (note,) = run_on_rows(double, None, [x, None], chosen)
    assert output.numpy().ravel().tolist() == [3, 5, 9]
    assert note.numpy().tolist() == [3, 0, 9]
    # With `adds` the rows chosen get 2 x + 1 + x: 4 and 13.
    output, _ = run_on_rows(double, None, [x, None], chosen, adds=True)
    assert output.numpy().ravel().tolist() == [4, 5, 13]


@pytest.mark.parametrize("adds", [False, True])
def test_each_function_sees_its_own_rows(adds):
    calls, ran, others = tf.Variable(0), tf.Variable(0), tf.Variable(0)

    def function(tensors):
        calls.assign_add(1)
        ran.assign_add(tf.shape(tensors[0])[0])
        return tensors[0], []

    def otherwise(tensors):
        others.assign_add(tf.shape(tensors[0])[0])
        return tensors[0]

    for call in both_roads(function, otherwise, [tf.zeros((1, 2))], adds=adds):
        for chosen in CHOICES.values():
            for counter in (calls, ran, others):
                counter.assign(0)
            chosen = np.array(chosen, bool)
            _, notes = call([tf.constant(normal(len(chosen), 2))], chosen)
            assert notes == []
            assert ran.numpy() == chosen.sum()
            assert calls.numpy() == chosen.any()
            assert others.numpy() == (len(chosen) if adds else (~chosen).sum())


def test_nothing_is_gathered_or_placed_when_all_are_chosen():
    x = tf.constant(normal(4, 2))
    seen = []

    def function(tensors):
        seen.append(tensors[0])
        return tensors[0] * 2, []

    calls = []
    gather, scatter = tf.gather, tf.tensor_scatter_nd_update
    patch = pytest.MonkeyPatch()
    with patch.context() as context:
        context.setattr(tf, "gather", lambda *a, **k: calls.append(1) or gather(*a))
        context.setattr(
            tf,
            "tensor_scatter_nd_update",
            lambda *a, **k: calls.append(1) or scatter(*a),
        )
        run_on_rows(function, None, [x], tf.fill([4], True))
        run_on_rows(function, None, [x], tf.fill([4], False))
        assert calls == [] and len(seen) == 1
        run_on_rows(function, None, [x], tf.constant([True, True, True, False]))
        assert len(calls) == 2 and len(seen) == 2


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("otherwise", [None, negative])
def test_gradient(otherwise, adds):
    roads = both_roads(double, otherwise, [tf.zeros((1, 2)), None], adds=adds)
    # The slopes: 2 of the function, -1 or 1 of what others get.
    slope = -1 if otherwise else 1
    for chosen in CHOICES.values():
        chosen = np.array(chosen, bool)
        x = tf.constant(normal(len(chosen), 2))
        expected = np.where(chosen, 2 + slope if adds else 2, slope)[:, None]
        for call in roads:
            with tf.GradientTape() as tape:
                tape.watch(x)
                output, _ = call([x, None], chosen)
                loss = tf.reduce_sum(output)
            gradient = tf.convert_to_tensor(tape.gradient(loss, x))
            np.testing.assert_allclose(gradient, expected * np.ones_like(x))


def test_notes_of_several_kinds_keep_their_order():
    def function(tensors):
        first = tensors[0][:, 0]
        return tensors[0], [first, 10 * first]

    x = tf.constant([[1.0], [2.0], [3.0]])
    chosen = tf.constant([False, True, True])
    call = tf.function(
        lambda: run_on_rows(function, None, [x], chosen), autograph=False
    )
    for run in (lambda: run_on_rows(function, None, [x], chosen), call):
        _, notes = run()
        assert [n.numpy().tolist() for n in notes] == [[0, 2, 3], [0, 20, 30]]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_dtypes(dtype):
    x = tf.cast(normal(3, 2), dtype)
    for otherwise in (None, negative):
        output, _ = run_on_rows(
            lambda t: (t[0] + 1, []), otherwise, [x], tf.constant([True, False, True])
        )
        other = x if otherwise is None else -x
        expected = tf.where([[True], [False], [True]], x + 1, other)
        assert output.dtype == dtype
        np.testing.assert_array_equal(
            tf.cast(output, "float32"), tf.cast(expected, "float32")
        )


@pytest.mark.parametrize("otherwise", [None, lambda tensors: tensors[0][:, :2, :1]])
def test_other_shapes_and_tensors_of_other_types(otherwise):
    """Sequences with a mask; the function may change shapes if the others do."""
    x = tf.constant(normal(4, 3, 2))
    mask = tf.constant(np.arange(12).reshape(4, 3) % 2 == 0)
    chosen = np.array([False, True, True, False])

    def function(tensors):
        sequence, kept = tensors
        masked = tf.where(kept[..., None], sequence, 0.0)
        return (masked if otherwise is None else masked[:, :2, :1]), []

    output, _ = run_on_rows(function, otherwise, [x, mask], tf.constant(chosen))
    run = np.where(mask.numpy()[..., None], x, 0)
    other = x.numpy()
    if otherwise is not None:
        run, other = run[:, :2, :1], other[:, :2, :1]
    np.testing.assert_array_equal(output, np.where(chosen[:, None, None], run, other))
