"""Fails when Keras changes something private that `_compat` uses."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_dynamic import _compat


def two_outputs():
    inputs = keras.Input((3,))
    hidden = layers.Dense(3, name="hidden")(inputs)
    outputs = [layers.Dense(2, name="a")(hidden), layers.Dense(2, name="b")(hidden)]
    return keras.Model(inputs, outputs)


def test_functional_nodes_are_the_calls_in_an_order_that_can_be_executed():
    model = two_outputs()
    calls = list(_compat.functional_nodes(model))
    assert [operation.name for operation, *_ in calls][0] == "hidden"
    assert sorted(operation.name for operation, *_ in calls[1:]) == ["a", "b"]
    operation, args, kwargs, outputs = calls[0]
    assert args == (model.inputs[0],) and outputs[0] is operation.output
    assert all(args == (operation.output,) for _, args, _, _ in calls[1:])
    assert {id(outputs[0]) for *_, outputs in calls[1:]} == set(map(id, model.outputs))


def test_functional_of():
    model = two_outputs()
    assert _compat.functional_of(model) is model
    sequential = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    inner = _compat.functional_of(sequential)
    assert [t.shape for t in inner.inputs + inner.outputs] == [(None, 3), (None, 2)]
    assert _compat.functional_of(keras.Sequential([layers.Dense(2)])) is None
    assert _compat.functional_of(layers.Dense(2)) is None

    class Own(keras.Model):
        def call(self, inputs):
            return inputs

    inputs = keras.Input((3,))
    assert _compat.functional_of(Own()) is None
    assert _compat.functional_of(Own(inputs, inputs + 1)) is None

    class Kept(keras.Model):
        def train_step(self, data):
            return {}

    kept = Kept(inputs, inputs + 1)
    assert _compat.functional_of(kept) is kept


def test_takes_a_graph():
    class Own(keras.Model):
        pass

    class Further(keras.Model):
        def __init__(self, inputs, outputs, factor):
            super().__init__(inputs, outputs)

    inputs = keras.Input((2,))
    assert _compat.takes_a_graph(type(keras.Model(inputs, inputs + 1)))
    assert _compat.takes_a_graph(type(Own(inputs, inputs + 1)))
    assert not _compat.takes_a_graph(Further)


def test_masks_travel_as_attributes():
    embedded = layers.Embedding(4, 2, mask_zero=True)(np.array([[1, 0]]))
    assert _compat.get_mask(embedded).numpy().tolist() == [[True, False]]
    tensor = tf.ones((1, 2, 2))
    assert _compat.get_mask(tensor) is None
    assert _compat.set_mask(tensor, None) is tensor
    _compat.set_mask(tensor, _compat.get_mask(embedded))
    pooled = layers.GlobalAveragePooling1D()(tensor * 1.0)
    assert layers.Masking().supports_masking and pooled.shape == (1, 2)
    assert _compat.get_mask(tensor).numpy().tolist() == [[True, False]]
    # A layer finds the mask there.
    x = _compat.set_mask(tf.constant([[[1.0], [5.0]]]), tf.constant([[True, False]]))
    assert layers.GlobalAveragePooling1D()(x).numpy().tolist() == [[1.0]]


def test_batches_of_arrays_and_datasets():
    x, y = np.arange(10.0).reshape(5, 2), np.arange(5)
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(2)
    for iterator in (
        _compat.BatchIterator(x=x, y=y, batch_size=2),
        _compat.BatchIterator(x=dataset),
    ):
        assert iterator.num_batches == 3
        seen = [(begin, end, data) for begin, end, data in iterator]
        assert [(begin, end) for begin, end, _ in seen] == [(0, 0), (1, 1), (2, 2)]
        batches = [batch for _, _, data in seen for batch in data]
        assert [batch[1].numpy().tolist() for batch in batches] == [[0, 1], [2, 3], [4]]
        assert all(tf.is_tensor(batch[0]) for batch in batches)


def test_an_end_of_data_is_a_warning_only_where_more_was_asked_for():
    def batches():
        yield (np.ones((2, 2)),)

    assert len(list(_compat.BatchIterator(x=batches()))) == 1
    with pytest.warns(UserWarning, match="ran out of data"):
        assert len(list(_compat.BatchIterator(x=batches(), steps_per_epoch=3))) == 1


def test_compile_config_can_be_replaced():
    model = two_outputs()
    model.compile("sgd", ["mse", "mse"])
    _compat.replace_compile_config(model, optimizer="sgd", loss="mae")
    assert model.get_compile_config() == {"optimizer": "sgd", "loss": "mae"}


def test_metrics_and_losses_are_made_as_compile_makes_them():
    y, probabilities = tf.constant([0, 1]), tf.constant([[0.9, 0.1], [0.8, 0.2]])
    metric = _compat.metric_for("accuracy", y, probabilities)
    metric.update_state(y, probabilities)
    assert metric.name == "accuracy" and float(metric.result()) == 0.5
    assert _compat.loss_for(None, y, probabilities) is None
    loss = _compat.loss_for("crossentropy", y, probabilities)
    expected = -np.mean(np.log([0.9, 0.2]))
    assert float(loss(y, probabilities)) == pytest.approx(expected)


def test_metrics_can_be_named_after_their_exit():
    model = two_outputs()
    model.compile("sgd", ["mse"] * 2, metrics=[["mae"], ["mae"]])
    x, y = np.ones((4, 3)), np.ones((4, 2))
    prefixes = ["first_", ""]
    _compat.rename_metrics_by_exit(model, [y, y], model(x), prefixes)
    logs = model.evaluate(x, [y, y], verbose=0, return_dict=True)
    assert {"first_mae", "mae"} < set(logs) and len(logs) == 5
    assert len(model.evaluate(x, [y, y], verbose=0)) == 5


def test_keras_rebuilds_a_functional_subclass_only_by_args_and_kwargs():
    # `DynamicModel.__init__` is written as it is for this reason.
    source = inspect.getsource(keras.Model.from_config)
    assert '"args"' in source and '"kwargs"' in source


def test_losses_of_a_call_can_be_dropped():
    layer = layers.Dense(2, activity_regularizer="l2")
    outer = keras.Sequential([layer])
    with _compat.keeping_losses(outer):
        outer(np.ones((1, 3), "float32"))
        assert len(outer.losses) == 1
    assert outer.losses == []


def test_losses_are_put_back():
    class Adding(layers.Layer):
        def call(self, inputs):
            self.add_loss(keras.ops.sum(inputs))
            with _compat.keeping_losses():
                # What another replica does to the layers that both share.
                self.add_loss(100.0 * keras.ops.sum(inputs))
            return inputs

    layer = Adding()
    layer(np.ones((1, 3), "float32"))
    assert [float(loss) for loss in layer.losses] == [3.0]


def test_losses_within_a_call_are_handed_out_and_taken_off():
    inner = layers.Dense(2, kernel_initializer="ones", activity_regularizer="l1")
    plain = layers.Dense(2)
    outer = keras.Sequential([inner, plain])
    x = np.ones((1, 3), "float32")
    found = []

    class Around(layers.Layer):
        def call(self, inputs):
            self.add_loss(tf.constant(7.0))
            inner(inputs)
            with _compat.losses_within(outer) as added:
                outer(inputs)
                outer(2 * inputs)
                found.extend(added())
            with _compat.losses_within(plain) as added:
                plain(inner(inputs))
                assert added() == []
            return inputs

    around = Around()
    around.inner = outer
    around(x)
    # Both outputs are 3, by 0.01 each, and then 6; outside of it the term stays that
    # was there, and what is not within `plain` is added as ever.
    assert [float(loss) for loss in found] == pytest.approx([0.06, 0.12])
    assert [float(loss) for loss in around.losses] == pytest.approx([7, 0.06, 0.06])


def test_losses_within_a_branch():
    layer = layers.Dense(2, kernel_initializer="ones", activity_regularizer="l1")
    layer.build((None, 3))

    @tf.function(autograph=False)
    def run(x):
        def branch():
            with _compat.losses_within(layer) as added:
                layer(x)
                (loss,) = added()
            return loss

        loss = tf.cond(tf.shape(x)[0] > 0, branch, lambda: 0.0)
        assert layer.losses == []
        return loss

    assert float(run(tf.ones((1, 3)))) == pytest.approx(0.06)
    assert float(run(tf.ones((0, 3)))) == 0


def test_calls_before():
    inputs = keras.Input((6, 4), name="inputs")
    first = layers.Dense(4, name="first")(inputs)
    deep = keras.Sequential([keras.Input((6, 4)), layers.Dense(4, name="deep")])
    attention = layers.MultiHeadAttention(1, 2, name="attention")
    both = attention(first, deep(first), use_causal_mask=True)
    layers.Dense(4, name="beside")(first)
    last = layers.Dense(4, name="last")(both)

    def calls(*tensors):
        return {op.name: kwargs for op, kwargs in _compat.calls_before(tensors)}

    found = calls(last)
    assert set(found) == {"first", deep.name, "deep", "attention", "last"}
    assert found["attention"]["use_causal_mask"] is True
    assert "use_causal_mask" not in found["first"]
    assert len(list(_compat.calls_before([last, both, last]))) == 5  # once each
    assert calls(inputs) == calls() == {}
    assert calls(tf.ones((1, 6, 4))) == {}  # nothing is known of a value
    # A layer that is called twice counts as often.
    shared = layers.Dense(4)
    assert len(list(_compat.calls_before([shared(shared(inputs))]))) == 2


def test_under_xla():
    seen = []

    def look(x):
        seen.append(_compat.under_xla())
        return tf.cond(x > 0, lambda: inside(x), lambda: x)

    def inside(x):
        seen.append(_compat.under_xla())
        return x

    look(tf.constant(1.0))
    tf.function(look)(tf.constant(1.0))
    tf.function(look, jit_compile=True)(tf.constant(1.0))
    assert seen == [False, False, False, False, True, True]


def test_layers_within():
    class Holding(layers.Layer):
        def __init__(self):
            super().__init__()
            self.listed = [layers.Dense(1), {"deep": layers.Dense(2)}]

    holding = Holding()
    found = _compat.layers_within(keras.Sequential([holding]))
    assert holding in found and holding.listed[1]["deep"] in found
    assert len({id(layer) for layer in found}) == len(found) == 4


def test_weight_decay_is_added_to_what_is_excluded():
    variables = [keras.Variable(1.0) for _ in range(3)]
    optimizer = keras.optimizers.SGD(1.0, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_list=[variables[0]])
    _compat.exclude_from_weight_decay(optimizer, [variables[1]])
    optimizer.apply([tf.zeros(())] * 3, variables)
    assert [float(variable) for variable in variables] == [1.0, 1.0, 0.5]


def test_producer_of():
    dense = layers.Dense(2)
    assert _compat.producer_of(dense(keras.Input((3,)))) is dense


def test_validation_writer_writes_where_keras_does(tmp_path):
    board = keras.callbacks.TensorBoard(tmp_path)
    board.set_model(keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]))
    writer = _compat.validation_writer(board)
    assert writer is _compat.validation_writer(board)
    with writer.as_default():
        tf.summary.scalar("number", 1.0, step=0)
    writer.flush()
    assert len(list((tmp_path / "validation").iterdir())) == 1


def test_training_otherwise_puts_flags_and_optimizer_back():
    model = two_outputs()
    model.get_layer("hidden").trainable = False
    model.compile("sgd", ["mse", "mse"])
    optimizer, other = model.optimizer, keras.optimizers.Adam()
    x, y = np.ones((4, 3)), [np.ones((4, 2))] * 2
    model.fit(x, y, verbose=0)
    function = model.train_function
    with _compat.training_otherwise(model, other) as begin:
        model.get_layer("a").trainable = False
        begin()
        assert model.optimizer is other
        model.fit(x, y, verbose=0)  # Keras warns where it finds other flags
        assert model.train_function is not function
    assert model.optimizer is optimizer
    assert [layer.trainable for layer in model.layers] == [True, False, True, True]
    assert [w.path for w in model.trainable_weights] == [
        f"{name}/{kind}" for name in "ab" for kind in ("kernel", "bias")
    ]
    # Adam's moments of two variables, its iterations and rate: `a` was not among them.
    assert len(other.variables) == 2 + 2 * 2
    model.fit(x, y, verbose=0)


def test_freezing_says_nothing_of_what_is_elsewhere(caplog, monkeypatch):
    monkeypatch.setattr(tf.get_logger(), "propagate", True)  # to where caplog listens
    elsewhere = layers.TextVectorization(vocabulary=["good", "bad"])
    weight = tf.Variable(3.0)
    tf.compat.v1.add_to_collection("variables", weight)  # as replicas do
    function = tf.function(lambda x: weight * x).get_concrete_function(tf.constant(1.0))
    constant = _compat.frozen(function)
    weight.assign(5.0)
    assert float(constant(tf.constant(2.0))) == 6.0
    assert not caplog.messages
    assert weight is tf.compat.v1.get_collection_ref("variables").pop()
    assert elsewhere("bad bad good").numpy().tolist() == [3, 3, 2]
