"""Two replicas train as one device does, with every layer and loss."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_dynamic as kd
from tests.layers.checks import two_replicas
from tests.models import every_layer, worker
from tests.models.every_layer import compiled, feed, fitted, plainly, same_training


@pytest.mark.parametrize("name", every_layer.WITHOUT_NOISE)
def test_two_replicas_train_as_one_device(name):
    with two_replicas().scope():
        model = compiled(name)
    logs = fitted(model, name)
    same_training(model, logs, *plainly(name))


def test_a_loop_of_ones_own():
    """`compute_loss` has all terms, scaled as gradients that are summed need it."""
    name = "layerwise"
    strategy = two_replicas()
    with strategy.scope():
        model = compiled(name)

    def step(x, y):
        with tf.GradientTape() as tape:
            loss = model.compute_loss(x, y, model(x, training=True))
        variables = model.trainable_weights
        gradients = tape.gradient(loss, [weight.value for weight in variables])
        model.optimizer.apply(gradients, variables)

    @tf.function(autograph=False)
    def run(x, y):
        strategy.run(step, (x, y))

    batches = tf.data.Dataset.from_tensor_slices(feed(name)).batch(every_layer.BATCH)
    with strategy.scope():
        alone = compiled(name)
    for x, y in strategy.experimental_distribute_dataset(batches):
        run(x, y)
    keywords = {"epochs": 1, "shuffle": False, "verbose": 0}
    alone.fit(batches, **keywords)
    for found, wanted in zip(model.weights, alone.weights, strict=True):
        every_layer.same(found.numpy(), wanted.numpy(), wanted.path)


# Noise

NOISY = "gumbel_softmax"
DRAWING = {
    "GumbelSoftmax": kd.GumbelSoftmax,
    "SkipGate": lambda: kd.SkipGate(layers.Dense(8), initial_open_rate=0.5),
    "BlendedActivation": lambda: kd.BlendedActivation(
        ["relu", "tanh"], estimator=NOISY
    ),
    "LayerChoice": lambda: kd.LayerChoice(
        [layers.Dense(8), layers.Dense(8)], estimator=NOISY
    ),
    "ExitSelector": lambda: kd.ExitSelector(2, NOISY),
    "LayerwiseSelector": lambda: kd.LayerwiseSelector(2, NOISY),
    "SparseMoE": lambda: kd.SparseMoE(4, 8, noise_stddev=1.0),
}


@pytest.mark.parametrize("name", DRAWING)
def test_replicas_draw_noise_of_their_own(name):
    """Two replicas with equal rows answer differently; as one without noise."""
    strategy = two_replicas()
    rows = tf.constant(np.random.default_rng(0).normal(size=(8, 8)), tf.float32)
    given = [rows] if name == "LayerwiseSelector" else rows
    with strategy.scope():
        layer = DRAWING[name]()
        layer(given)

    @tf.function(autograph=False)
    def answers(training):
        return strategy.run(lambda: layer(given, training=training))

    first, second = strategy.experimental_local_results(answers(True))
    assert np.abs(first.numpy() - second.numpy()).max() > 1e-3
    first, second = strategy.experimental_local_results(answers(False))
    np.testing.assert_array_equal(first.numpy(), second.numpy())


# Batches that two replicas cannot share evenly


@pytest.mark.parametrize("name", every_layer.MODELS)
def test_uneven_batches(name):
    """Of 15, 15 and 1: the first is uneven, and in the last a replica gets nothing."""
    with two_replicas().scope():
        model = compiled(name)
    logs = fitted(model, name, batch_size=15, rows=31, epochs=1)
    for key, values in logs.items():
        assert np.isfinite(values).all(), key
    for weight in model.weights:  # an infinite threshold closes an exit
        assert not np.isnan(weight.numpy()).any(), weight.path
    x, y = feed(name, 31)
    evaluated = model.evaluate(x, y, batch_size=15, verbose=0, return_dict=True)
    assert np.isfinite(list(evaluated.values())).all()


@pytest.mark.parametrize(
    "rows, weights",
    [
        # (1/2) (1/2 (l1 + l2) + l3) = 1/3 (3/4 l1 + 3/4 l2 + 3/2 l3)
        (3, [0.75, 0.75, 1.5]),
        # (1/2) (l1 + 0)
        (1, [0.5]),
    ],
)
def test_an_uneven_batch_is_the_mean_of_the_means_over_its_parts(rows, weights):
    x, y = worker.data()

    def run(**kwargs):
        keras.utils.set_random_seed(0)
        model = worker.exits()
        optimizer = keras.optimizers.SGD(0.1)
        model.compile(optimizer, "sparse_categorical_crossentropy")
        model.fit(x[:rows], y[:rows], batch_size=rows, verbose=0, **kwargs)
        return model.get_weights()

    with two_replicas().scope():
        mirrored = run()
    alone = run(sample_weight=np.array(weights, "float32"))
    for found, wanted in zip(mirrored, alone, strict=True):
        every_layer.same(found, wanted, "weight", 1e-6)


def test_synchronized_batch_normalization_bears_a_replica_without_rows():
    """Moments of no rows are NaN; moments over all replicas are not."""
    x, y = worker.data()
    with two_replicas().scope():
        inputs = keras.Input((6,))
        h = layers.BatchNormalization(synchronized=True)(layers.Dense(8)(inputs))
        early = kd.EarlyExit(worker.CLASSES, name="exit_1")(h)
        final = layers.Dense(worker.CLASSES, "softmax", name="final")(h)
        model = kd.DynamicModel(inputs, [early, final])
        model.compile("sgd", "sparse_categorical_crossentropy")
    model.fit(x[:17], y[:17], batch_size=16, verbose=0)  # the last batch: one row
    for weight in model.trainable_weights:
        assert np.isfinite(weight.numpy()).all(), weight.path


def test_keras_alone_needs_an_even_first_batch():
    """When this fails, Keras may have made a part of `SeveralWorkers` superfluous."""
    with two_replicas().scope():
        inputs = keras.Input((6,))
        model = keras.Model(inputs, layers.Dense(4, "softmax")(inputs))
        model.compile("sgd", "sparse_categorical_crossentropy")
    x, y = worker.data()
    with pytest.raises(tf.errors.InvalidArgumentError, match="same size and shape"):
        model.fit(x[:15], y[:15], batch_size=15, verbose=0)
