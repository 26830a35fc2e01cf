"""What a model is cut into, and what is made from it on demand."""

import dataclasses
import functools
import threading
import warnings

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from keras_dynamic.layers._selector import Selector
from keras_dynamic.models import rules
from keras_dynamic.models.batch_axis import check_rows
from keras_dynamic.models.costs import (
    compute_costs,
    compute_selected_costs,
    step_flops,
    step_savings,
)
from keras_dynamic.models.engine import DenseWalk, Walk
from keras_dynamic.models.flops_of_choices import winners
from keras_dynamic.models.gates import holds_gates
from keras_dynamic.models.graph import build_graph, find_masks, may_have_masks
from keras_dynamic.models.heads import check_against_loss, describe_heads
from keras_dynamic.models.loss_weights import new_switch, switched
from keras_dynamic.models.per_exit import (
    entries_of_final,
    losses_each,
    metrics_each,
    targets_each,
    weights_each,
)
from keras_dynamic.models.replicas import ReplicatedWalk
from keras_dynamic.models.segments import cut_at_exits, needed_steps
from keras_dynamic.models.selected_walk import SelectedWalk
from keras_dynamic.models.selection import (
    DERIVED_NAMES,
    derived_outputs,
    with_derived,
)
from keras_dynamic.models.stage_functions import StageFunctions
from keras_dynamic.models.stages import cut_for_selector

__all__ = ["Road"]


