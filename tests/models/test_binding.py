import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_dynamic as kd
from tests.layers.small_gates import First, normal, odds


def gate(units=4, **arguments):
    arguments = {"gate": First(), "cost_weight": 0.5, **arguments}
    return kd.SkipGate(layers.Dense(units), **arguments)


def network(*hidden, head=2):
    inputs = keras.Input((4,))
    outputs = keras.Sequential([*hidden, layers.Dense(head)])(inputs)
    return keras.Model(inputs, outputs)


def test_by_hand():
    # The gate's layer: 2 * 4 * 4 + 4 = 36, and the gate itself only reshapes. The
    # head: 2 * 4 * 2 + 2 = 18. All: 54.
    first = gate(name="first")
    model = network(first)
    assert kd.bind_costs(model) == {"first": [pytest.approx(36 / 54)]}
    assert float(first.current_cost) == pytest.approx(36 / 54)
    # With one sum for each of 4 elements if additive.
    assert kd.bind_costs(network(gate(name="a", additive=True))) == {
        "a": [pytest.approx(36 / 58)]
    }
    # With the built-in gate: 2 * 4 * 16 + 16 + 16 + 2 * 16 + 1 = 193.
    shares = kd.bind_costs(network(gate(name="b", gate=None)))
    assert shares == {"b": [pytest.approx(36 / (54 + 193))]}


def test_what_is_filled_in_is_what_training_counts():
    first = kd.SkipGate(
        layers.Identity(), gate=odds(np.log(3)), cost_weight=0.5, name="first"
    )
    first.bind_costs([0.25])
    first(normal(3, 4), training=True)
    # p = 3/4.
    assert float(first.losses[0]) == pytest.approx(0.5 * 0.75 * 0.25)
    model = network(gate(cost_weight=1.0, gate=odds(np.log(3)), name="g"))
    kd.bind_costs(model)
    model(normal(3, 4), training=True)  # no warning
    # The odds are 2 * 4 + 1 = 9 FLOPs.
    assert float(model.losses[0]) == pytest.approx(0.75 * 36 / (54 + 9))


def test_nested_models_gates_and_choices():
    # The inner gate's layer of 36; the outer one's of 36 + 36 = 72.
    inner = gate(name="inner")
    outer = kd.SkipGate(
        keras.Sequential([inner, layers.Dense(4)]), gate=First(), name="outer"
    )
    # Two layers of 36 and 0, three for each of 4 elements of the mixture.
    choice = kd.LayerChoice(
        [layers.Dense(4), layers.Identity()], costs="auto", name="choice"
    )
    fixed = gate(cost=0.125, name="fixed")  # 36
    tokens = keras.Input((4,))
    part = keras.Model(tokens, choice(tokens))
    total = 72 + (36 + 0 + 12) + 36 + 18
    shares = kd.bind_costs(network(outer, part, fixed))
    assert shares == {
        "inner": [pytest.approx(36 / total)],
        "outer": [pytest.approx(72 / total)],
        "choice": [pytest.approx(36 / total), 0],
    }
    assert float(inner.current_cost) == pytest.approx(36 / total)
    assert float(outer.current_cost) == pytest.approx(72 / total)
    assert float(fixed.current_cost) == 0.125


def test_positions_count():
    inputs = keras.Input((3, 4))
    hidden = kd.SkipGate(layers.Dense(4), gate=First(), name="g")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(hidden))
    # Three positions in both.
    assert kd.bind_costs(model) == {"g": [pytest.approx(3 * 36 / (3 * 54))]}


def test_a_model_without_gates():
    assert kd.bind_costs(network()) == {}


def test_a_built_sequential():
    model = keras.Sequential([keras.Input((4,)), gate(name="g"), layers.Dense(2)])
    assert kd.bind_costs(model) == {"g": [pytest.approx(36 / 54)]}


def dynamic(one):
    inputs = keras.Input((4,))
    hidden = one(inputs)
    # Two heads of 2 * 4 * 2 + 2 + 10 = 28, of which the plain network has one.
    heads = [layers.Dense(2, "softmax")(hidden) for _ in range(2)]
    return kd.DynamicModel(inputs, heads)


def test_a_dynamic_model_does_it_by_itself():
    one = gate(name="g")
    model = dynamic(one)
    assert float(one.current_cost) == pytest.approx(36 / (36 + 28))
    assert kd.bind_costs(model) == {"g": [pytest.approx(36 / (36 + 28))]}
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.fit(normal(8, 4), np.zeros(8), verbose=0)  # no warning
    # Without a weight nobody needs it.
    idle = gate(cost_weight=0.0)
    dynamic(idle)
    assert float(idle.current_cost) == -1
    fixed = gate(cost=0.25)
    dynamic(fixed)
    assert float(fixed.current_cost) == 0.25


@pytest.mark.parametrize("bound", [True, False])
def test_saved_and_loaded(bound, tmp_path):
    model = network(gate(name="g"))
    if bound:
        kd.bind_costs(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    again = next(q for q in loaded._flatten_layers() if q.name == "g")
    assert again.get_config()["cost"] == "auto"
    x = normal(3, 4)
    mean = float(np.mean(tf.sigmoid(x[:, 0])))
    if bound:
        loaded(x, training=True)  # no warning
    else:
        with pytest.warns(UserWarning, match="kd.bind_costs"):
            loaded(x, training=True)
    cost = 36 / 54 if bound else 1
    assert float(loaded.losses[0]) == pytest.approx(0.5 * mean * cost, rel=1e-5)


class Loop(layers.Layer):
    """Whose FLOPs nobody can tell."""

    def call(self, inputs):
        halve = lambda x: x / 2  # noqa: E731
        return tf.while_loop(lambda x: tf.reduce_max(x) > 1, halve, [inputs])[0]


@pytest.mark.parametrize(
    "model",
    [
        lambda: layers.Dense(2),
        lambda: keras.Sequential([layers.Dense(2)]),
        lambda: gate(),
        lambda: None,
    ],
)
def test_what_is_no_graph(model):
    with pytest.raises(ValueError, match="`model` must be a functional or built Seq"):
        kd.bind_costs(model())


@pytest.mark.filterwarnings("ignore:The costs leave out:UserWarning")
def test_what_cannot_be_counted():
    model = network(kd.SkipGate(Loop(name="loop"), gate=First(), name="g"))
    message = r"'loop' \(Loop\) in 'g' cannot be counted.*`compute_flops"
    with pytest.raises(ValueError, match=message):
        kd.bind_costs(model)


def test_open_sizes():
    inputs = keras.Input((None, 4))
    hidden = kd.SkipGate(layers.Dense(4))(inputs)
    model = keras.Model(inputs, layers.GlobalAveragePooling1D()(hidden))
    with pytest.raises(ValueError, match="size"):
        kd.bind_costs(model)
