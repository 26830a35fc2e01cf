"""What `SparseMoE` has to compute, token by token and expert by expert, in NumPy.

Axes: B samples, N tokens, E experts.
"""

import dataclasses
import math

import keras
import numpy as np
from scipy import special

ACTIVATIONS = {
    "linear": lambda z: z,
    "relu": lambda z: np.maximum(z, 0),
    "gelu": lambda z: z * 0.5 * (1 + special.erf(z / np.sqrt(2))),
    "tanh": np.tanh,
    "silu": lambda z: z * special.expit(z),
}


@dataclasses.dataclass
class Mixture:
    """The answer of the reference.

    Attributes:
        output: (B, N, units).
        logits: (B, N, E).
        wanted: list of (sample, token, expert, weight), first choices first.
        computed: those of them that found room.
        mask: (B, N) bool.
    """

    output: np.ndarray
    logits: np.ndarray
    wanted: list
    computed: list
    mask: np.ndarray

    def losses(self):
        """The balancing losses and the z-loss of this batch, not weighted."""
        z = self.logits[self.mask]
        p = special.softmax(z, axis=-1)
        number = p.shape[1]
        shares = np.zeros(number)
        for _, _, expert, _ in self.wanted:
            shares[expert] += 1 / len(self.wanted)
        mean, sums = p.mean(axis=0), p.sum(axis=0)
        return {
            "kl": math.log(number) - special.entr(mean).sum(),
            "importance": (sums.std() / sums.mean()) ** 2,
            "switch": number * sum(shares[e] * mean[e] for e in range(number)),
            "z": (special.logsumexp(z, axis=-1) ** 2).mean(),
        }


def metrics_of(mixtures, name):
    """What the logs have to show of the batches of an epoch."""
    number = mixtures[0].logits.shape[-1]
    computed = [entry for each in mixtures for entry in each.computed]
    wanted = [entry for each in mixtures for entry in each.wanted]
    loads = [sum(entry[2] == expert for entry in computed) for expert in range(number)]
    p = np.concatenate([special.softmax(m.logits[m.mask], axis=-1) for m in mixtures])
    found = {f"load_{e}": loads[e] / len(wanted) for e in range(number)}
    found["max_load"] = max(loads) / (sum(loads) / number)
    found["dropped"] = 1 - len(computed) / len(wanted)
    found["dead_experts"] = loads.count(0)
    found["router_entropy"] = special.entr(p).sum(axis=-1).mean()
    found["router_confidence"] = p.max(axis=-1).mean()
    return {f"{name}_{key}": value for key, value in found.items()}


def mixture(
    x,
    kernel,
    experts,
    router="top_k",
    top_k=1,
    renormalize=False,
    capacity_factor=None,
    batch_prioritized=False,
    mask=None,
    by_input=False,
    noise=0.0,
):
    """Answers with a `Mixture`.

    Args:
        x: (B, N, features).
        kernel: (features, E), of the router.
        experts: list of functions from the last axis of an array to another one.
        router: "top_k", "dense", "expert_choice"; or a function from the probabilities
            of a token to its list of (expert, weight).
        top_k, renormalize, capacity_factor, batch_prioritized: as in the layer.
        mask: (B, N) bool, or None.
        by_input: whether one choice is made for a whole sample.
        noise: (B, N, E), added to the logits for the choice.
    """
    x, kernel = np.asarray(x, "float64"), np.asarray(kernel, "float64")
    inner = np.ones(x.shape[:2], bool) if mask is None else np.asarray(mask)
    units, present = x, inner
    if by_input:
        present = inner.any(axis=1, keepdims=True)
        units = np.zeros((len(x), 1, x.shape[2]))
        for sample in np.flatnonzero(present):
            units[sample, 0] = x[sample][inner[sample]].mean(axis=0)
    logits = units @ kernel
    probabilities = special.softmax(logits + noise, axis=-1)
    places = list(zip(*np.nonzero(present), strict=True))
    if router == "expert_choice":
        factor = top_k * (capacity_factor or 1)
        wanted = _experts_choose(probabilities, present, factor)
        computed = wanted
    else:
        chosen = {
            place: _chosen(probabilities[place], router, top_k, renormalize)
            for place in places
        }
        each = max(map(len, chosen.values()), default=0)
        wanted = [
            (*place, *chosen[place][choice])
            for choice in range(each)
            for place in places
            if choice < len(chosen[place])
        ]
        computed = wanted
        if capacity_factor is not None:
            room = capacity(len(places), each, logits.shape[-1], capacity_factor)
            order = places
            if batch_prioritized:
                largest = {p: max(w for _, w in chosen[p]) for p in places}
                order = sorted(places, key=lambda place: -largest[place])
            computed = _with_room(wanted, order, each, room)

    answers = [expert(x) for expert in experts]
    output = np.zeros(answers[0].shape)
    for sample, token, expert, weight in computed:
        place = sample if by_input else (sample, token)
        output[place] += weight * answers[expert][place]
    return Mixture(output, logits, wanted, computed, present)


