"""ExitSelector: features to the choice of an exit."""

import keras

from keras_dynamic.layers._pooled_head import PooledHead
from keras_dynamic.layers._selector import Selector, carrying_soft
from keras_dynamic.ops import estimators

__all__ = ["ExitSelector"]


@keras.saving.register_keras_serializable(package="keras_dynamic")
class ExitSelector(Selector):
    """Chooses an exit for each sample: c = ExitSelector(x), weights over E + 1 exits.

    Pools its input, and maps it by a small network to one logit for each exit. In
    training the weights follow `estimator`: softmax(c / tau), a one-hot argmax with a
    straight-through gradient, or samples (Gumbel-Softmax, ReinMax). When not training
    they are one-hot at the argmax, whatever the estimator; `.probabilities(features)`
    gives the soft weights at any time. Hand them to `DynamicModel(..., selector=)`,
    which trains the mixture y = sum_e w_e y_e and runs only the chosen exit.

    Three regularizers, each with its weight, are added by `add_loss` in training: the
    entropy of the exits' probabilities (small means decided), the Kullback-Leibler
    divergence of their mean over the batch from a prior, and the expected cost
    sum_e p_e o_e. With all three weights 0 and `estimator="soft"` the layer is a small
    softmax classifier.

    Args:
        num_exits: int, E + 1: the early exits and the final one.
        estimator: `"soft"`, `"straight_through"`, `"gumbel_softmax"`,
            `"gumbel_straight_through"` or `"reinmax"`. Defaults to `"soft"`.
        temperature: tau > 0 (>= 1 for `reinmax`), kept in the non-trainable weight
            `current_temperature`. Defaults to 1.0.
        hidden_units: int or list of ints, widths of hidden dense layers. Defaults to
            `None`.
        entropy_weight: float >= 0. Defaults to 0.
        prior: E + 1 positive numbers that sum to 1, or `None` or `"uniform"` for equal
            ones. Defaults to `None`.
        prior_weight: float >= 0. Defaults to 0.
        prior_per_sample: bool, whether each sample is held to the prior rather than
            the mean of the batch; that works against adaptivity. Defaults to `False`.
        exit_costs: E + 1 numbers >= 0, shares of the last exit's cost; or `"auto"`,
            filled in by the `DynamicModel` that the selector is given to. Defaults to
            `None`.
        cost_weight: float >= 0; needs `exit_costs`. Defaults to 0.
        pooling: as in `EarlyExit`. Defaults to `"auto"`.
        seed: int, of the noise. Defaults to `None`, a random one.

    Call arguments:
        inputs: features: images, volumes, sequences or vectors, as in `EarlyExit`.
        mask: (batch, tokens) bool; by default the mask that the inputs carry.
        training: bool.

    Output shape:
        (batch, num_exits), float32; rows sum to 1.

    Raises:
        ValueError: for an unknown estimator, a temperature, prior, cost or weight out
            of its range, or lists of another length than `num_exits`.
        RuntimeError: in training, with `exit_costs="auto"` that nobody filled in.

    Example:

    ```python
    inputs = keras.Input((16,))
    weights = kd.ExitSelector(2, exit_costs="auto", cost_weight=0.1)(inputs)
    h = keras.layers.Dense(8, "relu")(inputs)
    outputs = [kd.EarlyExit(3)(h), keras.layers.Dense(3, "softmax")(h)]
    model = kd.DynamicModel(inputs, outputs, selector=weights)
    print(model.predict_dynamic(np.ones((5, 16)), verbose=0).exit_index.shape)  # (5,)
    ```

    Reference:
        Scardapane, Comminiello, Scarpiniti, Baccarelli and Uncini, "Differentiable
        branching in deep networks for fast inference", ICASSP 2020, of which this is a
        variation: one block chooses among all exits.
    """

    def __init__(self, num_exits, estimator="soft", temperature=1.0, **kwargs):
        if num_exits is None:
            raise ValueError("`num_exits` must be an integer. Received: None.")
        super().__init__(num_exits, estimator, temperature, **kwargs)
        self.supports_masking = True
        self.head = PooledHead(
            self.num_exits,
            self.pooling,
            self.hidden_units,
            dtype=self.dtype_policy,
            name="head",
        )

    def build(self, input_shape):
        if not self.head.built:  # `probabilities` may have been asked first
            self.head.build(input_shape)

    def call(self, inputs, mask=None, training=False):
        logits = self.head(inputs, mask=mask)
        if training:
            self._regularize(self._soft(logits))
            return self._categorical(logits, training=True)
        # Hard whatever the estimator: at inference one exit is run.
        hard = estimators.categorical(logits, "straight_through")
        return carrying_soft(hard, self._soft(logits))

    def probabilities(self, features, mask=None):
        """Soft weights, (batch, num_exits) float32: how probable each exit is.

        softmax(c / tau) for the estimators without noise; softmax(c), from which the
        samples are drawn, for those with it.
        """
        return self._soft(self.head(features, mask=mask))

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.num_exits)

    def compute_output_spec(self, inputs, mask=None, training=False):
        return keras.KerasTensor((inputs.shape[0], self.num_exits), dtype="float32")
