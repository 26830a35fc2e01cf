"""The experts of a `SparseMoE`: what each of them answers for its rows."""

import keras
import tensorflow as tf

from keras_dynamic._compat import losses_within, set_mask
from keras_dynamic.layers._gate_records import (
    GatesInBranches,
    collecting,
    observe_within,
)
from keras_dynamic.layers._sub_layers import build_layer, output_shape, run_layer
from keras_dynamic.ops.activation_flops import activation_flops
from keras_dynamic.ops.feed_forward import (
    dense_feed_forward,
    grouped_feed_forward,
    on_device,
    stacked_feed_forward,
)

__all__ = [
    "FeedForward",
    "FeedForwardExperts",
    "LayerExperts",
    "build_experts",
    "feed_forwards",
]


class FeedForward(keras.layers.Layer):
    """One two-layer network: act(x W1 + b1) W2 + b2, or gated, act(x V) * (x W).

    Args:
        hidden_units: int.
        activation: of the hidden layer.
        gated: bool; the first kernel then holds V and W side by side.
        use_bias: bool.
        kernel_initializer, bias_initializer, kernel_regularizer: of both layers.
    """

    def __init__(
        self,
        hidden_units,
        activation,
        gated,
        use_bias,
        kernel_initializer,
        bias_initializer,
        kernel_regularizer,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.hidden_units = hidden_units
        self.activation = activation
        self.gated = gated
        self.use_bias = use_bias
        self._initializers = kernel_initializer, bias_initializer
        self._regularizer = kernel_regularizer

    def build(self, input_shape):
        features, hidden = input_shape[-1], self.hidden_units
        inner = 2 * hidden if self.gated else hidden
        self.first_kernel = self._kernel("first_kernel", (features, inner), 0)
        self.second_kernel = self._kernel("second_kernel", (hidden, features), 2)
        self.first_bias = self.second_bias = None
        if self.use_bias:
            _, bias = self._initializers
            self.first_bias = self.add_weight((inner,), bias, name="first_bias")
            self.second_bias = self.add_weight((features,), bias, name="second_bias")

    def call(self, inputs):
        return dense_feed_forward(inputs, self.tensors(), self.activate)

    def tensors(self):
        """(W1, b1, W2, b2), in the compute dtype."""
        weights = (
            self.first_kernel,
            self.first_bias,
            self.second_kernel,
            self.second_bias,
        )
        return tuple(
            None if weight is None else tf.cast(weight, self.compute_dtype)
            for weight in weights
        )

    def activate(self, inner):
        """(rows, hidden) from what the first kernel gives."""
        if not self.gated:
            return self.activation(inner)
        gate, value = tf.split(inner, 2, axis=-1)
        return self.activation(gate) * value

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    def compute_flops(self, input_shape):
        """FLOPs of one batch of that shape."""
        rows, features = 1, input_shape[-1]
        for size in input_shape[:-1]:
            rows *= size
        hidden = self.hidden_units
        inner = 2 * hidden if self.gated else hidden
        per_row = 2 * features * inner + 2 * hidden * features
        if self.use_bias:
            per_row += inner + features
        if self.gated:
            per_row += hidden  # the product of both halves
        return rows * (per_row + activation_flops(self.activation) * hidden)

    def _kernel(self, name, shape, offset):
        """A gated kernel holds two, each drawn as one of its own size."""
        kernel, _ = self._initializers

        def initialize(shape, dtype=None):
            if not (self.gated and offset == 0):
                return _reseeded(kernel, offset)(shape, dtype=dtype)
            half = (shape[0], shape[1] // 2)
            halves = [_reseeded(kernel, part)(half, dtype=dtype) for part in (0, 1)]
            return tf.concat(halves, axis=1)

        return self.add_weight(
            shape, initialize, name=name, regularizer=self._regularizer
        )


class FeedForwardExperts:
    """Networks of one form, run together where that is faster.

    Args:
        layers: list of `FeedForward`.
        devices: list of device names, one for each, or None.
        training: whether gradients are written out.
    """

    def __init__(self, layers, devices, training):
        self._layers, self._devices, self._training = layers, devices, training

    def of_groups(self, rows, counts, mask):
        """Answers for rows (rows, ..., features) that are sorted by expert.

        Args:
            counts: (experts,) int32, how many rows each expert has.
            mask: of the rows, for experts that take one, or None.
        """
        flat, each = _flat(rows)
        answers = grouped_feed_forward(
            flat,
            counts * each,
            [layer.tensors() for layer in self._layers],
            self._layers[0].activate,
            self._devices,
            self._training,
        )
        return tf.reshape(answers, tf.shape(rows))

    def of_places(self, rows, mask):
        """Answers for rows (experts, capacity, ..., features)."""
        shape = tf.shape(rows)
        flat = tf.reshape(rows, [len(self._layers), -1, rows.shape[-1]])
        weights = [layer.tensors() for layer in self._layers]
        answers = stacked_feed_forward(flat, weights, self._layers[0].activate)
        return tf.reshape(answers, shape)

    def of_all(self, expert, rows, mask):
        """One expert's answers for all rows."""
        flat, _ = _flat(rows)
        return tf.reshape(self._layers[expert](flat), tf.shape(rows))


class LayerExperts:
    """Any layers as experts, each called by itself.

    Args:
        layers: list of layers or models.
        devices: list of device names, one for each, or None.
        compute_dtype: to which answers are cast.
        add_loss: function that is told of losses in training, or None.
    """

    def __init__(self, layers, devices, compute_dtype, add_loss):
        self._layers = layers
        self._devices = devices or [None] * len(layers)
        self._dtype, self._add_loss = compute_dtype, add_loss

    def of_groups(self, rows, counts, mask):
        number = len(self._layers)
        parts = tf.split(rows, counts, num=number)
        masks = [None] * number
        if mask is not None:
            masks = tf.split(mask, counts, num=number)
        answers = [
            self._of_some(expert, part, own)
            for expert, (part, own) in enumerate(zip(parts, masks, strict=True))
        ]
        return tf.concat(answers, axis=0)

    def of_places(self, rows, mask):
        parts = tf.unstack(rows)
        masks = [None] * len(parts) if mask is None else tf.unstack(mask)
        return tf.stack(
            [
                self.of_all(expert, part, own)
                for expert, (part, own) in enumerate(zip(parts, masks, strict=True))
            ]
        )

    def of_all(self, expert, rows, mask):
        answer, loss = self._run(expert, rows, mask)
        self._tell(loss)
        return answer

    def _of_some(self, expert, rows, mask):
        """Answers of an expert that may have no rows, and then does not run.

        Layers fail on empty batches, or make NaNs of them.
        """
        shape = output_shape(self._layers[expert], (None, *rows.shape[1:]))
        gates = GatesInBranches([self._layers[expert]], rows)

        def run():
            with collecting() as records:
                answer, loss = self._run(expert, rows, mask)
            return answer, loss, gates.vectors(records)

        def idle():
            # No row, of sizes that only the other branch would know.
            sizes = [0, *(size or 0 for size in shape[1:])]
            return tf.zeros(sizes, self._dtype), tf.constant(0.0), gates.vectors([])

        busy = tf.shape(rows)[0] > 0
        if tf.executing_eagerly():
            answer, loss, vectors = run() if bool(busy) else idle()
        else:
            answer, loss, vectors = tf.cond(busy, run, idle)
        self._tell(loss)
        observe_within(gates.records(vectors))
        answer.set_shape([None, *shape[1:]])
        return answer

    def _run(self, expert, rows, mask):
        layer = self._layers[expert]
        rows = set_mask(tf.identity(rows), mask)
        with on_device(self._devices[expert]), losses_within(layer) as added:
            answer = tf.cast(run_layer(layer, rows, mask), self._dtype)
            losses = [tf.reduce_sum(tf.cast(loss, tf.float32)) for loss in added()]
        return answer, tf.add_n(losses) if losses else tf.constant(0.0)

    def _tell(self, loss):
        if self._add_loss is not None:
            self._add_loss(loss)


def feed_forwards(layer):
    """The built-in experts of a `SparseMoE`, which start different."""
    return [
        FeedForward(
            layer.hidden_units,
            layer.activation,
            layer.gated,
            layer.use_bias,
            # A kernel takes up to three numbers of its own.
            _reseeded(layer.kernel_initializer, 3 * expert),
            _reseeded(layer.bias_initializer, 3 * expert),
            layer.kernel_regularizer,
            dtype=layer.dtype_policy,
            name=f"expert_{expert}",
        )
        for expert in range(layer.num_experts)
    ]


def build_experts(layers, input_shape, devices):
    """Builds each on its device; checks that they give tensors of one shape."""
    shapes = []
    for layer, device in zip(layers, devices or [None] * len(layers), strict=True):
        with on_device(device):
            build_layer(layer, input_shape)
        shapes.append(output_shape(layer, input_shape))
    for layer, shape in zip(layers, shapes, strict=True):
        if shape is None:
            raise ValueError(
                "`experts` must give one tensor each. Received: "
                f"'{layer.name}' ({type(layer).__name__}), which gives several."
            )
        if shape != shapes[0]:
            raise ValueError(
                "`experts` must all give the same output shape. Received: "
                f"'{layers[0].name}' ({type(layers[0]).__name__}), which gives "
                f"{shapes[0]}, and '{layer.name}' ({type(layer).__name__}), which "
                f"gives {shape}, for rows of shape {tuple(input_shape)}."
            )
    return shapes[0]


def _reseeded(initializer, offset):
    """An initializer like a given one that draws other numbers.

    Keras' draw the same ones at each call, so experts would all be equal. Those with a
    `SeedGenerator` do not, and a copy would begin anew.
    """
    if not isinstance(initializer, keras.initializers.Initializer):
        return initializer
    config = initializer.get_config()
    if isinstance(config.get("seed"), dict):
        return initializer
    if isinstance(config.get("seed"), int):
        config["seed"] += offset
    return type(initializer).from_config(config)


def _flat(rows):
    """Rows as a matrix, and how many of its rows each of them is."""
    flat = tf.reshape(rows, [-1, rows.shape[-1]])
    each = tf.reduce_prod(tf.shape(rows)[1:-1])
    return flat, each
