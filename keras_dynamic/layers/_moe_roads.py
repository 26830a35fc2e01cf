"""The roads from rows to experts and back: dense, ragged, and of fixed capacity.

A row is a token, or with one choice for a whole input that input. The dense road
computes every expert for every row and selects; the others compute what was chosen.
"""

import dataclasses
import warnings

import tensorflow as tf

from keras_dynamic._compat import under_xla
from keras_dynamic.layers._experts import FeedForwardExperts, LayerExperts
from keras_dynamic.ops.dispatch import fixed_places, move_rows, sorted_places

__all__ = ["ROADS", "Choices", "mixture_of"]

ROADS = ("auto", "ragged", "capacity", "dense")


@dataclasses.dataclass(frozen=True)
class Choices:
    """Which rows go to which experts, A assignments.

    Attributes:
        experts: (A,) int32, -1 for nobody.
        weights: (A,) float32.
        rows: (A,) int32, the row of each; None where assignment k * R + r is the k-th
            choice of row r of R.
        each: int, how many assignments a row has; None where they differ.
        complete: bool, whether it is known that there is no -1.
    """

    experts: tf.Tensor
    weights: tf.Tensor
    rows: tf.Tensor | None
    each: int | None
    complete: bool

    def row_of(self, assignments, num_rows):
        """Rows of some assignments; of -1, which is nobody, any row."""
        if self.rows is None:
            return tf.math.floormod(assignments, tf.maximum(num_rows, 1))
        return tf.gather(self.rows, tf.maximum(assignments, 0))


def mixture_of(layer, inputs, mask, choices, room, training):
    """The output of a `SparseMoE`, by the road that it takes.

    Args:
        layer: the `SparseMoE`.
        inputs: (B, ..., features).
        mask: (B, ...) bool, or None.
        choices: `Choices`.
        room: scalar int32, the rows that an expert has at most; None for any number.
        training: whether losses of experts count, and gradients are written out.
    """
    rows, row_mask = tf.cast(inputs, layer.compute_dtype), None
    padded = layer.route == "input" and mask is not None
    if layer.route == "token":
        rows = tf.reshape(rows, [-1, inputs.shape[-1]])
    elif padded and layer.hidden_units is not None:
        # Padding may be a NaN, which would reach the gradients of the weights.
        rows = tf.where(mask[..., None], rows, tf.zeros_like(rows))
    elif padded:
        row_mask = mask
    devices = layer.device_of_experts
    if layer.hidden_units is not None:
        experts = FeedForwardExperts(layer.experts, devices, training)
    else:
        add_loss = layer.add_loss if training else None
        experts = LayerExperts(layer.experts, devices, layer.compute_dtype, add_loss)
    road = _road(layer, choices, room)
    arguments = experts, layer.num_experts, rows, row_mask, choices
    if road == "capacity":
        answers = _capacity_road(*arguments, room, training)
    elif road == "ragged":
        answers = _ragged_road(*arguments, training)
    else:
        answers = _dense_road(*arguments)
    shape = layer.compute_output_shape(inputs.shape)
    if layer.route == "token":
        sizes = tf.concat([tf.shape(inputs)[:-1], shape[-1:]], axis=0)
        answers = tf.reshape(answers, sizes)
    elif padded and layer.hidden_units is not None:
        answers = tf.where(mask[..., None], answers, tf.zeros_like(answers))
    return tf.ensure_shape(answers, [inputs.shape[0], *shape[1:]])


def _road(layer, choices, room):
    """What `dispatch` says, or the fastest road that can be taken."""
    xla, fixed = under_xla(), room is not None
    if layer.devices is not None:
        if xla:
            raise RuntimeError(
                f"Layer '{layer.name}' places its experts on several devices, which "
                "XLA cannot compile: use `jit_compile=False`. Received: "
                f"devices={layer.devices}."
            )
        return "ragged"
    if layer.dispatch == "dense":
        return "dense"
    if xla:
        if fixed:
            return "capacity"
        if choices.each != layer.num_experts:
            _warn_of_xla(layer, layer.num_experts / choices.each)
        return "dense"
    if layer.dispatch != "auto":
        return layer.dispatch if fixed else "ragged"
    if choices.each == layer.num_experts:
        return "dense"
    on_gpu = bool(tf.config.list_logical_devices("GPU"))
    return "capacity" if fixed and on_gpu else "ragged"


def _warn_of_xla(layer, times):
    warnings.warn(
        f"Layer '{layer.name}' computes every expert for every token, {times:g} times "
        "as much: XLA's shapes are fixed, and without a capacity each expert needs "
        "room for all of them. Set `capacity_factor` (in training) and "
        "`inference_capacity_factor` (otherwise), or use `jit_compile=False`.",
        stacklevel=2,
    )


