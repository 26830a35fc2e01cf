"""Learned choices in a network: blends of activations, and one of several layers."""

import dataclasses

import keras
import numpy as np
from matplotlib import pyplot

from keras_dynamic._compat import layers_within
from keras_dynamic.layers._checks import numbers_in
from keras_dynamic.layers.blended_activation import BlendedActivation
from keras_dynamic.layers.layer_choice import LayerChoice
from keras_dynamic.ops import estimators
from keras_dynamic.plots._drawing import COLORS, color_of, ticks

__all__ = ["Blends", "LayerChoices", "blend", "layer_choices"]

_LINES = ("-", "--", "-.", ":")
_POINTS = 201
# Without yellow, of which a thin line is hardly seen.
_COLORS = tuple(color for color in COLORS if color != "#F0E442")


@dataclasses.dataclass(frozen=True)
class Blends:
    """The blends of one or several `BlendedActivation` layers.

    E activations, B blends: one, or with `shared_axes` one for each unit, channel or
    position. The lists have one entry a layer.

    Attributes:
        x: (points,), where the functions are drawn.
        layers: list of the layers' names.
        activations: list of lists of E names.
        weights: list of (E, B), the a_e.
        curves: list of (E, points), the phi_e(x).
        answers: list of (B, points), what the layer answers when not training: the
            blend or, for a hard estimator, the winner.

    Example:

    ```python
    x = np.linspace(-2, 2, 5)
    curves, weights = np.stack([np.tanh(x), x]), np.array([[0.7], [0.3]])
    record = kd.plots.Blends(
        x, ["blend"], [["tanh", "linear"]], [weights], [curves], [weights.T @ curves]
    )
    axes = record.plot()
    ```
    """

    x: np.ndarray
    layers: list
    activations: list
    weights: list
    curves: list
    answers: list

    def plot(self, axes=None):
        """Draws two panels a layer: its weights, and its functions.

        One blend is drawn as bars, several as a map with a column for each. Of several
        answers each is a thin line, and their mean a thick one.

        Args:
            axes: array (layers, 2) of matplotlib `Axes`, or `None` for new ones.

        Returns:
            The array of `Axes`, (layers, 2).
        """
        axes = _grid(axes, len(self.layers), 2, (9.0, 2.9))
        for index, (left, right) in enumerate(axes):
            self._plot_weights(left, index)
            self._plot_curves(right, index)
        return axes

    def _plot_weights(self, ax, index):
        names, weights = self.activations[index], self.weights[index]
        places = np.arange(len(names))
        if weights.shape[1] == 1:
            ax.barh(
                places,
                weights[:, 0],
                color=[_COLORS[place % len(_COLORS)] for place in places],
                edgecolor="black",
                linewidth=0.6,
            )
            ax.axvline(0, color="black", linewidth=0.8)
            ax.invert_yaxis()
            ax.set(xlabel="weight")
        else:
            image = ax.imshow(
                weights,
                aspect="auto",
                cmap="cividis",
                vmin=min(0.0, weights.min()),
                interpolation="nearest",
            )
            ax.set(xlabel="blend (unit or channel)", xticks=ticks(weights.shape[1]))
            ax.figure.colorbar(image, ax=ax, label="weight")
        ax.set_yticks(places, names)
        ax.set_title(f"Weights of {self.layers[index]}")

    def _plot_curves(self, ax, index):
        answers = self.answers[index]
        for place, (name, curve) in enumerate(
            zip(self.activations[index], self.curves[index], strict=True)
        ):
            ax.plot(
                self.x,
                curve,
                color=_COLORS[place % len(_COLORS)],
                linestyle=_LINES[place % len(_LINES)],
                linewidth=1.2,
                label=name,
            )
        if len(answers) > 1:
            ax.plot(self.x, answers.T, color="0.5", linewidth=0.5, alpha=0.6, zorder=1)
        label = "layer" if len(answers) == 1 else f"layer, mean of {len(answers)}"
        ax.plot(self.x, answers.mean(axis=0), color="black", linewidth=2.8, label=label)
        ax.axhline(0, color="0.8", linewidth=0.8, zorder=0)
        ax.axvline(0, color="0.8", linewidth=0.8, zorder=0)
        ax.set(xlabel="x", ylabel="f(x)", title=f"Answer of {self.layers[index]}")
        ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.02, 0.5))


