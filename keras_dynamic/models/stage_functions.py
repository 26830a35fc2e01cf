"""The segments of a walk as compiled functions, for rows that come from many batches.

TensorFlow's own kernels run any number of rows. XLA compiles for one number of rows,
that of a full batch, and is taken for the segments where it measures faster.
"""

import dataclasses
import threading

import numpy as np
import tensorflow as tf
from keras import tree

from keras_dynamic._compat import (
    changes_variables,
    frozen,
    keep_mask,
    kept_mask,
    set_mask,
)
from keras_dynamic.models.engine import Walk
from keras_dynamic.models.graph import run_steps
from keras_dynamic.models.rows import count_rows
from keras_dynamic.models.timing import Pace, median_time

__all__ = ["StageFunctions", "Waiting"]

# Bytes of weights that are made constants of a function at most.
_MOST_FROZEN = 2**28


@dataclasses.dataclass(frozen=True)
class Waiting:
    """Rows that wait for a segment, all that they take with them.

    Attributes:
        form: hashable; rows of one form can go on together.
        moving: list of tensors (rows, ...), the live values that carry the batch.
        masks: list of the masks (rows, ...) that some of them carry.
        whole: list of tensors, the live values without a batch axis.
        rows: (rows,) int64, the samples' numbers.
        state: dict of tensors (rows, ...): what the walk knows of each row.
    """

    form: tuple
    moving: list
    masks: list
    whole: list
    rows: tf.Tensor
    state: dict

    @property
    def tensors(self):
        return self.moving, self.masks, self.whole, self.rows, self.state

    def with_rows(self, change, *others):
        """A twin whose tensors with rows are `change` of those of this and others."""
        given = [(w.moving, w.masks, w.rows, w.state) for w in (self, *others)]
        moving, masks, rows, state = tf.nest.map_structure(change, *given)
        return Waiting(self.form, moving, masks, self.whole, rows, state)


