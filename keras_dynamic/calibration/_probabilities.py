"""Probabilities at a temperature, and how good and how honest they are.

n: samples, C: classes (two or more; a binary head is expanded to two columns by the
caller). Every measure takes probabilities (n, C) and labels (n,), and gives one Python
float, `nan` for no samples.
"""

import math

import numpy as np

from keras_dynamic.calibration._arguments import (
    check_number,
    checked_count,
    float_array,
)

# Probabilities are float32 in the network: one that underflowed to 0 there is known
# only to lie below its smallest normal number, which stands in for it here, so that
# one confident mistake costs 87.3 nats and not infinity.
SMALLEST_PROBABILITY = float(np.finfo(np.float32).tiny)

# Slack for probabilities that were computed in half precision.
_PROBABILITY_SLACK = 1e-3


def apply_temperature(log_probabilities, temperature):
    """The probabilities softmax(log_probabilities / temperature).

    Computed in float64 after subtraction of each row's largest entry. An entry of
    -inf (a probability of 0) becomes the logarithm of `SMALLEST_PROBABILITY`
    relative to that largest entry, or the row's least finite entry if that is lower:
    a float32 probability that underflowed is small, not zero, and a temperature above
    1 has to lift it. A row with a NaN, a +inf or nothing but -inf gives NaN.

    Args:
        log_probabilities: Array of shape `(n, C)`, log-probabilities or logits.
        temperature: Float above 0; 1.0 gives the plain softmax.

    Returns:
        Float64 array of shape `(n, C)` whose rows sum to one.

    Raises:
        TypeError: for what are no numbers.
        ValueError: another shape, or a temperature that is not positive.

    Example:

    ```python
    print(kd.calibration.apply_temperature(np.log([[0.8, 0.2]]), 2.0))
    # [[0.667 0.333]]: the odds of 4 to 1 become their square root, 2 to 1
    ```
    """
    log_probabilities = float_array("log_probabilities", log_probabilities)
    if log_probabilities.ndim != 2:
        raise ValueError(
            "`log_probabilities` must have shape (samples, classes). Received: "
            f"shape={log_probabilities.shape}."
        )
    check_number("temperature", temperature)
    if not 0 < temperature < math.inf:
        raise ValueError(
            "`temperature` must be a positive number. Received: "
            f"temperature={temperature}."
        )
    unnormalized = np.exp(shift_rows(log_probabilities) / temperature)
    return unnormalized / np.sum(unnormalized, axis=1, keepdims=True)


def accuracy(probabilities, labels):
    """The share of samples whose largest probability is the label's.

    The first of several equal probabilities counts as the answer, as in `argmax`. A
    row with a NaN is no answer: it counts as wrong.

    Args:
        probabilities: Array of shape `(n, C)`, in [0, 1].
        labels: Integer array of shape `(n,)`, in [0, C).

    Returns:
        A float in [0, 1], `nan` for no samples.

    Raises:
        TypeError: labels that are not integers.
        ValueError: shapes or values other than those above.

    Example:

    ```python
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4]])
    print(kd.calibration.accuracy(probabilities, np.array([0, 1])))  # 0.5
    ```
    """
    probabilities, labels = _check_probabilities(probabilities, labels)
    if labels.size == 0:
        return float("nan")
    return float(np.mean(correct_rows(probabilities, labels)))


def negative_log_likelihood(probabilities, labels):
    """The mean of -log(probability of the label), in nats.

    Probabilities are clipped from below at `SMALLEST_PROBABILITY`, the smallest
    normal float32, so that the answer is finite.

    Args:
        probabilities: Array of shape `(n, C)`, in [0, 1].
        labels: Integer array of shape `(n,)`, in [0, C).

    Returns:
        A float, `nan` for no samples or where a probability is NaN.

    Raises:
        TypeError: labels that are not integers.
        ValueError: shapes or values other than those above.

    Example:

    ```python
    probabilities = np.array([[0.5, 0.5], [0.5, 0.5]])
    print(kd.calibration.negative_log_likelihood(probabilities, np.array([0, 1])))
    # 0.693, the logarithm of 2
    ```
    """
    probabilities, labels = _check_probabilities(probabilities, labels)
    if labels.size == 0:
        return float("nan")
    of_label = probabilities[np.arange(labels.size), labels]
    return float(np.mean(-np.log(np.maximum(of_label, SMALLEST_PROBABILITY))))


