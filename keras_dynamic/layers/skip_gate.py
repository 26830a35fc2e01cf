"""SkipGate: a layer that runs for the samples that need it."""

import warnings

import keras
import tensorflow as tf
from keras import ops

from keras_dynamic._compat import (
    get_mask,
    keeping_losses,
    set_mask,
)
from keras_dynamic.layers._checks import (
    check_one_tensor,
    checked_bool,
    checked_gate,
    checked_layer,
    checked_rate,
    checked_shortcut,
    nonnegative,
)
from keras_dynamic.layers._choosing import ChoosingLayer
from keras_dynamic.layers._observed import ObservedMean, metrics_of_gate
from keras_dynamic.layers._pooled_head import small_gate
from keras_dynamic.layers._shortcut import check_shortcut, known_shapes, shortcut_of
from keras_dynamic.layers._skipping import per_sample, run_open_samples
from keras_dynamic.ops import estimators
from keras_dynamic.ops.penalties import expected_cost, open_rate_penalty

__all__ = ["SkipGate"]

# A cost that nobody filled in.
_UNKNOWN = -1.0
_INITIAL_OPEN_RATE = 0.9


@keras.saving.register_keras_serializable(package="keras_dynamic")
class SkipGate(ChoosingLayer):
    """Runs a layer f for some samples, and lets the others pass by it.

        h(x) = s(g(x)) f(x) + (1 - s(g(x))) x

    where the gate g gives one logit for each sample, and s makes yes or no of it. With
    `additive=True` the layer is a correction, h(x) = x + s(g(x)) f(x).

    In training f runs on the whole batch (the dense road), and s follows `estimator`.
    When not training a sample is open where its logit is positive, and f runs on the
    open samples only: they are gathered, run, and put back; if all are open, or none,
    nothing is moved. This holds wherever the layer is called: in `Model.predict`, in
    the segments of a `DynamicModel`, whose `cost` counts it, within the layer of
    another gate, in an exported model. Under XLA, whose shapes are fixed, f runs on all
    and the open ones are selected: same answer, no saving. So f must answer each sample
    by itself.

    A relaxed estimator (`"soft"`, `"gumbel_softmax"`) trains a blend of f(x) and x that
    inference never computes: with s = 0.6 the answer jumps from the blend to f(x). The
    logs then show `<name>_gap`, the mean of |s - hardened s| without noise. The hard
    estimators train one or the other, hence the default; it draws with noise, while
    `"straight_through"` decides in training as inference does. With that one, and a
    learning rate that falls to 0, a target is met best.

    Two losses may be added in training. `rate_weight * (rate - target_rate)**2`, where
    rate is the share of the batch with a positive logit: what inference would run, in
    the forward pass; the mean probability of being open in the backward one. And
    `cost_weight * mean probability * cost`, f's share of the network's FLOPs, with
    which gates share a budget as they see fit.

    The logs of `fit` and `evaluate` show `<name>_open_rate`, the share of samples that
    inference would run, and `<name>_open_probability`, the mean probability of being
    open. Of a gate inside another gate's layer `evaluate` counts the samples that got
    there; in training all do. A
    gate that has collapsed gives a warning: one with a mean probability below 0.01 or
    above 0.99, or one that inference would run for every sample, or for none, in three
    epochs or evaluations in a row.

    Keep the gate's weights out of weight decay: `DynamicModel.compile` does, for other
    models `kd.exclude_from_weight_decay(optimizer, model)`. With every sample open the
    layer equals f.

    Args:
        layer: f, any Keras layer or model with one input and one output. Losses inside
            of it count in training only; BatchNormalization sees the whole batch there.
        estimator: how s is made in training: `"soft"`, `"straight_through"`,
            `"gumbel_softmax"`, `"gumbel_straight_through"` or `"reinmax"`. Defaults to
            `"gumbel_straight_through"`.
        temperature: tau > 0 (>= 1 for `reinmax`), kept in the non-trainable weight
            `current_temperature`. Defaults to 1.0.
        target_rate: float in (0, 1], the open rate to be trained for with
            `rate_weight`. Defaults to `None`.
        rate_weight: float >= 0; needs `target_rate`. Defaults to 0.
        cost_weight: float >= 0. Defaults to 0.
        initial_open_rate: float in (0, 1), the probability of being open with which the
            built-in gate starts for every sample, by its bias. Defaults to 0.9.
        shortcut: what closed samples get in place of f(x). `"auto"`: x itself, or
            where f changes shapes a linear projection, trained with the rest (a dense
            layer, or a convolution of size 1 with strides); a layer; or `None`: x
            itself, and an error where shapes change. Defaults to `"auto"`.
        additive: bool, x + s f(x) in place of the above. Defaults to `False`.
        gate: layer from the input to logits (batch, 1). Defaults to `None`: the mean
            over positions, a hidden layer of 16 units with ReLU, and the logit.
        cost: number >= 0, or `"auto"`, filled in by a `DynamicModel` or by
            `kd.bind_costs(model)`. If nobody does it counts as 1, and training with a
            `cost_weight` warns. Defaults to `"auto"`.
        data_format: of images, for the built-in gate and the projection. Defaults to
            `keras.config.image_data_format()`.
        seed: int, of the noise. Defaults to `None`, a random one.

    Call arguments:
        inputs: one tensor, batch first. f and the gate see the mask that it carries.
        mask: (batch, tokens) bool; by default the mask that the inputs carry.
        training: bool, whether to run the dense road with the estimator.

    Input shape:
        What f takes.

    Output shape:
        What f gives, in the gate's compute dtype.

    Raises:
        ValueError: for a rate, weight or cost out of its range, an unknown estimator or
            shortcut, a `rate_weight` without `target_rate`, an `initial_open_rate` for
            a `gate` of one's own, f that changes shapes with `shortcut=None`, or a
            gate that does not give (batch, 1).
        TypeError: for what is no layer, or inputs that are no floats.

    Example:

    ```python
    inputs = keras.Input((16,))
    block = keras.layers.Dense(16, activation="relu")
    h = kd.SkipGate(block, target_rate=0.5, rate_weight=1.0, name="block_1")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1)(h))
    model.compile("adam", "mse")
    history = model.fit(np.ones((8, 16)), np.ones((8, 1)), verbose=0).history
    print(history["block_1_open_rate"])
    ```

    Reference:
        Veit and Belongie, "Convolutional Networks with Adaptive Inference Graphs", ECCV
        2018 (the target rate, which they hold in sampled gates); Wang, Yu, Dou, Darrell
        and Gonzalez, "SkipNet: Learning Dynamic Routing in Convolutional Networks",
        ECCV 2018.
    """

    def __init__(
        self,
        layer,
        estimator="gumbel_straight_through",
        temperature=1.0,
        target_rate=None,
        rate_weight=0.0,
        cost_weight=0.0,
        initial_open_rate=_INITIAL_OPEN_RATE,
        shortcut="auto",
        additive=False,
        gate=None,
        cost="auto",
        data_format=None,
        seed=None,
        **kwargs,
    ):
        super().__init__(temperature, estimator, seed, **kwargs)
        self.layer = checked_layer("layer", layer)
        self.target_rate = checked_rate("target_rate", target_rate, closed=True)
        self.rate_weight = nonnegative("rate_weight", rate_weight)
        self.cost_weight = nonnegative("cost_weight", cost_weight)
        if self.rate_weight and target_rate is None:
            raise ValueError(
                "`rate_weight` needs a `target_rate`. Received: "
                f"rate_weight={rate_weight}, target_rate=None."
            )
        self.initial_open_rate = checked_rate("initial_open_rate", initial_open_rate)
        self.additive = checked_bool("additive", additive)
        self.cost = cost if cost == "auto" else nonnegative("cost", cost)
        self.data_format = data_format or keras.config.image_data_format()
        self.shortcut = checked_shortcut(shortcut)
        self.gate = None if gate is None else checked_gate(gate)
        if gate is not None and initial_open_rate != _INITIAL_OPEN_RATE:
            raise ValueError(
                "`initial_open_rate` sets the bias of the built-in gate; set that of "
                f"your own yourself. Received: initial_open_rate={initial_open_rate} "
                f"with gate={gate}."
            )
        self._gate = self.gate or small_gate(
            self.initial_open_rate,
            self.data_format,
            self.dtype_policy,
            name=f"{self.name}_gate",
        )
        self._bypass = self.shortcut if isinstance(shortcut, keras.Layer) else None
        self.current_cost = self.add_weight(
            name="cost",
            shape=(),
            initializer=keras.initializers.Constant(
                _UNKNOWN if cost == "auto" else cost
            ),
            trainable=False,
            dtype="float32",
            autocast=False,
        )
        self._cost_known = cost != "auto"
        self.supports_masking = True
        self.supports_jit = True
        self._open_rate, self._open_probability = metrics_of_gate(
            self.name, may_always_open=target_rate == 1.0
        )
        self._gap = None
        if self.estimator not in estimators.HARD_ESTIMATORS:
            self._gap = ObservedMean(f"{self.name}_gap")

    def build(self, input_shape):
        check_one_tensor(input_shape)
        spec = keras.KerasTensor((None, *input_shape[1:]), self.compute_dtype)
        logits = _spec_of(self._gate, spec)
        if tuple(logits.shape[1:]) != (1,):
            raise ValueError(
                "`gate` must give one logit a sample, (batch, 1). Received: an output "
                f"of shape {logits.shape} for an input of shape {tuple(input_shape)}."
            )
        output = _spec_of(self.layer, spec)
        if not isinstance(output, keras.KerasTensor):
            raise ValueError(
                f"`layer` must give one tensor. Received: layer '{self.layer.name}', "
                "which gives several."
            )
        given, gives = known_shapes(self.layer, spec.shape, output.shape)
        self._keeps_positions = (len(given), *given[:1]) == (len(gives), *gives[:1])
        if isinstance(self.shortcut, keras.Layer):
            bypassed = _spec_of(self.shortcut, spec)
            check_shortcut(self.shortcut, bypassed.shape, output.shape)
        else:
            self._bypass = shortcut_of(
                self.shortcut,
                self.layer,
                spec.shape,
                output.shape,
                self.data_format,
                self.dtype_policy,
            )

    def call(self, inputs, mask=None, training=False):
        mask = get_mask(inputs) if mask is None else mask
        logits = self._logits(inputs, mask)
        if training:
            return self._dense(inputs, mask, logits)
        probability = self._binary_probabilities(logits)
        return run_open_samples(self, inputs, mask, logits > 0, probability)

    def compute_mask(self, inputs, previous_mask):
        if previous_mask is None or self._keeps_positions:
            return previous_mask
        return None

    def compute_output_shape(self, input_shape):
        return tuple(self.layer.compute_output_shape(input_shape))

    def compute_output_spec(self, inputs, mask=None, training=False):
        if not keras.backend.is_float_dtype(inputs.dtype):
            raise TypeError(
                f"`inputs` must be floats, which '{self.name}' can hand on. Received: "
                f"inputs of dtype {inputs.dtype}."
            )
        shape = (inputs.shape[0], *_spec_of(self.layer, inputs).shape[1:])
        return keras.KerasTensor(shape, self.compute_dtype)

    def bind_costs(self, shares):
        """Fills in a cost of `"auto"`.

        Args:
            shares: list of one number, f's share of the network's FLOPs.
        """
        if self.cost == "auto":
            self.current_cost.assign(shares[0])
            self._cost_known = True

    def load_own_variables(self, store):
        super().load_own_variables(store)
        if self.cost == "auto":  # it may have been filled in before saving
            cost = ops.convert_to_numpy(self.current_cost)
            self._cost_known = float(cost) != _UNKNOWN

    def get_config(self):
        shortcut = self.shortcut
        if isinstance(shortcut, keras.Layer):
            shortcut = keras.saving.serialize_keras_object(shortcut)
        return {
            **super().get_config(),
            "layer": keras.saving.serialize_keras_object(self.layer),
            "target_rate": self.target_rate,
            "rate_weight": self.rate_weight,
            "cost_weight": self.cost_weight,
            "initial_open_rate": self.initial_open_rate,
            "shortcut": shortcut,
            "additive": self.additive,
            "gate": self.gate and keras.saving.serialize_keras_object(self.gate),
            "cost": self.cost,
            "data_format": self.data_format,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        for name in ("layer", "gate", "shortcut"):
            if isinstance(config[name], dict):
                config[name] = keras.saving.deserialize_keras_object(config[name])
        return super().from_config(config)

    @property
    def bypass(self):
        """What closed samples go through, a layer; None where they stay as they are."""
        return self._bypass

    @property
    def decider(self):
        """The gate, built in or the user's."""
        return self._gate

    def run(self, inputs, mask):
        """f of some samples."""
        # On a copy: the layer may take the mask off the tensor that it reads.
        output = self.layer(set_mask(tf.identity(inputs), mask))
        return tf.cast(output, self.compute_dtype)

    def pass_by(self, inputs):
        """What some samples get in place of f."""
        if self._bypass is None:
            return inputs
        return tf.cast(self._bypass(inputs), self.compute_dtype)

    @property
    def record_size(self):
        """How many vectors its records have."""
        return 3

    def observe(self, record):
        """Notes in the logs' metrics what it did when not training."""
        self._note(record.opened, record.probability, record.reached)

    def _note(self, opened, probability, weights=None, training=False):
        self._open_rate.observe(opened, weights, training)
        self._open_probability.observe(probability, weights, training)
        if self._gap is not None:
            gap = tf.abs(probability - opened)
            self._gap.observe(gap, weights, training)

    @property
    def weights_without_decay(self):
        """The gate's weights, which a weight decay would drive to even odds."""
        return list(self._gate.trainable_weights)

    def _logits(self, inputs, mask):
        """(batch,) float32."""
        logits = self._gate(set_mask(tf.identity(inputs), mask))
        return ops.cast(logits[:, 0], "float32")

    def _dense(self, inputs, mask, logits):
        """The whole batch through f, and the estimator's choice."""
        chosen = self._binary(logits, training=True)
        probability = self._binary_probabilities(logits)
        opened = tf.cast(logits > 0, tf.float32)
        self._regularize(opened, probability)
        self._note(opened, probability, training=True)
        output, bypass = self.run(inputs, mask), self.pass_by(inputs)
        chosen = per_sample(tf.cast(chosen, self.compute_dtype), output)
        if self.additive:
            return bypass + chosen * output
        return chosen * output + (1 - chosen) * bypass

    def _regularize(self, opened, probability):
        if self.rate_weight:
            with keeping_losses():
                penalty = open_rate_penalty(opened, probability, self.target_rate)
            self.add_loss(self.rate_weight * penalty)
        if not self.cost_weight:
            return
        if not self._cost_known:
            warnings.warn(
                f"Gate '{self.name}' counts with cost=1, since nobody filled in its "
                "share of the network's FLOPs: call `kd.bind_costs(model)` before "
                "`fit`, or give `cost=`.",
                stacklevel=2,
            )
        cost = ops.convert_to_tensor(self.current_cost)
        cost = tf.where(cost == _UNKNOWN, 1.0, cost)
        self.add_loss(self.cost_weight * expected_cost(probability[:, None], cost))


def _spec_of(layer, inputs):
    """The symbolic output of a layer, which is built by that."""
    return layer(keras.KerasTensor(inputs.shape, inputs.dtype))
