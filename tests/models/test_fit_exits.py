"""fit_exits: only the heads learn, and everything is put back."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_dynamic as kd
from tests.layers.checks import two_replicas
from tests.models.small_models import dense_data, dense_model


def model_with_normalization():
    """A trunk with batch normalization and a frozen layer, two exits, compiled."""
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(8, "tanh", trainable=False, name="frozen")(inputs)
    hidden = keras.layers.BatchNormalization(name="normal")(hidden)
    first = kd.EarlyExit(4, name="exit_1")(hidden)
    hidden = keras.layers.Dense(8, "tanh", name="middle")(hidden)
    own = keras.layers.BatchNormalization(name="own")(hidden)
    second = kd.EarlyExit(4, name="exit_2")(own)
    final = keras.layers.Dense(4, "softmax", name="final")(hidden)
    model = kd.DynamicModel(inputs, [first, second, final])
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def copied(weight):
    return keras.ops.convert_to_numpy(weight).copy()


def state_of(model):
    return {
        "layers": {layer.name: layer.trainable for layer in model.layers},
        "weights": [w.path for w in model.trainable_weights],
        "optimizer": model.optimizer,
        "variables": [copied(v) for v in model.optimizer.variables],
    }


def assert_same_state(before, after):
    assert before["layers"] == after["layers"]
    assert before["weights"] == after["weights"]
    assert before["optimizer"] is after["optimizer"]
    for one, other in zip(before["variables"], after["variables"], strict=True):
        np.testing.assert_array_equal(one, other)


def test_only_the_heads_change():
    model = model_with_normalization()
    x, y = dense_data()
    model.fit(x, y, epochs=1, verbose=0)
    state = state_of(model)
    before = {w.path: copied(w) for w in model.weights}
    answers = model.predict(x, verbose=0)
    history = model.fit_exits(x, y, epochs=3, verbose=0)
    changed = {
        w.path for w in model.weights if not np.array_equal(before[w.path], copied(w))
    }
    # The moving averages of the trunk's normalization stay, those of the head's do not.
    assert changed == {
        "exit_1/classifier/kernel",
        "exit_1/classifier/bias",
        "exit_2/classifier/kernel",
        "exit_2/classifier/bias",
        "own/gamma",
        "own/beta",
        "own/moving_mean",
        "own/moving_variance",
    }
    assert_same_state(state, state_of(model))
    after = model.predict(x, verbose=0)
    np.testing.assert_array_equal(answers[-1], after[-1])
    assert np.abs(answers[0] - after[0]).max() > 1e-3
    assert isinstance(history, keras.callbacks.History)
    assert history is model.history
    losses = history.history
    assert losses["exit_1_loss"][-1] < losses["exit_1_loss"][0]
    np.testing.assert_allclose(losses["final_loss"], losses["final_loss"][0], rtol=1e-5)


def test_it_is_a_step_of_a_fresh_optimizer_on_the_heads():
    """Plain SGD, one batch: w - 0.1 dL/dw for the heads, by hand in NumPy."""
    model = dense_model(compiled=False, loss_weight=0.5)
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    x, y = dense_data(8)
    head = model.get_layer("exit_1").classifier
    kernel, bias = map(np.array, head.get_weights())
    features = np.array(model.layers[1](x))
    logits = features @ kernel + bias
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    # Cross-entropy, mean over 8 rows, lambda 0.5: its gradient by the logits.
    slope = 0.5 * (probabilities - np.eye(4)[y]) / 8
    model.fit_exits(x, y, batch_size=8, verbose=0)
    wanted = kernel - 0.1 * features.T @ slope, bias - 0.1 * slope.sum(0)
    for one, other in zip(head.get_weights(), wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_training_goes_on_afterwards_as_without_it():
    x, y = dense_data()

    def trunk_after(with_exits):
        keras.utils.set_random_seed(0)
        model = dense_model()
        model.compile("adam", ["sparse_categorical_crossentropy"] * 3, [0.0, 0.0, 1.0])
        model.fit(x, y, verbose=0, shuffle=False)
        if with_exits:
            model.fit_exits(x, y, verbose=0, shuffle=False)
        model.fit(x, y, verbose=0, shuffle=False)
        return model.get_layer("final").get_weights()

    for one, other in zip(trunk_after(True), trunk_after(False), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


class Interrupts(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        raise KeyboardInterrupt


def test_everything_is_put_back_after_an_exception():
    model = model_with_normalization()
    x, y = dense_data()
    model.fit(x, y, verbose=0)
    state = state_of(model)
    with pytest.raises(KeyboardInterrupt):
        model.fit_exits(x, y, callbacks=[Interrupts()], verbose=0)
    assert_same_state(state, state_of(model))
    frozen = copied(model.get_layer("frozen").kernel)
    middle = copied(model.get_layer("middle").kernel)
    model.fit(x, y, verbose=0)  # without a warning that flags have changed
    assert np.array_equal(frozen, copied(model.get_layer("frozen").kernel))
    assert not np.array_equal(middle, copied(model.get_layer("middle").kernel))


def test_it_takes_what_fit_takes():
    model = dense_model()
    x, y = dense_data()
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(10)
    stopping = keras.callbacks.EarlyStopping("val_exit_1_loss", mode="min")
    history = model.fit_exits(
        data, epochs=2, validation_data=(x, y), callbacks=[stopping], verbose=0
    )
    assert len(history.history["val_accuracy"]) == 2
    model.fit_exits(x, y, sample_weight=np.ones(40), batch_size=20, verbose=0)
    assert len(model.fit_exits(x, y, 20, 2, verbose=0).epoch) == 2


@pytest.mark.parametrize("trained", [False, True])
def test_a_file_holds_the_state_that_the_optimizer_has(trained, tmp_path):
    """Loading warns of nothing, which would fail this test."""
    model = dense_model()
    model.compile("adam", "sparse_categorical_crossentropy")
    x, y = dense_data()
    if trained:
        model.fit(x, y, verbose=0)
    model.fit_exits(x, y, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.optimizer.built == trained
    state = [copied(v) for v in model.optimizer.variables]
    for one, other in zip(state, again.optimizer.variables, strict=True):
        np.testing.assert_allclose(one, copied(other), rtol=1e-6)
    again.fit(x, y, verbose=0)


def test_a_frozen_head_stays_frozen():
    model = dense_model()
    model.get_layer("exit_1").trainable = False
    model.compile("sgd", "sparse_categorical_crossentropy")
    x, y = dense_data()
    kernels = [
        copied(model.get_layer(n).classifier.kernel) for n in ("exit_1", "exit_2")
    ]
    model.fit_exits(x, y, verbose=0)
    first, second = (model.get_layer(n).classifier for n in ("exit_1", "exit_2"))
    assert np.array_equal(kernels[0], copied(first.kernel))
    assert not np.array_equal(kernels[1], copied(second.kernel))


def test_heads_within_a_nested_model():
    inner_inputs = keras.Input((6,))
    hidden = keras.layers.Dense(8, "tanh", name="hidden")(inner_inputs)
    early = kd.EarlyExit(4, name="exit_1")(hidden)
    final = keras.layers.Dense(4, "softmax", name="last")(hidden)
    inner = keras.Model(inner_inputs, [early, final], name="inner")
    inputs = keras.Input((6,))
    model = kd.DynamicModel(inputs, inner(inputs))
    model.compile("sgd", "sparse_categorical_crossentropy")
    x, y = dense_data()
    before = {w.path: copied(w) for w in inner.weights}
    model.fit_exits(x, y, verbose=0)
    changed = {
        w.path for w in inner.weights if not np.array_equal(before[w.path], copied(w))
    }
    assert changed == {"exit_1/classifier/kernel", "exit_1/classifier/bias"}


def test_weights_shared_with_the_trunk_stay():
    inputs = keras.Input((6,))
    shared = keras.layers.Dense(4, "softmax")
    hidden = keras.layers.Dense(6, "tanh")(inputs)
    model = kd.DynamicModel(inputs, [shared(inputs), shared(hidden)])
    model.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match="trainable weights of its own.*dense"):
        model.fit_exits(*dense_data(), verbose=0)


def test_it_needs_a_compiled_model():
    model = dense_model(compiled=False)
    with pytest.raises(RuntimeError, match="`compile`.*before `fit_exits`"):
        model.fit_exits(*dense_data())


def test_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = dense_model()
    finally:
        keras.config.set_dtype_policy("float32")
    x, y = dense_data()
    middle = copied(model.layers[1].kernel)
    history = model.fit_exits(x, y, epochs=2, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    np.testing.assert_array_equal(middle, copied(model.layers[1].kernel))


def test_two_replicas():
    with two_replicas().scope():
        model = dense_model()
    x, y = dense_data()
    head, trunk = model.get_layer("exit_1").classifier, model.layers[1]
    before = copied(trunk.kernel), copied(head.kernel)
    model.fit_exits(x, y, batch_size=20, verbose=0)
    assert np.array_equal(before[0], copied(trunk.kernel))
    assert not np.array_equal(before[1], copied(head.kernel))
    assert trunk.kernel.trainable


@keras.saving.register_keras_serializable(package="test_fit_exits")
class Centered(keras.layers.Layer):
    """Subtracts a moving mean, which moves in training, frozen or not."""

    def build(self, input_shape):
        self.mean = self.add_weight(
            shape=input_shape[-1:], trainable=False, aggregation="mean", name="mean"
        )

    def call(self, inputs, training=False):
        if training:
            self.mean.assign(0.5 * self.mean + 0.5 * keras.ops.mean(inputs, axis=0))
        return inputs - self.mean


def model_with_state(kind):
    inputs = hidden = keras.Input((6,))
    for _ in range(2):
        layer = keras.layers.Dense(8, "relu")
        if kind == "kernel":  # it divides the kernel itself
            layer = keras.layers.SpectralNormalization(layer)
        hidden = layer(hidden)
        if kind == "mean":
            hidden = Centered()(hidden)
    own = Centered()
    early = kd.EarlyExit(4, name="exit_1")(own(hidden))
    final = keras.layers.Dense(4, "softmax")(hidden)
    model = kd.DynamicModel(inputs, [early, final])
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model, own


class Watches(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.answers = []

    def on_train_batch_end(self, batch, logs=None):
        self.answers.append(self.model(DATA[0])[-1].numpy())


DATA = dense_data()


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("kind", ["kernel", "mean"])
def test_layers_that_move_in_training_are_put_back_after_each_batch(kind, eager):
    model, _ = model_with_state(kind)
    model.run_eagerly = eager
    x, y = DATA
    answer, watches = model(x)[-1].numpy(), Watches()
    before = [copied(w) for w in model.weights]
    model.fit_exits(x, y, batch_size=20, callbacks=[watches], verbose=0)
    assert len(watches.answers) == 2
    for each in watches.answers:
        np.testing.assert_array_equal(each, answer)
    moved = [
        w.path
        for w, one in zip(model.weights, before, strict=True)
        if not np.array_equal(one, copied(w))
    ]
    # The head's own layer moves, as it does in any training.
    assert len(moved) == 3 and moved[0].endswith("mean")


def test_two_replicas_put_back_what_moves():
    with two_replicas().scope():
        model, own = model_with_state("mean")
    x, y = DATA
    before = [copied(model.layers[2].mean), copied(own.mean)]
    answer = model.predict(x, verbose=0)[-1]
    model.fit_exits(x, y, batch_size=20, verbose=0)
    np.testing.assert_array_equal(copied(model.layers[2].mean), before[0])
    np.testing.assert_array_equal(model.predict(x, verbose=0)[-1], answer)
    assert not np.array_equal(copied(own.mean), before[1])


def test_what_a_callback_assigns_stays():
    model, _ = model_with_state("mean")

    class Assigns(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.model.layers[2].mean.assign([7.0] * 8)

    assert isinstance(model.layers[2], Centered)
    model.fit_exits(*DATA, callbacks=[Assigns()], verbose=0)
    np.testing.assert_array_equal(copied(model.layers[2].mean), [7.0] * 8)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("trunk_epochs", [0, 1])
def test_a_model_saved_meanwhile_is_the_users(trained, trunk_epochs, tmp_path):
    """Its own flags and optimizer; loading it warns of nothing."""
    model = model_with_normalization()
    x, y = dense_data()
    if trained:
        model.fit(x, y, verbose=0)
    path = tmp_path / "{epoch}.keras"
    saves = keras.callbacks.ModelCheckpoint(path)
    learned = model.get_layer("exit_1").classifier.kernel
    before, state = copied(learned), state_of(model)
    arguments = dict(trunk_epochs=trunk_epochs, callbacks=[saves], verbose=0)
    model.fit_exits(x, y, **arguments)
    assert not np.array_equal(before, copied(learned))  # the other optimizer went on
    again = keras.models.load_model(tmp_path / "1.keras")
    found = state_of(again)
    assert found["layers"] == state["layers"]
    assert len(again.trainable_weights) == len(state["weights"])
    assert again.optimizer.built == trained
    for one, other in zip(state["variables"], found["variables"], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    again.fit(x, y, verbose=0)
    model.fit(x, y, verbose=0)  # without a warning that flags have changed


def test_weights_saved_meanwhile_are_resumed(tmp_path):
    """What is interrupted and resumed ends as what was not."""
    x, y = dense_data()
    arguments = dict(epochs=3, shuffle=False, verbose=0)

    def ended(interrupted):
        keras.utils.set_random_seed(0)
        model = dense_model()
        if interrupted:
            keeps = keras.callbacks.BackupAndRestore(tmp_path / "backup")
            with pytest.raises(KeyboardInterrupt):
                interrupts = InterruptsAt(1)
                callbacks = [keeps, interrupts]
                model.fit_exits(x, y, callbacks=callbacks, **arguments)
            keras.utils.set_random_seed(1)
            model = dense_model()  # another process
            history = model.fit_exits(x, y, callbacks=[keeps], **arguments)
            assert history.epoch == [1, 2]
        else:
            model.fit_exits(x, y, **arguments)
        return [copied(w) for w in model.weights]

    for one, other in zip(ended(True), ended(False), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


class InterruptsAt(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["x", "y"])
def test_data_that_are_no_numbers_are_named(name):
    data = dict(zip("xy", dense_data(8), strict=True))
    data[name] = np.full(data[name].shape, "a")
    with pytest.raises(TypeError, match=f"`{name}` must hold arrays of numbers"):
        dense_model().fit_exits(**data, verbose=0)
