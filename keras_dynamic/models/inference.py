"""Whole inputs on the dynamic road: batches, callbacks, answers, metrics."""

import dataclasses

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from keras_dynamic._compat import BatchIterator, loss_for, metric_for
from keras_dynamic.models import rules
from keras_dynamic.models.per_exit import own_metric, target_of_final
from keras_dynamic.models.prediction import DynamicPrediction

__all__ = ["evaluate_dynamic", "predict_dynamic"]

_COLUMNS = ("outputs", "probabilities", "exit_index", "confidence")


@dataclasses.dataclass
class _Collected:
    """Answers of the batches so far, as lists of tensors, and their costs."""

    columns: dict = dataclasses.field(default_factory=lambda: {c: [] for c in _COLUMNS})
    segment_rows: list = dataclasses.field(default_factory=list)
    saved: list = dataclasses.field(default_factory=list)
    costs: list = dataclasses.field(default_factory=list)

    def add(self, answers, costs):
        for name in _COLUMNS:
            self.columns[name].append(answers[name])
        self.segment_rows.append(answers["segment_rows"])
        self.saved.append(answers.get("saved", 0.0))
        self.costs.append(costs)


def predict_dynamic(model, x, batch_size, verbose, steps, callbacks, rule):
    """See `DynamicModel.predict_dynamic`."""
    rule = model.exit_rule if rule is None else rules.get(rule)
    collected, logs = _Collected(), {}
    batches = _answered_batches(
        model,
        rule,
        "predict",
        callbacks,
        verbose,
        logs,
        x=x,
        batch_size=batch_size,
        steps_per_epoch=steps,
    )
    for x_batch, _, _, answers in batches:
        collected.add(answers, model.road.costs_of_batch(x_batch, rule))
        logs["outputs"] = answers["outputs"]
    return _prediction(model, collected)


def evaluate_dynamic(
    model, x, y, batch_size, verbose, sample_weight, steps, callbacks, rule
):
    """See `DynamicModel.evaluate_dynamic`."""
    rule = model.exit_rule if rule is None else rules.get(rule)
    collected, tallies, logs = _Collected(), None, {}
    batches = _answered_batches(
        model,
        rule,
        "test",
        callbacks,
        verbose,
        logs,
        x=x,
        y=y,
        sample_weight=sample_weight,
        batch_size=batch_size,
        steps_per_epoch=steps,
    )
    for x_batch, y_batch, weight, answers in batches:
        if y_batch is None:
            raise ValueError(
                "`y` must be given, by itself or in the batches of `x`, to evaluate. "
                f"Received: y={y!r}, x of type {type(x)}."
            )
        y_batch = target_of_final(y_batch, model.exit_names)
        outputs = answers["outputs"]
        if tallies is None:
            tallies = _Tallies(model.road.final, y_batch, outputs)
        tallies.update(y_batch, outputs, weight)
        logs.update(tallies.results())
        collected.add(answers, model.road.costs_of_batch(x_batch, rule))
    prediction = _prediction(model, collected)
    results = tallies.results() if tallies is not None else {}
    results["mean_cost"] = prediction.mean_cost
    results["exit_rates"] = prediction.exit_rates.tolist()
    return results


def first_size(x):
    """Number of rows of a batch."""
    return next(t for t in tree.flatten(x) if t is not None).shape[0]


