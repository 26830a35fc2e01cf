import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_dynamic.layers.skip_gate import SkipGate
from tests.layers.checks import check_layer
from tests.layers.small_gates import Attention, First, fitted, model_of, normal, odds
from tests.models.random_graphs import RowCounter

SIGMOID_2, SIGMOID_MINUS_1 = 1 / (1 + np.exp(-2)), 1 / (1 + np.exp(1))


# The whole contract of a layer


def pooled():
    return keras.Sequential([layers.GlobalAveragePooling2D(), layers.Dense(1)])


@pytest.mark.parametrize(
    "make_layer, shape, arguments, options",
    [
        pytest.param(
            lambda: layers.Dense(4),
            (4,),
            {"target_rate": 0.5, "rate_weight": 1, "cost_weight": 0.1, "cost": 0.3}
            | {"temperature": 0.7, "seed": 3, "initial_open_rate": 0.8},
            {"random_training": True},
            id="draws",
        ),
        pytest.param(
            lambda: layers.Conv1D(4, 3, padding="same"),
            (5, 4),
            {"additive": True, "estimator": "straight_through", "target_rate": 1}
            | {"rate_weight": 0.5, "data_format": "channels_last"},
            {},
            id="additive",
        ),
        pytest.param(
            lambda: layers.Conv2D(6, 3, strides=2, padding="same", activation="relu"),
            (7, 8, 3),
            {"estimator": "straight_through", "target_rate": 0.4, "rate_weight": 2.0},
            # TensorFlow gives no rows of a strided convolution the shape of its input.
            {"gate": pooled, "every_weight_trains": True, "independent_rows": False},
            id="projection",
        ),
        pytest.param(
            lambda: layers.Dense(3),
            (4,),
            {"estimator": "gumbel_softmax", "seed": 1},
            {"random_training": True, "gate": lambda: layers.Dense(1)}
            | {"shortcut": lambda: layers.Dense(3), "every_weight_trains": True},
            id="own",
        ),
        pytest.param(
            lambda: keras.Sequential([layers.Dense(4), layers.BatchNormalization()]),
            (4,),
            {"estimator": "soft", "shortcut": None, "cost_weight": 0.1, "cost": 0},
            # Statistics of replicas are their own.
            {"random_training": True, "gate": lambda: layers.Dense(1)},
            id="normalized",
        ),
        pytest.param(
            Attention,
            (5, 4),
            {"estimator": "soft", "additive": True},
            {"gate": First, "mask": np.arange(30).reshape(6, 5) % 5 < 3},
            id="masked",
        ),
    ],
)
def test_is_a_layer(make_layer, shape, arguments, options):
    def make():
        made = {k: options[k]() for k in ("gate", "shortcut") if k in options}
        return SkipGate(make_layer(), **made, **arguments)

    mask = options.get("mask")
    check_layer(
        make,
        normal(6, *shape, seed=1),
        call_arguments=None if mask is None else {"mask": mask},
        config=arguments,
        random_training=options.get("random_training", False),
        independent_rows=options.get("independent_rows", True),
        # The built-in gate starts with a kernel of zeros, behind which nothing trains.
        every_weight_trains=options.get("every_weight_trains", False),
    )


# By hand: f(x) = 3 x, and logits 2 and -1


def tripling(**arguments):
    return SkipGate(layers.Rescaling(3.0), gate=First(), **arguments)


X = np.array([[2.0], [-1.0]], "float32")


@pytest.mark.parametrize("road", ["eager", "graph", "xla", "predict", "predict_xla"])
def test_both_forms_by_hand(road):
    # Open: 3 * 2 = 6, or 2 + 3 * 2 = 8; closed: -1.
    # With a shortcut of 10 x: 6, or 20 + 6 = 26; closed: -10.
    ten = layers.Rescaling(10.0)
    for arguments, expected in (
        ({}, [6, -1]),
        ({"additive": True}, [8, -1]),
        ({"shortcut": ten}, [6, -10]),
        ({"shortcut": ten, "additive": True}, [26, -10]),
    ):
        model = model_of(tripling(**arguments), 1)
        if road.startswith("predict"):
            model.compile("sgd", "mse", jit_compile=road == "predict_xla")
            output = model.predict(X, verbose=0)
        else:
            xla = {"graph": False, "xla": True}
            call = model
            if road != "eager":
                call = tf.function(model, jit_compile=xla[road], autograph=False)
            output = call(X, training=False)
        np.testing.assert_allclose(np.ravel(output), expected, rtol=1e-6)