def capacity(rows, each, number, factor):
    """The rows that an expert takes."""
    return max(1, min(rows, math.ceil(factor * each * rows / number - 1e-9)))


def _chosen(p, router, top_k, renormalize):
    """The (expert, weight) of one token, the best one first."""
    if callable(router):
        return router(p)
    if router == "dense":
        return list(enumerate(p))
    best = sorted(range(len(p)), key=lambda expert: -p[expert])[:top_k]
    total = sum(p[expert] for expert in best) if renormalize else 1
    return [(expert, p[expert] / total) for expert in best]


def _experts_choose(probabilities, present, factor):
    samples, _, number = probabilities.shape
    wanted = []
    for sample in range(samples):
        tokens = np.flatnonzero(present[sample])
        if not len(tokens):
            continue
        room = capacity(len(tokens), 1, number, factor)
        for expert in range(number):
            p = probabilities[sample, :, expert]
            best = sorted(tokens, key=lambda token, p=p: -p[token])[:room]
            wanted += [(sample, token, expert, p[token]) for token in best]
    return wanted


def _with_room(wanted, order, each, room):
    """Fills experts choice by choice, and in each by the order of the tokens."""
    turn = {place: index for index, place in enumerate(order)}
    count, taken, kept = {}, {}, []
    numbered = []
    for entry in wanted:
        choice = count[entry[:2]] = count.get(entry[:2], -1) + 1
        numbered.append((choice, turn[entry[:2]], entry))
    for _, _, entry in sorted(numbered, key=lambda item: item[:2]):
        if taken.get(entry[2], 0) < room:
            taken[entry[2]] = taken.get(entry[2], 0) + 1
            kept.append(entry)
    return kept


def networks(layer):
    """The built-in experts of a layer as functions."""
    activate = ACTIVATIONS[layer.get_config()["activation"]]
    return [_network(expert, activate, layer.gated) for expert in layer.experts]


def _network(expert, activate, gated):
    first, first_bias, second, second_bias = (
        0 if weight is None else np.asarray(weight, "float64")
        for weight in (
            expert.first_kernel,
            expert.first_bias,
            expert.second_kernel,
            expert.second_bias,
        )
    )

    def run(x):
        inner = x @ first + first_bias
        if gated:
            gate, value = np.split(inner, 2, axis=-1)
            return (activate(gate) * value) @ second + second_bias
        return activate(inner) @ second + second_bias

    return run


def router_kernel(layer):
    """The router's weight (features, E) in a built layer."""
    return layer.router.kernel


def scattered(layer, input_shape):
    """The layer, built, with random weights that are not small."""
    layer.build(input_shape)
    for seed, weight in enumerate(layer.trainable_weights):
        weight.assign(np.random.default_rng(seed).normal(size=weight.shape))
    return layer


def mixture_of(layer, x, mask=None, training=False, **others):
    """The `Mixture` of a `SparseMoE` without noise.

    Args:
        layer: built.
        x: (B, ..., features).
        mask: (B, ...) bool, or None.
        training: bool.
        others: arguments of `mixture` that the layer does not tell.
    """
    factor = layer.inference_capacity_factor
    if training or layer.get_config()["router"] == "expert_choice":
        factor = layer.capacity_factor
    arguments = {
        "router": layer.get_config()["router"],
        "top_k": layer.top_k,
        "renormalize": layer.renormalize,
        "capacity_factor": factor,
        "batch_prioritized": layer.batch_prioritized,
        "by_input": layer.route == "input",
        **others,
    }
    experts = arguments.pop("experts", None) or networks(layer)
    return mixture(
        x.reshape(len(x), -1, x.shape[-1]),
        router_kernel(layer),
        experts,
        mask=None if mask is None else mask.reshape(len(x), -1),
        **arguments,
    )


def some_mask(shape, seed=0):
    """Of about a third of the tokens nothing counts."""
    return np.random.default_rng(seed).uniform(size=shape) > 1 / 3


def close(actual, expected, rtol=1e-4, atol=1e-5):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


def in_model(layer, x, masked=False, optimizer=None, **arguments):
    """A model of a layer that has random weights; the mask is a second input.

    The product with 1 takes the mask off the output: Keras' loss would take a mean of
    what counts in each replica.
    """
    inputs = [keras.Input(x.shape[1:])]
    given = {}
    if masked:
        inputs.append(keras.Input(x.shape[1:-1], dtype="int32"))
        given["mask"] = keras.ops.cast(inputs[1], "bool")
    model = keras.Model(inputs, 1.0 * layer(inputs[0], **given))
    scattered(layer, x.shape)
    model.compile(optimizer or keras.optimizers.SGD(0.0), "mse", **arguments)
    return model
