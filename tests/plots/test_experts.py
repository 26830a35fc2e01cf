"""Plots of experts: the records against NumPy, the drawings by what is in them."""

import keras
import numpy as np
import pytest
from matplotlib import pyplot

import keras_dynamic as kd
from tests.plots.checks import save
from tests.plots.mixtures import images, vit


def test_load_over_time(tmp_path):
    model, moe, _ = vit()
    model.compile("sgd", "mse")
    x = images(10)
    history = model.fit(
        x,
        np.zeros((10, 5)),
        validation_data=(x, np.zeros((10, 5))),
        epochs=3,
        verbose=0,
    )
    record = kd.plots.expert_load(history, moe)
    assert record.loads.shape == (3, 3)
    expected = [history.history[f"moe_load_{expert}"] for expert in range(3)]
    np.testing.assert_array_equal(record.loads.T, expected)
    validation = kd.plots.expert_load(history.history, "moe", prefix="val_")
    np.testing.assert_array_equal(
        validation.loads[:, 1], history.history["val_moe_load_1"]
    )
    _, given = pyplot.subplots()
    ax = record.plot(given)
    assert ax is given
    (image,) = ax.images
    np.testing.assert_allclose(image.get_array(), record.loads.T * 3)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "expert")
    save(ax, tmp_path / "load.png")


def test_load_by_class(tmp_path):
    model, moe, tokens = vit(top_k=2)
    x, y = images(20), np.arange(20) % 3 + 1
    record = kd.plots.expert_load_by_class(model, "moe", x, y, batch_size=8)
    logits = tokens(x).numpy() @ moe.router.kernel.numpy()
    chosen = np.argsort(-logits, axis=-1)[..., :2]
    expected = [
        [np.mean(chosen[y == label] == expert) for expert in range(3)]
        for label in (1, 2, 3)
    ]
    np.testing.assert_allclose(record.loads, expected, rtol=1e-6)
    assert record.classes == [1, 2, 3]
    ax = record.plot()
    np.testing.assert_array_equal(ax.images[0].get_array(), record.loads)
    save(ax, tmp_path / "classes.png")
    names = kd.plots.expert_load_by_class(
        model, moe, x, y, ["no", "a", "b", "c"]
    ).classes
    assert names == ["a", "b", "c"]


def test_load_by_class_where_experts_choose():
    model, moe, _ = vit("expert_choice", top_k=1.5)  # 1.5 * 6 / 3 tokens each
    record = kd.plots.expert_load_by_class(model, moe, images(6), np.zeros(6, "int32"))
    np.testing.assert_allclose(record.loads, [[1 / 3] * 3])


def test_padding_counts_for_nobody():
    words = np.array([[1, 2, 0, 0], [3, 0, 0, 0], [1, 1, 1, 1]])
    inputs = keras.Input((4,))
    embedding = keras.layers.Embedding(5, 6, mask_zero=True)
    moe = kd.SparseMoE(3, 8, name="moe")
    model = keras.Model(inputs, moe(embedding(inputs)))
    record = kd.plots.expert_load_by_class(model, moe, words, np.zeros(3, "int32"))
    logits = embedding(words).numpy() @ moe.router.kernel.numpy()
    chosen = np.argmax(logits, axis=-1)[words > 0]
    expected = np.bincount(chosen, minlength=3) / len(chosen)
    np.testing.assert_allclose(record.loads, [expected], rtol=1e-6)


def test_models_that_cannot_be_followed():
    class Subclassed(keras.Model):
        def call(self, inputs):
            return inputs

    with pytest.raises(ValueError, match="functional or built Sequential.*Subclassed"):
        kd.plots.expert_load_by_class(Subclassed(), "moe", images(2), np.zeros(2))
    inputs = keras.Input((4, 6))
    moe = kd.SparseMoE(3, 8, name="moe")
    twice = keras.Model(inputs, moe(moe(inputs)))
    with pytest.raises(ValueError, match=r"calls once.*\['moe', 'moe'\]"):
        kd.plots.expert_load_by_class(twice, moe, np.ones((2, 4, 6)), np.zeros(2))


def test_bad_input():
    model, moe, _ = vit()
    with pytest.raises(ValueError, match=r"moe_load_0.*\['loss'\]"):
        kd.plots.expert_load({"loss": [1.0]}, "moe")
    with pytest.raises(ValueError, match=r"\['moe'\].*layer='other'"):
        kd.plots.expert_load_by_class(model, "other", images(2), np.zeros(2))
    with pytest.raises(ValueError, match=r"`y`.*2 samples.*shape \(3,\)"):
        kd.plots.expert_load_by_class(model, moe, images(2), np.zeros(3))
    x, y = images(9), np.arange(9) - 1
    with pytest.raises(ValueError, match="`class_names`.*0 to 7.*9 names.* -1 to 7"):
        kd.plots.expert_load_by_class(model, moe, x, y, list("abcdefghi"))
    with pytest.raises(ValueError, match="`class_names`.*0 to 8.*2 names"):
        kd.plots.expert_load_by_class(model, moe, x, y + 1, ["a", "b"])
    with pytest.raises(ValueError, match="`y` must have an integer.*float64"):
        kd.plots.expert_load_by_class(model, moe, x, y / 2)
    with pytest.raises(ValueError, match="`x` must hold at least one sample"):
        kd.plots.expert_load_by_class(model, moe, x[:0], y[:0])
    with pytest.raises(TypeError, match="`history`.*`fit`.*history=None.*NoneType"):
        kd.plots.expert_load(None, "moe")


def test_a_hundred_classes(tmp_path):
    loads = np.random.default_rng(0).dirichlet(np.ones(12), 100)
    names = [f"class {label}" for label in range(100)]
    ax = kd.plots.ExpertLoadByClass(loads, names, "moe").plot()
    # Every 100 // 12 = 8th has a name; else they are a black bar.
    assert list(ax.get_yticks()) == list(range(0, 100, 8))
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == names[::8]
    assert ax.images[0].get_interpolation() == "nearest"
    save(ax, tmp_path / "hundred.png")
