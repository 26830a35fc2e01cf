import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_dynamic as kd
from tests.layers.checks import two_replicas
from tests.models.random_graphs import dense_road
from tests.models.small_models import dense_data, dense_model, middle_rule


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return dense_model()


@pytest.fixture(scope="module")
def x():
    return dense_data()[0]


@pytest.fixture(scope="module")
def rule(model, x):
    return middle_rule(model, x)


def same(one, other):
    np.testing.assert_array_equal(one.exit_index, other.exit_index)
    np.testing.assert_allclose(one.outputs, other.outputs, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(one.cost, other.cost)


def test_the_record(model, x, rule):
    p = model.predict_dynamic(x, rule=rule, verbose=0)
    assert isinstance(p, kd.DynamicPrediction) and len(p) == 40
    assert p.outputs.shape == p.probabilities.shape == (40, 4)
    assert p.outputs.dtype == p.probabilities.dtype == p.confidence.dtype == "float32"
    assert p.exit_index.dtype == "int32" and p.cost.dtype == "int64"
    assert p.exit_names == ("exit_1", "exit_2", "final")
    counts = np.bincount(p.exit_index, minlength=3)
    assert (counts > 0).all()  # the rule sends some to every exit
    np.testing.assert_allclose(p.exit_rates, counts / 40)
    np.testing.assert_array_equal(p.cost, model.exit_costs[p.exit_index])
    reference = model.compute_costs().reference
    assert p.mean_cost == pytest.approx(p.cost.mean() / reference)
    assert p.segment_rows.tolist() == [40, 40 - counts[0], counts[2]]
    # Softmax heads before calibration: T = 1 changes nothing.
    np.testing.assert_allclose(p.probabilities, p.outputs, rtol=1e-5)
    np.testing.assert_allclose(p.confidence, p.outputs.max(axis=1), rtol=1e-5)
    assert "40 samples" in repr(p) and "mean cost" in repr(p)


def test_temperatures_count_in_probabilities_and_not_in_outputs(x):
    model = dense_model()
    model.calibration_temperatures.assign([0.5, 2.0, 1.0])
    p = model.predict_dynamic(x, rule=kd.rules.MaxProbability([0.0, None]), verbose=0)
    outputs = model.predict(x, verbose=0)[0]
    np.testing.assert_allclose(p.outputs, outputs, rtol=1e-5)
    # T = 1/2 squares the probabilities and normalizes.
    squared = outputs**2 / np.sum(outputs**2, axis=1, keepdims=True)
    np.testing.assert_allclose(p.probabilities, squared, rtol=1e-4)
    # Each exit has its own: the second takes the square root.
    p = model.predict_dynamic(x, rule=kd.rules.MaxProbability([None, 0.0]), verbose=0)
    root = np.sqrt(model.predict(x, verbose=0)[1])
    expected = root / np.sum(root, axis=1, keepdims=True)
    np.testing.assert_allclose(p.probabilities, expected, rtol=1e-4)


@pytest.mark.parametrize("threshold, exit_index", [(0.0, 0), (1.0, 2), (None, 2)])
def test_everyone_and_nobody(model, x, threshold, exit_index):
    rule = kd.rules.MaxProbability(threshold)
    p = model.predict_dynamic(x, rule=rule, verbose=0)
    assert (p.exit_index == exit_index).all()
    expected = model.predict(x, verbose=0)[exit_index]
    np.testing.assert_allclose(p.outputs, expected, rtol=1e-5, atol=1e-6)
    assert p.segment_rows.tolist() == ([40, 0, 0] if exit_index == 0 else [40] * 3)


def test_closed_exits_are_passed(model, x):
    rule = kd.rules.MaxProbability([None, 0.0])
    assert (model.predict_dynamic(x, rule=rule, verbose=0).exit_index == 1).all()


def test_a_score_exactly_at_the_threshold_stays():
    inputs = keras.Input((1,))
    # Logits (0, 0): probabilities of exactly 1/2.
    head = kd.EarlyExit(2, name="early")
    outputs = [head(inputs), layers.Dense(2, "softmax")(inputs)]
    model = kd.DynamicModel(inputs, outputs)
    head.classifier.kernel.assign(np.zeros((1, 2)))
    x = np.ones((3, 1), "float32")
    at = model.predict_dynamic(x, rule=kd.rules.MaxProbability(0.5), verbose=0)
    below = model.predict_dynamic(x, rule=kd.rules.MaxProbability(0.4999), verbose=0)
    assert (at.exit_index == 1).all() and (below.exit_index == 0).all()


@pytest.mark.parametrize("batch_size", [1, 7, 16, 40, 100])
def test_the_batch_size_does_not_matter(model, x, rule, batch_size):
    expected = model.predict_dynamic(x, rule=rule, verbose=0)
    p = model.predict_dynamic(x, rule=rule, batch_size=batch_size, verbose=0)
    same(p, expected)
    assert p.segment_rows.tolist() == expected.segment_rows.tolist()


def test_permuting_the_input_permutes_the_answer(model, x, rule):
    order = np.random.default_rng(1).permutation(40)
    expected = model.predict_dynamic(x, rule=rule, verbose=0)
    p = model.predict_dynamic(x[order], rule=rule, verbose=0)
    np.testing.assert_array_equal(p.exit_index, expected.exit_index[order])
    np.testing.assert_allclose(p.outputs, expected.outputs[order], rtol=1e-5, atol=1e-6)


def test_one_sample_and_none(model, x, rule):
    whole = model.predict_dynamic(x, rule=rule, verbose=0)
    one = model.predict_dynamic(x[3:4], rule=rule, verbose=0)
    assert one.exit_index.tolist() == [whole.exit_index[3]]
    none = model.predict_dynamic(x[:0], rule=rule, verbose=1)
    assert none.outputs.shape == none.probabilities.shape == (0, 4)
    assert none.exit_index.shape == none.confidence.shape == none.cost.shape == (0,)
    assert none.segment_rows.tolist() == [0, 0, 0] and np.isnan(none.mean_cost)
    assert none.exit_rates.tolist() == [0, 0, 0] and "0 samples" in repr(none)


class Sequence(keras.utils.PyDataset):
    def __init__(self, x, y=None):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return -(-len(self.x) // 16)

    def __getitem__(self, index):
        part = slice(16 * index, 16 * index + 16)
        return (self.x[part],) if self.y is None else (self.x[part], self.y[part])


def test_everything_that_predict_takes(model, x, rule):
    expected = model.predict_dynamic(x, rule=rule, verbose=0)
    dataset = tf.data.Dataset.from_tensor_slices(x)
    forms = {
        "tensor": tf.constant(x),
        "float64": x.astype("float64"),
        "dataset": dataset.batch(16),
        "dataset with targets": tf.data.Dataset.zip(dataset, dataset).batch(16),
        "PyDataset": Sequence(x),
        "generator": ((x[start : start + 8],) for start in range(0, 40, 8)),
    }
    for form in forms.values():
        same(model.predict_dynamic(form, rule=rule, verbose=0), expected)


def test_steps_and_empty_batches(model, x, rule):
    expected = model.predict_dynamic(x[:16], rule=rule, verbose=0)
    dataset = tf.data.Dataset.from_tensor_slices(x).batch(8)
    same(model.predict_dynamic(dataset, rule=rule, steps=2, verbose=0), expected)
    empty = tf.data.Dataset.from_tensor_slices(x[:0]).batch(8)
    leading = tf.data.Dataset.from_tensors(x[:0]).concatenate(dataset.take(2))
    same(model.predict_dynamic(leading, rule=rule, verbose=0), expected)
    assert len(model.predict_dynamic(empty, rule=rule, verbose=0)) == 0


def test_convolutions_never_see_an_empty_batch():
    inputs = keras.Input((6, 6, 2))
    hidden = layers.BatchNormalization()(layers.Conv2D(3, 3)(inputs))
    early = kd.EarlyExit(2)(hidden)
    hidden = layers.BatchNormalization()(layers.Conv2D(3, 3)(hidden))
    final = layers.Dense(2, "softmax")(layers.GlobalAveragePooling2D()(hidden))
    model = kd.DynamicModel(inputs, [early, final])
    x = np.random.default_rng(0).normal(size=(4, 6, 6, 2)).astype("float32")
    batches = (
        tf.data.Dataset.from_tensors(x[:0])
        .repeat(2)
        .concatenate(tf.data.Dataset.from_tensors(x))
    )
    # TensorFlow's convolution with BatchNormalization fails on no samples at all.
    for threshold in (0.0, 1.0):
        rule = kd.rules.MaxProbability(threshold)
        p = model.predict_dynamic(batches, rule=rule, verbose=0)
        assert p.exit_index.tolist() == [int(threshold)] * 4


def test_dict_and_several_inputs():
    a, b = keras.Input((3,), name="a"), keras.Input((4,), name="b")
    hidden = layers.Dense(5, "tanh")(layers.concatenate([a, b]))
    early = kd.EarlyExit(3)(hidden)
    late = layers.Dense(3, "softmax")(layers.concatenate([hidden, b]))
    model = kd.DynamicModel({"a": a, "b": b}, [early, late])
    generator = np.random.default_rng(0)
    x = {"b": generator.normal(size=(9, 4)), "a": generator.normal(size=(9, 3))}
    rule = kd.rules.MaxProbability(0.45)
    expected = dense_road(model, x, rule)
    assert not expected["close"].any() and len(set(expected["exit_index"])) == 2
    p = model.predict_dynamic(x, rule=rule, verbose=0)
    np.testing.assert_array_equal(p.exit_index, expected["exit_index"])
    np.testing.assert_allclose(p.outputs, expected["outputs"], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="[Mm]issing data for input"):
        model.predict_dynamic({"a": x["a"]}, verbose=0)


def test_an_optional_input_may_be_absent():
    a = keras.Input((3,), name="a")
    b = keras.Input((3,), name="b", optional=True)

    class Sum(layers.Layer):
        def call(self, first, second=None):
            return first if second is None else first + second

        def compute_output_shape(self, first_shape, second_shape=None):
            return first_shape

    hidden = Sum()(a, b)
    outputs = [kd.EarlyExit(3)(hidden), layers.Dense(3, "softmax")(Sum()(hidden, b))]
    model = kd.DynamicModel([a, b], outputs)
    x = np.random.default_rng(0).normal(size=(6, 3)).astype("float32")
    for given in ([x, None], [x, x]):
        p = model.predict_dynamic(given, rule=kd.rules.MaxProbability(1.0), verbose=0)
        expected = model.predict(given, verbose=0)[1]
        np.testing.assert_allclose(p.outputs, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("activation", ["sigmoid", None])
def test_binary_heads(activation):
    loss = keras.losses.BinaryCrossentropy(from_logits=activation is None)
    model = dense_model(activation, loss, units=1)
    x, y = dense_data(classes=2)
    rule = middle_rule(model, x) if activation else kd.rules.MaxProbability(0.55)
    expected = dense_road(model, x, rule)
    p = model.predict_dynamic(x, rule=rule, verbose=0)
    np.testing.assert_array_equal(p.exit_index, expected["exit_index"])
    assert len(set(p.exit_index)) > 1
    assert p.outputs.shape == p.probabilities.shape == (40, 1)
    # The confidence of a binary answer is that of the class that it favors.
    favored = np.maximum(p.probabilities, 1 - p.probabilities)[:, 0]
    np.testing.assert_allclose(p.confidence, favored, rtol=1e-5)
    assert 0 < model.evaluate_dynamic(x, y, rule=rule, verbose=0)["accuracy"] < 1


@pytest.mark.parametrize("where", ["input", "head"])
def test_a_row_of_nan_never_leaves_early_and_harms_nobody(where):
    inputs = keras.Input((6,))
    # ReLU turns a NaN into 0 on some devices: the input itself must be looked at.
    hidden = layers.Dense(8, "relu" if where == "input" else "tanh")(inputs)
    outputs = [kd.EarlyExit(4)(hidden), layers.Dense(4, "softmax")(hidden)]
    model = kd.DynamicModel(inputs, outputs)
    clean = dense_data(rows=9)[0]
    x = clean.copy()
    x[4] = np.nan
    for rule in (
        kd.rules.MaxProbability(0.0),
        kd.rules.Entropy(10.0),
        kd.rules.Patience(1),
    ):
        p = model.predict_dynamic(x, rule=rule, verbose=0)
        assert p.exit_index.tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 0]
        others = np.arange(9) != 4
        unharmed = model.predict_dynamic(clean, rule=rule, verbose=0)
        np.testing.assert_allclose(
            p.outputs[others], unharmed.outputs[others], rtol=1e-5, atol=1e-6
        )
        # The compiled dense road: eager ReLU treats a NaN otherwise than compiled.
        dense = np.stack(model.predict(x, verbose=0), axis=1)
        expected = dense[np.arange(9), p.exit_index]
        np.testing.assert_allclose(p.outputs, expected, rtol=1e-5, atol=1e-6)
        assert np.isnan(p.confidence[4])


class Recorder(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.calls = []

    def on_predict_begin(self, logs=None):
        self.calls.append("begin")

    def on_predict_batch_begin(self, batch, logs=None):
        self.calls.append(("batch_begin", batch))

    def on_predict_batch_end(self, batch, logs=None):
        self.calls.append(("batch_end", batch, logs["outputs"].shape[0]))

    def on_predict_end(self, logs=None):
        self.calls.append("end")

    def on_test_batch_end(self, batch, logs=None):
        self.calls.append(("test", batch, sorted(logs)))


def test_callbacks_and_the_progress_bar(model, x, rule, capsys):
    ours, keras_own = Recorder(), Recorder()
    model.predict_dynamic(x, 16, rule=rule, callbacks=[ours], verbose=1)
    assert "3/3" in capsys.readouterr().out
    model.predict_on_batch(x)
    model.predict(x, batch_size=16, callbacks=[keras_own_list(keras_own)], verbose=0)
    assert ours.calls == [
        "begin",
        ("batch_begin", 0),
        ("batch_end", 0, 16),
        ("batch_begin", 1),
        ("batch_end", 1, 16),
        ("batch_begin", 2),
        ("batch_end", 2, 8),
        "end",
    ]
    assert [c for c in ours.calls if c[0] != "batch_end"] == [
        c for c in keras_own.calls if c[0] != "batch_end"
    ]
    model.predict_dynamic(x, rule=rule, verbose=0)
    assert capsys.readouterr().out == ""


def keras_own_list(recorder):
    """`predict` hands a list of outputs to its callbacks; only the calls matter."""
    recorder.on_predict_batch_end = lambda batch, logs=None: recorder.calls.append(
        ("batch_end", batch)
    )
    return recorder


def test_a_callback_can_stop_the_walk(model, x, rule):
    class Stop(keras.callbacks.Callback):
        def on_predict_batch_end(self, batch, logs=None):
            self.model.stop_predicting = True

    p = model.predict_dynamic(x, 16, rule=rule, callbacks=[Stop()], verbose=0)
    assert len(p) == 16


def test_wrong_input_gets_a_clear_message(model):
    for bad in (np.ones((4, 5)), np.ones((2, 4, 6))):
        with pytest.raises(ValueError, match="expected shape=\\(None, 6\\)"):
            model.predict_dynamic(bad, verbose=0)
    with pytest.raises(ValueError, match="Unrecognized data type"):
        model.predict_dynamic([[0.0] * 6], verbose=0)
    with pytest.raises(TypeError, match="`x` must hold arrays of numbers; .* <U1"):
        model.predict_dynamic(np.array([["a"] * 6]), verbose=0)


def test_run_eagerly_gives_the_same(x):
    model = dense_model()
    rule = middle_rule(model, x)
    expected = model.predict_dynamic(x, rule=rule, verbose=0)
    model.run_eagerly = True
    same(model.predict_dynamic(x, rule=rule, verbose=0), expected)


def test_one_trace_serves_all_batch_sizes_and_thresholds(x):
    model = dense_model()
    traced = []

    class Tracing(kd.rules.MaxProbability):
        def score(self, probabilities):
            traced.append(1)
            return super().score(probabilities)

    for threshold in (0.3, [0.4, 0.9]):
        for batch_size in (1, 7, 40):
            rule = Tracing(threshold)
            model.predict_dynamic(x, batch_size, rule=rule, verbose=0)
    # One for each exit: once batch by batch, once with pools.
    assert len(traced) == 6


def test_before_compile_the_activations_decide(x):
    model = dense_model(activation=None, compiled=False)
    rule = kd.rules.MaxProbability(0.5)
    expected = dense_road(model, x, rule)
    p = model.predict_dynamic(x, rule=rule, verbose=0)
    np.testing.assert_array_equal(p.exit_index, expected["exit_index"])
    np.testing.assert_allclose(p.probabilities.sum(axis=1), 1.0, rtol=1e-5)


def test_heads_that_no_rule_can_score_are_an_error(x):
    for activation, loss in ((None, "mse"), ("sigmoid", "binary_crossentropy")):
        model = dense_model(activation, loss)
        with pytest.raises(ValueError, match="'exit_1' gives neither"):
            model.predict_dynamic(x, verbose=0)


def test_sizes_that_only_the_data_know():
    inputs = keras.Input((None, None, 3))
    hidden = layers.Conv2D(4, 3)(inputs)
    early = kd.EarlyExit(2, name="early")(hidden)
    hidden = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(hidden))
    final = layers.Dense(2, "softmax", name="final")(hidden)
    model = kd.DynamicModel(inputs, [early, final])
    with pytest.raises(ValueError, match=r"unknown: \(None, None, 3\).*compute_costs"):
        _ = model.exit_costs
    with pytest.raises(ValueError, match=r"must fit \(None, None, 3\).*\(8, 8, 4\)"):
        model.compute_costs((8, 8, 4))
    generator = np.random.default_rng(0)
    batches = [generator.normal(size=(4, side, 8, 3)) for side in (8, 10)]
    p = model.predict_dynamic(
        ((batch,) for batch in batches), rule="max_probability", verbose=0
    )
    small, large = model.compute_costs((8, 8, 3)), model.compute_costs((10, 8, 3))
    expected = np.where(
        np.arange(8) < 4,
        np.array(small.exits)[p.exit_index],
        np.array(large.exits)[p.exit_index],
    )
    np.testing.assert_array_equal(p.cost, expected)
    assert large.reference > small.reference
    mean = (small.reference + large.reference) / 2
    assert p.mean_cost == pytest.approx(expected.mean() / mean)
    assert "open size" in summary_of(model)


def summary_of(model):
    lines = []
    model.summary(print_fn=lines.append)
    return "\n".join(lines)


def test_summary_shows_the_exits_and_their_share_of_the_cost(model):
    text = summary_of(model)
    costs = model.compute_costs()
    for name, share in zip(model.exit_names, costs.shares(), strict=True):
        assert any(name in row and f"{share:.3f}" in row for row in text.splitlines())
    assert costs.shares()[-1] > 1  # the early heads are paid as well


def test_evaluate_dynamic_is_the_compiled_metrics_on_the_answers(x):
    metrics = ["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(2, name="top2")]
    model = dense_model(metrics=metrics)
    y = dense_data()[1]
    rule = middle_rule(model, x)
    p = model.predict_dynamic(x, rule=rule, verbose=0)
    results = model.evaluate_dynamic(x, y, batch_size=16, rule=rule, verbose=0)
    assert set(results) == {"loss", "accuracy", "top2", "mean_cost", "exit_rates"}
    assert results["accuracy"] == pytest.approx(np.mean(p.outputs.argmax(1) == y))
    ranks = np.argsort(-p.outputs, axis=1)[:, :2]
    assert results["top2"] == pytest.approx(
        np.mean([t in r for t, r in zip(y, ranks, strict=True)])
    )
    likelihood = -np.log(p.outputs[np.arange(40), y])
    assert results["loss"] == pytest.approx(likelihood.mean(), rel=1e-5)
    assert results["mean_cost"] == pytest.approx(p.mean_cost)
    assert results["exit_rates"] == pytest.approx(p.exit_rates)
    # The same by dataset and by PyDataset.
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
    for data in (dataset, Sequence(x, y)):
        again = model.evaluate_dynamic(data, rule=rule, verbose=0)
        assert again.pop("exit_rates") == results["exit_rates"]
        assert again == pytest.approx({k: results[k] for k in again}, rel=1e-5)
    recorder = Recorder()
    model.evaluate_dynamic(x, y, rule=rule, callbacks=[recorder], verbose=0)
    assert recorder.calls[-1] == ("test", 1, ["accuracy", "loss", "top2"])


def test_evaluate_dynamic_weighs_samples_and_leaves_the_models_metrics_alone(x):
    model = dense_model(metrics=[])
    model.compile(
        "sgd",
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        weighted_metrics=["accuracy"],
    )
    y = dense_data()[1]
    weight = np.where(np.arange(40) % 2, 3.0, 1.0).astype("float32")
    rule = middle_rule(model, x)
    before = model.evaluate(x, y, verbose=0, return_dict=True)
    results = model.evaluate_dynamic(x, y, sample_weight=weight, rule=rule, verbose=0)
    after = float(model.get_metrics_result()["accuracy"])
    assert after == pytest.approx(before["accuracy"])
    p = model.predict_dynamic(x, rule=rule, verbose=0)
    right = p.outputs.argmax(1) == y
    assert results["accuracy"] == pytest.approx(right.mean())
    assert results["weighted_accuracy"] == pytest.approx(
        np.average(right, weights=weight)
    )
    likelihood = -np.log(p.outputs[np.arange(40), y])
    assert results["loss"] == pytest.approx((likelihood * weight).mean(), rel=1e-5)


def test_evaluate_dynamic_needs_compile_and_targets(x):
    with pytest.raises(RuntimeError, match="`compile` before `evaluate_dynamic`"):
        dense_model(compiled=False).evaluate_dynamic(x, verbose=0)
    with pytest.raises(ValueError, match="`y` must be given.*y=None"):
        dense_model().evaluate_dynamic(x, verbose=0)


def test_rules_of_ones_own_are_told_apart_by_what_they_hold(x):
    class Power(kd.rules.MaxProbability):
        def __init__(self, threshold, power):
            super().__init__(threshold)
            self.power = power

        def score(self, probabilities):
            return super().score(probabilities) ** self.power

    model = dense_model()
    plain = model.predict_dynamic(x, rule=Power(0.3, 1.0), verbose=0)
    squared = model.predict_dynamic(x, rule=Power(0.3, 2.0), verbose=0)
    assert plain.exit_rates[0] > squared.exit_rates[0]


def test_a_model_made_under_two_replicas_walks_as_on_one_device(x):
    strategy = two_replicas()
    with strategy.scope():
        model = dense_model()
    alone = dense_model()
    alone.set_weights(model.get_weights())
    rule = middle_rule(alone, x)
    expected = alone.predict_dynamic(x, rule=rule, verbose=0)
    same(model.predict_dynamic(x, rule=rule, verbose=0), expected)
    with strategy.scope():
        same(model.predict_dynamic(x, rule=rule, verbose=0), expected)


def test_a_large_table_in_a_rule_is_told_apart(x):
    class Shifted(kd.rules.ExitRule):
        def __init__(self, table):
            super().__init__(0.99)
            self.table = np.asarray(table, "float32")

        def score(self, probabilities):
            return keras.ops.max(probabilities, axis=-1) + self.table[1000]

    model, table = dense_model(), np.zeros(2001)
    assert model.predict_dynamic(x, rule=Shifted(table), verbose=0).exit_rates[0] == 0
    table[1000] = 1.0  # NumPy prints neither of them in full
    assert model.predict_dynamic(x, rule=Shifted(table), verbose=0).exit_rates[0] == 1


def test_a_rule_may_compare_as_it_likes_and_none_still_closes(x):
    class Low(kd.rules.ExitRule):
        def score(self, probabilities):
            return 1.0 - keras.ops.max(probabilities, axis=-1)

        def leaves(self, score, exit_index):
            return score < self.threshold_at(exit_index)

    class LowByAttribute(Low):
        def leaves(self, score, exit_index):
            return score < self.threshold

    model = dense_model()
    for rule, index in (
        (Low(1.0), 0),
        (Low(0.0), 2),
        (Low([None, 1.0]), 1),
        (Low(None), 2),
        (LowByAttribute(1.0), 0),
        (LowByAttribute(0.0), 2),
    ):
        p = model.predict_dynamic(x, rule=rule, verbose=0)
        assert (p.exit_index == index).all(), rule


def test_a_score_of_the_wrong_shape_is_named(x):
    class Column(kd.rules.ExitRule):
        def score(self, probabilities):
            return probabilities[:, :1]

    with pytest.raises(ValueError, match=r"`score` of Column .*\(None, 1\)"):
        dense_model().predict_dynamic(x, rule=Column(0.5), verbose=0)


def test_no_input_and_empty_input_of_a_wrong_shape(model):
    with pytest.raises(ValueError, match="`x` must hold samples.*x=None"):
        model.predict_dynamic(None, verbose=0)
    with pytest.raises(ValueError, match="expected shape=\\(None, 6\\)"):
        model.predict_dynamic(np.zeros((0, 3)), verbose=0)


def test_summary_shows_the_loss_weights_in_force():
    model = dense_model(loss_weight=0.5)
    row = next(
        r for r in summary_of(model).splitlines() if "exit_1 " in r and "0.5" in r
    )
    assert row
    model.compile(
        "sgd", "sparse_categorical_crossentropy", loss_weights={"exit_1": 0.125}
    )
    assert any("exit_1" in r and "0.125" in r for r in summary_of(model).splitlines())
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.get_layer("exit_1").loss_weight = 0.375
    assert any("exit_1" in r and "0.375" in r for r in summary_of(model).splitlines())
