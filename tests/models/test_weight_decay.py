"""What decides is kept out of weight decay."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_dynamic as kd


def parts():
    inputs = keras.Input((6,))
    gate = kd.SkipGate(layers.Dense(6), name="gate")
    choice = kd.LayerChoice([layers.Dense(6), layers.Dense(6, "relu")], name="choice")
    return inputs, choice(gate(inputs))


def moved_by_decay(model, optimizer):
    """Paths of the trainable weights that a step without any gradient changes."""
    model.trainable_weights[0].assign_add(np.ones((6, 6)))
    gate = model.get_layer("gate")
    gate.decider.classifier.kernel.assign(np.ones((16, 1)))
    model.get_layer("choice").logits.assign([1.0, 2.0])
    before = [weight.numpy() for weight in model.trainable_weights]
    zeros = [np.zeros_like(array) for array in before]
    optimizer.apply(zeros, model.trainable_weights)
    changed = zip(model.trainable_weights, before, strict=True)
    return {weight.path for weight, old in changed if np.any(weight.numpy() != old)}


def test_gates_and_choices_do_not_decay():
    inputs, hidden = parts()
    model = keras.Model(inputs, layers.Dense(2)(hidden))
    optimizer = keras.optimizers.AdamW(0.1, weight_decay=0.1)
    optimizer.exclude_from_weight_decay(var_list=[model.layers[-1].kernel])
    excluded = kd.exclude_from_weight_decay(optimizer, model)
    moved = moved_by_decay(model, optimizer)
    assert not {weight.path for weight in excluded} & moved
    assert any("choice/dense" in path for path in moved)  # the rest decays
    assert model.layers[-1].kernel.path not in moved  # as the user had said
    names = sorted(weight.path.split("/")[-2] for weight in excluded)
    assert names == ["choice", "classifier", "classifier", "hidden_0", "hidden_0"]


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_a_dynamic_model_sees_to_it(policy):
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        inputs, hidden = parts()
        exits = [kd.EarlyExit(3)(hidden), kd.EarlyExit(3)(hidden)]
        model = kd.DynamicModel(inputs, exits)
        model.compile(
            keras.optimizers.AdamW(0.1, weight_decay=0.1),
            "sparse_categorical_crossentropy",
        )
    finally:
        keras.config.set_dtype_policy(previous)
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    moved = moved_by_decay(model, optimizer)
    assert not any("gate/gate" in path or path.endswith("logits") for path in moved)
    assert any("early_exit" in path for path in moved)


def test_wants_an_optimizer():
    with pytest.raises(TypeError, match="`optimizer` must be.*'adam'"):
        kd.exclude_from_weight_decay("adam", keras.Model(*[keras.Input((2,))] * 2))
