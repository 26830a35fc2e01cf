"""SparseMoE: a mixture of experts that computes the chosen experts."""

import keras
import tensorflow as tf

from keras_dynamic._compat import get_mask, keeping_losses
from keras_dynamic.layers._checks import (
    checked_bool,
    checked_tensor,
    nonnegative,
    positive_integer,
)
from keras_dynamic.layers._experts import build_experts, feed_forwards
from keras_dynamic.layers._gate_records import report
from keras_dynamic.layers._moe_arguments import (
    check_dispatch,
    check_input,
    check_not_given,
    checked_activation,
    checked_devices,
    checked_experts,
    checked_factor,
    checked_hidden_units,
    checked_losses,
    checked_mask,
    checked_name,
    known_devices,
    router_for,
    warn_of_causal_producers,
)
from keras_dynamic.layers._moe_choices import (
    checked_routing,
    choices_of,
    routes_all,
    units_of,
    with_capacity,
)
from keras_dynamic.layers._moe_losses import routing_losses
from keras_dynamic.layers._moe_records import record_of, totals_of, unique_name
from keras_dynamic.layers._moe_roads import ROADS, mixture_of
from keras_dynamic.layers._observed import ObservedRouting
from keras_dynamic.layers._sub_layers import output_shape

__all__ = ["SparseMoE"]

_ROUTES = ("token", "input")
# Arguments that stand in a config as they are.
_PLAIN = """
    num_experts hidden_units top_k route noise_stddev capacity_factor balance_loss
    balance_weight devices gated use_bias renormalize inference_capacity_factor
    batch_prioritized z_weight dispatch seed
""".split()


