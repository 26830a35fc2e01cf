"""EarlyExit: a small classifier on an intermediate tensor."""

import math
import numbers

import keras
import numpy as np
from keras import ops

from keras_dynamic.layers._checks import checked_tensor
from keras_dynamic.layers._pooled_head import PooledHead

__all__ = ["EarlyExit"]


@keras.saving.register_keras_serializable(package="keras_dynamic")
class EarlyExit(PooledHead):
    """Classifies from an intermediate tensor: y_e = c_e(f_e(x)).

    Pools its input to a vector, passes it through hidden layers if there are any,
    and ends in a dense layer. It serves one sample at a time: nothing depends on
    batch-mates, in training or inference. In a `DynamicModel` its loss counts
    `loss_weight` times; in any other `keras.Model` call it with `targets`, and it
    adds that term itself. Outputs are float32 under every dtype policy. With
    `pooling="flatten"`, no hidden layer and `loss_weight=0` it is a
    `keras.layers.Dense`.

    Args:
        units: int >= 1, the number of classes; 1 for a binary head (with
            `activation="sigmoid"` or `None`).
        pooling: how the input becomes a vector. `"auto"`: average pooling for images,
            masked mean for token sequences, nothing for vectors. `"average"`,
            `"max"`; `"first"`, the first (class) token of a sequence; `"flatten"`;
            or a layer, whose output is flattened. Defaults to `"auto"`.
        hidden_units: int or list of ints, widths of hidden dense layers. Defaults to
            `None`, no hidden layer.
        activation: `"softmax"`, `"sigmoid"`, or `None` for logits; or another
            activation of Keras. Defaults to `"softmax"`.
        loss_weight: float >= 0, lambda_e, the weight of this exit's loss. Kept in the
            non-trainable weight `current_loss_weight`, so that it can change during
            `fit`: assign to `exit.loss_weight` or to the weight. Defaults to 1.0.
        grid: int >= 1, cells a side that an image map is pooled to before it is
            flattened; 1 pools globally. Defaults to `None`: 4 or 2 for early, large
            maps under `pooling="auto"` (at most 1,024 features), else 1.
        hidden_activation: activation of the hidden layers. Defaults to `"relu"`.
        loss: loss for `targets`: a name, function or `keras.losses.Loss`. Defaults to
            `"auto"`: the cross-entropy that fits `units`, `activation` and the
            targets' shape. Its mean over the batch is taken, whatever its reduction.
        data_format: `"channels_last"` or `"channels_first"`, of image maps. Defaults
            to `keras.config.image_data_format()`.

    Call arguments:
        inputs: (batch, height, width, channels) image maps, (batch, d1, d2, d3,
            channels) volumes, (batch, tokens, channels) sequences or (batch,
            channels) vectors.
        targets: labels, (batch,) or (batch, 1) class numbers or (batch, units); adds
            `loss_weight * loss` by `add_loss`. `sample_weight` does not reach that
            term. `None` (an optional input at `predict`) adds nothing.
        mask: (batch, tokens) bool, True for tokens that count; by default the mask
            that the inputs carry.

    Input shape:
        Rank 2 to 5, batch first.

    Output shape:
        (batch, units), float32.

    Raises:
        ValueError: for arguments outside their range, `softmax` with one unit, or a
            pooling that does not fit the input's rank.
        TypeError: for arguments of a wrong type.

    Example:

    ```python
    inputs = keras.Input((28, 28, 1))
    h = keras.layers.Conv2D(8, 3, activation="relu")(inputs)
    early = kd.EarlyExit(10, loss_weight=0.5, name="exit_1")(h)
    final = keras.layers.Dense(10, "softmax")(keras.layers.Flatten()(h))
    model = kd.DynamicModel(inputs, [early, final])
    print(model.predict(np.zeros((2, 28, 28, 1)), verbose=0)[0].shape)  # (2, 10)
    ```

    Reference:
        Scardapane, Scarpiniti, Baccarelli and Uncini, "Why should we add early exits
        to neural networks?", Cognitive Computation, 2020 (eq. 1 and 2). The grid for
        large maps stands for the paper's "strong pooling".
    """

    def __init__(
        self,
        units,
        pooling="auto",
        hidden_units=None,
        activation="softmax",
        loss_weight=1.0,
        grid=None,
        hidden_activation="relu",
        loss="auto",
        data_format=None,
        **kwargs,
    ):
        # Half precision cannot hold every class number: `targets` stay as they come.
        super().__init__(
            units,
            pooling,
            hidden_units,
            grid,
            hidden_activation,
            data_format,
            autocast=False,
            **kwargs,
        )
        self.activation = keras.activations.get(activation)
        self.loss = self._checked_loss(loss)
        if units == 1 and self.activation is keras.activations.softmax:
            raise ValueError(
                "`units=1` with `activation='softmax'` would always answer 1. Use "
                "`activation='sigmoid'` (or None for a logit), or two units. Received: "
                f"units={units}, activation={activation!r}."
            )
        self._given_loss_weight = _checked_loss_weight(loss_weight)
        self.current_loss_weight = self.add_weight(
            name="loss_weight",
            shape=(),
            initializer=keras.initializers.Constant(loss_weight),
            trainable=False,
            dtype="float32",
            autocast=False,
        )

    @property
    def loss_weight(self):
        """lambda_e as a float; assigning changes the weight, also during `fit`."""
        current = float(keras.ops.convert_to_numpy(self.current_loss_weight))
        given = self._given_loss_weight
        return given if np.float32(given) == np.float32(current) else current

    @loss_weight.setter
    def loss_weight(self, value):
        self._given_loss_weight = _checked_loss_weight(value)
        self.current_loss_weight.assign(value)

    def call(self, inputs, targets=None, mask=None):
        # Softmax and what follows (rules, losses) want float32.
        outputs = self.activation(ops.cast(self._logits(inputs, mask), "float32"))
        if targets is not None:
            if not hasattr(targets, "shape"):
                targets = checked_tensor("targets", targets)
            loss = ops.cast(self._loss_of(targets, outputs), "float32")
            self.add_loss(ops.convert_to_tensor(self.current_loss_weight) * loss)
        return outputs

    def compute_output_spec(self, inputs, targets=None, mask=None):
        return keras.KerasTensor((inputs.shape[0], self.units), dtype="float32")

    def get_config(self):
        loss = self.loss
        return {
            **super().get_config(),
            "activation": keras.activations.serialize(self.activation),
            "loss_weight": self.loss_weight,
            "loss": loss if loss == "auto" else keras.losses.serialize(loss),
        }

    def _checked_loss(self, loss):
        if loss is None:
            raise ValueError(
                "`loss` must be 'auto', a name, a function or a `keras.losses.Loss`. "
                "Without `targets` it is not used. Received: loss=None."
            )
        return loss if loss == "auto" else keras.losses.get(loss)

    def _loss_of(self, targets, outputs):
        """Mean loss over the batch; the function form, so that a distribution
        strategy's scaling (done once for all `add_loss` terms) is not done twice."""
        function = self.loss
        if function == "auto":
            function = self._cross_entropy
        elif isinstance(function, keras.losses.Loss):
            function = function.call
        values = function(targets, outputs)
        # 0, not NaN, for a replica that got no rows.
        count = ops.maximum(ops.cast(ops.size(values), values.dtype), 1)
        return ops.sum(values) / count

    def _cross_entropy(self, targets, outputs):
        """The cross-entropy of each sample that fits the head and the targets."""
        known = ("softmax", "sigmoid", "linear")
        if getattr(self.activation, "__name__", None) not in known:
            raise ValueError(
                "`loss='auto'` needs a head with softmax, sigmoid or no activation. "
                f"Received: activation={self.activation!r}; give `loss`."
            )
        from_logits = self.activation is keras.activations.linear
        if self.units == 1:
            function = keras.losses.binary_crossentropy
            targets = ops.reshape(targets, (-1, 1))
        elif len(targets.shape) == 2 and targets.shape[-1] == self.units:
            function = keras.losses.categorical_crossentropy
            if self.activation is keras.activations.sigmoid:
                function = keras.losses.binary_crossentropy
        else:
            function = keras.losses.sparse_categorical_crossentropy
        return function(targets, outputs, from_logits=from_logits)


def _checked_loss_weight(value):
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(
            f"`loss_weight` must be a number. Received: loss_weight={value!r} of type "
            f"{type(value)}."
        )
    if not 0 <= value < math.inf:
        raise ValueError(
            f"`loss_weight` must be finite and >= 0. Received: loss_weight={value}."
        )
    return float(value)
