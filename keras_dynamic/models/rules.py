"""When to leave: rules that score an exit's answer and decide for each row.

A rule is a description: it holds the user's numbers and no weight. The model that
it is given to keeps the thresholds as a weight, so that files, `restore_best_weights`
and keras-tuner bring them back, and hands them to a bound copy of the rule.
"""

import copy
import math
import numbers

import keras
import numpy as np
import tensorflow as tf

from keras_dynamic.calibration import candidate_thresholds, open_threshold
from keras_dynamic.ops import confidence

__all__ = ["Entropy", "ExitRule", "Margin", "MaxProbability", "Patience", "get"]


class ExitRule:
    """Base class of the rules that decide at which exit a sample leaves.

    At each exit a rule gives every row a score and leaves where the score lies
    strictly above the exit's threshold. The last exit takes everyone who is left.

    To write a rule of one's own, override `score`; `leaves` as well where a larger
    score does not mean more confidence; `initial_state` and `update` where a row
    has to remember something from exit to exit. All four are traced into a
    `tf.function`: use TensorFlow or `keras.ops`, no NumPy and no Python branches on
    values. Register the class with `keras.saving.register_keras_serializable`.

    Args:
        threshold: a number for all early exits, or a list with one number or `None`
            for each; `None` closes an exit.

    Raises:
        ValueError: if a threshold lies outside the rule's range.
        TypeError: if `threshold` is neither a number nor a list of numbers.

    Example:

    ```python
    @keras.saving.register_keras_serializable(package="example")
    class SecondProbability(kd.rules.ExitRule):
        def score(self, probabilities):
            return 1.0 - keras.ops.top_k(probabilities, 2)[0][:, 1]

    rule = SecondProbability(threshold=0.8)
    print(rule.score(np.array([[0.7, 0.2, 0.1]])))  # [0.8]
    ```
    """

    # The least and largest threshold that mean something.
    minimum, maximum = -math.inf, math.inf
    # What closes an exit. A rule that leaves below its threshold has -inf here.
    closed_value = math.inf

    def __init__(self, threshold):
        self.threshold = self._checked(threshold)
        self._bound = None

    def score(self, probabilities):
        """Scores the answers of one exit, each row by itself.

        Args:
            probabilities: (batch, classes) float32 calibrated probabilities, or
                (batch, 1) for a binary head.

        Returns:
            (batch,) float32 scores.
        """
        raise NotImplementedError(
            f"`{type(self).__name__}` must implement `score(probabilities)`."
        )

    def leaves(self, score, exit_index):
        """Which rows leave at an exit.

        Args:
            score: (batch,) float32.
            exit_index: int, the early exit's number from 0.

        Returns:
            (batch,) bool. A NaN score compares false and stays.
        """
        return score > self._threshold_at(exit_index)

    def initial_state(self, num_rows):
        """What each row remembers before the first exit: a structure of tensors.

        Args:
            num_rows: scalar int tensor, the rows of the batch.

        Returns:
            A (nested) structure of tensors with `num_rows` on axis 0; an empty tuple
            for a rule without memory.
        """
        del num_rows
        return ()

    def update(self, state, probabilities, exit_index):
        """Scores an exit's answers in the light of the exits before.

        Args:
            state: what the rows remember, as from `initial_state`.
            probabilities: as in `score`.
            exit_index: int, the exit's number from 0.

        Returns:
            (score, state): (batch,) float32 and the new memory.
        """
        del exit_index
        return self.score(probabilities), state

    def get_config(self):
        return {"threshold": self.threshold}

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def __repr__(self):
        return f"{type(self).__name__}(threshold={self.threshold!r})"

    def thresholds(self, num_exits):
        """The thresholds of `num_exits` early exits, float32, closed ones infinite.

        Raises:
            ValueError: if a list of another length was given.
        """
        if isinstance(self.threshold, list):
            if len(self.threshold) != num_exits:
                raise ValueError(
                    "`threshold` must be a number or a list with one entry for each "
                    f"of the {num_exits} early exits. Received: "
                    f"threshold={self.threshold} with {len(self.threshold)} entries."
                )
            given = self.threshold
        else:
            given = [self.threshold] * num_exits
        values = [self.closed_value if value is None else value for value in given]
        return np.array(values, "float32")

    def candidates(self, scores):
        """Thresholds worth trying at one exit, given the scores seen there.

        Args:
            scores: (n,) float32 array.

        Returns:
            A list: `None` (closed) first, then one that everyone passes who has a
            score, then thresholds between the scores.
        """
        above = self.closed_value > 0
        everyone = open_threshold(scores, leaves_above=above)
        everyone = min(max(everyone, self.minimum), self.maximum)
        return [None, everyone, *candidate_thresholds(scores).tolist()]

    def with_threshold(self, threshold):
        """A copy of this rule with other thresholds."""
        config = {**self.get_config(), "threshold": threshold}
        return type(self).from_config(config)

    def bind(self, thresholds):
        """A copy whose `leaves` compares with the tensor `thresholds`, (exits,)."""
        bound = copy.copy(self)
        bound._bound = thresholds
        return bound

    def _threshold_at(self, exit_index):
        if self._bound is not None:
            return self._bound[exit_index]
        value = self.threshold
        if isinstance(value, list):
            value = value[exit_index]
        return tf.constant(self.closed_value if value is None else value, tf.float32)

    def _checked(self, threshold):
        if isinstance(threshold, (list, tuple, np.ndarray)):
            return [None if v is None else self._checked_number(v) for v in threshold]
        if threshold is None:
            return None
        return self._checked_number(threshold)

    def _checked_number(self, value):
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError(
                "`threshold` must be a number, None, or a list of these. Received: "
                f"threshold={value!r} of type {type(value)}."
            )
        value = value.item() if isinstance(value, np.generic) else value
        if not self.minimum <= value <= self.maximum:  # false for NaN as well
            if self.maximum == math.inf:
                valid = f"be at least {self.minimum}"
            else:
                valid = f"lie in [{self.minimum}, {self.maximum}]"
            raise ValueError(f"`threshold` must {valid}. Received: threshold={value}.")
        return value


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
    closed_value = -math.inf

    def __init__(self, threshold=0.3):
        super().__init__(threshold)

    def score(self, probabilities):
        return confidence.entropy(probabilities)

    def leaves(self, score, exit_index):
        return score < self._threshold_at(exit_index)


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
        return score >= self._threshold_at(exit_index)

    def initial_state(self, num_rows):
        return {
            "answer": tf.fill([num_rows], -1),
            "agreeing": tf.zeros([num_rows], tf.int32),
        }

    def update(self, state, probabilities, exit_index):
        broken = tf.reduce_any(tf.math.is_nan(probabilities), axis=-1)
        answer = tf.where(broken, -1, confidence.predicted_class(probabilities))
        again = tf.equal(answer, state["answer"])
        agreeing = tf.where(again, state["agreeing"] + 1, 1)
        agreeing = tf.where(broken, 0, agreeing)
        state = {"answer": answer, "agreeing": agreeing}
        return tf.cast(agreeing, tf.float32), state

    def candidates(self, scores):
        return [None, *sorted({int(score) for score in scores if score >= 1})]

    def _checked_number(self, value):
        value = super()._checked_number(value)
        if value != int(value):
            raise ValueError(
                "`threshold` of `Patience` must be a whole number of exits. Received: "
                f"threshold={value}."
            )
        return int(value)


_BY_NAME = {
    "max_probability": MaxProbability,
    "entropy": Entropy,
    "margin": Margin,
    "patience": Patience,
}


def get(identifier):
    """The rule meant by `identifier`.

    Args:
        identifier: an `ExitRule`, or one of "max_probability", "entropy", "margin"
            and "patience", which stand for the rule with its default threshold.

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
