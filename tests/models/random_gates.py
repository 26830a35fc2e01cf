"""Random nests of gates, and what they answer and cost, sample by sample."""

import keras
import numpy as np
from keras import layers

from keras_dynamic.layers.skip_gate import SkipGate

CHANNELS, HIDDEN = 4, 16
SHAPES = {
    "vectors": (CHANNELS,),
    "sequences": (5, CHANNELS),
    "images": (4, 3, CHANNELS),
}


def grow(generator, shape, depth, shared):
    """A `Sequential` of layers that keep `shape`, gates among them.

    Args:
        generator: NumPy's.
        shape: of a sample.
        depth: how deep gates may stand in each other.
        shared: a layer that the whole nest shares.
    """
    stack = [keras.Input(shape)]
    for _ in range(generator.integers(1, 4)):
        kind = generator.choice(["gate", "gate", "project", "plain", "shared"])
        if kind == "shared":
            stack.append(shared)
        elif kind == "plain" or depth == 0:
            stack.append(plain(generator, shape, CHANNELS))
        else:
            inner = grow(generator, shape, depth - 1, shared)
            arguments = {"additive": bool(generator.integers(2))}
            if kind == "project":  # to other channels, and back
                strides = generator.integers(1, 3) if len(shape) == 2 else 1
                inner.add(plain(generator, shape, 3, int(strides)))
            gate = SkipGate(inner, **arguments)
            stack.append(gate)
            if kind == "project":
                changed = gate.compute_output_shape((None, *shape))[1:]
                stack.append(back(changed, shape))
    return keras.Sequential(stack)


def plain(generator, shape, units, strides=1):
    if len(shape) == 1 or generator.integers(2) and strides == 1:
        return layers.Dense(units, "tanh")
    kind = layers.Conv1D if len(shape) == 2 else layers.Conv2D
    return kind(units, 3, strides=strides, padding="same", activation="relu")


def back(given, shape):
    if tuple(given[:-1]) == tuple(shape[:-1]):
        return layers.Dense(shape[-1])
    size = shape[0] - given[0] + 1
    return layers.Conv1DTranspose(shape[-1], size)


def build(kind, seed, rows=7):
    """(model, x) of a nest whose gates are open for about half of the rows."""
    keras.utils.set_random_seed(seed)
    generator = np.random.default_rng(seed)
    shape, shared = SHAPES[kind], layers.BatchNormalization()
    nest = grow(generator, shape, 1 + seed % 3, shared)
    if shared.built:
        shared.moving_mean.assign(generator.normal(size=CHANNELS))
        shared.moving_variance.assign(generator.uniform(0.5, 2, CHANNELS))
    x = generator.normal(size=(rows, *shape)).astype("float32")
    open_halfway(nest, x, generator)
    return nest, x


def open_halfway(nest, x, generator):
    """Sets the gates' weights so that the median of the logits lies at 0."""

    def prepare(gate, inputs):
        last = gate.decider.classifier
        last.kernel.assign(generator.normal(size=(HIDDEN, 1)))
        logits = gate.decider(inputs).numpy()
        middle = np.mean(np.sort(logits, axis=0)[len(x) // 2 - 1 : len(x) // 2 + 1])
        last.bias.assign_sub([middle])

    Reference(prepare).run(nest, x)


class Reference:
    """Everything computed for all, then selected; and what each sample pays.

    Attributes:
        close: whether a logit lies so near to 0 that roads may differ.
        gates: how many gates were passed.
    """

    def __init__(self, prepare=None):
        self.prepare, self.close, self.gates = prepare, False, 0

    def run(self, layer, x):
        """(output, costs): for all rows, and (rows,) FLOPs of each."""
        if isinstance(layer, keras.Sequential):
            costs = np.zeros(len(x))
            for each in layer.layers:
                x, more = self.run(each, x)
                costs = costs + more
            return x, costs
        if isinstance(layer, SkipGate):
            return self._gate(layer, x)
        output = layer(x).numpy()
        return output, np.full(len(x), _flops(layer, x, output))

    def _gate(self, gate, x):
        if self.prepare:
            self.prepare(gate, x)
        self.gates += 1
        logits = gate.decider(x).numpy()[:, 0]
        self.close |= bool((np.abs(logits) < 1e-6).any())
        opened = logits > 0
        run, run_cost = self.run(gate.layer, x)
        other, other_cost = x, 0.0
        if gate.bypass is not None:
            other, other_cost = self.run(gate.bypass, x)
        # The mean over the positions, a hidden layer with ReLU, and the logit.
        pooling = np.prod(x.shape[1:]) if x.ndim > 2 else 0
        cost = pooling + (2 * CHANNELS + 2) * HIDDEN + 2 * HIDDEN + 1
        if gate.additive:
            # A sum for each element.
            run, run_cost = run + other, run_cost + np.prod(run.shape[1:]) + other_cost
        choice = opened.reshape(-1, *[1] * (run.ndim - 1))
        return np.where(choice, run, other), cost + np.where(
            opened, run_cost, other_cost
        )


def _flops(layer, x, output):
    """Of one sample, for the kinds of layers that a nest has."""
    size, channels = np.prod(output.shape[1:]), x.shape[-1]
    if isinstance(layer, layers.BatchNormalization):
        return 2 * size
    if isinstance(layer, layers.Conv1DTranspose):
        return 2 * np.prod(x.shape[1:]) * np.prod(layer.kernel_size) * 4 + size
    window = 1 if isinstance(layer, layers.Dense) else np.prod(layer.kernel_size)
    named = layer.activation.__name__
    more = bool(layer.use_bias) + {"linear": 0, "softmax": 5}.get(named, 1)
    return (2 * window * channels + more) * size
