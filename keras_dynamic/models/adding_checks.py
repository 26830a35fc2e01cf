"""What `add_exits` can be given; errors and warnings that say what came instead."""

import itertools
import numbers
import warnings

import keras
import numpy as np

from keras_dynamic.models.dynamic_model import DynamicModel

__all__ = [
    "check_arguments",
    "check_one_output",
    "checked_at",
    "warn_of_distances",
    "warn_of_own_training",
]

# How far from the share that was asked for a cut may lie without a word.
_TOLERANCE = 0.05


def checked_at(at):
    """The entries of `at` as a tuple."""
    at = at.tolist() if isinstance(at, np.ndarray) else at
    entries = at if isinstance(at, (list, tuple)) else (at,)
    if not entries:
        raise ValueError(
            f"`at` must have at least one share or name. Received: at={at!r}."
        )
    shares = []
    for entry in entries:
        if isinstance(entry, str):
            continue
        if isinstance(entry, bool) or not isinstance(entry, numbers.Real):
            raise TypeError(
                "`at` must hold shares of the cost or names of layers. Received: "
                f"{entry!r} of type {type(entry)}."
            )
        if not 0 < entry < 1:
            raise ValueError(
                "`at` must hold shares of the cost in (0, 1). Received: "
                f"{entry} in at={at!r}."
            )
        shares.append(float(entry))
    if any(one >= other for one, other in itertools.pairwise(shares)):
        raise ValueError(
            f"`at` must hold shares in ascending order. Received: at={at!r}."
        )
    return tuple(entries)


def warn_of_distances(at, chosen):
    """Names the shares that the nearest cut is far from."""
    for entry, cut in zip(at, chosen, strict=True):
        if not isinstance(entry, str) and abs(cut.share - entry) > _TOLERANCE:
            warnings.warn(
                f"The clean cut nearest to {entry} of the cost is after '{cut.name}', "
                f"at {cut.share:.3f}. `kd.suggest_exits(model)` lists the places; or "
                "name a layer.",
                stacklevel=3,
            )


def warn_of_own_training(model):
    """Names what a subclass does in training, which is left behind."""
    own = [
        name
        for name in ("train_step", "test_step", "compute_loss")
        if getattr(type(model), name) is not getattr(keras.Model, name)
    ]
    if own and not isinstance(model, DynamicModel):
        warnings.warn(
            f"`{type(model).__name__}` has its own {', '.join(own)}, which the model "
            "with exits does not take over: it is trained with the loss that it is "
            "compiled with.",
            stacklevel=3,
        )


def check_arguments(arguments):
    if "name" in arguments:
        raise ValueError(
            "`name` cannot be given: exits are called `exit_1`, `exit_2`, ..., and the "
            f"model as it was. Received: name={arguments['name']!r}."
        )


def check_one_output(model):
    if len(model.outputs) == 1:
        return
    names = getattr(model, "output_names", None)
    if isinstance(model.output, dict):
        names = list(model.output)
    remedy = "Take the final one: `keras.Model(model.input, model.output[...])`"
    if isinstance(model, DynamicModel):
        remedy = "It has exits already; `kd.strip_exits(model)` takes them off"
    raise ValueError(
        f"`model` must have one output, its answer. {remedy}. Received: "
        f"{len(model.outputs)} outputs: {names}."
    )
