"""discretize: a plain model that holds only what was chosen."""

import dataclasses

import keras
import numpy as np
from keras import tree

from keras_dynamic._compat import layers_within
from keras_dynamic.layers._checks import checked_bool
from keras_dynamic.layers._gate_records import collecting
from keras_dynamic.layers.blended_activation import BlendedActivation
from keras_dynamic.layers.layer_choice import LayerChoice
from keras_dynamic.layers.skip_gate import SkipGate
from keras_dynamic.models.feeding import batches_over
from keras_dynamic.models.rebuilding import Rebuilder, check_functional

__all__ = ["Discretization", "discretize"]

_DYNAMIC = (BlendedActivation, LayerChoice, SkipGate)


@dataclasses.dataclass(frozen=True)
class Discretization:
    """What `discretize` did; `print` it.

    Attributes:
        replaced: dict from the names of layers to what stands in their place.
        kept: names of layers that still choose, with the reason.
        parameters: (before, after), numbers of parameters.
        mean_change: mean absolute change of the outputs on `x`; None without.
        max_change: the largest one; None without.
    """

    replaced: dict[str, str]
    kept: dict[str, str]
    parameters: tuple[int, int]
    mean_change: float | None
    max_change: float | None

    def __str__(self):
        lines = [f"{name}: {what}" for name, what in self.replaced.items()]
        lines += [f"{name}: kept, {why}" for name, why in self.kept.items()]
        before, after = self.parameters
        lines.append(f"parameters: {before:,} -> {after:,}")
        if self.mean_change is not None:
            lines.append(
                f"outputs changed by {self.mean_change:.3g} on average, by "
                f"{self.max_change:.3g} at most"
            )
        return "\n".join(lines)


def discretize(model, x=None, batch_size=None, return_report=False):
    """The smaller model that holds only the winners.

    A `LayerChoice` becomes its layer with the largest logit, a `BlendedActivation` its
    strongest activation, wherever they stand: in nested models, in gates, in choices.
    A `SkipGate` that was open for every sample of `x` becomes its layer, one that was
    closed for every sample its shortcut; without `x` gates stay. Weights are copied;
    the model given is left as it is. A relaxed choice is another function than its
    winner alone, so fine-tune the result.

    Where nothing of this package is left in it, the result can be saved and loaded
    without it. It is not compiled.

    Args:
        model: functional or built `Sequential` `keras.Model`, or a `DynamicModel`,
            which stays one, with its rule and temperatures.
        x: data as in `predict`, on which gates are judged and the change of the outputs
            is measured. Defaults to `None`.
        batch_size: int or `None` (32), as in `predict`.
        return_report: bool, whether to give the `Discretization` too. Defaults to
            `False`.

    Returns:
        A model of the same kind, or (model, report).

    Raises:
        TypeError: for a `return_report` that is no bool.
        ValueError: if `model` is no such model.

    Example:

    ```python
    inputs = keras.Input((4,))
    h = kd.LayerChoice([keras.layers.Dense(8), keras.layers.Dense(8, "relu")])(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3)(h))
    x = np.random.default_rng(0).normal(size=(16, 4))
    plain, report = kd.discretize(model, x, return_report=True)
    print(report)  # what was chosen; parameters: 107 -> 67, and two of the choice
    ```
    """
    check_functional(model)
    checked_bool("return_report", return_report)
    if x is not None and not any(True for _ in _batches(x, batch_size)):
        raise ValueError("`x` must hold at least one sample. Received: none.")
    rates = {} if x is None else _open_rates(model, x, batch_size)
    builder = _Builder(rates)
    plain = builder.rebuild(model)
    builder.copy_weights()
    if not return_report:
        return plain
    changes = (None, None) if x is None else _changes(model, plain, x, batch_size)
    kept = {
        layer.name: builder.reasons.get(layer.name, "inside of an opaque layer")
        for layer in layers_within(plain)
        if isinstance(layer, _DYNAMIC)
    }
    sizes = (model.count_params(), plain.count_params())
    return plain, Discretization(builder.replaced, kept, sizes, *changes)


