"""Patches of images, each in the color of the expert that takes it."""

import dataclasses
import math
import numbers

import numpy as np
from matplotlib import pyplot

from keras_dynamic.plots._diagram import shortened
from keras_dynamic.plots._drawing import shown_images, style_of
from keras_dynamic.plots._inputs import batches_of
from keras_dynamic.plots._routing import routings_of

__all__ = ["PatchExperts", "patch_experts"]

# Inches: height of an image, and width of all in a row at most.
_SIDE, _WIDEST = 2.2, 20.0


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
        count, experts = len(self.images), range(self.num_experts)
        # The more experts, the wider the legend, and not only the higher.
        rows = max(8, math.ceil(math.sqrt(2 * self.num_experts)))
        columns = math.ceil(self.num_experts / rows)
        if axes is None:
            shape = np.shape(self.images)
            across = shape[2] / shape[1] * count
            high = max(
                min(_SIDE, _WIDEST / across), 0.23 * min(rows, self.num_experts) + 0.35
            )
            width = max(min(high * across, _WIDEST) + 0.75 * columns + 0.5, 3.6)
            _, axes = pyplot.subplots(
                1,
                count,
                squeeze=False,
                figsize=(width, high + 0.5),
                layout="compressed",
            )
        axes = np.ravel(axes)
        if len(axes) != count:
            raise ValueError(
                f"`axes` must be as many as there are images, {count}. Received: "
                f"{len(axes)}."
            )
        shown = shown_images(np.asarray(self.images))
        for ax, image, chosen in zip(axes, shown, self.experts, strict=True):
            self._plot_one(ax, image, chosen)
        axes[-1].legend(
            [pyplot.Rectangle((0, 0), 1, 1, **style_of(expert)) for expert in experts],
            [str(expert) for expert in experts],
            title="expert",
            fontsize="small",
            ncols=columns,
            loc="center left",
            bbox_to_anchor=(1.05, 0.5),
        )
        title = f"Experts of patches in {shortened(self.layer, 16)}"
        axes[0].set_title(title, loc="left", fontsize="medium")
        return axes

    def _plot_one(self, ax, image, experts):
        height, width = image.shape[:2]
        if image.ndim == 2:
            # Black is drawn as gray: on black all colors would look alike.
            low, high = float(image.min()), float(image.max())
            ax.imshow(image, cmap="gray", vmin=2 * low - high, vmax=high)
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


def patch_experts(model, layer, images, grid=None):
    """Which patch of some images goes to which expert: the first of its K.

    Args:
        model: functional or Sequential model of images that holds the layer.
        layer: a `SparseMoE` called once in the model, on patches in the order of rows,
            or its name.
        images: (n, height, width, channels) or (n, height, width), as the model takes
            them. Colors outside [0, 1] are rescaled to be shown.
        grid: (rows, columns) of patches, the last tokens of the sequence. Defaults to a
            square of all of them.

    Returns:
        A `PatchExperts`.

    Raises:
        ValueError: if there is no such layer or no image, experts choose there, `grid`
            is no such pair, or the number of tokens no square and `grid` not given.

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
    layer, routings = routings_of(model, layer, batches_of("images", images, None))
    routings = list(routings)
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
    if not _is_grid(grid):
        raise ValueError(
            "`grid` must be (rows, columns), two integers of at least 1. Received: "
            f"grid={grid!r}."
        )
    rows, columns = grid
    if rows * columns > tokens:
        raise ValueError(
            f"`grid` must have at most {tokens} patches, one a token. Received: "
            f"grid={grid}."
        )
    experts = first[:, tokens - rows * columns :].reshape(-1, rows, columns)
    return PatchExperts(np.asarray(images), experts, layer.num_experts, layer.name)


def _is_grid(grid):
    return (
        isinstance(grid, (tuple, list))
        and len(grid) == 2
        and all(isinstance(size, numbers.Integral) and size > 0 for size in grid)
    )
