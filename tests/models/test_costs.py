import keras
import numpy as np
import pytest
from keras import layers

import keras_dynamic as kd
from keras_dynamic.models.costs import Costs


def test_costs_by_hand():
    inputs = keras.Input((6,))
    hidden = layers.Dense(8)(inputs)  # 2*6*8 + 8 = 104
    early = layers.Dense(3, name="early")(hidden)  # 2*8*3 + 3 = 51
    deep = layers.Dense(5)(hidden)  # 2*8*5 + 5 = 85
    final = layers.Dense(3, name="final")(deep)  # 2*5*3 + 3 = 33
    model = kd.DynamicModel(inputs, [early, final])
    costs = model.compute_costs()
    assert costs == Costs(
        segments=(155, 118), exits=(155, 273), heads=(51, 118), reference=222
    )
    assert costs.shares() == pytest.approx((155 / 222, 273 / 222))
    assert model.exit_costs.tolist() == [155, 273]


def test_a_residual_over_an_exit_is_counted_once():
    inputs = keras.Input((4,))
    a = layers.Dense(4, use_bias=False)(inputs)  # 32
    early = layers.Dense(2, use_bias=False)(a)  # 16
    b = layers.Dense(4, use_bias=False)(a)  # 32
    merged = layers.add([a, b])  # 4
    final = layers.Dense(2, use_bias=False)(merged)  # 16
    costs = kd.DynamicModel(inputs, [early, final]).compute_costs()
    assert costs.segments == (48, 52) and costs.reference == 84


def test_a_shared_layer_is_counted_at_each_call():
    inputs = keras.Input((4,))
    shared = layers.Dense(4, use_bias=False)  # 32 a call
    a = shared(inputs)
    outputs = [layers.Dense(2)(a), layers.Dense(2)(shared(shared(a)))]
    costs = kd.DynamicModel(inputs, outputs).compute_costs()
    assert costs.segments == (32 + 18, 64 + 18)


def test_an_exits_layers_are_all_counted():
    inputs = keras.Input((8, 8, 4))
    hidden = layers.Conv2D(4, 1, use_bias=False)(inputs)  # 2*64*4*4 = 2048
    # Mean over 64 pixels of 4 channels: 256; 4 -> 5 with ReLU: 40 + 5 + 5;
    # 5 -> 3 with softmax: 30 + 3 + 5*3.
    early = kd.EarlyExit(3, pooling="average", hidden_units=5)(hidden)
    final = layers.Dense(3, use_bias=False)(layers.GlobalMaxPooling2D()(hidden))
    costs = kd.DynamicModel(inputs, [early, final]).compute_costs()
    assert costs.heads[0] == 256 + 50 + 48
    assert costs.segments[0] == 2048 + 354


class Mystery(layers.Layer):
    """A loop: nobody can tell how often it turns."""

    def call(self, inputs):
        return keras.ops.while_loop(
            lambda t: keras.ops.any(t > 1), lambda t: (t / 2,), (inputs,)
        )[0]

    def compute_output_shape(self, input_shape):
        return input_shape


def test_what_cannot_be_counted_is_named_in_one_warning():
    inputs = keras.Input((4,))
    first = Mystery(name="first_mystery")(inputs)
    outputs = [layers.Dense(2)(first), layers.Dense(2)(Mystery(name="second")(first))]
    model = kd.DynamicModel(inputs, outputs)
    with pytest.warns(UserWarning) as caught:
        costs = model.compute_costs()
        _ = model.exit_costs
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 1
    assert "'first_mystery' (Mystery)" in messages[0] and "'second'" in messages[0]
    assert "compute_flops" in messages[0]
    assert costs.unknown == ("'first_mystery' (Mystery)", "'second' (Mystery)")
    assert costs.segments == (18, 18)


def test_a_layer_can_say_its_own_cost():
    class Counted(Mystery):
        def compute_flops(self, input_shape):
            assert input_shape == (1, 4)
            return 1000

    inputs = keras.Input((4,))
    hidden = Counted()(inputs)
    model = kd.DynamicModel(inputs, [layers.Dense(2)(hidden), layers.Dense(2)(inputs)])
    assert model.compute_costs().segments == (1018, 18)


def test_several_inputs_of_unknown_size():
    a, b = keras.Input((None, 4)), keras.Input((6,))
    pooled = layers.GlobalAveragePooling1D()(layers.Dense(2, use_bias=False)(a))
    outputs = [layers.Dense(2)(b), layers.Dense(2)(layers.concatenate([pooled, b]))]
    model = kd.DynamicModel([a, b], outputs)
    # Ten tokens: 2*4*2 each, 20 numbers to pool; 8 -> 2 at the end.
    costs = model.compute_costs([(10, 4), (6,)])
    assert costs.segments == (26, 160 + 20 + 34)
    x = [np.ones((3, 10, 4), "float32"), np.ones((3, 6), "float32")]
    rule = kd.rules.MaxProbability(1.0)
    p = model.predict_dynamic(x, rule=rule, verbose=0)
    assert p.cost.tolist() == [240] * 3


def test_a_layer_whose_own_shape_stays_open():
    inputs = keras.Input((3, 4))
    # Keras reports (None, None, 5), even where 3 tokens are known.
    hidden = layers.EinsumDense("abc,cd->abd", output_shape=(None, 5))(inputs)
    assert hidden.shape == (None, None, 5)
    early = layers.Dense(2)(layers.GlobalAveragePooling1D()(hidden))
    late = layers.Dense(2)(layers.Flatten()(inputs))
    costs = kd.DynamicModel(inputs, [early, late]).compute_costs()
    # 2*3*4*5; 15 numbers to pool; 5 -> 2.
    assert costs.segments[0] == 120 + 15 + 22


class Doubled(layers.Layer):
    def call(self, inputs):
        return inputs + inputs

    def compute_output_shape(self, input_shape):
        return input_shape


def test_a_tensor_times_a_number_is_dense():
    inputs = keras.Input((None, 4))
    hidden = Doubled()(inputs * 0.5)  # which Keras takes for sparse
    early = layers.Dense(2)(layers.GlobalAveragePooling1D()(hidden))
    late = layers.Dense(2)(layers.GlobalAveragePooling1D()(inputs))
    costs = kd.DynamicModel(inputs, [early, late]).compute_costs((3, 4))
    # A product and a sum for 12 numbers; 12 to pool; 4 -> 2.
    assert costs.unknown == ()
    assert costs.segments[0] == 12 + 12 + 12 + 18


def test_wrong_shapes():
    inputs = keras.Input((None, 4))
    pooled = layers.GlobalAveragePooling1D()(inputs)
    model = kd.DynamicModel(inputs, [layers.Dense(2)(pooled), layers.Dense(2)(pooled)])
    with pytest.raises(TypeError, match="`input_shape` must be a tuple.*input_shape=7"):
        model.compute_costs(7)
    with pytest.raises(ValueError, match="each of the 1 inputs.*2 shapes"):
        model.compute_costs([(3, 4), (3,)])
    with pytest.raises(ValueError, match=r"must fit \(None, 4\).*\(3, 5\)"):
        model.compute_costs((3, 5))