def brier_score(probabilities, labels):
    """The mean squared distance between probabilities and the one-hot labels.

    For each row the squares are summed over the classes, so that the score lies in
    [0, 2]: 0 for certainty in the label, 2 for certainty in another class. (For two
    classes this is twice the score of the positive class alone, which is what
    `sklearn.metrics.brier_score_loss` gives for binary labels.)

    Args:
        probabilities: Array of shape `(n, C)`, in [0, 1].
        labels: Integer array of shape `(n,)`, in [0, C).

    Returns:
        A float in [0, 2], `nan` for no samples or where a probability is NaN.

    Raises:
        TypeError: labels that are not integers.
        ValueError: shapes or values other than those above.

    Example:

    ```python
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4]])
    print(kd.calibration.brier_score(probabilities, np.array([0, 1])))
    # 0.37, the mean of 0.02 and 0.72
    ```

    Reference:
        Brier, 1950, "Verification of forecasts expressed in terms of probability":
        his original definition, for any number of classes.
    """
    probabilities, labels = _check_probabilities(probabilities, labels)
    if labels.size == 0:
        return float("nan")
    difference = probabilities.copy()
    difference[np.arange(labels.size), labels] -= 1.0
    return float(np.mean(np.sum(np.square(difference), axis=1)))


def expected_calibration_error(probabilities, labels, num_bins=15):
    """The mean distance between confidence and accuracy, over bins of samples.

    The confidence of a row is its largest probability. Rows are sorted by confidence
    and cut into `num_bins` bins of equal mass (sizes differ by at most 1; with fewer
    rows than bins each row is its own bin), and |accuracy - mean confidence| is
    averaged over the bins, weighted by their sizes.

    Rows of equal confidence may fall on both sides of a cut. So that the answer does
    not depend on the order in which they came, each of them counts with the share of
    right answers among all rows of that confidence, the mean over all orders.

    Args:
        probabilities: Array of shape `(n, C)`, in [0, 1].
        labels: Integer array of shape `(n,)`, in [0, C).
        num_bins: Integer, at least 1, the number of bins. Default 15.

    Returns:
        A float in [0, 1], `nan` for no samples or where a probability is NaN.

    Raises:
        TypeError: labels that are not integers.
        ValueError: shapes or values other than those above.

    Example:

    ```python
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4]])
    print(
        kd.calibration.expected_calibration_error(
            probabilities, np.array([0, 1]), num_bins=1
        )
    )  # 0.25: half of the answers are right, at a mean confidence of 0.75
    ```

    Reference:
        Guo et al., 2017, "On calibration of modern neural networks". They cut [0, 1]
        into equal widths; equal masses leave no bin almost empty (Nixon et al., 2019,
        "Measuring calibration in deep learning").
    """
    confidence, right, counts = reliability_bins(probabilities, labels, num_bins)
    if not counts.size:
        return float("nan")
    return float(np.sum(np.abs(right - confidence) * counts) / np.sum(counts))


