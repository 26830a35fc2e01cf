"""Construction, training, saving: what makes a `DynamicModel` a Keras model."""

import copy
import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_dynamic as kd
from tests.layers.checks import two_replicas
from tests.models.small_models import dense_data, dense_model, middle_rule

CE = "sparse_categorical_crossentropy"


def cross_entropies(model, x, y, weight=None):
    """Mean cross-entropy of each exit, by hand."""
    weight = np.ones(len(y)) if weight is None else weight
    return [
        np.mean(-np.log(output[np.arange(len(y)), y]) * weight)
        for output in model.predict(x, verbose=0)
    ]


class TestConstruction:
    def test_it_is_a_functional_keras_model(self):
        model = dense_model()
        assert isinstance(model, keras.Model) and len(model.layers) == 7
        assert model.exit_names == ["exit_1", "exit_2", "final"]
        outputs = model.predict(dense_data()[0], verbose=0)
        assert [output.shape for output in outputs] == [(40, 4)] * 3
        assert len(model(np.ones((2, 6), "float32"))) == 3

    def test_exit_names_are_made_unique(self):
        inputs = keras.Input((3,))
        inner_input = keras.Input((3,))
        hidden = layers.Dense(3)(inner_input)
        heads = [
            kd.EarlyExit(2, name="head")(hidden),
            layers.Dense(2, name="last")(hidden),
        ]
        inner = keras.Model(inner_input, heads)
        model = kd.DynamicModel(
            inputs, [*inner(inputs), *inner(layers.Dense(3)(inputs))]
        )
        assert model.exit_names == ["head", "last", "head_1", "last_1"]
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        with pytest.raises(ValueError, match="'head' gives probabilities"):
            model.compile("sgd", loss)

    def test_nested_in_another_model(self):
        inner = dense_model()
        inputs = keras.Input((6,))
        outer = kd.DynamicModel(inputs, inner(layers.Dense(6)(inputs)))
        outer.compile("sgd", CE, metrics=["accuracy"])
        x, y = dense_data()
        logs = outer.fit(x, y, verbose=0).history
        assert {"exit_1_loss", "exit_2_loss", "final_loss"} < set(logs)
        rule = middle_rule(outer, x)
        p = outer.predict_dynamic(x, rule=rule, verbose=0)
        assert (np.bincount(p.exit_index, minlength=3) > 0).all()
        assert p.segment_rows[2] < 40

    @pytest.mark.parametrize(
        "make, message",
        [
            (lambda i, o: kd.DynamicModel(i, [o]), "at least one early exit.*1 output"),
            (lambda i, o: kd.DynamicModel(i, o), "at least one early exit.*1 output"),
            (lambda i, o: kd.DynamicModel(), "functional.*args=()"),
            (lambda i, o: kd.DynamicModel(keras.Model(i, o)), "is functional"),
            (
                lambda i, o: kd.DynamicModel(i, [o, layers.Dense(4)(i)]),
                r"same shape.*\(None, 3\), \(None, 4\)",
            ),
            (
                lambda i, o: kd.DynamicModel(i, [i[:, None], i[:, None] + 1]),
                "same shape",
            ),
            (lambda i, o: kd.DynamicModel(i, [o, o]), "one twice"),
            (lambda i, o: kd.DynamicModel(i, {"a": o, "b": o + 1}), "must be a list"),
        ],
    )
    def test_wrong_arguments(self, make, message):
        inputs = keras.Input((2,))
        output = layers.Dense(3)(inputs)
        with pytest.raises(ValueError, match=message):
            make(inputs, output)

    def test_a_fixed_batch_size_is_an_error(self):
        inputs = keras.Input((2,), batch_size=4)
        outputs = [layers.Dense(3)(inputs), layers.Dense(3)(inputs)]
        with pytest.raises(ValueError, match=r"batch size free.*\(4, 2\)"):
            kd.DynamicModel(inputs, outputs)

    def test_an_exit_with_targets_would_count_twice(self):
        inputs, targets = keras.Input((2,)), keras.Input((), dtype="int32")
        early = kd.EarlyExit(3, name="early")(inputs, targets=targets)
        with pytest.raises(ValueError, match="'early' was called with `targets`"):
            kd.DynamicModel([inputs, targets], [early, layers.Dense(3)(inputs)])

    def test_a_rule_with_the_wrong_number_of_thresholds(self):
        with pytest.raises(ValueError, match=r"2 early exits.*threshold=\[0.5\]"):
            dense_model(exit_rule=kd.rules.MaxProbability([0.5]))
        model = dense_model()
        with pytest.raises(ValueError, match="2 early exits"):
            model.exit_rule = kd.rules.Entropy([0.1, 0.2, 0.3])
        assert isinstance(model.exit_rule, kd.rules.MaxProbability)


