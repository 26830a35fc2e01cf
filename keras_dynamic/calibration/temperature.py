"""Temperature scaling: one number an exit that makes its probabilities honest.

n: samples, C: classes. Logarithms of probabilities and logits both serve as input,
since a softmax does not see a constant added to a row.
"""

import dataclasses
import math

import numpy as np
from scipy import optimize

from keras_dynamic.calibration._probabilities import check_rows, shift_rows

MIN_TEMPERATURE = 0.05
MAX_TEMPERATURE = 20.0

# The mean negative log-likelihood, in nats, has to fall by more than this.
MIN_IMPROVEMENT = 1e-6

FITTED = "fitted"
KEPT_NO_IMPROVEMENT = "kept at 1.0: no improvement"
KEPT_LOWEST = f"kept at 1.0: no optimum above {MIN_TEMPERATURE:g} (every sample right?)"
KEPT_HIGHEST = (
    f"kept at 1.0: no optimum below {MAX_TEMPERATURE:g} (no better than a guess?)"
)
KEPT_ONE_CLASS = "kept at 1.0: all labels are of one class"
KEPT_TOO_FEW = "kept at 1.0: fewer than 2 samples"
KEPT_NOT_FINITE = "kept at 1.0: the likelihood is not finite"


@dataclasses.dataclass(frozen=True)
class TemperatureFit:
    """The answer of `fit_temperature`.

    Attributes:
        temperature: Float, the temperature to divide by; 1.0 changes nothing.
        status: String, `FITTED`, or one of the `KEPT_...` constants that says why the
            temperature was kept at 1.0.
        nll_before: Float, mean negative log-likelihood in nats at temperature 1.
        nll_after: Float, the same at `temperature`.

    Example:

    ```python
    fit = kd.calibration.TemperatureFit(1.3, "fitted", 0.42, 0.39)
    print(fit.temperature)  # 1.3
    ```
    """

    temperature: float
    status: str
    nll_before: float
    nll_after: float


def fit_temperature(log_probabilities, labels):
    """The temperature of the highest likelihood, or 1.0 with the reason why not.

    Minimizes the mean negative log-likelihood of softmax(log_probabilities / T) over
    log T, by a bounded line search between `MIN_TEMPERATURE` and `MAX_TEMPERATURE`,
    on all rows. It cannot diverge, and it finds the global optimum: the negative
    log-likelihood is convex in 1 / T, hence has one valley in log T.

    An optimum at a bound is none: where every answer is right, the likelihood grows
    for ever as T falls, which says that there are too few mistakes to learn a
    temperature from; where the answers are no better than a guess, it grows with T.
    The temperature is then kept at 1.0 and the status says so.

    Args:
        log_probabilities: Array of shape `(n, C)`, log-probabilities or logits;
            -inf is read as in `apply_temperature`.
        labels: Integer array of shape `(n,)`, in [0, C).

    Returns:
        A `TemperatureFit`.

    Raises:
        TypeError: labels that are not integers.
        ValueError: shapes or labels other than those above.

    Example:

    ```python
    # Three of four answers are right, each given with a probability of 0.99.
    log_probabilities = np.log([[0.99, 0.01], [0.01, 0.99]] * 2)
    fit = kd.calibration.fit_temperature(log_probabilities, np.array([0, 1, 0, 0]))
    print(fit.temperature)  # 4.183 = log(99) / log(3), which gives them 0.75
    ```

    Reference:
        Guo et al., 2017, "On calibration of modern neural networks".
    """
    log_probabilities, labels = check_rows(
        log_probabilities, labels, "log_probabilities"
    )
    if labels.size == 0:
        return TemperatureFit(1.0, KEPT_TOO_FEW, math.nan, math.nan)
    shifted = shift_rows(log_probabilities)
    of_label = shifted[np.arange(labels.size), labels]
    before, _ = _likelihood(shifted, of_label, 1.0)

    def kept(status):
        return TemperatureFit(1.0, status, before, before)

    if labels.size < 2:
        return kept(KEPT_TOO_FEW)
    if not math.isfinite(before):
        return kept(KEPT_NOT_FINITE)
    if np.all(labels == labels[0]):
        return kept(KEPT_ONE_CLASS)
    found = optimize.minimize_scalar(
        lambda log_temperature: _likelihood(
            shifted, of_label, math.exp(log_temperature)
        )[0],
        bounds=(math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    if not before - found.fun > MIN_IMPROVEMENT:
        return kept(KEPT_NO_IMPROVEMENT)
    # By convexity the sign of the slope at a bound says on which side the optimum is.
    if _likelihood(shifted, of_label, MIN_TEMPERATURE)[1] <= 0:
        return kept(KEPT_LOWEST)
    if _likelihood(shifted, of_label, MAX_TEMPERATURE)[1] >= 0:
        return kept(KEPT_HIGHEST)
    return TemperatureFit(math.exp(found.x), FITTED, before, float(found.fun))


def _likelihood(shifted, of_label, temperature):
    """Mean negative log-likelihood, and its slope along the inverse temperature."""
    scaled = shifted / temperature
    np.exp(scaled, out=scaled)
    total = np.sum(scaled, axis=1)
    value = np.mean(np.log(total) - of_label / temperature)
    expected = np.einsum("nc,nc->n", scaled, shifted) / total
    return float(value), float(np.mean(expected - of_label))
