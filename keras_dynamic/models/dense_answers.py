"""What every exit says to labelled data, in one pass on the dense road."""

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from keras import tree, utils

from keras_dynamic.models import rules
from keras_dynamic.models.batch_axis import same_rows
from keras_dynamic.models.feeding import arranged, batches_over
from keras_dynamic.models.per_exit import target_of_final
from keras_dynamic.models.rows import count_rows, rows_with_nan
from keras_dynamic.ops.confidence import log_probabilities

__all__ = ["DenseAnswers", "dense_answers"]

# Rows that the probe for mixed rows looks at.
_PROBE_ROWS = 16


@dataclasses.dataclass(frozen=True)
class DenseAnswers:
    """What every exit says to labelled data, and what it costs to get there.

    Attributes:
        outputs: list of (n, units) arrays, the heads' own, one an exit.
        logs: list of (n, classes) log-probabilities, two columns for a binary head.
        labels: (n,) class numbers.
        costs: (n, exits), of a sample that leaves there, over the plain network.
        selected: (n,) exit that `Selected` takes; None for another rule.
        passing: function of a rule (None: one that asks all) and of exits that are
            closed besides; gives (exits,) what those save who pass by closed exits,
            over the plain network.
    """

    outputs: list
    logs: list
    labels: np.ndarray
    costs: np.ndarray
    selected: np.ndarray | None
    passing: Callable

    def costs_under(self, rule):
        """`costs` where the exits that a rule closes are passed by."""
        return self.costs - self.passing(rule)

    @property
    def correct(self):
        """(n, exits) booleans: whose answer is right at each exit."""
        return np.stack(
            [np.argmax(log, axis=1) == self.labels for log in self.logs], axis=1
        )


def dense_answers(model, x, y, batch_size, steps, rule=None):
    """`DenseAnswers` of a model in one pass over the data.

    Args:
        model: a `DynamicModel`.
        x, y, batch_size, steps: as in `DynamicModel.calibrate`.
        rule: `ExitRule` under which costs are counted. Defaults to `None`, one that
            pays every head passed.

    Raises:
        ValueError: for no samples, a NaN, labels outside the classes, sample weights,
            or a model whose answer for one sample depends on its batch-mates.
    """
    kinds = model.road.kinds
    selects = isinstance(rule, rules.Selected)
    if selects:
        walk, thresholds = model.road.walk_under(rule, model)
        temperatures = tf.convert_to_tensor(model.calibration_temperatures)
    outputs, targets, broken, saved, costs = [], [], [], [], None
    selected = []
    flat = [leaf for leaf in tree.flatten(x) if leaf is not None]
    if all(getattr(leaf, "shape", (1,))[:1] == (0,) for leaf in flat):
        raise ValueError("`x` must hold at least one sample. Received: none.")
    if isinstance(y, (list, tuple)) and not all(hasattr(part, "shape") for part in y):
        raise TypeError(
            "`y` must be an array of labels (or a list of arrays, one an exit). "
            f"Received: y of type {type(y)} with items of type {type(y[0])}."
        )
    iterator = batches_over(x, batch_size, steps, y=y)
    for _, _, batches in iterator:
        for data in batches:
            x_batch, y_batch, weight = utils.unpack_x_y_sample_weight(data)
            x_batch = arranged(model.input, x_batch)
            if y_batch is None:
                raise ValueError(
                    "`y` must be given, by itself or in the batches of `x`. Received: "
                    f"y={y!r}, x of type {type(x)}."
                )
            if weight is not None:
                raise ValueError(
                    "There must be no sample weights: every sample counts once. "
                    "Received batches (x, y, sample_weight)."
                )
            if count_rows(x_batch) == 0:
                continue
            if costs is None:
                costs, first = model.road.costs_of_batch(x_batch, rule), x_batch
                _probe_rows(model, x_batch)
            fed = [t for t in tree.flatten(x_batch) if t is not None]
            broken.append(np.asarray(rows_with_nan(fed, count_rows(x_batch))))
            answers, saved_here = model.road.dense_answers(x_batch)
            outputs.append(answers)
            saved.append(saved_here)
            if selects:
                found = walk(x_batch, thresholds, temperatures, model.run_eagerly)
                selected.append(np.asarray(found["exit_index"]))
            targets.append(np.asarray(target_of_final(y_batch, model.exit_names)))
    if not outputs:
        raise ValueError("`x` must hold at least one sample. Received: none.")
    outputs = [np.concatenate(parts) for parts in zip(*outputs, strict=True)]
    broken = np.concatenate(broken)
    for output in outputs:
        broken |= ~np.isfinite(output).all(axis=-1)
    if broken.any():
        raise ValueError(
            "`x` must hold no NaN and give finite outputs at every exit. Received: "
            f"{int(broken.sum())} of {len(broken)} samples that do not, the first at "
            f"row {int(np.argmax(broken))}."
        )
    classes = max(outputs[-1].shape[-1], 2)
    labels = _class_numbers(np.concatenate(targets), classes)
    _check_probabilities(outputs, kinds, model.exit_names)
    logs = [
        log_probabilities(tf.constant(output), kind).numpy()
        for output, kind in zip(outputs, kinds, strict=True)
    ]

    def passing(rule, closed=()):
        road = model.road
        asked = road.all_exits if rule is None else road.asked_under(rule)
        asked = tuple(number for number in asked if number not in closed)
        own = model.road.costs_of_batch(first, rule, asked)
        return np.subtract(costs.exits, own.exits) / costs.reference

    executed = np.array(costs.exits) - np.concatenate(saved).astype("float64")
    return DenseAnswers(
        outputs,
        logs,
        labels,
        executed / costs.reference,
        np.concatenate(selected) if selects else None,
        passing,
    )


