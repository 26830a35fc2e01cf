"""Routers: which experts a token goes to, and with which weights.

`kd.SparseMoE(router="top_k")` makes one of these by itself; a router of one's own is a
subclass of `Router`.
"""

import math
from typing import NamedTuple

import keras
import tensorflow as tf
from keras import ops

from keras_dynamic.layers._checks import (
    checked_bool,
    nonnegative,
    positive_integer,
)
from keras_dynamic.ops.activation_flops import activation_flops
from keras_dynamic.ops.dispatch import capacity_for
from keras_dynamic.ops.seeds import replica_seed

__all__ = ["DenseRouter", "ExpertChoiceRouter", "Router", "Routing", "TopKRouter"]

# FLOPs of an element of a softmax.
_SOFTMAX = activation_flops(keras.activations.softmax)


class Routing(NamedTuple):
    """What a router decided, which is what `Router.call` returns.

    B samples, N tokens, E experts.

    Attributes:
        weights: the weights p with which experts' answers are added up, float32, of
            the shape of `experts` or of `tokens`.
        logits: (B, N, E) float32, without noise; their softmax is what balancing
            losses and the logs' entropy see.
        experts: (B, N, K) int32, the experts that each token goes to, all different;
            -1 for none. `None` where experts choose.
        tokens: (B, E, C) int32, the tokens of its sample that each expert takes, -1
            for none. `None` where tokens choose.
        win_probabilities: (B, N, E) float32, the probability that an expert would be
            among the chosen ones with new noise, for the balancing loss `"load"`;
            `None` if the router knows none.

    Example:

    ```python
    logits = np.array([[[0.0, 1.0], [2.0, 0.0]]])  # a sample, two tokens, two experts
    routing = kd.routers.Routing(
        weights=np.ones((1, 2, 1)), logits=logits, experts=np.array([[[1], [0]]])
    )
    ```
    """

    weights: tf.Tensor
    logits: tf.Tensor
    experts: tf.Tensor | None = None
    tokens: tf.Tensor | None = None
    win_probabilities: tf.Tensor | None = None


class Router(keras.layers.Layer):
    """Base class of routers: a linear map from tokens to one logit for each expert.

    A subclass writes `call(inputs, mask=None, training=False)`, takes its logits from
    `self.logits(inputs)` (or `self.noisy`, with noise in training), and returns a
    `Routing`. Routers compute in float32, whatever the dtype policy. With
    `route="input"` they see one token a sample, the mean of its tokens.

    A router that samples has to draw nothing at inference, where an answer may not
    depend on chance or on other samples.

    Args:
        num_experts: int >= 1, E.
        noise_stddev: float >= 0, the standard deviation of the Gaussian noise that
            `noisy` adds to logits in training, or `"auto"` for 1 / E. Defaults to 0.
        kernel_initializer: of the weights (features, E). Defaults to
            `"glorot_uniform"`.
        seed: int, of the noise. Defaults to `None`, a random one.

    Call arguments:
        inputs: (batch, tokens, features).
        mask: (batch, tokens) bool, `False` for padding, or `None`.
        training: bool.

    Returns:
        A `Routing`.

    Example:

    ```python
    class Hashed(kd.routers.Router):  # token i goes to expert i % E
        def call(self, inputs, mask=None, training=False):
            logits = self.logits(inputs)
            places = keras.ops.cumsum(keras.ops.ones_like(logits[..., :1], "int32"), 1)
            experts = places % self.num_experts
            return kd.routers.Routing(
                keras.ops.ones_like(logits[..., :1]), logits, experts
            )


    moe = kd.SparseMoE(4, hidden_units=8, router=Hashed(4), balance_loss=None)
    print(moe(np.ones((2, 5, 3))).shape)  # (2, 5, 3)
    ```
    """

    # Whether every token goes to an expert: no -1 among `Routing.experts`.
    routes_all = False
    # Whether a token's experts depend on the tokens after it.
    looks_ahead = False

    def __init__(
        self,
        num_experts,
        noise_stddev=0.0,
        kernel_initializer="glorot_uniform",
        seed=None,
        **kwargs,
    ):
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        self.num_experts = positive_integer("num_experts", num_experts)
        automatic = isinstance(noise_stddev, str) and noise_stddev == "auto"
        self.noise_stddev = (
            noise_stddev if automatic else nonnegative("noise_stddev", noise_stddev)
        )
        self.sigma = 1 / num_experts if automatic else self.noise_stddev
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.supports_masking = True

    def compute_mask(self, inputs, previous_mask):
        return None  # what was decided is no sequence

    def build(self, input_shape):
        self.kernel = self.add_weight(
            name="kernel",
            shape=(input_shape[-1], self.num_experts),
            initializer=self.kernel_initializer,
        )

    def logits(self, inputs):
        """(batch, tokens, E) float32: W x, without noise."""
        return ops.cast(ops.matmul(inputs, self.kernel), "float32")

    def noisy(self, logits, training):
        """Logits with Gaussian noise in training, and as they are otherwise."""
        if not training or not self.sigma:
            return logits
        seed = replica_seed(self.seed_generator.next())
        return logits + tf.random.stateless_normal(
            tf.shape(logits), seed, stddev=self.sigma
        )

    def call(self, inputs, mask=None, training=False):
        raise NotImplementedError(
            f"{type(self).__name__} must implement `call(inputs, mask, training)` and "
            "return a `Routing`."
        )

    def compute_output_spec(self, inputs, mask=None, training=False):
        # What is decided has no symbol: a router is called by a layer.
        raise NotImplementedError(
            f"{type(self).__name__} is no layer of a functional model by itself: give "
            "it to `SparseMoE(router=...)`."
        )

    @property
    def experts_per_token(self):
        """How many experts a token goes to, for the count of FLOPs."""
        return 1

    def compute_flops(self, input_shape):
        """FLOPs of the decision for (1, tokens, features): products and softmax."""
        _, tokens, features = input_shape
        return tokens * self.num_experts * (2 * features + _SOFTMAX)

    def get_config(self):
        return {
            **super().get_config(),
            "num_experts": self.num_experts,
            "noise_stddev": self.noise_stddev,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "seed": self.seed,
        }


