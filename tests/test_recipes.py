"""The pages with recipes: every one runs as it stands."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

DOCS = Path(__file__).resolve().parent.parent / "docs"


def sections(page):
    """A page's headings with the text below them; "" is what stands before them."""
    text = (DOCS / page).read_text("utf-8")
    beginning, *parts = re.split(r"^## ", text, flags=re.M)
    return {"": beginning} | dict(part.split("\n", 1) for part in parts)


def blocks(text):
    return re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)


def recipes(page):
    return [name for name, text in sections(page).items() if name and blocks(text)]


def names_after(page, section):
    """The namespace in which the page's beginning, then one section, has run."""
    keras.utils.set_random_seed(0)
    texts, names = sections(page), {"__name__": "__page__"}
    for code in [*blocks(texts[""]), *blocks(texts[section])]:
        exec(compile(code, f"<{section}>", "exec"), names)
    return names


@pytest.mark.parametrize("section", recipes("training_regimes.md"))
def test_regime(section):
    names = names_after("training_regimes.md", section)
    model, x, y = names["model"], names["x"], names["y"]
    model.calibrate(x, y, max_accuracy_drop=0.1)
    found = model.evaluate_dynamic(x, y, verbose=0)
    assert 0 < found["mean_cost"] < 1.5
    assert all(layer.trainable for layer in model.layers)


def test_every_task_of_the_guide():
    """All in a row, as a reader may run them; the beginning, which trains, once."""
    keras.utils.set_random_seed(0)
    names = {"__name__": "__guide__"}
    for section, text in sections("guide.md").items():
        for code in blocks(text):
            exec(compile(code, f"<guide: {section}>", "exec"), names)
    assert names["dynamic"].exit_rule.threshold != [0.9, 0.9]
    assert names["report"].certificate is not None
    p = names["p"]
    np.testing.assert_array_equal(
        names["again"].predict_dynamic(names["x_test"], verbose=0).exit_index,
        names["model"].predict_dynamic(names["x_test"], verbose=0).exit_index,
    )
    assert len(p) == 500


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
    names = names_after("training_regimes.md", "Gradient rescaling")
    balanced, x, y = names["model"], names["x"], names["y"]
    plain = names["network"]()
    plain.set_weights(balanced.get_weights())
    rescaled, sums = (gradients_of_kernels(m, x, y) for m in (balanced, plain))
    # Three exits lie behind the first layer, two behind the second. Heads learn as
    # they would without.
    for found, total, exits in zip(rescaled, sums, (3, 2, 1, 1), strict=True):
        np.testing.assert_allclose(found, total / exits, atol=1e-6)
