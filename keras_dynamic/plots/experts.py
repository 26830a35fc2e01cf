"""Experts: their load over time, and by class."""

import dataclasses

import keras
import numpy as np

from keras_dynamic.plots._drawing import axes_or_new, name_ticks, ticks
from keras_dynamic.plots._inputs import (
    batches_of,
    checked_labels,
    checked_logs,
    names_of,
)
from keras_dynamic.plots._routing import routings_of

__all__ = ["ExpertLoad", "ExpertLoadByClass", "expert_load", "expert_load_by_class"]


@dataclasses.dataclass(frozen=True)
class ExpertLoad:
    """Shares of the choices that experts computed, epoch by epoch.

    Attributes:
        loads: (epochs, E), in [0, 1]; a row sums to 1 minus what was dropped.
        layer: name of the `SparseMoE`.

    Example:

    ```python
    loads = np.array([[0.9, 0.1], [0.6, 0.4]])  # two epochs, two experts
    ax = kd.plots.ExpertLoad(loads, "moe").plot()
    ```
    """

    loads: np.ndarray
    layer: str

    def plot(self, ax=None):
        """Draws one row an expert, from the first epoch to the last.

        Args:
            ax: matplotlib `Axes`, or `None` for new ones.

        Returns:
            The `Axes`.
        """
        epochs, experts = self.loads.shape
        ax = axes_or_new(ax)
        # Values are relative to an even load, which is the middle of the colors.
        image = ax.imshow(
            self.loads.T * experts,
            aspect="auto",
            cmap="cividis",
            vmin=0,
            vmax=max(2.0, float(self.loads.max()) * experts),
            extent=(0.5, epochs + 0.5, experts - 0.5, -0.5),
            interpolation="nearest",
        )
        ax.set(
            xlabel="epoch",
            ylabel="expert",
            yticks=ticks(experts),
            title=f"Load of the experts of {self.layer}",
        )
        ax.figure.colorbar(image, ax=ax, label="load / even load")
        return ax


@dataclasses.dataclass(frozen=True)
class ExpertLoadByClass:
    """Shares of the choices of a class' tokens that went to each expert.

    Attributes:
        loads: (classes, E), each row sums to 1.
        classes: list of the classes' names.
        layer: name of the `SparseMoE`.

    Example:

    ```python
    loads = np.array([[0.9, 0.1], [0.2, 0.8]])
    ax = kd.plots.ExpertLoadByClass(loads, ["cat", "dog"], "moe").plot()
    ```
    """

    loads: np.ndarray
    classes: list
    layer: str

    def plot(self, ax=None):
        """Draws one row a class and one column an expert.

        Of many classes some are named.

        Args:
            ax: matplotlib `Axes`, or `None` for new ones.

        Returns:
            The `Axes`.
        """
        ax = axes_or_new(ax)
        image = ax.imshow(
            self.loads,
            cmap="cividis",
            vmin=0,
            aspect="auto",
            interpolation="nearest",
        )
        ax.set(
            xlabel="expert",
            ylabel="class",
            xticks=ticks(self.loads.shape[1]),
            title=f"Who works on what in {self.layer}",
        )
        name_ticks(ax.yaxis, self.classes)
        ax.figure.colorbar(image, ax=ax, label="share of the class' choices")
        return ax


def expert_load(history, layer, prefix=""):
    """The load of a `SparseMoE`'s experts in the epochs of a training.

    Args:
        history: what `fit` returned, or its `history` dict.
        layer: the layer, or its name.
        prefix: string before the names in the logs, `"val_"` for the validation data.
            Defaults to none.

    Returns:
        An `ExpertLoad`.

    Raises:
        TypeError: if `history` is neither.
        ValueError: if the logs hold no load of such a layer.

    Example:

    ```python
    history = {"moe_load_0": [0.9, 0.6], "moe_load_1": [0.1, 0.4]}
    ax = kd.plots.expert_load(history, "moe").plot()
    ```
    """
    logs = checked_logs("history", history)
    name = layer.name if isinstance(layer, keras.Layer) else layer
    start = f"{prefix}{name}_load_"
    columns = []
    while f"{start}{len(columns)}" in logs:
        columns.append(logs[f"{start}{len(columns)}"])
    if not columns:
        raise ValueError(
            f"`history` must hold the loads of `layer`, '{start}0' and so on. "
            f"Received: {sorted(logs)}."
        )
    return ExpertLoad(np.stack(columns, axis=1), name)


def expert_load_by_class(model, layer, x, y, class_names=None, batch_size=None):
    """Which experts work on which class.

    Args:
        model: functional or Sequential model that holds the layer.
        layer: a `SparseMoE` called once in the model, or its name.
        x: data as in `predict`.
        y: (n,) integer labels.
        class_names: list of names, label 0 first. Defaults to the labels.
        batch_size: int or `None` (32).

    Returns:
        An `ExpertLoadByClass`, of the classes that occur.

    Raises:
        ValueError: if there is no such layer, there are no samples, or `y` or
            `class_names` do not fit.

    Example:

    ```python
    inputs = keras.Input((4,))
    model = keras.Model(inputs, kd.SparseMoE(3, 8, name="moe")(inputs))
    x, y = np.random.default_rng(0).normal(size=(9, 4)), np.arange(9) % 2
    ax = kd.plots.expert_load_by_class(model, "moe", x, y).plot()
    ```
    """
    layer, routings = routings_of(model, layer, batches_of("x", x, batch_size))
    counts = [_computed(routing, layer.num_experts) for routing in routings]
    counts = np.concatenate(counts)
    y = checked_labels(y, len(counts), class_names)
    labels = np.unique(y)
    sums = np.stack([counts[y == label].sum(axis=0) for label in labels])
    loads = sums / np.maximum(sums.sum(axis=1, keepdims=True), 1)
    return ExpertLoadByClass(loads, names_of(labels, class_names), layer.name)


def _computed(routing, num_experts):
    """(samples, E), how often each expert was chosen for each sample."""
    if routing.experts is None:
        return np.sum(np.asarray(routing.tokens) >= 0, axis=-1)
    experts = np.asarray(routing.experts)
    return np.stack(
        [np.sum(experts == expert, axis=(1, 2)) for expert in range(num_experts)],
        axis=1,
    )
