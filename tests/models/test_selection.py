"""Training with a selector: the mixture, the answer selected, files, gradients."""

import copy

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from scipy import special

import keras_dynamic as kd
from tests.layers.checks import two_replicas
from tests.models.small_models import dense_data
from tests.models.small_selected import chosen, selected_model, selector_of

CE = "sparse_categorical_crossentropy"


def soft_weights_of(model, x):
    """(rows, E + 1) by NumPy, from the logits of the selector's own small networks."""
    selector = selector_of(model)
    if isinstance(selector, kd.ExitSelector):
        return special.softmax(selector.head(x).numpy(), axis=1)
    first = model.get_layer("trunk_1")(x)
    features = [first, model.get_layer("trunk_2")(first)]
    s, t = (
        special.expit(gate(feature).numpy()[:, 0])
        for gate, feature in zip(selector.gates, features, strict=True)
    )
    return np.stack([s, (1 - s) * t, (1 - s) * (1 - t)], axis=1)


def cross_entropy(probabilities, y):
    if probabilities.shape[1] == 1:
        right = np.where(y[:, None] == 1, probabilities, 1 - probabilities)
        return -np.mean(np.log(right))
    return -np.mean(np.log(probabilities[np.arange(len(y)), y]))


def accuracy(probabilities, y):
    return np.mean(np.argmax(probabilities, axis=1) == y)


HEADS = {
    "softmax": ("softmax", 4, CE, lambda a: a),
    "logits": (
        None,
        4,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        lambda a: special.softmax(a, axis=1),
    ),
    "sigmoid": ("sigmoid", 1, "binary_crossentropy", lambda a: a),
    "binary_logits": (
        None,
        1,
        keras.losses.BinaryCrossentropy(from_logits=True),
        special.expit,
    ),
}


class TestLoss:
    @pytest.mark.parametrize("layerwise", [False, True])
    @pytest.mark.parametrize("head", HEADS)
    def test_total_is_the_mixtures_and_the_exits(self, head, layerwise):
        activation, units, loss, to_probabilities = HEADS[head]
        model = selected_model(
            layerwise,
            activation,
            loss,
            units,
            metrics=(),
            loss_weights=(0.3, 0.0),
            optimizer=keras.optimizers.SGD(0.0),
        )
        x, y = dense_data()
        if units == 1:
            y = (y > 1).astype("int64")
        *outputs, _ = model.predict(x, verbose=0)
        exits = [to_probabilities(output.astype("float64")) for output in outputs]
        weights = soft_weights_of(model, x)
        mixture = sum(weights[:, [e]] * exits[e] for e in range(3))
        first, _, last = (cross_entropy(p, y) for p in exits)
        mixed = cross_entropy(mixture, y)

        logs = model.evaluate(x, y, batch_size=40, verbose=0, return_dict=True)
        assert logs["loss"] == pytest.approx(mixed + 0.3 * first + last, rel=1e-5)
        assert logs["mixture_loss"] == pytest.approx(mixed, rel=1e-5)
        assert logs["exit_1_loss"] == pytest.approx(first, rel=1e-5)
        logs = model.fit(x, y, batch_size=40, verbose=0).history
        assert logs["loss"][0] == pytest.approx(mixed + 0.3 * first + last, rel=1e-5)

    def test_weights_given_to_compile_leave_the_mixture_alone(self):
        model, (x, y) = selected_model(), dense_data()
        model.compile("sgd", CE, loss_weights=[0, 0, 0])
        logs = model.evaluate(x, y, batch_size=40, verbose=0, return_dict=True)
        assert logs["loss"] == pytest.approx(logs["mixture_loss"], rel=1e-6)
        assert logs["final_loss"] > 0

    def test_regularizers_count_in_training_only(self):
        prior, costs = [0.2, 0.3, 0.5], [0.1, 0.4, 1.0]
        model = selected_model(
            optimizer=keras.optimizers.SGD(0.0),
            entropy_weight=0.7,
            prior=prior,
            prior_weight=0.9,
            exit_costs=costs,
            cost_weight=1.1,
        )
        x, y = dense_data()
        p = soft_weights_of(model, x)
        mean = p.mean(axis=0)
        added = -0.7 * np.mean(np.sum(p * np.log(p), axis=1))
        added += 0.9 * np.sum(mean * np.log(mean / prior)) + 1.1 * np.sum(mean * costs)
        plain = model.evaluate(x, y, batch_size=40, verbose=0)[0]
        loss = model.fit(x, y, batch_size=40, verbose=0).history["loss"][0]
        assert loss == pytest.approx(plain + added, rel=1e-5)

    def test_sample_weights_reach_the_mixture(self):
        model, (x, y) = selected_model(metrics=()), dense_data()
        weight = np.zeros(40)
        weight[5] = 40.0  # the mean over 40 is then that sample's own
        logs = model.evaluate(
            x, y, 40, verbose=0, sample_weight=weight, return_dict=True
        )
        alone = model.evaluate(x[5:6], y[5:6], verbose=0, return_dict=True)
        assert logs["mixture_loss"] == pytest.approx(alone["mixture_loss"], rel=1e-5)
        assert logs["loss"] == pytest.approx(alone["loss"], rel=1e-5)

    def test_targets_by_exit(self):
        model, (x, y) = selected_model(), dense_data()
        expected = model.evaluate(x, y, verbose=0)
        each = {name: y for name in model.exit_names}
        assert model.evaluate(x, each, verbose=0) == pytest.approx(expected)
        assert model.evaluate(x, [y, y, y], verbose=0) == pytest.approx(expected)


