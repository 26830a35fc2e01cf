"""From what a router decided to the assignments of rows to experts."""

import dataclasses

import tensorflow as tf

from keras_dynamic._compat import under_xla
from keras_dynamic.layers._moe_roads import Choices
from keras_dynamic.layers.routers import Routing
from keras_dynamic.ops.dispatch import capacity_for, drop_above

__all__ = [
    "checked_routing",
    "choices_of",
    "routes_all",
    "units_of",
    "with_capacity",
]


def routes_all(router):
    """Whether who wrote a router's `call` says that it sends no token to nobody."""
    written = next(each for each in type(router).__mro__ if "call" in vars(each))
    return bool(vars(written).get("routes_all"))


def checked_routing(routing, router, units):
    """What a router returned, if it is a `Routing` that fits.

    Args:
        routing: what it returned.
        router: the `Router`.
        units: (B, N), static; None where unknown.
    """
    name, num_experts = router.name, router.num_experts
    if not isinstance(routing, Routing):
        raise TypeError(
            f"Router '{name}' must return a `Routing`. Received: {type(routing)}."
        )
    if (routing.experts is None) == (routing.tokens is None):
        raise ValueError(
            f"Router '{name}' must return either `experts` or `tokens`. Received: "
            f"{'neither' if routing.experts is None else 'both'}."
        )
    logits = tf.convert_to_tensor(routing.logits, tf.float32)
    weights = tf.convert_to_tensor(routing.weights, tf.float32)
    kind = "tokens" if routing.experts is None else "experts"
    chosen = tf.convert_to_tensor(getattr(routing, kind))
    if not chosen.dtype.is_integer:
        raise TypeError(
            f"Router '{name}' must return integer `{kind}`. Received: dtype "
            f"{chosen.dtype.name}."
        )
    batch, number = units
    first = (batch, number) if kind == "experts" else (batch, num_experts)
    wanted = {
        "logits": (logits, (batch, number, num_experts)),
        kind: (chosen, (*first, None)),
        "weights": (weights, tuple(chosen.shape)),
    }
    for part, (tensor, shape) in wanted.items():
        if not tensor.shape.is_compatible_with(shape):
            raise ValueError(
                f"Router '{name}' must return `{part}` of shape {shape}. Received: "
                f"shape {tuple(tensor.shape)}."
            )
    chosen = tf.cast(chosen, tf.int32)
    own = not type(router).__module__.startswith("keras_dynamic.")
    if own and not under_xla():  # which has no assertions
        limit = num_experts if kind == "experts" else tf.shape(logits)[1]
        message = f"Router '{name}' returned `{kind}` beyond the last one."
        check = tf.debugging.assert_less(chosen, limit, message=message)
        with tf.control_dependencies([] if check is None else [check]):
            chosen = tf.identity(chosen)
    return routing._replace(logits=logits, weights=weights, **{kind: chosen})


def units_of(inputs, mask, whole):
    """What the router sees, and which of it counts.

    Args:
        inputs: (B, ..., features).
        mask: (B, ...) bool, or None.
        whole: bool, whether one choice is made for a whole input: of the mean of its
            tokens that count.

    Returns:
        ((B, N, features), (B, N) bool or None).
    """
    features = inputs.shape[-1]
    number = 1
    for size in inputs.shape[1:-1]:
        number = None if None in (number, size) else number * size
    # Sizes are written out: -1 can stand for any where there is no sample.
    batch = tf.shape(inputs)[0]
    count = tf.reduce_prod(tf.shape(inputs)[1:-1]) if number is None else number
    tokens = tf.reshape(inputs, tf.stack([batch, count, features]))
    tokens = tf.ensure_shape(tokens, [inputs.shape[0], number, features])
    counted = None if mask is None else tf.reshape(mask, tf.stack([batch, count]))
    if counted is not None:
        # Padding may be a NaN, and 0 times a NaN in a gradient is one too.
        tokens = tf.where(counted[..., None], tokens, tf.zeros_like(tokens))
    if not whole:
        return tokens, counted
    tokens = tf.cast(tokens, tf.float32)
    if counted is None:
        return tf.reduce_mean(tokens, axis=1, keepdims=True), None
    total = tf.reduce_sum(tokens, axis=1, keepdims=True)
    present = tf.reduce_sum(tf.cast(counted, tf.float32), axis=1)[:, None, None]
    return total / tf.maximum(present, 1.0), tf.reduce_any(counted, 1, keepdims=True)


def choices_of(routing, counted, complete):
    """The assignments that a routing asks for.

    Args:
        routing: `Routing` of B samples of N units.
        counted: (B, N) bool, or None.
        complete: whether the router sends no token to nobody.

    Returns:
        `Choices`.
    """
    if routing.tokens is None:
        per_row = routing.experts.shape[-1]

        def by_choice(tensor):
            # All first choices, then all second ones.
            return tf.reshape(tf.transpose(tf.reshape(tensor, [-1, per_row])), [-1])

        experts = by_choice(routing.experts)
        if counted is not None:
            present = tf.tile(tf.reshape(counted, [-1]), [per_row])
            experts = tf.where(present, experts, -1)
            complete = False
        return Choices(experts, by_choice(routing.weights), None, per_row, complete)
    shape = tf.shape(routing.tokens)
    samples = tf.range(shape[0])[:, None, None]
    number = tf.shape(routing.logits)[1]
    tokens = routing.tokens
    experts = tf.broadcast_to(tf.range(shape[1])[:, None], shape)
    taken = tokens >= 0
    if counted is not None:
        taken &= tf.gather(counted, tf.maximum(tokens, 0), batch_dims=1)
    return Choices(
        tf.reshape(tf.where(taken, experts, -1), [-1]),
        tf.reshape(routing.weights, [-1]),
        tf.reshape(samples * number + tf.maximum(tokens, 0), [-1]),
        None,
        False,
    )


def with_capacity(choices, factor, num_experts, counted, prioritized):
    """Choices without what experts have no room for, and the room that they need.

    Args:
        choices: `Choices` of tokens.
        factor: float, or None for no limit.
        num_experts: int.
        counted: (B, N) bool, the units that count, or None.
        prioritized: whether rows with a larger weight come first.

    Returns:
        (`Choices`, scalar int32 or None): no expert has more rows than that, which
        depends on shapes only. Where experts choose there is always such a number.
    """
    if choices.each is None:
        return choices, tf.size(choices.experts) // num_experts
    if factor is None:
        return choices, None
    each = choices.each
    experts = tf.reshape(choices.experts, [each, -1])
    weights = tf.reshape(choices.weights, [each, -1])
    num_rows = tf.shape(experts)[1]
    room = capacity_for(num_rows, each, num_experts, factor)
    present = num_rows
    if counted is not None:
        present = tf.reduce_sum(tf.cast(counted, tf.int32))
    limit = capacity_for(present, each, num_experts, factor)
    priority = tf.reduce_max(weights, axis=0) if prioritized else None
    kept = drop_above(limit, experts, num_experts, priority)
    kept = tf.reshape(kept, [-1])
    return dataclasses.replace(choices, experts=kept, complete=False), room
