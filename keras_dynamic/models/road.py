"""What a model is cut into, and what is made from it on demand."""

import dataclasses

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from keras_dynamic.models import rules
from keras_dynamic.models.batch_axis import check_rows
from keras_dynamic.models.costs import compute_costs
from keras_dynamic.models.engine import Walk
from keras_dynamic.models.graph import build_graph
from keras_dynamic.models.heads import describe_head
from keras_dynamic.models.segments import cut_at_exits

__all__ = ["Road"]


class Road:
    """The graph of one model cut at its exits, with its heads, walks and costs.

    A plain object, so that Keras tracks none of it: it owns no weight, and all of it
    follows from the model.

    Args:
        model: a functional `keras.Model` whose outputs are the exits in order.

    Attributes:
        heads: a `Head` for each exit.
        segments: a `Segment` for each exit.
        final: what `compile` was given for the last exit: a dict with `loss`,
            `metrics` and `weighted_metrics`.
        losses: the loss of each exit, as given to `compile`; None before.
        loss_weights: the weights of the exits' losses in force, numbers or variables;
            None before `compile`.
    """

    def __init__(self, model):
        self._graph = build_graph(model)
        check_rows(self._graph)
        self.segments = cut_at_exits(self._graph)
        self.heads = _described_heads(self._graph)
        # Checks and casts what the user feeds as any Keras model does, and says so
        # in Keras' words.
        self._intake = keras.Model(model.input, list(model.inputs), name=model.name)
        self._kinds = [head.kind for head in self.heads]
        self._walks, self._costs = {}, {}
        self.final = self.losses = self.loss_weights = None
        self._dense = tf.function(
            lambda x: model(x, training=False), autograph=False, reduce_retracing=True
        )

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
        self._walks = {}

    def walk_under(self, rule, model):
        """The compiled walk and the thresholds of a rule.

        Args:
            rule: an `ExitRule`, a name, or None for the model's own.
            model: the model, whose rule and weights count.

        Returns:
            (walk, thresholds): a `Walk` and a (exits - 1,) float32 tensor.
        """
        rule = model.exit_rule if rule is None else rules.get(rule)
        thresholds = tf.constant(rule.thresholds(len(self.heads) - 1))
        key = _walk_key(rule)
        if key not in self._walks:
            self._walks[key] = Walk(
                self.segments, self.kinds, rule, self._intake, self._graph.inputs
            )
        return self._walks[key], thresholds

    def dense_outputs(self, x):
        """Outputs of all exits for a batch, arrays: what `predict_on_batch` gives, but
        by one replica where the model was made for several."""
        return [np.asarray(output) for output in self._dense(x)]

    def check_input(self, x):
        """Keras' own error for input of a wrong shape, dtype or structure."""
        self._intake(x, training=False)

    def costs(self, input_shapes=None):
        """`Costs` for sizes that the model leaves open; see `compute_costs`."""
        if input_shapes not in self._costs:
            self._costs[input_shapes] = compute_costs(
                self._graph, self.segments, input_shapes
            )
        return self._costs[input_shapes]

    def costs_of_batch(self, x):
        """`Costs` of the samples of a batch, whose sizes fill in what is open."""
        if not self.open_sizes:
            return self.costs()
        fed = tree.flatten(self._intake(x, training=False))
        return self.costs(tuple(tuple(tensor.shape[1:]) for tensor in fed))

    @property
    def open_sizes(self):
        """Whether an input has a size besides the batch that is not known."""
        return any(None in value.spec.shape[1:] for value in self._graph.inputs)


def _walk_key(rule):
    """Equal for rules that one traced walk can serve: thresholds are fed, the rest is
    traced. Objects count by identity, and the walk keeps them alive."""
    fed = ("threshold", "_bound")
    own = type(rule).leaves
    if own is not rules.ExitRule.leaves and own is not rules.Patience.leaves:
        fed = ("_bound",)  # it may read `self.threshold`, which is then traced
    plain = (int, float, str, type(None))
    return (
        type(rule),
        *(
            (name, type(value), value if isinstance(value, plain) else id(value))
            for name, value in sorted(vars(rule).items())
            if name not in fed
        ),
    )


def _described_heads(graph):
    heads, taken = [], set()
    for value in graph.outputs:
        head = describe_head(graph, value)
        unique, number = head.name, 0
        while unique in taken:
            number += 1
            unique = f"{head.name}_{number}"
        taken.add(unique)
        heads.append(dataclasses.replace(head, name=unique))
    return heads
