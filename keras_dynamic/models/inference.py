"""Whole inputs on the dynamic road: batches, callbacks, answers, metrics."""

import contextlib
import dataclasses
import functools

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from keras_dynamic._compat import BatchIterator, absent_as_none
from keras_dynamic.models import rules
from keras_dynamic.models.engine import CompiledWalk
from keras_dynamic.models.feeding import arranged, batches_over
from keras_dynamic.models.joining import Joined, rows_at_once
from keras_dynamic.models.per_exit import target_of_final
from keras_dynamic.models.pools import Pools
from keras_dynamic.models.prediction import DynamicPrediction
from keras_dynamic.models.replicas import has_replicas
from keras_dynamic.models.rows import count_rows
from keras_dynamic.models.saying import check_verbose, say
from keras_dynamic.models.tallies import Tallies

__all__ = ["evaluate_dynamic", "predict_dynamic", "stream_dynamic"]

# From so many batches on, it may pay that survivors of several of them wait.
_LONG = 4


@dataclasses.dataclass(frozen=True)
class _Under:
    """What a call goes by from beginning to end, whatever others set meanwhile.

    Attributes:
        rule: an `ExitRule`.
        asked: numbers of the exits that are asked.
        walk: the walk that asks them.
        knobs: (thresholds, temperatures), tensors.
    """

    rule: rules.ExitRule
    asked: tuple
    walk: CompiledWalk
    knobs: tuple

    def costs(self, model, x):
        """`Costs` of the samples of a batch."""
        return model.road.costs_of_batch(x, self.rule, self.asked)


def _under(model, rule):
    """`_Under` of a rule, or with None of the model's own.

    The closed exits of the model's own rule are passed by. Another rule, given for a
    call, asks all: rules that are tried out one after the other share one walk.
    """
    road = model.road
    with road.lock:
        own = model.exit_rule if rule is None else rules.get(rule)
        asked = road.asked_under(own) if rule is None else road.all_exits
        walk, thresholds = road.walk_under(own, model, asked)
        temperatures = tf.identity(model.calibration_temperatures)
    return _Under(own, asked, walk, (thresholds, temperatures))


class _BatchByBatch:
    """The dynamic road, one batch after the other, and what it answered.

    Args:
        model: a `DynamicModel`.
        under: an `_Under`.
    """

    def __init__(self, model, under):
        self._model, self._under = model, under
        if has_replicas(model) and not model.run_eagerly:
            self._run = model.road.replicated(under.walk, model.distribute_strategy)
        else:
            self._run = functools.partial(under.walk, eagerly=model.run_eagerly)
        self._answers, self._costs = [], []

    def add(self, x):
        """Takes a batch; returns its answers, a dict of tensors."""
        answers = self._run(x, *self._under.knobs)
        self._answers.append(answers)
        costs = self._under.costs(self._model, x)
        self._costs.append((count_rows(x), costs))
        return answers

    def prediction(self):
        names = self._answers[0].keys() - {"segment_rows"}
        columns = {
            name: np.concatenate([np.asarray(each[name]) for each in self._answers])
            for name in names
        }
        segment_rows = [np.asarray(each["segment_rows"]) for each in self._answers]
        segment_rows = np.sum(segment_rows, axis=0, dtype="int64")
        paid = columns["exit_index"]
        return _prediction(self._model, columns, paid, self._costs, segment_rows)

    def close(self):
        pass


class _Pooled:
    """The dynamic road with pools of survivors before each segment.

    Args:
        model: a `DynamicModel`.
        under: an `_Under`.
        x: the first batch.
    """

    def __init__(self, model, under, x):
        self._model, self._under = model, under
        stages = model.road.stages_of(under.walk)
        size = rows_at_once(stages, x)
        self._pools = Pools(stages, size, under.knobs)
        self._joined = Joined(self._pools.add, size)
        self._costs = []

    def add(self, x):
        """Takes a batch, whose answers come later."""
        costs = self._under.costs(self._model, x)
        self._costs.append((count_rows(x), costs))
        self._joined.add(x)

    def prediction(self):
        self._joined.flush()
        columns, rows = self._pools.finish(), self._pools.segment_rows
        paid = columns.pop("paid")
        return _prediction(self._model, columns, paid, self._costs, rows)

    def close(self):
        self._pools.close()

    @property
    def static_rows(self):
        return self._pools.static_rows


def _prediction(model, columns, paid, costs, segment_rows):
    """The `DynamicPrediction` of what was found.

    Args:
        columns: dict of arrays (n, ...), what a walk answers.
        paid: (n,) the exit up to which all was computed.
        costs: list of (rows, `Costs`), one a batch.
        segment_rows: (exits,) int64.
    """
    saved, start = columns.pop("saved", None), 0
    cost = np.zeros(len(paid), "int64")
    for count, known in costs:
        here = slice(start, start := start + count)
        cost[here] = np.asarray(known.exits, "int64")[paid[here]]
    if saved is not None:
        cost -= np.rint(saved).astype("int64")
    # Inputs of several sizes have several plain networks to be compared with.
    reference = sum(count * known.reference for count, known in costs) / start
    return DynamicPrediction(
        **columns,
        cost=cost,
        exit_names=tuple(model.exit_names),
        segment_rows=segment_rows,
        reference_cost=reference,
    )


