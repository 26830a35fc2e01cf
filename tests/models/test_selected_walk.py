"""Under a selector: every sample to its exit, and only that exit's head."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras import layers

import keras_dynamic as kd
from keras_dynamic.layers._selector import soft_weights
from tests.models.random_graphs import build_selected, dense_road, plans
from tests.models.small_models import dense_data, dense_model, middle_rule
from tests.models.small_selected import chosen, selected_model, selector_of


def gates_by_hand(model, features, x):
    """(rows, E) probabilities to stop, from the gates' own layers on dense features."""
    selector = next(
        layer for layer in model.layers if isinstance(layer, kd.LayerwiseSelector)
    )
    flat = [tf.convert_to_tensor(array) for array in keras.tree.flatten(x)]
    # Everything runs, since attention takes the masks off what it reads.
    everything = keras.Function(model.inputs, [*features, *model.outputs])(flat)
    dense = everything[: len(features)]
    logits = [
        gate(feature).numpy()[:, 0]
        for gate, feature in zip(selector.gates, dense, strict=True)
    ]
    return 1 / (1 + np.exp(-np.stack(logits, axis=1)))


def first_above_half(stopping):
    stops = np.concatenate([stopping > 0.5, np.ones((len(stopping), 1), bool)], axis=1)
    return np.argmax(stops, axis=1)


def check_roads(plan, rank, layerwise, deep):
    model, x, counters, head_counters, features = build_selected(
        rank=rank, layerwise=layerwise, deep=deep, **plan
    )
    *outputs, weights = model(x, training=False)  # faster here than `predict`
    soft, weights = soft_weights(weights).numpy(), weights.numpy()
    choice = np.argmax(weights, axis=1)
    np.testing.assert_array_equal(weights, np.eye(len(outputs))[choice])
    if layerwise:
        stopping = gates_by_hand(model, features, x)
        close = (np.abs(stopping - 0.5) <= 1e-6).any(axis=1)
        expected = first_above_half(stopping)
    else:
        ranked = np.sort(soft, axis=1)
        close = ranked[:, -1] - ranked[:, -2] <= 1e-6
        expected = np.argmax(soft, axis=1)
    np.testing.assert_array_equal(choice[~close], expected[~close])
    for counter in (*counters, *head_counters):
        counter.seen.assign(0)
    p = model.predict_dynamic(x, verbose=0, batch_size=16)

    sure, rows = ~close, np.arange(len(choice))
    np.testing.assert_array_equal(p.exit_index[sure], choice[sure])
    chosen = np.stack(outputs, axis=1)[rows, p.exit_index]
    np.testing.assert_allclose(p.outputs, chosen, rtol=1e-5, atol=1e-5)
    confidence = soft[rows, p.exit_index]
    # The graphs' selectors magnify their features up to a hundred times.
    np.testing.assert_allclose(p.confidence, confidence, atol=1e-4)
    exits = range(len(outputs))
    reached = [int(np.sum(p.exit_index >= k)) for k in exits]
    assert [int(counter.seen) for counter in counters] == reached
    assert p.segment_rows.tolist() == reached
    left = [int(np.sum(p.exit_index == k)) for k in exits]
    assert [int(counter.seen) for counter in head_counters] == left


# Keras warns where a nested model is given a mask, and passes it on all the same.
random_graphs = pytest.mark.filterwarnings(
    "ignore:.*does not support masking.*:UserWarning"
)
examples = settings(max_examples=20, suppress_health_check=list(HealthCheck))


@random_graphs
@examples
@pytest.mark.parametrize("rank", [2, 3])  # vectors; masked sequences
@given(plan=plans, deep=st.booleans())
def test_equals_running_everything_and_selecting(rank, plan, deep):
    check_roads(plan, rank, layerwise=False, deep=deep)


@random_graphs
@examples
@pytest.mark.parametrize("rank", [2, 3])
@given(plan=plans)
def test_equals_it_layer_by_layer(rank, plan):
    check_roads(plan, rank, layerwise=True, deep=False)


# Small models with every exit in use


@pytest.fixture(scope="module", params=[False, True], ids=["at_once", "layerwise"])
def model(request):
    keras.utils.set_random_seed(3)
    model = selected_model(layerwise=request.param)
    heads = getattr(selector_of(model), "gates", None) or [selector_of(model).head]
    for head in heads:
        head.classifier.kernel.assign(3.0 * head.classifier.kernel)
    return model


@pytest.fixture(scope="module")
def x():
    return dense_data()[0]


