"""When to leave: rules that score an exit's answer and decide for each row.

A rule is a description: it holds the user's numbers and no weight. The model that
it is given to keeps the thresholds as a weight, so that files, `restore_best_weights`
and keras-tuner bring them back, and hands them to a bound copy of the rule.
"""

import math
import zlib

import keras
import numpy as np
import tensorflow as tf

from keras_dynamic.models.exit_rule import ExitRule
from keras_dynamic.ops import confidence

__all__ = [
    "Entropy",
    "ExitRule",
    "Margin",
    "MaxProbability",
    "Patience",
    "Selected",
    "get",
]


@keras.saving.register_keras_serializable(package="keras_dynamic")
class MaxProbability(ExitRule):
    """Leaves where the largest probability exceeds the threshold.

    score = max_c p_c; for a binary head max(p, 1 - p).

    Args:
        threshold: a number in [0, 1] for all early exits, or a list with one number
            or `None` (closed) for each. Defaults to 0.9.

    Raises:
        ValueError: if a threshold lies outside [0, 1].

    Example:

    ```python
    rule = kd.rules.MaxProbability(0.8)
    print(rule.leaves(rule.score(np.array([[0.9, 0.1], [0.6, 0.4]])), 0))
    ```

    Reference:
        Panda, Sengupta and Roy, "Conditional Deep Learning for Energy-Efficient and
        Enhanced Pattern Recognition", DATE 2016.
    """

    minimum, maximum = 0, 1

    def __init__(self, threshold=0.9):
        super().__init__(threshold)

    def score(self, probabilities):
        return confidence.max_probability(probabilities)


@keras.saving.register_keras_serializable(package="keras_dynamic")
class Margin(ExitRule):
    """Leaves where the best class leads the second best by more than the threshold.

    score = p_(1) - p_(2); for a binary head |2 p - 1|.

    Args:
        threshold: a number in [0, 1] for all early exits, or a list with one number
            or `None` (closed) for each. Defaults to 0.8.

    Raises:
        ValueError: if a threshold lies outside [0, 1].

    Example:

    ```python
    rule = kd.rules.Margin(0.5)
    print(rule.score(np.array([[0.7, 0.2, 0.1]])))  # [0.5]
    ```

    Reference:
        Park et al., "Big/little deep neural network for ultra low power inference",
        CODES+ISSS 2015.
    """

    minimum, maximum = 0, 1

    def __init__(self, threshold=0.8):
        super().__init__(threshold)

    def score(self, probabilities):
        return confidence.margin(probabilities)


@keras.saving.register_keras_serializable(package="keras_dynamic")
class Entropy(ExitRule):
    """Leaves where the entropy of the answer is below the threshold.

    score = H[p] = -sum_c p_c log p_c in nats (natural logarithm), from 0 for a
    one-hot answer to log(classes) for a uniform one. Low means sure: an exit is
    taken where H < threshold.

    Args:
        threshold: a number of nats >= 0 for all early exits, or a list with one
            number or `None` (closed) for each. Defaults to 0.3.

    Raises:
        ValueError: if a threshold is negative.

    Example:

    ```python
    rule = kd.rules.Entropy(0.5)
    print(rule.leaves(rule.score(np.array([[0.99, 0.01], [0.5, 0.5]])), 0))
    ```

    Reference:
        Teerapittayanon, McDanel and Kung, "BranchyNet: Fast inference via early
        exiting from deep neural networks", ICPR 2016.
    """

    minimum, maximum = 0, math.inf
    leaves_below = True

    def __init__(self, threshold=0.3):
        super().__init__(threshold)

    def score(self, probabilities):
        return confidence.entropy(probabilities)


@keras.saving.register_keras_serializable(package="keras_dynamic")
class Patience(ExitRule):
    """Leaves when that many exits in a row have given the same class.

    score = the number of consecutive exits, this one included, that agree on the
    most probable class: 1 at the first exit. Scores are whole numbers, and the rule
    leaves where score >= threshold. A row with a NaN answer agrees with nobody.

    Args:
        threshold: a whole number >= 1 of agreeing exits for all early exits, or a
            list with one number or `None` (closed) for each. With 1 everyone leaves
            at the first exit. Defaults to 2.

    Raises:
        ValueError: if a threshold is not a whole number >= 1.

    Example:

    ```python
    model_rule = kd.rules.Patience(2)  # leave once two exits in a row agree
    print(model_rule)
    ```

    Reference:
        Zhou et al., "BERT Loses Patience: Fast and Robust Inference with Early Exit",
        NeurIPS 2020. The paper counts agreements with the exit before, so that its
        patience t is t + 1 agreeing exits here.
    """

    minimum, maximum = 1, math.inf

    def __init__(self, threshold=2):
        super().__init__(threshold)

    def score(self, probabilities):
        """The score at a first exit: 1, or 0 for a row with a NaN."""
        state = self.initial_state(tf.shape(probabilities)[0])
        return self.update(state, probabilities, 0)[0]

    def leaves(self, score, exit_index):
        return score >= self.threshold_at(exit_index)

    def initial_state(self, num_rows):
        return {
            "answer": tf.fill([num_rows], tf.constant(-1, tf.int64)),
            "agreeing": tf.zeros([num_rows], tf.int64),
        }

    def update(self, state, probabilities, exit_index):
        broken = tf.reduce_any(tf.math.is_nan(probabilities), axis=-1)
        # int64: TensorFlow keeps vectors of int32 on the host of a GPU.
        answer = tf.cast(confidence.predicted_class(probabilities), tf.int64)
        answer = tf.where(broken, tf.constant(-1, tf.int64), answer)
        again = tf.equal(answer, state["answer"])
        agreeing = tf.where(again, state["agreeing"] + 1, 1)
        agreeing = tf.where(broken, tf.constant(0, tf.int64), agreeing)
        state = {"answer": answer, "agreeing": agreeing}
        return tf.cast(agreeing, tf.float32), state

    def candidates(self, scores):
        return [None, *sorted({int(score) for score in scores if score >= 1})]

    def _checked_number(self, value):
        value = super()._checked_number(value)
        if not float(value).is_integer():
            raise ValueError(
                "`threshold` of `Patience` must be a whole number of exits. Received: "
                f"threshold={value}."
            )
        return int(value)


