"""upcycle: dense feed-forward pairs of a trained model become mixtures of experts."""

import keras
import numpy as np

from keras_dynamic.layers._checks import positive_integer
from keras_dynamic.layers.routers import ExpertChoiceRouter, Router, TopKRouter
from keras_dynamic.layers.sparse_moe import SparseMoE
from keras_dynamic.models.pairs import find_pairs
from keras_dynamic.models.rebuilding import Rebuilder, check_functional

__all__ = ["upcycle"]

# What the dense layers say, or what the same output asks for.
_FIXED = (
    "experts",
    "hidden_units",
    "activation",
    "gated",
    "use_bias",
    "kernel_initializer",
    "bias_initializer",
    "kernel_regularizer",
    "renormalize",
    "name",
    "dtype",
    "trainable",
)


def upcycle(model, layers, num_experts, top_k=2, router="top_k", **arguments):
    """A model in which dense feed-forward pairs are mixtures of experts.

    A pair, Dense(hidden, activation) -> Dense(features), becomes a `SparseMoE` whose
    experts are all copies of it, with a router that starts at random. The K experts of
    a token have weights that sum to 1, so at the start the new model gives the same
    output as the old one (when not training, where the layer drops nothing unless it
    is asked to); training then makes the experts different. The model given is left as
    it is, and the new one shares no weights with it. It is not compiled.

    Between the two layers there may be nothing but `Activation` (or `ReLU`,
    `LeakyReLU`, `ELU`) and `Dropout` layers. Where all of it is a network of the form
    that `SparseMoE` has built in, act(x W1 + b1) W2 + b2, its own experts are used.
    Everything else, such as a dropout in between (it stays), an activation of the
    second layer, a bias of one layer only, or another number of outputs than of inputs,
    becomes `experts=[...]`, a list of small `Sequential` models that hold copies of
    these layers. Regularizers count for each expert.

    The new layer stands where the first one stood, and is called `<first>_moe`. A pair
    that is called several times becomes one layer called as often. Pairs are found in
    nested models too, and in models within `SkipGate`, `LayerChoice` and
    `TimeDistributed`. A `DynamicModel` stays one, with its rule and temperatures. Of
    tokens that the inputs' mask leaves out the mixture computes nothing: its answer is
    0 there, where the pair gave some number.

    A token then costs K times the FLOPs of the pair, plus those of the router (2 E for
    each feature) and of the sum of K answers. A mixture has E times the weights.

    Args:
        model: trained functional or built `Sequential` `keras.Model`, or a
            `DynamicModel`.
        layers: list with an entry for each pair: the first layer's name, or a tuple
            of both layers' names (which may also stand in the list one after the
            other); layers in place of names where these are not unique.
        num_experts: int >= 2, E.
        top_k: int in [2, E], K, of `router="top_k"`. One expert alone would be weighed
            with its p < 1, and the output would not be the same. Defaults to 2.
        router: `"top_k"`; `"dense"`, all experts; or a `kd.routers.Router` whose
            weights sum to 1 for each token (this is not checked), of which each new
            layer gets its own copy. Defaults to `"top_k"`.
        **arguments: of `SparseMoE`: `route`, `noise_stddev`, `capacity_factor`,
            `inference_capacity_factor`, `batch_prioritized`, `balance_loss`,
            `balance_weight`, `z_weight`, `devices`, `dispatch`, and `seed`, to which
            the i-th pair adds i. The others follow from the pair.

    Returns:
        A model of the same kind.

    Raises:
        ValueError: for a `model` that is not functional, layers that it does not have
            or that make no such pair, an argument out of its range, or a router whose
            weights do not sum to 1.
        TypeError: for `layers` that is no list of names or layers.

    Example:

    ```python
    inputs = keras.Input((10, 16))
    h = keras.layers.Dense(32, "gelu", name="first")(keras.layers.Dense(16)(inputs))
    outputs = keras.layers.Add()([inputs, keras.layers.Dense(16)(h)])
    model = keras.Model(inputs, outputs)
    sparse = kd.upcycle(model, ["first"], num_experts=4)
    x = np.random.default_rng(0).normal(size=(3, 10, 16))
    print(sparse.get_layer("first_moe").num_experts)  # 4
    print(np.abs(sparse(x) - model(x)).max() < 1e-5)  # True
    ```

    Reference:
        Komatsuzaki et al., "Sparse Upcycling: Training Mixture-of-Experts from Dense
        Checkpoints", ICLR 2023. There experts choose tokens in encoders, after which
        the output is not the same; here tokens choose. The optimizer's state, which
        they keep for vision models, is not taken over.
    """
    check_functional(model)
    number = positive_integer("num_experts", num_experts)
    if number < 2:
        raise ValueError(
            "`num_experts` must be at least 2: one expert is the pair itself. "
            f"Received: num_experts={num_experts}."
        )
    _check_arguments(arguments)
    routing = _routing_arguments(router, top_k)
    pairs, passed_over = find_pairs(model, layers)
    builder = _Builder(pairs, passed_over, number, {**routing, **arguments})
    new = builder.rebuild(model)
    for pair in pairs:
        if not builder.was_met(pair.first):
            raise ValueError(
                "`layers` must stand in nested models, gates, choices or "
                "`TimeDistributed`; what other layers hold is copied as a whole. "
                f"Received: '{pair.first.name}', which is in none of these."
            )
    builder.copy_weights()
    return new


