"""Stage pools: survivors of several batches wait until a segment is worth running.

A deep segment that few samples reach would run on a handful of rows of each batch, for
which a machine needs almost as long as for many. So those who stay wait at the next
segment, and it runs when enough have come. Every sample keeps its number, by which the
answers are put in order in the end.

At no segment more than twice the rows of a batch wait.
"""

import collections
import time
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import tensorflow as tf

from keras_dynamic.models.rows import count_rows

__all__ = ["Pools"]

# From so many rows on, a segment's time for one row hardly falls any more.
_ENOUGH = 32
# Seconds of work, and more for each step of the graph, which XLA has to compile, after
# which it is worth the time to compile segments and compare.
_TRIAL_AFTER, _TRIAL_AFTER_STEP = 3.0, 0.1
# The same for weights as constants, which lets TensorFlow fold some away.
_FREEZE_AFTER, _FREEZE_AFTER_STEP = 0.5, 0.01
# Kinds of batches and thresholds of which is known how long they take, at most.
_MOST_KEPT = 256
# First segments that run while later ones do.
_AHEAD = 2
# One for all calls, since TensorFlow keeps something for ever of every thread that it
# has run in. Threads are started as they are needed.
_THREADS = ThreadPoolExecutor(thread_name_prefix="keras_dynamic")


class Pools:
    """The rows that wait at each segment, and the answers so far.

    Args:
        functions: `StageFunctions`.
        size: int, rows of a full batch.
        knobs: (thresholds, temperatures).

    Attributes:
        segment_rows: (exits,) int64, how many rows each segment computed.
        static_rows: int, how many rows went through the whole network at once, since
            that is faster.
    """

    def __init__(self, functions, size, knobs):
        self.functions, self.size, self.knobs = functions, size, knobs
        self.segment_rows = np.zeros(len(functions.walk.exits), "int64")
        self.static_rows = 0
        segments = functions.walk.depth
        self._trial_after = _TRIAL_AFTER + _TRIAL_AFTER_STEP * functions.steps
        self._freeze_after = _FREEZE_AFTER + _FREEZE_AFTER_STEP * functions.steps
        functions.thaw_if_changed()
        self._waiting = [collections.defaultdict(list) for _ in range(segments)]
        self._counts = [collections.Counter() for _ in range(segments)]
        self._found, self._number = [], 0
        self._compiled, self._key, self._static_way = frozenset(), None, None
        self._compared = False
        self._ahead = collections.deque()

    def add(self, x):
        """Takes a batch; what is worth running runs."""
        start, count = time.perf_counter(), count_rows(x)
        is_full = count == self.size
        if self._key is None and is_full:
            self._compiled = self.functions.faster_compiled(x, self.knobs, False)
            knobs = [knob.numpy().tobytes() for knob in self.knobs]
            self._key = self.functions.kind_of(x), *knobs
            self._static_way = self.functions.pace.static_ways.get(self._key)
        given, is_static = (x, self._number, self.knobs), self._static_way is not None
        if is_static:
            run = self.functions.static(*given, jit=self._static_way and is_full)
        else:
            size = count if is_full and 0 in self._compiled else None
            run = self.functions.first(*given, size)
        self._ahead.append((is_static, count, _THREADS.submit(run)))
        self._number += count
        self._take_in(0 if self.functions.in_turns else _AHEAD)
        if is_full and not is_static:
            self._look_for_better(x, time.perf_counter() - start, count)

    def finish(self):
        """Runs all that waits.

        Returns:
            A dict of arrays in the order of the samples: outputs, probabilities,
            exit_index, confidence, paid (the exit up to which all was computed), and
            with gates in the graph saved.
        """
        self._take_in(0)
        self.close()
        for index in range(1, len(self._waiting)):
            for form in list(self._waiting[index]):
                self._run(index, form)
        columns = {}
        while self._found:  # each part is let go once its rows are in their places
            found = self._found.pop()
            rows = found.pop("rows").numpy()
            for name, tensor in found.items():
                part = tensor.numpy()
                shape = (self._number, *part.shape[1:])
                if name not in columns:
                    columns[name] = np.empty(shape, part.dtype)
                columns[name][rows] = part
        return columns

    def close(self):
        """Ends what runs ahead: what is begun is waited for, the rest not begun."""
        begun = [future for *_, future in self._ahead if not future.cancel()]
        wait(begun)
        self._ahead.clear()

    def _take_in(self, ahead):
        """Takes what first segments found, but for the `ahead` that came last."""
        while len(self._ahead) > ahead:
            is_static, count, future = self._ahead.popleft()
            found, waiting = future.result()
            if is_static:
                last = len(self.segment_rows) - 1
                self.segment_rows += count
                self.static_rows += count
                self._found.append({**found, "paid": tf.fill([count], last)})
            else:
                self._note(0, count, found, waiting)

    def _note(self, index, count, found, waiting):
        """Keeps the answers found, and sends the others to the next segment."""
        for number in self.functions.walk.covers[index]:
            self.segment_rows[number] += count
        self._found.append({**found, "paid": found["exit_index"]})
        following = index + 1
        if waiting is None or not (staying := waiting.rows.shape[0]):
            return
        form = waiting.form
        self._waiting[following][form].append(waiting)
        self._counts[following][form] += staying
        counts = self._counts[following]
        if following in self._compiled:
            while counts[form] >= self.size:
                self._run(following, form, self.size)
        elif counts[form] >= min(self.size, _ENOUGH):
            self._run(following, form)
        if counts.total() > 2 * self.size:  # many forms, with a few rows each
            self._run(following, counts.most_common(1)[0][0])

    def _run(self, index, form, size=None):
        """Runs a segment on all that waits in one form, or on `size` rows by XLA."""
        chunk, *others = self._waiting[index].pop(form)
        count = self._counts[index].pop(form)
        if others:
            chunk = chunk.with_rows(lambda *parts: tf.concat(parts, axis=0), *others)
        if size is not None and count > size:
            rest = chunk.with_rows(lambda tensor: tensor[size:])
            self._waiting[index][form] = [rest]
            self._counts[index][form] = count - size
            chunk, count = chunk.with_rows(lambda tensor: tensor[:size]), size
        answered = self.functions.later(index, chunk, self.knobs, size)
        self._note(index, count, *answered)

    def _look_for_better(self, x, seconds, rows):
        """Compares, once there was so much work that it pays, ways to run segments."""
        functions, pace = self.functions, self.functions.pace
        pace.seconds += seconds
        functions.freezes = pace.seconds > self._freeze_after
        if pace.seconds < self._trial_after:
            return
        if not self._compared:
            self._take_in(0)  # nobody else works while there is measured
            self._compiled = functions.faster_compiled(x, self.knobs)
            self._compared = True
        if not functions.can_be_static or self._key in pace.static_ways:
            return
        if len(pace.walked) > _MOST_KEPT:
            pace.walked.clear()
            pace.static_ways.clear()
        walked = pace.walked[self._key]
        walked += seconds, rows
        if walked[0] > self._trial_after:
            self._take_in(0)
            whole, jit = functions.static_seconds(x, self.knobs)
            wins = whole / rows < walked[0] / walked[1]
            pace.static_ways[self._key] = self._static_way = jit if wins else None
