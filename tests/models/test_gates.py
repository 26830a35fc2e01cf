"""Gates: both roads answer alike, and what closed ones save is counted."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_dynamic as kd
from keras_dynamic.layers.skip_gate import SkipGate
from tests.layers.small_gates import First, normal
from tests.models.random_gates import SHAPES, Reference, build, grow, open_halfway

NESTS = 34  # of each of three kinds


@pytest.mark.parametrize("kind", SHAPES)
def test_random_nests(kind):
    gates = 0
    for seed in range(NESTS):
        nest, x = build(kind, seed)
        reference = Reference()
        expected, _ = reference.run(nest, x)
        assert not reference.close
        gates += reference.gates
        order = np.random.default_rng(seed).permutation(len(x))
        run = nest
        if seed % 8 == 0:
            run = tf.function(nest, autograph=False, reduce_retracing=True)
        for rows in (slice(None), order, slice(1)):
            np.testing.assert_allclose(
                run(x[rows]), expected[rows], rtol=1e-4, atol=1e-5, err_msg=f"{seed}"
            )
    assert gates > NESTS


# In a DynamicModel


def two_exits(seed, **arguments):
    """Two nests, each with an exit behind it."""
    keras.utils.set_random_seed(seed)
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(24, 4)).astype("float32")
    shared = layers.BatchNormalization()
    parts, heads, hidden = [], [], x
    inputs = tensor = keras.Input((4,))
    outputs = []
    for _ in range(2):
        part = grow(generator, (4,), 2, shared)
        part.add(SkipGate(layers.Dense(4, "tanh")))
        open_halfway(part, hidden, generator)
        head = layers.Dense(3, "softmax")
        tensor = part(tensor)
        outputs.append(head(tensor))
        hidden, _ = Reference().run(part, hidden)
        parts.append(part)
        heads.append(head)
    return kd.DynamicModel(inputs, outputs, **arguments), parts, heads, x


@pytest.mark.parametrize("seed", range(4))
def test_segments_with_gates(seed):
    model, parts, heads, x = two_exits(seed)
    reference = Reference()
    hidden, cost_1 = reference.run(parts[0], x)
    first, head_1 = reference.run(heads[0], hidden)
    hidden, cost_2 = reference.run(parts[1], hidden)
    last, head_2 = reference.run(heads[1], hidden)
    assert not reference.close
    score = first.max(axis=1)
    threshold = float(np.sort(score)[11:13].mean())
    stays = score < threshold
    early = cost_1 + head_1
    cost = np.where(stays, early + cost_2 + head_2, early)
    order = np.random.default_rng(seed).permutation(24)
    rule = kd.rules.MaxProbability(threshold)
    for rows in (np.arange(24), order):
        prediction = model.predict_dynamic(x[rows], batch_size=9, rule=rule, verbose=0)
        expected = np.where(stays[:, None], last, first)[rows]
        np.testing.assert_allclose(prediction.outputs, expected, atol=1e-5)
        np.testing.assert_array_equal(prediction.exit_index, stays[rows])
        np.testing.assert_array_equal(prediction.cost, cost[rows])
    dense = model.predict(x, verbose=0)
    np.testing.assert_allclose(dense[0], first, atol=1e-5)
    np.testing.assert_allclose(dense[1], last, atol=1e-5)


@pytest.mark.parametrize("budget", [0.55, 0.8])
@pytest.mark.parametrize("seed", [1, 2])
def test_calibration_counts_what_evaluation_counts(seed, budget):
    model, _, _, x = two_exits(seed)
    y = np.random.default_rng(0).integers(0, 3, 24)
    model.compile("sgd", "sparse_categorical_crossentropy")
    unlimited = model.evaluate_dynamic(
        x, y, rule=kd.rules.MaxProbability([None]), verbose=0
    )
    none = model.evaluate_dynamic(x, y, rule=kd.rules.MaxProbability(0.0), verbose=0)
    low, high = none["mean_cost"], unlimited["mean_cost"]
    assert low < high < 1 + model.compute_costs().heads[0] / 100
    budget = low + budget * (high - low)
    report = model.calibrate(x, y, budget=budget, batch_size=10)
    mean_cost = model.evaluate_dynamic(x, y, verbose=0)["mean_cost"]
    assert mean_cost <= budget + 1e-9
    assert report.mean_cost == pytest.approx(mean_cost, rel=1e-9)


@pytest.mark.parametrize("layerwise", [False, True])
def test_selected_heads_with_gates(layerwise):
    inputs = keras.Input((4,))
    trunk = [SkipGate(layers.Dense(4, "tanh"), gate=First()) for _ in range(2)]
    inner = [SkipGate(layers.Dense(4), gate=First(), additive=True) for _ in range(2)]
    heads = [layers.Dense(3, "softmax") for _ in range(2)]
    first = trunk[0](inputs)
    second = trunk[1](layers.Dense(4, kernel_initializer="orthogonal")(first))
    outputs = [
        head(gate(h))
        for head, gate, h in zip(heads, inner, (first, second), strict=True)
    ]
    if layerwise:
        weights = kd.LayerwiseSelector()([first])
    else:
        weights = kd.ExitSelector(2)(inputs)
    model = kd.DynamicModel(inputs, outputs, selector=weights)
    x = normal(40, 4)
    *answers, chosen = model.predict(x, verbose=0)
    exits = chosen.argmax(axis=1)
    prediction = model.predict_dynamic(x, batch_size=9, verbose=0)
    np.testing.assert_array_equal(prediction.exit_index, exits)
    expected = np.where(exits[:, None] == 0, *answers)
    np.testing.assert_allclose(prediction.outputs, expected, atol=1e-5)
    # 2 * 4 * 4 + 4 = 36 for each closed gate, 4 more for tanh, or for the sum.
    read = keras.Function(inputs, [inputs, model.get_layer(trunk[1].name).input])
    before = [np.asarray(tensor)[:, 0] > 0 for tensor in read(x)]
    ends = keras.Function(inputs, [first, second])(x)
    after = [np.asarray(tensor)[:, 0] > 0 for tensor in ends]
    saved = 40 * (~before[0]) + 40 * (~np.where(exits == 0, after[0], after[1]))
    saved += np.where(exits == 1, 40 * (~before[1]), 0)
    full = np.array(model.road.costs(rule=kd.rules.Selected()).exits)[exits]
    np.testing.assert_array_equal(prediction.cost, full - saved)


# Costs by hand


def by_hand(additive, shortcut=None, f=None):
    """Two features, a gate on the first of them, two exits."""
    inputs = keras.Input((2,))
    f = f or layers.Dense(2)
    hidden = SkipGate(f, gate=First(), additive=additive, shortcut=shortcut or "auto")(
        inputs
    )
    heads = [layers.Dense(1, "sigmoid")(hidden) for _ in range(2)]
    return kd.DynamicModel(inputs, heads)


X = np.array([[1.0, 2], [-1, 2], [-3, 1]])


def costs_of(model):
    rule = kd.rules.MaxProbability([None])
    return model.predict_dynamic(X, rule=rule, verbose=0).cost.tolist()


def test_costs_by_hand():
    # f: 2 * 2 * 2 + 2 = 10. Two heads of 2 * 2 + 1 + 1 = 6; the gate only reshapes.
    assert costs_of(by_hand(False)) == [10 + 12, 12, 12]
    # One sum for each of two elements.
    assert costs_of(by_hand(True)) == [10 + 2 + 12, 12, 12]
    # In place of f a shortcut of 2 * 2 * 2 = 8; both if additive.
    eight = {"shortcut": layers.Dense(2, use_bias=False)}
    assert costs_of(by_hand(False, **eight)) == [10 + 12, 8 + 12, 8 + 12]
    assert costs_of(by_hand(True, **eight)) == [10 + 2 + 8 + 12, 8 + 12, 8 + 12]


def test_costs_of_nested_gates_by_hand():
    # Inside: f of 10 behind a gate on the second feature, with a projection of 8 when
    # closed; then a layer of 10. Outside: all of that, or nothing.
    flip = keras.Sequential([layers.Lambda(lambda x: 1.5 - x[:, ::-1]), First()])
    inner = SkipGate(
        layers.Dense(2), gate=flip, shortcut=layers.Dense(2, use_bias=False)
    )
    model = by_hand(False, f=keras.Sequential([inner, layers.Dense(2)]))
    # The flip subtracts from 2 elements: 2. The second feature is 2: 1.5 - 2 is closed.
    assert costs_of(model) == [2 + 8 + 10 + 12, 12, 12]
    X2 = np.array([[1.0, 1.0]])
    rule = kd.rules.MaxProbability([None])
    cost = model.predict_dynamic(X2, rule=rule, verbose=0).cost
    assert cost.tolist() == [2 + 10 + 10 + 12]


def test_costs_of_many_flops_are_exact():
    inputs = hidden = keras.Input((300,))
    closed = keras.initializers.Constant(-1000.0)
    for _ in range(9):
        f = keras.Sequential([layers.Dense(3001), layers.Dense(300)])
        gate = layers.Dense(1, bias_initializer=closed)
        hidden = SkipGate(f, gate=gate)(hidden)
    outputs = [layers.Dense(2, "softmax")(hidden) for _ in range(2)]
    model = kd.DynamicModel(inputs, outputs)
    rule = kd.rules.MaxProbability([None])
    prediction = model.predict_dynamic(np.ones((1, 300)), rule=rule, verbose=0)
    # Nine gates of 2 * 300 + 1 and two heads of 2 * 300 * 2 + 2 + 10.
    assert prediction.cost.tolist() == [9 * 601 + 2 * 1212]