class TestLoss:
    def test_total_is_the_weighted_sum_of_the_exits(self):
        model = dense_model(loss_weight=0.3)
        x, y = dense_data()
        first, second, final = cross_entropies(model, x, y)
        # One batch: Keras averages the exits' own losses over batches, not samples.
        logs = model.evaluate(x, y, batch_size=40, verbose=0, return_dict=True)
        assert logs["loss"] == pytest.approx(0.3 * first + second + final, rel=1e-5)
        # Each exit's own loss is shown without its weight.
        assert logs["exit_1_loss"] == pytest.approx(first, rel=1e-5)
        assert logs["final_loss"] == pytest.approx(final, rel=1e-5)

    def test_training_gives_the_gradient_of_that_sum(self):
        x, y = dense_data()
        model = dense_model(loss_weight=0.3)
        before = model.get_layer("exit_1").classifier.bias.numpy()
        probabilities = model.predict(x, verbose=0)[0]
        model.compile(keras.optimizers.SGD(0.5), CE)
        model.train_on_batch(x, y)
        # d CE / d bias = mean(p - one_hot), times lambda and the learning rate.
        step = 0.5 * 0.3 * np.mean(probabilities - np.eye(4)[y], axis=0)
        after = model.get_layer("exit_1").classifier.bias.numpy()
        np.testing.assert_allclose(after, before - step, atol=1e-6)

    def test_added_losses_count(self):
        inputs = keras.Input((6,))
        hidden = layers.Dense(4, kernel_regularizer=keras.regularizers.L2(0.1))(inputs)
        outputs = [kd.EarlyExit(4)(hidden), layers.Dense(4, "softmax")(hidden)]
        model = kd.DynamicModel(inputs, outputs)
        model.compile("sgd", CE)
        x, y = dense_data()
        penalty = 0.1 * np.sum(model.layers[1].kernel.numpy() ** 2)
        expected = sum(cross_entropies(model, x, y)) + penalty
        logs = model.evaluate(x, y, verbose=0, return_dict=True)
        assert logs["loss"] == pytest.approx(expected, rel=1e-5)

    def test_lambda_can_change_during_fit(self):
        model = dense_model(loss_weight=1.0)
        model.compile(keras.optimizers.SGD(0.0), CE)
        x, y = dense_data()
        first, second, final = cross_entropies(model, x, y)

        class Halve(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch, logs=None):
                self.model.get_layer("exit_1").loss_weight = 0.5**epoch

        losses = model.fit(x, y, epochs=3, callbacks=[Halve()], verbose=0).history[
            "loss"
        ]
        expected = [0.5**epoch * first + second + final for epoch in range(3)]
        assert losses == pytest.approx(expected, rel=1e-5)

    def test_loss_weights_of_compile_override_the_exits_own(self):
        model = dense_model(loss_weight=0.3)
        x, y = dense_data()
        first, second, final = cross_entropies(model, x, y)
        for weights, expected in (
            ([0.1, 0.2, 2.0], 0.1 * first + 0.2 * second + 2 * final),
            ({"exit_2": 0.0}, 0.3 * first + final),
        ):
            model.compile("sgd", CE, loss_weights=weights)
            logs = model.evaluate(x, y, verbose=0, return_dict=True)
            assert logs["loss"] == pytest.approx(expected, rel=1e-5)

    def test_lambda_of_an_exit_under_a_weightless_activation(self):
        inputs = keras.Input((6,))
        logits = kd.EarlyExit(4, activation=None, loss_weight=0.25, name="early")(
            inputs
        )
        probabilities = layers.Activation("softmax", dtype="float32")(logits)
        outputs = [probabilities, layers.Dense(4, "softmax")(inputs)]
        model = kd.DynamicModel(inputs, outputs)
        model.compile("sgd", CE)
        assert model.exit_names[0] == "early"
        x, y = dense_data()
        first, final = cross_entropies(model, x, y)
        logs = model.evaluate(x, y, verbose=0, return_dict=True)
        assert logs["loss"] == pytest.approx(0.25 * first + final, rel=1e-5)

    @pytest.mark.parametrize("by", ["list", "dict"])
    def test_losses_targets_and_weights_for_each_output_as_keras_means_it(self, by):
        model = dense_model()
        names = model.exit_names
        x, y = dense_data()
        targets = [np.roll(y, k) for k in range(3)]
        losses = [CE, keras.losses.SparseCategoricalCrossentropy(), CE]
        weights = [0.5, 1.0, 2.0]
        first, second, final = (
            cross_entropies(model, x, target)[k] for k, target in enumerate(targets)
        )
        if by == "dict":
            losses, weights, targets = (
                dict(zip(names, values, strict=True))
                for values in (losses, weights, targets)
            )
        model.compile("sgd", losses, loss_weights=weights)
        logs = model.evaluate(x, targets, verbose=0, return_dict=True)
        expected = 0.5 * first + second + 2 * final
        assert logs["loss"] == pytest.approx(expected, rel=1e-5)

    def test_losses_and_targets_of_some_exits_only(self):
        model = dense_model()
        model.compile("sgd", {"final": CE})
        x, y = dense_data()
        logs = model.evaluate(x, {"final": y}, verbose=0, return_dict=True)
        assert logs["loss"] == pytest.approx(cross_entropies(model, x, y)[2], rel=1e-5)
        with pytest.raises(ValueError, match="`y` must have targets for exit 'final'"):
            model.evaluate(x, {"exit_1": y}, verbose=0)
        with pytest.raises(ValueError, match="unknown keys: \\['last'\\]"):
            model.evaluate(x, {"last": y}, verbose=0)

    def test_wrong_numbers_and_names(self):
        model = dense_model()
        with pytest.raises(ValueError, match="`loss` must have one entry for each"):
            model.compile("sgd", [CE, CE])
        with pytest.raises(ValueError, match="unknown keys: \\['exit_9'\\]"):
            model.compile("sgd", {"exit_9": CE})
        with pytest.raises(ValueError, match="`loss_weights` must have one entry"):
            model.compile("sgd", CE, loss_weights=[1.0])
        with pytest.raises(ValueError, match="`loss_weights` must be a list.*0.5"):
            model.compile("sgd", CE, loss_weights=0.5)

    def test_sample_and_class_weights(self):
        model = dense_model(metrics=[])
        model.compile("sgd", CE, weighted_metrics=["accuracy"])
        x, y = dense_data()
        weight = np.random.default_rng(0).uniform(size=40)
        logs = model.evaluate(x, y, sample_weight=weight, verbose=0, return_dict=True)
        expected = sum(cross_entropies(model, x, y, weight))
        assert logs["loss"] == pytest.approx(expected, rel=1e-5)
        right = model.predict(x, verbose=0)[2].argmax(1) == y
        assert logs["accuracy"] == pytest.approx(np.average(right, weights=weight))
        model.compile(keras.optimizers.SGD(0.0), CE)
        by_class = {0: 1.0, 1: 2.0, 2: 0.5, 3: 0.0}
        logs = model.fit(x, y, class_weight=by_class, verbose=0).history
        weight = np.vectorize(by_class.get)(y)
        expected = sum(cross_entropies(model, x, y, weight))
        assert logs["loss"][0] == pytest.approx(expected, rel=1e-5)


