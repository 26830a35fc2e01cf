"""How long a function takes on this machine."""

import statistics
import time

__all__ = ["median_time"]


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
