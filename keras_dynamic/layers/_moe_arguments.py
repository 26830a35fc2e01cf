"""Checks of the arguments of `SparseMoE`."""

import inspect
import math
import numbers
import re
import warnings

import keras
import numpy as np
import tensorflow as tf

from keras_dynamic._compat import calls_before
from keras_dynamic.layers._checks import (
    check_one_tensor,
    nonnegative,
    positive_integer,
)
from keras_dynamic.layers.routers import (
    DenseRouter,
    ExpertChoiceRouter,
    Router,
    TopKRouter,
)

__all__ = [
    "check_dispatch",
    "check_input",
    "check_not_given",
    "checked_activation",
    "checked_devices",
    "checked_experts",
    "checked_factor",
    "checked_hidden_units",
    "checked_losses",
    "checked_mask",
    "checked_name",
    "known_devices",
    "router_for",
    "warn_of_causal_producers",
]

_LOSSES = ("kl", "importance", "load", "switch")
# "GPU:0", "GPU", "/device:GPU:0", and what TensorFlow makes of it on one machine.
_DEVICE = re.compile(
    r"(/job:localhost)?(/replica:0)?(/task:0)?/?(device:)?(?P<kind>\w+?)(:(?P<index>\d+))?"
)
_ROUTERS = ("top_k", "dense", "expert_choice")


def checked_experts(experts, num_experts):
    """(list of layers or None, their number)."""
    if experts is None:
        if num_experts is None:
            raise ValueError(
                "`num_experts` is needed, or `experts`. Received: neither."
            )
        return None, num_experts
    if not isinstance(experts, (list, tuple)):
        raise TypeError(
            "`experts` must be a list of Keras layers or models. Received: "
            f"experts={experts!r} of type {type(experts)}."
        )
    for index, expert in enumerate(experts):
        if not isinstance(expert, keras.Layer):
            raise TypeError(
                "`experts` must hold Keras layers or models. Received: "
                f"experts[{index}]={expert!r} of type {type(expert)}."
            )
    if not experts:
        raise ValueError("`experts` must hold at least one layer. Received: [].")
    if len({id(expert) for expert in experts}) < len(experts):
        raise ValueError(
            "`experts` must hold each layer once: two places for one layer would be "
            f"one expert. Received: {[expert.name for expert in experts]}."
        )
    if num_experts not in (None, len(experts)):
        raise ValueError(
            "`num_experts` must be the number of `experts`, or left out. Received: "
            f"num_experts={num_experts} with {len(experts)} experts."
        )
    return list(experts), len(experts)


def checked_hidden_units(value):
    """The int of an integer >= 1."""
    if value is None:
        raise ValueError("`hidden_units` is needed, or `experts`. Received: neither.")
    return positive_integer("hidden_units", value)


def checked_activation(activation):
    """A function from a name or function."""
    if isinstance(activation, keras.Layer):
        raise TypeError(
            "`activation` must be a name or a function: experts would share a layer's "
            "weights. Give layers of your own as `experts`. Received: "
            f"activation={activation!r}."
        )
    return keras.activations.get(activation)