class TestMetrics:
    def test_once_for_each_exit_in_dict_and_list(self):
        model = dense_model(metrics=["accuracy"])
        x, y = dense_data()
        logs = model.evaluate(x, y, verbose=0, return_dict=True)
        names = {"loss", "exit_1_loss", "exit_2_loss", "final_loss"}
        names |= {"accuracy", "exit_1_accuracy", "exit_2_accuracy"}
        assert set(logs) == names
        for name, output in zip(
            ("exit_1_accuracy", "exit_2_accuracy", "accuracy"),
            model.predict(x, verbose=0),
            strict=True,
        ):
            assert logs[name] == pytest.approx(np.mean(output.argmax(1) == y))
        listed = model.evaluate(x, y, verbose=0)
        assert sorted(listed) == pytest.approx(sorted(logs.values()))
        history = model.fit(x, y, validation_data=(x, y), verbose=0).history
        assert set(history) == names | {f"val_{name}" for name in names}

    @pytest.mark.parametrize("number", [1, 2, 3])
    def test_a_flat_list_applies_to_every_exit_whatever_its_length(self, number):
        metrics = [
            "accuracy",
            keras.metrics.SparseTopKCategoricalAccuracy(2, name="top2"),
            keras.metrics.sparse_categorical_crossentropy,
        ][:number]
        model = dense_model(metrics=metrics)
        x, y = dense_data()
        logs = model.evaluate(x, y, verbose=0, return_dict=True)
        assert len(logs) == 4 + 3 * number
        assert len(model.evaluate(x, y, verbose=0)) == 4 + 3 * number
        if number == 3:
            first, _, final = cross_entropies(model, x, y)
            name = "sparse_categorical_crossentropy"
            assert logs[f"exit_1_{name}"] == pytest.approx(first, rel=1e-5)
            assert logs[name] == pytest.approx(final, rel=1e-5)

    def test_metrics_with_a_state_are_not_shared_between_exits(self):
        top2 = keras.metrics.SparseTopKCategoricalAccuracy(2, name="top2")
        model = dense_model(metrics=[top2])
        x, y = dense_data()
        logs = model.evaluate(x, y, verbose=0, return_dict=True)
        for name, output in zip(
            ("exit_1_top2", "exit_2_top2", "top2"),
            model.predict(x, verbose=0),
            strict=True,
        ):
            best = np.argsort(-output, axis=1)[:, :2]
            assert logs[name] == pytest.approx((best == y[:, None]).any(1).mean())

    def test_metrics_by_exit(self):
        x, y = dense_data()
        model = dense_model()
        for metrics in (
            {"exit_2": ["accuracy"], "final": "accuracy"},
            [[], ["accuracy"], ["accuracy"]],
        ):
            model.compile("sgd", CE, metrics=metrics)
            logs = model.evaluate(x, y, verbose=0, return_dict=True)
            assert {name for name in logs if "accuracy" in name} == {
                "exit_2_accuracy",
                "accuracy",
            }
            assert "accuracy" in model.evaluate_dynamic(x, y, verbose=0)

    def test_metric_objects_by_exit_keep_their_names_when_compiled_or_loaded_again(
        self, tmp_path
    ):
        def accuracy():
            return keras.metrics.SparseCategoricalAccuracy(name="acc")

        x, y = dense_data()
        for metrics in (
            [[accuracy()], [], [accuracy()]],
            {"exit_1": [accuracy()], "final": [accuracy()]},
        ):
            model = dense_model()
            for _ in range(2):
                model.compile("sgd", CE, metrics=metrics)
                logs = model.evaluate(x, y, verbose=0, return_dict=True)
                assert {n for n in logs if "acc" in n} == {"exit_1_acc", "acc"}
            model.save(tmp_path / "model.keras")
            loaded = keras.saving.load_model(tmp_path / "model.keras")
            again = loaded.evaluate(x, y, verbose=0, return_dict=True)
            assert again == pytest.approx(logs)

    def test_a_metric_weighted_and_unweighted(self):
        model = dense_model()
        model.compile("sgd", CE, metrics=["accuracy"], weighted_metrics=["accuracy"])
        x, y = dense_data()
        weight = np.arange(40.0)
        logs = model.evaluate(x, y, sample_weight=weight, verbose=0, return_dict=True)
        assert {name for name in logs if "accuracy" in name} == {
            *(f"{exit_name}accuracy" for exit_name in ("exit_1_", "exit_2_", "")),
            *(
                f"{exit_name}weighted_accuracy"
                for exit_name in ("exit_1_", "exit_2_", "")
            ),
        }
        right = model.predict(x, verbose=0)[2].argmax(1) == y
        assert logs["accuracy"] == pytest.approx(right.mean())
        expected = np.average(right, weights=weight)
        assert logs["weighted_accuracy"] == pytest.approx(expected, rel=1e-5)
        listed = model.evaluate(x, y, sample_weight=weight, verbose=0)
        assert sorted(listed) == pytest.approx(sorted(logs.values()))