class TestMetrics:
    def test_each_is_what_its_name_says(self):
        model, (x, y) = selected_model(), dense_data()
        *outputs, weights = model.predict(x, verbose=0)
        soft = soft_weights_of(model, x)
        stacked = np.stack(outputs, axis=1)
        expected = {
            "exit_1_accuracy": accuracy(outputs[0], y),
            "exit_2_accuracy": accuracy(outputs[1], y),
            "final_accuracy": accuracy(outputs[2], y),
            "accuracy": accuracy(stacked[np.arange(40), weights.argmax(axis=1)], y),
            "mixture_accuracy": accuracy(np.sum(soft[..., None] * stacked, axis=1), y),
        }
        # All different, or a name would prove nothing.
        assert len(set(np.round(list(expected.values()), 4))) == 5
        logs = model.evaluate(x, y, verbose=0, return_dict=True)
        found = {name: logs[name] for name in logs if not name.endswith("loss")}
        assert found == pytest.approx(expected, abs=1e-6)
        # The same in a list, each once.
        values = model.evaluate(x, y, verbose=0)
        assert sorted(values) == pytest.approx(sorted(logs.values()))
        assert len(model.metrics_names) == len(set(model.metrics_names))
        history = model.fit(x, y, validation_data=(x, y), verbose=0).history
        for name in expected:
            assert {name, f"val_{name}"} < set(history)

    def test_the_dynamic_road_has_the_accuracy_of_the_answer_selected(self):
        model, (x, y) = selected_model(), dense_data()
        dense = model.evaluate(x, y, verbose=0, return_dict=True)
        dynamic = model.evaluate_dynamic(x, y, verbose=0)
        assert dynamic["accuracy"] == pytest.approx(dense["accuracy"])
        rates = np.bincount(chosen(model, x), minlength=3) / 40
        assert dynamic["exit_rates"] == pytest.approx(rates)

    def test_metrics_by_exit_and_as_objects(self):
        model, (x, y) = selected_model(), dense_data()
        metrics = {"final": [keras.metrics.SparseCategoricalAccuracy(name="right")]}
        model.compile("sgd", CE, metrics=metrics)
        logs = model.evaluate(x, y, verbose=0, return_dict=True)
        own = {name for name in logs if not name.endswith("loss")}
        assert own == {"final_right", "right", "mixture_right"}


