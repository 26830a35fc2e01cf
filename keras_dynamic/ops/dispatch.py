"""Where the rows of a batch go: to which expert, in what order, and back.

An assignment is a row that is sent to an expert. Of R rows that choose K experts each,
assignment k * R + r is the k-th choice of row r: all first choices stand before all
second ones. A place is where an assignment stands among the rows that experts work on.
An index of -1 means nobody.

Axes: A assignments, R rows, E experts, P places.
"""

import dataclasses

import tensorflow as tf

from keras_dynamic._compat import under_xla

__all__ = [
    "Places",
    "capacity_for",
    "drop_above",
    "fixed_places",
    "move_rows",
    "sorted_places",
]


@dataclasses.dataclass(frozen=True)
class Places:
    """The places of assignments.

    Attributes:
        place_of: (A,) int32, the place of each assignment, -1 if it has none.
        held_by: (P,) int32, the assignment at each place, -1 if it is empty.
        counts: (E,) int32, how many places each expert has in use.
        complete: bool, whether there is no -1 in them.
    """

    place_of: tf.Tensor
    held_by: tf.Tensor
    counts: tf.Tensor
    complete: bool


def sorted_places(experts, num_experts, complete):
    """Places without gaps, sorted by expert, in the order of the assignments.

    Args:
        experts: (A,) int32, -1 for nobody.
        num_experts: int, E.
        complete: bool, whether it is known that there is no -1.

    Returns:
        `Places`, as many as there are assignments to an expert.
    """
    if complete:
        order = tf.argsort(experts, stable=True)
        counts = _count(experts, num_experts)
        return Places(_inverse(order), order, counts, True)
    keys = tf.where(experts < 0, num_experts, experts)
    order = tf.argsort(keys, stable=True)
    counts = _count(keys, num_experts + 1)[:num_experts]
    place_of = tf.where(experts < 0, -1, _inverse(order))
    return Places(place_of, order[: tf.reduce_sum(counts)], counts, False)


def fixed_places(experts, num_experts, capacity):
    """`capacity` places for each expert: static shapes, as XLA wants them.

    Args:
        experts: (A,) int32, -1 for nobody; no expert more than `capacity` times.
        num_experts: int, E.
        capacity: scalar integer.

    Returns:
        `Places`, E * capacity of them: expert e has those from e * capacity on.
    """
    ranks, counts = _ranks(experts, num_experts)
    place_of = tf.where(experts < 0, -1, experts * capacity + ranks)
    # Assignments without a place are written to one behind the last, and that is cut.
    total = num_experts * capacity
    written = tf.where(place_of < 0, total, place_of)
    ids = tf.range(tf.size(experts)) + 1
    held_by = tf.scatter_nd(written[:, None], ids, [total + 1])[:total] - 1
    return Places(place_of, held_by, counts, False)


def capacity_for(rows, per_row, num_experts, factor):
    """How many rows an expert takes: factor * K * rows / E, rounded up, at least 1.

    Args:
        rows: scalar integer tensor, the rows that want experts.
        per_row: int, K, the experts that each row wants.
        num_experts: int, E.
        factor: float > 0; 1 is room for an even load.

    Returns:
        Scalar int32, at most `rows`, since a row goes to an expert once.
    """
    even = tf.cast(rows, tf.float64) * per_row / num_experts
    # 1.1 * 10 is a little above 11, and is meant to be 11. `tf.cast` would make a
    # float32 of a number first, which is too coarse for that.
    wanted = tf.math.ceil(tf.constant(factor, tf.float64) * even - 1e-6)
    wanted = tf.minimum(tf.cast(wanted, tf.int32), tf.cast(rows, tf.int32))
    return tf.maximum(wanted, 1)


def drop_above(capacity, experts, num_experts, priority=None):
    """Sends to nobody what an expert has no room for.

    First choices come before second ones, and within them rows in their order, or
    those with a higher priority first.

    Args:
        capacity: scalar int32, how many assignments an expert takes.
        experts: (K, R) int32, -1 for nobody.
        num_experts: int, E.
        priority: (R,) numbers, or None for the order of the rows.

    Returns:
        (K, R) int32, with -1 for what is dropped.
    """
    if priority is not None:
        order = tf.argsort(-priority, stable=True)
        experts = tf.gather(experts, order, axis=1)
    ranks, _ = _ranks(tf.reshape(experts, [-1]), num_experts)
    kept = tf.reshape(ranks, tf.shape(experts)) < capacity
    experts = tf.where(kept, experts, -1)
    if priority is not None:
        experts = tf.gather(experts, _inverse(order), axis=1)
    return experts


def move_rows(tensor, sources, targets, complete, training=True):
    """Row sources[i] of a tensor at place i, zeros where that is -1.

    In training the gradient is gathered as well, which is faster than adding rows up
    where they belong, and has the same result in every run. Otherwise TensorFlow
    derives it: a graph with a gradient of one's own stays in memory for ever.

    Args:
        tensor: (rows, ...).
        sources: (places,) int32.
        targets: (times, rows) int32, the inverse: the places at which each row stands,
            -1 for none.
        complete: bool, whether there is no -1.
        training: bool, whether a gradient will be wanted.

    Returns:
        (places, ...), of the tensor's dtype.
    """
    if not training:
        return _take(tensor, sources, complete)

    @tf.custom_gradient
    def move(tensor):
        def gradient(upstream):
            rows = _take(upstream, tf.reshape(targets, [-1]), complete)
            times = targets.shape[0]
            if times == 1:
                return rows
            shape = tf.concat([[times, -1], tf.shape(rows)[1:]], axis=0)
            return tf.reduce_sum(tf.reshape(rows, shape), axis=0)

        return _take(tensor, sources, complete), gradient

    return move(tensor)


def _take(tensor, indices, complete):
    if complete:
        return tf.gather(tensor, indices)
    rows = tf.shape(tensor)[0]
    nobody = tf.zeros(tf.concat([[1], tf.shape(tensor)[1:]], axis=0), tensor.dtype)
    padded = tf.concat([tensor, nobody], axis=0)
    return tf.gather(padded, tf.where(indices < 0, rows, indices))


def _ranks(experts, num_experts):
    """How many assignments to the same expert stand before each; and all counts."""
    keys = tf.where(experts < 0, num_experts, experts)
    order = tf.argsort(keys, stable=True)
    counts = _count(keys, num_experts + 1)
    starts = tf.cumsum(counts, exclusive=True)
    ranks = _inverse(order) - tf.gather(starts, keys)
    return ranks, counts[:num_experts]


def _inverse(order):
    """The permutation that undoes one."""
    if not under_xla():
        return tf.math.invert_permutation(order)
    # That does not always compile there, after `tf.math.top_k` for one: "Dynamic
    # reshape is not implemented".
    ids = tf.range(tf.size(order))
    return tf.tensor_scatter_nd_update(order, order[:, None], ids)


def _count(values, number):
    """How often each of 0 .. number - 1 occurs, int32."""
    if not under_xla():
        return tf.math.bincount(values, minlength=number, maxlength=number)
    # That does not compile there.
    return tf.math.unsorted_segment_sum(tf.ones_like(values), values, number)