@keras.saving.register_keras_serializable(package="keras_dynamic")
class DenseRouter(Router):
    """All experts for every token: p = softmax(W x + eps).

    Args:
        num_experts, noise_stddev, kernel_initializer, seed: as in `Router`.

    Example:

    ```python
    router = kd.routers.DenseRouter(3)
    print(router(np.ones((2, 5, 4))).weights.shape)  # (2, 5, 3)
    ```

    Reference:
        Jacobs, Jordan, Nowlan and Hinton, "Adaptive Mixtures of Local Experts", Neural
        Computation 3, 1991.
    """

    routes_all = True

    def call(self, inputs, mask=None, training=False):
        logits = self.logits(inputs)
        weights = tf.nn.softmax(self.noisy(logits, training))
        everyone = tf.range(self.num_experts)
        experts = tf.broadcast_to(everyone, tf.shape(logits))
        return Routing(weights, logits, experts)

    @property
    def experts_per_token(self):
        return self.num_experts


@keras.saving.register_keras_serializable(package="keras_dynamic")
class TopKRouter(Router):
    """The K most probable experts for every token: p = TopK(softmax(W x + eps)).

    Of equal experts the first is taken. With `renormalize` the K weights are divided by
    their sum, which is the same as a softmax of the K largest logits.

    Args:
        num_experts, kernel_initializer, seed: as in `Router`.
        top_k: int in [1, E]. Defaults to 1.
        noise_stddev: as in `Router`. Defaults to `"auto"`, 1 / E.
        renormalize: bool; needs `top_k` of at least 2, since a single weight would
            always be 1, and the router would have no gradient. Defaults to `False`.

    Raises:
        ValueError: for an argument out of its range.

    Example:

    ```python
    router = kd.routers.TopKRouter(8, top_k=2, renormalize=True)
    routing = router(np.random.default_rng(0).normal(size=(2, 5, 4)))
    print(routing.experts.shape, np.sum(routing.weights, -1))  # (2, 5, 2), ones
    ```

    Reference:
        Riquelme et al., "Scaling Vision with Sparse Mixture of Experts", NeurIPS 2021
        (this order and this noise). Shazeer et al., "Outrageously Large Neural
        Networks: The Sparsely-Gated Mixture-of-Experts Layer", ICLR 2017 (softmax of
        the K largest; there the noise has learned deviations).
    """

    routes_all = True

    def __init__(
        self, num_experts, top_k=1, noise_stddev="auto", renormalize=False, **kwargs
    ):
        super().__init__(num_experts, noise_stddev, **kwargs)
        self.top_k = positive_integer("top_k", top_k)
        if self.top_k > self.num_experts:
            raise ValueError(
                "`top_k` must be at most the number of experts. Received: "
                f"top_k={top_k}, num_experts={num_experts}."
            )
        self.renormalize = checked_bool("renormalize", renormalize)
        if self.renormalize and self.top_k == 1:
            raise ValueError(
                "`renormalize` with one expert a token makes every weight 1, and the "
                "router would get no gradient: leave it out, or choose more experts. "
                f"Received: renormalize=True, top_k={top_k}."
            )

    def call(self, inputs, mask=None, training=False):
        logits = self.logits(inputs)
        noisy = self.noisy(logits, training)
        if self.renormalize:
            largest, experts = tf.math.top_k(noisy, self.top_k)
            weights = tf.nn.softmax(largest)
        else:
            weights, experts = tf.math.top_k(tf.nn.softmax(noisy), self.top_k)
        return Routing(
            weights,
            logits,
            experts,
            win_probabilities=self._win_probabilities(logits, noisy, training),
        )

    @property
    def experts_per_token(self):
        return self.top_k

    def _win_probabilities(self, logits, noisy, training):
        if not training or not self.sigma:
            return None
        weakest = tf.math.top_k(noisy, self.top_k).values[..., -1:]
        deviations = (logits - weakest) / self.sigma
        # The normal distribution's function, by one that has a gradient.
        return 0.5 * tf.math.erfc(-deviations / math.sqrt(2.0))

    def get_config(self):
        return {
            **super().get_config(),
            "top_k": self.top_k,
            "renormalize": self.renormalize,
        }


