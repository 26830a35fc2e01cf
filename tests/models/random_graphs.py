"""Random functional graphs with exits, and the dense road to compare with."""

import keras
import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

import keras_dynamic as kd
from keras_dynamic.models.engine import score_exit, who_leaves
from keras_dynamic.models.rows import rows_with_nan

WIDTH, CLASSES, TOKENS, VOCABULARY = 6, 4, 5, 7


class RowCounter(keras.layers.Layer):
    """Hands its input on and counts the rows that it was called with."""

    def build(self, input_shape):
        self.seen = self.add_weight(
            shape=(), dtype="int32", initializer="zeros", trainable=False
        )
        self.supports_masking = True

    def call(self, inputs):
        self.seen.assign_add(tf.shape(inputs)[0])
        return inputs

    def compute_output_shape(self, input_shape):
        return input_shape


class Table(keras.layers.Layer):
    """A table of weights: what it returns has no batch axis."""

    def build(self, input_shape):
        shape = tuple(input_shape[1:])
        self.table = self.add_weight(shape=shape, initializer="normal")

    def call(self, inputs):
        return self.table.value

    def compute_output_shape(self, input_shape):
        return tuple(input_shape[1:])


class Halves(keras.layers.Layer):
    """A layer with two outputs."""

    def call(self, inputs):
        return 0.5 * inputs, tf.tanh(inputs)

    def compute_output_shape(self, input_shape):
        return input_shape, input_shape


def nested(rank, shape):
    """A nested functional model of two inputs with a residual inside."""
    first, second = keras.Input(shape), keras.Input(shape)
    hidden = keras.layers.Dense(WIDTH, "relu")(first)
    merged = keras.layers.add([hidden, second])
    if rank == 3:
        merged = keras.layers.LayerNormalization()(merged)
    return keras.Model([first, second], keras.layers.add([merged, first]))


def grow(moves, rank, shape, start):
    """Applies `moves` to a list of tensors of one shape; returns the list.

    A move is (kind, i, j): what to do, and with which of the tensors so far.
    """
    layers, ops = keras.layers, keras.ops
    shared = layers.Dense(WIDTH, "tanh")
    inner = nested(rank, shape)
    stack = keras.Sequential([keras.Input(shape), layers.Dense(WIDTH, "elu")])
    tensors = list(start)
    for kind, i, j in moves:
        a, b = tensors[-1 - i % len(tensors)], tensors[-1 - j % len(tensors)]
        if kind == "dense":
            new = layers.Dense(WIDTH, "relu")(a)
        elif kind == "shared":
            new = shared(a)
        elif kind == "residual":
            new = layers.add([layers.Dense(WIDTH, "tanh")(a), b])
        elif kind == "nested":
            new = inner([a, b])
        elif kind == "sequential":
            new = stack(a)
        elif kind == "ops":
            new = ops.tanh(a) * 0.5 + ops.minimum(a, b)
        elif kind == "concatenate":
            new = layers.Dense(WIDTH)(ops.concatenate([a, b[..., :2]], axis=-1))
        elif kind == "normalize":
            new = layers.BatchNormalization()(layers.add([a, b]))
        elif kind == "table":
            new = layers.Dropout(0.5)(a) + Table()(b)
        elif kind == "halves":
            left, right = Halves()(a)
            tensors.append(left)
            new = right
        elif kind == "attend":
            if rank == 3:
                new = layers.MultiHeadAttention(2, 3)(a, b)
            else:
                new = ops.einsum("bi,bi,bj->bj", a, b, b)
        elif kind == "recur":
            if rank == 3:
                new = layers.GRU(WIDTH, return_sequences=True)(a)
            else:
                new = ops.softmax(a, axis=-1)
        else:
            raise ValueError(kind)
        tensors.append(new)
    return tensors


MOVES = (
    "dense shared residual nested sequential ops concatenate normalize table halves"
    " attend recur"
).split()
move = st.tuples(st.sampled_from(MOVES), st.integers(0, 5), st.integers(0, 5))
chunk = st.lists(move, min_size=0, max_size=4)


plans = st.fixed_dictionaries(
    {
        "chunks": st.lists(chunk, min_size=2, max_size=4),
        "logits": st.booleans(),
        "seed": st.integers(0, 2**16),
        "rows": st.sampled_from([1, 2, 7, 16]),
    }
)


def build(rank, chunks, logits, seed, rows):
    """A `DynamicModel` with 1 to 3 early exits, its data and its row counters."""
    inputs, outputs, parts = _grown(rank, chunks, logits, seed, rows)
    return _with_statistics(kd.DynamicModel(inputs, outputs), seed), *parts[:2]