class Road:
    """The graph of one model cut at its exits, with its heads, walks and costs.

    A plain object, so that Keras tracks none of it: it owns no weight, and all of it
    follows from the model.

    Args:
        model: a functional `keras.Model` whose outputs are the exits in order.
        has_selector: whether its last output is a selector's weights.

    Attributes:
        heads: a `Head` for each exit.
        segments: a `Segment` for each exit.
        lock: held while the rule in force is read, or changed.
        plan: the `StagePlan` of the selector, or None.
        final: what `compile` was given for the last exit: a dict with `loss`,
            `metrics` and `weighted_metrics`.
        losses: the loss of each exit, as given to `compile`; None before.
        loss_weights: the weights of the exits' losses in force, variables; None before
            `compile`.
        early_losses: variable, 1; 0 while the losses of early exits do not count.
    """

    def __init__(self, model, has_selector=False):
        graph = build_graph(model)
        check_rows(graph)
        if may_have_masks(graph):
            find_masks(graph)
        self.plan, exits = None, graph.outputs
        if has_selector:
            *exits, weights = graph.outputs
            graph = dataclasses.replace(graph, outputs=tuple(exits))
            self.plan = cut_for_selector(graph, weights)
        self._graph = graph
        self.segments = cut_at_exits(graph)
        reserved = DERIVED_NAMES if has_selector else ()
        self.heads = describe_heads(self._graph, reserved)
        # Checks and casts what the user feeds as any Keras model does, and says so
        # in Keras' words.
        self._intake = keras.Model(model.input, list(model.inputs), name=model.name)
        self._kinds = [head.kind for head in self.heads]
        self._walks, self._stages, self._costs = {}, {}, {}
        self.lock = threading.RLock()
        self.final = self.losses = self.loss_weights = self._counting = None
        self.early_losses = new_switch()
        self.has_gates = holds_gates(graph.steps)
        self._dense = DenseWalk(self.segments, self._intake, graph.inputs)

    @property
    def kinds(self):
        """ "probabilities" or "logits" for each exit.

        Raises:
            ValueError: where a head gives neither, so that no rule can score it.
        """
        for head, kind in zip(self.heads, self._kinds, strict=True):
            if kind is None:
                raise ValueError(
                    f"Exit '{head.name}' gives neither probabilities of one class nor "
                    "logits, as far as its activation and loss tell, so that no rule "
                    "can decide on it. Use a softmax, one sigmoid unit, or logits with "
                    "a cross-entropy. Received: activation="
                    f"{head.activation!r}, units={head.units}."
                )
        return self._kinds

    @kinds.setter
    def kinds(self, kinds):
        self._kinds = kinds
        self._walks, self._stages = {}, {}

    def compiled_with(
        self, loss, loss_weights, metrics, weighted_metrics, distillation=None
    ):
        """Takes note of what `compile` was given, and spreads it over the outputs.

        Returns:
            A dict of arguments for `keras.Model.compile`, one entry an output.
        """
        names = [head.name for head in self.heads]
        losses = losses_each(loss, names)
        if losses is not None:
            self.kinds = [
                check_against_loss(head, item)
                for head, item in zip(self.heads, losses, strict=True)
            ]
        one_loss = loss is not None and not tree.is_nested(loss)
        metrics = metrics_each(metrics, names, one_loss)
        weighted_metrics = metrics_each(weighted_metrics, names, one_loss)
        weights = weights_each(loss_weights, self.heads, losses)
        self.losses, self.loss_weights = losses, weights if losses else None
        if losses:
            weights = self._counting = switched(weights, self.early_losses)
            if distillation is not None:
                _ = self.kinds
                weights = distillation.weights_of_labels(weights, len(names) - 1)
        final = self.final = {
            "loss": losses[-1] if losses else None,
            "metrics": entries_of_final(metrics, names),
            "weighted_metrics": entries_of_final(weighted_metrics, names),
        }
        if self.plan is not None:
            self._check_mixture(losses)
            # The loss of the answer selected is seen, that of the mixture trained.
            losses = losses and [*losses, final["loss"], final["loss"]]
            weights = weights and [*weights, 0.0, 1.0]
            metrics = with_derived(metrics, final["metrics"])
            weighted_metrics = with_derived(weighted_metrics, final["weighted_metrics"])
        return {
            "loss": losses,
            "loss_weights": weights,
            "metrics": metrics or [],  # None would leave those of the last `compile`
            "weighted_metrics": weighted_metrics,
        }

    def _check_mixture(self, losses):
        """Raises a ValueError where a selector could not be trained."""
        if losses is None:
            return
        _ = self.kinds
        if losses[-1] is None:
            raise ValueError(
                "`loss` must have an entry for the last exit, which is the loss of the "
                "selector's mixture too. Received: None for "
                f"'{self.heads[-1].name}'. To switch off the last exit's own, use "
                "`loss_weights`."
            )

    @property
    def metric_prefixes(self):
        """What stands before the names of each output's metrics."""
        named = [f"{head.name}_" for head in self.heads]
        if self.plan is None:
            return [*named[:-1], ""]
        # The plain names belong to the answer that is selected.
        return [*named, "", "mixture_"]

    def targets_and_outputs(self, y, y_pred):
        """One target an output; with a selector, its two derived outputs as well."""
        targets = targets_each(y, [head.name for head in self.heads], self.losses)
        if self.plan is None:
            return targets, y_pred
        *outputs, weights = y_pred
        if targets is not None:
            targets = [*targets, targets[-1], targets[-1]]
        return targets, [*outputs, *derived_outputs(outputs, weights, self.kinds)]

    def sample_weights(self, weights):
        """One weight an output, where they are given one for each exit."""
        if self.plan is None or not isinstance(weights, (list, tuple)):
            return weights
        return [*weights, weights[-1], weights[-1]]

    def distilled(self, distillation, outputs, sample_weights):
        """What the final exit's answer adds to the loss of the early ones."""
        outputs = outputs[: len(self.heads)]
        given = self.kinds, self.losses, self._counting, sample_weights
        return distillation.loss(outputs, *given)

    def bind_selector_costs(self):
        """Fills in the costs of a selector with `exit_costs="auto"`."""
        layer = self._selector_layer()
        if getattr(layer, "exit_costs", None) == "auto" and not self.open_sizes:
            costs = self.costs(rule=rules.Selected()).exits
            layer.bind_costs([cost / costs[-1] for cost in costs])

    def _selector_layer(self):
        """The layer that the weights come from; warns where others stand between."""
        last = self.plan.selector.operation
        if isinstance(last, Selector):
            return last
        steps = self.plan.prologue
        found = [s.operation for s in steps if isinstance(s.operation, Selector)]
        if not found:
            return last
        warnings.warn(
            f"`selector` does not come straight from '{found[-1].name}' but through "
            f"'{last.name}'. So its soft weights are not known when the model is "
            "evaluated (the mixture is scored with the hard ones), and a "
            "`LayerwiseSelector` decides in advance. Hand over what it gives.",
            stacklevel=4,
        )
        return found[-1]

    def walk_under(self, rule, model, asked=None):
        """The compiled walk and the thresholds of a rule.

        Args:
            rule: an `ExitRule`, a name, or None for the model's own.
            model: the model, whose rule and weights count.
            asked: numbers of the exits to ask, as of `asked_under`. Defaults to `None`,
                all.

        Returns:
            (walk, thresholds): a `Walk` and a (exits - 1,) float32 tensor.
        """
        rule = model.exit_rule if rule is None else rules.get(rule)
        self.check_rule(rule)
        thresholds = tf.constant(rule.thresholds(len(self.heads) - 1))
        asked = self.all_exits if asked is None else asked
        key = rules.trace_key(rule), asked
        if key not in self._walks:
            door = self._intake, self._graph.inputs
            if isinstance(rule, rules.Selected):
                walk = SelectedWalk(self.plan, self.kinds, *door)
            else:
                exits = self._graph.outputs
                outputs = tuple(exits[number] for number in asked)
                segments = cut_at_exits(
                    dataclasses.replace(self._graph, outputs=outputs)
                )
                walk = Walk(segments, asked, exits, self.kinds, rule, *door)
            self._walks[key] = walk
        return self._walks[key], thresholds

    @property
    def all_exits(self):
        """Numbers of all exits."""
        return tuple(range(len(self.heads)))

    def asked_under(self, rule, also=()):
        """Numbers of the exits that have to be asked: not those that are closed.

        A rule that remembers the exits before needs all of them. An exit with gates in
        its head, whose savings count, is asked as well.

        Args:
            rule: an `ExitRule`.
            also: numbers of exits to ask even if they are closed. Defaults to `()`.
        """
        if isinstance(rule, rules.Selected) or rule.remembers:
            return self.all_exits
        is_open = [*np.isfinite(rule.thresholds(len(self.heads) - 1)), True]
        also = self._gated_heads.union(also)
        return tuple(n for n in self.all_exits if is_open[n] or n in also)

    @functools.cached_property
    def _gated_heads(self):
        heads = [head for _, head in self.parts()]
        return {number for number, steps in enumerate(heads) if holds_gates(steps)}

    def stages_of(self, walk):
        """The `StageFunctions` of a walk that `walk_under` gave."""
        if walk not in self._stages:
            self._stages[walk] = StageFunctions(walk)
        return self._stages[walk]

    def replicated(self, walk, strategy):
        """A walk that `walk_under` gave, on all replicas of a strategy."""
        if (walk, strategy) not in self._stages:
            self._stages[walk, strategy] = ReplicatedWalk(walk, strategy)
        return self._stages[walk, strategy]

    def check_rule(self, rule):
        """Raises a ValueError for `Selected` without a selector."""
        if isinstance(rule, rules.Selected) and self.plan is None:
            raise ValueError(
                "`rule` 'selected' needs a model with a selector: "
                "`DynamicModel(inputs, outputs, selector=weights)`. Received: "
                f"rule={rule!r}."
            )

    def dense_outputs(self, x):
        """Outputs of all exits for a batch, arrays: what `predict_on_batch` gives, but
        by one replica where the model was made for several."""
        return self.dense_answers(x)[0]

    def dense_answers(self, x):
        """(outputs, saved): outputs of all exits, and what gates saved up to each.

        Args:
            x: a batch.

        Returns:
            A list of arrays (batch, units), and a (batch, exits) array of FLOPs that
            closed gates did not execute for those who get as far as an exit.
        """
        exits = len(self.heads)
        outputs, saved = self._dense(x, tf.zeros([exits - 1]), tf.ones([exits]))
        return [np.asarray(output) for output in outputs], np.stack(saved, axis=1)

    def check_input(self, x):
        """Keras' own error for input of a wrong shape, dtype or structure."""
        self._intake(x, training=False)

    def costs(self, input_shapes=None, rule=None, asked=None):
        """`Costs` under a rule, for sizes that the model leaves open.

        Args:
            input_shapes: see `compute_costs`.
            rule: an `ExitRule`; `Selected` pays the selector and one head, all others
                the head of every exit on the way that is asked. Defaults to `None`,
                the latter.
            asked: as in `walk_under`.
        """
        plan = self.plan if isinstance(rule, rules.Selected) else None
        # A choice of layers costs what its winner costs, which training may change.
        choosing = winners(step.operation for step in self._graph.steps)
        asked = self.all_exits if asked is None else asked
        key = (input_shapes, plan is None, asked, choosing)
        if key not in self._costs:
            if plan is None:
                given = self._graph, self.segments, input_shapes, asked
                counted = compute_costs(*given)
            else:
                counted = compute_selected_costs(self._graph, plan, input_shapes)
            self._costs[key] = counted
        return self._costs[key]

    def costs_of_batch(self, x, rule, asked=None):
        """`Costs` of the samples of a batch, whose sizes fill in what is open."""
        if not self.open_sizes:
            return self.costs(None, rule, asked)
        fed = tree.flatten(self._intake(x, training=False))
        shapes = tuple(tuple(tensor.shape[1:]) for tensor in fed)
        return self.costs(shapes, rule, asked)

    def parts(self, rule=None):
        """The steps that lead to each exit, as a rule has them paid.

        Args:
            rule: as in `costs`.

        Returns:
            A list of (trunk, head), one an exit: tuples of steps that were not there
            before, the head's for this exit alone. All of the last exit's are trunk.
        """
        if isinstance(rule, rules.Selected):
            parts = [(stage.trunk, stage.head) for stage in self.plan.stages]
            trunk, head = parts[0]
            parts[0] = ((*self.plan.prologue, *trunk), head)
        else:
            parts, outputs = [], self._graph.outputs
            for index, segment in enumerate(self.segments):
                later = set(needed_steps(self._graph, outputs[index + 1 :]))
                trunk = tuple(step for step in segment.steps if step in later)
                head = tuple(step for step in segment.steps if step not in later)
                parts.append((trunk, head))
        trunk, head = parts[-1]
        parts[-1] = ((*trunk, *head), ())
        return parts

    def step_flops(self, steps, input_shapes=None):
        """FLOPs of each step, and what each gate saves: see `costs.step_flops` and
        `costs.step_savings`."""
        given = self._graph, steps, input_shapes
        return step_flops(*given), step_savings(*given)

    @property
    def open_sizes(self):
        """Whether an input has a size besides the batch that is not known."""
        return any(None in value.spec.shape[1:] for value in self._graph.inputs)
