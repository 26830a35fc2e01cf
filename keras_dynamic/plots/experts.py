"""Experts: their load over time and by class, and whose patches they take."""

import dataclasses

import keras
import numpy as np
from keras import tree
from matplotlib import pyplot

from keras_dynamic._compat import BatchIterator, functional_nodes, functional_of
from keras_dynamic.layers.sparse_moe import SparseMoE
from keras_dynamic.plots._drawing import axes_or_new, style_of, ticks

__all__ = [
    "ExpertLoad",
    "ExpertLoadByClass",
    "PatchExperts",
    "expert_load",
    "expert_load_by_class",
    "patch_experts",
]


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

        Args:
            ax: matplotlib `Axes`, or `None` for new ones.

        Returns:
            The `Axes`.
        """
        ax = axes_or_new(ax)
        image = ax.imshow(self.loads, cmap="cividis", vmin=0, aspect="auto")
        ax.set(
            xlabel="expert",
            ylabel="class",
            xticks=ticks(self.loads.shape[1]),
            yticks=np.arange(len(self.classes)),
            yticklabels=[str(name) for name in self.classes],
            title=f"Who works on what in {self.layer}",
        )
        ax.figure.colorbar(image, ax=ax, label="share of the class' choices")
        return ax


@dataclasses.dataclass(frozen=True)
class PatchExperts:
    """The first expert of each patch of some images.

    Attributes:
        images: (n, height, width, channels), or gray ones without channels.
        experts: (n, rows, columns) integers; -1 for a patch without one.
        num_experts: int, E.
        layer: name of the `SparseMoE`.

    Example:

    ```python
    images, experts = np.zeros((1, 8, 8, 1)), np.array([[[0, 1], [1, 2]]])
    axes = kd.plots.PatchExperts(images, experts, 3, "moe").plot()
    ```
    """

    images: np.ndarray
    experts: np.ndarray
    num_experts: int
    layer: str

    def plot(self, axes=None):
        """Draws each image with its patches in the colors of their experts.

        Args:
            axes: array of n matplotlib `Axes`, or `None` for new ones in one row.

        Returns:
            The array of `Axes`.
        """
        count = len(self.images)
        size = (1.6 * count + 1.2, 2.1)
        if axes is None:
            _, axes = pyplot.subplots(
                1, count, squeeze=False, figsize=size, layout="constrained"
            )
        axes = np.ravel(axes)
        if len(axes) != count:
            raise ValueError(
                f"`axes` must be as many as there are images, {count}. Received: "
                f"{len(axes)}."
            )
        for ax, image, experts in zip(axes, self.images, self.experts, strict=True):
            self._plot_one(ax, image, experts)
        handles = [
            pyplot.Rectangle((0, 0), 1, 1, **style_of(expert))
            for expert in range(self.num_experts)
        ]
        axes[-1].legend(
            handles,
            [str(expert) for expert in range(self.num_experts)],
            title="expert",
            loc="center left",
            bbox_to_anchor=(1.05, 0.5),
        )
        axes[0].set_title(f"Experts of patches in {self.layer}", loc="left")
        return axes

    def _plot_one(self, ax, image, experts):
        height, width = image.shape[:2]
        if image.ndim == 2 or image.shape[-1] == 1:
            # Black is drawn as gray: on black all colors would look alike.
            low, high = float(image.min()), float(image.max())
            plane = image.reshape(height, width)
            ax.imshow(plane, cmap="gray", vmin=2 * low - high, vmax=high)
        else:
            ax.imshow(image)
        rows, columns = experts.shape
        step = (height / rows, width / columns)
        for row in range(rows):
            for column in range(columns):
                expert = experts[row, column]
                if expert < 0:
                    continue
                corner = (column * step[1] - 0.5, row * step[0] - 0.5)
                style = {**style_of(expert), "alpha": 0.65}
                ax.add_patch(pyplot.Rectangle(corner, step[1], step[0], **style))
        ax.set(xticks=[], yticks=[])


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
        ValueError: if the logs hold no load of such a layer.

    Example:

    ```python
    history = {"moe_load_0": [0.9, 0.6], "moe_load_1": [0.1, 0.4]}
    ax = kd.plots.expert_load(history, "moe").plot()
    ```
    """
    logs = getattr(history, "history", history)
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
        ValueError: if there is no such layer, or `y` does not fit `x`.

    Example:

    ```python
    inputs = keras.Input((4,))
    model = keras.Model(inputs, kd.SparseMoE(3, 8, name="moe")(inputs))
    x, y = np.random.default_rng(0).normal(size=(9, 4)), np.arange(9) % 2
    ax = kd.plots.expert_load_by_class(model, "moe", x, y).plot()
    ```
    """
    (layer, inputs, mask), counts = _found(model, layer), []
    for routing in _routings(model, inputs, mask, layer, x, batch_size):
        counts.append(_computed(routing, layer.num_experts))
    counts = np.concatenate(counts) if counts else np.zeros((0, layer.num_experts))
    y = np.asarray(y)
    if y.shape != counts.shape[:1]:
        raise ValueError(
            f"`y` must have one label for each of the {len(counts)} samples of `x`. "
            f"Received: y of shape {y.shape}."
        )
    labels = np.unique(y)
    sums = np.stack([counts[y == label].sum(axis=0) for label in labels])
    loads = sums / np.maximum(sums.sum(axis=1, keepdims=True), 1)
    names = labels if class_names is None else [class_names[label] for label in labels]
    return ExpertLoadByClass(loads, list(names), layer.name)


def patch_experts(model, layer, images, grid=None):
    """Which patch of some images goes to which expert: the first of its K.

    Args:
        model: functional or Sequential model of images that holds the layer.
        layer: a `SparseMoE` called once in the model, on patches in the order of rows,
            or its name.
        images: (n, height, width, channels) or (n, height, width).
        grid: (rows, columns) of patches, the last tokens of the sequence. Defaults to a
            square of all of them.

    Returns:
        A `PatchExperts`.

    Raises:
        ValueError: if there is no such layer, experts choose there, or the number of
            tokens is no square and `grid` is not given.

    Example:

    ```python
    inputs = keras.Input((8, 8, 1))
    patches = keras.layers.Conv2D(6, 4, strides=4)(inputs)
    tokens = keras.layers.Reshape((4, 6))(patches)
    model = keras.Model(inputs, kd.SparseMoE(3, 8, name="moe")(tokens))
    images = np.random.default_rng(0).uniform(size=(2, 8, 8, 1))
    axes = kd.plots.patch_experts(model, "moe", images).plot()
    ```
    """
    layer, inputs, mask = _found(model, layer)
    routings = list(_routings(model, inputs, mask, layer, images, None))
    if any(routing.experts is None for routing in routings):
        raise ValueError(
            "`layer` must be one in which tokens choose experts. Received: layer "
            f"'{layer.name}', in which experts choose tokens."
        )
    first = np.concatenate([np.asarray(r.experts)[..., 0] for r in routings])
    tokens = first.shape[1]
    if grid is None:
        side = round(tokens**0.5)
        if side * side != tokens:
            raise ValueError(
                "`grid` is needed where the number of tokens is no square. Received: "
                f"grid=None with {tokens} tokens."
            )
        grid = (side, side)
    rows, columns = grid
    if not 0 < rows * columns <= tokens:
        raise ValueError(
            f"`grid` must have at most {tokens} patches, one a token. Received: "
            f"grid={grid}."
        )
    experts = first[:, tokens - rows * columns :].reshape(-1, rows, columns)
    return PatchExperts(np.asarray(images), experts, layer.num_experts, layer.name)


def _found(model, layer):
    """(the layer, what it was called with: symbolic inputs and mask)."""
    if (functional := functional_of(model)) is None:
        raise ValueError(
            "`model` must be a functional or built Sequential `keras.Model`. Received: "
            f"{model!r} of type {type(model)}."
        )
    nodes = list(functional_nodes(functional))
    nodes = [node for node in nodes if isinstance(node[0], SparseMoE)]
    calls = [node for node in nodes if layer is node[0] or layer == node[0].name]
    if len(calls) != 1:
        raise ValueError(
            "`layer` must be a `SparseMoE` that the model itself calls once, or its "
            f"name: {[node[0].name for node in nodes]}. Received: layer={layer!r}."
        )
    ((found, args, kwargs, _),) = calls
    return found, args[0] if args else kwargs["inputs"], kwargs.get("mask")


def _routings(model, inputs, mask, layer, x, batch_size):
    """What the layer decides for each batch of the data."""
    features = keras.Model(model.inputs, [inputs] if mask is None else [inputs, mask])
    for _, _, batches in BatchIterator(x=x, batch_size=batch_size):
        for batch in batches:
            data = keras.utils.unpack_x_y_sample_weight(batch)[0]
            yield layer.routing(*tree.flatten(features(data, training=False)))


def _computed(routing, num_experts):
    """(samples, E), how often each expert was chosen for each sample."""
    if routing.experts is None:
        return np.sum(np.asarray(routing.tokens) >= 0, axis=-1)
    experts = np.asarray(routing.experts)
    return np.stack(
        [np.sum(experts == expert, axis=(1, 2)) for expert in range(num_experts)],
        axis=1,
    )
