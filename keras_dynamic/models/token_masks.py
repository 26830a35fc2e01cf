"""Masks of tokens that a model's layers are called with, for heads on its tokens."""

import collections
import inspect

import keras
from keras import ops, tree

from keras_dynamic.models.graph import Value
from keras_dynamic.models.segments import needed_steps

__all__ = ["TokenMasks", "as_token_mask", "mask_of_call", "values_carried_on"]


class TokenMasks:
    """Finds the mask that a head on a value of the graph should be given.

    Masks that tensors carry come along by themselves; here are those that layers are
    called with. Nearest first: the own head's, then those of calls before the value,
    through all that these read, then those of calls after it.

    Args:
        graph: a `Graph`, marked by `check_rows`.
        own: the mask that the model's own pooling is called with, or None.
        specs: dict from values to symbolic tensors of known sizes, batch 1.
    """

    def __init__(self, graph, own, specs):
        self._graph, self._own, self._specs = graph, own, specs
        self._producers, self._readers = graph.producers(), {}
        for step in graph.steps:
            for value in step.inputs:
                self._readers.setdefault(value, []).append(step)

    def find(self, value):
        """The mask for a head on `value`.

        Returns:
            (mask, None); or (None, name of the layer) where a layer is called with a
            mask of which no (batch, tokens) can be made; or (None, None).
        """
        if len(value.spec.shape) != 3:
            return None, None  # no axis of tokens
        if self._own is not None and self._fits(self._own, value):
            return self._own, None
        missed = None
        for mask, step in (*self._before(value), *self._after(value)):
            # Keras' own layers take floats for ones and zeros; others add them.
            plain = "float" not in mask.spec.dtype or _is_from_keras(step.operation)
            if plain and self._fits(mask, value):
                return mask, None
            if mask.batched and missed is None:
                missed = step.name
        return None, missed

    def _fits(self, mask, value):
        """Whether it has an entry for each token, and is there when `value` is."""
        shape = self._specs[mask].shape
        fits = (
            mask.batched
            and len(shape) > 1
            and all(size == 1 for size in mask.spec.shape[1:-1])
            and shape[-1] == self._specs[value].shape[1]
        )
        if not fits:
            return False
        done = needed_steps(self._graph, [value])
        done = {made for step in done for made in step.outputs}
        rest = needed_steps(self._graph, [mask], done)
        return not any(getattr(step.operation, "weights", None) for step in rest)

    def _before(self, value):
        """(mask, step) of the calls that `value` comes from, the nearest first."""
        pending, seen = collections.deque([value]), set()
        while pending:
            step = self._producers.get(pending.popleft())
            if step is None or step in seen:
                continue
            seen.add(step)
            carried = values_carried_on(step)
            for mask, masked in _masks(step):
                if masked in carried:
                    yield mask, step
            pending.extend(carried)

    def _after(self, value):
        """(mask, step) of the calls that `value` goes through, the nearest first."""
        pending, seen = collections.deque([value]), set()
        while pending:
            here = pending.popleft()
            for step in self._readers.get(here, ()):
                if step in seen:
                    continue
                seen.add(step)
                for mask, masked in _masks(step):
                    if masked is here:
                        yield mask, step
                if here in values_carried_on(step):
                    pending.extend(v for v in step.outputs if self._alike(v, value))

    def _alike(self, one, other):
        """Whether both have as many tokens."""
        shapes = self._specs[one].shape, self._specs[other].shape
        return len(shapes[0]) == 3 and shapes[0][1] == shapes[1][1]


def as_token_mask(tensor):
    """(batch, tokens) of a mask with axes of length one between the two."""
    between = tuple(range(1, len(tensor.shape) - 1))
    return ops.squeeze(tensor, axis=between) if between else tensor


def mask_of_call(step):
    """The mask that a call gives to what it reads first, or None."""
    carried = values_carried_on(step)
    masks = [mask for mask, masked in _masks(step) if masked in carried]
    return masks[0] if masks else None


def values_carried_on(step):
    """What a call makes its outputs of, token by token.

    Masks are left out, and so is what attention looks up for its queries.
    """
    named = _named_arguments(step)
    given = {name: each for name, each in named.items() if not _is_mask(name)}
    first = next(iter(given.values()), None)
    if isinstance(step.operation, keras.layers.Attention):
        first = tree.flatten(first)[:1]
    elif "query" not in given and len(given) == len(named):
        first = given
    return list(dict.fromkeys(_values_in(first)))


def _masks(step):
    """(mask, value that it is for) for each mask that a call is given."""
    named = _named_arguments(step)
    given = {name: each for name, each in named.items() if not _is_mask(name)}
    for name in filter(_is_mask, named):
        masks = tree.flatten(named[name])
        masked = tree.flatten(_masked_by(name, given))
        if len(masks) == 1:
            masks *= len(masked)
        for mask, value in zip(masks, masked, strict=False):
            if isinstance(mask, Value) and isinstance(value, Value):
                yield mask, value


def _masked_by(name, given):
    """The argument that a mask is for, by their names: the first unless another's."""
    word = name.split("_")[0]
    for other, argument in given.items():
        if other.split("_")[0] == word and argument is not None:
            return argument
    looked_up = given.get("key"), given.get("value")
    if word in ("attention", "key") and any(each is not None for each in looked_up):
        return looked_up[1] if looked_up[0] is None else looked_up[0]
    return next(iter(given.values()), None)


def _named_arguments(step):
    """The arguments of a call by their names, positional ones too."""
    call = getattr(step.operation, "call", step.operation)
    parameters = inspect.signature(call).parameters.values()
    names = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    names += [f"argument_{i}" for i in range(len(step.args))]  # as of `einsum`
    return {**dict(zip(names, step.args, strict=False)), **step.kwargs}


def _is_mask(name):
    return name.endswith("mask")


def _is_from_keras(operation):
    return type(operation).__module__.startswith("keras.")


def _values_in(argument):
    return [each for each in tree.flatten(argument) if isinstance(each, Value)]