def test_the_record(model, x):
    *outputs, weights = model.predict(x, verbose=0)
    p = model.predict_dynamic(x, verbose=0)
    counts = np.bincount(p.exit_index, minlength=3)
    assert (counts > 0).all()  # the selector sends some to every exit
    np.testing.assert_array_equal(np.eye(3)[p.exit_index], weights)
    expected = np.stack(outputs, axis=1)[np.arange(40), p.exit_index]
    np.testing.assert_allclose(p.outputs, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(p.probabilities, p.outputs, rtol=1e-5)
    np.testing.assert_array_equal(p.cost, model.exit_costs[p.exit_index])
    assert p.segment_rows.tolist() == [40, 40 - counts[0], counts[2]]


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_the_batch_size_does_not_matter(model, x, batch_size):
    expected = model.predict_dynamic(x, verbose=0)
    p = model.predict_dynamic(x, batch_size=batch_size, verbose=0)
    np.testing.assert_array_equal(p.exit_index, expected.exit_index)
    np.testing.assert_allclose(p.outputs, expected.outputs, rtol=1e-5, atol=1e-6)
    assert p.segment_rows.tolist() == expected.segment_rows.tolist()


def test_permuting_the_input_permutes_the_answer(model, x):
    order = np.random.default_rng(1).permutation(40)
    expected = model.predict_dynamic(x, verbose=0)
    p = model.predict_dynamic(x[order], verbose=0)
    np.testing.assert_array_equal(p.exit_index, expected.exit_index[order])
    np.testing.assert_allclose(p.outputs, expected.outputs[order], rtol=1e-5, atol=1e-6)


def test_a_nan_goes_to_the_last_exit_and_harms_nobody(model, x):
    expected = model.predict_dynamic(x, verbose=0)
    broken = x.copy()
    broken[[1, 30], 2] = np.nan
    p = model.predict_dynamic(broken, verbose=0)
    assert p.exit_index[[1, 30]].tolist() == [2, 2]
    assert np.isnan(p.confidence[[1, 30]]).all() and np.isnan(p.outputs[[1, 30]]).all()
    others = np.delete(np.arange(40), [1, 30])
    np.testing.assert_array_equal(p.exit_index[others], expected.exit_index[others])
    np.testing.assert_allclose(p.outputs[others], expected.outputs[others], rtol=1e-5)


def test_nobody_and_one(model, x):
    none = model.predict_dynamic(x[:0], verbose=0)
    assert none.outputs.shape == (0, 4) and none.exit_index.shape == (0,)
    assert none.segment_rows.tolist() == [0, 0, 0]
    one = model.predict_dynamic(x[3:4], verbose=0)
    assert one.exit_index.tolist() == [chosen(model, x)[3]]


def test_one_trace_serves_all_batches(x):
    traces = []

    class Traced(keras.layers.Layer):
        def call(self, inputs):
            traces.append(1)
            return inputs

    inputs = keras.Input((6,))
    hidden = Traced()(layers.Dense(4)(inputs))
    outputs = [kd.EarlyExit(2)(hidden), layers.Dense(2, "softmax")(hidden)]
    weights = kd.ExitSelector(2)(inputs)
    model = kd.DynamicModel(inputs, outputs, selector=weights)
    model.compute_costs()  # traces the layer as well
    traces.clear()
    for rows in (1, 5, 40):
        model.predict_dynamic(x[:rows], verbose=0, batch_size=16)
    assert len(traces) == 1


def test_thresholds_still_work_over_the_exits(model, x):
    plain = kd.DynamicModel(model.input, model.outputs[:-1])
    rule = middle_rule(plain, x)
    expected = dense_road(plain, x, rule)
    p = model.predict_dynamic(x, rule=rule, verbose=0)
    assert (np.bincount(p.exit_index, minlength=3) > 0).all()
    np.testing.assert_array_equal(p.exit_index, expected["exit_index"])
    np.testing.assert_allclose(p.outputs, expected["outputs"], rtol=1e-5, atol=1e-6)
    # All heads passed are paid, and no selector.
    np.testing.assert_array_equal(p.cost, plain.exit_costs[p.exit_index])
    by_name = model.predict_dynamic(x, rule="max_probability", verbose=0)
    assert by_name.segment_rows[0] == 40


def test_calibration_takes_thresholds_and_no_selector():
    model, (x, y) = selected_model(), dense_data()
    with pytest.raises(ValueError, match="thresholds to be calibrated.*Selected"):
        model.calibrate(x, y, rule="selected")
    model.calibrate(x, y)
    assert isinstance(model.exit_rule, kd.rules.MaxProbability)
    model.exit_rule = "selected"
    assert repr(model.exit_rule) == "Selected()"


def test_selected_needs_a_selector(x):
    message = "'selected' needs a model with a selector.*Selected"
    with pytest.raises(ValueError, match=message):
        dense_model(exit_rule="selected")
    with pytest.raises(ValueError, match=message):
        dense_model().predict_dynamic(x, rule="selected", verbose=0)
    with pytest.raises(ValueError, match=r"must be None.*threshold=0\.5"):
        kd.rules.Selected(0.5)


def test_weights_may_come_from_any_layer(x):
    inputs = keras.Input((6,))
    weights = layers.Dense(2, "softmax")(inputs)
    outputs = [layers.Dense(3, "softmax")(inputs), layers.Dense(3, "softmax")(inputs)]
    model = kd.DynamicModel(inputs, outputs, selector=weights)
    p = model.predict_dynamic(x, verbose=0)
    expected = model.predict(x, verbose=0)[-1]
    np.testing.assert_array_equal(p.exit_index, np.argmax(expected, axis=1))
    np.testing.assert_allclose(p.confidence, expected.max(axis=1), rtol=1e-5)


def test_masked_features_in_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        inputs = keras.Input((5,), dtype="int32")
        a = layers.Embedding(7, 6, mask_zero=True)(inputs)
        b = layers.Dense(6)(a)
        outputs = [kd.EarlyExit(3)(h) for h in (a, b, layers.Dense(6)(b))]
        weights = kd.LayerwiseSelector()([a, b])
        model = kd.DynamicModel(inputs, outputs, selector=weights)
    finally:
        keras.config.set_dtype_policy("float32")
    x = np.array([[1, 0, 0, 0, 0], [1, 2, 0, 0, 0], [3, 4, 5, 6, 1], [5, 2, 1, 0, 0]])
    selector = next(q for q in model.layers if isinstance(q, kd.LayerwiseSelector))
    # Gates that add up a sample's own tokens: padding would shift their mean.
    vectors = model.layers[1].get_weights()[0].astype("float32")
    selector.gates[0].classifier.kernel.assign(100.0 * np.ones((6, 1)))
    means = [vectors[row[row > 0]].mean(axis=0).sum() for row in x]
    middle = 100.0 * float(np.sort(means)[1] + np.sort(means)[2]) / 2
    selector.gates[0].classifier.bias.assign([-middle])
    first = np.array(means) > middle / 100
    for weights in (model.predict(x, verbose=0)[-1], model(x)[-1].numpy()):
        np.testing.assert_array_equal(weights[:, 0] == 1, first)
    p = model.predict_dynamic(x, verbose=0)
    np.testing.assert_array_equal(p.exit_index == 0, first)


# Costs by hand


def test_costs_of_a_selector():
    inputs = keras.Input((6,))
    hidden = layers.Dense(8)(inputs)  # 2*6*8 + 8 = 104
    early = layers.Dense(3, name="early")(hidden)  # 2*8*3 + 3 = 51
    deep = layers.Dense(5)(hidden)  # 2*8*5 + 5 = 85
    final = layers.Dense(3, name="final")(deep)  # 2*5*3 + 3 = 33
    # 2*6*2 + 2 = 26; the choice 14 for each of 2 logits: infinite ones found 1,
    # centered 4, divided by tau 1, softmax 5, argmax 1, straight-through 2.
    weights = kd.ExitSelector(2)(inputs)
    model = kd.DynamicModel(inputs, [early, final], selector=weights)
    assert model.exit_costs.tolist() == [54 + 104 + 51, 54 + 104 + 85 + 33]
    costs = model.compute_costs()
    assert costs.segments[0] == 54 + 104 and costs.heads == (51, 118)
    assert costs.reference == 222 and costs.unknown == ()
    model.exit_rule = "max_probability"
    assert model.exit_costs.tolist() == [155, 273]


def test_costs_of_gates():
    inputs = keras.Input((6,))
    a = layers.Dense(8)(inputs)  # 104
    b = layers.Dense(5)(a)  # 85
    c = layers.Dense(4)(b)  # 2*5*4 + 4 = 44
    heads = [layers.Dense(3)(h) for h in (a, b, c)]  # 51, 33, 27
    # Gates: 2*8 + 1 = 17, 2*5 + 1 = 11, each paid where one gets to it.
    weights = kd.LayerwiseSelector()([a, b])
    model = kd.DynamicModel(inputs, heads, selector=weights)
    stops = [104 + 17 + 51, 104 + 17 + 85 + 11 + 33, 104 + 17 + 85 + 11 + 44 + 27]
    assert model.exit_costs.tolist() == stops


def test_a_gate_that_cannot_be_counted_is_named():
    @keras.saving.register_keras_serializable(package="tests")
    class Loop(layers.Layer):
        """The mean by a loop, whose FLOPs nobody can tell."""

        def call(self, inputs):
            start = (tf.constant(0), tf.reduce_mean(inputs, axis=1))
            return tf.while_loop(lambda i, _: i < 3, lambda i, m: (i + 1, m), start)[1]

        def compute_output_shape(self, input_shape):
            return (input_shape[0], input_shape[2])

    inputs = keras.Input((4, 6))
    a = layers.Dense(8)(inputs)
    b = layers.Dense(5)(a)
    weights = kd.LayerwiseSelector(pooling=Loop(), name="choice")([a])
    model = kd.DynamicModel(
        inputs, [kd.EarlyExit(3)(a), kd.EarlyExit(3)(b)], selector=weights
    )
    with pytest.warns(UserWarning, match=r"'choice/gate_0' \(Loop\)"):
        costs = model.compute_costs()
    assert costs.unknown == ("'choice/gate_0' (Loop)",)


def test_a_selector_in_the_middle_pays_what_it_reads_first():
    inputs = keras.Input((6,))
    a = layers.Dense(8)(inputs)  # 104
    b = layers.Dense(5)(a)  # 85
    # 2*5*2 + 2 = 22, and 28 to choose.
    weights = kd.ExitSelector(2)(b)
    model = kd.DynamicModel(
        inputs, [layers.Dense(3)(a), layers.Dense(3)(b)], selector=weights
    )
    first = 104 + 85 + 22 + 28
    assert model.exit_costs.tolist() == [first + 51, first + 33]