def _check_probabilities(outputs, kinds, names):
    """Finds logits where the loss and the activation let probabilities be expected."""
    for output, kind, name in zip(outputs, kinds, names, strict=True):
        if kind != "probabilities":
            continue
        sums = output.astype("float64").sum(axis=-1)
        within = (output >= 0).all() and (output <= 1.001).all()
        if not within or (output.shape[-1] > 1 and np.abs(sums - 1).max() > 1e-2):
            raise ValueError(
                f"Exit '{name}' must give probabilities, as its loss says. Received: "
                f"outputs from {output.min():.4g} to {output.max():.4g} with sums from "
                f"{sums.min():.4g} to {sums.max():.4g}. End it in a softmax, or give "
                "the loss `from_logits=True`."
            )


def _class_numbers(y, classes):
    """Labels as (n,) ints in [0, classes), from class numbers or one-hot rows."""
    if y.ndim == 2 and y.shape[1] > 1:
        one_hot = y.shape[1] == classes and np.isin(y, (0, 1)).all()
        if not (one_hot and (y.sum(axis=1) == 1).all()):
            raise ValueError(
                "`y` must hold class numbers (n,) or one-hot rows (n, "
                f"{classes}). Received: an array of shape {y.shape}."
            )
        return np.argmax(y, axis=1)
    if y.size != len(y):
        raise ValueError(
            f"`y` must hold one label a sample. Received: an array of shape {y.shape}."
        )
    y = y.reshape(-1)
    wrong = ~np.isin(y, np.arange(classes))
    if wrong.any():
        raise ValueError(
            f"`y` must hold class numbers from 0 to {classes - 1}. Received: "
            f"{y[wrong][0]} at row {int(np.argmax(wrong))}."
        )
    return y.astype("int64")


def _probe_rows(model, x):
    """Finds answers that depend on batch-mates: some rows alone, in another order."""
    size = min(count_rows(x), _PROBE_ROWS)
    if size < 2:
        return
    rows = np.random.default_rng(0).permutation(size)[: max(size // 2, 1)]

    def answers(take):
        picked = tree.map_structure(
            lambda tensor: None if tensor is None else take(tensor[:size]), x
        )
        return model.road.dense_outputs(picked)

    whole = answers(lambda tensor: tensor)
    part = answers(lambda tensor: tf.gather(tensor, rows))
    loose = model.compute_dtype != "float32"
    names = []
    for name, one, other in zip(model.exit_names, whole, part, strict=True):
        if not same_rows(one, other, rows, *((2e-2, 2e-2) if loose else ())):
            names.append(name)
    if names:
        raise ValueError(
            "The answer for a sample must not depend on the other samples of its "
            f"batch, or samples cannot leave one by one. It does at the exits {names}: "
            "some layer before them mixes rows of the batch (statistics over axis 0, "
            "BatchNormalization in training mode) or is random at inference."
        )