@keras.saving.register_keras_serializable(package="keras_dynamic")
class SparseMoE(keras.layers.Layer):
    """A mixture of experts of which each token uses a few: y = sum_e p_e E_e(x).

    A router gives each token probabilities p = softmax(W x + eps) of E experts, of
    which it keeps the K largest, and the token pays for K experts only. The experts are
    two-layer networks, act(x W1 + b1) W2 + b2, as in the feed-forward part of a
    transformer's block, or any list of Keras layers. A token is a position: the rows of
    (batch, features), the tokens of a sequence, the pixels of an image. With
    `route="input"` one choice is made for a whole sample, from the mean of its tokens.

    In training the Gaussian noise eps lets tokens try other experts; the gradient
    reaches the router through the weights p of the chosen ones. When not training there
    is no noise, and nothing is dropped unless `inference_capacity_factor` asks for it:
    a sample's answer does not depend on the other samples.

    **Capacity.** With `capacity_factor` c an expert takes at most c K T / E of T tokens
    in training (rounded up). First choices come before second ones, and earlier tokens
    before later ones or, with `batch_prioritized`, tokens with a larger p. What is
    dropped adds nothing to the sum: put the layer into a residual block,
    `x + moe(norm(x))`, and a dropped token passes through. Of a token that is padding
    (`mask`) nothing is computed: it takes no room, counts in no loss and no metric, and
    its answer is 0. (Own `experts` get whole samples with `route="input"`, and masks.)

    **Balance.** Left alone, routers send most tokens to a few experts. Losses added by
    `add_loss`, in training only, work against it; all are functions of probabilities,
    since the average load itself, a count of choices, has no gradient. `"kl"`: the
    divergence of the mean p from the uniform distribution, in nats, which is the
    default. `"importance"`: the squared coefficient of variation of the experts' sums
    of p. `"load"`: that of the expected number of tokens under new noise. `"switch"`:
    E sum_e f_e P_e, f the share of choices and P the mean p. They see p without noise
    (`"load"`: with it). Beside them `z_weight` weighs the mean of log(sum_e exp(l_e))^2
    of the logits l, which keeps these small. Under `tf.distribute` the means are those
    over all replicas; capacity is counted in each replica.

    **Logs.** `fit` and `evaluate` show `<name>_load_<e>`, the share of all choices that
    expert e computed; `<name>_max_load`, the largest over the mean one;
    `<name>_dropped`, the share dropped; `<name>_dead_experts`, how many have computed
    nothing in the epoch; and the means over tokens of the router's entropy (nats) and
    largest probability, `<name>_router_entropy` and `<name>_router_confidence`.

    **Roads.** `dispatch` says how the sum is computed. `"ragged"`: tokens are sorted by
    expert, and each expert works on its own. `"capacity"`: each expert works on an
    array of fixed size, which needs a `capacity_factor` or experts that choose (where
    no capacity is in force, at inference, this is the ragged road). `"dense"`: every
    expert computes every token, and what was not chosen is left out; the reference for
    the others. `"auto"`: ragged, or capacity under XLA and on a GPU where one is in
    force. XLA, which Keras turns on by itself on a GPU, can only go the dense road
    without a capacity; a warning says so. All give the same answers and gradients.

    With one expert, or with equal ones whose weights add up to 1, the layer computes
    what a dense network does.

    Args:
        num_experts: int >= 1, E; may be left out with `experts`.
        hidden_units: int >= 1, of each built-in expert; not with `experts`.
        top_k: int in [1, E], K, experts for each token. With
            `router="expert_choice"` a float, the average number. Defaults to 1.
        router: `"top_k"`; `"dense"`, all experts; `"expert_choice"`, each expert takes
            the tokens of a sample that it is most probable for (nothing for causal
            models, of which a warning says so); or a `kd.routers.Router`. The router
            made is the attribute `router`. Defaults to `"top_k"`.
        route: `"token"` or `"input"`. Defaults to `"token"`.
        noise_stddev: float >= 0, of eps, or `"auto"`: 1 / E for `"top_k"` and 0 for
            other routers. Defaults to `"auto"`.
        capacity_factor: float > 0, or `None` for no limit. Defaults to `None`. With
            `"expert_choice"` it multiplies `top_k`.
        balance_loss: a name, a list of names, or `None`. Defaults to `"kl"`.
        balance_weight: float >= 0, or a list with one for each. Defaults to 0.01.
        experts: list of Keras layers or models, kinds may differ, that give the same
            output shape: for rows (tokens, features), or with `route="input"` for
            samples. They run on what was sent to them only, except that on the capacity
            and dense roads they also see zeros, or all rows: keep batch statistics off
            these. Their losses count in training. Defaults to `None`, the built-in
            networks, which are then the attribute `experts`.
        devices: list of device names such as `["GPU:0", "GPU:1"]`. Expert e has its
            weights and its computation on `devices[e % len(devices)]`. Optimizers put
            their slots where they are built, on the default device. XLA cannot compile
            this: `compile` turns it off with a warning. Defaults to `None`.
        activation: of the built-in experts. Defaults to `"gelu"`.
        gated: bool, whether they are gated linear units, (act(x V) * (x W)) W2.
            Defaults to `False`.
        use_bias: bool. Defaults to `True`.
        renormalize: bool, whether the K weights are divided by their sum (a softmax of
            the K largest logits); needs K >= 2. Defaults to `False`.
        inference_capacity_factor: `capacity_factor` when not training. Defaults to
            `None`.
        batch_prioritized: bool, whether tokens with a larger p get room first.
            Defaults to `False`.
        z_weight: float >= 0, of the z-loss. Defaults to 0.
        dispatch: `"auto"`, `"ragged"`, `"capacity"` or `"dense"`. Defaults to `"auto"`.
        kernel_initializer, bias_initializer, kernel_regularizer: of the built-in
            experts, which start different.
        seed: int, of the noise. Defaults to `None`, a random one.

    Call arguments:
        inputs: (batch, features) or (batch, ..., features).
        mask: bool, the shape of the inputs without features; `False` is padding. By
            default the mask that the inputs carry.
        training: bool.

    Output shape:
        That of the inputs; with `experts`, what they give.

    Raises:
        ValueError: for an argument out of its range or that contradicts another one;
            when built, for inputs of rank below 2 or experts whose outputs differ in
            shape; when called, for a mask of another shape.
        TypeError: for what is no number or no layer.
        RuntimeError: under XLA with `devices`.

    Example:

    ```python
    inputs = keras.Input((10, 16))  # 10 tokens
    h = kd.SparseMoE(4, hidden_units=32, top_k=2, name="moe")(inputs)
    h = keras.layers.GlobalAveragePooling1D()(keras.layers.Add()([inputs, h]))
    model = keras.Model(inputs, keras.layers.Dense(1)(h))
    model.compile("adam", "mse")
    history = model.fit(np.ones((8, 10, 16)), np.ones((8, 1)), verbose=0).history
    print(history["moe_max_load"], history["moe_dead_experts"])
    ```

    Reference:
        Riquelme et al., "Scaling Vision with Sparse Mixture of Experts", NeurIPS 2021;
        Fedus, Zoph and Shazeer, "Switch Transformers: Scaling to Trillion Parameter
        Models with Simple and Efficient Sparsity", JMLR 23, 2022; Zhou et al.,
        "Mixture-of-Experts with Expert Choice Routing", NeurIPS 2022. The divergence
        from uniform is that of Scardapane's lecture on dynamic neural networks.
    """

    def __init__(
        self,
        num_experts=None,
        hidden_units=None,
        top_k=1,
        router="top_k",
        route="token",
        noise_stddev="auto",
        capacity_factor=None,
        balance_loss="kl",
        balance_weight=0.01,
        experts=None,
        devices=None,
        activation="gelu",
        gated=False,
        use_bias=True,
        renormalize=False,
        inference_capacity_factor=None,
        batch_prioritized=False,
        z_weight=0.0,
        dispatch="auto",
        kernel_initializer="glorot_uniform",
        bias_initializer="zeros",
        kernel_regularizer=None,
        seed=None,
        **kwargs,
    ):
        if kwargs.get("name") is None:
            kwargs["name"] = unique_name()
        super().__init__(**kwargs)
        experts, number = checked_experts(experts, num_experts)
        self.num_experts = positive_integer("num_experts", number)
        if experts is None:
            self.hidden_units = checked_hidden_units(hidden_units)
        else:
            self.hidden_units = None
            check_not_given(
                "experts",
                hidden_units=(hidden_units, None),
                activation=(activation, "gelu"),
                gated=(gated, False),
                use_bias=(use_bias, True),
                kernel_regularizer=(kernel_regularizer, None),
            )
        self.route = checked_name("route", route, _ROUTES)
        self.top_k, self.noise_stddev = top_k, noise_stddev
        self.renormalize = checked_bool("renormalize", renormalize)
        self.seed = seed
        self.capacity_factor = checked_factor("capacity_factor", capacity_factor)
        self.inference_capacity_factor = checked_factor(
            "inference_capacity_factor", inference_capacity_factor
        )
        self.batch_prioritized = checked_bool("batch_prioritized", batch_prioritized)
        self.router = router_for(self, router)
        self._made_router = None if self.router is router else router
        self.balance_loss, self.balance_weight = balance_loss, balance_weight
        self._balance = checked_losses(balance_loss, balance_weight, self.router)
        self.z_weight = nonnegative("z_weight", z_weight)
        self.device_of_experts = checked_devices(devices, self.num_experts)
        self.devices = None if devices is None else list(devices)
        self.activation = checked_activation(activation)
        self.gated = checked_bool("gated", gated)
        self.use_bias = checked_bool("use_bias", use_bias)
        self.dispatch = checked_name("dispatch", dispatch, ROADS)
        check_dispatch(self)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.experts = experts or feed_forwards(self)
        self.supports_masking = True
        self.supports_jit = devices is None
        self._routing = ObservedRouting(self.name, self.num_experts)

    def build(self, input_shape):
        check_input(self, input_shape)
        features = input_shape[-1]
        self.input_spec = keras.layers.InputSpec(min_ndim=2, axes={-1: features})
        if not self.router.built:  # loading builds a router of one's own
            self.router.build((input_shape[0], None, features))
        unit = self._shape_of_a_unit(input_shape)
        answer = build_experts(self.experts, unit, self.device_of_experts)
        if self.route == "token" and len(answer) != 2:
            raise ValueError(
                "`experts` must give a vector for each token, (tokens, units). "
                f"Received: an output of shape {answer}. With "
                "`route='input'` experts get whole inputs."
            )

    def call(self, inputs, mask=None, training=False):
        mask = get_mask(inputs) if mask is None else mask
        routing, counted = self._routed(inputs, mask, training)
        wanted = choices_of(routing, counted, routes_all(self.router))
        choices, room = with_capacity(
            wanted,
            self.capacity_factor if training else self.inference_capacity_factor,
            self.num_experts,
            counted,
            self.batch_prioritized,
        )
        decided = choices, wanted.experts, routing, counted
        if training:
            self._regularize(routing, counted)
            self._routing.observe(totals_of(*decided), training=True)
        else:
            report([record_of(self, tuple(inputs.shape[1:]), *decided)])
        return mixture_of(self, inputs, mask, choices, room, training)

    def compute_output_shape(self, input_shape):
        if self.hidden_units is not None:
            return tuple(input_shape)
        shape = output_shape(self.experts[0], self._shape_of_a_unit(input_shape))
        if self.route == "input":
            return (input_shape[0], *shape[1:])
        return (*input_shape[:-1], *shape[1:])

    def compute_output_spec(self, inputs, mask=None, training=False):
        if mask is not None:
            checked_mask(mask, inputs.shape)
        whole = self.route == "input" and len(inputs.shape) > 2
        if self.router.looks_ahead or whole:
            warn_of_causal_producers(self.name, inputs, whole)
        shape = self.compute_output_shape(inputs.shape)
        return keras.KerasTensor(shape, self.compute_dtype)

    def compute_mask(self, inputs, previous_mask):
        if previous_mask is None or self.route == "token":
            return previous_mask
        kept = self.compute_output_shape(inputs.shape)[:-1] == tuple(inputs.shape[:-1])
        return previous_mask if kept else None

    @property
    def record_size(self):
        """How many vectors its records have."""
        return self.num_experts + 5

    def routing(self, inputs, mask=None):
        """What the router decides when not training.

        Args:
            inputs, mask: as in a call.

        Returns:
            A `kd.routers.Routing`; of padding it says nobody. With `route="input"`
            there is one token a sample.
        """
        inputs = checked_tensor("inputs", inputs)
        check_input(self, tuple(inputs.shape))
        mask = get_mask(inputs) if mask is None else mask
        if not self.built:
            self.build(inputs.shape)
        routing, counted = self._routed(tf.cast(inputs, self.compute_dtype), mask)
        if counted is None or routing.experts is None:
            return routing
        counted = counted[..., None]
        return routing._replace(
            experts=tf.where(counted, routing.experts, -1),
            weights=tf.where(counted, routing.weights, 0.0),
        )

    def observe(self, record):
        """Notes in the logs' metrics what it did when not training."""
        self._routing.observe(record.totals())

    def get_config(self):
        serialize, experts = keras.saving.serialize_keras_object, None
        if self.hidden_units is None:
            experts = [serialize(expert) for expert in self.experts]
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in _PLAIN},
            "router": self._made_router or serialize(self.router),
            "experts": experts,
            "activation": keras.activations.serialize(self.activation),
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        if isinstance(config.get("router"), dict):
            config["router"] = keras.saving.deserialize_keras_object(config["router"])
        if config.get("experts") is not None:
            config["experts"] = [
                keras.saving.deserialize_keras_object(each)
                if isinstance(each, dict)
                else each
                for each in config["experts"]
            ]
        config["devices"] = known_devices(config.get("devices"))
        return cls(**config)

    def _routed(self, inputs, mask, training=False):
        """(`Routing`, (B, N) bool or None: the units that are no padding)."""
        if mask is not None:
            mask = tf.convert_to_tensor(mask)
            checked_mask(mask, inputs.shape)
        units, counted = units_of(inputs, mask, self.route == "input")
        routing = self.router(units, mask=counted, training=training)
        routing = checked_routing(routing, self.router, units.shape[:2])
        return routing, counted

    def _regularize(self, routing, counted):
        with keeping_losses():
            losses = routing_losses(routing, counted, self._balance, self.z_weight)
        for loss in losses:
            self.add_loss(loss)

    def _shape_of_a_unit(self, input_shape):
        """Shape of the rows that an expert gets."""
        if self.route == "token":
            return (None, input_shape[-1])
        return (None, *input_shape[1:])
