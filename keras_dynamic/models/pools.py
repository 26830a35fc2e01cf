"""Stage pools: survivors of several batches wait until a segment is worth running.

A deep segment that few samples reach would run on a handful of rows of each batch, for
which a machine needs almost as long as for many. So those who stay wait at the next
segment, and it runs when enough have come. Every sample keeps its number, by which the
answers are put in order in the end.

A pool never holds more than twice the rows of a batch.

What waits is passed from function to function as a tuple, called `parts`:

    moving  list of tensors (rows, ...), the live values that carry the batch
    masks   list of the masks (rows, ...) that some of them carry
    whole   list of tensors, the live values without a batch axis
    rows    (rows,) int64, the samples' numbers
    state   dict of tensors (rows, ...): the rule's memory, whether a row is broken, and
            what gates have saved
"""

import threading
import time

import numpy as np
import tensorflow as tf
from keras import tree

from keras_dynamic._compat import keep_mask, kept_mask, set_mask
from keras_dynamic.models.engine import score_exit, who_leaves
from keras_dynamic.models.gates import run_counted
from keras_dynamic.models.graph import run_steps
from keras_dynamic.models.timing import median_time

__all__ = ["Pools", "StageFunctions"]

# From so many rows on, a segment's time for one row hardly falls any more.
_ENOUGH = 32
# Seconds of work, and more for each step of the graph, which XLA has to compile, after
# which it is worth the time to compile segments and compare.
_TRIAL_AFTER, _TRIAL_AFTER_STEP = 3.0, 0.1