class TestOutputs:
    def test_predict_gives_the_weights_last(self):
        model, (x, _) = selected_model(), dense_data()
        outputs = model.predict(x, verbose=0)
        assert [output.shape for output in outputs] == [(40, 4)] * 3 + [(40, 3)]
        expected = np.eye(3)[soft_weights_of(model, x).argmax(axis=1)]
        np.testing.assert_array_equal(outputs[-1], expected)
        assert model.exit_names == ["exit_1", "exit_2", "final"]
        assert repr(model.exit_rule) == "Selected()"

    @pytest.mark.parametrize("wrong", [2, 4])
    def test_weights_for_another_number_of_exits(self, wrong):
        inputs = keras.Input((6,))
        outputs = [layers.Dense(4, "softmax")(inputs) for _ in range(3)]
        weights = kd.ExitSelector(wrong)(inputs)
        with pytest.raises(ValueError, match=rf"\(None, 3\).*\(None, {wrong}\)"):
            kd.DynamicModel(inputs, outputs, selector=weights)

    def test_wrong_selectors(self):
        inputs, weights = keras.Input((6,)), keras.Input((2,), name="given")
        outputs = [layers.Dense(4, "softmax")(inputs) for _ in range(2)]
        with pytest.raises(TypeError, match="tensor of weights.*selector='soft'"):
            kd.DynamicModel(inputs, outputs, selector="soft")
        with pytest.raises(ValueError, match="that a layer gives.*'given'"):
            kd.DynamicModel([inputs, weights], outputs, selector=weights)

    def test_the_plain_network_is_the_last_exit(self):
        model, (x, _) = selected_model(units=3), dense_data(classes=3)
        plain = kd.strip_exits(model)
        expected = model.predict(x, verbose=0)[2]
        np.testing.assert_allclose(plain.predict(x, verbose=0), expected, rtol=1e-5)
        names = [layer.name for layer in plain.layers]
        assert "selector" not in names and "exit_1" not in names


class TestAutoCosts:
    @pytest.mark.parametrize("layerwise", [False, True])
    def test_the_model_fills_them_in(self, layerwise):
        model = selected_model(layerwise, exit_costs="auto", cost_weight=1.0)
        costs = model.exit_costs
        filled = selector_of(model).current_exit_costs.numpy()
        np.testing.assert_allclose(filled, costs / costs[-1], rtol=1e-6)
        assert filled[0] < filled[1] < filled[2] == 1
        assert selector_of(model).exit_costs == "auto"

    def test_nobody_filled_them_in(self):
        inputs = keras.Input((6,))
        layer = kd.ExitSelector(3, exit_costs="auto", cost_weight=1.0, name="choice")
        model = keras.Model(inputs, layer(inputs))
        model.compile("sgd", "mse")
        x = dense_data()[0]
        model.predict(x, verbose=0)
        with pytest.raises(RuntimeError, match="'choice' has `exit_costs='auto'`"):
            model.fit(x, np.ones((40, 3)), verbose=0)

    def test_costs_given_stay(self):
        model = selected_model(exit_costs=[0.1, 0.2, 0.3], cost_weight=1.0)
        filled = selector_of(model).current_exit_costs.numpy()
        np.testing.assert_allclose(filled, [0.1, 0.2, 0.3], rtol=1e-6)


class TestCopies:
    @pytest.mark.parametrize("layerwise", [False, True])
    @pytest.mark.parametrize("way", ["file", "deepcopy", "config", "clone"])
    def test_round_trips(self, way, layerwise, tmp_path):
        model = selected_model(layerwise, exit_costs="auto", cost_weight=0.1)
        x, y = dense_data()
        model.fit(x, y, verbose=0)
        if way == "file":
            model.save(tmp_path / "model.keras")
            again = keras.saving.load_model(tmp_path / "model.keras")
        elif way == "deepcopy":
            again = copy.deepcopy(model)
        else:
            if way == "config":
                again = kd.DynamicModel.from_config(model.get_config())
            else:
                again = keras.models.clone_model(model)
            again.set_weights(model.get_weights())
            again.compile("sgd", CE, metrics=["accuracy"])
        assert again.exit_names == model.exit_names
        assert repr(again.exit_rule) == "Selected()"
        expected = model.predict_dynamic(x, verbose=0)
        p = again.predict_dynamic(x, verbose=0)
        np.testing.assert_array_equal(p.exit_index, expected.exit_index)
        np.testing.assert_allclose(p.outputs, expected.outputs, rtol=1e-5)
        logs = model.evaluate(x, y, verbose=0, return_dict=True)
        assert again.evaluate(x, y, verbose=0, return_dict=True) == pytest.approx(logs)
        again.fit(x, y, verbose=0)  # the costs are known there too

    def test_nested_in_another_model(self):
        inner, (x, y) = selected_model(), dense_data()
        inputs = keras.Input((6,))
        *outputs, weights = inner(layers.Dense(6)(inputs))
        outer = kd.DynamicModel(inputs, outputs, selector=weights)
        outer.compile("sgd", CE, metrics=["accuracy"])
        logs = outer.fit(x, y, verbose=0).history
        assert {"mixture_loss", "accuracy", "final_accuracy"} < set(logs)
        p = outer.predict_dynamic(x, verbose=0)
        np.testing.assert_array_equal(p.exit_index, chosen(outer, x))
        assert p.segment_rows[2] < 40


