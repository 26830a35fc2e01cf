"""Candidates for the threshold of one exit, from the scores seen there."""

import numpy as np

from keras_dynamic.calibration._arguments import (
    checked_bool,
    checked_count,
    float_array,
)


def candidate_thresholds(scores, limit=64):
    """Thresholds between observed scores, at evenly spaced quantiles.

    Each lies midway between two neighbors among the distinct scores observed, so that
    none coincides with a score and a last bit of rounding moves nobody across. Scores
    are taken as float32, the precision of the network; the thresholds are float32
    numbers too (widened to float64), strictly between their two neighbors; where no
    float32 number is, there is no candidate.

    The two ends are not among them: "closed" (`None`) and "everyone leaves"
    (`open_threshold`) are the caller's to add.

    Args:
        scores: Array of shape `(n,)`, the scores at one exit; those that are not
            finite are left out.
        limit: Integer, at least 1, the largest number of thresholds. Default 64.

    Returns:
        Float64 array of shape `(m,)`, m <= `limit`, strictly ascending; empty where
        fewer than two distinct scores were observed.

    Raises:
        TypeError: scores that are not numbers, a limit that is none.
        ValueError: another shape, or a limit that is no integer of at least 1.

    Example:

    ```python
    scores = np.array([0.5, 0.25, 0.75, 0.75])
    print(kd.calibration.candidate_thresholds(scores))  # [0.375 0.625]
    ```
    """
    limit = checked_count("limit", limit)
    scores = _finite_scores(scores)
    values, sizes = np.unique(scores, return_counts=True)
    low, high = values[:-1].astype(np.float64), values[1:].astype(np.float64)
    middle = ((low + high) / 2).astype(np.float32).astype(np.float64)
    separates = (low < middle) & (middle < high)
    middle, below = middle[separates], np.cumsum(sizes)[:-1][separates]
    if middle.size <= limit:
        return middle
    # The cut whose number of scores below it is nearest to each quantile.
    wanted = np.arange(1, limit + 1) * scores.size / (limit + 1)
    right = np.clip(np.searchsorted(below, wanted), 1, below.size - 1)
    is_left = wanted - below[right - 1] <= below[right] - wanted
    return middle[np.unique(right - is_left)]


def open_threshold(scores, leaves_above=True):
    """A threshold that every observed score passes.

    For a rule that leaves above its threshold it lies below the least finite score:
    0 if all are positive, which stays in [0, 1] for probabilities and is below every
    maximum of a softmax, else lower by 1 or more. For a rule that leaves below its
    threshold it lies above the greatest by 1 or more. A rule that knows the range of
    its own scores may rather use the end of that range.

    Args:
        scores: Array of shape `(n,)`, the scores at one exit.
        leaves_above: Boolean, whether samples leave above the threshold (confidence)
            or below it (entropy). Default True.

    Returns:
        A float, finite, that float32 holds exactly.

    Raises:
        TypeError: scores that are not numbers, or a `leaves_above` that is no Boolean.
        ValueError: another shape.

    Example:

    ```python
    print(kd.calibration.open_threshold(np.array([0.5, 0.9])))  # 0.0
    print(kd.calibration.open_threshold(np.array([0.1, 0.7]), leaves_above=False))
    # 1.7
    ```
    """
    scores = _finite_scores(scores)
    if checked_bool("leaves_above", leaves_above):
        if scores.size == 0 or np.min(scores) > 0:
            return 0.0
        return _beyond(np.min(scores), -1)
    return 1.0 if scores.size == 0 else _beyond(np.max(scores), 1)


def _finite_scores(scores):
    scores = float_array("scores", scores)
    if scores.ndim != 1:
        raise ValueError(
            f"`scores` must have shape (samples,). Received: shape={scores.shape}."
        )
    # What overflows float32 is infinite to the network.
    with np.errstate(over="ignore"):
        scores = scores.astype(np.float32)
    return scores[np.isfinite(scores)]


def _beyond(score, direction):
    step = direction * max(1.0, abs(float(score)))
    limit = np.finfo(np.float32).max
    return float(np.float32(np.clip(float(score) + step, -limit, limit)))
