"""Hyperparameters of dynamic networks, named after the layer that they belong to.

Each function registers one hyperparameter in the `hp` of a `build(hp)` and returns its
value. Weights and temperatures are searched on a logarithmic scale. In a conditional
scope that is not active keras-tuner gives `None`, with which no layer can be made;
these functions then give the default, which nothing depends on.
"""

import math
import numbers
import weakref

from keras_tuner.errors import FatalValueError

from keras_dynamic._compat import scoped_name

__all__ = [
    "KINDS",
    "balance_weight",
    "cost_weight",
    "entropy_weight",
    "loss_weight",
    "prior_weight",
    "rate_weight",
    "register",
    "split_name",
    "target_rate",
    "temperature",
    "z_weight",
]

# What is searched, and where a trial with the default begins.
_DEFAULTS = {
    "balance_weight": 0.01,
    "cost_weight": 0.03,
    "entropy_weight": 0.01,
    "loss_weight": 1.0,
    "prior_weight": 1.0,
    "rate_weight": 1.0,
    "target_rate": 0.5,
    "temperature": 1.0,
    "z_weight": 0.001,
}
KINDS = tuple(_DEFAULTS)

# The ranges that each `hp` was asked for, by name. keras-tuner keeps one value a name,
# and follows the first range only.
_asked = weakref.WeakKeyDictionary()


def loss_weight(hp, exit, min_value=0.03, max_value=3.0, default=None):
    """lambda of an exit, for `EarlyExit(loss_weight=)`; named `<exit>_loss_weight`.

    Args:
        hp: `keras_tuner.HyperParameters`.
        exit: string, the exit's name.
        min_value, max_value: floats > 0, the range. Defaults to 0.03 and 3.
        default: float in the range. Defaults to `None`, 1.0 or what comes nearest.

    Returns:
        A float.

    Raises:
        ValueError: for a range that is none, a default outside of it, or a name that
            the same `build` has with another range.
        TypeError: for a name that is no string, or numbers that are none.

    Example:

    ```python
    hp = keras_tuner.HyperParameters()
    print(kd.tuning.loss_weight(hp, "exit_1"), hp.values)  # 1.0
    ```
    """
    return _on_log_scale(hp, exit, "loss_weight", min_value, max_value, default)


def temperature(hp, layer=None, min_value=0.1, max_value=5.0, default=None):
    """tau, for any layer that chooses; named `temperature` or `<layer>_temperature`.

    Args:
        hp: `keras_tuner.HyperParameters`.
        layer: string, the layer's name, or `None` for one temperature of several
            layers. Defaults to `None`.
        min_value, max_value: floats > 0; at least 1 for `estimator="reinmax"`. Defaults
            to 0.1 and 5.
        default: float in the range. Defaults to `None`, 1.0 or what comes nearest.

    Returns:
        A float.

    Raises:
        ValueError: for a range that is none, a default outside of it, or a name that
            the same `build` has with another range.
        TypeError: for a name that is neither a string nor `None`.

    Example:

    ```python
    hp = keras_tuner.HyperParameters()
    layer = kd.GumbelSoftmax(temperature=kd.tuning.temperature(hp))
    ```
    """
    return _on_log_scale(hp, layer, "temperature", min_value, max_value, default)


def cost_weight(hp, layer, min_value=0.001, max_value=1.0, default=None):
    """The weight of the cost, for the `cost_weight` of a selector or `SkipGate`.

    Args:
        hp, layer: as in `loss_weight`.
        min_value, max_value: floats > 0. Defaults to 0.001 and 1.
        default: float in the range. Defaults to `None`, 0.03 or what comes nearest.

    Returns:
        A float.

    Raises:
        ValueError, TypeError: as in `loss_weight`.

    Example:

    ```python
    hp = keras_tuner.HyperParameters()
    weight = kd.tuning.cost_weight(hp, "selector")
    selector = kd.ExitSelector(3, exit_costs="auto", cost_weight=weight)
    ```
    """
    return _on_log_scale(hp, layer, "cost_weight", min_value, max_value, default)


def entropy_weight(hp, layer, min_value=0.001, max_value=1.0, default=None):
    """The weight of the entropy, for a selector, `LayerChoice` or blend.

    Args:
        hp, layer: as in `loss_weight`.
        min_value, max_value: floats > 0. Defaults to 0.001 and 1.
        default: float in the range. Defaults to `None`, 0.01 or what comes nearest.

    Returns:
        A float.

    Raises:
        ValueError, TypeError: as in `loss_weight`.

    Example:

    ```python
    hp = keras_tuner.HyperParameters()
    weight = kd.tuning.entropy_weight(hp, "selector")
    selector = kd.ExitSelector(3, entropy_weight=weight)
    ```
    """
    return _on_log_scale(hp, layer, "entropy_weight", min_value, max_value, default)


def prior_weight(hp, layer, min_value=0.01, max_value=10.0, default=None):
    """The weight of the divergence from a selector's prior.

    Args:
        hp, layer: as in `loss_weight`.
        min_value, max_value: floats > 0. Defaults to 0.01 and 10.
        default: float in the range. Defaults to `None`, 1.0 or what comes nearest.

    Returns:
        A float.

    Raises:
        ValueError, TypeError: as in `loss_weight`.

    Example:

    ```python
    hp = keras_tuner.HyperParameters()
    weight = kd.tuning.prior_weight(hp, "selector")
    selector = kd.ExitSelector(2, prior=[0.7, 0.3], prior_weight=weight)
    ```
    """
    return _on_log_scale(hp, layer, "prior_weight", min_value, max_value, default)


