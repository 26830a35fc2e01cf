"""What the drawings have in common: axes, ticks and colors."""

import numpy as np
from matplotlib import pyplot
from matplotlib.ticker import PercentFormatter

__all__ = ["COLORS", "axes_or_new", "color_of", "draw_front", "style_of", "ticks"]

# Okabe and Ito's colors without black, legible to the color-blind.
COLORS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")


def axes_or_new(ax, **arguments):
    """`ax`, or the axes of a new figure, made with the arguments of `subplots`."""
    return pyplot.subplots(layout="constrained", **arguments)[1] if ax is None else ax


def ticks(number):
    """At most sixteen of 0, 1, ..., number - 1."""
    return np.arange(0, number, max(1, number // 8))


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
    ax.scatter(costs[others], accuracies[others], s=18, color="0.6", label=label)
    order = np.argsort(costs[on_front], kind="stable")
    ax.plot(
        costs[on_front][order],
        accuracies[on_front][order],
        color=color_of(4),
        marker="o",
        drawstyle="steps-post",
        label="front",
    )
    ax.set(xlabel="mean cost (1 = plain network)", ylabel="accuracy")
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
