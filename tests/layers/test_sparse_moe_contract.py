"""How experts start, and what any layer of Keras is expected to do."""

import keras
import numpy as np
import pytest

import keras_dynamic as kd
from tests.layers.checks import check_layer
from tests.ops.gradients import normal


def moe(number, hidden, **arguments):
    return kd.SparseMoE(number, hidden, **{"noise_stddev": 0.0, **arguments})


# Weights


@pytest.mark.parametrize(
    "initializer",
    [
        "glorot_uniform",
        keras.initializers.GlorotUniform(seed=3),
        keras.initializers.RandomNormal(seed=keras.random.SeedGenerator(3)),
    ],
    ids=["name", "seed", "generator"],
)
@pytest.mark.parametrize("gated", [False, True])
def test_experts_start_different(initializer, gated):
    layer = moe(3, 4, kernel_initializer=initializer, gated=gated)
    layer.build((None, 4))
    kernels = []
    for expert in layer.experts:
        kernels += np.split(expert.first_kernel.numpy(), 2 if gated else 1, axis=1)
        kernels.append(expert.second_kernel.numpy())
    kernels = [kernel.tolist() for kernel in kernels]
    for index, kernel in enumerate(kernels):
        assert kernel not in kernels[:index]


def test_a_seeded_initializer_gives_the_same_start():
    first, second = (
        moe(3, 4, kernel_initializer=keras.initializers.HeNormal(seed=3))
        for _ in range(2)
    )
    for layer in (first, second):
        layer.build((None, 4))
    for one, other in zip(first.experts, second.experts, strict=True):
        for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)


# The whole contract of a layer


@pytest.mark.parametrize(
    "shape, arguments",
    [
        pytest.param(
            (16, 4),
            {
                "top_k": 2,
                "renormalize": True,
                "gated": True,
                "balance_loss": ["kl", "switch"],
                "balance_weight": [0.3, 0.7],
                "z_weight": 0.1,
                "inference_capacity_factor": 2.0,
                "kernel_regularizer": None,
            },
            id="top_k",
        ),
        pytest.param(
            (6, 4, 4),
            {"router": "expert_choice", "top_k": 1.5, "dispatch": "ragged"},
            id="expert_choice",
        ),
    ],
)
def test_is_a_layer(shape, arguments):
    # Half precision turns choices between experts that are nearly equal.
    check_layer(
        lambda: moe(2, 4, kernel_initializer="he_normal", **arguments),
        normal(*shape),
        config={"noise_stddev": 0.0, **arguments},
        half_tolerance=None,
        jit=False,  # tests of their own
    )


@pytest.mark.filterwarnings("ignore:Layer '.*' computes every expert:UserWarning")
def test_is_a_layer_with_noise_and_masks():
    x = normal(8, 5, 4)
    mask = np.random.default_rng(0).uniform(size=(8, 5)) > 1 / 3
    check_layer(
        lambda: kd.SparseMoE(2, 4, seed=3, capacity_factor=1.3, top_k=2),
        x,
        call_arguments={"mask": mask},
        config={"noise_stddev": "auto", "seed": 3, "capacity_factor": 1.3},
        random_training=True,
        half_tolerance=0.05,
    )