class StageFunctions:
    """The segments of a walk as compiled functions, each for the rows at its door.

    Args:
        walk: a `Walk`.
    """

    def __init__(self, walk):
        self.walk = walk
        self._functions = {}
        self._compiled = {}
        # (rows of a batch, kinds of its tensors) to the segments that XLA runs faster.
        self._faster = {}
        self._lock = threading.RLock()
        self.seconds = 0.0  # spent in them so far
        steps = sum(len(segment.steps) for segment in walk.segments)
        self.trial_after = _TRIAL_AFTER + _TRIAL_AFTER_STEP * steps
        self._masked, self._absent = {}, {}

    def first(self, x, number, knobs, size=None):
        """Runs the first segment on a batch.

        Args:
            x: a batch, as the model takes it.
            number: int, that of its first sample.
            knobs: (thresholds, temperatures).
            size: int, the rows of the batch, to have XLA run it. Defaults to `None`.

        Returns:
            (found, parts): the answers of those who leave, and the others.
        """
        given = [tensor for tensor in tree.flatten(x) if tensor is not None]
        key = (size, *self.kind_of(x))
        if key not in self._functions:

            def start(given, number, thresholds, temperatures):
                values, state, count = self.walk.start(_like(x, given), thresholds)
                rows = number + tf.range(tf.cast(count, tf.int64))
                knobs = thresholds, temperatures
                return self._stage(0, values, rows, state, knobs, size)

            specs = [tf.TensorSpec([size, *t.shape[1:]], t.dtype) for t in given]
            self._functions[key] = self._traced(
                start, specs, tf.TensorSpec([], tf.int64)
            )
        number = tf.constant(number, tf.int64)
        return self._functions[key](given, number, *knobs)

    def later(self, index, parts, knobs, size=None):
        """Runs segment `index` on rows that waited for it; returns as `first`."""
        key = (index, size, *map(_kind, tree.flatten(parts)))
        if key not in self._functions:

            def go_on(parts, thresholds, temperatures):
                moving, masks, whole, rows, state = parts
                values = self._unpacked(index - 1, moving, masks, whole)
                knobs = thresholds, temperatures
                return self._stage(index, values, rows, state, knobs, size)

            moving, masks, whole, rows, state = tf.nest.map_structure(
                lambda t: tf.TensorSpec([size, *t.shape[1:]], t.dtype), parts
            )
            whole = [tf.TensorSpec(t.shape, t.dtype) for t in parts[2]]
            self._functions[key] = self._traced(
                go_on, (moving, masks, whole, rows, state)
            )
        return self._functions[key](parts, *knobs)

    def kind_of(self, x):
        """What distinguishes batches that need functions of their own."""
        flat = tree.flatten(x)
        absent = str(tree.map_structure(lambda t: t is None, x))
        return absent, *(_kind(t) for t in flat if t is not None)

    def faster_compiled(self, x, knobs):
        """The segments that XLA runs faster on full batches like `x`, measured once."""
        key = (_count(x), *self.kind_of(x))
        with self._lock:
            if key not in self._faster:
                self._faster[key] = frozenset(self._measured(x, knobs))
            return self._faster[key]

    def known_faster(self, x):
        """What `faster_compiled` found, if it was asked."""
        return self._faster.get((_count(x), *self.kind_of(x)), frozenset())

    def _measured(self, x, knobs):
        """Yields the segments that XLA runs faster; nobody leaves meanwhile."""
        if self.walk.has_gates:
            return  # under XLA closed gates save nothing
        values, _, _ = self.walk.start(x, knobs[0])
        for index in range(len(self.walk.segments)):
            own, compiled = self._core(index, False), self._core(index, True)
            fed = self._fed(index, values)
            try:
                seconds = _seconds(compiled, fed)
            except (tf.errors.OpError, ValueError):  # an operation that XLA lacks
                seconds = float("inf")
            if seconds < _seconds(own, fed):
                yield index
            self._take(index, values, own(*fed))

    def _fed(self, index, values):
        """(tensors, masks), what `_core` takes."""
        tensors = [values[value] for value in self.walk.segments[index].inputs]
        return tensors, [None if t is None else kept_mask(t) for t in tensors]

    def _take(self, index, values, results):
        """Adds what `_core` gave to `values`."""
        for value, tensor, mask in zip(self._made(index), *results, strict=True):
            values[value] = _with_mask(tensor, mask)

    def _made(self, index):
        """What a segment hands on: its exit, and what it adds to the live values."""
        segment = self.walk.segments[index]
        made = {value for step in segment.steps for value in step.outputs}
        return list(
            dict.fromkeys([segment.exit, *(v for v in segment.live if v in made)])
        )

    def _core(self, index, jit):
        """The segment's own calls, as a function of lists of tensors and masks."""
        key = (index, jit)
        if key not in self._compiled:
            segment = self.walk.segments[index]

            def core(tensors, masks):
                values = {
                    value: _with_mask(tensor, mask)
                    for value, tensor, mask in zip(
                        segment.inputs, tensors, masks, strict=True
                    )
                }
                run_steps(segment.steps, values)
                made = [values[value] for value in self._made(index)]
                return made, [kept_mask(tensor) for tensor in made]

            self._compiled[key] = tf.function(core, autograph=False, jit_compile=jit)
        return self._compiled[key]

    def _traced(self, function, *specs):
        exits = len(self.walk.segments)
        return tf.function(function, autograph=False).get_concrete_function(
            *specs,
            tf.TensorSpec([exits - 1], tf.float32),
            tf.TensorSpec([exits], tf.float32),
        )

    def _stage(self, index, values, rows, state, knobs, size):
        walk, last = self.walk, len(self.walk.segments) - 1
        thresholds, temperatures = knobs
        rule = walk.rule.bind(thresholds)
        segment, values = walk.segments[index], dict(values)
        if walk.has_gates:
            saved = run_counted(segment.steps, values, tf.size(rows))
            state = {**state, "saved": state["saved"] + saved}
        elif size is None:
            run_steps(segment.steps, values)
        else:
            compiled = self._core(index, True)
            self._take(index, values, compiled(*self._fed(index, values)))
        outputs = values[segment.exit]
        probabilities, score, memory = score_exit(
            rule,
            state["memory"],
            state["broken"],
            outputs,
            walk.kinds[index],
            temperatures[index],
            index,
        )
        found = {
            **({"saved": state["saved"]} if walk.has_gates else {}),
            "outputs": outputs,
            "probabilities": probabilities,
            "confidence": score,
            "rows": rows,
        }
        if index == last:
            return found, None
        leaves = who_leaves(rule, score, index)
        here, staying = tf.where(leaves)[:, 0], tf.where(~leaves)[:, 0]
        moving, masks, whole = self._packed(index, values)
        found = tf.nest.map_structure(lambda t: tf.gather(t, here), found)
        stayers = (moving, masks, rows, {**state, "memory": memory})
        moving, masks, rows, state = tf.cond(
            tf.equal(tf.size(staying), tf.size(rows)),
            lambda: tf.nest.map_structure(tf.identity, stayers),
            lambda: tf.nest.map_structure(lambda t: tf.gather(t, staying), stayers),
        )
        return found, (moving, masks, whole, rows, state)

    def _packed(self, index, values):
        live = self.walk.segments[index].live
        moving = [values[v] for v in live if v.batched and values[v] is not None]
        whole = [values[v] for v in live if not v.batched and values[v] is not None]
        masks = [m for m in map(kept_mask, moving) if m is not None]
        self._masked[index] = [kept_mask(t) is not None for t in moving]
        self._absent[index] = [values[v] is None for v in live]
        return moving, masks, whole

    def _unpacked(self, index, moving, masks, whole):
        live = self.walk.segments[index].live
        moving, masks, whole = iter(moving), iter(masks), iter(whole)
        masked = iter(self._masked[index])
        values = {}
        for value, absent in zip(live, self._absent[index], strict=True):
            if absent:
                values[value] = None
            elif not value.batched:
                values[value] = next(whole)
            else:
                tensor = next(moving)
                values[value] = _with_mask(
                    tensor, next(masks) if next(masked) else None
                )
        return values


