"""BlendedActivation: an activation function that is learned, as a blend of others."""

import math
import numbers

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_dynamic.layers._activations import (
    check_keeps_shape,
    deserialized,
    names_of,
    read_activations,
    serialized,
)
from keras_dynamic.layers._choosing import ChoosingLayer
from keras_dynamic.ops import blending, estimators
from keras_dynamic.ops.activation_flops import activation_flops

__all__ = ["BlendedActivation"]

# What `initial_activation` starts with in a softmax, at temperature 1.
_INITIAL_SHARE = 0.9


@keras.saving.register_keras_serializable(package="keras_dynamic")
class BlendedActivation(ChoosingLayer):
    """Blends activation functions with learned weights: f(x) = sum_e a_e phi_e(x).

    The E weights a come from E parameters w, by `constraint`:

    - `"softmax"`: a = softmax(w / tau), a choice of one that is relaxed, or hard, as
      `estimator` says;
    - `"unrestricted"`: a = w, which learns the scale of the activation as well;
    - `"sum_normalized"`: a_e = w_e / sum_k w_k, of any sign;
    - `"absolute_normalized"`: a_e = w_e / sum_k |w_k|;
    - `"positive"`: a_e = p_e / sum_k p_k with p = max(w, 0).

    A denominator below 0.001 in absolute value is replaced by 0.001 with its sign, so
    that nothing becomes infinite; the weights then do not sum to 1. Under `"positive"`
    an optimizer's step that makes a parameter negative is followed by a clip at 0, and
    the gradient of a parameter at 0 (or below, if set so) is that of one just above: it
    can grow again, even if all of them are 0.

    There is one blend for the whole layer, or one for each channel, or position, as
    `shared_axes` says. It does not depend on the sample; and where the estimator draws
    noise, one draw a call is common to the batch.

    In training, all activations are computed and summed. When not training, the hard
    estimators (`"straight_through"`, `"gumbel_straight_through"`, `"reinmax"`) compute
    the winning activation only; with several blends, every activation that has won
    somewhere, and select. Then no gradient reaches the parameters. With a single
    activation, but for `"unrestricted"`, the layer is a `keras.layers.Activation`.

    A layer with one blend has its weights from construction, so that it may also be the
    activation of another layer, `Dense(64, activation=BlendedActivation(...))`, and is
    saved and loaded with it. With `shared_axes`, put it behind that layer: inside, its
    weights would be missing until the model is first called.

    A mask is passed on. The weights are float32 whatever the policy; the activations
    are computed, and summed, in the policy's compute dtype.

    Args:
        activations: list of names in `keras.activations`, names of registered
            functions, or functions (registered ones where the model is to be loaded
            again; a lambda needs `safe_mode=False` for that), each of them once. They
            must keep the shape. Layers are not accepted: that is `LayerChoice`.
        constraint: one of the five above. Defaults to `"softmax"`.
        shared_axes: `None`, for one blend for the layer; or an int or a list of ints,
            the axes along which a blend is shared, as in `keras.layers.PReLU`: with
            `[1, 2]` each channel of an image has its own, with `[]` each position.
            (`PReLU` takes `None` for `[]`.) Defaults to `None`.
        estimator: `"soft"`, `"straight_through"`, `"gumbel_softmax"`,
            `"gumbel_straight_through"` or `"reinmax"`, as in `GumbelSoftmax`; `"soft"`
            unless the constraint is a softmax. Defaults to `"soft"`.
        temperature: number > 0, tau, and >= 1 for `"reinmax"`; read by the softmax
            only. Kept in the non-trainable weight `current_temperature`. Defaults to
            1.0.
        initial_activation: name, or index, of the activation to start as. All of the
            blend is it; but in a softmax, whose weights are never 0, its share is 0.9
            at temperature 1 (its logit is log(9 (E - 1)), the others 0). Defaults to
            `None`: all weights 1 / E.
        seed: int, of the noise. Defaults to `None`, a random one.

    Call arguments:
        inputs: tensor of floats.
        training: bool, whether to draw noise, and compute all activations.

    Input shape:
        Any, batch first. The axes that do not share a blend must have a known size.

    Output shape:
        That of the input.

    Raises:
        ValueError: for no activations, unknown ones or one twice; an unknown constraint
            or estimator, or two that exclude each other; a temperature, an axis or an
            `initial_activation` that there is not; when built, for an activation that
            changes the shape.
        TypeError: for arguments of a wrong type.

    Example:

    ```python
    inputs = keras.Input((4,))
    h = keras.layers.Dense(8)(inputs)
    h = kd.BlendedActivation(["relu", "tanh", "elu"], name="blend")(h)
    model = keras.Model(inputs, keras.layers.Dense(1)(h))
    model.compile("adam", "mse")
    model.fit(np.ones((32, 4)), np.ones((32, 1)), verbose=0)
    print(model.get_layer("blend").blend())  # three weights near 1/3
    ```

    Reference:
        Sütfeld, Brieger, Finger, Füllhase and Pipa, "Adaptive Blending Units: Trainable
        Activation Functions for Deep Neural Networks", 2018 (SAI 2020). The paper has
        the five constraints and one blend a layer. Departures: blends by channel, the
        hard and noisy choices, the safe denominators and, under `"positive"`, the
        gradient of what was clipped.
    """

    def __init__(
        self,
        activations,
        constraint="softmax",
        shared_axes=None,
        estimator="soft",
        temperature=1.0,
        initial_activation=None,
        seed=None,
        **kwargs,
    ):
        super().__init__(temperature, estimator, seed, **kwargs)
        self.constraint = blending.check_constraint(constraint)
        if constraint != "softmax" and estimator != "soft":
            raise ValueError(
                "`estimator` must be 'soft' where `constraint` is not 'softmax': the "
                "other estimators choose by a softmax. Received: "
                f"estimator={estimator!r}, constraint={constraint!r}."
            )
        self._given, self.activations = read_activations(activations)
        self._names = names_of(self._given)
        self.shared_axes = _checked_axes(shared_axes)
        self.initial_activation = initial_activation
        self._initial_index = self._index_of(initial_activation)
        self.supports_masking = True
        self.parameters = None
        if shared_axes is None:
            self._add_parameters(())

    def build(self, input_shape):
        for name, function in zip(self._names, self.activations, strict=True):
            check_keeps_shape(name, function, input_shape, self.compute_dtype)
        if self.shared_axes is None:
            return
        rank, own = len(input_shape), self._unshared_sizes(input_shape)
        shape = [own.get(axis, 1) for axis in range(1, rank)] if own else []
        self._add_parameters(shape)
        if own:
            self.input_spec = keras.layers.InputSpec(ndim=rank, axes=own)

    def call(self, inputs, training=False):
        inputs = ops.cast(inputs, self.compute_dtype)
        if self.estimator in estimators.HARD_ESTIMATORS and not training:
            if self._is_one_blend():
                return self._winner_of_layer(inputs)
            return self._winners_by_position(inputs)
        if self.constraint == "softmax":
            weights = self._categorical(self.parameters, axis=0, training=training)
        else:
            weights = blending.constrained(self.parameters, self.constraint)
        weights = ops.cast(weights, self.compute_dtype)
        return tf.add_n(
            [
                weights[index] * self._activate(index, inputs)
                for index in range(len(self.activations))
            ]
        )

    def blend(self):
        """The weights a, by the activation's name.

        For the hard estimators these are softmax(w / tau), of which `call` takes the
        largest.

        Returns:
            Dict of names, as given or as the functions are called: floats, or, where
            `shared_axes` makes several blends, arrays of the input's rank without the
            batch, of size 1 along the shared axes.
        """
        values = self._current_weights()
        if values.ndim == 1:
            values = values.tolist()
        return dict(zip(self._names, values, strict=True))

    def winner(self):
        """The strongest activation, as a plain layer to put in the place of this one.

        It is the one whose weight is largest in absolute value. Its factor is left out,
        which the layers around have to make up for where it is not near 1.

        Returns:
            A new `keras.layers.Activation` of the same name and policy, or `None` where
            there are several blends.
        """
        self._require_parameters()
        if not self._is_one_blend():
            return None
        function = self.activations[int(self.strongest())]
        return keras.layers.Activation(
            function, name=self.name, dtype=self.dtype_policy
        )

    def compute_flops(self, input_shape):
        """FLOPs for one sample: all activations, weighted and summed; or, for the hard
        estimators, those that win now.

        The weights themselves, made once a batch, are not counted.
        """
        count = len(self.activations)
        used, blending_flops = range(count), 2 * count - 1
        if self.estimator in estimators.HARD_ESTIMATORS:
            used, blending_flops = np.unique(self.strongest()), 0
        per_element = sum(activation_flops(self.activations[index]) for index in used)
        return (per_element + blending_flops) * math.prod(input_shape[1:])

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def get_config(self):
        return {
            **super().get_config(),
            "activations": [serialized(item) for item in self._given],
            "constraint": self.constraint,
            "shared_axes": self.shared_axes,
            "initial_activation": self.initial_activation,
        }

    @classmethod
    def from_config(cls, config):
        activations = [deserialized(item) for item in config["activations"]]
        return super().from_config({**config, "activations": activations})

    def _activate(self, index, inputs):
        return ops.cast(self.activations[index](inputs), self.compute_dtype)

    def _winner_of_layer(self, inputs):
        def branch(index):
            return lambda: self._activate(index, inputs)

        branches = [branch(index) for index in range(len(self.activations))]
        return tf.switch_case(
            self._winning_index(), branches, default=lambda: _nan_like(inputs)
        )

    def _winners_by_position(self, inputs):
        winning, outputs = self._winning_index(), _nan_like(inputs)
        for index in range(len(self.activations)):
            here = winning == index

            def select(index=index, here=here, outputs=outputs):
                return tf.where(here, self._activate(index, inputs), outputs)

            def leave(outputs=outputs):
                return outputs

            outputs = tf.cond(tf.reduce_any(here), select, leave)
        return outputs

    def _winning_index(self):
        """Index of the largest parameter, -1 where one is NaN: the answer is NaN, as
        it is in training."""
        parameters = ops.convert_to_tensor(self.parameters)
        index = tf.argmax(parameters, axis=0, output_type=tf.int32)
        broken = tf.reduce_any(tf.math.is_nan(parameters), axis=0)
        return tf.where(broken, -1, index)

    def _current_weights(self):
        self._require_parameters()
        if self.constraint == "softmax":
            weights = estimators.categorical(
                self.parameters, "soft", self.temperature, axis=0
            )
        else:
            weights = blending.constrained(self.parameters, self.constraint)
        return ops.convert_to_numpy(weights)

    def strongest(self):
        """Index of the strongest activation, an array; one for each blend."""
        # A softmax may round two logits to the same share.
        if self.constraint == "softmax":
            self._require_parameters()
            return ops.convert_to_numpy(self.parameters).argmax(axis=0)
        return np.abs(self._current_weights()).argmax(axis=0)

    def _is_one_blend(self):
        return len(self.parameters.shape) == 1

    def _require_parameters(self):
        if self.parameters is None:
            raise RuntimeError(
                f"Layer '{self.name}' has no weights yet: with `shared_axes` they are "
                "made when it is first called, or built."
            )

    def _add_parameters(self, shape):
        count, index = len(self.activations), self._initial_index
        if self.constraint != "softmax":
            start = np.full(count, 1 / count) if index is None else np.eye(count)[index]
        else:
            start = np.zeros(count)
            if index is not None and count > 1:
                odds = _INITIAL_SHARE / (1 - _INITIAL_SHARE)
                start[index] = math.log(odds * (count - 1))
        start = start.reshape(count, *[1] * len(shape))
        self.parameters = self.add_weight(
            name="parameters",
            shape=(count, *shape),
            initializer=keras.initializers.Constant(start),
            constraint="non_neg" if self.constraint == "positive" else None,
            dtype="float32",
            autocast=False,
        )

    def _unshared_sizes(self, input_shape):
        """Size of each axis along which every position has a blend of its own."""
        rank = len(input_shape)
        for axis in self.shared_axes:
            if not -rank <= axis < rank or axis % rank == 0:
                raise ValueError(
                    "`shared_axes` must be axes of the input behind the batch. "
                    f"Received: shared_axes={self.shared_axes} for an input of shape "
                    f"{tuple(input_shape)}."
                )
        shared = {axis % rank for axis in self.shared_axes}
        own = {axis: input_shape[axis] for axis in range(1, rank) if axis not in shared}
        if None in own.values():
            raise ValueError(
                "Axes with blends of their own must have a known size; list the others "
                f"in `shared_axes`. Received: shared_axes={self.shared_axes} for an "
                f"input of shape {tuple(input_shape)}."
            )
        return own

    def _index_of(self, activation):
        if activation is None:
            return None
        count = len(self._names)
        if isinstance(activation, str):
            if activation in self._names:
                return self._names.index(activation)
        elif isinstance(activation, bool) or not isinstance(
            activation, numbers.Integral
        ):
            raise TypeError(
                "`initial_activation` must be a name, an index or None. Received: "
                f"initial_activation={activation!r} of type {type(activation)}."
            )
        elif 0 <= activation < count:
            return int(activation)
        raise ValueError(
            f"`initial_activation` must be one of {self._names}, or an index from 0 to "
            f"{count - 1}. Received: initial_activation={activation!r}."
        )


def _checked_axes(axes):
    if axes is None:
        return None
    given = axes if isinstance(axes, (list, tuple)) else [axes]
    for axis in given:
        if isinstance(axis, bool) or not isinstance(axis, numbers.Integral):
            raise TypeError(
                "`shared_axes` must be None, an integer or a list of integers. "
                f"Received: shared_axes={axes!r}."
            )
        if axis == 0:
            raise ValueError(
                "`shared_axes` counts from 1: the samples of a batch, along axis 0, "
                f"always share a blend. Received: shared_axes={axes!r}."
            )
    return [int(axis) for axis in given]


def _nan_like(inputs):
    """NaN of the same shape, without a gradient: a product with NaN would have one."""
    return tf.zeros_like(inputs) + math.nan
