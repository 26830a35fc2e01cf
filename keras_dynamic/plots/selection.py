"""What a selector thinks of the exits, and which it chooses."""

import dataclasses

import keras
import numpy as np
from matplotlib.ticker import PercentFormatter

from keras_dynamic.layers._checks import positive_integer
from keras_dynamic.layers._selector import soft_weights
from keras_dynamic.models import rules
from keras_dynamic.models.rows import rows_with_nan
from keras_dynamic.plots._diagram import shortened
from keras_dynamic.plots._drawing import (
    axes_in_row,
    check_model,
    color_of,
    name_ticks,
    units,
)
from keras_dynamic.plots._inputs import batches_of, checked_labels, names_of

__all__ = ["ExitSelection", "exit_selection"]


@dataclasses.dataclass(frozen=True)
class ExitSelection:
    """The soft weights of a selector, and the exits that it chooses.

    Attributes:
        weights: (n, exits), rows sum to 1.
        exit_index: (n,), the exit chosen.
        costs: (exits,), of a sample that leaves there, 1.0 being the plain network.
        exit_names: names of all exits.
        labels: (n,) integers, or `None`.
        class_names: list of names, label 0 first, or `None`.

    Example:

    ```python
    weights = np.array([[0.7, 0.3], [0.4, 0.6]])
    record = kd.plots.ExitSelection(
        weights, np.array([0, 1]), np.array([0.2, 1.01]), ["exit_1", "final"]
    )
    axes = record.plot()
    ```
    """

    weights: np.ndarray
    exit_index: np.ndarray
    costs: np.ndarray
    exit_names: list
    labels: np.ndarray | None = None
    class_names: list | None = None

    def plot(self, axes=None, num_samples=16):
        """Draws the weights of some samples, or of classes, and the mean over all.

        With labels, one row is the mean of a class. Without, one row is a sample: those
        shown lie at even distances in the order of their expected cost
        sum_e w_e cost_e, the least first, and a point marks the exit chosen. Of many
        rows some are named.

        Args:
            axes: two matplotlib `Axes`, or `None` for new ones in one row.
            num_samples: int >= 1, how many samples are shown. Defaults to 16.

        Returns:
            The array of `Axes`.
        """
        num_samples = positive_integer("num_samples", num_samples)
        axes = axes_in_row(axes, 2, max(4.2, 0.9 * len(self.costs)), 4.2)
        if self.labels is None:
            self._plot_samples(axes[0], num_samples)
        else:
            self._plot_classes(axes[0])
        self._plot_mean(axes[1])
        # Else the names of neighbors run together.
        length = max(8, 30 // len(self.costs))
        ticks = [
            f"{shortened(name, length)}\ncost {cost:.2g}"
            for name, cost in zip(self.exit_names, self.costs, strict=True)
        ]
        for ax in axes:
            ax.set_xticks(range(len(ticks)), ticks, fontsize="small")
        return axes

    def _plot_samples(self, ax, number):
        order = np.argsort(self.weights @ self.costs, kind="stable")
        number = min(number, len(order))
        shown = order[np.linspace(0, len(order) - 1, number).round().astype("int64")]
        self._heat(ax, self.weights[shown], shown)
        ax.scatter(
            self.exit_index[shown],
            range(number),
            marker="o",
            s=36,
            facecolor="white",
            edgecolor="black",
            label="exit chosen",
        )
        _legend_below(ax)
        ax.set(ylabel="sample, cheap to dear", title="Weights of some samples")

    def _plot_classes(self, ax):
        labels = np.unique(self.labels)
        means = [self.weights[self.labels == label].mean(axis=0) for label in labels]
        self._heat(ax, np.stack(means), names_of(labels, self.class_names))
        ax.set(ylabel="class", title="Mean weights of classes")

    def _heat(self, ax, weights, rows):
        image = ax.imshow(
            weights,
            cmap="cividis",
            vmin=0,
            vmax=1,
            aspect="auto",
            interpolation="nearest",
        )
        name_ticks(ax.yaxis, rows)
        ax.figure.colorbar(image, ax=ax, label="weight")

    def _plot_mean(self, ax):
        exits = np.arange(len(self.exit_names))
        chosen = np.bincount(self.exit_index, minlength=len(exits))
        for offset, values, label, style in (
            (-0.2, self.weights.mean(axis=0), "mean weight", {"color": color_of(4)}),
            (
                0.2,
                chosen / len(self.exit_index),
                "share that chooses it",
                {"facecolor": color_of(0), "edgecolor": "white", "hatch": "///"},
            ),
        ):
            ax.bar(exits + offset, values, 0.4, label=label, **style)
        number = len(self.exit_index)
        title = ("All " if number > 1 else "") + units(number, "sample")
        ax.set(ylim=(0, 1), title=title)
        ax.yaxis.set_major_formatter(PercentFormatter(1))
        _legend_below(ax)


def exit_selection(model, x, y=None, class_names=None, batch_size=None):
    """What the selector of a model thinks of its exits, and which it chooses.

    The weights are the soft ones, before one exit is chosen. Where other layers stand
    between the selector and the model, only the hard ones are known.

    Args:
        model: a `kd.DynamicModel` with a selector.
        x: data as in `predict`; a dataset may yield (x, y), of which y is left out.
        y: (n,) integer labels, to group by class. Defaults to `None`.
        class_names: list of names, label 0 first. Defaults to the labels.
        batch_size: int or `None` (32).

    Returns:
        An `ExitSelection`.

    Raises:
        TypeError: if `model` is no `DynamicModel`.
        ValueError: if it has no selector, there are no samples or a NaN among them, or
            `y` or `class_names` do not fit.

    Example:

    ```python
    inputs = keras.Input((4,))
    weights = kd.ExitSelector(2)(inputs)
    h = keras.layers.Dense(8, "relu")(inputs)
    outputs = [kd.EarlyExit(2)(inputs), keras.layers.Dense(2, "softmax")(h)]
    model = kd.DynamicModel(inputs, outputs, selector=weights)
    x = np.random.default_rng(0).normal(size=(90, 4))
    axes = kd.plots.exit_selection(model, x).plot()
    ```
    """
    check_model(model)
    rule = rules.Selected()
    model.road.check_rule(rule)
    soft, hard, broken, costs = [], [], [], None
    for x_batch in batches_of("x", x, batch_size):
        costs = costs or model.road.costs_of_batch(x_batch, rule)
        weights = model(x_batch, training=False)[-1]
        soft.append(np.asarray(soft_weights(weights)))
        hard.append(np.asarray(weights))
        leaves = keras.tree.flatten(x_batch)
        broken.append(np.asarray(rows_with_nan(leaves, len(hard[-1]))))
    soft, hard = np.concatenate(soft), np.concatenate(hard)
    broken = np.concatenate(broken) | np.isnan(soft).any(axis=1)
    if broken.any():
        raise ValueError(
            "`x` must hold no NaN and give finite weights. Received: "
            f"{broken.sum()} of {len(broken)} samples that do not, the first at row "
            f"{broken.argmax()}."
        )
    exit_index = hard.argmax(axis=1)
    if y is not None:
        y = checked_labels(y, len(exit_index), class_names)
    return ExitSelection(
        weights=soft,
        exit_index=exit_index,
        costs=np.array(costs.shares()),
        exit_names=model.exit_names,
        labels=y,
        class_names=class_names,
    )


def _legend_below(ax):
    ax.legend(loc="upper left", bbox_to_anchor=(0, -0.14), fontsize="small")
