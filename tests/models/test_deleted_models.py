"""A model that nobody holds any more is gone, whatever it was used for."""

import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_dynamic as kd


def small(selector=False):
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(8, "relu")(inputs)
    gated = kd.SkipGate(keras.layers.Dense(8, "relu"), name="gate")(hidden)
    outputs = [kd.EarlyExit(3, name="exit_1")(hidden)]
    outputs.append(keras.layers.Dense(3, "softmax", name="final")(gated))
    weights = kd.ExitSelector(2)(inputs) if selector else None
    model = kd.DynamicModel(inputs, outputs, selector=weights)
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


@pytest.mark.parametrize("selector", [False, True])
def test_it_is_collected(selector):
    x = np.random.default_rng(0).normal(size=(30, 6)).astype("float32")
    y = np.arange(30) % 3
    model = small(selector)
    model.fit(x, y, verbose=0)
    model.fit_exits(x, y, verbose=0)
    model.evaluate(x, y, verbose=0)
    model.predict_dynamic(x, verbose=0)
    model.predict_dynamic(x, batch_size=2, verbose=0)  # by pools, which have threads
    model.evaluate_dynamic(x, y, verbose=0)
    model.compute_costs()
    if not selector:  # which has no thresholds
        model.calibrate(x, y, budget=1.0)
    model.dynamic_function(1)(x[:1])
    kept = [model, model.road, model.get_layer("gate"), model.trainable_variables[0]]
    dead = [weakref.ref(each) for each in kept]
    del model, kept
    gc.collect()
    assert [each() for each in dead] == [None] * 4


def test_what_it_was_used_with_holds_no_model():
    """A report, a prediction or a rule outlives the model that it came from."""
    x = np.random.default_rng(0).normal(size=(30, 6)).astype("float32")
    model = small()
    report = model.calibrate(x, np.arange(30) % 3, budget=1.0)
    prediction, rule = model.predict_dynamic(x, verbose=0), model.exit_rule
    dead = weakref.ref(model)
    del model
    gc.collect()
    assert dead() is None
    assert len(prediction) == 30 and rule.threshold is not None and str(report)


def traced(layer, x):
    """A weak reference to the graph of a layer's call."""
    layer(x)
    function = tf.function(lambda x: layer(x, training=False), autograph=False)
    return weakref.ref(function.get_concrete_function(x).graph)


@pytest.mark.parametrize("dispatch, factor", [("ragged", None), ("capacity", 1.0)])
def test_no_graph_of_a_mixture_stays(dispatch, factor):
    """TensorFlow keeps every graph with a gradient of one's own for ever."""
    x = tf.constant(np.random.default_rng(0).normal(size=(5, 2)), tf.float32)
    dead = traced(kd.SparseMoE(3, 4, capacity_factor=factor, dispatch=dispatch), x)
    gc.collect()
    assert dead() is None