def checked_factor(name, value):
    """The float of a capacity factor > 0, or None."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(
            f"`{name}` must be a number or None. Received: {name}={value!r} of type "
            f"{type(value)}."
        )
    if not 0 < value < math.inf:
        raise ValueError(
            f"`{name}` must be finite and > 0 (1 is room for an even load). Received: "
            f"{name}={value}."
        )
    return float(value)


def checked_losses(losses, weights, router):
    """Dict from the names of balancing losses to their weights.

    Args:
        losses: a name, a list of names, or None.
        weights: a number for all of them, or a list.
        router: a `Router`, which must have what they need.
    """
    names = [] if losses is None else losses
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, (list, tuple)):
        raise TypeError(
            "`balance_loss` must be a name, a list of names, or None. Received: "
            f"balance_loss={losses!r}."
        )
    possible = _possible_losses(router)
    for name in names:
        checked_name("balance_loss", name, _LOSSES)
        if name not in possible:
            raise ValueError(
                f"`balance_loss` of this router can be {list(possible)}: 'load' needs "
                "the noise of a router 'top_k', 'switch' tokens that choose among "
                f"experts. Received: balance_loss={losses!r}."
            )
    if len(set(names)) < len(names):
        raise ValueError(
            f"`balance_loss` must name each loss once. Received: {losses!r}."
        )
    if isinstance(weights, np.ndarray):
        weights = weights.tolist()
    if not isinstance(weights, (list, tuple)):
        nonnegative("balance_weight", weights)  # also where there is no loss
        weights = [weights] * len(names)
    if len(weights) != len(names):
        raise ValueError(
            "`balance_weight` must be one number, or one for each of `balance_loss`. "
            f"Received: balance_weight={weights} for balance_loss={losses!r}."
        )
    return {
        name: nonnegative("balance_weight", weight)
        for name, weight in zip(names, weights, strict=True)
    }


def _possible_losses(router):
    if isinstance(router, (DenseRouter, ExpertChoiceRouter)):
        return ("kl", "importance")
    if isinstance(router, TopKRouter) and not router.sigma:
        return ("kl", "importance", "switch")
    return _LOSSES


def router_for(layer, router):
    """The `Router` of a `SparseMoE`: its user's, or one by name."""
    given = isinstance(router, Router)
    if given:
        check_not_given(
            "router",
            top_k=(layer.top_k, 1),
            noise_stddev=(layer.noise_stddev, "auto"),
            renormalize=(layer.renormalize, False),
            seed=(layer.seed, None),
        )
        if router.num_experts != layer.num_experts:
            raise ValueError(
                "`router` must be one for as many experts as there are. Received: "
                f"a router with num_experts={router.num_experts} for "
                f"{layer.num_experts} experts."
            )
    else:
        router = _router_by_name(layer, checked_name("router", router, _ROUTERS))
    if isinstance(router, ExpertChoiceRouter):
        for name in ("inference_capacity_factor", "batch_prioritized"):
            if getattr(layer, name):
                raise ValueError(
                    f"`{name}` is nothing for a router in which experts choose: they "
                    "take as many tokens as they have room for. Received: "
                    f"{name}={getattr(layer, name)}."
                )
        if layer.capacity_factor is not None and given:
            raise ValueError(
                "`capacity_factor` is set by the `top_k` of an `ExpertChoiceRouter`. "
                f"Received: capacity_factor={layer.capacity_factor}."
            )
    factors = layer.capacity_factor, layer.inference_capacity_factor
    if layer.batch_prioritized and factors == (None, None):
        raise ValueError(
            "`batch_prioritized` says who gets room first, which needs a "
            "`capacity_factor`. Received: batch_prioritized=True without one."
        )
    return router


def _router_by_name(layer, name):
    arguments = {"seed": layer.seed, "name": "router"}
    noise = layer.noise_stddev
    if name == "top_k":
        return TopKRouter(
            layer.num_experts, layer.top_k, noise, layer.renormalize, **arguments
        )
    if layer.renormalize:
        raise ValueError(
            "`renormalize` is for `router='top_k'`. Received: renormalize=True with "
            f"router={name!r}."
        )
    if isinstance(noise, str) and noise == "auto":
        noise = 0.0
    arguments["noise_stddev"] = noise
    if name == "expert_choice":
        average = nonnegative("top_k", layer.top_k) * (layer.capacity_factor or 1.0)
        if not 0 < average <= layer.num_experts:
            raise ValueError(
                "`top_k` times `capacity_factor`, the average number of experts of a "
                "token, must lie in (0, num_experts]. Received: "
                f"top_k={layer.top_k}, capacity_factor={layer.capacity_factor}, "
                f"num_experts={layer.num_experts}."
            )
        return ExpertChoiceRouter(layer.num_experts, average, **arguments)
    if positive_integer("top_k", layer.top_k) != 1:
        raise ValueError(
            "`top_k` is for the routers 'top_k' and 'expert_choice'; 'dense' takes all "
            f"experts. Received: top_k={layer.top_k}."
        )
    return DenseRouter(layer.num_experts, **arguments)


def check_not_given(instead, **arguments):
    """Raises for arguments that another one makes meaningless.

    Args:
        instead: name of the other one.
        arguments: name of each to (its value, its default).
    """
    for name, (value, default) in arguments.items():
        if type(value) is not type(default) or value != default:
            raise ValueError(
                f"`{name}` says nothing where `{instead}` is given as objects, which "
                f"have their own. Received: {name}={value!r} beside `{instead}`."
            )


