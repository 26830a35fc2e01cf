"""Gates: which classes each of them lets through."""

import dataclasses

import keras
import numpy as np
from keras import tree

from keras_dynamic._compat import layers_within
from keras_dynamic.layers._checks import checked_bool
from keras_dynamic.layers._gate_records import collecting
from keras_dynamic.layers.skip_gate import SkipGate
from keras_dynamic.plots._drawing import axes_or_new, name_ticks, ticks
from keras_dynamic.plots._inputs import batches_of, checked_labels, names_of

__all__ = ["GatesByClass", "gates_by_class"]

# More cells than that are too small for a number in each.
_MOST_NUMBERS = 200
# Inches that a new figure is wide or high at most.
_LARGEST = 14.0


@dataclasses.dataclass(frozen=True)
class GatesByClass:
    """How often each gate is open, for the samples of each class and for all.

    Attributes:
        open_rates: (gates, classes + 1), the share of the samples that got to the gate
            for which it was open; the last column is that of all samples; NaN where no
            sample got there.
        open_probabilities: the same shape, their mean probability of being open.
        reached: the same shape, integers, how many samples got there.
        gates: list of the gates' names, in the order in which they ran.
        classes: list of the classes' names.
        probability: bool, whether to draw the probabilities.

    Example:

    ```python
    rates = np.array([[0.9, 0.1, 0.5], [0.2, 0.8, 0.5]])
    record = kd.plots.GatesByClass(
        rates, rates, np.full((2, 3), 10), ["gate_1", "gate_2"], ["cat", "dog"]
    )
    ax = record.plot()
    ```
    """

    open_rates: np.ndarray
    open_probabilities: np.ndarray
    reached: np.ndarray
    gates: list
    classes: list
    probability: bool = False

    def plot(self, ax=None):
        """Draws one row a gate, one column a class, and a last column for all.

        Of many classes or gates some are named.

        Args:
            ax: matplotlib `Axes`, or `None` for new ones.

        Returns:
            The `Axes`.
        """
        values = self.open_probabilities if self.probability else self.open_rates
        rows, columns = values.shape
        size = np.clip((0.5 * columns + 2.5, 0.32 * rows + 1.6), (5.0, 2.6), _LARGEST)
        ax = axes_or_new(ax, figsize=size)
        ax.set_facecolor("0.85")
        image = ax.imshow(
            np.ma.masked_invalid(100 * values),
            cmap="cividis",
            vmin=0,
            vmax=100,
            aspect="auto",
            interpolation="nearest",
        )
        for (row, column), value in np.ndenumerate(values):
            if np.isnan(value):
                ax.text(column, row, "–", color="black", ha="center", va="center")
            elif values.size <= _MOST_NUMBERS:
                color = "black" if value > 0.5 else "white"
                text = f"{100 * value:.0f}"
                ax.text(
                    column, row, text, color=color, ha="center", va="center", fontsize=8
                )
        ax.axvline(columns - 1.5, color="white", linewidth=min(4, 200 / columns))
        # The last column has its name in any case, and room for it.
        places = [*ticks(columns - 1, 24), columns - 1]
        if len(places) < columns and places[-1] - places[-2] < places[1]:
            del places[-2]
        names = [*(str(name) for name in self.classes), "all"]
        names = [names[place] for place in places]
        ax.set_xticks(places, names)
        if max(map(len, names)) > 4:
            ax.tick_params("x", rotation=45)
            for label in ax.get_xticklabels():
                label.set(ha="right", rotation_mode="anchor")
        name_ticks(ax.yaxis, self.gates, few=36)
        what = "Open probability" if self.probability else "Open rate"
        title = f"{what} by class"
        if np.isnan(values).any():
            title += " (–: no samples got there)"
        ax.set(xlabel="class", ylabel="gate", title=title)
        ax.figure.colorbar(image, ax=ax, label=f"{what.lower()} (%)")
        return ax


def gates_by_class(model, x, y, class_names=None, batch_size=None, probability=False):
    """Which gates are open for which class.

    The model runs as in `predict`: all samples get to a gate, those that would leave at
    an exit before too. A gate inside another gate's layer counts the samples that got
    there, and a gate that is called several times all its calls. Gates inside of
    experts, of loops, or of a layer that folds other axes into the batch, do not decide
    on samples and are left out.

    Args:
        model: a `keras.Model` that holds a `SkipGate`, however deep.
        x: data as in `predict`.
        y: (n,) integer labels.
        class_names: list of names, label 0 first. Defaults to the labels.
        batch_size: int or `None` (32).
        probability: bool, whether to draw the mean probability of being open in place
            of the open rate. Defaults to `False`.

    Returns:
        A `GatesByClass`, of the classes that occur.

    Raises:
        ValueError: if no gate of the model decides on samples, there are none, or `y`
            or `class_names` do not fit.

    Example:

    ```python
    inputs = keras.Input((4,))
    gate = kd.SkipGate(keras.layers.Dense(4), name="gate")
    model = keras.Model(inputs, keras.layers.Dense(2)(gate(inputs)))
    x, y = np.random.default_rng(0).normal(size=(9, 4)), np.arange(9) % 2
    ax = kd.plots.gates_by_class(model, x, y).plot()
    ```
    """
    layers = layers_within(model) if isinstance(model, keras.Model) else []
    if not any(isinstance(layer, SkipGate) for layer in layers):
        raise ValueError(
            "`model` must be a `keras.Model` that holds a `SkipGate`. Received: "
            f"{model!r} of type {type(model)}."
        )
    sums, samples = {}, 0
    for batch in batches_of("x", x, batch_size):
        with collecting() as records:
            outputs = model(batch, training=False)
        rows = len(tree.flatten(outputs)[0])
        for gate, vectors in _sums_by_gate(records, rows).items():
            sums.setdefault(gate, {})[samples] = vectors
        samples += rows
    if not sums:
        raise ValueError(
            "`model` must hold a `SkipGate` that decides on samples, not within "
            "experts or a loop. Received: none that did for any of the "
            f"{samples} samples of `x`."
        )
    checked_bool("probability", probability)
    y = checked_labels(y, samples, class_names)
    labels = np.unique(y)
    groups = np.stack([*(y == label for label in labels), np.ones(samples, bool)])
    # A gate in a branch that no sample of a batch took reports nothing there.
    totals = np.stack([groups @ _whole(batches, samples) for batches in sums.values()])
    reached, opened, probabilities = np.moveaxis(totals, -1, 0)
    with np.errstate(invalid="ignore"):
        rates, means = opened / reached, probabilities / reached
    return GatesByClass(
        rates,
        means,
        reached.round().astype("int64"),
        [gate.name for gate in sums],
        names_of(labels, class_names),
        probability,
    )


def _sums_by_gate(records, rows):
    """(rows, 3) of each gate: reached, opened, probability, over all its calls."""
    sums = {}
    for record in records:
        if not isinstance(record.gate, SkipGate):
            continue
        vectors = np.stack([np.asarray(v, "float64") for v in record.vectors()], axis=1)
        if len(vectors) == rows:
            sums[record.gate] = sums.get(record.gate, 0) + vectors
    return sums


def _whole(batches, samples):
    """(samples, 3) from a dict of first rows: the vectors of a batch."""
    whole = np.zeros((samples, 3))
    for start, vectors in batches.items():
        whole[start : start + len(vectors)] = vectors
    return whole