def predict_dynamic(model, x, batch_size, verbose, steps, callbacks, rule):
    """See `DynamicModel.predict_dynamic`."""
    under = _under(model, rule)
    road, logs = None, {}
    batches = _batches(
        model,
        "predict",
        callbacks,
        verbose,
        logs,
        x=x,
        batch_size=batch_size,
        steps=steps,
    )
    try:
        for x_batch, _, _, is_long in batches:
            if road is None:
                road = _road_for(model, under, x_batch, is_long and callbacks is None)
            answers = road.add(x_batch)
            if answers is not None:
                logs["outputs"] = answers["outputs"]
        prediction = _no_prediction(model) if road is None else road.prediction()
    finally:
        if road is not None:
            road.close()
    _say_if_static(road, verbose)
    return prediction


def stream_dynamic(model, x, batch_size, steps, rule):
    """See `DynamicModel.stream_dynamic`."""
    under = _under(model, rule)
    if x is None:  # at once, and not when the first answer is asked for
        batches_over(x)
    data = {"batch_size": batch_size, "steps": steps}
    batches = _batches(model, "predict", None, 0, {}, x, **data)

    def answers():
        with contextlib.closing(batches):
            for x_batch, *_ in batches:
                road = _BatchByBatch(model, under)
                road.add(x_batch)
                yield road.prediction()

    return answers()


def evaluate_dynamic(
    model, x, y, batch_size, verbose, sample_weight, steps, callbacks, rule
):
    """See `DynamicModel.evaluate_dynamic`."""
    under = _under(model, rule)
    road, tallies, logs = None, None, {}
    batches = _batches(
        model,
        "test",
        callbacks,
        verbose,
        logs,
        x=x,
        y=y,
        sample_weight=sample_weight,
        batch_size=batch_size,
        steps=steps,
    )
    later = []  # targets that wait for the answers
    try:
        for x_batch, y_batch, weight, is_long in batches:
            if y_batch is None:
                raise ValueError(
                    "`y` must be given, by itself or in the batches of `x`, to "
                    f"evaluate. Received: y={y!r}, x of type {type(x)}."
                )
            y_batch = target_of_final(y_batch, model.exit_names)
            if road is None:
                road = _road_for(model, under, x_batch, is_long and callbacks is None)
                tallies = Tallies(model.road.final)
            answers = road.add(x_batch)
            if answers is None:
                later.append((count_rows(x_batch), y_batch, weight))
                continue
            tallies.update(y_batch, answers["outputs"], weight)
            logs.update(tallies.results())
        prediction = _no_prediction(model) if road is None else road.prediction()
    finally:
        if road is not None:
            road.close()
    start = 0
    for count, y_batch, weight in later:
        outputs = tf.constant(prediction.outputs[start : start + count])
        tallies.update(y_batch, outputs, weight)
        start += count
    _say_if_static(road, verbose)
    results = tallies.results() if tallies is not None else {}
    results["mean_cost"] = prediction.mean_cost
    results["exit_rates"] = prediction.exit_rates.tolist()
    return results


def _road_for(model, under, x, may_wait):
    """The way to answer batches like `x`, the first one."""
    together = under.walk.depth > 1 and not model.run_eagerly
    if may_wait and together and not has_replicas(model):
        return _Pooled(model, under, x)
    return _BatchByBatch(model, under)


def _say_if_static(road, verbose):
    """Says that early exits do not pay, where they were found not to."""
    rows = getattr(road, "static_rows", 0)
    if rows and verbose:
        say(
            f"Leaving early takes longer here than computing everything: {rows} "
            "samples went through the whole network at once. Their answers are the "
            "same; their `cost` is that of all exits."
        )


def _batches(model, mode, callbacks, verbose, logs, x, **data):
    """Yields (x, y, sample_weight, is_long) of each batch, callbacks around it.

    `is_long` says that there are many batches, as far as that is known.

    Args:
        mode: "predict" or "test", whose callbacks are called.
        logs: dict that the consumer fills; callbacks see it at the end of a batch.
        x: what `predict` takes.
        **data: the remaining arguments of `batches_over`.
    """
    check_verbose(verbose)
    if _is_empty(x):
        model.road.check_input(x)
        iterator = []
    else:
        iterator = batches_over(x, **data)
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
    number = getattr(iterator, "num_batches", 0)
    is_long = number is None or number >= _LONG
    begin()
    finished = False
    try:
        for step, last_step, batches in iterator:
            batch_begin(step)
            for batch in batches:
                x_batch, y_batch, weight = keras.utils.unpack_x_y_sample_weight(
                    absent_as_none(batch)
                )
                x_batch = arranged(model.input, x_batch)
                if count_rows(x_batch) == 0:  # a filtered dataset may hold such
                    continue
                yield x_batch, y_batch, weight, is_long
            batch_end(last_step, dict(logs))
            if model.stop_predicting or model.stop_evaluating:
                break
        finished = True
    finally:
        if not finished and isinstance(iterator, BatchIterator):
            iterator.abandon()
    end(*([dict(logs)] if mode == "test" else []))


def _is_empty(x):
    """Arrays without any row, which Keras' adapters do not take."""
    flat = [leaf for leaf in tree.flatten(x) if leaf is not None]
    arrays = all(hasattr(leaf, "shape") for leaf in flat)
    return arrays and bool(flat) and all(leaf.shape[:1] == (0,) for leaf in flat)


def _no_prediction(model):
    """The prediction for no samples."""
    final = model.outputs[len(model.exit_names) - 1]
    units = final.shape[-1]
    return DynamicPrediction(
        outputs=np.zeros((0, units), final.dtype),
        probabilities=np.zeros((0, units), "float32"),
        exit_index=np.zeros((0,), "int32"),
        confidence=np.zeros((0,), "float32"),
        cost=np.zeros((0,), "int64"),
        exit_names=tuple(model.exit_names),
        segment_rows=np.zeros(len(model.exit_names), "int64"),
        reference_cost=1,
    )
