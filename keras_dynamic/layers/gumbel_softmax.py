"""GumbelSoftmax: a choice of one of K that can be trained."""

import numbers

import keras

from keras_dynamic.layers._checks import check_one_tensor
from keras_dynamic.layers._choosing import ChoosingLayer

__all__ = ["GumbelSoftmax"]


@keras.saving.register_keras_serializable(package="keras_dynamic")
class GumbelSoftmax(ChoosingLayer):
    """Turns logits into a choice of one of K: z = softmax((l + g) / tau).

    The index of the largest of l + g, with Gumbel noise g, is a draw from the
    categorical distribution with the probabilities p = softmax(l); but an argmax has
    no gradient. Its softmax does. A low temperature tau makes z nearly one-hot and its
    gradient noisy, a high one makes it smooth and unlike a draw.

    Each vector of logits along `axis` (of a sample, or of a token) gets a choice and
    noise of its own, new at every call and on every replica.

    In training, by `estimator`:

    - `"soft"`: softmax(l / tau);
    - `"gumbel_softmax"`: softmax((l + g) / tau);
    - `"straight_through"`: the one-hot argmax of l, with the gradient of
      softmax(l / tau);
    - `"gumbel_straight_through"`: the one-hot argmax of l + g, with the gradient of
      softmax((l + g) / tau);
    - `"reinmax"`: the one-hot argmax of l + g, with a gradient of second order, which
      at tau = 1 is unbiased for quadratic functions.

    When not training there is no noise: the first two, the relaxed ones, give
    softmax(l / tau), the other three, the hard ones, the one-hot argmax of l. With
    `estimator="soft"` and `temperature=1` the layer is a `keras.layers.Softmax`.

    All of it is computed in float32, from logits as they come, and the answer cast to
    the compute dtype of the policy. The logit of a choice that must not be taken is
    -inf: `ops.where(allowed, logits, -np.inf)`. A mask of tokens is passed on.

    Args:
        temperature: number > 0, tau, and >= 1 for `"reinmax"`. Kept in the
            non-trainable weight `current_temperature`, so that it can change during
            `fit`: by `callbacks.TemperatureSchedule`, by assigning to
            `layer.temperature`, or to the weight. A weight out of range gives an
            error where TensorFlow can raise one, NaN under XLA. Defaults to 1.0.
        estimator: one of the five above. Defaults to `"gumbel_softmax"`.
        axis: int, where the K choices lie. Defaults to -1.
        seed: int, for noise that is the same in every run. Defaults to `None`, a
            random one, which `keras.utils.set_random_seed` determines.
        sample_at_inference: bool, whether to draw noise when not training as well.
            Defaults to `False`.

    Call arguments:
        inputs: (..., K, ...) logits, unnormalized log-probabilities. For
            probabilities take `ops.estimators.logits_from_probabilities`.
        training: bool, whether to draw noise.

    Input shape:
        Any of rank >= 1, with K choices along `axis`.

    Output shape:
        That of the input.

    Raises:
        ValueError: for an unknown estimator, a temperature out of its range, or an
            axis that the input lacks.
        TypeError: for arguments of a wrong type.

    Example:

    ```python
    logits = np.log([[0.1, 0.2, 0.7]])
    choose = kd.GumbelSoftmax(temperature=0.5, estimator="gumbel_straight_through")
    print(choose(logits, training=True))  # one-hot; the third in 7 of 10 calls
    print(choose(logits))  # always the third
    ```

    Reference:
        Jang, Gu and Poole, "Categorical Reparameterization with Gumbel-Softmax", ICLR
        2017. Bengio, Léonard and Courville, "Estimating or Propagating Gradients
        Through Stochastic Neurons", 2013 (straight-through). Liu, Dong, Liu, Yu and
        Gao, "Bridging Discrete and Backpropagation: Straight-Through and Beyond",
        NeurIPS 2023 (ReinMax).
    """

    def __init__(
        self,
        temperature=1.0,
        estimator="gumbel_softmax",
        axis=-1,
        seed=None,
        sample_at_inference=False,
        **kwargs,
    ):
        # Logits in float32 are not to be rounded before noise is added to them.
        super().__init__(temperature, estimator, seed, autocast=False, **kwargs)
        if isinstance(axis, bool) or not isinstance(axis, numbers.Integral):
            raise TypeError(
                f"`axis` must be an integer. Received: axis={axis!r} of type "
                f"{type(axis)}."
            )
        if not isinstance(sample_at_inference, bool):
            raise TypeError(
                "`sample_at_inference` must be True or False. Received: "
                f"sample_at_inference={sample_at_inference!r}."
            )
        self.axis = int(axis)
        self.sample_at_inference = sample_at_inference
        self.supports_masking = True

    def build(self, input_shape):
        check_one_tensor(input_shape)
        rank = len(input_shape)
        if not -rank <= self.axis < rank:
            raise ValueError(
                f"`axis` must be an axis of the input. Received: axis={self.axis} for "
                f"an input of shape {tuple(input_shape)}."
            )

    def call(self, inputs, training=None):
        draw = bool(training) or self.sample_at_inference
        choice = self._categorical(inputs, self.axis, training=draw)
        return keras.ops.cast(choice, self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def compute_output_spec(self, inputs, training=None):
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "axis": self.axis,
            "sample_at_inference": self.sample_at_inference,
        }
