"""upcycle: dense pairs become mixtures of experts with the same output at the start."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_dynamic as kd
from tests.models.small_models import dense_data


def data(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def answers(model, x):
    return [np.asarray(a, "float32") for a in keras.tree.flatten(model(x))]


def equal(model, new, x, tolerance=1e-5):
    for one, other in zip(answers(model, x), answers(new, x), strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def random_weights(model, seed=0):
    """Weights that are all different, biases too, as after training."""
    generator = np.random.default_rng(seed)
    for weight in model.trainable_weights:
        weight.assign(generator.normal(size=weight.shape, scale=0.5))
    return model


def of_pair(between=(), features=6, first=None, second=None, tokens=5):
    """Input -> Dense -> `between` -> Dense -> Dense(2)."""
    inputs = keras.Input((tokens, 6))
    h = layers.Dense(12, name="first", **(first or {}))(inputs)
    for layer in between:
        h = layer(h)
    h = layers.Dense(features, name="second", **(second or {}))(h)
    return random_weights(keras.Model(inputs, layers.Dense(2, name="head")(h)))


def names(model):
    return [layer.name for layer in model.layers]


# The same output


@pytest.mark.parametrize(
    ("between", "first", "second", "activation"),
    [
        ([], {"activation": "gelu"}, {}, keras.activations.gelu),
        ([], {}, {}, keras.activations.linear),
        ([layers.Activation("tanh")], {}, {}, keras.activations.tanh),
        (
            [],
            {"activation": "relu", "use_bias": False, "kernel_regularizer": "l2"},
            {"use_bias": False, "kernel_regularizer": "l2"},
            keras.activations.relu,
        ),
    ],
)
def test_networks_of_the_built_in_form(between, first, second, activation):
    model = of_pair(between, first=first, second=second)
    before = model.get_weights()
    new = kd.upcycle(model, ["first"], 3)
    assert names(new) == [names(model)[0], "first_moe", "head"]
    mixture = new.get_layer("first_moe")
    assert mixture.hidden_units == 12
    assert mixture.activation is activation
    assert mixture.use_bias == first.get("use_bias", True)
    assert mixture.top_k == 2 and mixture.renormalize
    equal(model, new, data(4, 5, 6))
    for both in (["first", "second"], [("first", "second")]):
        assert names(kd.upcycle(model, both, 3)) == names(new)
    # Three copies of the pair and 6 * 3 weights of the router, beside 6 * 2 + 2.
    pair = 2 * 6 * 12 + (12 + 6 if mixture.use_bias else 0)
    assert new.count_params() == 3 * pair + 6 * 3 + 14
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("between", "options"),
    [
        ([layers.Dropout(0.5)], {"first": {"activation": "gelu"}}),
        ([], {"second": {"activation": "gelu"}}),
        ([], {"features": 7}),
        ([], {"second": {"use_bias": False}}),
        ([layers.LeakyReLU(negative_slope=0.3)], {}),
        ([layers.Activation("tanh")], {"first": {"activation": "relu"}}),
        ([], {"second": {"kernel_regularizer": "l2"}}),
        ([], {"first": {"activity_regularizer": "l2"}}),
        ([], {"first": {"bias_constraint": "non_neg"}}),
        ([], {"first": {"activation": layers.ReLU(max_value=0.4)}}),
        (
            [layers.Activation("relu"), layers.Dropout(0.5, seed=3)],
            {"second": {"activation": "tanh"}, "features": 3},
        ),
    ],
)
def test_everything_else_becomes_a_list_of_experts(between, options):
    model = of_pair(between, **options)
    new = kd.upcycle(model, ["first"], 3)
    mixture = new.get_layer("first_moe")
    assert [type(expert) for expert in mixture.experts] == [keras.Sequential] * 3
    kinds = [layers.Dense, *map(type, between), layers.Dense]
    assert [type(layer) for layer in mixture.experts[1].layers] == kinds
    equal(model, new, data(4, 5, 6))


def test_a_layer_that_is_frozen_alone_stays_so():
    model = of_pair()
    model.get_layer("second").trainable = False
    new = kd.upcycle(model, ["first"], 3)
    experts = new.get_layer("first_moe").experts
    assert all(len(expert.trainable_weights) == 2 for expert in experts)
    equal(model, new, data(4, 5, 6))


def test_dropout_stays_in_training():
    """Half of 12 equal units of value 1, doubled: the sum of 12 is no longer 12."""
    inputs = keras.Input((1,))
    one = {"kernel_initializer": "ones", "use_bias": False}
    h = layers.Dropout(0.5, seed=7)(layers.Dense(12, name="first", **one)(inputs))
    model = keras.Model(inputs, layers.Dense(1, **one)(h))
    new = kd.upcycle(model, ["first"], 2)
    x = np.ones((50, 1), "float32")
    np.testing.assert_allclose(new(x), 12.0)
    sums = np.asarray(new(x, training=True))
    assert len(np.unique(sums.round(4))) > 5 and abs(sums.mean() - 12) < 1.5
    seeds = [q.layers[1].seed for q in new.get_layer("first_moe").experts]
    assert seeds == [7, 8]


def test_the_blocks_of_a_vision_transformer():
    """As tutorials write it: both layers with an activation, a dropout after each."""
    inputs = keras.Input((9, 8))
    h = inputs
    for block in range(2):
        attended = layers.MultiHeadAttention(2, 4)(h, h)
        h = layers.Add()([attended, h])
        normed = layers.LayerNormalization()(h)
        for index, units in enumerate((16, 8)):
            name = f"block_{block}_dense_{index}"
            normed = layers.Dense(units, keras.activations.gelu, name=name)(normed)
            normed = layers.Dropout(0.1)(normed)
        h = layers.Add()([normed, h])
    model = keras.Model(inputs, layers.GlobalAveragePooling1D()(h))
    random_weights(model)
    new = kd.upcycle(model, ["block_1_dense_0"], 4, capacity_factor=1.0, seed=5)
    mixture = new.get_layer("block_1_dense_0_moe")
    assert mixture.capacity_factor == 1.0 and mixture.seed == 5
    assert new.get_layer("block_0_dense_0") and "block_1_dense_1" not in names(new)
    assert sum(isinstance(q, layers.Dropout) for q in new.layers) == 3
    equal(model, new, data(3, 9, 8))


@pytest.mark.parametrize("router", ["dense", "own", "top_3"])
def test_routers_whose_weights_sum_to_one(router):
    class Uniform(kd.routers.Router):
        def call(self, inputs, mask=None, training=False):
            logits = self.logits(inputs)
            experts = tf.broadcast_to(tf.range(self.num_experts), tf.shape(logits))
            weights = tf.ones_like(logits) / self.num_experts
            return kd.routers.Routing(weights, logits, experts)

    router = {
        "dense": "dense",
        "own": Uniform(3),
        "top_3": kd.routers.TopKRouter(3, top_k=3),
    }[router]
    inputs = keras.Input((6,))
    h = layers.Dense(8, "tanh", name="a")(inputs)
    h = layers.Dense(5, name="b")(h)
    h = layers.Dense(5)(layers.Dense(9, "relu", name="c")(h))
    model = random_weights(keras.Model(inputs, h))
    new = kd.upcycle(model, ["a", "c"], 3, router=router, balance_loss=None)
    equal(model, new, data(7, 6))
    # Each layer has a router of its own: 6 and 5 features for 3 experts.
    kernels = [q.router.kernel.shape for q in new.layers if isinstance(q, kd.SparseMoE)]
    assert kernels == [(6, 3), (5, 3)]


def test_one_choice_for_a_whole_input():
    for between in ([], [layers.Dropout(0.2)]):
        model = of_pair(between)
        new = kd.upcycle(model, ["first"], 2, route="input")
        assert new.get_layer("first_moe").route == "input"
        equal(model, new, data(4, 5, 6))


def test_seeds_differ_from_layer_to_layer():
    inputs = keras.Input((4,))
    h = layers.Dense(4)(layers.Dense(4, name="a")(inputs))
    model = keras.Model(inputs, layers.Dense(4)(layers.Dense(4, name="b")(h)))
    new = kd.upcycle(model, ["a", "b"], 2, seed=10)
    assert [new.get_layer(f"{name}_moe").seed for name in "ab"] == [10, 11]


# Graphs


def test_a_pair_called_twice_stays_one():
    inputs = keras.Input((6,))
    first, act, second = layers.Dense(8), layers.Activation("tanh"), layers.Dense(6)
    h = second(act(first(inputs)))
    h = second(act(first(h, training=None)))
    h = act(layers.Dense(3)(h))  # the activation is used elsewhere as well
    model = random_weights(keras.Model(inputs, h))
    new = kd.upcycle(model, [first], 3)
    assert sum(isinstance(layer, kd.SparseMoE) for layer in new.layers) == 1
    assert len(new.layers) == 4 and new.layers[-1].activation is keras.activations.tanh
    equal(model, new, data(5, 6))


def test_sequential_and_nested_models():
    def block():
        return keras.Sequential(
            [layers.Dense(8, "relu", name="in"), layers.Dense(4, name="out")]
        )

    blocks = [block() for _ in range(3)]
    stack = keras.Sequential([keras.Input((4,)), *blocks[:2], layers.Dense(2)])
    stack = random_weights(stack)
    first = blocks[1].layers[0]
    new = kd.upcycle(stack, [first], 2)
    assert type(new) is keras.Sequential
    assert [len(layer.layers) for layer in new.layers[:2]] == [2, 1]
    assert names(new.layers[1]) == ["in_moe"]
    equal(stack, new, data(5, 4))

    inputs = keras.Input((4,))
    inner = keras.Model(inputs, blocks[2](inputs) + inputs, name="inner")
    outer = random_weights(keras.Model(inputs, inner(inner(inputs))))
    new = kd.upcycle(outer, [("in", "out")], 2)
    assert names(new)[1:] == ["inner"]  # called twice, one layer
    assert isinstance(new.get_layer("inner").layers[1].layers[0], kd.SparseMoE)
    equal(outer, new, data(5, 4))


def test_within_gates_choices_and_wrappers():
    def block(name):
        return keras.Sequential(
            [
                keras.Input((4,)),
                layers.Dense(8, "relu", name=name),
                layers.Dense(4, name=f"{name}_out"),
            ]
        )

    inputs = keras.Input((3, 4))
    h = layers.TimeDistributed(block("a"))(inputs)
    h = layers.Flatten()(h)
    h = layers.Dense(4)(h)
    h = kd.SkipGate(block("b"), cost_weight=0.1, name="gate")(h)
    choice = kd.LayerChoice(
        [block("c"), layers.Identity()], costs="auto", cost_weight=0.1, name="choice"
    )
    model = random_weights(keras.Model(inputs, choice(h)))
    kd.bind_costs(model)
    new = kd.upcycle(model, list("abc"), 2)
    found = [q.name for q in new._flatten_layers() if isinstance(q, kd.SparseMoE)]
    assert sorted(found) == ["a_moe", "b_moe", "c_moe"]
    x = data(6, 3, 4)
    equal(model, new, x)
    # Costs that were filled in are there: no error, no warning.
    new(x, training=True)
    costs = [m.get_layer("choice").current_costs.numpy() for m in (model, new)]
    np.testing.assert_array_equal(*costs)


def test_masks_go_on_and_padding_gets_nothing():
    inputs = keras.Input((5,), dtype="int32")
    h = layers.Embedding(7, 6, mask_zero=True)(inputs)
    h = layers.Dense(6)(layers.Dense(8, "tanh", name="first")(h))
    pooled = layers.GlobalAveragePooling1D()(h)
    model = random_weights(keras.Model(inputs, [h, pooled]))
    new = kd.upcycle(model, ["first"], 3)
    x = np.array([[1, 2, 0, 0, 0], [3, 4, 5, 6, 1]])
    (tokens, mean), (new_tokens, new_mean) = answers(model, x), answers(new, x)
    np.testing.assert_allclose(mean, new_mean, atol=1e-5)
    np.testing.assert_allclose(tokens[x > 0], new_tokens[x > 0], atol=1e-5)
    assert (new_tokens[x == 0] == 0).all()


def test_a_dynamic_model_stays_one():
    inputs = keras.Input((6,))
    h = layers.Dense(6)(layers.Dense(12, "relu", name="first")(inputs))
    h = layers.Add()([h, inputs])
    exits = [kd.EarlyExit(4, name="early")(h), layers.Dense(4, "softmax")(h)]
    model = random_weights(kd.DynamicModel(inputs, exits))
    x, y = dense_data()
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.calibrate(x, y, rule="entropy", budget=2.0)
    new = kd.upcycle(model, ["first"], 3)
    assert type(new) is kd.DynamicModel and type(new.exit_rule) is kd.rules.Entropy
    np.testing.assert_array_equal(
        model.calibration_temperatures, new.calibration_temperatures
    )
    equal(model, new, x)
    one, other = (m.predict_dynamic(x, verbose=0) for m in (model, new))
    np.testing.assert_allclose(one.outputs, other.outputs, atol=1e-5)
    # The pair, 2 * 6 * 12 + 12 + 12 (relu) + 2 * 12 * 6 + 6 = 318, a second time; the
    # router, 2 * 6 * 3 = 36; a softmax and a sum of two: less than 10 for a feature.
    more = new.exit_costs - model.exit_costs
    assert (318 + 36 < more).all() and (more < 318 + 36 + 60).all()


# Precision, files, training


def test_mixed_precision_and_other_dtypes():
    x = data(4, 5, 6)
    for dtype in ("mixed_bfloat16", "float64"):
        options = {"dtype": dtype}
        for between in ([], [layers.Dropout(0.1, dtype=dtype)]):
            model = of_pair(between, first=options, second=options)
            new = kd.upcycle(model, ["first"], 3)
            mixture = new.get_layer("first_moe")
            assert mixture.dtype_policy.name == dtype
            assert mixture.router.kernel.dtype == "float32"
            kernel = mixture.experts[2].weights[0]
            assert kernel.dtype == model.get_layer("first").kernel.dtype
            # The weights, rounded to 8 bits, sum to 1 only nearly.
            equal(model, new, x, 0.1 if dtype == "mixed_bfloat16" else 1e-5)


@pytest.mark.parametrize("between", [[], [layers.Dropout(0.1)]])
def test_files(tmp_path, between):
    model = of_pair(between)
    new = kd.upcycle(model, ["first"], 3, z_weight=0.1)
    new.save(tmp_path / "new.keras")
    loaded = keras.saving.load_model(tmp_path / "new.keras")
    equal(new, loaded, data(4, 5, 6), 1e-6)
    assert loaded.get_layer("first_moe").z_weight == 0.1


@pytest.mark.parametrize("between", [[], [layers.Dropout(0.1, seed=1)]])
def test_training_makes_experts_different_and_leaves_the_original(between):
    model = of_pair(between)
    before = model.get_weights()
    new = kd.upcycle(model, ["first"], 3, seed=1)

    def kernels():
        mixture = new.get_layer("first_moe")
        return [expert.weights[0].numpy() for expert in mixture.experts]

    for kernel in kernels():
        np.testing.assert_array_equal(kernel, before[0])
    router = new.get_layer("first_moe").router.kernel.numpy()
    assert not new.compiled
    new.compile(keras.optimizers.SGD(0.05), "mse")
    new.fit(data(32, 5, 6), data(32, 5, 2, seed=1), epochs=2, verbose=0)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(kernels()[one] - kernels()[other]).max() > 1e-4
    assert np.abs(new.get_layer("first_moe").router.kernel - router).max() > 1e-6
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_frozen_pair_is_a_frozen_layer():
    for between in ([], [layers.Dropout(0.1)]):
        model = of_pair(between)
        for name in ("first", "second"):
            model.get_layer(name).trainable = False
        new = kd.upcycle(model, ["first"], 2)
        assert not new.get_layer("first_moe").trainable
        assert len(new.trainable_weights) == 2  # the head's


def test_what_is_frozen_stays_frozen():
    inputs = keras.Input((5, 6))
    attention = layers.MultiHeadAttention(2, 3)
    h = layers.Dense(6)(layers.Dense(8, name="first")(attention(inputs, inputs)))
    model = keras.Model(inputs, h)
    attention.trainable = False
    new = kd.upcycle(model, ["first"], 2)
    # A router, and two experts with two kernels and two biases.
    assert len(new.trainable_weights) == 1 + 2 * 4
    assert len(new.non_trainable_weights) == len(attention.weights)


# What does not fit


def branching():
    inputs = keras.Input((4,))
    h = layers.Dense(4, name="two_readers")(inputs)
    a = layers.Dense(4, name="a")(h)
    b = layers.Dense(4, name="b")(layers.LayerNormalization(name="norm")(h))
    c = layers.Dense(4, name="c")(layers.Add()([a, b]))
    c = layers.Dense(4, name="d")(layers.Dropout(0.1, noise_shape=(None, 1))(c))
    e = layers.Dense(4, name="e")(layers.LayerNormalization(name="after_d")(d := c))
    f = layers.Dense(4, name="f")(layers.Dropout(0.5, name="drop")(e, training=True))
    return keras.Model(inputs, [f, d])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["nobody"], "`layers` must be layers of `model`. Received: 'nobody'. .*'c'"),
        ([layers.Dense(2, name="foreign")], "Received: 'foreign'"),
        (["norm"], "must be Dense layers. Received: 'norm', a LayerNormalization"),
        (
            ["two_readers"],
            r"one layer only.*'two_readers', which goes to \['norm', 'a'",
        ),
        (["f"], r"'f', which goes to \[\"the model's output\"\]"),
        (["a"], "nothing but Activation and.* 'a' -> 'add.*', a Add"),
        (["c"], "nothing but Activation and.* 'c' -> 'dropout.*', a Dropout"),
        (["d"], r"'d', which goes to \['after_d', \"the model's output\"\]"),
        (["e"], "one tensor and nothing else. Received: 'drop' called with .*True"),
        ([], r"at least one layer. Received: layers=\[\]"),
    ],
)
def test_pairs_that_do_not_fit(given, message):
    with pytest.raises(ValueError, match=message):
        kd.upcycle(branching(), given, 2)


def chain():
    inputs, h = (keras.Input((4,)),) * 2
    for name in "abcd":
        h = layers.Dense(4, name=name)(h)
    return keras.Model(inputs, h)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"layers": "a"}, TypeError, "`layers` must be a list.*layers='a'"),
        ({"layers": [1]}, TypeError, "names or layers.*1 in layers="),
        ({"layers": [("a",)]}, TypeError, r"pairs of these.*\('a',\) in layers="),
        ({"layers": ["a", "a"]}, ValueError, "'a' twice"),
        ({"layers": [("a", "c")]}, ValueError, r"\('a', 'c'\); 'a' goes to 'b'"),
        ({"num_experts": 1}, ValueError, "`num_experts` must be.*num_experts=1"),
        ({"num_experts": 2.0}, TypeError, "`num_experts` must be an integer.*2.0"),
        ({"top_k": 1}, ValueError, "`top_k` must be at least 2: a single.*top_k=1"),
        ({"top_k": 3}, ValueError, "`top_k` must be at most.*top_k=3"),
        ({"router": "expert_choice"}, ValueError, "sum to 1.*router='expert_choice'"),
        ({"router": "dense", "top_k": 3}, ValueError, "top_k=3 with router='dense'"),
        (
            {"router": kd.routers.ExpertChoiceRouter(2)},
            ValueError,
            "sum to 1.*router=a ExpertChoiceRouter",
        ),
        (
            {"router": kd.routers.TopKRouter(2)},
            ValueError,
            "router=a TopKRouter with renormalize=False",
        ),
        ({"hidden_units": 3}, ValueError, "`hidden_units` follows.*hidden_units=3"),
        ({"renormalize": False}, ValueError, "`renormalize` follows.*=False"),
        ({"model": layers.Dense(2)}, ValueError, "`model` must be a functional.*Dense"),
        (
            {"model": keras.Sequential([layers.Dense(2)])},
            ValueError,
            "`model` must be a functional or built Sequential",
        ),
    ],
)
def test_arguments_that_do_not_fit(arguments, error, message):
    given = {"model": chain(), "layers": ["a"], "num_experts": 2, **arguments}
    with pytest.raises(error, match=message):
        kd.upcycle(**given)


def test_layers_that_are_used_in_several_ways():
    inputs = keras.Input((4,))
    a, b, c, d = (layers.Dense(4, name=name) for name in "abcd")
    one, other = b(a(inputs)), c(a(inputs))
    again = b(d(inputs))
    model = keras.Model(inputs, [one, other, again])
    with pytest.raises(
        ValueError, match="same way each time. Received: 'a' -> 'c', and"
    ):
        kd.upcycle(model, ["a"], 2)
    with pytest.raises(ValueError, match="'b' behind 'd', which is called elsewhere"):
        kd.upcycle(model, ["d"], 2)
    with pytest.raises(ValueError, match="same dtype policy.*float32 and float64"):
        kd.upcycle(of_pair(second={"dtype": "float64"}), ["first"], 2)


def test_names_that_are_not_unique():
    stacks = [
        keras.Sequential([layers.Dense(4, name="in"), layers.Dense(4)])
        for _ in range(2)
    ]
    model = keras.Sequential([keras.Input((4,)), *stacks])
    with pytest.raises(ValueError, match="'in', of which there are 2"):
        kd.upcycle(model, ["in"], 2)


def test_layers_that_cannot_be_reached():
    inner = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4, name="in"), layers.Dense(4, name="out")]
    )

    @keras.saving.register_keras_serializable("tests")
    class Holder(layers.Layer):
        def __init__(self, inner, **kwargs):
            super().__init__(**kwargs)
            self.inner = inner
            self.other = layers.Dense(4, name="alone")

        def call(self, x):
            return self.other(self.inner(x))

        def get_config(self):
            return {"inner": keras.saving.serialize_keras_object(self.inner)}

        @classmethod
        def from_config(cls, config):
            return cls(keras.saving.deserialize_keras_object(config["inner"]))

    inputs = keras.Input((4,))
    model = keras.Model(inputs, Holder(inner)(inputs))
    with pytest.raises(ValueError, match="copied as a whole. Received: 'in'"):
        kd.upcycle(model, ["in"], 2)
    with pytest.raises(ValueError, match="called by a functional.*'alone', which"):
        kd.upcycle(model, ["alone"], 2)
