"""How long a function takes on this machine."""

import collections
import statistics
import time

import numpy as np

__all__ = ["Pace", "median_time"]


def median_time(run, repeats=15):
    """Median seconds of some calls after a first one that is not counted.

    Args:
        run: function without arguments that returns a tensor.
        repeats: int >= 1.
    """
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run().numpy()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


class Pace:
    """How long work took so far, to know when a comparison is worth its time.

    Attributes:
        seconds: float, spent in all.
        walked: dict from a kind of work to (seconds, rows), since segments were
            compared.
        static_ways: dict from a kind of work to how the whole network runs faster than
            the walk, with XLA (True) or without (False); None if it does not.
    """

    def __init__(self):
        self.seconds = 0.0
        self.walked = collections.defaultdict(lambda: np.zeros(2))
        self.static_ways = {}
