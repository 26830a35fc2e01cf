"""LayerChoice: one of several layers, learned with the rest of the network."""

import math

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from keras_dynamic._compat import get_mask, set_mask
from keras_dynamic.layers._checks import nonnegative, numbers_in
from keras_dynamic.layers._choosing import ChoosingLayer
from keras_dynamic.layers._gate_records import GatesInBranches, collecting, report
from keras_dynamic.layers._sub_layers import (
    build_layer,
    joint_mask,
    output_shape,
    run_layer,
    run_without_losses,
)
from keras_dynamic.ops import estimators
from keras_dynamic.ops.penalties import expected_cost, mean_entropy

__all__ = ["LayerChoice"]

# Stands in the weight `current_costs` for a cost that nobody has filled in.
_UNKNOWN = -1.0
# Stands for a size that the input leaves open.
_PROBE_SIZE = 64


@keras.saving.register_keras_serializable(package="keras_dynamic")
class LayerChoice(ChoosingLayer):
    """One of E layers, learned: y = sum_e w_e f_e(x), w from E trainable logits l.

    The choice is one for the whole layer, not for each sample. In training all E
    sub-layers run, and the weights w follow `estimator`: softmax(l / tau), which is
    the mixed operation of DARTS, a draw, or a one-hot vector with the gradient of a
    softmax (see `GumbelSoftmax`). A draw holds for one step and one replica.

    When not training, the relaxed estimators `"soft"` and `"gumbel_softmax"` compute
    the mixture with w = softmax(l / tau). The hard ones compute the sub-layer with
    the largest logit and no other, whose work is really saved.

    The logits start at 0, so that the sub-layers start equal. Weights are computed in
    float32, and the sum in the layer's compute dtype, to which each sub-layer's
    answer is cast. With a single sub-layer the layer computes what that one does.

    Two regularizers, each with its weight, are added by `add_loss` in training. With
    p = softmax(l / tau), whatever the estimator (draws follow softmax(l)): the
    entropy of p in nats (small means decided), and the expected cost sum_e p_e o_e.
    Losses that the sub-layers add themselves are added as they are; with a hard
    estimator, in training only. (Regularizers of their weights count as in any Keras
    model.)

    `training` and masks are handed to the sub-layers. The output has a mask if every
    sub-layer's answer has one: the positions that all of them keep; of the winner
    alone where only that one is run.

    Args:
        layers: list of E >= 1 Keras layers or models, each another object, that take
            the same input and give one tensor of the same shape.
            `keras.layers.Identity()` skips.
        estimator: `"soft"`, `"straight_through"`, `"gumbel_softmax"`,
            `"gumbel_straight_through"` or `"reinmax"`. Defaults to `"soft"`.
        temperature: tau > 0 (>= 1 for `reinmax`), kept in the non-trainable weight
            `current_temperature`. Defaults to 1.0.
        entropy_weight: float >= 0. Defaults to 0.
        costs: E numbers >= 0, the costs o; or `"auto"`, filled in by
            `kd.bind_costs(model)`: each sub-layer's share of the network's FLOPs.
            Defaults to `None`.
        cost_weight: float >= 0; needs `costs`. Defaults to 0.
        seed: int, of the noise. Defaults to `None`, a random one.

    Call arguments:
        inputs: what the sub-layers take: a tensor, or a list of them.
        training: bool, whether to run all sub-layers and to draw noise.
        mask: by default the mask that the inputs carry.

    Output shape:
        That of each sub-layer.

    Raises:
        ValueError: for an empty list, a layer given twice, an unknown estimator, a
            temperature, weight or cost out of its range, or another number of costs
            than of layers; when built, for sub-layers whose output shapes differ.
        TypeError: for what is not a list of Keras layers.
        RuntimeError: in training, with `costs="auto"` that nobody filled in.

    Example:

    ```python
    convolutions = [keras.layers.Conv2D(4, k, padding="same") for k in (1, 3, 5)]
    choice = kd.LayerChoice([*convolutions, keras.layers.Identity()])
    model = keras.Sequential([keras.Input((8, 8, 4)), choice])
    model.compile("adam", "mse")
    model.fit(np.ones((6, 8, 8, 4)), np.ones((6, 8, 8, 4)), verbose=0)
    print(choice.probabilities(), choice.winner())
    ```

    Reference:
        Liu, Simonyan and Yang, "DARTS: Differentiable Architecture Search", ICLR 2019
        (`"soft"`, with a temperature here). Xie, Zheng, Liu and Lin, "SNAS: Stochastic
        Neural Architecture Search", ICLR 2019 (`"gumbel_softmax"`). Dong and Yang,
        "Searching for A Robust Neural Architecture in Four GPU Hours", CVPR 2019
        (`"gumbel_straight_through"`; there only the drawn operation is run in
        training, here all of them).
    """

    def __init__(
        self,
        layers,
        estimator="soft",
        temperature=1.0,
        entropy_weight=0.0,
        costs=None,
        cost_weight=0.0,
        seed=None,
        **kwargs,
    ):
        super().__init__(temperature, estimator, seed, **kwargs)
        self.layers = _checked_layers(layers)
        self.entropy_weight = nonnegative("entropy_weight", entropy_weight)
        self.cost_weight = nonnegative("cost_weight", cost_weight)
        if costs is not None and not (isinstance(costs, str) and costs == "auto"):
            costs = _checked_costs(costs, len(self.layers))
        self.costs = costs
        if self.cost_weight and costs is None:
            raise ValueError(
                "`cost_weight` needs `costs`: a list, or 'auto'. Received: "
                f"cost_weight={cost_weight}, costs=None."
            )
        self.supports_masking = True
        self.logits = self.add_weight(
            name="logits",
            shape=(len(self.layers),),
            initializer="zeros",
            dtype="float32",
            autocast=False,
        )
        if costs is not None:
            values = [_UNKNOWN] * len(self.layers) if costs == "auto" else costs
            self.current_costs = self.add_weight(
                name="costs",
                shape=(len(self.layers),),
                initializer=keras.initializers.Constant(values),
                trainable=False,
                dtype="float32",
                autocast=False,
            )
        self._costs_known = costs not in (None, "auto")

    @property
    def choice_weights(self):
        """List of the weights that decide the choice: the logits."""
        return [self.logits]

    @property
    def layer_names(self):
        """The sub-layers' names, with a number behind those that there are twice."""
        names = []
        for layer in self.layers:
            name, number = layer.name, 0
            while name in names:
                number += 1
                name = f"{layer.name}_{number}"
            names.append(name)
        return names

    def probabilities(self):
        """softmax(l / tau), a NumPy array of E numbers: how much each layer counts."""
        return keras.ops.convert_to_numpy(self._at_temperature())

    def winner(self):
        """The sub-layer with the largest logit; the first of equals."""
        return self.layers[int(self.strongest())]

    def strongest(self):
        """Index of the sub-layer with the largest logit, a NumPy integer."""
        return np.argmax(keras.ops.convert_to_numpy(self.logits))

    def bind_costs(self, costs):
        """Fills in the costs of a layer with `costs="auto"`; else does nothing.

        Args:
            costs: E numbers >= 0.
        """
        if self.costs == "auto":
            self.current_costs.assign(_checked_costs(costs, len(self.layers)))
            self._costs_known = True

    def build(self, input_shape):
        shapes = []
        # Sizes left open are tried with a number: a stride would leave them open too.
        probed = tree.map_shape_structure(_without_open_sizes, input_shape)
        for layer in self.layers:
            build_layer(layer, input_shape)
            shapes.append(output_shape(layer, probed))
        for layer, name, shape in zip(
            self.layers, self.layer_names, shapes, strict=True
        ):
            if shape is None:
                raise ValueError(
                    "`layers` must give one tensor each. Received: "
                    f"'{name}' ({type(layer).__name__}), which gives several."
                )
            if shape != shapes[0]:
                first = self.layers[0]
                raise ValueError(
                    "`layers` must all give the same output shape. Received: "
                    f"'{self.layer_names[0]}' ({type(first).__name__}), which gives "
                    f"{shapes[0]}, and '{name}' ({type(layer).__name__}), which gives "
                    f"{shape}, for an input of shape {probed}."
                )

    def call(self, inputs, training=False, mask=None):
        if not training and self.estimator in estimators.HARD_ESTIMATORS:
            return self._run_winner(inputs, mask)
        if training:
            self._regularize()
        weights = self._categorical(self.logits, training=training)
        answers = [run_layer(layer, inputs, mask) for layer in self.layers]
        answer = tf.add_n(
            [
                tf.cast(weight, self.compute_dtype) * tf.cast(each, self.compute_dtype)
                for weight, each in zip(tf.unstack(weights), answers, strict=True)
            ]
        )
        return set_mask(answer, joint_mask(answers))

    def compute_output_shape(self, input_shape):
        return output_shape(self.layers[0], input_shape)

    def compute_mask(self, inputs, previous_mask):
        return None  # the answer carries its own from `call`

    def get_config(self):
        layers = [keras.saving.serialize_keras_object(layer) for layer in self.layers]
        return {
            **super().get_config(),
            "layers": layers,
            "entropy_weight": self.entropy_weight,
            "costs": self.costs,
            "cost_weight": self.cost_weight,
        }

    @classmethod
    def from_config(cls, config):
        layers = [
            keras.saving.deserialize_keras_object(layer)
            if isinstance(layer, dict)
            else layer
            for layer in config["layers"]
        ]
        return cls(**{**config, "layers": layers})

    def load_own_variables(self, store):
        super().load_own_variables(store)
        if self.costs == "auto":  # they may have been filled in before saving
            costs = keras.ops.convert_to_numpy(self.current_costs)
            self._costs_known = bool((costs != _UNKNOWN).all())

    def _at_temperature(self):
        """softmax(l / tau), float32."""
        tau = keras.ops.convert_to_tensor(self.current_temperature)
        return estimators.categorical(self.logits, "soft", tau)

    def _regularize(self):
        """Adds the regularizers; each takes the choice as that of one sample."""
        if self.entropy_weight:
            self.add_loss(
                self.entropy_weight * mean_entropy(self._at_temperature()[None])
            )
        if self.cost_weight:
            if not self._costs_known:
                raise RuntimeError(
                    f"Layer '{self.name}' has `costs='auto'` that nobody filled in: "
                    "`kd.bind_costs(model)` fills it in. Or give the costs as a list."
                )
            costs = keras.ops.convert_to_tensor(self.current_costs)
            cost = expected_cost(self._at_temperature()[None], costs)
            self.add_loss(self.cost_weight * cost)

    def _run_winner(self, inputs, mask):
        """Runs one sub-layer: in a graph, a branch of which one is executed."""
        masked, gates = [], GatesInBranches(self.layers, inputs)

        def branch(layer):
            def run():
                with collecting() as records:
                    answer = run_without_losses(layer, inputs, mask)
                own = get_mask(answer)
                masked.append(own is not None)
                # Branches give the same number of tensors, with a mask or without.
                own = tf.constant(True) if own is None else own
                answer = tf.cast(answer, self.compute_dtype)
                return answer, own, gates.vectors(records)

            return run

        answer, own, vectors = tf.switch_case(
            tf.argmax(self.logits, output_type=tf.int32),
            [branch(layer) for layer in self.layers],
        )
        report(gates.records(vectors))
        return set_mask(answer, own if all(masked) else None)