def test_training_by_hand():
    s = np.array([SIGMOID_2, SIGMOID_MINUS_1])
    x = X.ravel()
    for additive, soft, hard in (
        (False, s * 3 * x + (1 - s) * x, [6, -1]),
        (True, x + s * 3 * x, [8, -1]),
    ):
        for estimator, expected in (("soft", soft), ("straight_through", hard)):
            gate = tripling(estimator=estimator, additive=additive)
            output = gate(X, training=True)
            np.testing.assert_allclose(np.ravel(output), expected, rtol=1e-5)
    # At a temperature of 2 the softened logits are 1 and -1/2.
    output = tripling(estimator="soft", temperature=2.0)(X, training=True)
    s = 1 / (1 + np.exp([-1, 0.5]))
    np.testing.assert_allclose(np.ravel(output), x * (1 + 2 * s), rtol=1e-5)


@pytest.mark.parametrize("estimator", ["gumbel_straight_through", "reinmax"])
def test_draws_follow_the_probabilities(estimator):
    # 4,000 draws at p = 3/4: a deviation of sqrt(3/16 / 4000) = 0.0068.
    gate = SkipGate(layers.Rescaling(3.0), estimator, gate=odds(np.log(3)), seed=5)
    output = gate(np.ones((4000, 1), "float32"), training=True).numpy()
    assert set(np.unique(output)) == {1, 3}
    assert abs(np.mean(output == 3) - 0.75) < 4 * 0.0068


@pytest.mark.parametrize(
    "estimator, temperature, p",
    # Draws follow sigmoid(l) at any temperature; log 9 / 2 = log 3.
    [("gumbel_straight_through", 5.0, 9 / 10), ("straight_through", 2.0, 3 / 4)],
)
def test_losses_and_their_gradients_by_hand(estimator, temperature, p):
    gate = SkipGate(
        layers.Identity(),  # f(x) = x: the answer depends on no choice
        estimator,
        temperature,
        target_rate=0.6,
        rate_weight=2.0,
        cost_weight=0.1,
        cost=0.4,
        gate=odds(np.log(9)),
    )
    with tf.GradientTape() as tape:
        gate(normal(4, 3), training=True)
        losses = gate.losses
        total = sum(losses)
    # The hard rate is 1: 2 * (1 - 0.6)^2 = 0.32; 0.1 * p * 0.4 = 0.04 p.
    np.testing.assert_allclose(losses, [0.32, 0.04 * p], rtol=1e-5)
    # Backward that of p: (2 * 2 * (1 - 0.6) + 0.04) p (1 - p) / tau.
    tau = 1.0 if estimator.startswith("gumbel") else temperature
    slope = (1.6 + 0.04) * p * (1 - p) / tau
    gradient = tape.gradient(total, gate.gate.bias)
    np.testing.assert_allclose(gradient, [slope], rtol=1e-4)
    gate(normal(4, 3), training=False)
    assert gate.losses == []


@pytest.mark.parametrize("additive", [False, True])
def test_gradient_of_a_hard_choice(additive):
    gate = tripling(estimator="straight_through", additive=additive)
    x = tf.constant(X)
    logits = tf.Variable([[2.0], [-1.0]])
    gate._gate = layers.Lambda(lambda inputs: logits + 0 * inputs)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(gate(x, training=True))
    # (f(x) - x) s (1 - s) with 3 x - x = 2 x; additive f(x) s (1 - s).
    s = np.array([SIGMOID_2, SIGMOID_MINUS_1])
    factor = 3 if additive else 2
    expected = factor * X.ravel() * s * (1 - s)
    np.testing.assert_allclose(tape.gradient(loss, logits)[:, 0], expected, rtol=1e-4)


def test_initial_open_rate():
    x = normal(40, 4)
    for rate in (0.3, 0.9):
        gate = SkipGate(layers.Dense(4), initial_open_rate=rate, name="gate")
        _, history = fitted(gate, x)
        assert history["gate_open_probability"][0] == pytest.approx(rate, rel=1e-5)
        assert history["gate_open_rate"][0] == (rate > 0.5)
        np.testing.assert_allclose(tf.sigmoid(gate.decider(x)), rate, rtol=1e-5)


def test_weights_without_decay():
    gate = SkipGate(layers.Dense(4))
    gate(normal(2, 4))
    # Two kernels, two biases: 4 * 16 + 16 and 16 + 1.
    assert sum(int(tf.size(w)) for w in gate.weights_without_decay) == 80 + 17
    assert {id(w) for w in gate.weights_without_decay} == {
        id(w) for w in gate.decider.trainable_weights
    }


# Only open samples are run