def reliability_bins(probabilities, labels, num_bins=15):
    """The bins of `expected_calibration_error`, from the least confidence up.

    Args:
        probabilities, labels, num_bins: as there.

    Returns:
        (confidence, accuracy, counts): arrays (bins,), of the rows in each bin the mean
        confidence, the share of right answers and the number; empty for no samples.

    Raises:
        As there.
    """
    probabilities, labels = _check_probabilities(probabilities, labels)
    num_bins = checked_count("num_bins", num_bins)
    num_samples = labels.size
    if num_samples == 0:
        return np.zeros(0), np.zeros(0), np.zeros(0, np.intp)
    correct = correct_rows(probabilities, labels)
    values, group_of_row, sizes = np.unique(
        np.max(probabilities, axis=1), return_inverse=True, return_counts=True
    )
    right_share = np.bincount(group_of_row, weights=correct) / sizes
    num_bins = min(num_bins, num_samples)
    starts = np.arange(num_bins) * num_samples // num_bins
    counts = np.diff(starts, append=num_samples)
    confidence, right = (
        np.add.reduceat(np.repeat(of_group, sizes), starts) / counts
        for of_group in (values, right_share)
    )
    return confidence, right, counts


def shift_rows(log_probabilities):
    """Rows with a maximum of 0, and with -inf replaced as in `apply_temperature`."""
    with np.errstate(invalid="ignore"):
        shifted = log_probabilities - np.max(
            log_probabilities, axis=1, keepdims=True, initial=-np.inf
        )
    is_zero = np.isneginf(shifted)
    if not np.any(is_zero):
        return shifted
    floor = np.min(
        shifted,
        axis=1,
        keepdims=True,
        where=~is_zero,
        initial=math.log(SMALLEST_PROBABILITY),
    )
    return np.where(is_zero, floor, shifted)


def correct_rows(scores, labels):
    """Says of each row whether its largest score is the label's.

    Args:
        scores: Float array of shape `(n, C)`: probabilities, their logarithms or
            logits.
        labels: Integer array of shape `(n,)`, in [0, C).

    Returns:
        Boolean array of shape `(n,)`, False for a row with a NaN.
    """
    is_number = ~np.any(np.isnan(scores), axis=1)
    return (np.argmax(scores, axis=1) == labels) & is_number


def check_rows(scores, labels, name):
    """Checks and converts what nearly every function of this folder receives.

    Args:
        scores: What should be of shape `(n, C)`, C at least 2.
        labels: What should be integers of shape `(n,)`, in [0, C).
        name: The argument's name, for the errors.

    Returns:
        `(scores, labels)` as float64 and intp arrays.

    Raises:
        TypeError: labels that are not integers.
        ValueError: shapes or values other than those above.
    """
    scores, labels = float_array(name, scores), _label_array(labels)
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise ValueError(
            f"`{name}` must have shape (samples, classes) with 2 classes or more; "
            f"expand a binary head to two columns. Received: shape={scores.shape}."
        )
    if labels.shape != scores.shape[:1]:
        raise ValueError(
            f"`labels` must have shape {scores.shape[:1]}, one for each row of "
            f"`{name}`. Received: shape={labels.shape}."
        )
    if labels.size and labels.dtype.kind not in "iu":
        raise TypeError(f"`labels` must be integers. Received: dtype={labels.dtype}.")
    if labels.size and (labels.min() < 0 or labels.max() >= scores.shape[1]):
        raise ValueError(
            f"`labels` must lie in [0, {scores.shape[1]}), the classes of `{name}`. "
            f"Received: from {labels.min()} to {labels.max()}."
        )
    return scores, labels.astype(np.intp)


def _label_array(labels):
    try:
        return np.asarray(labels)
    except ValueError:
        raise TypeError(
            "`labels` must be an array of integers. Received: rows of several lengths."
        ) from None


def _check_probabilities(probabilities, labels):
    probabilities, labels = check_rows(probabilities, labels, "probabilities")
    # NaN passes: comparisons with it are false, and it shows in the answer.
    outside = (probabilities < 0) | (probabilities > 1 + _PROBABILITY_SLACK)
    if np.any(outside):
        raise ValueError(
            f"`probabilities` must lie in [0, 1]; logits go through a softmax first. "
            f"Received: {probabilities[outside][0]}."
        )
    return probabilities, labels
