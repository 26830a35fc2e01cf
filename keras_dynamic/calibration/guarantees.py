"""Promises about a loss that is right or wrong: exact tests along a path of choices.

n: samples that certify, S: steps of the path, from the safest choice on.
"""

import dataclasses

import numpy as np
from scipy import stats

from keras_dynamic.calibration._arguments import (
    check_max_risk,
    check_number,
    checked_count,
    float_array,
)
from keras_dynamic.calibration._problem import boolean_array

__all__ = [
    "Certificate",
    "PathStep",
    "certify",
    "risk_p_value",
    "samples_to_certify",
]


@dataclasses.dataclass(frozen=True)
class PathStep:
    """One choice of thresholds on the path that a `Certificate` tested.

    Attributes:
        thresholds: Tuple of numbers, one an early exit; `None` for a closed exit.
        mean_cost: Float, on the samples that certify; 1.0 is the plain network.
        num_lost: Integer, the samples among them on which the full network is right
            and the dynamic one wrong.
        p_value: Float, the probability of as few or fewer if the risk were above the
            bound; `None` where the path was left before.

    Example:

    ```python
    step = kd.calibration.PathStep((0.9, None), 0.62, 3, 0.01)
    print(step.num_lost)  # 3
    ```
    """

    thresholds: tuple[float | None, ...]
    mean_cost: float
    num_lost: int
    p_value: float | None


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What was promised of a dynamic network, and the tests that it rests on.

    The risk is the probability, over new data, that the full network is right and the
    dynamic one wrong. The accuracy drop is at most that.

    Attributes:
        max_risk: Float, the bound that was asked for.
        confidence: Float, the probability, over the draw of the calibration data, with
            which a promise is kept.
        num_selection_samples: Integer, the samples that temperatures and path come
            from.
        num_samples: Integer, the samples that the tests are made on.
        seed: Integer, the seed of the random split into the two.
        path: Tuple of `PathStep`, the safest first.
        num_certified: Integer, how many steps passed before the first that did not.
            The promise holds for all of them at once; the one that costs least on
            these samples is the choice, or none where that is `closed_cost`.
        samples_needed: Integer, where no step passed: how many samples in all would be
            needed to certify the first one, if it went on to lose as often as here;
            where there is no path, if it lost none. `None` where a step passed, and
            where no number would do.
        closed_cost: Float, the mean cost with all exits closed. Defaults to 1.0.

    Example:

    ```python
    steps = (
        kd.calibration.PathStep((0.99,), 0.8, 0, 0.0),
        kd.calibration.PathStep((0.9,), 0.6, 9, 0.41),
    )
    certificate = kd.calibration.Certificate(0.01, 0.95, 1000, 1000, 0, steps, 1)
    print(certificate.certified_risk, certificate.p_value)  # 0.01 0.0
    ```
    """

    max_risk: float
    confidence: float
    num_selection_samples: int
    num_samples: int
    seed: int
    path: tuple[PathStep, ...]
    num_certified: int
    samples_needed: int | None = None
    closed_cost: float = 1.0

    @property
    def chosen(self):
        """The number in `path`, from 0, of the step in force; `None` for no step."""
        costs = [step.mean_cost for step in self.path[: self.num_certified]]
        if not costs or min(costs) >= self.closed_cost:
            return None
        return costs.index(min(costs))  # the safest of those that cost the same

    @property
    def step(self):
        """The `PathStep` that is in force; `None` where all exits are closed."""
        return None if self.chosen is None else self.path[self.chosen]

    @property
    def certified_risk(self):
        """The bound that holds: `max_risk`, or 0 where all exits are closed."""
        return 0.0 if self.step is None else self.max_risk

    @property
    def p_value(self):
        """The p-value of the step in force; `None` where all exits are closed."""
        return None if self.step is None else self.step.p_value


def risk_p_value(num_lost, num_samples, max_risk):
    """The probability of so few losses if the risk were above its bound.

    P(X <= `num_lost`) for X binomial with `num_samples` trials of probability
    `max_risk`: the largest that any risk of `max_risk` or more gives, exact for every
    number of samples.

    Args:
        num_lost: Integer in [0, `num_samples`], or an array of them.
        num_samples: Integer >= 0.
        max_risk: Float in [0, 1].

    Returns:
        A float, or an array.

    Raises:
        TypeError: for what is no number.
        ValueError: for a number out of its range.

    Example:

    ```python
    # 0.9 ** 20: all of twenty samples are kept.
    print(kd.calibration.risk_p_value(0, 20, 0.1))  # 0.12157665459056929
    ```

    Reference:
        Clopper and Pearson, "The use of confidence or fiducial limits illustrated in
        the case of the binomial", Biometrika 1934 (one-sided).
    """
    num_samples = checked_count("num_samples", num_samples, least=0)
    check_number("max_risk", max_risk)
    if not 0 <= max_risk <= 1:
        raise ValueError(
            f"`max_risk` must lie in [0, 1]. Received: max_risk={max_risk}."
        )
    if np.ndim(num_lost) == 0:
        check_number("num_lost", num_lost)
    lost = float_array("num_lost", num_lost)
    if not np.all((0 <= lost) & (lost <= num_samples) & (lost == np.floor(lost))):
        raise ValueError(
            f"`num_lost` must hold integers in [0, {num_samples}], the number of "
            f"samples. Received: num_lost={num_lost}."
        )
    return _p_value(lost, num_samples, max_risk)


def _p_value(num_lost, num_samples, max_risk):
    value = stats.binom.cdf(num_lost, num_samples, max_risk)
    return float(value) if np.ndim(value) == 0 else value


def samples_to_certify(max_risk, confidence, risk=0.0):
    """How many samples a promise takes, if losses come at a given rate.

    Args:
        max_risk: Float in [0, 1), the bound to be promised.
        confidence: Float in (0, 1).
        risk: Float in [0, 1], the share of samples that are lost. Defaults to 0.

    Raises:
        TypeError: for what is no number.
        ValueError: for a number out of its range.

    Returns:
        The least integer n for which some number of losses, at least `risk` * n, has
        a `risk_p_value` of at most 1 - `confidence`; `None` where `risk` is not below
        `max_risk`, so that no number of samples would do.

    Example:

    ```python
    # log(0.05) / log(0.99) = 298.07
    print(kd.calibration.samples_to_certify(0.01, 0.95))  # 299
    print(kd.calibration.samples_to_certify(0.01, 0.95, risk=0.02))  # None
    ```
    """
    check_max_risk(max_risk)
    _check_confidence(confidence)
    check_number("risk", risk)
    if not 0 <= risk <= 1:
        raise ValueError(f"`risk` must lie in [0, 1]. Received: risk={risk}.")
    if risk >= max_risk:
        return None
    level = 1 - confidence

    def least_samples(num_lost):
        # The p-value falls as samples without a loss are added.
        low, high = num_lost, num_lost + 1
        while _p_value(num_lost, high, max_risk) > level:
            low, high = high, 2 * high
        return _first(
            lambda size: _p_value(num_lost, size, max_risk) <= level, low, high
        )

    # The rate that may be lost, num_lost / least_samples, rises with num_lost.
    def is_enough(num_lost):
        return num_lost >= risk * least_samples(num_lost)

    if is_enough(0):
        return least_samples(0)
    low, high = 0, 1
    while not is_enough(high):
        low, high = high, 2 * high
    return least_samples(_first(is_enough, low, high))


def certify(lost, max_risk, confidence):
    """Tests a path of choices in their order, and ends at the first that fails.

    Learn-then-Test with fixed-sequence testing: a step passes where its
    `risk_p_value` is at most 1 - `confidence`. The probability that any step passes
    whose risk is above `max_risk` is at most 1 - `confidence`, however many steps
    there are, provided that the path and its order were chosen on other samples.

    Args:
        lost: Boolean array of shape `(n, S)`: on which samples each step makes the
            loss that is bounded; the rows are independent draws.
        max_risk: Float in [0, 1), the bound on the probability of a loss.
        confidence: Float in (0, 1).

    Returns:
        (num_certified, p_values): the number of steps that passed before the first
        that did not, and a tuple of S floats, `None` behind that one.

    Raises:
        TypeError: `lost` that is not boolean.
        ValueError: another shape, or a number out of its range.

    Example:

    ```python
    lost = np.zeros((500, 3), dtype=bool)
    lost[:1, 1], lost[:9, 2] = True, True
    print(kd.calibration.certify(lost, max_risk=0.01, confidence=0.95)[0])  # 2
    ```

    Reference:
        Angelopoulos, Bates, Candes, Jordan and Lei, "Learn then Test: Calibrating
        Predictive Algorithms to Achieve Risk Control", 2021. The p-values are those of
        the binomial distribution, exact for a loss that is 0 or 1.
    """
    lost = boolean_array("lost", lost)
    if lost.ndim != 2:
        raise ValueError(
            f"`lost` must have shape (samples, steps). Received: shape={lost.shape}."
        )
    check_max_risk(max_risk)
    _check_confidence(confidence)
    p_values = []
    for num_lost in np.sum(lost, axis=0):
        p_values.append(_p_value(int(num_lost), len(lost), max_risk))
        if p_values[-1] > 1 - confidence:
            break
    passed = sum(value <= 1 - confidence for value in p_values)
    untested = [None] * (lost.shape[1] - len(p_values))
    return passed, tuple(p_values + untested)


def _check_confidence(confidence):
    check_number("confidence", confidence)
    if not 0 < confidence < 1:
        raise ValueError(
            f"`confidence` must lie in (0, 1). Received: confidence={confidence}."
        )


def _first(is_true, low, high):
    """The least integer above `low` from which on `is_true`, known to be so at high."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_true(middle) else (middle, high)
    return high
