"""A model as a diagram: its trunk, exits, gates and mixtures, and what they cost."""

import dataclasses

import numpy as np

from keras_dynamic._compat import functional_of, layers_within
from keras_dynamic.layers._selector import Selector
from keras_dynamic.layers.layer_choice import LayerChoice
from keras_dynamic.layers.routers import ExpertChoiceRouter
from keras_dynamic.layers.skip_gate import SkipGate
from keras_dynamic.layers.sparse_moe import SparseMoE
from keras_dynamic.models.costs import step_flops, step_savings
from keras_dynamic.models.graph import build_graph
from keras_dynamic.models.per_exit import own_weights
from keras_dynamic.models.rules import Selected
from keras_dynamic.models.structure import shapes_of_inputs
from keras_dynamic.plots._diagram import draw_diagram
from keras_dynamic.plots._inputs import checked_logs

__all__ = ["ModelDiagram", "model_diagram"]

_KINDS = {
    "gate": SkipGate,
    "mixture": SparseMoE,
    "choice": LayerChoice,
    "selector": Selector,
}


@dataclasses.dataclass(frozen=True)
class ModelDiagram:
    """The layers of a model in the order of its exits, with their FLOPs.

    L layers, one for each call; E exits, the final one included, none for a model that
    is no `DynamicModel`.

    Attributes:
        name: the model's name.
        layers: list of L names.
        kinds: list of L strings, `"layer"`, `"gate"`, `"mixture"`, `"choice"` or
            `"selector"`.
        notes: list of L strings, what is to be said of a layer besides: its number of
            experts, or the gates that it holds.
        segments: (L,) integers, the exit that a layer was first needed for.
        in_head: (L,) bool, whether it belongs to the head of that exit alone.
        flops: (L,) float, for one sample with all gates open; NaN where they cannot be
            counted.
        saved: (L,) float, FLOPs that a closed gate saves; 0 for other layers.
        open_rates: (L,) float, of gates in the logs; NaN elsewhere.
        exits: list of E names.
        exit_flops: (E,) integers, to leave at each exit under the rule in force.
        exit_rates: (E,) float, the share of samples that leave there; NaN if unknown.
        loss_weights: (E,) float.
        reference: FLOPs of the final output alone, which a cost of 1 is.

    Example:

    ```python
    record = kd.plots.ModelDiagram(
        "net",
        ["conv", "exit_1", "dense"],
        ["layer"] * 3,
        [""] * 3,
        np.array([0, 0, 1]),
        np.array([False, True, False]),
        np.array([40.0, 10.0, 60.0]),
        np.zeros(3),
        np.full(3, np.nan),
        ["exit_1", "final"],
        np.array([50, 110]),
        np.full(2, np.nan),
        np.ones(2),
        100,
    )
    ax = record.plot()
    ```
    """

    name: str
    layers: list
    kinds: list
    notes: list
    segments: np.ndarray
    in_head: np.ndarray
    flops: np.ndarray
    saved: np.ndarray
    open_rates: np.ndarray
    exits: list
    exit_flops: np.ndarray
    exit_rates: np.ndarray
    loss_weights: np.ndarray
    reference: int

    @property
    def shares(self):
        """(L,) float, FLOPs over those of the plain network."""
        return self.flops / self.reference

    @property
    def head_flops(self):
        """(E,) float, of the layers that only one exit needs; 0 for the last exit."""
        return self._sums(self.in_head, len(self.exits))

    @property
    def segment_flops(self):
        """(E,) float, of the trunk up to each exit from the one before, without heads;
        (1,) for a model without exits."""
        return self._sums(~self.in_head, max(1, len(self.exits)))

    def plot(self, ax=None):
        """Draws the trunk from top to bottom, with the exits branching off.

        The bar beside a layer is its share of the plain network's FLOPs; of a gate the
        hatched part is what the samples save at the open rate of the logs, or without
        one what a sample saves that finds it closed. Neighbors below 1 % share a row,
        and in a network of many layers all plain neighbors do.

        Args:
            ax: matplotlib `Axes`, or `None` for new ones, as high as the diagram needs.

        Returns:
            The `Axes`.
        """
        return draw_diagram(self, ax)

    def _sums(self, wanted, count):
        return np.array(
            [
                np.nansum(self.flops[wanted & (self.segments == index)])
                for index in range(count)
            ]
        )


