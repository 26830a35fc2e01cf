"""Every layer and loss, trained in each way that Keras has."""

import functools

import keras
import numpy as np
import pytest

from tests.layers.checks import dtype_policy
from tests.models import every_layer
from tests.models.every_layer import (
    MODELS,
    WITHOUT_NOISE,
    compiled,
    feed,
    fitted,
    improves,
    plainly,
    same,
    same_training,
)

EQUAL_WAYS = {
    "eagerly": {"run_eagerly": True},
    "by XLA": {"jit_compile": True},
    "two steps an execution": {"steps_per_execution": 2},
}
HALF = ["mixed_float16", "mixed_bfloat16"]


@pytest.mark.parametrize("way", EQUAL_WAYS)
@pytest.mark.parametrize("name", WITHOUT_NOISE)
def test_the_same_comes_of_it(name, way):
    model = compiled(name, **EQUAL_WAYS[way])
    logs = fitted(model, name)
    same_training(model, logs, *plainly(name))
    assert improves(logs)


def test_noise_is_drawn_anew_at_every_step():
    """So the same numbers are drawn, however many steps an execution has."""
    model = compiled("noisy", steps_per_execution=2)
    same_training(model, fitted(model, "noisy"), *plainly("noisy"))


# Gradient accumulation

# Penalties computed from the mean of a batch know that of the part only.
OF_SAMPLES = {
    "exits": every_layer.with_exits,
    "targets": every_layer.with_targets,
    "layerwise": functools.partial(every_layer.layerwise, of_batch=0.0),
    "all others": functools.partial(every_layer.all_others, of_batch=0.0),
}


@pytest.mark.parametrize("name", OF_SAMPLES)
def test_two_accumulated_steps_of_8_are_one_of_16(name):
    def run(batch_size, accumulated):
        optimizer = keras.optimizers.SGD(
            0.1, momentum=0.9, gradient_accumulation_steps=accumulated
        )
        model = compiled(name, optimizer, OF_SAMPLES[name])
        return model, fitted(model, name, batch_size)

    model, logs = run(8, 2)
    assert int(model.optimizer.iterations) == 2 * 4
    same_training(model, logs, *run(16, None))


# Moving averages of the weights


class Recorder(keras.callbacks.Callback):
    """The trainable weights after each step."""

    def on_train_begin(self, logs=None):
        self.steps = []

    def on_train_batch_end(self, batch, logs=None):
        self.steps.append([w.numpy() for w in self.model.trainable_weights])


def moving_average(steps, momentum=0.9):
    """The same in NumPy; it begins with the weights after the first step."""
    averages = [np.zeros_like(weight) for weight in steps[0]]
    for number, weights in enumerate(steps):
        kept = momentum if number else 0.0
        pairs = zip(averages, weights, strict=True)
        averages = [kept * average + (1 - kept) * new for average, new in pairs]
    return averages


@pytest.mark.parametrize("name", ["exits", "all others"])
def test_moving_average_of_the_weights(name):
    """`fit` ends with the averages in the model; other weights are what they were."""
    optimizer = keras.optimizers.SGD(
        0.1, momentum=0.9, weight_decay=0.01, use_ema=True, ema_momentum=0.9
    )
    model, recorder = compiled(name, optimizer), Recorder()
    swap = keras.callbacks.SwapEMAWeights()
    x, y = feed(name)
    logs = fitted(model, name, validation_data=(x, y), callbacks=[recorder, swap])
    plain, plain_logs = plainly(name)
    for key, values in plain_logs.items():  # it trains as without
        same(logs[key], values, key)
    averages = moving_average(recorder.steps)
    for weight, average in zip(model.trainable_weights, averages, strict=True):
        same(weight.numpy(), average, weight.path)
    pairs = zip(model.non_trainable_weights, plain.non_trainable_weights, strict=True)
    for weight, wanted in pairs:
        same(weight.numpy(), wanted.numpy(), weight.path)
    # The callback has the averages validated, too.
    ends = model.evaluate(x, y, verbose=0, return_dict=True)
    same(logs["val_loss"][-1], ends["loss"], "val_loss")


# Mixed precision


# Keras' own activity regularizers fail there, in any model: they give half precision.
IN_HALF = {
    **MODELS,
    "exits": functools.partial(every_layer.with_exits, activity_regularizer=None),
}


@pytest.mark.parametrize("policy", HALF)
@pytest.mark.parametrize("name", MODELS)
def test_mixed_precision(name, policy):
    with dtype_policy(policy):
        model = compiled(name, make=IN_HALF[name])
    logs = fitted(model, name)
    assert improves(logs)
    for weight in model.weights:
        assert weight.dtype in ("float32", "int32", "int64"), weight.path
        assert not np.isnan(weight.numpy()).any(), weight.path
    scales = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scales == (policy == "mixed_float16")
    if name in WITHOUT_NOISE and name != "exits":
        same(logs["loss"], plainly(name)[1]["loss"], "loss", 0.03)


def test_the_scale_of_the_loss():
    """It doubles after so many good steps; a bad one halves it and changes no weight.

    In float16 a gradient overflows where 2 ** 15 times itself exceeds 65504.
    """
    name = "all others"
    with dtype_policy("mixed_float16"):
        model = compiled(name, keras.optimizers.SGD(0.01))
    model.optimizer.dynamic_growth_steps = 2
    x, y = feed(name)
    for _ in range(4):
        model.train_on_batch(x[:16], y[:16])
    assert float(model.optimizer.dynamic_scale) == 2.0**17
    before = [weight.numpy() for weight in model.trainable_weights]
    model.train_on_batch(np.full_like(x[:16], np.inf), y[:16])
    assert float(model.optimizer.dynamic_scale) == 2.0**16
    assert int(model.optimizer.iterations) == 4
    for weight, old in zip(model.trainable_weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), old)
    model.reset_metrics()  # Keras 3.14 does not, before a batch
    assert np.isfinite(model.train_on_batch(x[:16], y[:16], return_dict=True)["loss"])
