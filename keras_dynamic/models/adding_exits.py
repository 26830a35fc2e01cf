"""add_exits: early exits on a model that has none."""

import dataclasses
import itertools
import warnings

from keras_dynamic._compat import functional_of, get_mask
from keras_dynamic.layers._checks import positive_integer
from keras_dynamic.models.adding_checks import (
    check_arguments,
    check_one_output,
    checked_at,
    warn_of_distances,
    warn_of_own_training,
)
from keras_dynamic.models.batch_axis import check_rows
from keras_dynamic.models.cuts import Cuts, nominal_shapes
from keras_dynamic.models.dynamic_model import DynamicModel
from keras_dynamic.models.graph import build_graph
from keras_dynamic.models.head_style import read_style
from keras_dynamic.models.heads import describe_head
from keras_dynamic.models.opening import (
    inlined,
    of_one_name,
    unrolled,
    with_free_batch,
)
from keras_dynamic.models.rebuilding import check_functional
from keras_dynamic.models.structure import shapes_of_inputs
from keras_dynamic.models.suggestions import ExitSuggestions
from keras_dynamic.models.token_masks import TokenMasks, as_token_mask

__all__ = ["add_exits", "suggest_exits"]


def add_exits(
    model,
    at=(0.25, 0.5, 0.75),
    units=None,
    exit_rule=None,
    input_shape=None,
    **arguments,
):
    """A `DynamicModel` of a trained model, with early exits on its layers.

    It shares the layers of `model`, which stays what it was: the same outputs, names,
    trainable layers and compiled state. The new model's last exit gives `model`'s own
    output; it is not compiled. Train its exits alone with `fit_exits`, or all of it
    with `fit`.

    An exit stands where a single tensor carries all that the rest of the network reads
    (beside the model's inputs and masks made of them), after a layer or block, its
    activation, normalization and pooling included: `kd.suggest_exits` lists these
    places. With `at=0.25` it is the one whose FLOPs are nearest to 25% of the model's,
    where a block ends rather than in a bottleneck within it. A layer may be named that
    is no such place; then several tensors are kept for those who stay.

    The heads are `EarlyExit` layers in the style of the model's own head: its
    activation, its class token, hidden layers (unless wider than the features they
    would be given), dropout, and the normalization that stands before its classifier,
    which an un-normalized stream needs as much earlier (DenseNet, GPT-2, ViT). The mask
    of tokens that the model's own pooling is called with goes to the exits too, or
    else the nearest one of its blocks: (batch, tokens), or (batch, 1, tokens) as an
    `attention_mask`. A warning names a layer whose mask is of another form.

    Where a cut lies within a nested model the result has the layers of nested models
    directly, which is possible where all of them have names of their own. The encoder
    of keras-hub's ViT, which is one layer, is taken apart. Layers that stand inside of
    others, recurrent steps among them, cannot be cut.

    What a subclass of `keras.Model` does in its own `train_step` is left behind, with
    a warning; one with a `call` of its own has no graph. A `Sequential` without an
    `Input` may have been built by its first batch.

    Args:
        model: functional or built `Sequential` `keras.Model` with one output.
        at: where the exits stand, in order of their depth: shares of the model's FLOPs
            in (0, 1), or names of layers, in a tuple, list or array; or one of them.
            Defaults to `(0.25, 0.5, 0.75)`.
        units: int >= 1, number of classes. Defaults to `None`, the model's own. Where
            the model does not give (batch, units), it is a backbone: then a last exit
            named `final` is put on its output too.
        exit_rule: as in `DynamicModel`. Defaults to `None`.
        input_shape: shape of one sample without the batch axis (a list of them for
            several inputs), by which shares are counted where the model leaves sizes
            open. Defaults to `None`: 224 x 224 for images, 128 tokens.
        **arguments: of `EarlyExit`, such as `pooling`, `hidden_units`, `loss_weight`;
            they count more than the model's own style.

    Returns:
        A `kd.DynamicModel` with exits `exit_1`, `exit_2`, ... (`exit_1_1` where a layer
        is called so already) and the model's own.

    Raises:
        ValueError: for a model without a graph or with several outputs; shares outside
            (0, 1) or out of order; a name that is not there, or of a layer within
            another; two entries of `at` that come to the same place; a model with no
            layer before its last; a `name` for the exits.
        TypeError: for an `at` of other things than numbers and names.

    Example:

    ```python
    network = keras.applications.MobileNetV2((64, 64, 3), weights=None, classes=10)
    model = kd.add_exits(network, at=(0.3, 0.6))
    print([round(share, 2) for share in model.compute_costs().shares()])
    ```

    Reference:
        Scardapane, Scarpiniti, Baccarelli and Uncini, "Why should we add early exits
        to neural networks?", Cognitive Computation, 2020 (exits at shares of the cost);
        Xin, Tang, Lee, Yu and Lin, "DeeBERT: Dynamic Early Exiting for Accelerating
        BERT Inference", ACL 2020 (exits on a trained model). DeeBERT's exits copy the
        pooler's form, as these do.
    """
    at = checked_at(at)
    units = None if units is None else positive_integer("units", units)
    place = _Placing(model, units, input_shape, arguments)
    place.warn_of_answers()
    warn_of_own_training(model)
    chosen = place.choose(at)
    if any(place.lies_within(cut.value) for cut in chosen):
        named = place.as_named_within(at, chosen)
        place = _Placing(inlined(place.model), units, input_shape, arguments)
        chosen = place.choose(named)
    warn_of_distances(at, chosen)
    outputs = []  # a loop, so that warnings point at the caller under any Python
    for number, cut in enumerate(chosen, start=1):
        outputs.append(place.head_on(cut.value, place.free_name(f"exit_{number}")))
    outputs.append(place.final_output())
    inputs = functional_of(place.model).input
    return DynamicModel(inputs, outputs, exit_rule=exit_rule, name=model.name)