def model_diagram(model, logs=None, input_shape=None):
    """What a model is made of: segments, exits, gates and mixtures, and their costs.

    Costs are those of `DynamicModel.compute_costs` under the rule in force; nested
    models are shown layer by layer, and what a gate or a mixture holds is part of it.

    Args:
        model: a `kd.DynamicModel`, or a functional or built Sequential model, of which
            gates and mixtures are shown.
        logs: dict of open rates (`<gate>_open_rate`), such as
            `evaluate(..., return_dict=True)` gives, or what `fit` returned, of which
            the last epoch counts; or of `exit_rates`, as `evaluate_dynamic` gives; or
            of both. Defaults to `None`, without rates.
        input_shape: as in `DynamicModel.compute_costs`, for sizes that the model leaves
            open. Defaults to `None`, the model's own.

    Returns:
        A `ModelDiagram`.

    Raises:
        TypeError: if the logs are no dict.
        ValueError: if the model is no such model, a size is unknown, or the logs hold
            no rate of it.

    Example:

    ```python
    inputs = keras.Input((4,))
    h = kd.SkipGate(keras.layers.Dense(4), name="gate")(inputs)
    y1 = kd.EarlyExit(2, name="exit_1")(h)
    h = keras.layers.Dense(8, "relu")(h)
    y2 = keras.layers.Dense(2, "softmax", name="final")(h)
    model = kd.DynamicModel(inputs, [y1, y2])
    ax = kd.plots.model_diagram(model, {"gate_open_rate": 0.6}).plot()
    ```
    """
    road = getattr(model, "road", None)
    functional = functional_of(model)
    if road is None and functional is None:
        raise ValueError(
            "`model` must be a functional or built Sequential `keras.Model`. Received: "
            f"{model!r} of type {type(model)}."
        )
    shapes = shapes_of_inputs(input_shape, len(model.inputs))
    for tensor, shape in zip(
        model.inputs, shapes or [each.shape[1:] for each in model.inputs], strict=True
    ):
        if None in shape:
            raise ValueError(
                f"`input_shape` must give the size of input '{tensor.name}', on which "
                "the costs depend: `kd.plots.model_diagram(model, input_shape=...)`. "
                f"Received: input_shape={input_shape}, and the size {shape} is unknown."
            )
    if road is None:
        graph = build_graph(functional)
        calls = [(step, 0, False) for step in graph.steps]
        flops = step_flops(graph, graph.steps, shapes)
        savings = step_savings(graph, graph.steps, shapes)
        exits, exit_flops, weights = [], [], []
        reference = sum(each or 0 for each in flops.values())
    else:
        rule = model.exit_rule
        costs = road.costs(shapes, rule, road.asked_under(rule))
        calls = [
            (step, index, part == 1)
            for index, parts in enumerate(road.parts(rule))
            for part, steps in enumerate(parts)
            for step in steps
        ]
        flops, savings = road.step_flops([step for step, *_ in calls], shapes)
        exits, exit_flops = model.exit_names, costs.exits
        weights = road.loss_weights or own_weights(road.heads)
        reference = costs.reference
    if not reference:
        raise ValueError(
            "`model` must have FLOPs that can be counted. Received: model "
            f"'{model.name}' of {sum(not step.glue for step, *_ in calls)} operations "
            "without any."
        )
    rows = [
        (
            step.name,
            *_kind_and_note(step.operation),
            index,
            in_head,
            flops[step],
            savings.get(step, 0),
        )
        for step, index, in_head in calls
        if not step.glue
    ]
    if road is not None and isinstance(rule, Selected) and road.plan.is_layerwise:
        rows = _with_gates_of_selector(rows, road.plan.selector.operation, costs)
    names, kinds, notes, segments, in_head, flops, saved = zip(*rows, strict=True)
    open_rates, exit_rates = _rates(logs, names, kinds, exits)
    return ModelDiagram(
        model.name,
        list(names),
        list(kinds),
        list(notes),
        np.array(segments),
        np.array(in_head),
        np.array(flops, "float64"),  # None becomes NaN
        np.array(saved, "float64"),
        open_rates,
        list(exits),
        np.array(exit_flops, "int64"),
        exit_rates,
        np.array([float(np.asarray(weight)) for weight in weights]),
        reference,
    )


def _kind_and_note(operation):
    """What an operation is, and a few words on it."""
    kind = _kind_of(operation)
    if not hasattr(operation, "weights"):  # an operation of `keras.ops`
        return kind, ""
    notes = []
    if kind == "mixture":
        notes = [f"{operation.num_experts} experts"]
        chosen_by_token = not isinstance(operation.router, ExpertChoiceRouter)
        if chosen_by_token and operation.dispatch != "dense":  # which computes all
            notes = [f"{operation.router.experts_per_token} of {notes[0]}"]
    elif kind == "choice":
        notes = [f"{operation.winner().name} of {len(operation.layers)} layers"]
    inner = [layer for layer in layers_within(operation) if layer is not operation]
    held = [layer.name for layer in inner if _kind_of(layer) != "layer"]
    if held and kind != "selector":
        notes.append(f"holds {', '.join(held)}")
    return kind, "; ".join(notes)


def _kind_of(operation):
    found = [kind for kind, cls in _KINDS.items() if isinstance(operation, cls)]
    return found[0] if found else "layer"


def _with_gates_of_selector(rows, selector, costs):
    """Rows, and the gates of a layer-wise selector, which are no calls of their own.

    A segment costs its trunk and its gate.
    """
    rows = list(rows)
    for index, gate in enumerate(selector.gates):
        trunk = [row for row in rows if row[3] == index and not row[4]]
        flops = costs.segments[index] - sum(row[5] or 0 for row in trunk)
        name = f"{selector.name}/{gate.name}"
        rows.append((name, "selector", "", index, False, flops, 0))
    return sorted(rows, key=lambda row: row[3:5])  # stable


def _rates(logs, names, kinds, exits):
    """(open rate of each layer, rate of each exit), NaN where the logs have none."""
    open_rates, exit_rates = np.full(len(names), np.nan), np.full(len(exits), np.nan)
    if logs is None:
        return open_rates, exit_rates
    logs = checked_logs("logs", logs)
    gates = [f"{n}_open_rate" for n, k in zip(names, kinds, strict=True) if k == "gate"]
    if not any(key in logs for key in (*gates, "exit_rates")):
        raise ValueError(
            f"`logs` must hold open rates of gates, {gates}, or 'exit_rates'. "
            f"Received: {sorted(logs)}."
        )
    for index, name in enumerate(names):
        if f"{name}_open_rate" in gates and f"{name}_open_rate" in logs:
            open_rates[index] = np.ravel(logs[f"{name}_open_rate"])[-1]
    if "exit_rates" in logs:
        exit_rates = np.array(logs["exit_rates"], "float64")
        if exit_rates.shape != (len(exits),):
            raise ValueError(
                f"`logs['exit_rates']` must be {len(exits)} numbers, one an exit. "
                f"Received: {logs['exit_rates']}."
            )
    return open_rates, exit_rates
