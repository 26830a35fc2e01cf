import json
import math

import keras
import numpy as np
import pytest
from keras import ops
from scipy import special

import keras_dynamic as kd
from tests.layers.checks import check_layer, two_replicas

LABELS = np.array([0, 2, 1, 1, 0, 2])
ONE_HOT = np.eye(3, dtype="float32")[LABELS]
YES = (LABELS == 1).astype("float32")


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def pooled(inputs, features, mask=None, **arguments):
    """What an exit pools `inputs` to: its logits under an identity matrix."""
    exit_layer = kd.EarlyExit(features, activation=None, **arguments)
    exit_layer.build(inputs.shape)
    exit_layer.classifier.kernel.assign(np.eye(features))
    return exit_layer(inputs, mask=mask).numpy().tolist()


# The whole contract of a layer


@pytest.mark.parametrize(
    "shape, arguments",
    [
        pytest.param((6, 7), {"hidden_units": [4, 5]}, id="vectors"),
        pytest.param((6, 8, 8, 2), {"hidden_activation": "tanh"}, id="images"),
        pytest.param((6, 4, 4, 4, 2), {"pooling": "max"}, id="volumes"),
    ],
)
def test_is_a_layer(shape, arguments):
    check_layer(
        lambda: kd.EarlyExit(3, loss_weight=0.3, **arguments),
        normal(*shape),
        targets=LABELS,
        loss="sparse_categorical_crossentropy",
        config={"loss_weight": 0.3},
    )


def test_is_a_layer_on_masked_tokens_with_targets():
    mask = np.arange(5) < np.array([[5], [3], [1], [4], [0], [2]])
    check_layer(
        lambda: kd.EarlyExit(3, loss_weight=0.3, activation=None, loss="mse"),
        normal(6, 5, 2),
        targets=normal(6, 3, seed=1),
        call_arguments={"mask": mask, "targets": normal(6, 3, seed=2)},
        config={"loss_weight": 0.3, "activation": "linear"},
    )


def test_is_a_layer_with_a_layer_and_a_loss_of_its_own():
    check_layer(
        lambda: kd.EarlyExit(
            1,
            pooling=keras.Sequential(
                [keras.layers.Conv2D(2, 3), keras.layers.GlobalAveragePooling2D()]
            ),
            activation="sigmoid",
            loss=keras.losses.BinaryCrossentropy(label_smoothing=0.1),
        ),
        normal(6, 5, 5, 2),
        targets=YES[:, None],
        loss="binary_crossentropy",
        call_arguments={"targets": YES[:, None]},
    )


# Pooling

# Two channels, the second ten times the first.
IMAGE = np.array([[[[1, 10], [2, 20]], [[3, 30], [6, 60]]]], "float32")
TOKENS = np.array([[[1, 10], [2, 20], [6, 60]]], "float32")


@pytest.mark.parametrize("pooling, expected", [("average", 3), ("auto", 3), ("max", 6)])
def test_image(pooling, expected):
    # (1 + 2 + 3 + 6) / 4 = 3; the map is too small for a grid.
    assert pooled(IMAGE, 2, pooling=pooling) == [[expected, 10 * expected]]


@pytest.mark.parametrize("pooling, expected", [("average", 3), ("max", 6)])
def test_image_with_channels_first(pooling, expected):
    image = IMAGE.transpose(0, 3, 1, 2)
    vector = pooled(image, 2, pooling=pooling, data_format="channels_first")
    assert vector == [[expected, 10 * expected]]


def test_image_flattened():
    vector = pooled(IMAGE, 8, pooling="flatten")
    assert vector == [[1, 10, 2, 20, 3, 30, 6, 60]]


@pytest.mark.parametrize("pooling, expected", [("average", 3), ("auto", 3), ("max", 6)])
def test_tokens(pooling, expected):
    # (1 + 2 + 6) / 3 = 3
    assert pooled(TOKENS, 2, pooling=pooling) == [[expected, 10 * expected]]


def test_first_token():
    assert pooled(TOKENS, 2, pooling="first") == [[1, 10]]


def test_tokens_flattened():
    assert pooled(TOKENS, 6, pooling="flatten") == [[1, 10, 2, 20, 6, 60]]


