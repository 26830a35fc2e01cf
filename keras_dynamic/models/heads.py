"""What the outputs of a model are: logits or probabilities, and whose lambda."""

import dataclasses

import keras

from keras_dynamic.layers.early_exit import EarlyExit

__all__ = ["Head", "check_against_loss", "describe_head", "describe_heads"]

# What the activation that ends a head says about its outputs.
_KIND_OF_ACTIVATION = {
    "softmax": "probabilities",
    "sigmoid": "probabilities",
    "linear": "logits",
    "log_softmax": "logits",  # softmax of them gives the probabilities back
}
# Layers and operations that hand their one input on, value for value.
_PASSING = {"Reshape", "Flatten", "Identity", "Dropout", "Cast", "Activation"}


@dataclasses.dataclass(frozen=True)
class Head:
    """One output of a `DynamicModel`.

    Attributes:
        name: of the exit; unique in the model.
        kind: "probabilities", "logits", or None where neither can be told.
        units: width of the output.
        exit_layer: the `EarlyExit` that the output descends from, or None.
        activation: name of the last activation, for messages.
    """

    name: str
    kind: str | None
    units: int
    exit_layer: EarlyExit | None
    activation: str | None


def describe_head(graph, output):
    """Reads the head that ends in `output` backwards.

    Args:
        graph: the model's `Graph`.
        output: one of its output values.

    Returns:
        A `Head`.
    """
    producers = graph.producers()
    activation, exit_layer = None, None
    value = output
    while value in producers:
        step = producers[value]
        operation = step.operation
        here = _activation_of(operation)
        if activation in (None, "linear") and here is not None:
            activation = here
        if isinstance(operation, EarlyExit):
            exit_layer = operation
            break
        weightless = not getattr(operation, "weights", None)
        known = here is not None or type(operation).__name__ in _PASSING or step.glue
        if not (weightless and known and len(step.inputs) == 1):
            break
        value = step.inputs[0]
    kind = _KIND_OF_ACTIVATION.get(activation)
    units = output.spec.shape[-1]
    if activation == "sigmoid" and units > 1:
        kind = None  # several labels at once: no distribution over classes
    name = exit_layer.name if exit_layer is not None else output.name
    return Head(name, kind, units, exit_layer, activation)


def check_against_loss(head, loss):
    """The kind of a head's outputs, once its loss is known.

    Args:
        head: a `Head`.
        loss: what the user gave to `compile` for this output, or None.

    Returns:
        "probabilities", "logits", or None where a rule cannot be applied.

    Raises:
        ValueError: if the loss expects logits and the head gives probabilities, or
            the other way round.
    """
    expects_logits = _expects_logits(loss)
    if expects_logits is None:
        # A loss that is no cross-entropy says nothing; with a linear head it may be
        # a regression, unless the loss is the user's own.
        if head.kind == "logits" and _is_from_keras(loss):
            return None
        return head.kind
    if head.units == 1 and not _is_binary(loss):
        raise ValueError(
            f"Exit '{head.name}' has one unit, for which the loss is a binary "
            f"cross-entropy. Received: loss={loss!r}."
        )
    wanted = "logits" if expects_logits else "probabilities"
    if head.kind is None:
        # The activation does not tell; a sigmoid over several units never will.
        return None if head.activation == "sigmoid" else wanted
    if head.activation == "log_softmax" or head.kind == wanted:
        return head.kind
    remedy = (
        "Give the loss `from_logits=False`, or the head `activation=None`"
        if expects_logits
        else "Give the loss `from_logits=True`, or the head a softmax (or sigmoid)"
    )
    raise ValueError(
        f"Exit '{head.name}' gives {head.kind} (activation="
        f"{head.activation!r}), but the loss expects {wanted}. {remedy}. Received: "
        f"loss={loss!r}."
    )


def _activation_of(operation):
    """Name of the activation that an operation ends with, or None."""
    kind = type(operation).__name__
    if kind in ("Softmax", "Sigmoid", "LogSoftmax"):  # layers and keras.ops
        return {"Softmax": "softmax", "Sigmoid": "sigmoid"}.get(kind, "log_softmax")
    activation = getattr(operation, "activation", None)
    if activation is None:
        return None
    return getattr(activation, "__name__", type(activation).__name__)


def _expects_logits(loss):
    """True, False, or None where the loss does not say."""
    if isinstance(loss, str) and loss.lower() in ("crossentropy", "ce"):
        return False
    loss = keras.losses.get(loss)
    if isinstance(loss, keras.losses.Loss):
        return loss.get_config().get("from_logits")
    # Keras' functions: the default of `from_logits` is False.
    if _is_from_keras(loss) and "crossentropy" in loss.__name__:
        return False
    return None


def _is_from_keras(loss):
    loss = keras.losses.get(loss)
    subject = type(loss) if isinstance(loss, keras.losses.Loss) else loss
    return getattr(subject, "__module__", "").startswith("keras.")


def _is_binary(loss):
    if isinstance(loss, str) and loss.lower() in ("crossentropy", "ce"):
        return True
    loss = keras.losses.get(loss)
    name = getattr(loss, "__name__", type(loss).__name__).lower()
    return "binary" in name


def describe_heads(graph, reserved=()):
    """A `Head` for each output of a graph, with names that differ.

    Args:
        graph: a `Graph`.
        reserved: names that none may have.
    """
    heads, taken = [], set(reserved)
    for value in graph.outputs:
        head = describe_head(graph, value)
        unique, number = head.name, 0
        while unique in taken:
            number += 1
            unique = f"{head.name}_{number}"
        taken.add(unique)
        heads.append(dataclasses.replace(head, name=unique))
    return heads