class _Builder(Rebuilder):
    """Puts winners in the place of choices, and remembers what it did.

    Args:
        rates: dict from the id of a gate to its open rate on the data.
    """

    def __init__(self, rates):
        super().__init__()
        self.rates = rates
        self.replaced, self.reasons = {}, {}

    def new_for(self, layer):
        if isinstance(layer, LayerChoice):
            winner = layer.winner()
            self.replaced[layer.name] = f"{winner.name} ({type(winner).__name__})"
            return self.inner(winner, layer.name)
        if isinstance(layer, BlendedActivation):
            return self._activation_for(layer)
        if isinstance(layer, SkipGate):
            return self._gate_for(layer)
        blend = getattr(layer, "activation", None)
        if isinstance(blend, BlendedActivation) and blend.winner() is not None:
            config = layer.get_config()
            function = self._activation_for(blend).activation
            config["activation"] = keras.activations.serialize(function)
            new = type(layer).from_config(config)
            self.pairs.append((_Without(layer, blend), new))
            return new
        return super().new_for(layer)

    def _activation_for(self, layer):
        winner = layer.winner()
        if winner is None:
            self.reasons[layer.name] = "it has several blends"
            return super().new_for(layer)
        function = keras.activations.serialize(winner.activation)
        self.replaced[layer.name] = f"{function}"
        return winner

    def _gate_for(self, gate):
        rate = self.rates.get(id(gate))
        if rate == 1.0:
            self.replaced[gate.name] = f"{gate.layer.name}, always open"
            return self._open(gate)
        if rate == 0.0:
            self.replaced[gate.name] = "its shortcut, always closed"
            if gate.bypass is None:
                return keras.layers.Identity(name=gate.name, dtype=gate.dtype_policy)
            return self.inner(gate.bypass, gate.name)
        self.reasons[gate.name] = (
            "no data to judge it by" if rate is None else f"open for {rate:.1%}"
        )
        return super().new_for(gate)

    def _open(self, gate):
        if not gate.additive:
            return self.inner(gate.layer, gate.name)
        shape = gate.get_build_config()["input_shape"]
        inputs = keras.Input(shape[1:], dtype=gate.compute_dtype)
        bypass = inputs if gate.bypass is None else self.inner(gate.bypass)(inputs)
        output = keras.layers.Add()([bypass, self.inner(gate.layer)(inputs)])
        return keras.Model(inputs, output, name=gate.name)


class _Without:
    """The weights of a layer without those of its activation."""

    def __init__(self, layer, blend):
        self._layer = layer
        self._left_out = {id(weight) for weight in blend.weights}

    def get_weights(self):
        weights = self._layer.weights
        return [np.asarray(w) for w in weights if id(w) not in self._left_out]


def _batches(x, batch_size):
    for _, _, batches in batches_over(x, batch_size):
        for batch in batches:
            yield keras.utils.unpack_x_y_sample_weight(batch)[0]


def _open_rates(model, x, batch_size):
    """Dict from the id of each gate that samples of `x` reach to its open rate."""
    reached, opened = {}, {}
    for batch in _batches(x, batch_size):
        with collecting() as records:
            model(batch, training=False)
        for record in records:
            if not isinstance(record.gate, SkipGate):  # mixtures tell too
                continue
            key = id(record.gate)
            reached[key] = reached.get(key, 0.0) + float(np.sum(record.reached))
            opened[key] = opened.get(key, 0.0) + float(np.sum(record.opened))
    return {key: opened[key] / count for key, count in reached.items() if count}


def _changes(old, new, x, batch_size):
    """(mean, largest) absolute difference of the outputs of two models."""
    total, count, largest = 0.0, 0, 0.0
    for batch in _batches(x, batch_size):
        pairs = zip(
            tree.flatten(old(batch, training=False)),
            tree.flatten(new(batch, training=False)),
            strict=True,
        )
        for one, other in pairs:
            change = np.abs(np.asarray(one, "float64") - np.asarray(other, "float64"))
            total, count = total + float(change.sum()), count + change.size
            largest = max(largest, float(change.max(initial=0.0)))
    return total / max(count, 1), largest