def head_gradients(model, x, y):
    """Which exits' last layers get a gradient from a batch."""
    heads = [model.get_layer("exit_1"), model.get_layer("exit_2")]
    biases = [head.classifier.bias for head in heads]
    biases += [model.get_layer("final").bias, model.get_layer("trunk_3").bias]
    biases.append(selector_of(model).head.classifier.bias)
    with tf.GradientTape() as tape:
        outputs = model(x, training=True)
        loss = model.compute_loss(x, y, outputs, training=True)
    gradients = tape.gradient(loss, [bias.value for bias in biases])
    *found, trunk, selector = (np.abs(gradient).max() > 0 for gradient in gradients)
    return found, trunk, selector


class TestGradients:
    def test_a_hard_choice_trains_only_the_exit_chosen(self):
        model, (x, y) = selected_model(estimator="straight_through"), dense_data()
        model.compile("sgd", CE, loss_weights=[0, 0, 0])
        choice = chosen(model, x)
        assert set(choice) == {0, 1, 2}
        for exit_index in range(3):
            row = np.argmax(choice == exit_index)
            found, trunk, selector = head_gradients(
                model, x[row : row + 1], y[row : row + 1]
            )
            assert found == [e == exit_index for e in range(3)]
            # The trunk behind the exit gets none either; the selector always does.
            assert trunk == (exit_index == 2) and selector

    def test_a_soft_choice_trains_all(self):
        model, (x, y) = selected_model(estimator="soft"), dense_data()
        model.compile("sgd", CE, loss_weights=[0, 0, 0])
        assert head_gradients(model, x[:1], y[:1]) == ([True] * 3, True, True)


class TestWays:
    @pytest.mark.parametrize("layerwise", [False, True])
    def test_xla_changes_nothing(self, layerwise):
        x, y = dense_data()
        losses = []
        for jit in (False, True):
            keras.utils.set_random_seed(3)
            model = selected_model(layerwise, entropy_weight=0.1)
            model.compile("sgd", CE, metrics=["accuracy"], jit_compile=jit)
            history = model.fit(x, y, 20, epochs=2, shuffle=False, verbose=0).history
            logs = model.evaluate(x, y, verbose=0, return_dict=True)
            losses.append([*history["loss"], logs["mixture_loss"], logs["accuracy"]])
        np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)

    def test_mixed_precision(self):
        keras.config.set_dtype_policy("mixed_bfloat16")
        try:
            model = selected_model(entropy_weight=0.1, prior_weight=0.1)
        finally:
            keras.config.set_dtype_policy("float32")
        x, y = dense_data()
        assert np.isfinite(model.fit(x, y, verbose=0).history["loss"]).all()
        p = model.predict_dynamic(x, verbose=0)
        np.testing.assert_array_equal(p.exit_index, chosen(model, x))

    def test_two_replicas(self):
        x, y = dense_data()
        losses = []
        for mirrored in (False, True):
            keras.utils.set_random_seed(3)
            arguments = dict(entropy_weight=0.1, exit_costs="auto", cost_weight=0.2)
            if mirrored:
                with two_replicas().scope():
                    model = selected_model(**arguments)
            else:
                model = selected_model(**arguments)
            history = model.fit(x, y, 20, epochs=2, shuffle=False, verbose=0).history
            losses.append(history["loss"])
        np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_an_exit_named_like_a_derived_output_gets_a_name_of_its_own():
    inputs = keras.Input((6,))
    outputs = [
        kd.EarlyExit(3, name="mixture")(inputs),
        keras.layers.Dense(3, "softmax", name="selected")(inputs),
    ]
    weights = kd.ExitSelector(2)(inputs)
    model = kd.DynamicModel(inputs, outputs, selector=weights)
    assert model.exit_names == ["mixture_1", "selected_1"]
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    x, y = np.random.default_rng(0).normal(size=(8, 6)), np.arange(8) % 3
    logs = model.evaluate(x, y, verbose=0, return_dict=True)
    assert {"accuracy", "mixture_accuracy", "mixture_1_accuracy"} < set(logs)