@keras.saving.register_keras_serializable(package="keras_dynamic")
class ExpertChoiceRouter(Router):
    """Every expert takes the tokens of a sample that it is most probable for.

    p = softmax(W x + eps) over the experts, as elsewhere. Of the N tokens of a sample
    that are no padding, each expert takes the `top_k` * N / E (rounded up) with the
    largest p. So all experts are equally busy, and a token may get several of them, or
    none. Samples do not compete with one another; tokens of one do, also with later
    ones, so this is nothing for causal models.

    Args:
        num_experts, noise_stddev, kernel_initializer, seed: as in `Router`.
        top_k: float > 0, at most E: how many experts a token gets on average. Defaults
            to 1.

    Example:

    ```python
    router = kd.routers.ExpertChoiceRouter(4, top_k=2)
    routing = router(np.random.default_rng(0).normal(size=(2, 6, 4)))
    print(routing.tokens.shape)  # (2, 4, 3): three of six tokens for each expert
    ```

    Reference:
        Zhou et al., "Mixture-of-Experts with Expert Choice Routing", NeurIPS 2022.
    """

    looks_ahead = True

    def __init__(self, num_experts, top_k=1.0, **kwargs):
        super().__init__(num_experts, **kwargs)
        self.top_k = nonnegative("top_k", top_k)
        if not 0 < top_k <= self.num_experts:
            raise ValueError(
                "`top_k`, the average number of experts of a token, must lie in (0, "
                f"num_experts]. Received: top_k={top_k}, num_experts={num_experts}."
            )

    def call(self, inputs, mask=None, training=False):
        logits = self.logits(inputs)
        probabilities = tf.nn.softmax(self.noisy(logits, training))
        scores = tf.linalg.matrix_transpose(probabilities)
        number = tf.shape(inputs)[1]
        capacity = tf.minimum(self._capacity(number), number)
        if mask is None:
            weights, tokens = tf.math.top_k(scores, capacity)
            return Routing(weights, logits, tokens=tokens)
        scores = tf.where(mask[:, None], scores, -1.0)
        weights, tokens = tf.math.top_k(scores, capacity)
        present = tf.reduce_sum(tf.cast(mask, tf.int32), axis=1)
        within = tf.range(capacity) < self._capacity(present)[:, None]
        taken = tf.logical_and(within[:, None], weights >= 0)
        return Routing(
            tf.where(taken, weights, 0.0), logits, tokens=tf.where(taken, tokens, -1)
        )

    def tokens_for_each(self, tokens):
        """How many tokens each expert takes of a sample's `tokens`, an int."""
        wanted = math.ceil(self.top_k * tokens / self.num_experts - 1e-6)
        return max(min(wanted, tokens), 1)

    def _capacity(self, tokens):
        return capacity_for(tokens, 1, self.num_experts, self.top_k)

    def get_config(self):
        return {**super().get_config(), "top_k": self.top_k}