@pytest.mark.parametrize("pooling", ["auto", "average", "max", "flatten"])
def test_vector_is_left_as_it_is(pooling):
    assert pooled(np.array([[1.0, 2.0]]), 2, pooling=pooling) == [[1, 2]]


@pytest.mark.parametrize(
    "pooling, expected", [("average", 3.5), ("auto", 3.5), ("max", 7)]
)
def test_volume(pooling, expected):
    # (0 + 1 + ... + 7) / 8 = 3.5, and 9 more in the second channel
    cube = np.arange(8, dtype="float32").reshape(1, 2, 2, 2, 1)
    volume = np.concatenate([cube, cube + 9], axis=-1)
    assert pooled(volume, 2, pooling=pooling) == [[expected, expected + 9]]
    volume = volume.transpose(0, 4, 1, 2, 3)
    vector = pooled(volume, 2, pooling=pooling, data_format="channels_first")
    assert vector == [[expected, expected + 9]]


def test_early_large_map_keeps_a_grid():
    # Rows of 0..7, 8..15, ...: the first 2 x 2 cell is (0 + 1 + 8 + 9) / 4 = 4.5, the
    # next one 2 more, and the cell below it 16 more.
    image = np.arange(64, dtype="float32").reshape(1, 8, 8, 1)
    expected = [4.5 + 2 * x + 16 * y for y in range(4) for x in range(4)]
    assert pooled(image, 16) == [expected]
    image = image.transpose(0, 3, 1, 2)
    assert pooled(image, 16, data_format="channels_first") == [expected]


@pytest.mark.parametrize(
    "shape, features",
    [
        ((8, 8, 64), 4 * 4 * 64),  # 1,024 numbers are the most
        ((8, 8, 65), 2 * 2 * 65),
        ((7, 9, 3), 2 * 2 * 3),  # cells of 4 x 4 need 8 pixels a side
        ((4, 4, 257), 257),
        ((3, 9, 3), 3),
    ],
)
def test_grid_is_as_fine_as_the_map_allows(shape, features):
    height, width, channels = shape
    for data_format, input_shape in {
        "channels_last": (None, height, width, channels),
        "channels_first": (None, channels, height, width),
    }.items():
        exit_layer = kd.EarlyExit(2, data_format=data_format)
        exit_layer.build(input_shape)
        assert exit_layer.classifier.kernel.shape == (features, 2)


@pytest.mark.parametrize("pooling", ["average", "max"])
def test_named_pooling_is_global(pooling):
    exit_layer = kd.EarlyExit(2, pooling=pooling)
    exit_layer.build((None, 8, 8, 3))
    assert exit_layer.classifier.kernel.shape == (3, 2)


@pytest.mark.parametrize(
    "pooling, expected",
    [
        ("auto", [2.5, 4.5, 10.5, 12.5]),
        ("average", [2.5, 4.5, 10.5, 12.5]),
        ("max", [5, 7, 13, 15]),
    ],
)
def test_grid_by_hand(pooling, expected):
    # Rows of 0..3, 4..7, ...: the first 2 x 2 cell holds 0, 1, 4 and 5.
    image = np.arange(16, dtype="float32").reshape(1, 4, 4, 1)
    assert pooled(image, 4, pooling=pooling, grid=2) == [expected]


def test_grid_of_one_pools_a_large_map_globally():
    image = np.arange(64, dtype="float32").reshape(1, 8, 8, 1)
    assert pooled(image, 1, grid=1) == [[31.5]]


def test_size_of_an_image_may_be_unknown():
    exit_layer = kd.EarlyExit(2)
    outputs = exit_layer(keras.Input((None, None, 3)))
    assert outputs.shape == (None, 2)
    assert exit_layer(normal(2, 9, 5, 3)).shape == (2, 2)


def test_pooling_by_a_layer():
    # Means of the columns, (1 + 3) / 2 and (2 + 6) / 2, flattened.
    layer = keras.layers.AveragePooling2D((2, 1))
    assert pooled(IMAGE, 4, pooling=layer) == [[2, 20, 4, 40]]


