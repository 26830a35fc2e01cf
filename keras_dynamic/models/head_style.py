"""How a model ends, and heads in that style for its early exits."""

import dataclasses
from typing import Any

import keras

from keras_dynamic.layers.early_exit import EarlyExit
from keras_dynamic.models.graph import Value
from keras_dynamic.models.heads import describe_head
from keras_dynamic.models.operation_flops import operation_flops
from keras_dynamic.models.token_masks import mask_of_call, values_carried_on

__all__ = [
    "HeadStyle",
    "is_activation",
    "is_kernel",
    "is_normalization",
    "read_style",
]

_Dense, _Dropout = keras.layers.Dense, keras.layers.Dropout
_MAXIMA = (
    keras.layers.GlobalMaxPooling1D,
    keras.layers.GlobalMaxPooling2D,
    keras.layers.GlobalMaxPooling3D,
)
# What a model's own head may consist of, beside normalizations and activations.
_OF_HEADS = (
    _Dense,
    _Dropout,
    *_MAXIMA,
    keras.layers.Flatten,
    keras.layers.GlobalAveragePooling1D,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.GlobalAveragePooling3D,
    keras.layers.Identity,
    keras.layers.Reshape,
)
_OPERATIONS_OF_HEADS = {"Flatten", "GetItem", "Mean", "Max", "Reshape", "Squeeze"}
_ACTIVATIONS = (
    keras.layers.Activation,
    keras.layers.ELU,
    keras.layers.LeakyReLU,
    keras.layers.PReLU,
    keras.layers.ReLU,
    keras.layers.Softmax,
)
_ACTIVATING_OPERATIONS = {
    *("Elu", "Gelu", "HardSigmoid", "HardSilu", "LeakyRelu", "LogSoftmax", "Relu"),
    *("Relu6", "Selu", "Sigmoid", "Silu", "Softmax", "Softplus", "Tanh"),
}
# Drops whole features of a sample, whatever stands before the axis of features.
_DROPOUTS = {
    2: keras.layers.Dropout,
    3: keras.layers.SpatialDropout1D,
    4: keras.layers.SpatialDropout2D,
    5: keras.layers.SpatialDropout3D,
}


def is_normalization(operation):
    if not isinstance(operation, keras.Layer):
        return False
    name = type(operation).__name__  # keras-hub has several of its own
    named = "RMSNorm" in name or "LayerNorm" in name
    return named or isinstance(operation, keras.layers.BatchNormalization)


def is_activation(operation):
    named = type(operation).__name__ in _ACTIVATING_OPERATIONS
    return isinstance(operation, _ACTIVATIONS) or named


def is_kernel(operation):
    """Whether it is a convolution or a dense layer, of whatever kind."""
    kernels = ("kernel", "depthwise_kernel", "pointwise_kernel")
    return any(hasattr(operation, name) for name in kernels)