@keras.saving.register_keras_serializable(package="keras_dynamic")
class Selected(ExitRule):
    """Leaves where the model's selector says.

    The rule of a `DynamicModel` with a selector: the exit with the largest weight, or,
    under a `LayerwiseSelector`, the first whose gate is above 1/2. It has no threshold.
    The score is the selector's soft weight of the exit taken.

    Args:
        threshold: `None`; there is none.

    Raises:
        ValueError: for a threshold.

    Example:

    ```python
    print(kd.rules.get("selected"))
    ```
    """

    def __init__(self, threshold=None):
        given = threshold if isinstance(threshold, (list, tuple)) else [threshold]
        if any(value is not None for value in given):
            raise ValueError(
                "`threshold` of `Selected` must be None: the selector decides. "
                f"Received: threshold={threshold}."
            )
        super().__init__(threshold)

    def __repr__(self):
        return "Selected()"


_BY_NAME = {
    "max_probability": MaxProbability,
    "entropy": Entropy,
    "margin": Margin,
    "patience": Patience,
    "selected": Selected,
}


def class_with_code(code):
    """The built-in class whose `code_of` is `code`, or None."""
    return next((c for c in _BY_NAME.values() if code_of(c) == code), None)


def code_of(rule_class):
    """A number for a rule's class, kept beside the thresholds in weight files."""
    name = keras.saving.get_registered_name(rule_class)
    return zlib.crc32(name.encode()) & 0x7FFFFFFF


def in_force(rule, code, values):
    """The rule that weights stand for.

    Args:
        rule: the `ExitRule` that a model was given.
        code: `code_of` the class whose thresholds the weights hold.
        values: (exits - 1,) float32 array, these thresholds.

    Returns:
        `rule` itself where the weights are its own.

    Raises:
        RuntimeError: if they belong to a class that is not known here.
    """
    if code != code_of(type(rule)):
        # Loaded weights: they hold the thresholds of another kind of rule.
        loaded = class_with_code(code)
        if loaded is None:
            raise RuntimeError(
                "The weights loaded into this model hold thresholds of a rule that "
                f"is neither its own {type(rule).__name__} nor a built-in one. "
                "Make the model with that rule (`exit_rule=`) before loading, or "
                "assign another rule to `model.exit_rule`."
            )
        rule = loaded()
    is_own = np.array_equal(rule.thresholds(len(values)), values)
    return rule if is_own else rule.with_values(values)


def check_weights(rule, code, values, temperatures):
    """Raises for weights, from a file, that stand for no rule and no temperatures.

    Args:
        rule, code, values: as in `in_force`.
        temperatures: (exits,) float32 array.

    Raises:
        ValueError: for temperatures that are not finite and > 0, and for thresholds
            outside the rule's range.
    """
    if not (np.isfinite(temperatures) & (temperatures > 0)).all():
        raise ValueError(
            "`calibration_temperatures` must be finite and > 0. Received: "
            f"{temperatures.tolist()}."
        )
    cls = type(rule) if code == code_of(type(rule)) else class_with_code(code)
    closed = [np.inf, -np.inf]
    if cls is not None:
        closed = closed[1:] if cls.leaves_below else closed[:1]
    strange = values[~(np.isfinite(values) | np.isin(values, closed))]
    if len(strange):
        raise ValueError(
            "`exit_thresholds` must be finite, or infinite on the side on which an "
            f"exit is closed. Received: {values.tolist()}."
        )
    if cls is not None:
        in_force(rule, code, values)  # checks the range


def get(identifier):
    """The rule meant by `identifier`.

    Args:
        identifier: an `ExitRule`, or one of "max_probability", "entropy", "margin",
            "patience" and "selected", which stand for the rule with its default
            threshold.

    Returns:
        An `ExitRule`.

    Raises:
        ValueError: for an unknown name.
        TypeError: for anything else.

    Example:

    ```python
    print(kd.rules.get("entropy"))  # Entropy(threshold=0.3)
    ```
    """
    if isinstance(identifier, ExitRule):
        return identifier
    if isinstance(identifier, str):
        if identifier in _BY_NAME:
            return _BY_NAME[identifier]()
        raise ValueError(
            f"`rule` must be one of {sorted(_BY_NAME)} or an `ExitRule`. Received: "
            f"rule={identifier!r}."
        )
    raise TypeError(
        "`rule` must be a name or an instance of `ExitRule`. Received: "
        f"rule={identifier!r} of type {type(identifier)}."
    )


def trace_key(rule):
    """Equal for rules that one traced walk can serve: thresholds are fed, the rest is
    traced. Objects count by identity, and the walk keeps them alive."""
    fed = ("threshold", "_bound")
    own = type(rule).leaves
    if own is not ExitRule.leaves and own is not Patience.leaves:
        fed = ("_bound",)  # it may read `self.threshold`, which is then traced
    plain = (int, float, str, type(None))
    return (
        type(rule),
        *(
            (name, type(value), value if isinstance(value, plain) else id(value))
            for name, value in sorted(vars(rule).items())
            if name not in fed
        ),
    )
