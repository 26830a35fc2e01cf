"""fit_exits(trunk_epochs=): trunk and last exit first, then the early exits alone."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_dynamic as kd
from tests.layers.checks import two_replicas
from tests.models.small_models import dense_data, dense_model

CE = "sparse_categorical_crossentropy"


def model_with_normalization(optimizer="adam", **compile):
    """Batch normalization in the trunk, and one in a head."""
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(8, "tanh", name="first")(inputs)
    hidden = keras.layers.BatchNormalization(name="normal")(hidden)
    own = keras.layers.BatchNormalization(name="own")(hidden)
    early = kd.EarlyExit(4, loss_weight=2.0, name="exit_1")(own)
    final = keras.layers.Dense(4, "softmax", name="final")(hidden)
    model = kd.DynamicModel(inputs, [early, final])
    model.compile(optimizer, CE, metrics=["accuracy"], **compile)
    return model


def weights_of(model, *layers):
    return [w.copy() for name in layers for w in model.get_layer(name).get_weights()]


def arrays(variables):
    return [keras.ops.convert_to_numpy(variable).copy() for variable in variables]


def assert_close(ones, others, atol=1e-6):
    for one, other in zip(ones, others, strict=True):
        np.testing.assert_allclose(one, other, atol=atol)


class Snapshots(keras.callbacks.Callback):
    """The weights of some layers after each epoch, by the number of the epoch."""

    def __init__(self, *layers):
        super().__init__()
        self.layers, self.trunk, self.begun = layers, {}, []

    def on_epoch_begin(self, epoch, logs=None):
        self.begun.append(epoch)

    def on_epoch_end(self, epoch, logs=None):
        self.trunk[epoch] = weights_of(self.model, *self.layers)


@pytest.mark.parametrize("given", [None, [5.0, 1.0]])
@pytest.mark.parametrize("distilled", [0.0, 0.5])
def test_the_first_stage_is_the_plain_networks_fit(given, distilled):
    """Whatever early losses count; the moving averages of the trunk agree as well."""
    x, y = dense_data()
    rates = dict(optimizer=keras.optimizers.Adam(0.05), loss_weights=given)
    model = model_with_normalization(**rates, distillation_weight=distilled)
    before = model.get_weights()
    trunk, head = ("first", "normal", "final"), ("own", "exit_1")
    untrained = weights_of(model, *head)
    snapshots, heads = Snapshots(*trunk), Snapshots(*head)
    model.fit_exits(
        x,
        y,
        trunk_epochs=3,
        epochs=2,
        batch_size=8,
        shuffle=False,
        callbacks=[snapshots, heads],
        verbose=0,
    )
    learned = weights_of(model, *head)
    model.set_weights(before)
    plain = kd.strip_exits(model)
    plain.compile(keras.optimizers.Adam(0.05), CE)
    plain.fit(x, y, epochs=3, batch_size=8, shuffle=False, verbose=0)
    assert snapshots.begun == [0, 1, 2, 3, 4]
    assert_close(snapshots.trunk[2], weights_of(model, *trunk), atol=1e-5)
    # The heads are untouched by the first stage, and the trunk by the second.
    assert_close(heads.trunk[2], untrained, atol=0)
    assert_close(snapshots.trunk[4], snapshots.trunk[2], atol=0)
    moved = [np.abs(a - b).max() for a, b in zip(learned, untrained, strict=True)]
    assert max(moved) > 0.01


def test_it_is_fit_exits_after_the_first_stage():
    """The second stage is what `fit_exits` alone does from the same weights."""
    x, y = dense_data()
    model = dense_model(compiled=False)
    model.compile(keras.optimizers.Adam(0.05), CE)
    before = model.get_weights()
    arguments = dict(batch_size=8, shuffle=False, verbose=0)
    model.fit_exits(x, y, trunk_epochs=2, epochs=3, **arguments)
    once = weights_of(model, "exit_1", "exit_2", "final")
    model.set_weights(before)
    plain = kd.strip_exits(model)
    plain.compile(keras.optimizers.Adam(0.05), CE)
    plain.fit(x, y, epochs=2, **arguments)
    model.fit_exits(x, y, epochs=3, **arguments)
    assert_close(once, weights_of(model, "exit_1", "exit_2", "final"), atol=1e-5)


def test_history_is_of_both_stages():
    model = model_with_normalization()
    x, y = dense_data()
    validation = dict(validation_data=(x, y), validation_batch_size=40)
    history = model.fit_exits(x, y, trunk_epochs=3, epochs=2, verbose=0, **validation)
    assert history.epoch == [0, 1, 2, 3, 4]
    assert model.history is history
    assert {len(values) for values in history.history.values()} == {5}
    logs = {name: np.array(values) for name, values in history.history.items()}
    # First the last exit's loss is all there is, then 2 L_1 + L.
    np.testing.assert_allclose(logs["val_loss"][:3], logs["val_final_loss"][:3], 1e-5)
    both = 2 * logs["val_exit_1_loss"] + logs["val_final_loss"]
    np.testing.assert_allclose(logs["val_loss"][3:], both[3:], rtol=1e-5)
    np.testing.assert_allclose(logs["val_final_loss"][3:], logs["val_final_loss"][2])


def test_a_schedule_of_loss_weights_does_not_reach_the_first_stage():
    model = model_with_normalization()
    x, y = dense_data()
    weights = kd.callbacks.LossWeightSchedule(lambda epoch: 3.0 + epoch, "epoch")
    arguments = dict(validation_data=(x, y), validation_batch_size=40, verbose=0)
    arguments |= dict(callbacks=[weights], trunk_epochs=1)
    logs = model.fit_exits(x, y, **arguments).history
    assert logs["loss_weight"] == [3.0, 4.0]
    assert logs["val_loss"][0] == pytest.approx(logs["val_final_loss"][0], rel=1e-5)
    both = 4 * logs["val_exit_1_loss"][1] + logs["val_final_loss"][1]
    assert logs["val_loss"][1] == pytest.approx(both, rel=1e-5)


class InterruptsAt(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


@pytest.mark.parametrize("epoch", [0, 1, None])
def test_everything_is_put_back(epoch):
    """In the first stage, in the second, and without an exception."""
    model = model_with_normalization()
    model.get_layer("normal").trainable = False
    model.compile("adam", CE)
    x, y = dense_data()
    model.fit(x, y, verbose=0)
    optimizer = model.optimizer
    state = arrays(optimizer.variables)
    flags = [(layer.name, layer.trainable) for layer in model.layers]
    ends = contextlib.nullcontext()
    if epoch is not None:
        ends = pytest.raises(KeyboardInterrupt)
    with ends:
        callbacks = [InterruptsAt(epoch)]
        model.fit_exits(x, y, trunk_epochs=1, callbacks=callbacks, verbose=0)
    assert model.optimizer is optimizer
    assert_close(state, arrays(optimizer.variables), atol=0)
    assert flags == [(layer.name, layer.trainable) for layer in model.layers]
    found = model.evaluate(x, y, batch_size=40, verbose=0, return_dict=True)
    both = 2 * found["exit_1_loss"] + found["final_loss"]
    assert found["loss"] == pytest.approx(both, rel=1e-5)
    model.fit(x, y, verbose=0)  # without a warning that flags have changed


def test_two_replicas():
    x, y = dense_data(16)

    def trained(strategy):
        keras.utils.set_random_seed(0)
        with strategy.scope():
            model = dense_model(compiled=False)
            model.compile(keras.optimizers.SGD(0.5), CE)
        arguments = dict(batch_size=16, shuffle=False, verbose=0)
        model.fit_exits(x, y, trunk_epochs=2, epochs=2, **arguments)
        return arrays(model.trainable_weights)

    alone = trained(tf.distribute.get_strategy())
    assert_close(alone, trained(two_replicas()), atol=1e-5)


def test_selector():
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(8, "tanh")(inputs)
    outputs = [kd.EarlyExit(4)(hidden), keras.layers.Dense(4, "softmax")(hidden)]
    model = kd.DynamicModel(inputs, outputs, selector=kd.ExitSelector(2)(inputs))
    model.compile("sgd", CE)
    with pytest.raises(ValueError, match="without a selector.*trunk_epochs=1"):
        model.fit_exits(*dense_data(), trunk_epochs=1, verbose=0)


@pytest.mark.parametrize(
    ("arguments", "error", "received"),
    [
        ({"trunk_epochs": -1}, ValueError, "trunk_epochs=-1"),
        ({"trunk_epochs": 1.5}, TypeError, "trunk_epochs=1.5 of type"),
        ({"trunk_epochs": True}, TypeError, "trunk_epochs=True of type"),
        ({"trunk_epochs": 1, "initial_epoch": 2}, ValueError, "initial_epoch=2"),
    ],
)
def test_bad_input(arguments, error, received):
    with pytest.raises(error, match=f"Received: {received}"):
        dense_model().fit_exits(*dense_data(), verbose=0, **arguments)


@pytest.mark.parametrize("wrapped", [list, keras.callbacks.CallbackList])
def test_no_backup_of_both_stages(tmp_path, wrapped):
    """Each stage has an optimizer of its own, and Keras would restore one's state in
    the other."""
    model = model_with_normalization()
    model.compile("adam", CE)
    backup = wrapped([keras.callbacks.BackupAndRestore(tmp_path / "backup")])
    with pytest.raises(ValueError, match="`BackupAndRestore` beside.*trunk_epochs=2"):
        model.fit_exits(*dense_data(), trunk_epochs=2, callbacks=backup)
