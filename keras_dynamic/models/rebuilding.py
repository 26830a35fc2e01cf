"""New models with other layers in the place of some, and copies of the rest."""

import inspect
import tempfile

import keras
import numpy as np
from keras import tree

from keras_dynamic._compat import (
    functional_nodes,
    functional_of,
    producer_of,
    takes_a_graph,
)
from keras_dynamic.layers.layer_choice import LayerChoice
from keras_dynamic.layers.skip_gate import SkipGate

__all__ = ["Rebuilder", "check_functional"]


def check_functional(model):
    """Raises a ValueError for what has no graph that could be made again."""
    if not isinstance(model, keras.Model) or functional_of(model) is None:
        remedy = ""
        if isinstance(model, keras.Sequential) and not model.built:
            remedy = (
                " Begin it with a `keras.Input`, or call `model.build((None, ...))` "
                "with the shape of its input."
            )
        raise ValueError(
            "`model` must be a functional or built Sequential `keras.Model`. Received: "
            f"{model!r} of type {type(model)}.{remedy}"
        )


class Rebuilder:
    """Makes new layers for old ones, and remembers whose weights go where.

    As it stands it copies: a subclass says in `new_for` what takes another place.
    Layers are found in nested models, in gates, in choices and in `TimeDistributed`;
    what another layer holds is copied as a whole.

    Attributes:
        passed_over: ids of tensors of the old graphs; the call that gave one is left
            out, and its input stands for it.
        pairs: list of (old, new); the weights of the one go to the other.
    """

    def __init__(self, passed_over=()):
        self.passed_over = frozenset(passed_over)
        self.pairs, self._made = [], {}

    def rebuild(self, model):
        """A functional or Sequential model of the same kind, not compiled."""
        nodes = list(functional_nodes(functional_of(model)))
        if isinstance(model, keras.Sequential):
            layers = [
                self.layer_for(operation)
                for operation, _, _, outputs in nodes
                if id(outputs[0]) not in self.passed_over
            ]
            layers = [_input_like(model.inputs[0]), *layers]
            return keras.Sequential(layers, name=model.name, trainable=model.trainable)
        inputs = tree.map_structure(_input_like, model.input)
        tensors = dict(zip(map(id, model.inputs), tree.flatten(inputs), strict=True))

        def swap(argument):
            if isinstance(argument, keras.KerasTensor):
                # An optional input that was not given is None, as in Keras.
                return tensors.get(id(argument))
            return argument

        for operation, args, kwargs, outputs in nodes:
            args = tree.map_structure(swap, args)
            kwargs = tree.map_structure(swap, kwargs)
            if id(outputs[0]) in self.passed_over:
                leaves = tree.flatten((args, kwargs))
                results = [q for q in leaves if isinstance(q, keras.KerasTensor)]
            else:
                results = tree.flatten(_call(self.layer_for(operation), args, kwargs))
            tensors.update(zip(map(id, outputs), results, strict=True))
        outputs = tree.map_structure(swap, model.output)
        kind = type(model) if takes_a_graph(type(model)) else keras.Model
        new = kind(inputs, outputs, name=model.name)
        if hasattr(model, "road"):  # a `DynamicModel`
            new.exit_rule = model.exit_rule
            new.calibration_temperatures.assign(model.calibration_temperatures)
        return new

    def layer_for(self, layer):
        """The layer, model or operation that stands in the place of another.

        One for each: a layer that stood in two places still does.
        """
        if id(layer) not in self._made:
            has_graph = functional_of(layer) is not None
            new = self.rebuild(layer) if has_graph else self.new_for(layer)
            self._made[id(layer)] = new
        return self._made[id(layer)]

    def was_met(self, layer):
        """Whether `layer_for` was asked for it."""
        return id(layer) in self._made

    def new_for(self, layer):
        """A layer or operation, unbuilt, for one that is no model with a graph."""
        if isinstance(layer, SkipGate):
            return self._gate_like(layer)
        if isinstance(layer, LayerChoice):
            layers = [self.inner(each) for each in layer.layers]
            new = LayerChoice.from_config({**layer.get_config(), "layers": layers})
            self.pairs.append((_OwnOfChoice(layer), _OwnOfChoice(new)))
            return new
        if type(layer) is keras.layers.TimeDistributed:
            return keras.layers.TimeDistributed(
                self.inner(layer.layer), name=layer.name, dtype=layer.dtype_policy
            )
        return self.copy_of(layer, layer.get_config())

    def copy_of(self, layer, config):
        """A layer of the same kind, made from a config; it gets the weights."""
        new = type(layer).from_config(config)
        if isinstance(layer, keras.Layer):  # and no operation of the graph
            self.pairs.append((layer, new))
        return new

    def inner(self, layer, name=None):
        """A layer that stood inside of another one, under another name."""
        known = self.was_met(layer)
        new = self.layer_for(layer)
        if name is not None and not known:
            new.name = name  # not called yet: no graph knows it by another one
        return new

    def copy_weights(self):
        """Gives the new layers, which are built by now, the weights of the old."""
        for old, new in self.pairs:
            new.set_weights(old.get_weights())
            if isinstance(old, keras.Layer) and isinstance(new, keras.Layer):
                # Keras does not freeze what a frozen layer makes when it is built.
                for one, other in zip(old.weights, new.weights, strict=True):
                    other.trainable = one.trainable
            if hasattr(old, "save_assets"):  # vocabularies
                with tempfile.TemporaryDirectory() as folder:
                    old.save_assets(folder)
                    new.load_assets(folder)
            if hasattr(new, "finalize_state"):  # what it computes from its weights
                new.finalize_state()

    def _gate_like(self, gate):
        config = {**gate.get_config(), "layer": self.inner(gate.layer)}
        for name in ("gate", "shortcut"):
            own = getattr(gate, name)
            if isinstance(own, keras.Layer):
                config[name] = self.inner(own)
        new = SkipGate.from_config(config)
        self.pairs.append((_OwnOfGate(gate), _OwnOfGate(new)))
        return new


def _input_like(tensor):
    layer = producer_of(tensor)
    return keras.Input(
        batch_shape=tensor.shape,
        dtype=tensor.dtype,
        sparse=tensor.sparse,
        ragged=tensor.ragged,
        name=layer.name,
        optional=layer.optional,
    )


def _call(layer, args, kwargs):
    """Calls a layer as the one in whose place it stands was called.

    What that one knew, a mask for instance, this one may not.
    """
    known = inspect.signature(layer.call).parameters
    return layer(*args, **{k: v for k, v in kwargs.items() if k in known})


class _OwnOfGate:
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


class _OwnOfChoice:
    """What a choice holds by itself."""

    def __init__(self, choice):
        self.choice = choice

    def get_weights(self):
        choice = self.choice
        costs = None if choice.costs is None else np.asarray(choice.current_costs)
        own = [choice.logits, choice.current_temperature]
        return [*map(np.asarray, own), costs]

    def set_weights(self, weights):
        logits, temperature, costs = weights
        self.choice.logits.assign(logits)
        self.choice.current_temperature.assign(temperature)
        if costs is not None and (costs >= 0).all():  # else nobody has filled them in
            self.choice.bind_costs(costs.tolist())
