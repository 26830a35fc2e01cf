"""Which samples leave where: images by their exit."""

import dataclasses

import numpy as np
from matplotlib import pyplot

from keras_dynamic.layers._checks import positive_integer
from keras_dynamic.models import rules
from keras_dynamic.plots._drawing import check_model, color_of, shown_images
from keras_dynamic.plots._inputs import check_names

__all__ = ["SamplesByExit", "samples_by_exit"]


@dataclasses.dataclass(frozen=True)
class SamplesByExit:
    """Images of samples that leave at each exit, the most confident first.

    Attributes:
        images: list with an array (shown, height, width[, channels]) for each exit.
        indices: list with a (shown,) array for each exit: which samples these are.
        confidences: list with a (shown,) array for each exit: the rule's scores.
        answers: list of lists: the names of the classes predicted.
        wrong: list with a (shown,) array of booleans for each exit, or `None` without
            labels.
        exit_rates: (exits,), share of all samples that leave there.
        exit_names: names of all exits.

    Example:

    ```python
    images = np.random.default_rng(0).uniform(size=(2, 8, 8))
    record = kd.plots.SamplesByExit(
        images=[images, images[:1]],
        indices=[np.array([0, 1]), np.array([2])],
        confidences=[np.array([0.9, 0.8]), np.array([0.7])],
        answers=[["cat", "dog"], ["cat"]],
        wrong=None,
        exit_rates=np.array([0.7, 0.3]),
        exit_names=["exit_1", "final"],
    )
    axes = record.plot()
    ```
    """

    images: list
    indices: list
    confidences: list
    answers: list
    wrong: list | None
    exit_rates: np.ndarray
    exit_names: list

    def plot(self, axes=None):
        """Draws one row an exit; answers that are wrong are marked and framed.

        Args:
            axes: (exits, columns) array of matplotlib `Axes`, at least as many columns
                as a row has images, or `None` for new ones.

        Returns:
            The array of `Axes`.
        """
        rows, columns = len(self.images), max(1, *(len(row) for row in self.images))
        if axes is None:
            _, axes = pyplot.subplots(
                rows,
                columns,
                squeeze=False,
                figsize=(max(1.1 * columns + 1.0, 4.5), 1.35 * rows + 0.3),
                layout="compressed",
            )
        axes = np.asarray(axes)
        if axes.ndim != 2 or axes.shape[0] != rows or axes.shape[1] < columns:
            raise ValueError(
                f"`axes` must be ({rows}, {columns}) `Axes`, one row an exit. "
                f"Received: an array of shape {axes.shape}."
            )
        for index in range(rows):
            self._plot_row(axes[index], index)
        # In the middle: to the left, the first column would be as wide as half of it.
        middle = axes[0, (columns - 1) // 2]
        middle.set_title("Answers and scores, from sure to unsure")
        return axes

    def _plot_row(self, axes, index):
        for ax in axes:
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        rate, name = self.exit_rates[index], self.exit_names[index]
        axes[0].set_ylabel(f"{name}\n{rate:.1%}", rotation=0, ha="right", va="center")
        if not len(self.images[index]):
            axes[0].text(0, 0.5, "no samples", va="center", transform=axes[0].transAxes)
        for column, (image, confidence, answer) in enumerate(
            zip(
                self.images[index],
                self.confidences[index],
                self.answers[index],
                strict=True,
            )
        ):
            ax, wrong = axes[column], self.wrong and self.wrong[index][column]
            ax.imshow(image, cmap="gray" if image.ndim == 2 else None)
            label = f"{answer} ✗" if wrong else f"{answer}"
            color = color_of(5) if wrong else "black"
            ax.set_xlabel(f"{label}\n{confidence:.2f}", fontsize="small", color=color)
            if wrong:
                ax.spines[:].set(visible=True, color=color, linewidth=2)


def samples_by_exit(
    model, images, y=None, per_exit=8, class_names=None, rule=None, batch_size=None
):
    """Images of the samples that leave at each exit, from easy ones to hard ones.

    Of the samples that leave at an exit, `per_exit` are shown: the most confident, the
    least confident, and between them at even distances in the order of confidence.

    Args:
        model: a `kd.DynamicModel` of images.
        images: (n, height, width[, channels]), 1 or 3 channels, as the model takes
            them. Values outside [0, 1] are rescaled to be shown.
        y: (n,) integer labels, to mark wrong answers. Defaults to `None`.
        per_exit: int >= 1. Defaults to 8.
        class_names: list of names, label 0 first. Defaults to the numbers.
        rule: an `ExitRule` or its name. Defaults to `None`, the rule in force.
        batch_size: int or `None` (32).

    Returns:
        A `SamplesByExit`.

    Raises:
        TypeError: if `model` is no `DynamicModel`.
        ValueError: for `images`, `y` or `class_names` of another shape.

    Example:

    ```python
    inputs = keras.Input((8, 8, 1))
    h = keras.layers.Conv2D(4, 3, activation="relu")(inputs)
    last = keras.layers.Dense(10, "softmax")(keras.layers.Flatten()(h))
    model = kd.DynamicModel(inputs, [kd.EarlyExit(10, name="exit_1")(h), last])
    images = np.random.default_rng(0).uniform(size=(20, 8, 8, 1))
    axes = kd.plots.samples_by_exit(model, images, per_exit=4).plot()
    ```
    """
    check_model(model)
    per_exit = positive_integer("per_exit", per_exit)
    images = np.asarray(images)
    if images.ndim not in (3, 4) or images.shape[3:] not in ((), (1,), (3,)):
        raise ValueError(
            "`images` must have the shape (n, height, width) or (n, height, width, "
            f"channels) with 1 or 3 channels. Received: shape {images.shape}."
        )
    if y is not None and np.shape(y) != images.shape[:1]:
        raise ValueError(
            f"`y` must have one label for each of the {len(images)} images. Received: "
            f"y of shape {np.shape(y)}."
        )
    rule = model.exit_rule if rule is None else rules.get(rule)
    prediction = model.predict_dynamic(images, batch_size, verbose=0, rule=rule)
    classes = _classes(prediction.probabilities)
    names = _names(class_names, max(prediction.probabilities.shape[1], 2))
    shown = shown_images(images)
    chosen = [
        _spread(prediction, index, rule.leaves_below, per_exit)
        for index in range(len(model.exit_names))
    ]
    return SamplesByExit(
        images=[shown[rows] for rows in chosen],
        indices=chosen,
        confidences=[prediction.confidence[rows] for rows in chosen],
        answers=[[names[label] for label in classes[rows]] for rows in chosen],
        wrong=None if y is None else [(classes != y)[rows] for rows in chosen],
        exit_rates=prediction.exit_rates,
        exit_names=model.exit_names,
    )


def _classes(probabilities):
    """(n,) predicted classes; one column is the probability of class 1."""
    if probabilities.shape[1] == 1:
        return (probabilities[:, 0] > 0.5).astype("int64")
    return np.argmax(probabilities, axis=1)


def _names(class_names, classes):
    check_names(class_names)
    if class_names is None:
        return range(classes)
    if len(class_names) != classes:
        raise ValueError(
            f"`class_names` must have one name for each of the {classes} classes. "
            f"Received: {len(class_names)} names."
        )
    return class_names


def _spread(prediction, index, leaves_below, number):
    """Some of those who leave at an exit, evenly spread from sure to unsure."""
    rows = np.flatnonzero(prediction.exit_index == index)
    confidence = prediction.confidence[rows]
    # NaN comes last in either order.
    order = np.argsort(confidence if leaves_below else -confidence, kind="stable")
    number = min(number, len(rows))
    places = np.linspace(0, len(rows) - 1, number).round().astype("int64")
    return rows[order[places]]