def _answered_batches(model, rule, mode, callbacks, verbose, logs, x, **data):
    """Yields (x, y, sample_weight, answers) of each batch on the dynamic road.

    Args:
        mode: "predict" or "test", whose callbacks are called.
        logs: dict that the consumer fills; callbacks see it at the end of a batch.
        x: what `predict` takes.
        **data: the remaining arguments of `BatchIterator`.
    """
    walk, thresholds = model.road.walk_under(rule, model)
    temperatures = tf.convert_to_tensor(model.calibration_temperatures)
    if x is None:
        raise ValueError("`x` must hold samples, as in `predict`. Received: x=None.")
    if _is_empty(x):
        model.road.check_input(x)
        iterator = []
    else:
        iterator = BatchIterator(x=x, **data)
    if not isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks = keras.callbacks.CallbackList(
            callbacks,
            add_progbar=verbose != 0,
            verbose=verbose,
            epochs=1,
            steps=getattr(iterator, "num_batches", 0),
            model=model,
        )
    begin, batch_begin, batch_end, end = (
        getattr(callbacks, f"on_{mode}_{moment}")
        for moment in ("begin", "batch_begin", "batch_end", "end")
    )
    model.stop_predicting = model.stop_evaluating = False
    begin()
    for step, last_step, batches in iterator:
        batch_begin(step)
        for batch in batches:
            x_batch, y_batch, weight = keras.utils.unpack_x_y_sample_weight(batch)
            if first_size(x_batch) == 0:  # a filtered dataset may hold such
                continue
            answers = walk(x_batch, thresholds, temperatures, model.run_eagerly)
            yield x_batch, y_batch, weight, answers
        batch_end(last_step, dict(logs))
        if model.stop_predicting or model.stop_evaluating:
            break
    end(*([dict(logs)] if mode == "test" else []))


def _is_empty(x):
    """Arrays without any row, which Keras' adapters do not take."""
    flat = [leaf for leaf in tree.flatten(x) if leaf is not None]
    arrays = all(hasattr(leaf, "shape") for leaf in flat)
    return arrays and bool(flat) and all(leaf.shape[:1] == (0,) for leaf in flat)


def _prediction(model, collected):
    final = model.outputs[len(model.exit_names) - 1]
    units = final.shape[-1]
    if not collected.costs:
        columns = {
            "outputs": np.zeros((0, units), final.dtype),
            "probabilities": np.zeros((0, units), "float32"),
            "exit_index": np.zeros((0,), "int32"),
            "confidence": np.zeros((0,), "float32"),
        }
        costs, reference = [np.zeros((0,), "int64")], 1
        segment_rows = np.zeros(len(model.exit_names), "int64")
    else:
        columns = {
            name: np.concatenate([np.asarray(part) for part in parts])
            for name, parts in collected.columns.items()
        }
        segment_rows = np.sum(np.asarray(collected.segment_rows), axis=0, dtype="int64")
        costs, references = [], []
        for exits, saved, known in zip(
            collected.columns["exit_index"],
            collected.saved,
            collected.costs,
            strict=True,
        ):
            full = np.asarray(known.exits, "int64")[np.asarray(exits)]
            costs.append(full - np.rint(np.asarray(saved)).astype("int64"))
            references.append((len(exits), known.reference))
        # Inputs of several sizes have several plain networks to be compared with.
        total = sum(count for count, _ in references)
        reference = sum(count * value for count, value in references) / total
    return DynamicPrediction(
        **columns,
        cost=np.concatenate(costs),
        exit_names=tuple(model.exit_names),
        segment_rows=segment_rows,
        reference_cost=reference,
    )


class _Tallies:
    """The compiled loss and metrics of the final output, on the answers."""

    def __init__(self, final, y, outputs):
        self._loss = loss_for(final["loss"], y, outputs)
        self._loss_sum, self._rows = 0.0, 0
        # Copies: the model's own hold the state of a `fit` that may be under way.
        self._metrics, self._weighted = (
            [metric_for(own_metric(m), y, outputs) for m in final[kind]]
            for kind in ("metrics", "weighted_metrics")
        )

    def update(self, y, outputs, weight):
        rows = outputs.shape[0]
        if self._loss is not None:
            self._loss_sum += rows * float(self._loss(y, outputs, weight))
            self._rows += rows
        for metric in self._metrics:
            metric.update_state(y, outputs)
        for metric in self._weighted:
            metric.update_state(y, outputs, sample_weight=weight)

    def results(self):
        results = {}
        if self._loss is not None:
            results["loss"] = self._loss_sum / self._rows
        for metric in [*self._metrics, *self._weighted]:
            value = metric.result()
            flat = value if isinstance(value, dict) else {metric.name: value}
            for name, number in flat.items():
                name = name if name not in results else f"weighted_{name}"
                results[name] = np.asarray(number).tolist()
        return results
