"""Patches of images and their experts, against NumPy, and the room for the legend."""

import dataclasses

import numpy as np
import pytest
from matplotlib import colors, pyplot

import keras_dynamic as kd
from tests.plots.checks import save
from tests.plots.mixtures import images, vit


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


@pytest.mark.parametrize(("count", "experts"), [(1, 3), (1, 12), (1, 64), (4, 16)])
def test_the_legend_is_within_the_figure_and_beside_the_image(count, experts):
    pictures = np.random.default_rng(0).uniform(size=(count, 8, 8, 3))
    chosen = np.zeros((count, 2, 2), int)
    axes = kd.plots.PatchExperts(pictures, chosen, experts, "a_long_name").plot()
    figure = axes[0].figure
    figure.canvas.draw()
    legend = axes[-1].get_legend().get_window_extent()
    assert 0 <= legend.x0 and legend.x1 <= figure.bbox.x1
    assert 0 <= legend.y0 and legend.y1 <= figure.bbox.y1
    for ax in axes:
        assert not legend.overlaps(ax.get_window_extent())
        assert ax.get_window_extent().height >= 1.9 * figure.dpi
    texts = axes[0].findobj(pyplot.Text)
    (title,) = [text for text in texts if text.get_text().startswith("Experts of")]
    assert not legend.overlaps(title.get_window_extent())


def test_many_images_stay_on_a_page():
    pictures = np.zeros((40, 8, 8))
    record = kd.plots.PatchExperts(pictures, np.zeros((40, 2, 2), int), 3, "moe")
    assert record.plot()[0].figure.get_size_inches()[0] < 25


def test_colors_are_shown_within_their_range():
    pictures = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3))
    pictures.flat[:2] = 0, 255
    chosen = np.zeros((2, 2, 2), int)
    for values in (pictures, pictures / 127.5 - 1):
        axes = kd.plots.PatchExperts(values, chosen, 3, "moe").plot()
        for ax, picture in zip(axes, pictures, strict=True):
            shown = ax.images[0].get_array()
            np.testing.assert_allclose(shown, picture / 255, atol=1e-6)


def test_bad_input():
    model, moe, _ = vit()
    with pytest.raises(ValueError, match="no square.*6 tokens"):
        kd.plots.patch_experts(model, moe, images(2))
    with pytest.raises(ValueError, match=r"at most 6 patches.*\(3, 3\)"):
        kd.plots.patch_experts(model, moe, images(2), grid=(3, 3))
    with pytest.raises(ValueError, match="tokens choose experts.*'moe'"):
        kd.plots.patch_experts(*vit("expert_choice")[:2], images(2), grid=(2, 3))
    record = kd.plots.patch_experts(model, moe, images(2), grid=(2, 3))
    with pytest.raises(ValueError, match="there are images, 2. Received: 1"):
        record.plot(pyplot.subplots()[1])
    for grid in (4, (2,), (-2, -3), (2.0, 3.0)):
        with pytest.raises(ValueError, match="`grid`.*two integers.*grid="):
            kd.plots.patch_experts(model, moe, images(2), grid=grid)
    with pytest.raises(ValueError, match="`images` must hold at least one sample"):
        kd.plots.patch_experts(model, moe, images(0), grid=(2, 3))
