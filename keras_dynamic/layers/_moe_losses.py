"""What `SparseMoE` adds to the loss."""

import tensorflow as tf

from keras_dynamic.ops import balancing

__all__ = ["routing_losses"]


def routing_losses(routing, counted, balance, z_weight):
    """The weighted losses of one call: a list of float32 scalars.

    Args:
        routing: `Routing`.
        counted: (B, N) bool, the units that count, or None.
        balance: dict from the names of balancing losses to their weights.
        z_weight: float, of the router's z-loss.
    """
    num_experts = routing.logits.shape[-1]
    counted = None if counted is None else tf.reshape(counted, [-1])

    def flat(tensor, size=num_experts):
        return tf.reshape(tensor, [-1, size])

    logits = flat(routing.logits)
    probabilities = tf.nn.softmax(logits)
    losses = []
    for name, weight in balance.items():
        if name == "kl":
            loss = balancing.divergence_from_even(probabilities, counted)
        elif name == "importance":
            loss = balancing.importance_loss(probabilities, counted)
        elif name == "load":
            wins = _given(routing, "win_probabilities", name)
            loss = balancing.load_loss(flat(wins), counted)
        else:
            experts = _given(routing, "experts", name)
            experts = flat(experts, experts.shape[-1])
            loss = balancing.switch_loss(probabilities, experts, counted)
        losses.append(weight * loss)
    if z_weight:
        losses.append(z_weight * balancing.z_loss(logits, counted))
    return losses


def _given(routing, part, loss):
    """A part of a routing that not every router gives."""
    tensor = getattr(routing, part)
    if tensor is None:
        raise ValueError(
            f"`balance_loss={loss!r}` needs a router that gives `{part}`. Received: a "
            "routing without."
        )
    return tensor
