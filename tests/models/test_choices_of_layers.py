"""`LayerChoice` in a dynamic model: what it costs, and whose rows it mixes."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_dynamic as kd
from keras_dynamic.models.batch_axis import check_rows
from keras_dynamic.models.graph import build_graph
from keras_dynamic.models.operation_flops import operation_flops
from keras_dynamic.ops.estimators import HARD_ESTIMATORS


def flops(choice, *shape):
    inputs = keras.KerasTensor((1, *shape))
    return operation_flops(choice, (inputs,), {}, [choice(inputs)])


def three(**arguments):
    # 4 inputs to 4 units: 2 * 4 * 4 + 4 = 36.
    # 4 to 6 with ReLU: 2 * 4 * 6 + 6 + 6 = 60; 6 to 4: 2 * 6 * 4 + 4 = 52; in all 112.
    inner = [layers.Dense(6, activation="relu"), layers.Dense(4)]
    options = [layers.Dense(4), keras.Sequential(inner), layers.Identity()]
    return kd.LayerChoice(options, **arguments)


@pytest.mark.parametrize("estimator", ["soft", "gumbel_softmax"])
def test_a_mixture_costs_all_layers_and_the_mixing(estimator):
    # Three products and two sums for each of 4 elements.
    assert flops(three(estimator=estimator), 4) == 36 + 112 + 0 + 5 * 4
    # At 3 positions.
    assert flops(three(estimator=estimator), 3, 4) == 3 * (36 + 112 + 0 + 5 * 4)


@pytest.mark.parametrize("estimator", HARD_ESTIMATORS)
def test_a_hard_choice_costs_its_winner(estimator):
    choice = three(estimator=estimator)
    for index, expected in enumerate((36, 112, 0)):
        choice.logits.assign(np.eye(3)[index])
        assert flops(choice, 4) == expected


def test_choices_in_choices_and_of_several_inputs():
    inner = three(estimator="straight_through")
    inner.logits.assign([0, 1, 0])
    # 112, a Dense layer's 36, and two products and a sum for each element.
    outer = kd.LayerChoice([inner, layers.Dense(4)])
    assert flops(outer, 4) == 112 + 36 + 3 * 4
    merged = kd.LayerChoice([layers.Add(), layers.Multiply()])
    pair = [keras.KerasTensor((1, 5)), keras.KerasTensor((1, 5))]
    # Two results of 5 elements, and their mixture.
    assert operation_flops(merged, (pair,), {}, [merged(pair)]) == 5 + 5 + 3 * 5


def test_what_cannot_be_counted_makes_the_choice_unknown():
    class Loop(layers.Layer):
        def call(self, inputs):
            smaller = lambda x: x / 2  # noqa: E731
            return tf.while_loop(lambda x: tf.reduce_max(x) > 1, smaller, [inputs])[0]

    choice = kd.LayerChoice([layers.Identity(), Loop()], "straight_through")
    assert flops(choice, 4) == 0
    choice.logits.assign([0, 1])
    assert flops(choice, 4) is None


def dynamic(choice):
    inputs = keras.Input((4,))
    hidden = choice(inputs)
    # 2 * 4 * 2 + 2 = 18, and 5 * 2 for the softmax, in each head.
    early = layers.Dense(2, "softmax", name="early")(hidden)
    final = layers.Dense(2, "softmax", name="final")(hidden)
    return kd.DynamicModel(inputs, [early, final])


def test_costs_of_a_dynamic_model():
    costs = dynamic(three()).compute_costs()
    assert costs.segments == (168 + 28, 28) and costs.reference == 168 + 28


@pytest.mark.parametrize("wrap", [lambda choice: choice, layers.TimeDistributed])
def test_costs_follow_the_winner(wrap):
    choice = three(estimator="straight_through")
    outer = kd.LayerChoice([keras.Sequential([choice])])
    inputs = keras.Input((3, 4))
    hidden = layers.Flatten()(wrap(outer)(inputs))
    outputs = [layers.Dense(2, "softmax")(hidden) for _ in range(2)]
    model = kd.DynamicModel(inputs, outputs)
    # 3 positions: the winner, and one product for each of 4 elements. A head of
    # 2 * 12 * 2 + 2 + 10.
    assert model.compute_costs().reference == 3 * (36 + 4) + 60
    choice.logits.assign([0, 1, 0])
    assert model.compute_costs().reference == 3 * (112 + 4) + 60
    prediction = model.predict_dynamic(np.ones((1, 3, 4)), verbose=0)
    assert prediction.cost.max() <= 3 * (112 + 4) + 2 * 60


@pytest.mark.parametrize("estimator", ["soft", "reinmax"])
def test_the_sparse_road_equals_the_dense_one(estimator):
    model = dynamic(three(estimator=estimator))
    x = np.random.default_rng(0).normal(size=(20, 4)).astype("float32")
    first, last = model.predict(x, verbose=0)
    scores = first.max(axis=1)
    threshold = float(np.sort(scores)[9:11].mean())
    rule = kd.rules.MaxProbability(threshold)
    prediction = model.predict_dynamic(x, batch_size=7, rule=rule, verbose=0)
    leaves = scores > threshold
    assert 0 < leaves.sum() < 20
    np.testing.assert_array_equal(prediction.exit_index, np.where(leaves, 0, 1))
    expected = np.where(leaves[:, None], first, last)
    np.testing.assert_allclose(prediction.outputs, expected, atol=1e-5)


def test_masks_made_inside_go_on():
    inputs = keras.Input((4, 1))
    masking = kd.LayerChoice([layers.Masking(0.0)])
    hidden = masking(inputs)
    outputs = [
        layers.Dense(2, "softmax")(layers.GlobalAveragePooling1D()(hidden))
        for _ in range(2)
    ]
    model = kd.DynamicModel(inputs, outputs)
    x = np.array([[[1.0], [2], [0], [0]], [[1], [1], [1], [5]]])
    rule = kd.rules.MaxProbability([None])
    prediction = model.predict_dynamic(x, rule=rule, verbose=0)
    np.testing.assert_allclose(prediction.outputs, model.predict(x, verbose=0)[1])
    # The mean of the two that are not masked, not of four.
    kernel, bias = model.layers[-1].get_weights()
    logits = np.array([[1.5], [2]]) @ kernel + bias
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(prediction.outputs, expected, atol=1e-6)


def test_masks_made_inside_are_seen_in_the_order_of_keras():
    inputs = keras.Input((4, 1))
    hidden = kd.LayerChoice([layers.Masking(0.0)])(inputs)
    # Keras calls it before the early head, and it takes the mask off `hidden`.
    attended = layers.MultiHeadAttention(1, 2)(hidden, hidden)
    outputs = [
        layers.Dense(2, "softmax")(layers.GlobalAveragePooling1D()(each))
        for each in (hidden, layers.Dense(2)(attended))
    ]
    model = kd.DynamicModel(inputs, outputs)
    x = np.array([[[1.0], [2], [0], [0]], [[1], [1], [1], [5]]])
    rule = kd.rules.MaxProbability(0.0)
    prediction = model.predict_dynamic(x, rule=rule, verbose=0)
    assert prediction.exit_index.tolist() == [0, 0]
    expected = model.predict(x, verbose=0)[0]
    np.testing.assert_allclose(prediction.outputs, expected, atol=1e-6)


def over_the_batch():
    inputs = keras.Input((4,))
    return keras.Model(inputs, keras.ops.softmax(inputs, axis=0))


class Moving(layers.Layer):
    """Puts the batch elsewhere, which its shape does not show while it is unknown."""

    def call(self, inputs):
        return inputs

    def compute_output_spec(self, inputs):
        batch = inputs.shape[0]
        return keras.KerasTensor((None if batch is None else batch * 2, 4))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: layers.Softmax(axis=0), "works along the batch"),
        (lambda: keras.Sequential([layers.Softmax(axis=0)]), "works along the batch"),
        (lambda: kd.LayerChoice([layers.Softmax(axis=0)]), "works along the batch"),
        (over_the_batch, "mixes the rows"),
        (lambda: Moving(name="moving"), "'moving', of which 'choice' has the choice"),
    ],
)
@pytest.mark.parametrize("by_name", [False, True])
def test_layers_that_mix_rows_do_not_hide(make, message, by_name):
    choice = kd.LayerChoice([layers.Identity(), make()], name="choice")
    inputs = keras.Input((4,))
    hidden = choice(inputs=inputs) if by_name else choice(inputs)
    outputs = [layers.Dense(2, "softmax")(hidden) for _ in range(2)]
    with pytest.raises(ValueError, match=message):
        kd.DynamicModel(inputs, outputs)


def test_layers_with_a_state_a_row_do_not_hide():
    recurrent = layers.GRU(4, stateful=True, return_sequences=True, name="memory")
    inputs = keras.Input((5, 4), batch_size=2)
    hidden = layers.Flatten()(kd.LayerChoice([layers.Identity(), recurrent])(inputs))
    with pytest.raises(ValueError, match="'memory' keeps a state"):
        check_rows(build_graph(keras.Model(inputs, hidden)))
