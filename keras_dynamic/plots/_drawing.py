"""What the plots have in common: axes, ticks, colors and checks."""

import numpy as np
from matplotlib import pyplot
from matplotlib.ticker import PercentFormatter

from keras_dynamic.models.dynamic_model import DynamicModel

__all__ = [
    "COLORS",
    "TITLE_LENGTH",
    "axes_in_row",
    "axes_or_new",
    "check_model",
    "color_of",
    "draw_front",
    "name_ticks",
    "shown_images",
    "style_of",
    "ticks",
    "units",
]

# Okabe and Ito's colors without black, legible to the color-blind.
COLORS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
# Characters of a title above one of the axes of `axes_in_row`.
TITLE_LENGTH = 28


def axes_or_new(ax, **arguments):
    """`ax`, or the axes of a new figure, made with the arguments of `subplots`."""
    return pyplot.subplots(layout="constrained", **arguments)[1] if ax is None else ax


def axes_in_row(axes, count, width, height, **arguments):
    """(count,) `Axes`: those given, or new ones in a row, `width` inches each."""
    if axes is None:
        size = (width * count, height)
        arguments = {"squeeze": False, "layout": "constrained", **arguments}
        figure, axes = pyplot.subplots(1, count, figsize=size, **arguments)
        # Else the last tick of one and the first of the next run together.
        figure.get_layout_engine().set(wspace=0.06)
    axes = np.ravel(axes)
    if len(axes) != count:
        raise ValueError(f"`axes` must be {count} `Axes`. Received: {len(axes)}.")
    return axes


def check_model(model):
    if not isinstance(model, DynamicModel):
        raise TypeError(
            f"`model` must be a `kd.DynamicModel`. Received: {model!r} of type "
            f"{type(model)}."
        )


def ticks(number, few=8):
    """0, 1, ..., number - 1, or where these are 2 `few` and more some of them."""
    return np.arange(0, number, max(1, number // few))


def name_ticks(axis, names, few=12):
    """Names along an axis, or some of them where there are many."""
    places = ticks(len(names), few)
    axis.set_ticks(places, [str(names[place]) for place in places])


def units(number, noun):
    """ "1 sample", "2,000 samples"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def shown_images(images):
    """Gray images without their channel; colors in [0, 1]."""
    if images.shape[3:] == (1,):
        images = images[..., 0]
    if images.ndim == 3 or not images.size:
        return images
    low, high = float(images.min()), float(images.max())
    if low >= 0 and high <= 1:
        return images
    return (images - low) / max(high - low, 1e-12)


def color_of(index):
    return COLORS[int(index) % len(COLORS)]


def style_of(index):
    """Color of an area, and from the eighth on hatching too."""
    hatch = ("", "///", "...", "xxx", "ooo")[int(index) // len(COLORS) % 5]
    return {"facecolor": color_of(index), "edgecolor": "white", "hatch": hatch}


def draw_front(ax, costs, accuracies, on_front, label):
    """Points of accuracy against cost, those on the front joined by steps.

    Between two points of the front the accuracy is that of the cheaper one: nothing
    says that a setting in between exists.

    Args:
        ax: `Axes`.
        costs, accuracies: (n,) arrays; costs in networks, accuracies in [0, 1].
        on_front: (n,) booleans.
        label: what the points are, in the plural.
    """
    others = ~on_front
    if others.any():
        ax.scatter(costs[others], accuracies[others], s=18, color="0.6", label=label)
    order = np.argsort(costs[on_front], kind="stable")
    ax.plot(
        costs[on_front][order],
        accuracies[on_front][order],
        color=color_of(4),
        marker="o",
        drawstyle="steps-post",
        label="front" if on_front.any() else None,
    )
    ax.set(xlabel="mean cost (1 = plain network)", ylabel="accuracy")
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
