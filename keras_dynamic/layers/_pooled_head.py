"""PooledHead: what exits, selectors and gates are made of."""

import math

import keras
from keras import ops

from keras_dynamic._compat import get_mask, set_mask
from keras_dynamic.layers._checks import check_one_tensor, positive_integer
from keras_dynamic.ops.pooling import (
    grid_for_map,
    largest,
    masked_max,
    masked_mean,
    pool_to_grid,
)

__all__ = ["PooledHead", "small_gate"]

_POOLINGS = ("auto", "average", "max", "first", "flatten")


@keras.saving.register_keras_serializable(package="keras_dynamic")
class PooledHead(keras.layers.Layer):
    """Pools its input to a vector and maps it to logits by dense layers.

    Args:
        units: int >= 1, the number of logits.
        pooling, hidden_units, grid, hidden_activation, data_format: as in `EarlyExit`.
        kernel_initializer, bias_initializer: of the layer that gives the logits.

    Call arguments:
        inputs: (batch, height, width, channels) image maps, (batch, d1, d2, d3,
            channels) volumes, (batch, tokens, channels) sequences or (batch,
            channels) vectors.
        mask: (batch, tokens) bool; by default the mask that the inputs carry.

    Output shape:
        (batch, units), in the compute dtype.
    """

    def __init__(
        self,
        units,
        pooling="auto",
        hidden_units=None,
        grid=None,
        hidden_activation="relu",
        data_format=None,
        kernel_initializer="glorot_uniform",
        bias_initializer="zeros",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.units = positive_integer("units", units)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.pooling = self._checked_pooling(pooling)
        self.hidden_units = self._checked_hidden_units(hidden_units)
        self.grid = self._checked_grid(grid)
        self.hidden_activation = keras.activations.get(hidden_activation)
        self.data_format = data_format or keras.config.image_data_format()
        if self.data_format not in ("channels_last", "channels_first"):
            raise ValueError(
                "`data_format` must be 'channels_last' or 'channels_first'. Received: "
                f"data_format={data_format!r}."
            )
        self.supports_masking = True
        self.input_spec = keras.layers.InputSpec(min_ndim=2, max_ndim=5)

    def build(self, input_shape):
        # Once and for all: a batch may know sizes that the model leaves open.
        features = self._features = self.count_features(input_shape)
        self.hidden_layers = []
        for index, width in enumerate(self.hidden_units or []):
            layer = keras.layers.Dense(
                width,
                activation=self.hidden_activation,
                dtype=self.dtype_policy,
                name=f"hidden_{index}",
            )
            layer.build((None, features))
            self.hidden_layers.append(layer)
            features = width
        self.classifier = keras.layers.Dense(
            self.units,
            kernel_initializer=self.kernel_initializer,
            bias_initializer=self.bias_initializer,
            dtype=self.dtype_policy,
            name="classifier",
        )
        self.classifier.build((None, features))

    def call(self, inputs, mask=None):
        return self._logits(inputs, mask)

    def count_features(self, input_shape):
        """Length of the vector that the pooling makes of such an input."""
        check_one_tensor(input_shape)
        self._check_rank(input_shape)
        self._built_grid = self._grid_for(input_shape)
        return self._pooled_features(input_shape)

    def compute_mask(self, inputs, previous_mask):
        return None  # one answer a sample: the tokens are gone

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.units)

    def get_config(self):
        pooling = self.pooling
        if not isinstance(pooling, str):
            pooling = keras.saving.serialize_keras_object(pooling)
        return {
            **super().get_config(),
            "units": self.units,
            "pooling": pooling,
            "hidden_units": self.hidden_units,
            "grid": self.grid,
            "hidden_activation": keras.activations.serialize(self.hidden_activation),
            "data_format": self.data_format,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        if isinstance(config.get("pooling"), dict):
            config["pooling"] = keras.saving.deserialize_keras_object(config["pooling"])
        return super().from_config(config)

    def _logits(self, inputs, mask):
        # With two tensor arguments Keras does not fill in `mask` by itself.
        mask = get_mask(inputs) if mask is None else mask
        hidden = self._pool(inputs, mask)
        if len(hidden.shape) > 2:
            hidden = ops.reshape(hidden, (-1, self._features))
        for layer in self.hidden_layers:
            hidden = layer(hidden)
        return self.classifier(hidden)

    def _checked_pooling(self, pooling):
        if isinstance(pooling, keras.layers.Layer):
            return pooling
        if not isinstance(pooling, str):
            raise TypeError(
                f"`pooling` must be one of {_POOLINGS} or a layer. Received: "
                f"pooling={pooling!r} of type {type(pooling)}."
            )
        if pooling not in _POOLINGS:
            raise ValueError(
                f"`pooling` must be one of {_POOLINGS} or a layer. Received: "
                f"pooling={pooling!r}."
            )
        return pooling

    def _checked_hidden_units(self, hidden_units):
        if hidden_units is None:
            return None
        if isinstance(hidden_units, (list, tuple)):
            return [positive_integer("hidden_units", width) for width in hidden_units]
        return [positive_integer("hidden_units", hidden_units)]

    def _checked_grid(self, grid):
        if grid is None:
            return None
        if self.pooling not in ("auto", "average", "max"):
            raise ValueError(
                "`grid` needs `pooling` 'auto', 'average' or 'max'. Received: "
                f"grid={grid} with pooling={self.pooling!r}."
            )
        return positive_integer("grid", grid)

    def _check_rank(self, input_shape):
        rank = len(input_shape)
        if self.pooling == "first" and rank != 3:
            raise ValueError(
                "`pooling='first'` takes the class token of a sequence (batch, tokens, "
                f"channels). Received: an input of shape {tuple(input_shape)}."
            )
        if self.grid is not None and self.grid > 1:
            spatial = self._spatial(input_shape)
            if rank != 4 or None in spatial:
                raise ValueError(
                    "`grid` pools image maps (batch, height, width, channels) of known "
                    f"height and width. Received: grid={self.grid} for an input of "
                    f"shape {tuple(input_shape)}."
                )

    def _pooled_features(self, input_shape):
        """Length of the vector that the pooling makes."""
        if isinstance(self.pooling, keras.layers.Layer):
            if not self.pooling.built:
                self.pooling.build(input_shape)
            pooled = self.pooling.compute_output_shape(input_shape)
        else:
            symbolic = keras.KerasTensor(input_shape, dtype=self.compute_dtype)
            pooled = self._pool(symbolic, None).shape
        if None in pooled[1:]:
            raise ValueError(
                f"Layer '{self.name}' cannot make a vector of known length from an "
                f"input of shape {tuple(input_shape)} with pooling={self.pooling!r}. "
                "Pool it globally ('average' or 'max')."
            )
        return math.prod(pooled[1:])

    def _pool(self, inputs, mask):
        rank, pooling = len(inputs.shape), self.pooling
        if isinstance(pooling, keras.layers.Layer):
            # On a copy: a `mask` given to this call is not the caller's tensor's.
            return pooling(set_mask(ops.copy(inputs), mask))
        inputs = ops.cast(inputs, self.compute_dtype)
        if rank == 2 or pooling == "flatten":
            return inputs
        if pooling == "first":
            return inputs[:, 0]
        kind = "max" if pooling == "max" else "average"
        if rank == 3:
            pool = masked_max if kind == "max" else masked_mean
            return pool(inputs, mask)
        if rank == 4:
            return pool_to_grid(inputs, self._built_grid, kind, self.data_format)
        axes = (1, 2, 3) if self.data_format == "channels_last" else (2, 3, 4)
        return (largest if kind == "max" else ops.mean)(inputs, axis=axes)

    def _grid_for(self, input_shape):
        if self.grid is not None or self.pooling != "auto" or len(input_shape) != 4:
            return self.grid or 1
        channel_axis = -1 if self.data_format == "channels_last" else 1
        return grid_for_map(*self._spatial(input_shape), input_shape[channel_axis])

    def _spatial(self, shape):
        last = self.data_format == "channels_last"
        return tuple(shape[1:-1]) if last else tuple(shape[2:])


def small_gate(initial_rate, data_format, dtype, name):
    """One logit a sample, at first the same for all: a yes of a given probability.

    Args:
        initial_rate: number in (0, 1), that probability.
        data_format, dtype, name: as in a layer.
    """
    return PooledHead(
        1,
        pooling="average",
        hidden_units=16,
        data_format=data_format,
        kernel_initializer="zeros",
        bias_initializer=keras.initializers.Constant(
            math.log(initial_rate / (1.0 - initial_rate))
        ),
        dtype=dtype,
        name=name,
    )