@dataclasses.dataclass(frozen=True)
class HeadStyle:
    """What the heads of early exits take over from the model's own head.

    Attributes:
        steps: the own head's calls, in order.
        activation: what it ends in; None for logits.
        hidden_units: widths of its hidden dense layers.
        hidden_activation: of the last of these.
        pooling: "first", "max" or "auto": how it makes a vector of what it stands on.
        pooled_shape: shape of that; None where it is a vector already.
        mask: the mask of tokens that the pooling was called with, or None.
        normalization: (type, config) of the one before its dense layers, or None.
        activates: the activation layer that follows the normalization, or None.
        dropout: rate of the dropout before its last layer.
        dtype: policy of its last layer, or None.
        data_format: of image maps, or None.
    """

    steps: tuple = ()
    activation: Any = "softmax"
    hidden_units: tuple = ()
    hidden_activation: Any = "relu"
    pooling: str = "auto"
    pooled_shape: tuple | None = None
    mask: Value | None = None
    normalization: Any = None
    activates: Any = None
    dropout: float = 0.0
    dtype: Any = None
    data_format: str | None = None

    @property
    def foot(self):
        """The value that the own head stands on, or None."""
        return self.steps[0].inputs[0] if self.steps else None

    def layers_for(self, spec, units, name, arguments, last=False):
        """The layers of a head, to be called one after the other.

        Args:
            spec: symbolic tensor that the head is to stand on.
            units: number of classes.
            name: of the exit.
            arguments: dict of `EarlyExit` arguments that count more than the style.
            last: whether it stands on what the model gives, after the normalization
                and hidden layers of its own.
        """
        rank, layers = len(spec.shape), []
        if self.normalization is not None and not last:
            kind, config = self.normalization
            new = {"name": f"{name}_normalization", "trainable": True}
            layers.append(kind.from_config({**config, **new}))
            if self.activates is not None:
                config = self.activates.get_config()
                new = {**config, "name": f"{name}_activation"}
                layers.append(type(self.activates).from_config(new))
        if self.dropout:
            given = {} if rank != 4 else {"data_format": self.data_format}
            layers.append(
                _DROPOUTS[rank](self.dropout, name=f"{name}_dropout", **given)
            )
        own = {
            "pooling": self._pooling_for(spec),
            "activation": self.activation,
            "hidden_units": None,
            "data_format": self.data_format,
            "dtype": self.dtype,
        }
        pooling = arguments.get("pooling")
        if isinstance(pooling, keras.Layer):  # each exit has its own
            copy = type(pooling).from_config(pooling.get_config())
            arguments = {**arguments, "pooling": copy}
        exit_layer = EarlyExit(units, name=name, **{**own, **arguments})
        if self.hidden_units and not last and "hidden_units" not in arguments:
            # As the own head has them, unless they would widen what they are given.
            widths = self.hidden_units
            if max(widths) <= exit_layer.count_features(spec.shape):
                own["hidden_units"] = list(widths)
                own["hidden_activation"] = self.hidden_activation
                exit_layer = EarlyExit(units, name=name, **{**own, **arguments})
        return [*layers, exit_layer]

    def flops_for(self, spec, units, arguments):
        """FLOPs of such a head, for a batch of one; None where unknown."""
        total = 0
        for layer in self.layers_for(spec, units, "head", arguments):
            layer.build(spec.shape)
            output = layer.compute_output_spec(spec)
            flops = operation_flops(layer, (spec,), {}, [output])
            if flops is None:
                return None
            total, spec = total + flops, output
        return total

    def _pooling_for(self, spec):
        shape = self.pooled_shape
        if shape is None or len(shape) != len(spec.shape):
            return "auto"
        # A class token is the first one only where it stands among the tokens.
        moved = self.pooling == "first" and shape[1] not in (None, spec.shape[1])
        return "auto" if moved else self.pooling


def read_style(graph, classifies):
    """The `HeadStyle` of a model.

    Args:
        graph: the `Graph` of a model with one output.
        classifies: whether the output is the answer, and not features for another
            head that is still to be put on it.
    """
    chain = _chain_back(graph, graph.outputs[0])
    if chain and isinstance(chain[-1].operation, EarlyExit):
        return _style_of_exit(chain[-1])
    pooling = next((i for i, step in enumerate(chain) if _makes_vector(step)), None)
    dense = [i for i, step in enumerate(chain) if isinstance(step.operation, _Dense)]
    start = 0
    if pooling is None and dense and len(graph.outputs[0].spec.shape) == 2:
        # Vectors all along: the head is the last dense layer, and a dropout before it.
        start = dense[-1] if classifies else dense[-1] + 1
        while start and isinstance(chain[start - 1].operation, _Dropout):
            start -= 1
    else:  # a dense layer for each token is no head
        within = [i for i in dense if pooling is None or i < pooling]
        start = within[-1] + 1 if within else 0
    chain = chain[start:]
    return _style_of(graph, chain, pooling and pooling - start, classifies)


def _chain_back(graph, value):
    """The steps of which a head may consist, back from `value`, in their order."""
    producers, chain = graph.producers(), []
    while value in producers:
        step = producers[value]
        operation = step.operation
        of_heads = (
            isinstance(operation, (*_OF_HEADS, EarlyExit))
            or type(operation).__name__ in _OPERATIONS_OF_HEADS
            or is_normalization(operation)
            or is_activation(operation)
            or step.glue
        )
        inputs = values_carried_on(step)
        if not of_heads or len(inputs) != 1:
            break
        chain.append(step)
        value = inputs[0]
    return chain[::-1]