@dataclasses.dataclass(frozen=True)
class LayerChoices:
    """How much each layer of one or several `LayerChoice` layers counts.

    Attributes:
        layers: list of the names of the `LayerChoice` layers.
        options: list of lists of names, the layers to choose from.
        probabilities: list of (E,), softmax(l / tau), each sums to 1.
        winners: list of ints, the strongest of each.

    Example:

    ```python
    record = kd.plots.LayerChoices(
        ["choice"], [["conv", "skip"]], [np.array([0.8, 0.2])], [0]
    )
    axes = record.plot()
    ```
    """

    layers: list
    options: list
    probabilities: list
    winners: list

    def plot(self, axes=None):
        """Draws the weights of each choice as bars, the winner's one solid.

        Args:
            axes: array of matplotlib `Axes`, one a choice, or `None` for new ones in
                one row.

        Returns:
            The array of `Axes`.
        """
        count = len(self.layers)
        axes = _grid(axes, 1, count, (3.6 * count, 2.6))[0]
        for index, ax in enumerate(axes):
            names, shares = self.options[index], self.probabilities[index]
            winner, places = self.winners[index], np.arange(len(names))
            bars = ax.barh(places, 100 * shares, edgecolor="black", color="white")
            for place, bar in enumerate(bars):
                if place == winner:
                    bar.set_facecolor(color_of(1))
                else:
                    bar.set_hatch("///")
            ax.bar_label(bars, [f"{100 * share:.0f}" for share in shares], padding=2)
            ax.set_yticks(places, names)
            ax.invert_yaxis()
            ax.set(xlim=(0, 112), xlabel="weight (%)", title=self.layers[index])
        return axes


def blend(layer_or_model, limits=(-4.0, 4.0)):
    """What `BlendedActivation` layers have learned: their weights, and the functions.

    Args:
        layer_or_model: a `BlendedActivation`, or a layer or model that holds some.
        limits: (lowest, highest) x, where the functions are drawn. Defaults to
            (-4, 4).

    Returns:
        A `Blends`.

    Raises:
        TypeError: for limits that are no numbers.
        ValueError: if there is no such layer, or the limits are not in order.
        RuntimeError: for a layer with `shared_axes` that was never called.

    Example:

    ```python
    layer = kd.BlendedActivation(["relu", "tanh", "elu"], initial_activation="elu")
    axes = kd.plots.blend(layer).plot()
    ```
    """
    layers = _layers_of(layer_or_model, BlendedActivation)
    limits = np.asarray(numbers_in("limits", limits), "float32")
    if limits.shape != (2,) or not limits[0] < limits[1]:
        raise ValueError(
            "`limits` must be two numbers, the lower one first. Received: "
            f"limits={limits.tolist()}."
        )
    x = np.linspace(*limits, _POINTS, dtype="float32")
    activations, weights, curves, answers = [], [], [], []
    for layer in layers:
        by_name = layer.blend()
        activations.append(list(by_name))
        own = np.stack([np.ravel(values) for values in by_name.values()])
        # As rows of one feature, for functions that look along the last axis.
        functions = [function(x[:, None]) for function in layer.activations]
        functions = np.stack([np.asarray(values)[:, 0] for values in functions])
        if layer.estimator in estimators.HARD_ESTIMATORS:
            answers.append(functions[np.ravel(layer.strongest())])
        else:
            answers.append(own.T @ functions)
        weights.append(own)
        curves.append(functions)
    names = [layer.name for layer in layers]
    return Blends(x, names, activations, weights, curves, answers)


def layer_choices(layer_or_model):
    """How much each layer of a `LayerChoice` counts.

    Args:
        layer_or_model: a `LayerChoice`, or a layer or model that holds some.

    Returns:
        A `LayerChoices`.

    Raises:
        ValueError: if there is no such layer.

    Example:

    ```python
    layers = [keras.layers.Dense(4, name="dense"), keras.layers.Identity(name="skip")]
    axes = kd.plots.layer_choices(kd.LayerChoice(layers)).plot()
    ```
    """
    layers = _layers_of(layer_or_model, LayerChoice)
    return LayerChoices(
        [layer.name for layer in layers],
        [layer.layer_names for layer in layers],
        [layer.probabilities() for layer in layers],
        [int(layer.strongest()) for layer in layers],
    )


def _layers_of(layer, kind):
    """All layers of a kind in `layer`, itself included, in its order."""
    found = []
    if isinstance(layer, keras.Layer):
        found = [inner for inner in layers_within(layer) if isinstance(inner, kind)]
    if not found:
        raise ValueError(
            f"`layer_or_model` must be or hold a `{kind.__name__}`. Received: "
            f"{layer!r} of type {type(layer)}."
        )
    return found


def _grid(axes, rows, columns, size):
    """(rows, columns) `Axes`, new ones of that width and height a row if None."""
    if axes is None:
        width, height = size
        _, axes = pyplot.subplots(
            rows,
            columns,
            squeeze=False,
            figsize=(width, height * rows),
            layout="constrained",
        )
    axes = np.asarray(axes)
    if axes.size != rows * columns:
        raise ValueError(
            f"`axes` must be {rows * columns}: {rows} x {columns}. Received: "
            f"{axes.size}."
        )
    return axes.reshape(rows, columns)