def test_pooling_layer_is_trained_and_told_of_training():
    layer = keras.Sequential([keras.layers.Conv1D(2, 2), keras.layers.Dropout(0.5)])
    exit_layer = kd.EarlyExit(3, pooling=layer)
    exit_layer.build((None, 3, 2))
    assert len(exit_layer.trainable_weights) == 4
    outputs = exit_layer(normal(4, 3, 2))
    np.testing.assert_array_equal(exit_layer(normal(4, 3, 2)), outputs)
    assert np.any(exit_layer(normal(4, 3, 2), training=True) != outputs)


# Masks

MASK = np.array([[True, True, False]])


@pytest.mark.parametrize(
    "pooling, expected", [("auto", 1.5), ("average", 1.5), ("max", 2)]
)
def test_mask_leaves_tokens_out(pooling, expected):
    # (1 + 2) / 2 = 1.5
    assert pooled(TOKENS, 2, MASK, pooling=pooling) == [[expected, 10 * expected]]


def test_masked_maximum_may_be_negative():
    assert pooled(-TOKENS, 2, ~MASK, pooling="max") == [[-6, -60]]


@pytest.mark.parametrize("pooling", ["average", "max"])
def test_sample_without_tokens_gives_zeros(pooling):
    tokens = np.concatenate([TOKENS, TOKENS])
    mask = np.concatenate([np.zeros_like(MASK), MASK])
    vectors = pooled(tokens, 2, mask, pooling=pooling)
    assert vectors[0] == [0, 0]
    assert vectors[1] != [0, 0]


@pytest.mark.parametrize("pooling, expected", [("average", 1.5), ("max", 2)])
def test_nan_in_padded_tokens_does_not_spread(pooling, expected):
    tokens = TOKENS.copy()
    tokens[:, 2] = np.nan
    assert pooled(tokens, 2, MASK, pooling=pooling) == [[expected, 10 * expected]]


def test_mask_reaches_a_pooling_layer():
    tokens = ops.convert_to_tensor(TOKENS)
    layer = keras.layers.GlobalAveragePooling1D()
    assert pooled(tokens, 2, MASK, pooling=layer) == [[1.5, 15]]
    # The mask was that call's only.
    assert pooled(tokens, 2, pooling=layer) == [[3, 30]]


class SeesMask(keras.layers.Layer):
    """Keeps the mask that it is given."""

    seen = "not called"

    def call(self, inputs, mask=None):
        self.seen = mask
        return inputs

    def compute_output_spec(self, inputs, mask=None):
        self.seen = mask
        return keras.KerasTensor(inputs.shape, inputs.dtype)