def _style_of(graph, chain, pooling, classifies):
    """
    Args:
        chain: the own head's steps.
        pooling: index of the one that makes a vector, or None.
    """
    if not chain:
        return HeadStyle()
    dense = [s.operation for s in chain if isinstance(s.operation, _Dense)]
    hidden = dense[:-1] if classifies else dense
    found = {"hidden_units": tuple(layer.units for layer in hidden)}
    if hidden:
        found["hidden_activation"] = _activation_after(chain, hidden[-1])
    if classifies:
        found["activation"] = _activation(graph, chain)
        found["dropout"] = _dropout(chain)
    if pooling is not None:
        step = chain[pooling]
        found["pooling"] = _pooling(step)
        found["pooled_shape"] = tuple(step.inputs[0].spec.shape)
        found["mask"] = mask_of_call(step)
        found["data_format"] = getattr(step.operation, "data_format", None)
    # Before the pooling a normalization may belong to a convolution, which heads lack.
    producer = graph.producers().get(chain[0].inputs[0])
    belongs = producer is not None and is_kernel(producer.operation)
    normal = _normalization(chain, (pooling or len(chain)) if belongs else 0)
    if normal is not None:
        found["normalization"] = _along_features(chain[normal])
        after = chain[normal + 1].operation if normal + 1 < len(chain) else None
        if isinstance(after, _ACTIVATIONS):
            found["activates"] = after
    if isinstance(chain[-1].operation, keras.Layer):
        found["dtype"] = chain[-1].operation.dtype_policy
    return HeadStyle(steps=tuple(chain), **found)


def _style_of_exit(step):
    exit_layer = step.operation
    given = exit_layer.pooling
    return HeadStyle(
        steps=(step,),
        activation=exit_layer.activation,
        hidden_units=tuple(exit_layer.hidden_units or ()),
        hidden_activation=exit_layer.hidden_activation,
        pooling=given if isinstance(given, str) else "auto",
        pooled_shape=tuple(step.inputs[0].spec.shape),
        mask=mask_of_call(step),
        dtype=exit_layer.dtype_policy,
        data_format=exit_layer.data_format,
    )


def _makes_vector(step):
    before, after = step.inputs[0].spec.shape, step.outputs[0].spec.shape
    return len(before) > 2 and len(after) == 2


def _pooling(step):
    operation = step.operation
    if isinstance(operation, _MAXIMA) or type(operation).__name__ == "Max":
        return "max"
    if type(operation).__name__ == "GetItem":
        _, key = step.args
        everything = slice(None)
        if isinstance(key, tuple) and key[:2] == (everything, 0):
            return "first"
    return "auto"


def _normalization(chain, start):
    """Index of a normalization before the dense layers, from `start` on, or None."""
    for index, step in enumerate(chain):
        if isinstance(step.operation, _Dense):
            return None
        fits = index >= start and is_normalization(step.operation)
        if fits and _along_features(step) is not None:
            return index
    return None


def _along_features(step):
    """(type, config) of a normalization for other ranks; None if it has more axes."""
    config = step.operation.get_config()
    axes = config.get("axis", -1)
    axes = list(axes) if isinstance(axes, (list, tuple)) else [axes]
    if len(axes) != 1:
        return None
    if "axis" in config:  # keras-hub's own have none
        last = axes[0] in (-1, len(step.inputs[0].spec.shape) - 1)
        config["axis"] = -1 if last else axes[0]
    return type(step.operation), config


def _dropout(chain):
    rates = [s.operation.rate for s in chain if isinstance(s.operation, _Dropout)]
    return rates[-1] if rates else 0.0


def _activation(graph, chain):
    """What the output went through last, None for logits."""
    name = describe_head(graph, graph.outputs[0]).activation
    if name in (None, "linear"):
        return None
    own = getattr(chain[-1].operation, "activation", None)
    return own if getattr(own, "__name__", None) == name else name


def _activation_after(chain, layer):
    if layer.activation is not keras.activations.linear:
        return layer.activation
    index = next(i for i, step in enumerate(chain) if step.operation is layer)
    for step in chain[index + 1 :]:
        if isinstance(step.operation, keras.layers.Activation):
            return step.operation.activation
        if isinstance(step.operation, _Dense):
            break
    return "relu"
