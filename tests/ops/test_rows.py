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


def called(graph, static, *arguments, **keywords):
    """`run_on_rows` eagerly, or in a graph whose batch is known or left open."""
    if not graph:
        return run_on_rows(*arguments, **keywords)
    function, otherwise, tensors, chosen = arguments
    present = [tf.constant(t) for t in (*tensors, chosen) if t is not None]

    @tf.function(
        autograph=False,
        input_signature=[
            tf.TensorSpec(t.shape if static else [None, *t.shape[1:]], t.dtype)
            for t in present
        ],
    )
    def compiled(*given):
        *given, decided = given
        given = iter(given)
        filled = [None if t is None else next(given) for t in tensors]
        return run_on_rows(function, otherwise, filled, decided, **keywords)

    return compiled(*present)


@pytest.mark.parametrize("graph, static", [(False, True), (True, False), (True, True)])
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("otherwise", [None, negative])
@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("chosen", CHOICES.values(), ids=CHOICES)
def test_against_numpy(chosen, second, otherwise, adds, graph, static):
    chosen = np.array(chosen, bool)
    x = normal(len(chosen), 3)
    y = normal(len(chosen), 3, seed=1) if second else None
    expected, run = by_hand(x, y, chosen, otherwise, adds)
    tensors = [x, y]
    output, notes = called(
        graph, static, double, otherwise, tensors, tf.constant(chosen), adds=adds
    )
    np.testing.assert_allclose(output, expected, rtol=1e-6)
    if not graph and not chosen.any():
        assert not any(np.any(note) for note in notes)  # it may not know of any
        return
    (note,) = notes
    np.testing.assert_allclose(note, np.where(chosen, run.sum(1), 0), rtol=1e-5)


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


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("chosen", CHOICES.values(), ids=CHOICES)
@pytest.mark.parametrize("adds", [False, True])
def test_each_function_sees_its_own_rows(chosen, graph, adds):
    seen = {"function": tf.Variable(0), "otherwise": tf.Variable(0)}
    calls = tf.Variable(0)

    def function(tensors):
        calls.assign_add(1)
        seen["function"].assign_add(tf.shape(tensors[0])[0])
        return tensors[0], []

    def otherwise(tensors):
        seen["otherwise"].assign_add(tf.shape(tensors[0])[0])
        return tensors[0]

    x, chosen = normal(len(chosen), 2), np.array(chosen, bool)
    _, notes = called(
        graph, False, function, otherwise, [x], tf.constant(chosen), adds=adds
    )
    assert notes == []
    assert seen["function"].numpy() == chosen.sum()
    assert calls.numpy() == chosen.any()
    assert seen["otherwise"].numpy() == (len(chosen) if adds else (~chosen).sum())


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


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("otherwise", [None, negative])
@pytest.mark.parametrize("name", ["some", "none", "all", "one open row"])
def test_gradient(name, otherwise, adds, graph):
    chosen = np.array(CHOICES[name])
    x = tf.constant(normal(len(chosen), 2))
    with tf.GradientTape() as tape:
        tape.watch(x)
        if graph:
            run = tf.function(
                lambda given, rows: run_on_rows(
                    double, otherwise, [given, None], rows, adds=adds
                )[0],
                autograph=False,
            )
            output = run(x, tf.constant(chosen))
        else:
            output, _ = run_on_rows(
                double, otherwise, [x, None], tf.constant(chosen), adds=adds
            )
        loss = tf.reduce_sum(output)
    # The slopes: 2 of the function, -1 or 1 of what others get.
    slope = -1 if otherwise else 1
    expected = np.where(chosen, 2 + slope if adds else 2, slope)[:, None]
    np.testing.assert_allclose(
        tf.convert_to_tensor(tape.gradient(loss, x)), expected * np.ones_like(x)
    )


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