@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("road", ["eager", "graph", "predict", "predict_compiled"])
def test_rows_that_are_run(road, additive):
    counter, inner = RowCounter(), RowCounter()
    # The inner gate reads the second feature: what First sees behind the flip.
    flip = keras.Sequential([layers.Lambda(lambda x: x[:, ::-1]), First()])
    nested = SkipGate(inner, gate=flip)
    outer = keras.Sequential([counter, nested])
    model = model_of(SkipGate(outer, gate=First(), additive=additive), 2)
    if road == "predict_compiled":
        model.compile("sgd", "mse")
    run = {
        "eager": lambda x: model(x, training=False),
        "graph": tf.function(lambda x: model(x, training=False), autograph=False),
    }.get(road, lambda x: model.predict(x, verbose=0))
    model(normal(2, 2))
    # Opposite signs, both positive, the first, none, nobody.
    for x in (
        normal(9, 2),
        1 + 0 * normal(9, 2),
        [[1.0, -1]],
        [[-1.0, 1]],
        -X @ [[1, 1]],
    ):
        x = np.asarray(x, "float32")
        for each in (counter, inner):
            each.seen.assign(0)
        output = run(x)
        opened = x[:, 0] > 0
        assert counter.seen.numpy() == opened.sum()
        assert inner.seen.numpy() == (opened & (x[:, 1] > 0)).sum()
        expected = np.where(opened[:, None], 2 * x, x) if additive else x
        np.testing.assert_allclose(output, expected, rtol=1e-6)


@pytest.mark.parametrize("value", [1.0, -1.0])
def test_nothing_is_moved_if_all_are_open_or_none(value, monkeypatch):
    def refuse(*arguments, **keywords):
        raise AssertionError("rows were moved")

    for name in ("gather", "tensor_scatter_nd_update", "dynamic_stitch", "scatter_nd"):
        monkeypatch.setattr(tf, name, refuse)
    projected = SkipGate(layers.Dense(3), gate=First())
    for gate in (tripling(), tripling(additive=True), projected):
        gate(np.full((5, 1), value, "float32"))
        with pytest.raises(AssertionError, match="moved"):
            gate(X)


@pytest.mark.parametrize("rows", [0, 1, 2, 5])
def test_batches_of_all_sizes(rows):
    x = normal(rows, 4)
    for arguments in ({}, {"additive": True}, {"shortcut": layers.Dense(4)}):
        gate = SkipGate(layers.Dense(4), gate=First(), **arguments)
        gate(normal(1, 4))
        run = gate.layer(x)
        other = gate.bypass(x) if gate.bypass else x
        run = run + other if gate.additive else run
        expected = np.where(x[:, :1] > 0, run, other)
        graph = tf.function(gate, autograph=False)
        for call in (gate, graph):
            np.testing.assert_allclose(call(x), expected, atol=1e-6)
        if rows:
            assert gate(x, training=True).shape == x.shape


def test_open_sizes():
    gate = SkipGate(layers.Conv1D(3, 3, strides=2, padding="same"), gate=pooled_1d())
    model = model_of(gate, None, 2)
    assert isinstance(gate.bypass, layers.Conv1D)  # both lengths are None, not equal
    for length in (1, 7, 8):
        x = normal(6, length, 2)
        opened = gate.gate(x).numpy()[:, :, None] > 0
        expected = np.where(opened, gate.layer(x), gate.bypass(x))
        np.testing.assert_allclose(model.predict(x, verbose=0), expected, atol=1e-6)


def pooled_1d():
    return keras.Sequential([layers.GlobalAveragePooling1D(), layers.Dense(1)])


@pytest.mark.parametrize(
    "make, shape, kind",
    [
        (lambda: layers.Dense(3), (4,), layers.Dense),
        (lambda: layers.Conv1D(3, 3, 2, padding="same"), (7, 4), layers.Conv1D),
        (lambda: layers.Conv2D(3, 3, (2, 1), padding="same"), (7, 4, 2), layers.Conv2D),
        (lambda: layers.MaxPooling3D(2, padding="same"), (3, 4, 5, 2), layers.Conv3D),
        (lambda: layers.Conv2D(2, 3, padding="same"), (7, 4, 2), type(None)),
    ],
)
def test_projections(make, shape, kind):
    gate = SkipGate(make())
    gate(normal(2, *shape))
    assert type(gate.bypass) is kind
    if gate.bypass is not None:
        shut = keras.Sequential([layers.Flatten(), odds(-1.0)])
        closed = SkipGate(make(), gate=shut)
        x = normal(2, *shape)
        np.testing.assert_allclose(closed(x), closed.bypass(x), atol=1e-6)
        assert closed.bypass.bias is None  # linear