class TestTraining:
    def test_it_learns(self):
        x, y = dense_data(400)
        model = dense_model()
        model.compile(keras.optimizers.Adam(0.02), CE, metrics=["accuracy"])
        logs = model.fit(x, y, epochs=12, verbose=0).history
        assert logs["accuracy"][-1] > 0.85 and logs["exit_1_accuracy"][-1] > 0.85

    def test_data_of_every_kind(self):
        x, y = dense_data()
        expected = dense_model().evaluate(x, y, verbose=0)

        class Sequence(keras.utils.PyDataset):
            def __len__(self):
                return 2

            def __getitem__(self, index):
                part = slice(20 * index, 20 * index + 20)
                return x[part], y[part]

        model = dense_model()
        dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(20)
        for data in (dataset, Sequence()):
            keras.utils.set_random_seed(1234)
            assert len(model.evaluate(data, verbose=0)) == len(expected)
            assert np.isfinite(model.fit(data, verbose=0).history["loss"]).all()

    @pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
    def test_mixed_precision(self, policy):
        keras.config.set_dtype_policy(policy)
        try:
            model = dense_model()
        finally:
            keras.config.set_dtype_policy("float32")
        x, y = dense_data(60)
        before = model.get_weights()
        losses = model.fit(x, y, epochs=2, verbose=0).history["loss"]
        assert np.isfinite(losses).all()
        assert any(
            (a != b).any() for a, b in zip(before, model.get_weights(), strict=True)
        )
        p = model.predict_dynamic(x, rule=kd.rules.MaxProbability(0.0), verbose=0)
        outputs = model.predict(x, verbose=0)[0]
        np.testing.assert_allclose(p.outputs, outputs, rtol=1e-2, atol=1e-2)
        assert model.calibrate(x, y, max_accuracy_drop=0.1).num_samples == 60

    def test_xla_gives_the_same_training(self):
        x, y = dense_data()
        histories = []
        for jit_compile in (False, True):
            keras.utils.set_random_seed(3)
            model = dense_model()
            model.compile("sgd", CE, metrics=["accuracy"], jit_compile=jit_compile)
            assert model.jit_compile == jit_compile
            histories.append(model.fit(x, y, epochs=2, verbose=0).history)
            model.predict_dynamic(x, verbose=0)
        assert histories[0]["loss"] == pytest.approx(histories[1]["loss"], rel=1e-4)

    def test_two_replicas_give_the_training_of_one(self):
        x, y = dense_data()
        strategy = two_replicas()
        losses, weights = [], []
        for scope in (strategy.scope, tf.distribute.get_strategy().scope):
            with scope():
                keras.utils.set_random_seed(3)
                model = dense_model(loss_weight=0.3)
            history = model.fit(x, y, batch_size=20, epochs=2, shuffle=False, verbose=0)
            losses.append(history.history["loss"])
            weights.append(model.get_weights())
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        for one, other in zip(*weights, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)

    def test_logits_and_probabilities_must_fit_the_loss(self):
        from_logits = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        with pytest.raises(ValueError, match="'exit_1' gives logits.*expects prob"):
            dense_model(activation=None)
        with pytest.raises(ValueError, match="'exit_1' gives prob.*expects logits"):
            dense_model(loss=from_logits)
        with pytest.raises(ValueError, match="one unit.*binary"):
            dense_model("sigmoid", units=1)
        binary = keras.losses.BinaryCrossentropy(from_logits=True)
        with pytest.raises(ValueError, match="gives prob.*expects logits"):
            dense_model("sigmoid", binary, units=1)
        assert dense_model(None, from_logits).road.kinds == ["logits"] * 3
        assert dense_model().road.kinds == ["probabilities"] * 3
        # A loss of the user's own says nothing: the activations decide.
        assert dense_model(None, lambda y, p: p[:, 0]).road.kinds == ["logits"] * 3


