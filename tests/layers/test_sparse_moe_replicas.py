"""On two replicas a mixture does what it does on one device."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_dynamic as kd
from tests.layers.checks import two_replicas
from tests.layers.moe_reference import close, in_model, scattered, some_mask
from tests.ops.gradients import normal

LOSSES = ["kl", "importance", "switch"]


def moe(**arguments):
    return kd.SparseMoE(4, 5, **{"noise_stddev": 0.0, "name": "moe", **arguments})


EVERY_LOSS = {"balance_loss": LOSSES, "balance_weight": [0.5, 0.7, 0.9], "top_k": 2}
EXPERT_CHOICE = {"router": "expert_choice", "balance_loss": "kl", "balance_weight": 0.7}


@pytest.mark.parametrize(
    "arguments, masked",
    [(EVERY_LOSS, False), (EVERY_LOSS, True), (EXPERT_CHOICE, False)],
)
def test_two_replicas_do_what_one_device_does(arguments, masked):
    """Losses, logs and weights; the padding is not even over them."""
    x, y = normal(8, 5, 4), normal(8, 5, 4, seed=1)
    mask = some_mask((8, 5))
    mask[:4] |= some_mask((4, 5), seed=1)
    feed = [x, mask.astype("int32")] if masked else x

    def run():
        layer = moe(z_weight=0.3, **arguments)
        model = in_model(layer, x, masked, keras.optimizers.SGD(0.1))
        logs = model.fit(feed, y, 8, epochs=2, shuffle=False, verbose=0).history
        if masked:
            evaluated = model.evaluate(feed, y, 8, verbose=0, return_dict=True)
            logs.update({f"evaluated_{name}": v for name, v in evaluated.items()})
        return logs, model.get_weights()

    logs, weights = run()
    with two_replicas().scope():
        mirrored_logs, mirrored_weights = run()
    assert set(logs) == set(mirrored_logs)
    for name, values in logs.items():
        close(mirrored_logs[name], values)
    for one, other in zip(weights, mirrored_weights, strict=True):
        close(one, other)


def test_replicas_have_noise_of_their_own():
    x = normal(4, 3, 4)
    strategy = two_replicas()
    with strategy.scope():
        layer = scattered(moe(noise_stddev=1.0), x.shape)

    @tf.function(autograph=False)
    def run():
        return strategy.run(lambda: layer(tf.constant(x), training=True))

    first, second = strategy.experimental_local_results(run())
    assert (first.numpy() != second.numpy()).any()


def test_layers_as_experts_on_two_replicas():
    x, y = normal(8, 4), normal(8, 4, seed=1)

    def run():
        keras.utils.set_random_seed(3)
        experts = [
            keras.layers.Dense(4, activity_regularizer=keras.regularizers.L2(0.1)),
            keras.Sequential(
                [keras.layers.BatchNormalization(), keras.layers.Dense(4)]
            ),
        ]
        layer = kd.SparseMoE(experts=experts, noise_stddev=0)
        inputs = keras.Input((4,))
        model = keras.Model(inputs, layer(inputs))
        model.compile("sgd", "mse")
        model.fit(x, y, 8, shuffle=False, verbose=0)
        return model.get_weights()

    with two_replicas().scope():
        assert all(np.isfinite(weight).all() for weight in run())
