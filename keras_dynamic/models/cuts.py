"""Where a graph can be cut for an early exit, and what lies before each place."""

import dataclasses
import difflib

import keras

from keras_dynamic._compat import layers_within, producer_of
from keras_dynamic.models.costs import static_specs, step_flops
from keras_dynamic.models.graph import Value
from keras_dynamic.models.head_style import is_activation, is_kernel, is_normalization
from keras_dynamic.models.opening import of_one_name
from keras_dynamic.models.segments import needed_steps

__all__ = ["Cut", "Cuts", "nominal_shapes"]

# What sizes that a model leaves open are taken to be where only their order counts, by
# the number of sizes of an input: tokens, sequences, images, volumes.
_NOMINAL_SIZES = {1: 128, 2: 128, 3: 224, 4: 64}
# A block's end may lie this much further off than another cut.
_TOLERANCE = 0.05
_PASSING = (
    keras.layers.AveragePooling1D,
    keras.layers.AveragePooling2D,
    keras.layers.AveragePooling3D,
    keras.layers.Dropout,
    keras.layers.Identity,
    keras.layers.MaxPooling1D,
    keras.layers.MaxPooling2D,
    keras.layers.MaxPooling3D,
)
_PREPARING = (keras.layers.Normalization, keras.layers.Rescaling)


@dataclasses.dataclass(frozen=True)
class Cut:
    """A tensor that an early exit can stand on.

    Attributes:
        name: of the layer that gives it.
        shape: of the tensor, with the batch.
        share: FLOPs up to it over those of the whole network.
        live_tensors: how many tensors the rest of the network reads, this one and the
            model's inputs included.
        ends_block: whether nothing narrower follows before something wider does.
        head_share: FLOPs of the head over those of the whole network; None if unknown.
        has_name: whether `at` can name it; else only a share comes to it, since other
            calls have the same name.
    """

    name: str
    shape: tuple
    share: float
    live_tensors: int
    ends_block: bool = True
    head_share: float | None = None
    has_name: bool = True
    value: Value = dataclasses.field(default=None, repr=False, compare=False)


def nominal_shapes(graph, given=None):
    """Shapes of the inputs without the batch, open sizes filled in.

    Args:
        graph: a `Graph`.
        given: tuple of shapes, or None for sizes such as 224 x 224 and 128 tokens.
    """
    if given is not None:
        return given
    shapes = []
    for value in graph.inputs:
        shape = tuple(value.spec.shape[1:])
        size = _NOMINAL_SIZES.get(len(shape), 32)
        shapes.append(tuple(size if axis is None else axis for axis in shape))
    return tuple(shapes)


