"""LayerwiseSelector: at every exit, stop or go on."""

import keras
import tensorflow as tf
from keras import ops

from keras_dynamic.layers._pooled_head import PooledHead
from keras_dynamic.layers._selector import Selector, carrying_soft

__all__ = ["LayerwiseSelector"]


@keras.saving.register_keras_serializable(package="keras_dynamic")
class LayerwiseSelector(Selector):
    """Chooses an exit on the way: a gate at each early exit, to stop or to go on.

    Called with the list of the E early exits' features. Gate e gives the probability
    s_e of stopping there if one has come so far, hence exit e the weight

        w_e = s_e prod_{j < e} (1 - s_j),    and the last one    prod_j (1 - s_j).

    In training the gates follow `estimator`, relaxed or hard. When not training a
    sample stops at the first gate above 1/2, and the weights are one-hot there. In a
    `DynamicModel` gate e is computed when the sample gets to exit e, so that the choice
    costs nothing in advance. Regularizers as in `ExitSelector`.

    Args:
        num_exits: int, E + 1, or `None` to take it from the list. Defaults to `None`.
        estimator: as in `ExitSelector`; the gates choose yes or no by it. Defaults to
            `"soft"`.
        temperature: tau > 0 (>= 1 for `reinmax`). Defaults to 1.0.
        **kwargs: `hidden_units`, `entropy_weight`, `prior`, `prior_weight`,
            `prior_per_sample`, `exit_costs`, `cost_weight`, `pooling` and `seed`, with
            the meanings and defaults that they have in `ExitSelector`.

    Call arguments:
        inputs: list of E features: images, volumes, sequences or vectors.
        training: bool.

    Output shape:
        (batch, E + 1), float32; rows sum to 1.

    Raises:
        ValueError: as `ExitSelector`, or for a list of another length than E.

    Example:

    ```python
    inputs = keras.Input((16,))
    a = keras.layers.Dense(8, "relu")(inputs)
    b = keras.layers.Dense(8, "relu")(a)
    weights = kd.LayerwiseSelector()([a, b])
    outputs = [kd.EarlyExit(3)(a), kd.EarlyExit(3)(b)]
    outputs.append(keras.layers.Dense(3, "softmax")(keras.layers.Dense(8)(b)))
    model = kd.DynamicModel(inputs, outputs, selector=weights)
    print(model.predict_dynamic(np.ones((5, 16)), verbose=0).exit_index.shape)  # (5,)
    ```

    Reference:
        Scardapane, Comminiello, Scarpiniti, Baccarelli and Uncini, "Differentiable
        branching in deep networks for fast inference", ICASSP 2020.
    """

    def __init__(self, num_exits=None, estimator="soft", temperature=1.0, **kwargs):
        super().__init__(num_exits, estimator, temperature, **kwargs)
        self.supports_masking = True
        # The gates are made at `build`, when their number is known; what they are to
        # be made with is checked now.
        PooledHead(1, self.pooling, self.hidden_units, name="gate")

    def build(self, input_shape):
        listed = isinstance(input_shape, (list, tuple)) and len(input_shape) > 0
        if not listed or not isinstance(input_shape[0], (list, tuple)):
            raise ValueError(
                "`inputs` must be the list of the early exits' features. Received: "
                f"one input of shape {input_shape}."
            )
        if self.num_exits is None:
            self._make_costs(len(input_shape) + 1)
        elif self.num_exits != len(input_shape) + 1:
            raise ValueError(
                f"`inputs` must hold features for {self.num_exits - 1} early exits "
                f"(num_exits={self.num_exits}). Received: {len(input_shape)} features."
            )
        self.gates = []
        for index, shape in enumerate(input_shape):
            pooling = self.pooling
            if not isinstance(pooling, str):  # the features may differ in size
                pooling = type(pooling).from_config(pooling.get_config())
            gate = PooledHead(
                1,
                pooling,
                self.hidden_units,
                dtype=self.dtype_policy,
                name=f"gate_{index}",
            )
            gate.build(shape)
            self.gates.append(gate)

    def call(self, inputs, training=False):
        logits = self._logits(inputs)
        if training:
            self._regularize(self._soft(logits))
            return _compose(self._binary(logits, training=True))
        return carrying_soft(_first_stop(logits), self._soft(logits))

    def probabilities(self, features):
        """Soft weights, (batch, E + 1) float32: how probable each exit is."""
        if not self.built:
            self.build([tuple(feature.shape) for feature in features])
        return self._soft(self._logits(features))

    def gate_logit(self, index, feature):
        """(batch,) float32 logit of stopping at early exit `index`; > 0 stops."""
        return tf.cast(self.gates[index](feature)[:, 0], tf.float32)

    def stopping_probabilities(self, logits):
        """Soft gates of any shape, float32: how probable it is to stop at each."""
        return self._binary_probabilities(logits)

    def compute_output_shape(self, input_shape):
        return (input_shape[0][0], len(input_shape) + 1)

    def compute_output_spec(self, inputs, training=False):
        shape = (inputs[0].shape[0], len(inputs) + 1)
        return keras.KerasTensor(shape, dtype="float32")

    def _logits(self, inputs):
        logits = [
            gate(feature) for gate, feature in zip(self.gates, inputs, strict=True)
        ]
        return ops.cast(ops.concatenate(logits, axis=-1), "float32")

    def _soft(self, logits):
        return _compose(self.stopping_probabilities(logits))


def _first_stop(logits):
    """(batch, E) gate logits to one-hot weights: the first gate above 1/2.

    A NaN among the gates up to there sends the sample to the last exit, as a walk does
    that never sees the gates beyond.
    """
    last = logits.shape[-1]
    stops = tf.argmax(tf.pad(logits > 0.0, [[0, 0], [0, 1]], constant_values=True), 1)
    asked = tf.range(last, dtype=tf.int64) <= stops[:, None]
    broken = tf.reduce_any(tf.math.is_nan(logits) & asked, axis=-1)
    return tf.one_hot(tf.where(broken, tf.cast(last, tf.int64), stops), last + 1)


def _compose(stopping):
    """(batch, E) gates to (batch, E + 1) weights of the exits."""
    # Not `cumprod`, whose gradient divides by gates that may be 0.
    arriving, weights = tf.ones_like(stopping[:, 0]), []
    for gate in tf.unstack(stopping, axis=-1):
        weights.append(arriving * gate)
        arriving = arriving * (1.0 - gate)
    return tf.stack([*weights, arriving], axis=-1)
