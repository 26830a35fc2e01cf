"""add_exits: kinds of models that it takes, warns of or refuses."""

import keras
import numpy as np
import pytest

import keras_dynamic as kd

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 8)).astype("float32")
Y = RNG.integers(0, 3, 64)


def layers(activation="softmax"):
    hidden = [keras.layers.Dense(16, "relu", name=f"step_{i}") for i in (1, 2, 3)]
    return [*hidden, keras.layers.Dense(3, activation, name="answer")]


class TestSequentialWithoutInput:
    @pytest.mark.parametrize("kind", ["fit", "called", "loaded", "nested"])
    def test_its_batch_size_is_made_free(self, kind, tmp_path):
        network = keras.Sequential(layers())
        if kind == "nested":
            *hidden, last = network.layers
            network = keras.Sequential([keras.Sequential(hidden), last])
        if kind == "called":
            network(X[:5])
        else:
            network.compile("adam", "sparse_categorical_crossentropy")
            network.fit(X, Y, verbose=0)
        if kind == "loaded":
            network.save(tmp_path / "network.keras")
            network = keras.models.load_model(tmp_path / "network.keras")
        fixed = network.input_shape
        assert fixed[0] in (5, 32)
        model = kd.add_exits(network, at=("step_1", "step_2"))
        assert model.input_shape == (None, 8) and network.input_shape == fixed
        assert {id(w) for w in network.weights} <= {id(w) for w in model.weights}
        rule = kd.rules.MaxProbability([None, None])
        outputs = model.predict_dynamic(X[:7], rule=rule, verbose=0).outputs
        np.testing.assert_allclose(outputs, network(X[:7]), atol=1e-6)

    def test_not_with_states(self):
        layers = [
            keras.layers.LSTM(4, stateful=True, return_sequences=True, name="first"),
            keras.layers.LSTM(4),
            keras.layers.Dense(3, "softmax"),
        ]
        network = keras.Sequential(layers, name="states")
        network(np.zeros((4, 5, 8), "float32"))
        with pytest.raises(ValueError, match="batches of 4, with 'first', which is st"):
            kd.add_exits(network, at="first")

    def test_what_to_do_before_the_first_batch(self):
        with pytest.raises(ValueError, match=r"Begin it with a `keras.Input`, or call"):
            kd.add_exits(keras.Sequential(layers()))


def network(activation="softmax", kind=keras.Model):
    inputs = hidden = keras.Input((8,))
    for layer in layers(activation):
        hidden = layer(hidden)
    return kind(inputs, hidden, name="network")


class TestOwnAnswer:
    @pytest.mark.parametrize("activation", ["softmax", "log_softmax"])
    def test_other_classes_on_top_of_it(self, activation):
        with pytest.warns(UserWarning, match=f"`units=5`.*'network'.*{activation} ove"):
            model = kd.add_exits(network(activation), at="step_1", units=5)
        assert model.exit_names == ["exit_1", "final"]

    @pytest.mark.parametrize(("activation", "units"), [(None, 5), ("softmax", 3)])
    def test_no_word_for_features_or_its_own_classes(self, activation, units):
        kd.add_exits(network(activation), at="step_1", units=units)


class OwnStep(keras.Model):
    def train_step(self, data):
        raise NotImplementedError


class TestSubclasses:
    def test_own_training_is_left_behind_with_a_word(self):
        with pytest.warns(UserWarning, match="`OwnStep` has its own train_step, which"):
            model = kd.add_exits(network(kind=OwnStep), at="step_1")
        assert type(model).train_step is not OwnStep.train_step


def test_name_is_not_an_argument_of_exits():
    for function in (kd.add_exits, kd.suggest_exits):
        with pytest.raises(ValueError, match="`name` cannot be given.*name='mine'"):
            function(network(), name="mine")