def checked_name(argument, value, known):
    """Returns a string that is one of the known ones."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(
            f"`{argument}` must be one of {list(known)}. Received: "
            f"{argument}={value!r}."
        )
    return value


def check_dispatch(layer):
    """Raises where the road that a `SparseMoE` is told to take cannot be taken."""
    experts_choose = isinstance(layer.router, ExpertChoiceRouter)
    limited = experts_choose or layer.capacity_factor is not None
    if layer.dispatch == "capacity" and not limited:
        raise ValueError(
            "`dispatch='capacity'` needs a `capacity_factor`. Received: "
            "capacity_factor=None."
        )
    if layer.devices is not None and layer.dispatch not in ("auto", "ragged"):
        raise ValueError(
            "`devices` needs `dispatch='ragged'`, or 'auto'. Received: "
            f"dispatch={layer.dispatch!r}, devices={layer.devices}."
        )


def checked_devices(devices, num_experts):
    """A device name for each expert, in turn; None for None."""
    if devices is None:
        return None
    if not isinstance(devices, (list, tuple)) or not devices:
        raise TypeError(
            "`devices` must be a list of device names such as ['GPU:0', 'GPU:1']. "
            f"Received: devices={devices!r}."
        )
    found = [_matching(device) for device in devices]
    for device, match in zip(devices, found, strict=True):
        if match is None:
            raise ValueError(
                f"`devices` must name devices that TensorFlow has: {_all_devices()}. "
                f"Received: {device!r} in devices={devices!r}."
            )
    return [found[expert % len(found)] for expert in range(num_experts)]


def known_devices(devices):
    """The devices of a saved layer, or None, with a warning, where one is missing."""
    if devices is None or None not in map(_matching, devices):
        return devices
    warnings.warn(
        f"The experts were saved on devices={devices}, and TensorFlow has "
        f"{_all_devices()} here: they are placed on the default device.",
        stacklevel=2,
    )
    return None


def _all_devices():
    devices = tf.config.list_logical_devices()
    return [device.name.removeprefix("/device:") for device in devices]


def _matching(device):
    """The full name of a device that TensorFlow has, or None."""
    match = _DEVICE.fullmatch(device) if isinstance(device, str) else None
    if match is None:
        return None
    name = f"/device:{match['kind'].upper()}:{match['index'] or 0}"
    known = [each.name for each in tf.config.list_logical_devices()]
    return name if name in known else None


def check_input(layer, input_shape):
    """Raises where a `SparseMoE` cannot be built for inputs of that shape."""
    check_one_tensor(input_shape)
    if len(input_shape) < 2 or input_shape[-1] is None:
        raise ValueError(
            "`inputs` must be (batch, features) or (batch, ..., features), the "
            f"number of features known. Received: inputs of shape {input_shape}."
        )
    if isinstance(layer.router, ExpertChoiceRouter) and (
        len(input_shape) == 2 or layer.route == "input"
    ):
        raise ValueError(
            "`router='expert_choice'` lets experts choose among the tokens of a "
            "sample, of which there is one here. Received: inputs of shape "
            f"{tuple(input_shape)}, route={layer.route!r}."
        )
    if layer.devices is not None and tf.distribute.has_strategy():
        raise ValueError(
            "`devices` places experts by itself, which does not go together with a "
            "`tf.distribute` strategy, for which the layer is data parallel. "
            f"Received: devices={layer.devices} in the scope of a strategy."
        )


def checked_mask(mask, input_shape):
    """Raises for a mask that is no bool for each token."""
    dtype = keras.backend.standardize_dtype(mask.dtype)
    if dtype != "bool":
        raise TypeError(f"`mask` must be bool. Received: a mask of dtype {dtype}.")
    wanted, received = tuple(input_shape[:-1]), tuple(mask.shape)
    fits = len(wanted) == len(received) and all(
        None in (a, b) or a == b for a, b in zip(wanted, received, strict=True)
    )
    if not fits:
        raise ValueError(
            f"`mask` must have one entry a token, shape {wanted}. Received: a mask of "
            f"shape {received} for inputs of shape {tuple(input_shape)}."
        )


def warn_of_causal_producers(name, inputs, whole):
    """Warns if symbolic inputs come out of something that is causal by intention.

    Args:
        whole: whether one choice is made for a whole input; else experts choose.
    """
    how, remedy = "lets experts choose among all", "`router='top_k'`"
    if whole:
        how, remedy = "makes one choice from the mean of all", "`route='token'`"
    for operation, kwargs in calls_before([inputs]):
        if _is_causal(operation, kwargs):
            warnings.warn(
                f"Layer '{name}' {how} tokens of a sample, also later ones, so that an "
                "answer depends on tokens to come. Its input comes from "
                f"'{operation.name}' ({type(operation).__name__}), which is causal: at "
                f"generation the answers would be others. Use {remedy} there.",
                stacklevel=2,
            )
            return


def _is_causal(operation, kwargs):
    if getattr(operation, "padding", None) == "causal":
        return True
    signature = inspect.signature(getattr(operation, "call", operation))
    known = signature.parameters.get("use_causal_mask")
    return known is not None and kwargs.get("use_causal_mask", known.default) is True
