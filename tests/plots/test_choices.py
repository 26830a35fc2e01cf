"""Blends and choices: held against NumPy, and against what the layers answer."""

import keras
import numpy as np
import pytest
from keras import layers
from matplotlib import pyplot

import keras_dynamic as kd
from tests.plots.checks import save

NAMES = ["relu", "tanh", "linear"]


def functions(x):
    return np.stack([np.maximum(x, 0), np.tanh(x), x])


def blended(parameters, **arguments):
    layer = kd.BlendedActivation(NAMES, **arguments)
    parameters = np.asarray(parameters, "float32")
    if parameters.ndim > 1:
        layer.build((None, parameters.shape[1]))
    layer.parameters.assign(parameters)
    return layer


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(axis=0)


def test_one_blend(tmp_path):
    parameters = np.array([2.0, 0.0, -1.0])
    layer = blended(parameters, temperature=2.0, name="blend")
    record = kd.plots.blend(layer, limits=(-1, 3))
    assert (record.layers, record.activations) == (["blend"], [NAMES])
    assert (record.x[0], record.x[-1]) == (-1, 3)
    weights = softmax(parameters / 2)
    np.testing.assert_allclose(record.weights[0][:, 0], weights, rtol=1e-6)
    np.testing.assert_allclose(record.curves[0], functions(record.x), atol=1e-6)
    answer = record.answers[0][0]
    np.testing.assert_allclose(answer, weights @ functions(record.x), atol=1e-6)
    np.testing.assert_allclose(answer, layer(record.x[:, None])[:, 0], atol=1e-6)
    axes = record.plot()
    assert axes.shape == (1, 2)
    left, right = axes[0]
    widths = [bar.get_width() for bar in left.patches]
    np.testing.assert_allclose(widths, weights, rtol=1e-6)
    assert [label.get_text() for label in left.get_yticklabels()] == NAMES
    legend = [text.get_text() for text in right.get_legend().get_texts()]
    assert legend == [*NAMES, "layer"]
    np.testing.assert_array_equal(right.lines[1].get_ydata(), record.curves[0][1])
    np.testing.assert_array_equal(right.lines[3].get_ydata(), answer)
    for style in ("color", "linestyle"):
        assert len({pyplot.getp(line, style) for line in right.lines[:3]}) == 3
    save(axes, tmp_path / "blend.png")


def test_weights_of_any_sign():
    layer = blended([-0.5, 1.0, 0.25], constraint="unrestricted")
    record = kd.plots.blend(layer)
    np.testing.assert_array_equal(record.weights[0][:, 0], [-0.5, 1, 0.25])
    (left, _) = record.plot()[0]
    assert left.patches[0].get_width() == -0.5


def test_blends_by_unit(tmp_path):
    parameters = np.random.default_rng(0).normal(size=(3, 5))
    layer = blended(parameters, shared_axes=[], name="units")
    record = kd.plots.blend(layer)
    weights = softmax(parameters)
    np.testing.assert_allclose(record.weights[0], weights, rtol=1e-5)
    expected = weights.T @ functions(record.x)
    np.testing.assert_allclose(record.answers[0], expected, atol=1e-5)
    same = np.repeat(record.x[:, None], 5, axis=1)
    np.testing.assert_allclose(record.answers[0], np.transpose(layer(same)), atol=1e-5)
    left, right = record.plot()[0]
    np.testing.assert_allclose(left.images[0].get_array(), record.weights[0])
    (mean,) = [line for line in right.lines if "mean of 5" in line.get_label()]
    np.testing.assert_allclose(mean.get_ydata(), expected.mean(axis=0), atol=1e-5)
    save(left, tmp_path / "units.png")


@pytest.mark.parametrize("shared_axes", [None, []])
def test_the_winner_of_a_hard_estimator(shared_axes):
    parameters = [0.0, 1.0, 0.5]
    if shared_axes is not None:
        parameters = [[0.0, 2.0], [1.0, 0.0], [0.5, 0.0]]
    layer = blended(parameters, estimator="straight_through", shared_axes=shared_axes)
    record = kd.plots.blend(layer)
    winners = [1] if shared_axes is None else [1, 0]
    np.testing.assert_allclose(
        record.answers[0], functions(record.x)[winners], atol=1e-6
    )
    np.testing.assert_allclose(
        record.weights[0], softmax(np.reshape(parameters, (3, -1))), rtol=1e-6
    )


def test_all_blends_of_a_model(tmp_path):
    inputs = keras.Input((4,))
    hidden = layers.Dense(6, kd.BlendedActivation(NAMES, name="inner"))(inputs)
    outputs = kd.BlendedActivation(["elu", "relu"], name="outer")(hidden)
    model = keras.Model(inputs, outputs)
    record = kd.plots.blend(model)
    assert record.layers == ["inner", "outer"]
    assert record.activations == [NAMES, ["elu", "relu"]]
    axes = record.plot()
    assert axes.shape == (2, 2)
    assert axes[1, 0].get_title() == "Weights of outer"
    save(axes, tmp_path / "model.png")


def test_choices(tmp_path):
    choices = []
    for number, logits in enumerate([[1.0, 3.0, 0.0], [2.0, 0.0, 0.0]]):
        options = [layers.Dense(4, name=name) for name in ("a", "b")]
        options.append(layers.Identity(name="skip"))
        choice = kd.LayerChoice(options, temperature=2.0, name=f"choice_{number}")
        choice.logits.assign(logits)
        choices.append(choice)
    model = keras.Sequential([keras.Input((4,)), *choices])
    record = kd.plots.layer_choices(model)
    assert record.layers == ["choice_0", "choice_1"]
    assert record.options == [["a", "b", "skip"]] * 2
    assert record.winners == [1, 0]
    expected = softmax(np.array([0.5, 1.5, 0]))
    np.testing.assert_allclose(record.probabilities[0], expected, rtol=1e-6)
    axes = record.plot()
    assert len(axes) == 2
    widths = [bar.get_width() for bar in axes[0].patches]
    np.testing.assert_allclose(widths, 100 * expected, rtol=1e-6)
    # The winner is the only one without hatching.
    assert [bar.get_hatch() for bar in axes[0].patches] == ["///", None, "///"]
    save(axes, tmp_path / "choices.png")
    _, given = pyplot.subplots()
    assert kd.plots.layer_choices(choices[0]).plot(given)[0] is given


def test_bad_input():
    plain = layers.Dense(2, name="plain")
    with pytest.raises(
        ValueError, match="`layer_or_model`.*`BlendedActivation`.*plain"
    ):
        kd.plots.blend(plain)
    with pytest.raises(ValueError, match="`layer_or_model`.*`LayerChoice`.*'str'"):
        kd.plots.layer_choices("choice")
    layer = blended([0.0, 0.0, 0.0])
    with pytest.raises(ValueError, match=r"`limits`.*\[1.0, 1.0\]"):
        kd.plots.blend(layer, limits=(1, 1))
    with pytest.raises(RuntimeError, match="no weights yet"):
        kd.plots.blend(kd.BlendedActivation(NAMES, shared_axes=[1]))
    with pytest.raises(ValueError, match="`axes` must be 2: 1 x 2. Received: 1"):
        kd.plots.blend(layer).plot(pyplot.subplots()[1])
