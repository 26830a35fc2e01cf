"""One value for the model, or one for each exit: how `compile` and `fit` spread them.

A single loss, metric list or target stands for every exit; a list or dict is one
entry an exit, as Keras means it for any model with several outputs.
"""

import keras
from keras import tree

from keras_dynamic.models.loss_weights import as_variable

__all__ = [
    "entries_of_final",
    "losses_each",
    "metrics_each",
    "own_metric",
    "own_weights",
    "target_of_final",
    "targets_each",
    "weights_each",
]


def losses_each(loss, names):
    """A list with the loss of every exit, or None where no loss is given."""
    if loss is None:
        return None
    if isinstance(loss, dict):
        _check_names("loss", loss, names)
        return [loss.get(name) for name in names]
    if isinstance(loss, (list, tuple)):
        _check_length("loss", loss, names)
        return list(loss)
    return [loss] * len(names)


def weights_each(loss_weights, heads, losses):
    """A list with a variable for the weight of every exit's loss.

    An exit's own is handed on as it is, so that a change during `fit` counts.
    """
    if losses is None:
        return loss_weights
    return [as_variable(weight) for weight in _given_each(loss_weights, heads)]


def _given_each(loss_weights, heads):
    own = own_weights(heads)
    names = [head.name for head in heads]
    if loss_weights is None:
        return own
    if isinstance(loss_weights, dict):
        _check_names("loss_weights", loss_weights, names)
        return [
            loss_weights.get(name, weight)
            for name, weight in zip(names, own, strict=True)
        ]
    if not isinstance(loss_weights, (list, tuple)):
        raise ValueError(
            "`loss_weights` must be a list with one number for each of the exits "
            f"{names}, or a dict by their names. Received: {loss_weights!r}."
        )
    _check_length("loss_weights", loss_weights, names)
    return list(loss_weights)


def own_weights(heads):
    """The exits' own lambda: their layers' variables, 1 for other heads."""
    return [
        1.0 if head.exit_layer is None else head.exit_layer.current_loss_weight
        for head in heads
    ]


def metrics_each(metrics, names, one_loss):
    """A list with the metrics of every exit; what Keras reads as it is, unchanged."""
    if not metrics:
        return None
    if isinstance(metrics, dict):
        _check_names("metrics", metrics, names)
        return _copied_but_last([_as_list(metrics.get(name)) for name in names])
    nested = isinstance(metrics, (list, tuple)) and any(
        isinstance(entry, (list, tuple)) for entry in metrics
    )
    if nested:
        _check_length("metrics", metrics, names)
        return _copied_but_last([_as_list(entry) for entry in metrics])
    if not one_loss or not isinstance(metrics, (list, tuple)):
        return metrics
    return _copied_but_last([list(metrics) for _ in names])


def _copied_but_last(entries):
    """The last exit takes the user's own objects; a metric has a state and will have
    its exit's name, so that the other exits need copies."""
    copies = [[own_metric(metric) for metric in entry] for entry in entries[:-1]]
    return [*copies, entries[-1]]


def own_metric(metric):
    """`metric`, or a fresh copy where it is an object with a state."""
    if isinstance(metric, keras.metrics.Metric):
        return type(metric).from_config(metric.get_config())
    return metric


def entries_of_final(metrics, names):
    """The last exit's metrics as a flat list, from what `metrics_each` gave."""
    if not metrics or len(metrics) != len(names):
        return []
    return _as_list(metrics[-1])


def targets_each(y, names, losses=None):
    """Targets of every exit from one `y`; a list or dict is one entry an exit.

    Raises:
        ValueError: if a dict has unknown keys, or lacks an exit that has a loss.
    """
    if y is None:
        return None
    if isinstance(y, dict):
        _check_names("y", y, names)
        losses = losses or [None] * len(names)
        for name, loss in zip(names, losses, strict=True):
            if loss is not None and name not in y:
                raise ValueError(
                    f"`y` must have targets for exit '{name}', which has a loss. "
                    f"Received keys: {sorted(y)}."
                )
        return [y.get(name) for name in names]
    if tree.is_nested(y):
        return y
    return [y] * len(names)


def target_of_final(y, names):
    """The last exit's targets."""
    if isinstance(y, dict):
        return y[names[-1]]
    if isinstance(y, (list, tuple)):
        return y[-1]
    return y


def _as_list(entry):
    if entry is None:
        return []
    return list(entry) if isinstance(entry, (list, tuple)) else [entry]


def _check_names(argument, given, names):
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise ValueError(
            f"`{argument}` must have the exits' names as keys: {names}. Received "
            f"unknown keys: {unknown}."
        )


def _check_length(argument, given, names):
    if len(given) != len(names):
        raise ValueError(
            f"`{argument}` must have one entry for each of the {len(names)} exits "
            f"{names}. Received {len(given)} entries: {given}."
        )