def suggest_exits(model, units=None, input_shape=None, **arguments):
    """The places where exits can stand, with what they cost.

    Args:
        model, units, input_shape: as in `add_exits`.
        **arguments: as in `add_exits`.

    Returns:
        An `ExitSuggestions`; `print` it. Each of its `cuts` has the `name` of the layer
        that it comes after, its `share` of the model's FLOPs, `live_tensors`,
        `ends_block`, and `head_share`, what the head that `add_exits` would put there
        costs. Its `names` are those that `add_exits` takes.

    Raises:
        ValueError: for a model without a graph or with several outputs.

    Example:

    ```python
    network = keras.applications.MobileNetV2((64, 64, 3), weights=None, classes=10)
    print(kd.suggest_exits(network))
    ```
    """
    units = None if units is None else positive_integer("units", units)
    place = _Placing(model, units, input_shape, arguments)
    cuts = [
        dataclasses.replace(cut, head_share=place.head_share(cut.value))
        for cut in place.cuts.clean
    ]
    return ExitSuggestions(tuple(cuts), place.cuts.total, place.input_shapes)


class _Placing:
    """A model, the places where it can be cut, and the heads that fit there."""

    def __init__(self, model, units, input_shape, arguments):
        check_functional(model)
        check_one_output(model)
        check_arguments(arguments)
        shapes = shapes_of_inputs(input_shape, len(model.inputs))
        model = with_free_batch(model)
        steps = build_graph(functional_of(model)).steps
        if any(unrolled(s.operation) for s in steps) and not of_one_name(steps):
            model = inlined(model)
        self.model, self._tensors = model, {}
        self.graph = build_graph(functional_of(model), self._tensors)
        check_rows(self.graph)
        shape = tuple(self.graph.outputs[0].spec.shape)
        width = shape[-1] if len(shape) == 2 else None
        if units is None and width is None:
            raise ValueError(
                "`model` must give (batch, classes), or `units` must say how many "
                "classes its backbone is for. Received: a model with output of shape "
                f"{shape} and units=None."
            )
        self.units = width if units is None else units
        self.classifies = self.units == width
        self.style = read_style(self.graph, self.classifies)
        self.input_shapes = nominal_shapes(self.graph, shapes)
        self.cuts = Cuts(
            model, self.graph, self._tensors, self.style, self.input_shapes
        )
        self.masks = TokenMasks(self.graph, self.style.mask, self.cuts.specs)
        if self.cuts.unknown:
            warnings.warn(
                "Shares of the cost leave out layers whose FLOPs cannot be counted: "
                f"{self.cuts.unknown}. Give such a layer a method "
                "`compute_flops(input_shape)`.",
                stacklevel=3,
            )
        self._arguments = arguments

    def choose(self, at):
        """A `Cut` for each entry, in ascending order."""
        chosen = []
        for entry in at:
            find = self.cuts.named if isinstance(entry, str) else self.cuts.nearest
            chosen.append(find(entry))
        pairs = zip(at, chosen, strict=True)
        for (first, one), (second, other) in itertools.pairwise(pairs):
            if one.value is other.value:
                places = [f"'{cut.name}' ({cut.share:.3f})" for cut in self.cuts.clean]
                raise ValueError(
                    f"`at` must come to a different place for each exit. Received: "
                    f"{first!r} and {second!r}, both of which come to '{one.name}'. "
                    f"The places there are: {', '.join(places) or 'none by share'}."
                )
            if other.share < one.share:
                raise ValueError(
                    "`at` must be in order of depth. Received: "
                    f"{first!r} ('{one.name}', {one.share:.3f} of the cost) before "
                    f"{second!r} ('{other.name}', {other.share:.3f})."
                )
        return chosen

    def lies_within(self, value):
        """Whether an exit there takes nested models apart, for its mask perhaps."""
        tensor = self.tensor_of(value)
        if tensor is None:
            return True
        mask, _ = self.masks.find(value)
        carried = get_mask(tensor) is not None
        within = mask is not None and self.tensor_of(mask) is None
        return within and not carried and self.cuts.is_reached(mask)

    def as_named_within(self, at, chosen):
        """`at`, with the names of layers in nested models in the place of theirs."""
        producers = self.graph.producers()
        return [
            producers[cut.value].name if isinstance(entry, str) else entry
            for entry, cut in zip(at, chosen, strict=True)
        ]

    def warn_of_answers(self):
        """Says so where a last exit would come to stand on another's answer."""
        head = describe_head(self.graph, self.graph.outputs[0])
        answers = head.activation in ("softmax", "log_softmax")
        if answers and not self.classifies:
            warnings.warn(
                f"`units={self.units}` puts a last exit, which is not trained, on what "
                f"'{self.model.name}' gives: a {head.activation} over {head.units}. "
                "For other classes take the model without its head, "
                "`keras.Model(model.input, model.layers[-2].output)`; for its own "
                "leave `units` out.",
                stacklevel=3,
            )

    def tensor_of(self, value):
        return self._tensors.get(value)

    def free_name(self, name):
        """A name that no layer has, `name` itself where it is free."""
        taken = {layer.name for layer in self.model.layers}
        taken |= {step.name for step in self.graph.steps}
        free, number = name, 0
        while free in taken:
            number += 1
            free = f"{name}_{number}"
        return free

    def head_on(self, value, name):
        """The output of a new head on a value of the graph."""
        share = self.head_share(value)
        left = 1 - self.cuts.share_of(value)
        if share is not None and share > left:
            warnings.warn(
                f"The head of '{name}' on a tensor of shape "
                f"{tuple(value.spec.shape)} costs {share:.3f} of the network, more "
                f"than the {left:.3f} that leaving there saves. Pool more, or put the "
                "exit elsewhere.",
                stacklevel=3,
            )
        return self._attached(value, name)

    def head_share(self, value):
        spec = self.cuts.specs[value]
        flops = self.style.flops_for(spec, self.units, self._arguments)
        return None if flops is None else flops / self.cuts.total

    def final_output(self):
        value = self.graph.outputs[0]
        if self.classifies:
            return self.tensor_of(value)
        return self._attached(value, self.free_name("final"), last=True)

    def _attached(self, value, name, last=False):
        tensor = self.tensor_of(value)
        layers = self.style.layers_for(tensor, self.units, name, self._arguments, last)
        exit_layer = layers[-1]
        mask = None
        if exit_layer.pooling in ("auto", "average", "max"):
            mask = self._mask_for(value, name)
        for layer in layers[:-1]:
            tensor = layer(tensor)
        return exit_layer(tensor) if mask is None else exit_layer(tensor, mask=mask)

    def _mask_for(self, value, name):
        """The tensor (batch, tokens) to call a head on `value` with, or None."""
        mask, missed = self.masks.find(value)
        if mask is not None and self.tensor_of(mask) is not None:
            return as_token_mask(self.tensor_of(mask))
        missed = missed if mask is None else mask.name
        if missed is not None and get_mask(self.tensor_of(value)) is None:
            warnings.warn(
                f"'{missed}' is called with a mask of which no (batch, tokens) could "
                f"be made for the head of '{name}', so that padding counts there. Call "
                "the model's pooling with the `mask` of its tokens, give its blocks "
                "one of that shape, or take `pooling='first'` for a class token.",
                stacklevel=5,
            )
        return None