def _check_arguments(arguments):
    for name in _FIXED:
        if name in arguments:
            raise ValueError(
                f"`{name}` follows from the dense layers, or from that the output is "
                f"to be the same. Received: {name}={arguments[name]!r}."
            )


def _routing_arguments(router, top_k):
    """Arguments of `SparseMoE` whose weights sum to 1."""
    if isinstance(router, str) and router == "top_k":
        if positive_integer("top_k", top_k) == 1:
            raise ValueError(
                "`top_k` must be at least 2: a single expert is weighed with its "
                "probability, which is below 1, and the output would not be that of "
                f"`model`. Received: top_k={top_k}."
            )
        return {"router": router, "top_k": top_k, "renormalize": True}
    if top_k != 2:
        raise ValueError(
            "`top_k` is for `router='top_k'`. Received: "
            f"top_k={top_k!r} with router={router!r}."
        )
    partial = (
        isinstance(router, TopKRouter)
        and not router.renormalize
        and router.top_k < router.num_experts
    )
    known = isinstance(router, Router) or router == "dense"
    if not known or isinstance(router, ExpertChoiceRouter) or partial:
        received = f"{router!r}"
        if isinstance(router, Router):
            received = f"a {type(router).__name__}"
            received += " with renormalize=False" if partial else ""
        raise ValueError(
            "`router` must give each token weights that sum to 1, or the output would "
            "not be that of `model`: 'top_k', 'dense', or a `kd.routers.Router` that "
            f"does so. Received: router={received}."
        )
    return {"router": router}


class _Builder(Rebuilder):
    """Puts mixtures in the place of pairs.

    Args:
        pairs: list of `Pair`.
        passed_over: see `Rebuilder`.
        num_experts: int.
        arguments: dict, of each `SparseMoE`.
    """

    def __init__(self, pairs, passed_over, num_experts, arguments):
        super().__init__(passed_over)
        self._pairs_of = {id(pair.first): pair for pair in pairs}
        self._num_experts, self._arguments = num_experts, arguments
        self._frozen = []

    def new_for(self, layer):
        pair = self._pairs_of.get(id(layer))
        if pair is None:
            return super().new_for(layer)
        new = self._mixture_for(pair)
        if not (pair.first.trainable or pair.second.trainable):
            self._frozen.append(new)
        return new

    def copy_weights(self):
        super().copy_weights()
        for mixture in self._frozen:
            mixture.trainable = False  # and what it made when it was built

    def _mixture_for(self, pair):
        layer = pair.first
        arguments = {
            **self._arguments,
            "name": f"{layer.name}_moe",
            "dtype": layer.dtype_policy,
        }
        router, seed = arguments["router"], arguments.get("seed")
        if isinstance(router, Router):
            arguments["router"] = type(router).from_config(router.get_config())
        if isinstance(seed, int):  # layers of one seed would draw the same noise
            arguments["seed"] = seed + list(self._pairs_of).index(id(layer))
        if pair.is_network:
            new = SparseMoE(
                self._num_experts,
                layer.units,
                activation=pair.activation,
                use_bias=layer.use_bias,
                kernel_regularizer=layer.kernel_regularizer,
                **arguments,
            )
            self.pairs.append((_Network(pair), _Networks(new)))
            return new
        experts = [self._expert(pair, expert) for expert in range(self._num_experts)]
        return SparseMoE(experts=experts, **arguments)

    def _expert(self, pair, expert):
        copies = []
        for layer in pair.layers:
            config = layer.get_config()
            if isinstance(config.get("seed"), int):  # of a dropout
                config["seed"] += expert
            copies.append(self.copy_of(layer, config))
        return keras.Sequential(copies, name=f"expert_{expert}")


class _Network:
    """The weights of a pair."""

    def __init__(self, pair):
        self._pair = pair

    def get_weights(self):
        first, second = self._pair.first, self._pair.second
        weights = {"first_kernel": first.kernel, "second_kernel": second.kernel}
        if first.use_bias:
            weights |= {"first_bias": first.bias, "second_bias": second.bias}
        return {name: np.asarray(weight) for name, weight in weights.items()}


class _Networks:
    """The weights of the built-in experts of a mixture, which get the same."""

    def __init__(self, mixture):
        self._mixture = mixture

    def set_weights(self, weights):
        for expert in self._mixture.experts:
            for name, values in weights.items():
                getattr(expert, name).assign(values)