class TestSaving:
    def calibrated(self):
        model = dense_model(loss_weight=0.3)
        x, y = dense_data(200)
        model.compile(keras.optimizers.Adam(0.01), CE, metrics=["accuracy"])
        model.fit(x, y, epochs=4, verbose=0)
        model.calibrate(x, y, rule="entropy", max_accuracy_drop=0.02)
        model.get_layer("exit_1").loss_weight = 0.1
        return model, x, y

    def test_keras_file_brings_everything_back(self, tmp_path):
        model, x, y = self.calibrated()
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        assert isinstance(loaded, kd.DynamicModel)
        assert repr(loaded.exit_rule) == repr(model.exit_rule)
        one, other = (m.predict_dynamic(x, verbose=0) for m in (model, loaded))
        np.testing.assert_array_equal(one.exit_index, other.exit_index)
        np.testing.assert_allclose(one.outputs, other.outputs, atol=1e-6)
        np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-6)
        assert not np.allclose(loaded.calibration_temperatures, 1.0)
        assert loaded.get_layer("exit_1").loss_weight == 0.1
        assert loaded.evaluate(x, y, verbose=0) == pytest.approx(
            model.evaluate(x, y, verbose=0)
        )
        for mine, its in zip(
            model.optimizer.variables, loaded.optimizer.variables, strict=True
        ):
            np.testing.assert_array_equal(mine, its)
        history = loaded.fit(x, y, verbose=0).history
        assert history["loss"][0] == pytest.approx(
            model.fit(x, y, verbose=0).history["loss"][0], rel=1e-2
        )

    def test_copies_and_pickles(self):
        model, x, _ = self.calibrated()
        expected = model.predict_dynamic(x, verbose=0)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            p = twin.predict_dynamic(x, verbose=0)
            np.testing.assert_array_equal(p.exit_index, expected.exit_index)
            np.testing.assert_allclose(p.outputs, expected.outputs, atol=1e-6)

    def test_what_compile_was_given_is_what_is_saved(self):
        model = dense_model()
        metric = keras.metrics.SparseTopKCategoricalAccuracy(2, name="top2")
        model.compile("adam", CE, loss_weights=[0.1, 0.2, 1.0], metrics=[metric])
        config = model.get_compile_config()
        assert config["loss"] == CE and config["loss_weights"] == [0.1, 0.2, 1.0]
        assert len(config["metrics"]) == 1
        clone = kd.DynamicModel.from_config(model.get_config())
        clone.compile_from_config(config)
        clone.set_weights(model.get_weights())
        x, y = dense_data()
        assert clone.evaluate(x, y, verbose=0) == pytest.approx(
            model.evaluate(x, y, verbose=0)
        )

    def test_weight_files_bring_thresholds_and_temperatures(self, tmp_path):
        model, x, y = self.calibrated()
        model.save_weights(tmp_path / "w.weights.h5")
        other = dense_model(exit_rule=kd.rules.Entropy(), compiled=False)
        other.load_weights(tmp_path / "w.weights.h5")
        assert repr(other.exit_rule) == repr(model.exit_rule)
        np.testing.assert_array_equal(
            other.calibration_temperatures, model.calibration_temperatures
        )

    def test_weight_files_bring_the_kind_of_rule(self, tmp_path):
        model, x, y = self.calibrated()  # by entropy
        model.save_weights(tmp_path / "w.weights.h5")
        other = dense_model(compiled=False)  # made with max_probability
        other.load_weights(tmp_path / "w.weights.h5")
        assert repr(other.exit_rule) == repr(model.exit_rule)
        one, two = (m.predict_dynamic(x, verbose=0) for m in (model, other))
        np.testing.assert_array_equal(one.exit_index, two.exit_index)
        other.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        assert repr(loaded.exit_rule) == repr(model.exit_rule)

    def test_weights_with_thresholds_of_an_unknown_rule_are_noticed(self, tmp_path):
        class Own(kd.rules.ExitRule):
            def score(self, probabilities):
                return keras.ops.max(probabilities, axis=-1)

        model = dense_model(exit_rule=Own(0.3), compiled=False)
        model.save_weights(tmp_path / "w.weights.h5")
        other = dense_model(compiled=False)
        other.load_weights(tmp_path / "w.weights.h5")
        x, _ = dense_data()
        with pytest.raises(RuntimeError, match="neither its own MaxProbability nor"):
            other.predict_dynamic(x, verbose=0)
        other.exit_rule = kd.rules.MaxProbability(0.5)
        assert len(other.predict_dynamic(x, verbose=0)) == 40
        again = dense_model(exit_rule=Own(0.9), compiled=False)
        again.load_weights(tmp_path / "w.weights.h5")
        assert again.exit_rule.threshold == [0.3, 0.3]

    def test_restored_weights_bring_their_thresholds(self):
        model = dense_model()
        saved = model.get_weights()
        model.exit_rule = kd.rules.MaxProbability([0.3, None])
        model.set_weights(saved)
        assert model.exit_rule.threshold == [0.9, 0.9]
        model.exit_rule = kd.rules.MaxProbability([0.3, None])
        assert model.exit_rule.threshold == [0.3, None]
        numbers = model.get_weights()
        model.exit_rule = kd.rules.MaxProbability(0.5)
        model.set_weights(numbers)
        assert model.exit_rule.threshold == [0.3, None]

    def test_the_config_holds_the_users_own_numbers(self):
        model = dense_model(exit_rule=kd.rules.Margin([0.3, None]), loss_weight=0.3)
        config = model.get_config()
        assert config["exit_rule"]["config"]["threshold"] == [0.3, None]
        clone = kd.DynamicModel.from_config(config)
        assert clone.exit_rule.threshold == [0.3, None]
        assert clone.get_layer("exit_1").loss_weight == 0.3
        assert clone.exit_names == model.exit_names


