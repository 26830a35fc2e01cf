"""Selector: what `ExitSelector` and `LayerwiseSelector` have in common."""

import math
import numbers

import keras

from keras_dynamic._compat import keeping_losses
from keras_dynamic.layers._checks import checked_bool, nonnegative, numbers_in
from keras_dynamic.layers._choosing import ChoosingLayer
from keras_dynamic.ops.penalties import (
    divergence_from_prior,
    expected_cost,
    mean_entropy,
)

__all__ = ["Selector", "carrying_soft", "soft_weights"]


class Selector(ChoosingLayer):
    """Base of the selectors: three regularizers, and costs that a model may fill in.

    A subclass computes the exits' probabilities and hands them to `_regularize`.

    Args:
        num_exits: int, E + 1, or None where the input tells it.
        The others are described in `ExitSelector`.
    """

    def __init__(
        self,
        num_exits,
        estimator="soft",
        temperature=1.0,
        hidden_units=None,
        entropy_weight=0.0,
        prior=None,
        prior_weight=0.0,
        prior_per_sample=False,
        exit_costs=None,
        cost_weight=0.0,
        pooling="auto",
        seed=None,
        **kwargs,
    ):
        super().__init__(temperature, estimator, seed, **kwargs)
        self.num_exits = _checked_num_exits(num_exits)
        self.hidden_units = hidden_units
        self.pooling = pooling
        self.entropy_weight = nonnegative("entropy_weight", entropy_weight)
        self.prior_weight = nonnegative("prior_weight", prior_weight)
        self.cost_weight = nonnegative("cost_weight", cost_weight)
        self.prior_per_sample = checked_bool("prior_per_sample", prior_per_sample)
        self.prior = _checked_prior(prior)
        self.exit_costs = _checked_costs(exit_costs)
        if self.cost_weight and exit_costs is None:
            raise ValueError(
                "`cost_weight` needs `exit_costs`: a list, or 'auto' for a model that "
                f"fills them in. Received: cost_weight={cost_weight}, exit_costs=None."
            )
        self._costs_known = isinstance(self.exit_costs, list)
        if self.num_exits is not None:
            self._make_costs(self.num_exits)

    def bind_costs(self, costs):
        """Fills in the costs of a selector with `exit_costs="auto"`.

        Args:
            costs: E + 1 numbers, shares of the last exit's cost.
        """
        if self.exit_costs == "auto":
            self.current_exit_costs.assign(costs)
            self._costs_known = True

    def get_config(self):
        pooling = self.pooling
        if not isinstance(pooling, str):
            pooling = keras.saving.serialize_keras_object(pooling)
        return {
            **super().get_config(),
            "num_exits": self.num_exits,
            "hidden_units": self.hidden_units,
            "pooling": pooling,
            "entropy_weight": self.entropy_weight,
            "prior": self.prior,
            "prior_weight": self.prior_weight,
            "prior_per_sample": self.prior_per_sample,
            "exit_costs": self.exit_costs,
            "cost_weight": self.cost_weight,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        if isinstance(config.get("pooling"), dict):
            config["pooling"] = keras.saving.deserialize_keras_object(config["pooling"])
        return super().from_config(config)

    def compute_mask(self, inputs, previous_mask):
        return None  # one choice a sample

    def _make_costs(self, num_exits):
        """The weight with the exits' costs; checks what was given for `num_exits`."""
        for name, values in (("prior", self.prior), ("exit_costs", self.exit_costs)):
            if isinstance(values, list) and len(values) != num_exits:
                raise ValueError(
                    f"`{name}` must have {num_exits} entries, one for each exit. "
                    f"Received: {name}={values} with {len(values)} entries."
                )
        values = self.exit_costs
        if not isinstance(values, list):
            values = [0.0] * num_exits
        self.current_exit_costs = self.add_weight(
            name="exit_costs",
            shape=(num_exits,),
            initializer=keras.initializers.Constant(values),
            trainable=False,
            dtype="float32",
            autocast=False,
        )

    def _regularize(self, probabilities):
        """Adds the regularizers of (batch, exits) probabilities, in training."""
        if self.entropy_weight:
            self.add_loss(self.entropy_weight * mean_entropy(probabilities))
        if self.prior_weight:
            num_exits = probabilities.shape[-1]
            prior = self.prior
            if not isinstance(prior, list):
                prior = [1.0 / num_exits] * num_exits
            with keeping_losses():
                divergence = divergence_from_prior(
                    probabilities, prior, self.prior_per_sample
                )
            self.add_loss(self.prior_weight * divergence)
        if self.cost_weight:
            if not self._costs_known:
                raise RuntimeError(
                    f"Selector '{self.name}' has `exit_costs='auto'`, which a "
                    "`DynamicModel(..., selector=...)` of known input sizes fills in. "
                    "Nobody did: give the costs as a list."
                )
            costs = keras.ops.convert_to_tensor(self.current_exit_costs)
            self.add_loss(self.cost_weight * expected_cost(probabilities, costs))


def carrying_soft(weights, soft):
    """Hard weights that carry the soft ones, as a tensor of Keras carries its mask.

    At inference a selector answers with a one-hot choice. A model scores its mixture
    with the weights before they were hardened, so that the mismatch can be seen.
    """
    weights._keras_dynamic_soft = soft
    return weights


def soft_weights(weights):
    """The soft weights that `weights` carry, or `weights`."""
    return getattr(weights, "_keras_dynamic_soft", weights)


def _checked_num_exits(value):
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(
            f"`num_exits` must be an integer. Received: num_exits={value!r} of type "
            f"{type(value)}."
        )
    if value < 2:
        raise ValueError(
            "`num_exits` counts the early exits and the final one, at least 2. "
            f"Received: num_exits={value}."
        )
    return int(value)


def _checked_prior(prior):
    if prior is None or isinstance(prior, str):
        if prior not in (None, "uniform"):
            raise ValueError(
                "`prior` must be a list of numbers, 'uniform' or None. Received: "
                f"prior={prior!r}."
            )
        return prior
    values = numbers_in("prior", prior)
    if not all(0 < value < math.inf for value in values):
        raise ValueError(
            "`prior` must hold positive probabilities (a zero would forbid an exit "
            f"with an infinite divergence). Received: prior={prior}."
        )
    if abs(sum(values) - 1) > 1e-6:
        raise ValueError(
            f"`prior` must sum to 1. Received: prior={prior}, which sums to "
            f"{sum(values):.6g}."
        )
    return values


def _checked_costs(costs):
    if costs is None or isinstance(costs, str):
        if costs not in (None, "auto"):
            raise ValueError(
                "`exit_costs` must be a list of numbers, 'auto' or None. Received: "
                f"exit_costs={costs!r}."
            )
        return costs
    values = numbers_in("exit_costs", costs)
    if not all(0 <= value < math.inf for value in values):
        raise ValueError(
            f"`exit_costs` must be finite and >= 0. Received: exit_costs={costs}."
        )
    return values