def _without_open_sizes(shape):
    return (shape[0], *(size or _PROBE_SIZE for size in shape[1:]))


def _checked_layers(layers):
    if not isinstance(layers, (list, tuple)):
        raise TypeError(
            "`layers` must be a list of Keras layers or models. Received: "
            f"layers={layers!r} of type {type(layers)}."
        )
    if not layers:
        raise ValueError("`layers` must hold at least one layer. Received: layers=[].")
    for index, layer in enumerate(layers):
        if not isinstance(layer, keras.layers.Layer):
            raise TypeError(
                "`layers` must hold Keras layers or models "
                "(`keras.layers.Activation` makes one of a function). Received: "
                f"layers[{index}]={layer!r} of type {type(layer)}."
            )
    for index, layer in enumerate(layers):
        for earlier in range(index):
            if layers[earlier] is layer:
                raise ValueError(
                    "`layers` must hold each layer once: two places for one layer "
                    f"would be one choice. Received: layer '{layer.name}' as "
                    f"layers[{earlier}] and layers[{index}]."
                )
    return list(layers)


def _checked_costs(costs, count):
    if isinstance(costs, str):
        raise ValueError(
            "`costs` must be a list of numbers, 'auto' or None. Received: "
            f"costs={costs!r}."
        )
    values = numbers_in("costs", costs)
    if len(values) != count:
        raise ValueError(
            f"`costs` must have {count} entries, one for each of `layers`. Received: "
            f"costs={costs} with {len(values)} entries."
        )
    if not all(0 <= value < math.inf for value in values):
        raise ValueError(f"`costs` must be finite and >= 0. Received: costs={costs}.")
    return values
