"""Selectors at the edges: clones, replicas, NaN gates, weights from elsewhere."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_dynamic as kd
from tests.layers.checks import two_replicas
from tests.models.small_models import dense_data
from tests.models.small_selected import selected_model, selector_of

CE = "sparse_categorical_crossentropy"


def model_with(selector_of_input):
    inputs = keras.Input((6,))
    trunk = layers.Dense(8, "relu")(inputs)
    exits = [kd.EarlyExit(4, name="early")(trunk), layers.Dense(4, "softmax")(trunk)]
    weights = selector_of_input(inputs)
    return kd.DynamicModel(inputs, exits, selector=weights)


# What is left where only the graph is handed on


def nested_selector(inputs):
    inner = keras.Input((6,))
    return keras.Model(inner, kd.ExitSelector(2)(inner))(inputs)


@pytest.mark.parametrize(
    "selector",
    [lambda inputs: layers.Dense(2, "softmax")(inputs), nested_selector],
    ids=["any_layer", "nested"],
)
def test_a_clone_knows_that_it_has_a_selector(selector):
    model = model_with(selector)
    clone = keras.models.clone_model(model)
    assert clone.exit_names == model.exit_names
    assert isinstance(clone.exit_rule, kd.rules.Selected)
    clone.set_weights(model.get_weights())
    x = dense_data()[0]
    np.testing.assert_array_equal(
        clone.predict_dynamic(x, verbose=0).exit_index,
        model.predict_dynamic(x, verbose=0).exit_index,
    )


def test_a_dynamic_model_inside_another():
    inner = model_with(kd.ExitSelector(2))
    inputs = keras.Input((6,))
    *exits, weights = inner(inputs)
    outer = kd.DynamicModel(inputs, exits, selector=weights)
    x = dense_data()[0]
    expected = inner.predict_dynamic(x, verbose=0)
    p = outer.predict_dynamic(x, verbose=0)
    np.testing.assert_array_equal(p.exit_index, expected.exit_index)
    np.testing.assert_allclose(p.confidence, expected.confidence, rtol=1e-5)


def test_what_stands_behind_the_selector_is_named():
    def reshaped(inputs):
        selector = kd.ExitSelector(2, exit_costs="auto", cost_weight=1.0, name="choice")
        return layers.Reshape((2,), name="behind")(selector(inputs))

    with pytest.warns(UserWarning, match="from 'choice' but through 'behind'"):
        model = model_with(reshaped)
    model.compile("sgd", CE)
    x, y = dense_data()
    model.fit(x, y % 4, verbose=0)  # its costs are filled in all the same
    costs = model.exit_costs
    filled = model.get_layer("choice").current_exit_costs.numpy()
    np.testing.assert_allclose(filled, costs / costs[-1], rtol=1e-6)


# NaN from a gate


def test_a_nan_counts_where_the_walk_sees_it():
    """Gates by hand: a NaN before the first stop goes to the end, one behind does
    not matter."""
    inputs = keras.Input((2,))
    features = [layers.Lambda(lambda t, k=k: t[:, k : k + 1])(inputs) for k in (0, 1)]
    layer = kd.LayerwiseSelector(pooling="flatten")
    weights = layer([layers.Lambda(tf.math.log)(f) for f in features])
    exits = [layers.Dense(3, "softmax")(inputs) for _ in range(3)]
    model = kd.DynamicModel(inputs, exits, selector=weights)
    for gate in layer.gates:
        gate.classifier.kernel.assign([[1.0]])
    # log x > 0 stops; the logarithm of -1 is NaN.
    x = np.array([[2, -1], [-1, 2], [0.5, -1], [0.5, 2], [0.5, 0.5]], "float32")
    expected = [0, 2, 2, 1, 2]
    dense = model.predict(x, verbose=0)[-1]
    np.testing.assert_array_equal(dense, np.eye(3)[expected])
    p = model.predict_dynamic(x, verbose=0)
    np.testing.assert_array_equal(p.exit_index, expected)
    assert np.isnan(p.confidence).tolist() == [False, True, True, False, False]


def test_a_gate_at_exactly_one_half_goes_on():
    model = selected_model(layerwise=True)
    for gate in selector_of(model).gates:
        gate.classifier.kernel.assign(tf.zeros_like(gate.classifier.kernel))
    x = dense_data()[0]
    assert (model.predict(x, verbose=0)[-1][:, 2] == 1).all()
    assert (model.predict_dynamic(x, verbose=0).exit_index == 2).all()


# What `compile` and `fit` are given


def test_the_loss_of_the_answer_selected():
    model = selected_model()
    model.compile("sgd", CE)
    x, y = dense_data()
    scores = model.evaluate(x, y, len(x), verbose=0, return_dict=True)
    p = model.predict_dynamic(x, verbose=0)
    by_hand = -np.mean(np.log(p.outputs[np.arange(len(y)), y]))
    np.testing.assert_allclose(scores["selected_loss"], by_hand, rtol=1e-5)
    # It is shown and not trained.
    total = sum(scores[f"{name}_loss"] for name in (*model.exit_names, "mixture"))
    np.testing.assert_allclose(scores["loss"], total, rtol=1e-5)


def test_sample_weights_by_exit():
    x, y = dense_data()
    weight = np.linspace(0, 1, len(y)).astype("float32")
    histories = []
    for targets, weights in ((y, weight), ([y] * 3, [weight] * 3)):
        keras.utils.set_random_seed(3)
        model = selected_model()
        model.compile("sgd", CE, weighted_metrics=["accuracy"])
        fitted = model.fit(x, targets, sample_weight=weights, shuffle=False, verbose=0)
        histories.append(fitted.history)
    assert histories[0].keys() == histories[1].keys()
    for name, values in histories[0].items():
        np.testing.assert_allclose(values, histories[1][name], rtol=1e-5)


def test_no_loss_for_the_mixture():
    model = selected_model()
    with pytest.raises(ValueError, match="`loss` must have an entry for the last exit"):
        model.compile("sgd", [CE, CE, None])


def test_heads_that_are_no_classifiers_cannot_be_mixed():
    inputs = keras.Input((6,))
    exits = [layers.Dense(1)(inputs), layers.Dense(1)(inputs)]
    model = kd.DynamicModel(inputs, exits, selector=kd.ExitSelector(2)(inputs))
    with pytest.raises(ValueError, match="neither probabilities of one class nor"):
        model.compile("sgd", "mse")


# Regularizers over replicas, and gradients


def test_the_prior_is_that_of_all_replicas():
    # Half of the batch goes one way, half the other: on average the prior is met,
    # while each replica's own half is far from it.
    x = np.repeat([[3.0] * 6, [-3.0] * 6], 4, axis=0).astype("float32")
    losses = []
    for replicas in (None, two_replicas()):
        with replicas.scope() if replicas else tf.device("CPU:0"):
            inputs = keras.Input((6,))
            selector = kd.ExitSelector(2, prior_weight=1.0)
            model = keras.Model(inputs, selector(inputs))
            kernel = selector.head.classifier.kernel
            kernel.assign(np.repeat([[0.5, -0.5]], 6, axis=0))
            model.compile(keras.optimizers.SGD(0.1), None)
            history = model.fit(x, batch_size=8, epochs=2, shuffle=False, verbose=0)
        losses.append([*history.history["loss"], *kernel.numpy().ravel()])
    assert losses[0][0] < 1e-6
    np.testing.assert_allclose(losses[0], losses[1], atol=1e-6)


@pytest.mark.parametrize("estimator", ["gumbel_straight_through", "reinmax"])
@pytest.mark.parametrize("layerwise", [False, True])
def test_a_hard_choice_trains_one_head(layerwise, estimator):
    """Of one sample, only the head that is chosen gets a gradient."""
    model = selected_model(layerwise, estimator=estimator, seed=5)
    x, y = dense_data()
    model.compile("sgd", CE, loss_weights=[0.0, 0.0, 0.0])
    heads = [model.get_layer(name) for name in ("exit_1", "exit_2", "final")]
    for row in range(4):
        with tf.GradientTape() as tape:
            outputs = model(x[row : row + 1], training=True)
            loss = model.compute_loss(y=y[row : row + 1], y_pred=outputs)
        chosen = int(np.argmax(outputs[-1]))
        weights = [head.trainable_weights[0] for head in heads]
        gradients = tape.gradient(loss, [weight.value for weight in weights])
        moved = [g is not None and bool(np.any(g.numpy() != 0)) for g in gradients]
        assert moved == [index == chosen for index in range(3)]


def test_arguments_of_wrong_types():
    for arguments, message in (
        ({"prior_per_sample": "no"}, "`prior_per_sample` must be True or False"),
        ({"prior": [[0.5], [0.5]]}, "`prior` must be a flat list of numbers"),
        ({"exit_costs": [True, "2"]}, "`exit_costs` must be a flat list of numbers"),
    ):
        with pytest.raises(TypeError, match=message):
            kd.ExitSelector(2, **arguments)
    with pytest.raises(ValueError, match=r"sum to 1.*1\.03"):
        kd.ExitSelector(2, prior=[0.5, 0.53])


@pytest.mark.parametrize("units", [1, 3])
def test_a_mixture_that_is_sure_has_finite_logits(units):
    """Logits of +-200 are probabilities of exactly 0 and 1 in float32."""
    inputs = keras.Input((units,))
    exits = [layers.Activation("linear", name=name)(inputs) for name in ("a", "b")]
    model = kd.DynamicModel(inputs, exits, selector=kd.ExitSelector(2)(inputs))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if units == 1:
        loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    x = np.full((4, units), -200.0, "float32")
    x[:2, 0] = 200.0
    scores = model.evaluate(x, np.array([1, 0, 1, 0]), verbose=0, return_dict=True)
    assert np.isfinite(scores["mixture_loss"]) and scores["mixture_loss"] > 20