def target_rate(hp, layer, min_value=0.1, max_value=0.9, default=None):
    """The open rate that a `SkipGate` is trained for, on a linear scale.

    Args:
        hp, layer: as in `loss_weight`.
        min_value, max_value: floats in (0, 1]. Defaults to 0.1 and 0.9.
        default: float in the range. Defaults to `None`, 0.5 or what comes nearest.

    Returns:
        A float.

    Raises:
        ValueError, TypeError: as in `loss_weight`.

    Example:

    ```python
    hp = keras_tuner.HyperParameters()
    rate = kd.tuning.target_rate(hp, "gate_1")
    weight = kd.tuning.rate_weight(hp, "gate_1")
    gate = kd.SkipGate(keras.layers.Dense(4), target_rate=rate, rate_weight=weight)
    ```
    """
    name = _named(layer, "target_rate")
    _check_numbers(name, min_value=min_value, max_value=max_value)
    if max_value > 1:
        raise FatalValueError(
            f"`max_value` of a rate is at most 1. Received: max_value={max_value}."
        )
    return register(hp, name, min_value, max_value, default, "linear")


def rate_weight(hp, layer, min_value=0.1, max_value=10.0, default=None):
    """The weight of a `SkipGate`'s distance from its target rate.

    Args:
        hp, layer: as in `loss_weight`.
        min_value, max_value: floats > 0. Defaults to 0.1 and 10.
        default: float in the range. Defaults to `None`, 1.0 or what comes nearest.

    Returns:
        A float.

    Raises:
        ValueError, TypeError: as in `loss_weight`.

    Example:

    ```python
    hp = keras_tuner.HyperParameters()
    weight = kd.tuning.rate_weight(hp, "gate_1")
    gate = kd.SkipGate(keras.layers.Dense(4), target_rate=0.5, rate_weight=weight)
    ```
    """
    return _on_log_scale(hp, layer, "rate_weight", min_value, max_value, default)


def balance_weight(hp, layer, min_value=0.001, max_value=1.0, default=None):
    """The weight of a `SparseMoE`'s balance loss.

    Args:
        hp, layer: as in `loss_weight`.
        min_value, max_value: floats > 0. Defaults to 0.001 and 1.
        default: float in the range. Defaults to `None`, 0.01 or what comes nearest.

    Returns:
        A float.

    Raises:
        ValueError, TypeError: as in `loss_weight`.

    Example:

    ```python
    hp = keras_tuner.HyperParameters()
    weight = kd.tuning.balance_weight(hp, "moe")
    layer = kd.SparseMoE(4, 8, balance_weight=weight, name="moe")
    ```
    """
    return _on_log_scale(hp, layer, "balance_weight", min_value, max_value, default)


def z_weight(hp, layer, min_value=1e-5, max_value=0.1, default=None):
    """The weight of a `SparseMoE`'s z-loss.

    Args:
        hp, layer: as in `loss_weight`.
        min_value, max_value: floats > 0. Defaults to 0.00001 and 0.1.
        default: float in the range. Defaults to `None`, 0.001 or what comes nearest.

    Returns:
        A float.

    Raises:
        ValueError, TypeError: as in `loss_weight`.

    Example:

    ```python
    hp = keras_tuner.HyperParameters()
    layer = kd.SparseMoE(4, 8, z_weight=kd.tuning.z_weight(hp, "moe"), name="moe")
    ```
    """
    return _on_log_scale(hp, layer, "z_weight", min_value, max_value, default)


def split_name(name):
    """(layer, kind) of a hyperparameter that these functions made, else ("", name)."""
    for kind in KINDS:
        if name.endswith(kind):
            return name.removesuffix(kind).rstrip("_"), kind
    return "", name


def register(hp, name, min_value, max_value, default=None, sampling="log"):
    """The value of a float hyperparameter, the default where it is inactive."""
    _check_numbers(name, min_value=min_value, max_value=max_value)
    if not 0 < min_value < max_value < math.inf:
        raise FatalValueError(
            "`min_value` and `max_value` must be a range of positive numbers. "
            f"Received: min_value={min_value}, max_value={max_value}, for '{name}'."
        )
    if default is None:
        usual = _DEFAULTS[split_name(name)[1]]
        default = min(max(usual, min_value), max_value)
    _check_numbers(name, default=default)
    if not min_value <= default <= max_value:
        raise FatalValueError(
            f"`default` must lie in [{min_value}, {max_value}]. Received: "
            f"default={default}, for '{name}'."
        )
    low, high, default = float(min_value), float(max_value), float(default)
    _check_range(hp, scoped_name(hp, name), (low, high))
    value = hp.Float(name, low, high, sampling=sampling, default=default)
    return default if value is None else float(value)


def _on_log_scale(hp, owner, kind, min_value, max_value, default):
    optional = kind == "temperature"
    name = kind if optional and owner is None else _named(owner, kind)
    return register(hp, name, min_value, max_value, default)


def _named(owner, kind):
    if not isinstance(owner, str):
        argument = "exit" if kind == "loss_weight" else "layer"
        raise TypeError(
            f"`{argument}` must be the name of a layer, a string. Received: {owner!r} "
            f"of type {type(owner)}."
        )
    return f"{owner}_{kind}"


def _check_numbers(name, **arguments):
    for argument, value in arguments.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError(
                f"`{argument}` must be a number. Received: {argument}={value!r} of "
                f"type {type(value)}, for '{name}'."
            )


def _check_range(hp, name, wanted):
    """Raises a ValueError if a name was asked for with another range before."""
    earlier = _asked.setdefault(hp, {}).setdefault(name, wanted)
    if earlier != wanted:
        raise FatalValueError(
            f"The hyperparameter '{name}' is asked for with two ranges: {earlier[0]} "
            f"to {earlier[1]} and {wanted[0]} to {wanted[1]}. Give one of them another "
            "name, for keras-tuner keeps one value for each name."
        )