class Cuts:
    """The places where a graph with one output can be cut.

    Args:
        model: the functional model, for messages.
        graph: its `Graph`, marked by `check_rows`.
        tensors: dict from values to the model's own tensors.
        style: the `HeadStyle` of the model.
        input_shapes: as in `nominal_shapes`.

    Attributes:
        clean: tuple of `Cut`s that only one tensor crosses, beside the inputs and what
            is made of these without weights (masks), in order.
        specs: dict from values to symbolic tensors of known sizes, batch 1.
        total: FLOPs of the whole network.
    """

    def __init__(self, model, graph, tensors, style, input_shapes):
        self._model, self._graph, self._tensors = model, graph, tensors
        shapes = nominal_shapes(graph, input_shapes)
        self.specs = static_specs(graph, shapes)
        self._steps = needed_steps(graph, graph.outputs)
        counted = step_flops(graph, self._steps, shapes)
        self._flops = [counted[step] or 0 for step in self._steps]
        self.unknown = [step.name for step in self._steps if counted[step] is None]
        self.total = max(sum(self._flops), 1)
        self._index = {v: i for i, s in enumerate(self._steps) for v in s.outputs}
        self._opens = of_one_name(graph.steps) is None
        self._before = self._all_before()
        self._readers = self._all_readers()
        self._weightless = self._made_without_weights()
        own_head = {value for step in style.steps for value in step.outputs}
        own_head |= {style.foot, *graph.outputs}
        self.clean = self._find_clean(own_head)

    def nearest(self, share):
        """The clean cut nearest to a share of the cost, rather after a block."""
        if not self.clean and not any(map(self._may_be_named, self._index)):
            raise ValueError(
                "`model` must have a layer before its last one that an exit can stand "
                f"on. Received: '{self._model.name}', which has none, with at={share}."
            )
        if not self.clean:
            raise ValueError(
                "`at` cannot be a share of the cost: nowhere does a single tensor "
                f"carry all that the rest of '{self._model.name}' reads. Name layers. "
                f"Received: at={share}."
            )

        def distance(cut):
            return abs(cut.share - share)

        near = [c for c in self.clean if c.ends_block and distance(c) <= _TOLERANCE]
        return min(near or self.clean, key=distance)

    def named(self, name):
        """The cut after the layer of a name.

        Raises:
            ValueError: if there is none, or no exit can stand there.
        """
        found = self._values_of(name)
        if not found:
            self._raise_not_there(name)
        if len(found) > 1:
            layers = {id(s.operation) for s in self._graph.steps if s.name == name}
            times = f"is called {len(found)} times"
            if len(layers) > 1:
                times = f"{len(layers)} layers of nested models are called"
            raise ValueError(
                "`at` must name layers that are called once, so that it is known "
                f"where. Received: '{name}', which {times}. Give a share of the cost."
            )
        value = found[0]
        if value in self._graph.outputs:
            raise ValueError(
                "`at` must name layers before the last: an exit saves nothing there. "
                f"Received: '{name}', which gives the model's output."
            )
        if value not in self._index:
            raise ValueError(
                "`at` must name layers that the model's output depends on. Received: "
                f"'{name}'."
            )
        if not self._can_stand_on(value):
            raise ValueError(
                "`at` must name layers that give one float tensor of rank 2 to 5 with "
                f"the batch on axis 0. Received: '{name}', which gives "
                f"{value.spec.dtype} of shape {tuple(value.spec.shape)}."
            )
        return self._cut_at(value, name=name)[0]

    def is_reached(self, value):
        """Whether an exit can be put on a value, by opening nested models or without.

        They can be opened where all that they hold have names of their own.
        """
        return value in self._tensors or self._opens

    def share_of(self, value):
        """FLOPs up to a value over those of the whole network."""
        return self._cut_at(value)[0].share

    def _values_of(self, name):
        found = [step.outputs[0] for step in self._graph.steps if step.name == name]
        if not found:  # a nested model
            found = [v for v in self._tensors if self._outer_name(v) == name]
        return found

    def _outer_name(self, value):
        """Name of the layer or nested model of the model's own that gives a value."""
        return producer_of(self._tensors[value]).name

    def _may_be_named(self, value):
        return self._can_stand_on(value) and value not in self._graph.outputs

    def _name_of(self, value):
        """A name by which `named` finds it, or None."""
        names = [self._steps[self._index[value]].name]
        if value in self._tensors:
            names.append(self._outer_name(value))
        if not self._opens:
            names.reverse()
        return next((n for n in names if self._values_of(n) == [value]), None)

    def _raise_not_there(self, name):
        for step in self._graph.steps:
            layer = step.operation
            if not isinstance(layer, keras.Layer):
                continue
            for inner in layers_within(layer):
                if inner.name == name:
                    raise ValueError(
                        f"`at` must name layers of the graph. Received: '{name}', "
                        f"which stands inside of '{layer.name}' "
                        f"({type(layer).__name__}), a layer that cannot be cut. Put "
                        f"the exit after '{layer.name}' or before it."
                    )
        near = ", ".join(map(repr, self._names_like(name)))
        remedy = f" Did you mean {near}?" if near else ""
        raise ValueError(
            f"`at` must name layers of '{self._model.name}'. Received: '{name}', "
            f"which is not there.{remedy} `kd.suggest_exits(model)` lists the places."
        )

    def _names_like(self, name, number=3):
        """The nearest names, whatever the case; some, however far they are."""
        values = [v for v in self._index if self._may_be_named(v)]
        names = {self._steps[self._index[v]].name for v in values}
        names |= {self._outer_name(v) for v in values if v in self._tensors}

        def likeness(other):
            pair = other.lower(), name.lower()
            return difflib.SequenceMatcher(None, *pair).ratio()

        return sorted(sorted(names), key=likeness, reverse=True)[:number]

    def _all_before(self):
        """For each step the set of steps that it needs, itself included, as bits."""
        before = []
        for index, step in enumerate(self._steps):
            bits = 1 << index
            for value in step.inputs:
                if value in self._index:
                    bits |= before[self._index[value]]
            before.append(bits)
        return before

    def _all_readers(self):
        """For each value the steps that read it, as bits; the output is read last."""
        readers = dict.fromkeys(self._graph.outputs, 1 << len(self._steps))
        for index, step in enumerate(self._steps):
            for value in step.inputs:
                readers[value] = readers.get(value, 0) | 1 << index
        return readers

    def _made_without_weights(self):
        """Inputs, and what is made of them alone by operations without weights."""
        found = set(self._graph.inputs)
        for step in self._steps:
            plain = not getattr(step.operation, "weights", None)
            if plain and all(value in found for value in step.inputs):
                found.update(step.outputs)
        return found

    def _cut_at(self, value, name=None):
        before = self._before[self._index[value]]
        live = [
            each
            for each, readers in self._readers.items()
            if readers & ~before and (each == value or self._is_there(each, before))
        ]
        flops = sum(f for i, f in enumerate(self._flops) if before >> i & 1)
        step = self._steps[self._index[value]]
        return Cut(
            name=name or step.name,
            shape=tuple(value.spec.shape),
            share=flops / self.total,
            live_tensors=sum(each.batched or each.misplaced for each in live),
            value=value,
        ), live

    def _is_there(self, value, before):
        return value not in self._index or before >> self._index[value] & 1

    def _can_stand_on(self, value):
        fits = 2 <= len(value.spec.shape) <= 5 and "float" in value.spec.dtype
        return fits and value.batched and not value.misplaced

    def _find_clean(self, own_head):
        found, last = [], 0
        for index, step in enumerate(self._steps):
            value = step.outputs[0]
            if value in own_head or not self._can_stand_on(value):
                continue
            if value in self._weightless or self._goes_on(index, value):
                continue
            cut, live = self._cut_at(value)
            others = [v for v in live if v not in self._weightless and v.batched]
            # Something must have been computed since the last one.
            new = self._before[index] & ~last
            worked = any(
                new >> i & 1 and self._works(i) for i in range(len(self._steps))
            )
            clean = others == [value] and self._all_else_follows(index)
            if clean and 0 < cut.share < 1 and worked:
                found.append(cut)
                last = self._before[index]
        return tuple(
            dataclasses.replace(
                cut,
                name=self._name_of(cut.value) or cut.name,
                ends_block=_ends_block(found, i),
                has_name=self._name_of(cut.value) is not None,
            )
            for i, cut in enumerate(found)
            if self.is_reached(cut.value)
        )

    def _all_else_follows(self, index):
        """Whether no other branch begins at the inputs; masks made of them may."""
        return all(
            self._before[index] >> later & 1
            or before >> index & 1
            or self._weightless.issuperset(self._steps[later].outputs)
            for later, before in enumerate(self._before)
        )

    def _goes_on(self, index, value):
        """Whether what is done to `value` next belongs to the same layer."""
        readers = [
            step for i, step in enumerate(self._steps) if self._readers[value] >> i & 1
        ]
        if len(readers) != 1:
            return False
        following = readers[0].operation
        if is_normalization(following):
            return is_kernel(self._steps[index].operation)
        return is_activation(following) or isinstance(following, _PASSING)

    def _works(self, index):
        operation = self._steps[index].operation
        passing = isinstance(operation, (*_PASSING, *_PREPARING))
        passing = passing or is_normalization(operation)
        return self._flops[index] > 0 and not (passing or is_activation(operation))


def _ends_block(cuts, index):
    """Whether no narrower cut comes before a wider one, among maps or tokens alike."""
    width, rank = cuts[index].shape[-1], len(cuts[index].shape)
    for later in cuts[index + 1 :]:
        other = later.shape[-1]
        if len(later.shape) != rank or None in (width, other) or other > width:
            return True
        if other < width:
            return False
    return True
