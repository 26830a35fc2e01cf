"""Plots of experts: the records against NumPy, the drawings by what is in them."""

import dataclasses

import keras
import numpy as np
import pytest
from matplotlib import colors, pyplot

import keras_dynamic as kd
from tests.plots.checks import save


def vit(router="top_k", **arguments):
    """Patches of 4 x 4, 3 experts; the router's weight is random."""
    inputs = keras.Input((8, 12, 1))
    patches = keras.layers.Conv2D(5, 4, strides=4)(inputs)
    tokens = keras.layers.Reshape((6, 5))(patches)
    moe = kd.SparseMoE(3, 8, router=router, name="moe", **arguments)
    outputs = keras.layers.GlobalAveragePooling1D()(moe(tokens))
    model = keras.Model(inputs, outputs)
    return model, moe, keras.Model(inputs, tokens)


def images(count):
    shape = (count, 8, 12, 1)
    return np.random.default_rng(0).normal(size=shape).astype("float32")


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


def test_patches(tmp_path):
    model, moe, tokens = vit()
    x = images(4)
    record = kd.plots.patch_experts(model, moe, x, grid=(2, 3))
    logits = tokens(x).numpy() @ moe.router.kernel.numpy()
    expected = np.argmax(logits, axis=-1).reshape(4, 2, 3)
    np.testing.assert_array_equal(record.experts, expected)
    axes = record.plot()
    assert len(axes) == 4
    # Patch (1, 2) of image 3: its place, and the color that the legend gives.
    patch = axes[3].patches[5]
    assert patch.get_xy() == (2 * 4 - 0.5, 1 * 4 - 0.5)
    assert (patch.get_width(), patch.get_height()) == (4, 4)
    handles = axes[3].get_legend().get_patches()
    color = handles[expected[3, 1, 2]].get_facecolor()
    assert colors.to_hex(patch.get_facecolor()) == colors.to_hex(color)
    save(axes, tmp_path / "patches.png")
    gray = dataclasses.replace(record, images=x[..., 0])
    again = gray.plot()
    for one, other in zip(axes, again, strict=True):
        np.testing.assert_array_equal(
            one.images[0].get_array(), other.images[0].get_array()
        )


def test_many_experts_differ_by_hatching():
    record = kd.plots.PatchExperts(
        images(1), np.arange(6).reshape(1, 2, 3) * 3, 16, "moe"
    )
    (ax,) = record.plot()
    styles = {
        (handle.get_facecolor(), handle.get_hatch())
        for handle in ax.get_legend().get_patches()
    }
    assert len(styles) == 16


def test_class_token_before_the_patches():
    record = kd.plots.PatchExperts(images(1), np.full((1, 2, 3), -1), 3, "moe")
    (ax,) = record.plot()
    assert not ax.patches  # nobody's patches are not colored
    model, _, _ = vit()
    last = kd.plots.patch_experts(model, "moe", images(2), grid=(1, 4)).experts
    both = kd.plots.patch_experts(model, "moe", images(2), grid=(1, 6)).experts
    np.testing.assert_array_equal(last, both[:, :, 2:])


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
    with pytest.raises(ValueError, match=r"2 samples.*shape \(3,\)"):
        kd.plots.expert_load_by_class(model, moe, images(2), np.zeros(3))
    with pytest.raises(ValueError, match="no square.*6 tokens"):
        kd.plots.patch_experts(model, moe, images(2))
    with pytest.raises(ValueError, match=r"at most 6 patches.*\(3, 3\)"):
        kd.plots.patch_experts(model, moe, images(2), grid=(3, 3))
    with pytest.raises(ValueError, match="tokens choose experts.*'moe'"):
        kd.plots.patch_experts(*vit("expert_choice")[:2], images(2), grid=(2, 3))
    record = kd.plots.patch_experts(model, moe, images(2), grid=(2, 3))
    with pytest.raises(ValueError, match="there are images, 2. Received: 1"):
        record.plot(pyplot.subplots()[1])