class StageFunctions:
    """The segments of a walk as compiled functions, each for the rows at its door.

    Args:
        walk: a `Walk` or `SelectedWalk`.
    """

    def __init__(self, walk):
        self.walk = walk
        self.last = walk.depth - 1
        self.pace = Pace()
        sizes = [size for value in walk.inputs for size in value.spec.shape[1:]]
        # With gates sizes are not left open, since they say what a closed one saves.
        self.sizes_differ = None in sizes
        self.open = self.sizes_differ and not walk.has_gates
        self.can_be_static = isinstance(walk, Walk) and not (
            walk.has_gates or self.open
        )
        self._functions, self._cores, self._frozen, self._values = {}, {}, {}, {}
        # Whether a layer assigns to a variable, and two batches must not do so at once.
        self.freezes = self.in_turns = False
        self._faster, self._static = {}, {}
        self._lock = threading.RLock()
        self.steps = sum(len(walk.trunk(n).steps) for n in range(self.last + 1))

    def first(self, x, number, knobs, size=None):
        """The first segment on a batch, ready to run (in any thread).

        Args:
            x: a batch, as the model takes it.
            number: int, that of its first sample.
            knobs: (thresholds, temperatures).
            size: int, the rows of the batch, to have XLA run it. Defaults to `None`.

        Returns:
            A function without arguments that gives (found, waiting): the answers of
            those who leave, and the others, a `Waiting` or None.
        """
        given, specs = self._given(x, size)

        def start(given, number, *knobs):
            values, state, count = self.walk.start(_like(x, given), knobs)
            rows = number + tf.range(tf.cast(count, tf.int64))
            return self._stage(0, values, state, rows, knobs, size)

        key = 0, size, *map(str, specs), self.kind_of(x)[0]
        stage = self._stage_for(key, start, specs, tf.TensorSpec([], tf.int64))
        number = tf.constant(number, tf.int64)
        return lambda: self._answered(stage, given, number, *knobs)

    def later(self, index, waiting, knobs, size=None):
        """Runs segment `index` on rows that waited for it; gives what `first` gives."""
        absent, masked, *_ = waiting.form

        def go_on(tensors, *knobs):
            *packed, rows, state = tensors
            values = self._unpacked(index - 1, absent, masked, *packed)
            return self._stage(index, values, state, rows, knobs, size)

        # Where sizes are open, one function serves all of them.
        key = index, size, *((absent, masked) if self.open else waiting.form)
        specs = ()
        if key not in self._functions:
            specs = (self._specs_of_waiting(index - 1, waiting, size),)
        stage = self._stage_for(key, go_on, *specs)
        return self._answered(stage, waiting.tensors, *knobs)

    def static(self, x, number, knobs, jit=False):
        """Every segment on every row and then the exits, ready to run; as `first`."""
        given, specs = self._given(x, count_rows(x) if jit else None)

        def run(given, number, *knobs):
            values, state, count = self.walk.start(_like(x, given), knobs)
            answers = {"rows": number + tf.range(tf.cast(count, tf.int64))}
            gone = tf.zeros([count], tf.bool)
            for index in range(self.last + 1):
                values, state, found, leaves = self.walk.ask(
                    index, values, state, knobs
                )
                for name, tensor in found.items():
                    kept = answers.get(name, tensor)
                    stays = tf.reshape(gone, [-1] + [1] * (len(tensor.shape) - 1))
                    answers[name] = tf.where(stays, kept, tensor)
                gone |= leaves
            return answers, None, None

        key = "static", count_rows(x) if jit else None, *self.kind_of(x)
        stage = self._stage_for(key, run, specs, tf.TensorSpec([], tf.int64), jit=jit)
        number = tf.constant(number, tf.int64)
        return lambda: self._answered(stage, given, number, *knobs)

    def thaw_if_changed(self):
        """Forgets what was frozen if a weight has another value since."""
        with self._lock:
            for variable, value in self._values.values():
                if not _equal(variable.numpy(), value):
                    self._frozen, self._values = {}, {}
                    self.freezes, self.pace.seconds = False, 0.0
                    return

    def kind_of(self, x):
        """What distinguishes batches that need functions of their own."""
        flat = tree.flatten(x)
        absent = str(tree.map_structure(lambda t: t is None, x))
        return absent, *(_kind(t) for t in flat if t is not None)

    def faster_compiled(self, x, knobs, measure=True):
        """The segments that XLA runs faster on full batches like `x`.

        Args:
            measure: whether to find out, once, where it is not known yet.
        """
        key = count_rows(x), *self.kind_of(x)
        if not measure:
            return self._faster.get(key, frozenset())
        with self._lock:
            if key not in self._faster:
                self._faster[key] = frozenset(self._measured(x, knobs))
            return self._faster[key]

    def static_seconds(self, x, knobs):
        """(seconds, jit) of `static` on a batch like `x`, the better of two ways."""
        key = count_rows(x), *self.kind_of(x)
        with self._lock:
            if key not in self._static:
                ways = []
                for jit in (False, True):
                    try:
                        run = self.static(x, 0, knobs, jit)
                        seconds = median_time(lambda run=run: run()[0]["outputs"], 5)
                        ways.append((seconds, jit))
                    except (tf.errors.OpError, ValueError):  # XLA lacks an operation
                        continue
                self._static[key] = min(ways)
            return self._static[key]

    def _measured(self, x, knobs):
        """Yields the segments with layers that XLA runs faster; nobody leaves."""
        if self.walk.has_gates or self.open:
            return  # under XLA closed gates save nothing, and every size is compiled
        values, _, _ = self.walk.start(x, knobs)
        for index in (k for k in range(self.last + 1) if self.walk.trunk(k).made):
            fed = self._fed(index, values)
            compiled = self._core(index, True)
            own = self._as_frozen(self._core(index, False).get_concrete_function(*fed))
            try:
                seconds = _seconds(compiled, fed)
            except (tf.errors.OpError, ValueError):  # an operation that XLA lacks
                seconds = float("inf")
            if seconds < _seconds(own, fed):
                yield index
            self._take(index, values, self._core(index, False)(*fed))

    def _fed(self, index, values):
        """(tensors, masks), what `_core` takes."""
        tensors = [values[value] for value in self.walk.trunk(index).read]
        return tensors, [None if t is None else kept_mask(t) for t in tensors]

    def _take(self, index, values, results):
        """Adds what `_core` gave to `values`."""
        made = self.walk.trunk(index).made
        for value, tensor, mask in zip(made, *results, strict=True):
            values[value] = _with_mask(tensor, mask)

    def _core(self, index, jit):
        """The segment's own calls, as a function of lists of tensors and masks."""
        key = (index, jit)
        if key not in self._cores:
            trunk = self.walk.trunk(index)

            def core(tensors, masks):
                given = zip(trunk.read, tensors, masks, strict=True)
                values = {value: _with_mask(*pair) for value, *pair in given}
                run_steps(trunk.steps, values)
                made = [values[value] for value in trunk.made]
                return made, [kept_mask(tensor) for tensor in made]

            self._cores[key] = tf.function(core, autograph=False, jit_compile=jit)
        return self._cores[key]

    def _stage_for(self, key, function, *specs, jit=False):
        """(key, compiled function, its note), traced once for each key.

        Args:
            key: its second entry is a number of rows where XLA has a hand in it.
            function: gives (found, tensors, note): what is not a tensor is noted when
                it is traced.
        """
        if key not in self._functions:
            note = []

            def traced(*given):
                found, tensors, kept = function(*given)
                note.append(kept)
                return found, tensors

            exits = len(self.walk.exits)
            concrete = tf.function(
                traced, autograph=False, jit_compile=jit
            ).get_concrete_function(
                *specs,
                tf.TensorSpec([exits - 1], tf.float32),
                tf.TensorSpec([exits], tf.float32),
            )
            self.in_turns |= changes_variables(concrete)
            self._functions[key] = key, concrete, note[-1]
        stage = self._functions[key]
        if self.freezes and not key[1] and key not in self._frozen:
            with self._lock:  # no weight is found changed meanwhile
                self._frozen[key] = self._as_frozen(stage[1])
        return stage

    def _as_frozen(self, function):
        """`function` with constants for its weights, if that can be."""
        variables = function.graph.variables
        total = sum(np.prod(v.shape) * v.dtype.size for v in variables)
        if total > _MOST_FROZEN or changes_variables(function):
            return function
        values = {id(v): (v, v.numpy()) for v in variables}
        for name, (_, value) in values.items():
            if name in self._values and not _equal(self._values[name][1], value):
                self._frozen, self._values = {}, {}  # changed since others were frozen
                break
        self._values.update(values)
        return frozen(function)

    def _meaning(self, whole):
        """What tells a value without a batch axis from those of other batches.

        It may follow from the sizes of its batch, where these are open.
        """
        content = whole.numpy().tobytes() if self.sizes_differ else None
        return tuple(whole.shape), content

    def _answered(self, stage, *given):
        """Calls a stage: (found, waiting)."""
        key, function, note = stage
        found, tensors = self._frozen.get(key, function)(*given)
        if tensors is None:
            return found, None
        moving, masks, whole, rows, state = tensors
        form = (*note, *map(_kind, moving), *map(self._meaning, whole))
        return found, Waiting(form, moving, masks, whole, rows, state)

    def _stage(self, index, values, state, rows, knobs, size):
        """(found, tensors, note) of those who leave and those who stay."""

        def run(values):
            compiled = self._core(index, True)
            self._take(index, values, compiled(*self._fed(index, values)))

        values, state, found, stays = self.walk.advance(
            index, values, state, rows, knobs, None if size is None else run
        )
        if index == self.last:
            return found, None, None
        live = self.walk.live(index)
        present = [v for v in live if values[v] is not None]
        moving = [values[v] for v in present if v.batched]
        whole = [values[v] for v in present if not v.batched]
        masks = [m for m in map(kept_mask, moving) if m is not None]
        absent = tuple(values[v] is None for v in live)
        masked = tuple(kept_mask(tensor) is not None for tensor in moving)
        staying = tf.where(stays)[:, 0]
        stayers = (moving, masks, rows, state)
        moving, masks, rows, state = tf.cond(
            tf.equal(tf.size(staying), tf.size(rows)),
            lambda: tf.nest.map_structure(tf.identity, stayers),
            lambda: tf.nest.map_structure(lambda t: tf.gather(t, staying), stayers),
        )
        return found, (moving, masks, whole, rows, state), (absent, masked)

    def _unpacked(self, index, absent, masked, moving, masks, whole):
        moving, masks, whole = iter(moving), iter(masks), iter(whole)
        masked, values = iter(masked), {}
        for value, missing in zip(self.walk.live(index), absent, strict=True):
            if missing:
                values[value] = None
            elif not value.batched:
                values[value] = next(whole)
            else:
                tensor = next(moving)
                mask = next(masks) if next(masked) else None
                values[value] = _with_mask(tensor, mask)
        return values

    def _given(self, x, size):
        """The tensors of a batch, and their specs."""
        given = [tensor for tensor in tree.flatten(x) if tensor is not None]
        return given, [self._spec(tensor, size) for tensor in given]

    def _specs_of_waiting(self, index, waiting, size):
        moving, masks, whole, rows, state = waiting.tensors
        known = tf.nest.map_structure(
            lambda t: tf.TensorSpec([size, *t.shape[1:]], t.dtype), (rows, state)
        )
        if not self.open:
            whole = [tf.TensorSpec(t.shape, t.dtype) for t in whole]
        else:
            whole = [tf.TensorSpec([None] * len(t.shape), t.dtype) for t in whole]
        specs = [self._spec(tensor, size) for tensor in moving]
        if self.open:
            absent = waiting.form[0]
            live = zip(self.walk.live(index), absent, strict=True)
            values = [v for v, missing in live if v.batched and not missing]
            specs = [
                tf.TensorSpec([size, *v.spec.shape[1:]], v.spec.dtype) for v in values
            ]
        return specs, [self._spec(mask, size) for mask in masks], whole, *known

    def _spec(self, tensor, size):
        inner = [None] * (len(tensor.shape) - 1) if self.open else tensor.shape[1:]
        return tf.TensorSpec([size, *inner], tensor.dtype)


def _equal(one, other):
    return one.tobytes() == other.tobytes()


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


def _seconds(function, fed):
    return median_time(lambda: function(*fed)[0][0], repeats=5)
