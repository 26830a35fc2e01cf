"""discretize: a plain model that holds only what was chosen."""

import dataclasses
import inspect
import tempfile

import keras
import numpy as np
from keras import tree

from keras_dynamic._compat import BatchIterator, layers_within
from keras_dynamic.layers._gate_records import collecting
from keras_dynamic.layers.blended_activation import BlendedActivation
from keras_dynamic.layers.layer_choice import LayerChoice
from keras_dynamic.layers.skip_gate import SkipGate

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
    if not (isinstance(model, keras.Model) and getattr(model, "inputs", None)):
        raise ValueError(
            "`model` must be a functional or built Sequential `keras.Model`. Received: "
            f"{model!r} of type {type(model)}."
        )
    if x is not None and not any(True for _ in _batches(x, batch_size)):
        raise ValueError("`x` must hold at least one sample. Received: none.")
    rates = {} if x is None else _open_rates(model, x, batch_size)
    builder = _Builder(rates)
    plain = builder.rebuild(model)
    builder.copy_weights()
    if hasattr(model, "road"):
        plain.exit_rule = model.exit_rule
        plain.calibration_temperatures.assign(model.calibration_temperatures)
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


class _Builder:
    """Makes new layers for old ones, and remembers whose weights go where.

    Args:
        rates: dict from the id of a gate to its open rate on the data.
    """

    def __init__(self, rates):
        self.rates = rates
        self.replaced, self.reasons = {}, {}
        self._pairs, self._made = [], {}

    def rebuild(self, model):
        """A functional or Sequential model with its layers replaced."""
        calls = None if isinstance(model, keras.Sequential) else _call
        return keras.models.clone_model(
            model,
            clone_function=self.layer_for,
            call_function=calls,
            recursive=True,
        )

    def layer_for(self, layer):
        """The layer or operation, unbuilt, that stands in the place of another.

        One for each: a layer that stood in two places still does.
        """
        if id(layer) not in self._made:
            self._made[id(layer)] = self._new_for(layer)
        return self._made[id(layer)]

    def _new_for(self, layer):
        if isinstance(layer, LayerChoice):
            winner = layer.winner()
            self.replaced[layer.name] = f"{winner.name} ({type(winner).__name__})"
            return self._inner(winner, layer.name)
        if isinstance(layer, BlendedActivation):
            return self._activation_for(layer)
        if isinstance(layer, SkipGate):
            return self._gate_for(layer)
        config = layer.get_config()
        blend = getattr(layer, "activation", None)
        if isinstance(blend, BlendedActivation) and blend.winner() is not None:
            function = self._activation_for(blend).activation
            config["activation"] = keras.activations.serialize(function)
            new = type(layer).from_config(config)
            self._pairs.append((_Without(layer, blend), new))
            return new
        if type(layer) is keras.layers.TimeDistributed:
            inner = self._inner(layer.layer)
            return keras.layers.TimeDistributed(
                inner, name=layer.name, dtype=layer.dtype_policy
            )
        new = type(layer).from_config(config)
        if isinstance(layer, keras.Layer):  # and no operation of the graph
            self._pairs.append((layer, new))
        return new

    def copy_weights(self):
        for old, new in self._pairs:
            new.set_weights(old.get_weights())
            if hasattr(old, "save_assets"):  # vocabularies
                with tempfile.TemporaryDirectory() as folder:
                    old.save_assets(folder)
                    new.load_assets(folder)
            if hasattr(new, "finalize_state"):  # what it computes from its weights
                new.finalize_state()

    def _inner(self, layer, name=None):
        """A layer that stood inside of another one, under another name."""
        is_model = isinstance(layer, keras.Model) and getattr(layer, "inputs", None)
        known = id(layer) in self._made
        if is_model and not known:
            self._made[id(layer)] = self.rebuild(layer)
        new = self.layer_for(layer)
        if name is not None and not known:
            new.name = name  # not called yet: no graph knows it by another one
        return new

    def _activation_for(self, layer):
        winner = layer.winner()
        if winner is None:
            self.reasons[layer.name] = "it has several blends"
            new = type(layer).from_config(layer.get_config())
            self._pairs.append((layer, new))
            return new
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
            return self._inner(gate.bypass, gate.name)
        self.reasons[gate.name] = (
            "no data to judge it by" if rate is None else f"open for {rate:.1%}"
        )
        config = {**gate.get_config(), "layer": self._inner(gate.layer)}
        for name in ("gate", "shortcut"):
            own = getattr(gate, name)
            if isinstance(own, keras.Layer):
                config[name] = self._inner(own)
        new = SkipGate.from_config(config)
        self._pairs.append((_Parts(gate), _Parts(new)))
        return new

    def _open(self, gate):
        if not gate.additive:
            return self._inner(gate.layer, gate.name)
        shape = gate.get_build_config()["input_shape"]
        inputs = keras.Input(shape[1:], dtype=gate.compute_dtype)
        bypass = inputs if gate.bypass is None else self._inner(gate.bypass)(inputs)
        output = keras.layers.Add()([bypass, self._inner(gate.layer)(inputs)])
        return keras.Model(inputs, output, name=gate.name)


def _call(layer, *args, **kwargs):
    """Calls a layer as the one in whose place it stands was called.

    What that one knew, a mask for instance, this one may not.
    """
    known = inspect.signature(layer.call).parameters
    return layer(*args, **{k: v for k, v in kwargs.items() if k in known})


class _Parts:
    """What a gate holds by itself: no layer that may have become another one."""

    def __init__(self, gate):
        self.gate = gate

    def _holders(self):
        """The gate and the projection that were made by the layer."""
        own_gate = [] if self.gate.gate is not None else [self.gate.decider]
        made = self.gate.bypass is not None and self.gate.shortcut == "auto"
        return [*own_gate, *([self.gate.bypass] if made else [])]

    def get_weights(self):
        gate = self.gate
        own = [np.asarray(gate.current_temperature), np.asarray(gate.current_cost)]
        return [own, *(holder.get_weights() for holder in self._holders())]

    def set_weights(self, weights):
        (temperature, cost), *parts = weights
        self.gate.current_temperature.assign(temperature)
        if cost >= 0:  # else nobody has filled it in
            self.gate.bind_costs([cost])
        for holder, values in zip(self._holders(), parts, strict=True):
            holder.set_weights(values)


class _Without:
    """The weights of a layer without those of its activation."""

    def __init__(self, layer, blend):
        self._layer = layer
        self._left_out = {id(weight) for weight in blend.weights}

    def get_weights(self):
        weights = self._layer.weights
        return [np.asarray(w) for w in weights if id(w) not in self._left_out]


def _batches(x, batch_size):
    for _, _, batches in BatchIterator(x=x, batch_size=batch_size):
        for batch in batches:
            yield keras.utils.unpack_x_y_sample_weight(batch)[0]


def _open_rates(model, x, batch_size):
    """Dict from the id of each gate that samples of `x` reach to its open rate."""
    reached, opened = {}, {}
    for batch in _batches(x, batch_size):
        with collecting() as records:
            model(batch, training=False)
        for record in records:
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
