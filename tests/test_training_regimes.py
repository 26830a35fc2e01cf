"""The page on training regimes: every recipe runs as it stands."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

PAGE = Path(__file__).resolve().parent.parent / "docs" / "training_regimes.md"
SECTIONS = dict(
    re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE.read_text("utf-8"), re.M | re.S)
)


def blocks(text):
    return re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)


def names_after(section):
    """The namespace in which the page's beginning, then one section, has run."""
    keras.utils.set_random_seed(0)
    beginning = blocks(PAGE.read_text("utf-8"))[0]
    names = {"__name__": "__page__"}
    for code in [beginning, *blocks(SECTIONS[section])]:
        exec(compile(code, f"<{section}>", "exec"), names)
    return names


@pytest.mark.parametrize(
    "section", [name for name, text in SECTIONS.items() if blocks(text)]
)
def test_recipe_runs(section):
    names = names_after(section)
    model, x, y = names["model"], names["x"], names["y"]
    model.calibrate(x, y, max_accuracy_drop=0.1)
    found = model.evaluate_dynamic(x, y, verbose=0)
    assert 0 < found["mean_cost"] < 1.5
    assert all(layer.trainable for layer in model.layers)


def gradients_of_kernels(model, x, y):
    """Of the sum of all exits' losses: of the trunk's three, and of exit 1's."""
    layers = [each for each in model.layers if each.name.startswith("dense")]
    kernels = [layer.kernel.value for layer in layers]
    kernels.append(model.get_layer("exit_1").classifier.kernel.value)
    with tf.GradientTape() as tape:
        losses = [
            tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(y, output))
            for output in model(x)
        ]
        total = tf.add_n(losses)
    return tape.gradient(total, kernels)


def test_rescaling_gives_every_part_the_mean_of_the_gradients():
    names = names_after("Gradient rescaling")
    balanced, x, y = names["model"], names["x"], names["y"]
    plain = names["network"]()
    plain.set_weights(balanced.get_weights())
    rescaled, sums = (gradients_of_kernels(m, x, y) for m in (balanced, plain))
    # Three exits lie behind the first layer, two behind the second. Heads learn as
    # they would without.
    for found, total, exits in zip(rescaled, sums, (3, 2, 1, 1), strict=True):
        np.testing.assert_allclose(found, total / exits, atol=1e-6)