def build_selected(rank, chunks, logits, seed, rows, layerwise, deep):
    """The same with a selector, and a row counter in every head.

    Args:
        layerwise: whether the selector decides at every exit, on its features.
        deep: whether it reads features of the first chunk, else those that come
            before it; of no meaning if `layerwise`.

    Returns:
        (model, x, counters, head_counters, features), the last what the selector
        reads.
    """
    inputs, outputs, parts = _grown(rank, chunks, logits, seed, rows, heads=True)
    x, counters, head_counters, start, features = parts
    if layerwise:
        layer, read = kd.LayerwiseSelector(), features[:-1]
        weights = layer(read)
        heads = layer.gates
    else:
        layer, read = kd.ExitSelector(len(outputs)), [features[0] if deep else start]
        weights = layer(*read)
        heads = [layer.head]
    model = kd.DynamicModel(inputs, outputs, selector=weights)
    model = _with_statistics(model, seed)
    # Logits of mean 0 and deviation 1 over the samples, that all exits are chosen.
    flat = [tf.convert_to_tensor(array) for array in keras.tree.flatten(x)]
    known = keras.Function(model.inputs, [*model.outputs, *read])(flat)
    for head, feature in zip(heads, known[len(model.outputs) :], strict=True):
        logits = head(feature).numpy()
        mean, scale = logits.mean(axis=0), 1 / np.maximum(logits.std(axis=0), 0.01)
        head.classifier.kernel.assign(head.classifier.kernel * scale)
        head.classifier.bias.assign(-mean * scale)
    return model, x, counters, head_counters, read


def _grown(rank, chunks, logits, seed, rows, heads=False):
    keras.utils.set_random_seed(seed)
    generator = np.random.default_rng(seed)
    if rank == 2:
        shape = (WIDTH,)
        inputs = {"a": keras.Input(shape, name="a"), "b": keras.Input(shape, name="b")}
        x = {name: generator.normal(size=(rows, WIDTH)) for name in inputs}
        start = [inputs["a"], inputs["b"]]
    else:
        shape = (TOKENS, WIDTH)
        inputs = {"ids": keras.Input((TOKENS,), dtype="int32", name="ids")}
        x = {"ids": generator.integers(0, VOCABULARY, (rows, TOKENS))}
        x["ids"][:, 0] = 1  # a sample has at least one token
        embedding = keras.layers.Embedding(VOCABULARY, WIDTH, mask_zero=True)
        start = [embedding(inputs["ids"])]
    tensors, outputs, counters, head_counters, features = start, [], [], [], []
    for index, moves in enumerate(chunks):
        source = tensors[-1]
        if heads and counters:
            # So that all later exits need this counter, and it lies in the trunk.
            source = keras.layers.add([source, counters[-1].output])
        counter = RowCounter()
        counters.append(counter)
        tensors = [*tensors, counter(keras.layers.Dense(WIDTH)(source))]
        tensors = grow(moves, rank, shape, tensors)
        head = kd.EarlyExit(
            CLASSES, activation=None if logits else "softmax", name=f"exit_{index}"
        )
        # The exit always sees its counter, so that segment k is what it counts.
        seen = keras.layers.add([tensors[-1], counter.output])
        features.append(tensors[-1])
        if heads:
            head_counters.append(RowCounter())
            seen = head_counters[-1](seen)
        outputs.append(head(seen))
    return inputs, outputs, (x, counters, head_counters, start[0], features)


def _with_statistics(model, seed):
    """Gives every batch normalization statistics that are not 0 and 1."""
    generator = np.random.default_rng(seed + 2)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_mean.assign(generator.normal(size=WIDTH))
            layer.moving_variance.assign(generator.uniform(0.5, 2.0, WIDTH))
    return model


@st.composite
def exit_rules(draw, num_early):
    """A rule with thresholds drawn in its range, some exits closed."""
    ranges = {
        kd.rules.MaxProbability: st.floats(0.2, 0.9),
        kd.rules.Margin: st.floats(0.0, 0.8),
        kd.rules.Entropy: st.floats(0.2, 1.4),
        kd.rules.Patience: st.integers(1, 3),
    }
    rule = draw(st.sampled_from(list(ranges)))
    entry = st.one_of(ranges[rule], ranges[rule], st.none())
    return rule(draw(st.lists(entry, min_size=num_early, max_size=num_early)))


def dense_road(model, x, rule):
    """Everything computed, then selected: the specification of the sparse road.

    Returns:
        A dict with `outputs`, `exit_index`, `confidence`, and `close`, the samples
        with a score within 1e-6 of its threshold.
    """
    outputs = [np.asarray(output) for output in model(x, training=False)]
    temperatures = np.asarray(model.calibration_temperatures)
    num_rows, last = len(outputs[0]), len(outputs) - 1
    thresholds = rule.thresholds(last)
    bound = rule.bind(tf.constant(thresholds))
    state = rule.initial_state(tf.constant(num_rows))
    fed = [tf.convert_to_tensor(array) for array in keras.tree.flatten(x)]
    broken = rows_with_nan(fed, num_rows)
    exit_index = np.full(num_rows, -1)
    confidence = np.zeros(num_rows, "float32")
    close = np.zeros(num_rows, bool)
    for index, (output, kind) in enumerate(zip(outputs, model.road.kinds, strict=True)):
        _, score, state = score_exit(
            rule, state, broken, tf.constant(output), kind, temperatures[index], index
        )
        leaves = np.ones(num_rows, bool)
        if index < last:
            leaves = np.asarray(who_leaves(bound, score, index))
            close |= np.abs(np.asarray(score) - thresholds[index]) <= 1e-6
        here = leaves & (exit_index < 0)
        exit_index[here] = index
        confidence[here] = np.asarray(score)[here]
    chosen = np.stack(outputs, axis=1)[np.arange(num_rows), exit_index]
    if isinstance(rule, kd.rules.Patience):
        close[:] = False  # whole numbers: on the threshold is no accident
    return {
        "outputs": chosen,
        "exit_index": exit_index,
        "confidence": confidence,
        "close": close,
    }
