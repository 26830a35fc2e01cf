"""Every layer's step of training compiles under XLA, or the layer says that it cannot.

Complete by construction: a public layer that is missing here fails a test.
"""

import keras
import numpy as np
import pytest
from keras import layers

import keras_dynamic as kd
from keras_dynamic.ops.estimators import ESTIMATORS
from tests.models import worker

X, Y = worker.data()


def ending(tensor):
    return layers.Dense(worker.CLASSES, "softmax")(layers.Flatten()(tensor))


def in_model(make, shape=(8,)):
    """A model with the layers of `make()` on a trunk, one after the other."""
    inputs = keras.Input((6,))
    h = layers.Reshape(shape)(layers.Dense(8, "tanh")(inputs))
    for layer in make():
        h = layer(h)
    return keras.Model(inputs, ending(h))


def with_each_estimator(layer):
    return lambda: in_model(
        lambda: [layer(estimator=estimator) for estimator in ESTIMATORS]
    )


def exits(selector=None):
    inputs = keras.Input((6,))
    h = layers.Dense(8, "tanh")(inputs)
    weights = None if selector is None else selector(h)
    outputs = [kd.EarlyExit(worker.CLASSES, name="exit_1")(h), ending(h)]
    return kd.DynamicModel(inputs, outputs, selector=weights)


def a_selector(layer, wrap):
    def make():
        return exits(
            lambda h: layer(2, exit_costs="auto", cost_weight=0.1, prior_weight=0.1)(
                wrap(h)
            )
        )

    return make


def an_exit():
    inputs = keras.Input((6,))
    early = kd.EarlyExit(worker.CLASSES, hidden_units=4)
    return keras.Model(inputs, early(layers.Dense(8, "tanh")(inputs)))


def gates(estimator):
    gate = kd.SkipGate(layers.Dense(8), estimator, target_rate=0.5, rate_weight=0.1)
    return in_model(lambda: [gate])


def mixture(**arguments):
    given = {"num_experts": 2, "hidden_units": 4, **arguments}
    if "capacity_factor" not in given and given.get("router") is None:
        given["capacity_factor"] = 2.0  # else XLA computes everything, and says so
    return in_model(lambda: [kd.SparseMoE(**given)], (2, 4))


def a_router(router, **arguments):
    return lambda: mixture(router=router(2, **arguments), balance_loss="kl")


def both(estimator):
    return kd.LayerChoice([layers.Dense(8), layers.Dense(8)], estimator)


MODELS = {
    kd.BlendedActivation: with_each_estimator(
        lambda estimator: kd.BlendedActivation(["relu", "tanh"], estimator=estimator)
    ),
    kd.DynamicModel: exits,
    kd.EarlyExit: an_exit,
    kd.ExitSelector: a_selector(kd.ExitSelector, lambda h: h),
    kd.GumbelSoftmax: with_each_estimator(kd.GumbelSoftmax),
    kd.LayerChoice: with_each_estimator(both),
    kd.LayerwiseSelector: a_selector(kd.LayerwiseSelector, lambda h: [h]),
    kd.SkipGate: lambda: gates("gumbel_straight_through"),
    kd.SparseMoE: lambda: mixture(
        balance_loss=["kl", "importance", "load", "switch"],
        balance_weight=[0.1] * 4,
        z_weight=0.1,
    ),
    kd.routers.DenseRouter: a_router(kd.routers.DenseRouter),
    kd.routers.ExpertChoiceRouter: a_router(kd.routers.ExpertChoiceRouter),
    kd.routers.TopKRouter: lambda: mixture(
        router=kd.routers.TopKRouter(2), capacity_factor=2.0
    ),
}
# Without a `call` of their own.
BASES = {kd.routers.Router}


def public_layers():
    """All classes of layers that the package shows."""
    shown = [getattr(kd, name) for name in kd.__all__]
    shown += [getattr(kd.routers, name) for name in kd.routers.__all__]
    return {
        each
        for each in shown
        if isinstance(each, type) and issubclass(each, keras.layers.Layer)
    }


def test_no_layer_is_missing():
    assert public_layers() == MODELS.keys() | BASES


@pytest.mark.parametrize("layer", MODELS, ids=lambda layer: layer.__name__)
def test_trains_under_xla_or_says_that_it_cannot(layer):
    model = MODELS[layer]()
    found = [each for each in model._flatten_layers() if type(each) is layer]
    assert found
    # Keras, which turns XLA off with a warning for a layer that cannot, leaves it on.
    model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=True)
    assert model.jit_compile == all(each.supports_jit for each in found)
    before = model.get_weights()
    logs = model.fit(X[:16], Y[:16], batch_size=8, verbose=0).history
    assert np.isfinite(logs["loss"]).all()
    changed = zip(before, model.get_weights(), strict=True)
    assert any((old != new).any() for old, new in changed)


def test_experts_on_several_devices_say_that_they_cannot():
    model = mixture(devices=["CPU:0", "CPU:1"])
    with pytest.warns(UserWarning, match="doesn't support `jit_compile=True`"):
        model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=True)
    assert not model.jit_compile
    model.fit(X[:16], Y[:16], batch_size=8, verbose=0)
