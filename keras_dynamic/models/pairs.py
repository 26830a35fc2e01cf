"""Pairs of dense layers, one behind the other, in the graph of a model."""

import dataclasses

import keras
from keras import tree

from keras_dynamic._compat import functional_nodes, functional_of, layers_within

__all__ = ["Pair", "find_pairs"]

# What may stand between two dense layers: it acts on each number alone.
_ACTIVATIONS = (
    keras.layers.Activation,
    keras.layers.ELU,
    keras.layers.LeakyReLU,
    keras.layers.ReLU,
)


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two dense layers and what stands between them.

    Attributes:
        layers: tuple of layers in the order in which they are called.
    """

    layers: tuple

    @property
    def first(self):
        return self.layers[0]

    @property
    def second(self):
        return self.layers[-1]

    @property
    def activation(self):
        """The function between both products, where `is_network`."""
        functions = self._functions()
        return functions[0] if functions else keras.activations.linear

    @property
    def is_network(self):
        """Whether it is act(x W1 + b1) W2 + b2, with nothing else to keep."""
        first, second = self.first, self.second
        plain = all(
            type(layer) is keras.layers.Dense and _is_plain(layer)
            for layer in (first, second)
        )
        return (
            plain
            and all(
                type(layer) is keras.layers.Activation
                and layer.activity_regularizer is None
                and layer.dtype_policy.name == first.dtype_policy.name
                for layer in self.layers[1:-1]
            )
            and len(self._functions()) <= 1
            and not any(isinstance(f, keras.Layer) for f in self._functions())
            and second.activation is keras.activations.linear
            and second.units == first.kernel.shape[0]
            and first.use_bias == second.use_bias
            and first.trainable == second.trainable
            and _config_of(first.kernel_regularizer)
            == _config_of(second.kernel_regularizer)
        )

    def _functions(self):
        found = [getattr(q, "activation", None) for q in self.layers[:-1]]
        return [f for f in found if f not in (None, keras.activations.linear)]


def find_pairs(model, layers):
    """The pairs that a user names.

    Args:
        model: functional or Sequential model.
        layers: list of names or layers, the first of each pair or both one after the
            other, or of tuples of both.

    Returns:
        (list of `Pair`, set of ids of the symbolic tensors that all layers but the
        first of each pair give).
    """
    calls = _Calls(model)
    pairs, passed_over, taken = [], set(), {}
    for entry in _checked_entries(layers):
        first = _layer_named(model, entry[0])
        if len(entry) == 1 and pairs and first is pairs[-1].second:
            continue  # both layers of a pair, one after the other
        pair, tensors = calls.pair_of(first)
        if len(entry) == 2 and _layer_named(model, entry[1]) is not pair.second:
            raise ValueError(
                "`layers` must hold pairs of which the second layer takes what the "
                f"first one gives. Received: {_name(entry)}; '{first.name}' goes to "
                f"'{pair.second.name}'."
            )
        for layer in (pair.first, pair.second):
            if id(layer) in taken:
                raise ValueError(
                    "`layers` must name each layer once, and no second layer of "
                    f"another pair. Received: '{layer.name}' twice, in {layers!r}."
                )
            taken[id(layer)] = layer
        pairs.append(pair)
        passed_over |= tensors
    return pairs, passed_over


class _Calls:
    """All calls in a model's graphs, and who reads what they give."""

    def __init__(self, model):
        self._of, self._readers = {}, {}
        for layer in layers_within(model):
            functional = functional_of(layer)
            if functional is None:
                continue
            for node in functional_nodes(functional):
                operation, args, kwargs, _ = node
                self._of.setdefault(id(operation), []).append(node)
                read = {id(leaf): leaf for leaf in tree.flatten((args, kwargs))}
                for key in read:
                    self._readers.setdefault(key, []).append(node)
            for tensor in functional.outputs:
                self._readers.setdefault(id(tensor), []).append(None)

    def pair_of(self, first):
        """(`Pair`, ids of the tensors that all its layers but the first give)."""
        calls = self._of.get(id(first), [])
        if not calls:
            raise ValueError(
                "`layers` must be called by a functional or Sequential model. "
                f"Received: '{first.name}', which another layer holds."
            )
        routes = [self._route(*call) for call in calls]
        layers = routes[0][0]
        for other, _ in routes[1:]:
            if list(map(id, other)) != list(map(id, layers)):
                raise ValueError(
                    "`layers` that are called several times must go the same way each "
                    f"time. Received: {_way(layers)}, and {_way(other)}."
                )
        pair = Pair(layers)
        if len(self._of[id(pair.second)]) != len(calls):
            raise ValueError(
                "The second layer of a pair must be called for that pair only. "
                f"Received: '{pair.second.name}' behind '{first.name}', which is "
                "called elsewhere too."
            )
        policies = {layer.dtype_policy.name for layer in (first, pair.second)}
        if len(policies) > 1 or pair.first.quantization_mode:
            raise ValueError(
                "Both layers of a pair must have the same dtype policy, and be not "
                f"quantized. Received: {_way(layers)} with "
                f"{first.dtype_policy.name} and {pair.second.dtype_policy.name}."
            )
        return pair, {key for _, tensors in routes for key in tensors}

    def _route(self, first, args, kwargs, outputs):
        """((first, ..., second), ids of tensors) of one call."""
        _check_alone(first, args, kwargs)
        layers, tensors = (first,), []
        while True:
            (tensor,) = outputs
            readers = self._readers.get(id(tensor), [])
            if len(readers) != 1 or readers[0] is None:
                names = [
                    "the model's output" if r is None else r[0].name for r in readers
                ]
                raise ValueError(
                    "What the first layer of a pair gives must go to one layer only. "
                    f"Received: {_way(layers)}, which goes to {names}."
                )
            operation, args, kwargs, outputs = readers[0]
            layers = (*layers, operation)
            if not _may_stand_in_a_pair(operation):
                raise ValueError(
                    "Between both layers of a pair there may be nothing but Activation "
                    f"and Dropout layers. Received: {_way(layers)}, a "
                    f"{type(operation).__name__}."
                )
            _check_alone(operation, args, kwargs)
            tensors.append(id(outputs[0]))
            if isinstance(operation, keras.layers.Dense):
                return layers, tensors


