"""add_exits on keras.applications and keras-hub: attached, fitted, run, saved, loaded.

Without pretrained weights, on small inputs, so that nothing is downloaded.
"""

import keras
import numpy as np
import pytest

import keras_dynamic as kd

RNG = np.random.default_rng(0)
SHARES = (0.25, 0.5, 0.75)


def outputs_of(model, x):
    """Eagerly: one call does not pay for a graph."""
    return [np.asarray(out) for out in keras.tree.flatten(model(x, training=False))]


def assert_works(network, x, path, at=SHARES, **arguments):
    """Attaches exits and takes them through a model's life; returns the model."""
    (answers,) = outputs_of(network, x)
    model = kd.add_exits(network, at, **arguments)
    outputs = outputs_of(model, x)
    if "units" not in arguments:
        np.testing.assert_allclose(outputs[-1], answers, atol=1e-5)
    optimizer = keras.optimizers.SGD(1e-4)
    model.compile(optimizer, "sparse_categorical_crossentropy", run_eagerly=True)
    y = np.arange(len(outputs[-1])) % outputs[-1].shape[1]
    losses = model.train_on_batch(x, y)
    assert np.isfinite(losses).all()
    model.calibrate(x, y, budget=1.1)
    first = model.predict_dynamic(x, rule=kd.rules.MaxProbability(0.0), verbose=0)
    scores = np.sort(first.confidence)
    assert scores[1] - scores[0] > 1e-6
    rule = kd.rules.MaxProbability([float(scores[:2].mean()), *[None] * (len(at) - 1)])
    model.exit_rule = rule
    prediction = model.predict_dynamic(x, verbose=0)
    assert set(prediction.exit_index) == {0, len(at)}  # some leave, some stay
    outputs = outputs_of(model, x)
    for exit_index in (0, len(at)):
        rows = prediction.exit_index == exit_index
        np.testing.assert_allclose(
            prediction.outputs[rows], outputs[exit_index][rows], atol=1e-5
        )
    model.save(path / "model.keras")
    again = keras.models.load_model(path / "model.keras")
    assert again.exit_names == model.exit_names
    np.testing.assert_array_equal(again.exit_rule.threshold, rule.threshold)
    for one, other in zip(outputs, outputs_of(again, x), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    return model


def trunk_shares(model, shape=None):
    """FLOPs of the network up to each early exit, heads not counted."""
    costs = model.compute_costs(shape)
    heads = np.cumsum([0, *costs.heads[:-1]])[1:]
    return (np.array(costs.exits[:-1]) - heads) / costs.reference


# Networks that rescale or normalize what they are fed take pixels as they are.
PIXELS = {"EfficientNetB0", "ConvNeXtTiny"}


@pytest.mark.parametrize(
    "name",
    [
        "ConvNeXtTiny",
        "DenseNet121",
        "EfficientNetB0",
        "MobileNetV2",
        "ResNet50",
        "VGG16",
    ],
)
def test_applications(name, tmp_path):
    build = getattr(keras.applications, name)
    network = build(input_shape=(32, 32, 3), weights=None, classes=4)
    x = RNG.uniform(0, 255, (4, 32, 32, 3)).astype("float32")
    x = x if name in PIXELS else x / 128 - 1
    model = assert_works(network, x, tmp_path)
    np.testing.assert_allclose(trunk_shares(model), SHARES, atol=0.05)


def tokens(rows=4, length=12):
    """A batch of token ids, padded to different lengths."""
    lengths = RNG.integers(4, length + 1, (rows, 1))
    return {
        "token_ids": RNG.integers(1, 50, (rows, length)).astype("int32"),
        "padding_mask": (np.arange(length) < lengths).astype("int32"),
    }


def text_backbone(name):
    models = pytest.importorskip("keras_hub").models
    return getattr(models, name)(
        vocabulary_size=50,
        num_layers=3,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
        max_sequence_length=16,
    )


def test_bert_classifier(tmp_path):
    """Its backbone is nested, its answer comes from the class token and a pooler."""
    backbone = text_backbone("BertBackbone")
    network = pytest.importorskip("keras_hub").models.BertTextClassifier(
        backbone, num_classes=3, preprocessor=None, activation="softmax"
    )
    x = {**tokens(), "segment_ids": np.zeros((4, 12), "int32")}
    model = assert_works(network, x, tmp_path, at=(0.33, 0.67))
    head = model.get_layer("exit_1")
    assert head.pooling == "first"
    assert head.hidden_units == [16]
    assert head.hidden_activation is keras.activations.tanh
    assert model.get_layer("exit_1_dropout").rate == 0.1
    np.testing.assert_allclose(
        trunk_shares(model, [(12,)] * 3), [1 / 3, 2 / 3], atol=0.02
    )


def test_distilbert_backbone(tmp_path):
    """No head of its own; padded tokens do not count in the mean."""
    model = assert_works(
        text_backbone("DistilBertBackbone"),
        tokens(),
        tmp_path,
        at=(0.33, 0.67),
        units=3,
    )
    assert model.exit_names == ["exit_1", "exit_2", "final"]
    x = tokens()
    other = {**x, "token_ids": np.where(x["padding_mask"], x["token_ids"], 7)}
    for one, two in zip(outputs_of(model, x), outputs_of(model, other), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)


def test_gpt2_backbone(tmp_path):
    """Its stream is normalized at the very end only, so its exits normalize too."""
    model = assert_works(
        text_backbone("GPT2Backbone"), tokens(), tmp_path, at=(0.33, 0.67), units=3
    )
    normal = model.get_layer("exit_1_normalization")
    assert isinstance(normal, keras.layers.LayerNormalization)
    assert normal.epsilon == 1e-05
    assert not any(layer.name == "final_normalization" for layer in model.layers)


def test_vit_classifier(tmp_path):
    """Its encoder, one layer, is taken apart."""
    models = pytest.importorskip("keras_hub").models
    backbone = models.ViTBackbone(
        image_shape=(8, 8, 3),
        patch_size=4,
        num_layers=3,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=32,
    )
    network = models.ViTImageClassifier(
        backbone, num_classes=3, preprocessor=None, activation="softmax"
    )
    x = RNG.normal(size=(4, 8, 8, 3)).astype("float32")
    names = [cut.name for cut in kd.suggest_exits(network)]
    assert names[-2:] == ["transformer_block_1", "transformer_block_2"]
    model = assert_works(network, x, tmp_path, at=(0.38, 0.69))
    assert model.get_layer("exit_1").pooling == "first"
    own = {id(w) for w in network.weights}
    assert own <= {id(w) for w in model.weights}
