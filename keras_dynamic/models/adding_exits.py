"""add_exits: early exits on a model that has none."""

import dataclasses
import itertools
import numbers
import warnings

from keras_dynamic._compat import functional_of
from keras_dynamic.layers._checks import positive_integer
from keras_dynamic.models.batch_axis import check_rows
from keras_dynamic.models.cuts import Cuts, nominal_shapes
from keras_dynamic.models.dynamic_model import DynamicModel
from keras_dynamic.models.graph import build_graph
from keras_dynamic.models.head_style import mask_for, read_style
from keras_dynamic.models.opening import inlined, unrolled
from keras_dynamic.models.rebuilding import check_functional
from keras_dynamic.models.structure import shapes_of_inputs
from keras_dynamic.models.suggestions import ExitSuggestions

__all__ = ["add_exits", "suggest_exits"]

# How far from the share that was asked for a cut may lie without a word.
_TOLERANCE = 0.05


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
    which an un-normalized stream needs as much earlier (DenseNet, GPT-2, ViT). A mask
    of tokens that the blocks are called with goes to the exits too.

    Where a cut lies within a nested model the result has the layers of nested models
    directly. The encoder of keras-hub's ViT, which is one layer, is taken apart. Layers
    that stand inside of others, recurrent steps among them, cannot be cut.

    Args:
        model: functional or built `Sequential` `keras.Model` with one output.
        at: where the exits stand, in order of their depth: shares of the model's FLOPs
            in (0, 1), or names of layers, in a tuple or list; or one of them. Defaults
            to `(0.25, 0.5, 0.75)`.
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
            another; two entries of `at` that come to the same place.
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
    at = _checked_at(at)
    units = None if units is None else positive_integer("units", units)
    place = _Placing(model, units, input_shape, arguments)
    chosen = place.choose(at)
    if any(place.tensor_of(cut.value) is None for cut in chosen):
        place = _Placing(inlined(place.model), units, input_shape, arguments)
        chosen = place.choose(at)
    _warn_of_distances(at, chosen)
    outputs = [
        place.head_on(cut.value, place.free_name(f"exit_{number}"))
        for number, cut in enumerate(chosen, start=1)
    ]
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
        costs.

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
        _check_one_output(model)
        shapes = shapes_of_inputs(input_shape, len(model.inputs))
        graph = build_graph(functional_of(model))
        if any(unrolled(step.operation) for step in graph.steps):
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
                    f"The places there are: {', '.join(places)}."
                )
            if other.share < one.share:
                raise ValueError(
                    "`at` must be in order of depth. Received: "
                    f"{first!r} ('{one.name}', {one.share:.3f} of the cost) before "
                    f"{second!r} ('{other.name}', {other.share:.3f})."
                )
        return chosen

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
        mask = mask_for(value, self.graph.producers())
        for layer in layers[:-1]:
            tensor = layer(tensor)
        exit_layer = layers[-1]
        if mask is None or exit_layer.pooling not in ("auto", "average", "max"):
            return exit_layer(tensor)
        return exit_layer(tensor, mask=self.tensor_of(mask))


def _checked_at(at):
    entries = at if isinstance(at, (list, tuple)) else (at,)
    if not entries:
        raise ValueError(
            f"`at` must have at least one share or name. Received: at={at!r}."
        )
    shares = []
    for entry in entries:
        if isinstance(entry, str):
            continue
        if isinstance(entry, bool) or not isinstance(entry, numbers.Real):
            raise TypeError(
                "`at` must hold shares of the cost or names of layers. Received: "
                f"{entry!r} of type {type(entry)}."
            )
        if not 0 < entry < 1:
            raise ValueError(
                "`at` must hold shares of the cost in (0, 1). Received: "
                f"{entry} in at={at!r}."
            )
        shares.append(float(entry))
    if any(one >= other for one, other in itertools.pairwise(shares)):
        raise ValueError(
            f"`at` must hold shares in ascending order. Received: at={at!r}."
        )
    return tuple(entries)


def _warn_of_distances(at, chosen):
    for entry, cut in zip(at, chosen, strict=True):
        if not isinstance(entry, str) and abs(cut.share - entry) > _TOLERANCE:
            warnings.warn(
                f"The clean cut nearest to {entry} of the cost is after '{cut.name}', "
                f"at {cut.share:.3f}. `kd.suggest_exits(model)` lists the places; or "
                "name a layer.",
                stacklevel=3,
            )


def _check_one_output(model):
    if len(model.outputs) == 1:
        return
    names = getattr(model, "output_names", None)
    if isinstance(model.output, dict):
        names = list(model.output)
    remedy = "Take the final one: `keras.Model(model.input, model.output[...])`"
    if isinstance(model, DynamicModel):
        remedy = "It has exits already; `kd.strip_exits(model)` takes them off"
    raise ValueError(
        f"`model` must have one output, its answer. {remedy}. Received: "
        f"{len(model.outputs)} outputs: {names}."
    )