def _checked_entries(layers):
    """List of tuples of one or two names or layers."""
    if not isinstance(layers, (list, tuple)):
        raise TypeError(
            "`layers` must be a list of names or layers, or of pairs of these. "
            f"Received: layers={layers!r} of type {type(layers)}."
        )
    if not layers:
        raise ValueError("`layers` must name at least one layer. Received: layers=[].")
    entries = []
    for given in layers:
        pair = isinstance(given, (list, tuple))
        entry = tuple(given) if pair else (given,)
        if (pair and len(entry) != 2) or not all(
            isinstance(each, (str, keras.Layer)) for each in entry
        ):
            raise TypeError(
                "`layers` must hold names or layers, or pairs of these. Received: "
                f"{given!r} in layers={layers!r}."
            )
        entries.append(entry)
    return entries


def _layer_named(model, wanted):
    """The dense layer of a model that a user named."""
    inner = [layer for layer in layers_within(model) if layer is not model]
    if isinstance(wanted, str):
        found = [layer for layer in inner if layer.name == wanted]
    else:
        found = [layer for layer in inner if layer is wanted]
    name = _name((wanted,))
    if not found:
        known = [q.name for q in inner if isinstance(q, keras.layers.Dense)]
        raise ValueError(
            f"`layers` must be layers of `model`. Received: {name}. Its Dense layers "
            f"are {known}."
        )
    if len(found) > 1:
        raise ValueError(
            "`layers` must be named so that one can tell them apart. Received: "
            f"{name}, of which there are {len(found)}: give the layer itself."
        )
    if not isinstance(found[0], keras.layers.Dense):
        raise ValueError(
            "`layers` must be Dense layers. Received: "
            f"{name}, a {type(found[0]).__name__}."
        )
    return found[0]


def _may_stand_in_a_pair(operation):
    if type(operation) is keras.layers.Dropout:
        return operation.noise_shape is None  # else it knows of the other axes
    return type(operation) in _ACTIVATIONS or isinstance(operation, keras.layers.Dense)


def _check_alone(layer, args, kwargs):
    """Raises where a layer was told more than its input."""
    leaves = tree.flatten((args, kwargs))
    # `training=False` is what is recorded where nothing was said.
    given = [leaf for leaf in leaves if leaf is not None and leaf is not False]
    if len(given) != 1:
        raise ValueError(
            "The layers of a pair must be called with one tensor and nothing else. "
            f"Received: '{layer.name}' called with {given}."
        )


def _config_of(regularizer):
    return keras.saving.serialize_keras_object(regularizer)


def _is_plain(layer):
    """Whether a dense layer has nothing that the built-in experts do not have."""
    return not any(
        (
            layer.lora_enabled,
            layer.bias_regularizer,
            layer.activity_regularizer,
            layer.kernel_constraint,
            layer.bias_constraint,
        )
    )


def _way(layers):
    return " -> ".join(f"'{layer.name}'" for layer in layers)


def _name(entry):
    names = [f"'{q.name}'" if isinstance(q, keras.Layer) else repr(q) for q in entry]
    return names[0] if len(names) == 1 else f"({', '.join(names)})"
