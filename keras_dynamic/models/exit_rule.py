"""ExitRule: the base class of the rules that decide when to leave."""

import copy
import math
import numbers

import numpy as np
import tensorflow as tf

from keras_dynamic.calibration import candidate_thresholds, open_threshold

__all__ = ["ExitRule"]


class ExitRule:
    """Base class of the rules that decide at which exit a sample leaves.

    At each exit a rule gives every row a score and leaves where the score lies
    strictly above the exit's threshold, or strictly below it if the class says
    `leaves_below = True`. The last exit takes everyone who is left.

    To write a rule of one's own, override `score`; `leaves` as well for another
    comparison, with `self.threshold_at(exit_index)`; `initial_state` and `update`
    where a row has to remember something from exit to exit. All four are traced into
    a `tf.function`: use TensorFlow or `keras.ops`, no NumPy and no Python branches on
    values. Arguments of its own belong in `get_config`, and the class should be
    registered with `keras.saving.register_keras_serializable`, so that a saved model
    finds it again.

    Args:
        threshold: a finite number for all early exits, or a list with one number or
            `None` for each; `None` closes an exit.

    Raises:
        ValueError: if a threshold lies outside the rule's range.
        TypeError: if `threshold` is neither a number nor a list of numbers.

    Example:

    ```python
    @keras.saving.register_keras_serializable(package="example")
    class Doubt(kd.rules.ExitRule):
        leaves_below = True  # little doubt leaves

        def score(self, probabilities):
            return 1.0 - keras.ops.max(probabilities, axis=-1)


    rule = Doubt(threshold=0.2)
    score = rule.score(np.array([[0.9, 0.1], [0.6, 0.4]]))
    print(rule.leaves(score, exit_index=0))  # [True, False]
    ```
    """

    # The least and largest threshold that mean something.
    minimum, maximum = -math.inf, math.inf
    leaves_below = False

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
        score, threshold = tf.cast(score, tf.float32), self.threshold_at(exit_index)
        return score < threshold if self.leaves_below else score > threshold

    def threshold_at(self, exit_index):
        """The threshold in force at an exit, a float32 scalar; infinite if closed."""
        if self._bound is not None:
            return self._bound[exit_index]
        value = self.threshold
        if isinstance(value, list):
            value = value[exit_index]
        return tf.constant(self.closed_value if value is None else value, tf.float32)

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

    @property
    def remembers(self):
        """Whether a row's score may depend on the exits before, closed ones too."""
        cls = type(self)
        own = cls.initial_state, cls.update
        return own != (ExitRule.initial_state, ExitRule.update)

    def get_config(self):
        return {"threshold": self.threshold}

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def __repr__(self):
        return f"{type(self).__name__}(threshold={self.threshold!r})"

    @property
    def closed_value(self):
        """The infinite number that stands for a closed exit in a weight."""
        return -math.inf if self.leaves_below else math.inf

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

    def with_values(self, values):
        """A copy with the thresholds that a weight holds, in their shortest decimals.

        Args:
            values: (exits,) float32 array, as from `thresholds`.
        """
        # str() of a float32 is the shortest decimal that stands for it: 0.3, where
        # float() gives 0.30000001192092896.
        return self.with_threshold(
            [float(str(v)) if np.isfinite(v) else None for v in values]
        )

    def candidates(self, scores):
        """Thresholds worth trying at one exit, given the scores seen there.

        Args:
            scores: (n,) float32 array.

        Returns:
            A list: `None` (closed) first, then one that everyone passes who has a
            score, then thresholds between the scores.
        """
        everyone = open_threshold(scores, leaves_above=not self.leaves_below)
        everyone = min(max(everyone, self.minimum), self.maximum)
        return [None, everyone, *candidate_thresholds(scores).tolist()]

    def with_threshold(self, threshold):
        """A copy of this rule with other thresholds."""
        twin = self.bind(None)
        twin.threshold = self._checked(threshold)
        return twin

    def bind(self, thresholds):
        """A copy whose `leaves` compares with the tensor `thresholds`, (exits,)."""
        bound = copy.copy(self)
        bound._bound = thresholds
        return bound

    def _checked(self, threshold):
        if isinstance(threshold, np.ndarray):
            threshold = threshold.tolist()
        if isinstance(threshold, (list, tuple)):
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
        if not math.isfinite(value):
            raise ValueError(
                "`threshold` must be finite; `None` closes an exit. Received: "
                f"threshold={value}."
            )
        if not self.minimum <= value <= self.maximum:
            if self.maximum == math.inf:
                valid = f"be at least {self.minimum}"
            else:
                valid = f"lie in [{self.minimum}, {self.maximum}]"
            raise ValueError(f"`threshold` must {valid}. Received: threshold={value}.")
        return value
