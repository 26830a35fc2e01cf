"""add_exits: names of places, and shares, where layers are nested, shared or alike."""

import keras
import numpy as np
import pytest

import keras_dynamic as kd

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 8)).astype("float32")


def tower(name, number=2):
    layers = [keras.layers.Dense(8, "relu", name=f"fc{i}") for i in range(1, number)]
    last = keras.layers.Dense(8, "relu", name=f"fc{number}")
    return keras.Sequential([keras.Input((8,)), *layers, last], name=name)


def towers(*parts):
    """Nested models and what they end in: 136 + 8 FLOPs a layer, and 72 the last."""
    last = keras.layers.Dense(3, "softmax", name="answer")
    return keras.Sequential([keras.Input((8,)), *parts, last], name="towers")


def shared():
    """One layer called five times."""
    layer = keras.layers.Dense(8, "relu", name="again")
    inputs = hidden = keras.Input((8,))
    for _ in range(5):
        hidden = layer(hidden)
    outputs = keras.layers.Dense(3, "softmax")(hidden)
    return keras.Model(inputs, outputs, name="shared")


class TestNames:
    @pytest.mark.parametrize(
        ("network", "names"),
        [
            (lambda: towers(tower("a"), tower("b")), ["a"]),
            (lambda: towers(tower("a"), tower("b"), tower("c")), ["a", "b"]),
            (lambda: towers(tower("a", number=3)), ["fc1", "fc2"]),
            (shared, []),
        ],
    )
    def test_are_those_that_add_exits_takes(self, network, names):
        network = network()
        suggestions = kd.suggest_exits(network)
        assert suggestions.names == names
        if names:
            model = kd.add_exits(network, at=suggestions.names)
            last = model.predict(X, verbose=0)[-1]
            np.testing.assert_allclose(last, network.predict(X, verbose=0), atol=1e-6)

    def test_of_a_nested_model_beside_one_of_a_layer_within_another(self):
        """The first place is the nested model's end, which is taken apart too."""
        network = towers(
            keras.Sequential(
                [keras.Input((8,)), keras.layers.Dense(8, name="one")], name="first"
            ),
            tower("second"),
        )
        model = kd.add_exits(network, at=["first", "fc1"])
        early = keras.Model(model.input, model.get_layer("exit_1").input)
        wanted = network.layers[0].predict(X, verbose=0)
        np.testing.assert_allclose(early.predict(X, verbose=0), wanted, atol=1e-6)

    def test_places_without_one_are_marked_and_shares_come_to_them(self):
        suggestions = kd.suggest_exits(shared())
        assert len(suggestions) == 4
        assert not any(cut.has_name for cut in suggestions)
        assert "no name of" in str(suggestions)
        model = kd.add_exits(shared(), at=[cut.share for cut in suggestions])
        assert model.exit_names[:2] == ["exit_1", "exit_2"]

    def test_of_two_layers_in_nested_models(self):
        with pytest.raises(ValueError, match="'fc1', which 2 layers of nested models"):
            kd.add_exits(towers(tower("a"), tower("b")), at="fc1")


class TestShares:
    def test_within_a_tower_that_cannot_be_opened(self):
        network = towers(tower("a"), tower("b"))
        (cut,) = kd.suggest_exits(network)
        assert 0.4 < cut.share < 0.5
        with pytest.warns(UserWarning, match="nearest to 0.24 .* after 'a', at 0.4"):
            model = kd.add_exits(network, at=0.24)
        assert model.get_layer("a").output is model.get_layer("exit_1").input

    def test_in_an_array(self):
        network = towers(tower("a"), tower("b"))
        for at in (np.array([0.45]), np.array(0.45), np.array(["a"])):
            assert kd.add_exits(network, at=at).exit_names == ["exit_1", "answer"]
        with pytest.raises(ValueError, match=r"in \(0, 1\).*Received: 1.5"):
            kd.add_exits(network, at=np.array([0.5, 1.5]))

    def test_of_a_model_that_is_its_own_head(self):
        network = keras.Sequential(
            [keras.Input((8,)), keras.layers.Dense(3)], name="lone"
        )
        with pytest.raises(ValueError, match="a layer before its last.*'lone'.*at=0.5"):
            kd.add_exits(network, at=0.5)
        assert len(kd.suggest_exits(network)) == 0


class TestNearNames:
    @pytest.mark.parametrize(
        ("name", "near"),
        [("A", "'a'"), ("FC_1", "'fc1', 'fc2', 'fc3'"), ("zzz", "'a', 'b', 'fc1'")],
    )
    def test_whatever_the_case_and_however_far(self, name, near):
        network = towers(tower("a", number=3), tower("b"))
        with pytest.raises(ValueError, match=f"'{name}'.*Did you mean {near}"):
            kd.add_exits(network, at=name)