class TestStripExits:
    def test_the_plain_network_gives_the_final_output(self):
        model = dense_model()
        x, _ = dense_data()
        plain = kd.strip_exits(model)
        assert type(plain) is not kd.DynamicModel and isinstance(plain, keras.Model)
        np.testing.assert_allclose(
            plain.predict(x, verbose=0), model.predict(x, verbose=0)[2], rtol=1e-6
        )
        assert [layer.name for layer in plain.layers][-1] == "final"
        assert not any(isinstance(layer, kd.EarlyExit) for layer in plain.layers)
        assert plain.get_layer("final") is model.get_layer("final")
        # 6*8+8 + 2*(8*8+8) + 8*4+4: the trunk and the final head, nothing else.
        assert plain.count_params() == 236

    def test_heads_inside_a_nested_model_go_as_well(self):
        inner = dense_model()
        inputs = keras.Input((6,))
        outer = kd.DynamicModel(inputs, inner(layers.Dense(6)(inputs)))
        plain = kd.strip_exits(outer)
        x, _ = dense_data()
        np.testing.assert_allclose(
            plain.predict(x, verbose=0), outer.predict(x, verbose=0)[2], rtol=1e-6
        )
        heads = (kd.EarlyExit, kd.DynamicModel)
        assert not any(isinstance(layer, heads) for layer in plain.layers)
        assert plain.count_params() == 6 * 6 + 6 + 236

    def test_nested_models_without_exits_stay_nested(self):
        trunk_input = keras.Input((6,))
        trunk = keras.Model(trunk_input, layers.Dense(5)(trunk_input), name="trunk")
        inputs = keras.Input((6,))
        hidden = trunk(inputs)
        model = kd.DynamicModel(
            inputs, [kd.EarlyExit(2)(hidden), layers.Dense(2, "softmax")(hidden)]
        )
        assert kd.strip_exits(model).get_layer("trunk") is trunk

    def test_other_models_are_an_error(self):
        for wrong in (keras.Sequential([layers.Dense(2)]), "model"):
            with pytest.raises(ValueError, match="`model` must be a functional"):
                kd.strip_exits(wrong)
