"""A function that runs on some rows of a batch, and another one on the rest."""

import tensorflow as tf

__all__ = ["run_on_rows"]


def run_on_rows(function, otherwise, tensors, chosen, *, adds=False):
    """`function` of the chosen rows, `otherwise` of the others; each runs only there.

    The chosen rows are gathered, and what `function` gives for them is written to where
    they stood. Where all rows are chosen, or none, nothing is moved.

    Args:
        function: from tensors like `tensors`, (rows, ...), to (output, notes): the
            output (rows, ...), and a list of further (rows,) vectors, zero for rows
            that `function` does not see.
        otherwise: from tensors to an output of the same shape and dtype, or None for
            the first of the tensors itself.
        tensors: list of tensors (batch, ...); None for an absent one.
        chosen: (batch,) bool.
        adds: whether the chosen rows get the sum of both, for which `otherwise` runs
            on all of them.

    Returns:
        (output, notes), for the whole batch.
    """
    if tf.executing_eagerly():
        return _decide(function, otherwise, tensors, chosen, adds, _eager_cond)
    return _decide(function, otherwise, tensors, chosen, adds, tf.cond)


def _eager_cond(condition, true_fn, false_fn):
    return true_fn() if bool(condition) else false_fn()


def _decide(function, otherwise, tensors, chosen, adds, cond):
    present = [tensor for tensor in tensors if tensor is not None]

    def run_otherwise(some):
        return some[0] if otherwise is None else otherwise(_like(tensors, some))

    def run(some, base=None):
        output, notes = function(_like(tensors, some))
        counts.append(len(notes))
        return (output + base if adds else output), notes

    def no_notes():
        # What is known once the other branch, which comes first, has been traced.
        return [tf.zeros_like(chosen, tf.float32)] * (counts[0] if counts else 0)

    counts = []
    base = run_otherwise(present) if adds else None

    def nobody():
        return (base if adds else run_otherwise(present)), no_notes()

    if chosen.shape[0] == 1:
        return cond(chosen[0], lambda: run(present, base), nobody)

    places = tf.where(chosen)
    rows = places[:, 0]
    num_rows = tf.shape(chosen)[0]
    everyone = tf.equal(tf.shape(rows)[0], num_rows)

    def somebody():
        moving = [*present, base] if adds else present
        some = cond(
            everyone,
            lambda: [tf.identity(tensor) for tensor in moving],
            lambda: [tf.gather(tensor, rows) for tensor in moving],
        )
        output, notes = run(some[: len(present)], some[-1] if adds else None)

        def place():
            if adds or otherwise is None:
                whole = base if adds else present[0]
                placed = tf.tensor_scatter_nd_update(whole, places, output)
            else:
                others = tf.where(~chosen)[:, 0]
                rest = run_otherwise([tf.gather(tensor, others) for tensor in present])
                placed = tf.dynamic_stitch(
                    [tf.cast(rows, tf.int32), tf.cast(others, tf.int32)],
                    [output, rest],
                )
            return placed, [
                tf.scatter_nd(places, note, [tf.cast(num_rows, tf.int64)])
                for note in notes
            ]

        return cond(everyone, lambda: (output, notes), place)

    return cond(tf.shape(rows)[0] > 0, somebody, nobody)


def _like(tensors, present):
    """`present` with a None wherever `tensors` has one."""
    remaining = iter(present)
    return [None if tensor is None else next(remaining) for tensor in tensors]