class Pools:
    """The rows that wait at each segment, and the answers so far.

    Args:
        functions: `StageFunctions`.
        size: int, rows of a full batch.
        knobs: (thresholds, temperatures).
    """

    def __init__(self, functions, size, knobs):
        self.functions, self.size, self.knobs = functions, size, knobs
        segments = len(functions.walk.segments)
        self.segment_rows = np.zeros(segments, "int64")
        self._waiting = [[] for _ in range(segments)]
        self._counts = [0] * segments
        self._found = []
        self._number = 0
        self._compiled = None

    def add(self, x):
        """Takes a batch; what is worth running runs."""
        start, count = time.perf_counter(), _count(x)
        is_full = count == self.size
        if self._compiled is None:
            self._compiled = self.functions.known_faster(x) if is_full else frozenset()
        size = count if is_full and 0 in self._compiled else None
        answered = self.functions.first(x, self._number, self.knobs, size)
        self._number += count
        self._note(0, count, *answered)
        self.functions.seconds += time.perf_counter() - start
        if is_full and self.functions.seconds > self.functions.trial_after:
            self._compiled = self.functions.faster_compiled(x, self.knobs)

    def finish(self):
        """Runs all that waits.

        Returns:
            A dict of arrays in the order of the samples: outputs, probabilities,
            exit_index, confidence, and with gates in the graph saved.
        """
        for index in range(1, len(self._waiting)):
            if self._counts[index]:
                self._run(index)
        rows = np.concatenate([found["rows"].numpy() for _, found in self._found])
        order = np.argsort(rows)
        exits = [np.full(len(f["rows"]), index) for index, f in self._found]
        columns = {"exit_index": np.concatenate(exits).astype("int32")[order]}
        for name in self._found[0][1].keys() - {"rows"}:
            parts = [found[name].numpy() for _, found in self._found]
            columns[name] = np.concatenate(parts)[order]
        return columns

    def _note(self, index, count, found, stayers):
        """Keeps the answers found, and sends the others to the next segment."""
        self.segment_rows[index] += count
        self._found.append((index, found))
        following = index + 1
        if stayers is None or not (staying := stayers[3].shape[0]):
            return
        self._waiting[following].append(stayers)
        self._counts[following] += staying
        if following in self._compiled:
            while self._counts[following] >= self.size:
                self._run(following, self.size)
        elif self._counts[following] >= min(self.size, _ENOUGH):
            self._run(following)

    def _run(self, index, size=None):
        """Runs a segment on all that waits, or on `size` rows as XLA compiled it."""
        chunks, count = self._waiting[index], self._counts[index]
        parts = chunks[0] if len(chunks) == 1 else _joined(chunks)
        self._waiting[index], self._counts[index] = [], 0
        if size is not None and count > size:
            self._waiting[index] = [_sliced(parts, slice(size, None))]
            self._counts[index] = count - size
            parts, count = _sliced(parts, slice(0, size)), size
        self._note(index, count, *self.functions.later(index, parts, self.knobs, size))


def _joined(chunks):
    moving, masks, _, rows, state = zip(*chunks, strict=True)

    def join(*tensors):
        return tf.concat(tensors, axis=0)

    return (
        [join(*tensors) for tensors in zip(*moving, strict=True)],
        [join(*tensors) for tensors in zip(*masks, strict=True)],
        chunks[-1][2],
        join(*rows),
        tf.nest.map_structure(join, *state),
    )


def _sliced(parts, which):
    moving, masks, whole, rows, state = parts
    moving, masks, rows, state = tf.nest.map_structure(
        lambda tensor: tensor[which], (moving, masks, rows, state)
    )
    return moving, masks, whole, rows, state


def _kind(tensor):
    return (tensor.dtype, *tensor.shape[1:])


def _with_mask(tensor, mask):
    if mask is not None:
        tensor = set_mask(tensor, mask)
        keep_mask(tensor)
    return tensor


def _like(x, given):
    given = iter(given)
    filled = [None if tensor is None else next(given) for tensor in tree.flatten(x)]
    return tree.pack_sequence_as(x, filled)


def _count(x):
    return next(t for t in tree.flatten(x) if t is not None).shape[0]


def _seconds(function, fed):
    return median_time(lambda: function(*fed)[0][0], repeats=5)