def _dense_road(experts, number, rows, mask, choices):
    """Every expert for every row; what was not chosen has weight 0.

    Args:
        experts: `FeedForwardExperts` or `LayerExperts`.
        number: int, of experts.
        rows: (R, ...).
        mask: of the rows, for experts that take one, or None.
        choices: `Choices`.

    Returns:
        (R, ...) sum over the chosen experts of weight times answer.
    """
    num_rows = tf.shape(rows)[0]
    ids = tf.range(tf.size(choices.experts))
    cells = choices.experts * num_rows + choices.row_of(ids, num_rows)
    cells = tf.where(choices.experts < 0, number * num_rows, cells)
    cells_and_one = number * num_rows + 1

    def by_expert(values):
        sums = tf.math.unsorted_segment_sum(values, cells, cells_and_one)[:-1]
        return tf.reshape(sums, [number, num_rows])

    weights = by_expert(choices.weights)
    # Not where weights are 0: a choice with that weight may be a NaN on all roads.
    asked = by_expert(tf.ones_like(choices.weights)) > 0
    if not choices.complete:
        # What nobody computes may be anything, and 0 times a NaN is a NaN.
        chosen = tf.reduce_any(asked, axis=0)
        rows = tf.where(_like(chosen, rows), rows, tf.zeros_like(rows))
    total = None
    for expert in range(number):
        answer = experts.of_all(expert, rows, mask)
        # An answer that nobody asked for may have overflown.
        answer = tf.where(_like(asked[expert], answer), answer, tf.zeros_like(answer))
        term = _weighted(answer, weights[expert])
        total = term if total is None else total + term
    return total


def _ragged_road(experts, number, rows, mask, choices, training):
    """Each expert for its own rows, sorted by expert; sizes are known when it runs."""
    places = sorted_places(choices.experts, number, choices.complete)
    moved, own = _to_places(rows, mask, choices, places, training)
    answers = experts.of_groups(moved, places.counts, own)
    return _back(answers, tf.shape(rows)[0], choices, places, training)


def _capacity_road(experts, number, rows, mask, choices, capacity, training):
    """Each expert for `capacity` rows, of which some may be zeros: fixed shapes."""
    places = fixed_places(choices.experts, number, capacity)
    moved, own = _to_places(rows, mask, choices, places, training)

    def by_expert(tensor):
        shape = [[number, capacity], tf.shape(tensor)[1:]]
        inner = tensor.shape[1:]
        folded = tf.reshape(tensor, tf.concat(shape, axis=0))
        return tf.ensure_shape(folded, [number, None, *inner])

    own = None if own is None else by_expert(own)
    answers = experts.of_places(by_expert(moved), own)
    inner = answers.shape[2:]
    flat = tf.concat([[number * capacity], tf.shape(answers)[2:]], axis=0)
    answers = tf.ensure_shape(tf.reshape(answers, flat), [None, *inner])
    return _back(answers, tf.shape(rows)[0], choices, places, training)


def _to_places(rows, mask, choices, places, training):
    """Rows, and what their mask says, at the places of their assignments."""
    num_rows = tf.shape(rows)[0]
    sources = choices.row_of(places.held_by, num_rows)
    if not places.complete:
        sources = tf.where(places.held_by < 0, -1, sources)
    if choices.rows is None:
        targets = tf.reshape(places.place_of, [choices.each, -1])
        moved = move_rows(rows, sources, targets, places.complete, training)
    else:
        nobody = tf.zeros(tf.concat([[1], tf.shape(rows)[1:]], axis=0), rows.dtype)
        padded = tf.concat([rows, nobody], axis=0)
        moved = tf.gather(padded, tf.where(sources < 0, num_rows, sources))
    moved = tf.ensure_shape(moved, [None, *rows.shape[1:]])
    return moved, None if mask is None else tf.gather(mask, tf.maximum(sources, 0))


def _back(answers, num_rows, choices, places, training):
    """The weighted sum of the answers that each row got."""
    inner = answers.shape[1:]
    held_by = places.held_by[None]
    back = move_rows(answers, places.place_of, held_by, places.complete, training)
    weighted = _weighted(tf.ensure_shape(back, [None, *inner]), choices.weights)
    if choices.rows is not None:
        return tf.math.unsorted_segment_sum(weighted, choices.rows, num_rows)
    if choices.each == 1:
        return weighted
    shape = tf.concat([[choices.each, num_rows], tf.shape(weighted)[1:]], axis=0)
    return tf.reduce_sum(tf.reshape(weighted, shape), axis=0)


def _weighted(answers, weights):
    return answers * _like(tf.cast(weights, answers.dtype), answers)


def _like(values, tensor):
    """(rows,) values with the rank of a tensor (rows, ...)."""
    return tf.reshape(values, [-1] + [1] * (len(tensor.shape) - 1))