@pytest.mark.parametrize("pooling", ["auto", "max", "layer"])
@pytest.mark.parametrize("with_targets", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_mask_of_an_embedding_reaches_the_pooling(pooling, with_targets, dtype):
    # Any warning of Keras, such as of a mask that gets lost, is an error here.
    if pooling == "layer":
        pooling = keras.layers.GlobalAveragePooling1D(dtype=dtype)
    exit_layer = kd.EarlyExit(3, pooling=pooling, activation=None, dtype=dtype)
    tokens, labels = keras.Input((4,), dtype="int32"), keras.Input((), dtype="int32")
    embedding = keras.layers.Embedding(5, 2, mask_zero=True)
    after = SeesMask()
    outputs = exit_layer(embedding(tokens), targets=labels if with_targets else None)
    model = keras.Model([tokens, labels], [after(outputs), labels])
    assert after.seen is None

    padded = np.array([[3, 1, 0, 0], [2, 2, 2, 4]])
    answer = model.predict([padded, np.array([0, 1])], verbose=0)[0]
    assert after.seen is None
    vectors = embedding.embeddings.numpy()
    short = exit_layer(vectors[None, [3, 1]])
    np.testing.assert_allclose(answer[:1], short, rtol=1e-2, atol=1e-4)
    # A mask that is given stands before the one that the tensor carries.
    first = exit_layer(embedding(padded), mask=np.eye(2, 4, dtype=bool))
    alone = exit_layer(vectors[None, [3]]), exit_layer(vectors[None, [2]])
    np.testing.assert_allclose(first, ops.concatenate(alone), rtol=1e-2, atol=1e-4)


# Hidden layers, activations, precision


def test_hidden_units_by_hand():
    exit_layer = kd.EarlyExit(2, hidden_units=1, activation=None)
    exit_layer.build((None, 2))
    exit_layer.hidden_layers[0].kernel.assign([[1.0], [1.0]])
    exit_layer.classifier.kernel.assign([[2.0, -1.0]])
    exit_layer.classifier.bias.assign([0.0, 3.0])
    # relu(1 - 2) = 0 and relu(3 + 1) = 4; then (2 h, 3 - h).
    outputs = exit_layer(np.array([[1.0, -2.0], [3.0, 1.0]]))
    assert outputs.numpy().tolist() == [[0, 3], [8, -1]]


def test_hidden_layers_against_numpy():
    exit_layer = kd.EarlyExit(2, hidden_units=(4, 3), hidden_activation="tanh")
    inputs = normal(5, 6)
    outputs = exit_layer(inputs)
    hidden = inputs
    for layer in exit_layer.hidden_layers:
        hidden = np.tanh(hidden @ layer.kernel.numpy() + layer.bias.numpy())
    assert hidden.shape == (5, 3)
    logits = hidden @ exit_layer.classifier.kernel.numpy()
    np.testing.assert_allclose(outputs, special.softmax(logits, axis=1), rtol=1e-5)


@pytest.mark.parametrize(
    "units, activation, expected",
    [
        (2, "softmax", [0.25, 0.75]),
        (1, "sigmoid", [0.75]),
        (2, "sigmoid", [0.5, 0.75]),
        (1, None, [math.log(3)]),
        (2, "relu", [0, math.log(3)]),
    ],
)
def test_activation_by_hand(units, activation, expected):
    # Logits 0 and log 3: e^0 : e^(log 3) = 1 : 3, and 1 / (1 + 1/3) = 0.75.
    exit_layer = kd.EarlyExit(units, activation=activation)
    exit_layer.build((None, 1))
    exit_layer.classifier.kernel.assign(np.array([[0, math.log(3)]])[:, -units:])
    np.testing.assert_allclose(exit_layer(np.ones((1, 1)))[0], expected, rtol=1e-6)


@pytest.mark.parametrize(
    "dtype", ["mixed_float16", "mixed_bfloat16", "float16", "float64"]
)
@pytest.mark.parametrize("activation", ["softmax", None])
def test_outputs_are_float32(dtype, activation):
    exit_layer = kd.EarlyExit(3, hidden_units=4, activation=activation, dtype=dtype)
    inputs = keras.Input((6,), dtype=exit_layer.compute_dtype)
    assert exit_layer(inputs).dtype == "float32"
    outputs = exit_layer(ops.cast(normal(5, 6), exit_layer.compute_dtype))
    assert outputs.dtype == "float32"
    assert exit_layer.hidden_layers[0].compute_dtype == exit_layer.compute_dtype
    # The softmax is taken in float32: in float16 rows sum to 1 within 1e-3 only.
    if activation == "softmax":
        np.testing.assert_allclose(ops.sum(outputs, axis=1), np.ones(5), atol=1e-6)


@pytest.mark.parametrize("shape", [(5, 6), (5, 4, 3), (5, 4, 4, 2), (5, 2, 2, 2, 3)])
@pytest.mark.parametrize("activation", ["softmax", None])
def test_neutral_settings_equal_dense(shape, activation):
    exit_layer = kd.EarlyExit(3, "flatten", activation=activation, loss_weight=0)
    inputs = normal(*shape)
    outputs = exit_layer(inputs, targets=LABELS[:5])
    dense = keras.layers.Dense(3, activation=activation)
    flat = inputs.reshape(5, -1)
    dense.build(flat.shape)
    dense.set_weights([weight.numpy() for weight in exit_layer.trainable_weights])
    np.testing.assert_array_equal(outputs, dense(flat))
    assert [float(loss) for loss in exit_layer.losses] == [0.0]


# The weight of the loss


def test_loss_weight_is_a_weight():
    exit_layer = kd.EarlyExit(3, loss_weight=0.3, dtype="bfloat16")
    weight = exit_layer.current_loss_weight
    assert weight.dtype == "float32"
    assert any(weight is other for other in exit_layer.non_trainable_weights)
    assert exit_layer.loss_weight == 0.3
    assert exit_layer.get_config()["loss_weight"] == 0.3

    exit_layer.loss_weight = 0.7
    assert float(weight.numpy()) == np.float32(0.7)
    assert exit_layer.loss_weight == exit_layer.get_config()["loss_weight"] == 0.7
    weight.assign(0.2)
    assert exit_layer.loss_weight == pytest.approx(0.2)


def two_exits(exit_layer, features=4):
    """Model of (x, y) with an exit that is given y, and a final answer."""
    inputs, labels = keras.Input((features,)), keras.Input((), dtype="int32")
    early = exit_layer(inputs, targets=labels)
    final = keras.layers.Dense(3)(inputs)
    return keras.Model([inputs, labels], [early, final])


def compile_still(model, **arguments):
    """Compiles so that a step moves no weight and only the final answer has a loss."""
    model.compile(keras.optimizers.SGD(0.0), [None, "mse"], **arguments)


def test_loss_weight_changes_during_fit():
    exit_layer = kd.EarlyExit(3, loss_weight=1.0)
    model = two_exits(exit_layer)
    compile_still(model)
    x, y = normal(6, 4), normal(6, 3, seed=1)
    early, final = model.predict([x, LABELS], verbose=0)
    added = -np.mean(np.log(early[np.arange(6), LABELS]))
    other = np.mean((final - y) ** 2)

    class Schedule(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                exit_layer.loss_weight = 0.25
            if epoch == 2:
                exit_layer.current_loss_weight.assign(2.0)
            if epoch == 3:
                exit_layer.loss_weight = 0

    history = model.fit([x, LABELS], y, 6, 4, verbose=0, callbacks=[Schedule()])
    expected = [other + weight * added for weight in (1, 0.25, 2, 0)]
    np.testing.assert_allclose(history.history["loss"], expected, rtol=1e-5)


@pytest.mark.parametrize("by_weight", [False, True])
def test_loss_weight_is_saved(tmp_path, by_weight):
    exit_layer = kd.EarlyExit(3, loss_weight=0.3, name="early")
    model = two_exits(exit_layer)
    if by_weight:
        exit_layer.current_loss_weight.assign(0.7)
    else:
        exit_layer.loss_weight = 0.7
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")

    loaded = keras.saving.load_model(tmp_path / "model.keras").get_layer("early")
    assert loaded.loss_weight == pytest.approx(0.7)
    if not by_weight:
        assert loaded.get_config()["loss_weight"] == 0.7

    other_layer = kd.EarlyExit(3, loss_weight=0.3, name="early")
    other = two_exits(other_layer)
    other.load_weights(tmp_path / "model.weights.h5")
    assert other_layer.loss_weight == pytest.approx(0.7)


# Targets


@keras.saving.register_keras_serializable(package="test_early_exit")
def squared_distance(y_true, y_pred):
    return ops.sum(ops.square(ops.one_hot(y_true, 3) - y_pred), axis=-1)


def cross_entropy(logits):
    return -np.mean(special.log_softmax(logits, axis=1)[np.arange(6), LABELS])


def binary_cross_entropy(logits, targets):
    signs = 2 * targets - 1  # -log sigmoid(+-z)
    return -np.mean(special.log_expit(signs * logits))


def several_labels(logits):
    return binary_cross_entropy(logits, 1 - ONE_HOT)


def mean_square(logits):
    return np.mean((ONE_HOT - logits) ** 2)


def distance(logits):
    probabilities = special.softmax(logits, axis=1)
    return np.mean(np.sum((ONE_HOT - probabilities) ** 2, axis=1))


def huber(logits):
    # Half the square up to 1, then |d| - 1/2; the mean, though the loss says "sum".
    d = np.abs(ONE_HOT - logits)
    return np.mean(np.where(d <= 1, d**2 / 2, d - 0.5))


def yes_or_no(logits):
    return binary_cross_entropy(logits[:, 0], YES)


# Units, activation, loss and targets; the mean loss as a function of the logits.
CASES = {
    "class numbers": (3, "softmax", "auto", LABELS, cross_entropy),
    "class column": (3, "softmax", "auto", LABELS[:, None], cross_entropy),
    "class numbers, logits": (3, None, "auto", LABELS, cross_entropy),
    "one-hot": (3, "softmax", "auto", ONE_HOT, cross_entropy),
    "one-hot, logits": (3, None, "auto", ONE_HOT, cross_entropy),
    "binary": (1, "sigmoid", "auto", YES, yes_or_no),
    "binary column": (1, "sigmoid", "auto", YES[:, None], yes_or_no),
    "binary, logits": (1, None, "auto", YES, yes_or_no),
    "several labels": (3, "sigmoid", "auto", 1 - ONE_HOT, several_labels),
    "named loss": (3, None, "mse", ONE_HOT, mean_square),
    "function": (3, "softmax", squared_distance, LABELS, distance),
    "loss object": (3, None, keras.losses.Huber(reduction="sum"), ONE_HOT, huber),
}


@pytest.mark.parametrize("case", CASES)
def test_targets_add_the_weighted_loss(case):
    units, activation, loss, targets, expected = CASES[case]
    exit_layer = kd.EarlyExit(units, activation=activation, loss_weight=0.3, loss=loss)
    inputs = keras.Input((4,))
    given = keras.Input(targets.shape[1:], dtype=targets.dtype.name)
    final = keras.layers.Dense(3)(inputs)
    model = keras.Model([inputs, given], [exit_layer(inputs, targets=given), final])
    compile_still(model)
    x, y = normal(6, 4), normal(6, 3, seed=1)

    logits = x @ exit_layer.classifier.kernel.numpy()
    answer = model.predict([x, targets], verbose=0)[1]
    total = np.mean((answer - y) ** 2) + 0.3 * expected(logits.astype("float64"))
    history = model.fit([x, targets], y, verbose=0).history["loss"]
    assert history == [pytest.approx(total, rel=1e-5)]
    assert model.evaluate([x, targets], y, verbose=0) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("activation", ["softmax", None])
def test_added_loss_trains_the_exit(activation):
    exit_layer = kd.EarlyExit(3, activation=activation)
    inputs, labels = keras.Input((3,)), keras.Input((), dtype="int32")
    model = keras.Model([inputs, labels], exit_layer(inputs, targets=labels))
    model.compile(keras.optimizers.Adam(0.1))  # there is no other loss
    history = model.fit([4 * ONE_HOT, LABELS], batch_size=6, epochs=30, verbose=0)
    assert history.history["loss"][-1] < 0.1 < history.history["loss"][0]
    answers = model.predict([4 * ONE_HOT, LABELS], verbose=0)
    np.testing.assert_array_equal(answers.argmax(axis=1), LABELS)


def test_optional_targets():
    exit_layer = kd.EarlyExit(3)
    inputs = keras.Input((4,))
    labels = keras.Input((), dtype="int32", optional=True)
    model = keras.Model([inputs, labels], exit_layer(inputs, targets=labels))
    x = normal(6, 4)
    without = model.predict([x, None], verbose=0)
    np.testing.assert_array_equal(without, model.predict([x, LABELS], verbose=0))
    model([x, None])
    assert exit_layer.losses == []
    model([x, LABELS])
    assert len(exit_layer.losses) == 1


def test_term_is_the_same_on_two_replicas():
    x, y = normal(6, 4), normal(6, 3, seed=1)
    model = two_exits(kd.EarlyExit(3, loss_weight=0.3, name="early"))
    compile_still(model)
    with two_replicas().scope():
        mirrored = two_exits(kd.EarlyExit(3, loss_weight=0.3, name="early"))
        mirrored.set_weights(model.get_weights())
        compile_still(mirrored)
    early, final = model.predict([x, LABELS], verbose=0)
    added = -np.mean(np.log(early[np.arange(6), LABELS]))
    other = np.mean((final - y) ** 2)
    for each in (model, mirrored):
        history = each.fit([x, LABELS], y, 6, verbose=0).history["loss"]
        assert history == [pytest.approx(other + 0.3 * added, rel=1e-5)]
        each.get_layer("early").loss_weight = 2
        loss = each.evaluate([x, LABELS], y, 6, verbose=0)
        assert loss == pytest.approx(other + 2 * added, rel=1e-5)


def test_batch_without_rows_adds_zero():
    exit_layer = kd.EarlyExit(3)
    assert exit_layer(normal(0, 4), targets=LABELS[:0]).shape == (0, 3)
    assert [float(loss) for loss in exit_layer.losses] == [0.0]


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_keeps_class_numbers(dtype):
    # Neither holds 2,049 exactly; float16 takes it for 2,048, bfloat16 as well.
    exit_layer = kd.EarlyExit(2050, activation=None, loss_weight=0.3, dtype=dtype)
    logits = exit_layer(normal(1, 4), targets=np.array([2049.0], "float32"))
    expected = -special.log_softmax(logits.numpy().astype("float64"))[0, 2049]
    assert float(exit_layer.losses[0]) == pytest.approx(0.3 * expected, rel=1e-5)
    assert exit_layer.losses[0].dtype == "float32"


# Configuration and errors


def test_config_gives_back_layers_and_losses():
    exit_layer = kd.EarlyExit(
        3,
        pooling=keras.layers.GlobalMaxPooling2D(),
        hidden_units=[8],
        loss=squared_distance,
        data_format="channels_first",
    )
    config = json.loads(json.dumps(exit_layer.get_config()))
    again = kd.EarlyExit.from_config(config)
    assert isinstance(again.pooling, keras.layers.GlobalMaxPooling2D)
    assert again.loss is squared_distance
    assert again.hidden_units == [8]
    assert again.data_format == "channels_first"


def test_data_format_follows_the_configuration_of_keras():
    assert kd.EarlyExit(3).data_format == keras.config.image_data_format()


@pytest.mark.parametrize(
    "error, arguments, received",
    [
        (ValueError, {"units": 0}, "units=0"),
        (ValueError, {"units": -2}, "units=-2"),
        (TypeError, {"units": 2.5}, "units=2.5"),
        (TypeError, {"units": True}, "units=True"),
        (ValueError, {"units": 1}, "units=1, activation='softmax'"),
        (ValueError, {"pooling": "mean"}, "pooling='mean'"),
        (TypeError, {"pooling": 3}, "pooling=3"),
        (ValueError, {"hidden_units": [4, 0]}, "hidden_units=0"),
        (TypeError, {"hidden_units": "many"}, "hidden_units='many'"),
        (ValueError, {"loss_weight": -0.1}, "loss_weight=-0.1"),
        (ValueError, {"loss_weight": math.nan}, "loss_weight=nan"),
        (ValueError, {"loss_weight": math.inf}, "loss_weight=inf"),
        (TypeError, {"loss_weight": "1"}, "loss_weight='1'"),
        (TypeError, {"loss_weight": True}, "loss_weight=True"),
        (ValueError, {"grid": 0}, "grid=0"),
        (TypeError, {"grid": 2.0}, "grid=2.0"),
        (
            ValueError,
            {"grid": 2, "pooling": "flatten"},
            "grid=2 with pooling='flatten'",
        ),
        (ValueError, {"data_format": "NCHW"}, "data_format='NCHW'"),
        (ValueError, {"loss": None}, "loss=None"),
    ],
)
def test_error_at_construction(error, arguments, received):
    with pytest.raises(error, match=f"Received: {received}"):
        kd.EarlyExit(**{"units": 3, **arguments})


@pytest.mark.parametrize(
    "arguments, shape, message",
    [
        ({"pooling": "first"}, (4, 4, 3), r"Received: .* \(None, 4, 4, 3\)"),
        ({"pooling": "first"}, (4,), r"Received: .* \(None, 4\)"),
        ({"grid": 2}, (4,), r"Received: grid=2 .* \(None, 4\)"),
        ({"grid": 2}, (4, 3), r"Received: grid=2 .* \(None, 4, 3\)"),
        ({"grid": 2}, (None, 4, 3), r"Received: grid=2 .* \(None, None, 4, 3\)"),
        ({"pooling": "flatten"}, (None, 3), r"\(None, None, 3\) .*pooling='flatten'"),
        ({}, (4, 4, None), r"\(None, 4, 4, None\)"),
        ({}, (), "min_ndim=2"),
        ({}, (2, 2, 2, 2, 2), "max_ndim=5"),
    ],
)
def test_error_of_the_input(arguments, shape, message):
    with pytest.raises(ValueError, match=message):
        kd.EarlyExit(3, **arguments)(keras.Input(shape))


def test_loss_weight_refuses_what_the_constructor_refuses():
    exit_layer = kd.EarlyExit(3, loss_weight=0.3)
    with pytest.raises(ValueError, match="Received: loss_weight=-1"):
        exit_layer.loss_weight = -1
    assert exit_layer.loss_weight == 0.3
