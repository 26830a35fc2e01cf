"""Self-distillation: early exits that learn from the final one."""

import contextlib

import keras
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

import keras_dynamic as kd
from tests.layers.checks import two_replicas
from tests.models.small_models import dense_data, dense_model


def divergence(teacher, student, temperature):
    """T^2 sum p (log p - log q), row by row, by SciPy."""
    p = softmax(teacher / temperature, axis=1)
    logarithms = [log_softmax(z / temperature, axis=1) for z in (teacher, student)]
    return temperature**2 * (p * (logarithms[0] - logarithms[1])).sum(axis=1)


def cross_entropy(probabilities, y):
    return -np.log(probabilities[np.arange(len(y)), y])


@pytest.mark.parametrize("activation", ["softmax", None])
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_against_numpy(activation, weighted):
    model = dense_model(activation, loss_weight=0.3, compiled=False)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=activation is None)
    model.compile("sgd", loss, distillation_weight=0.4, distillation_temperature=3.0)
    x, y = dense_data(12)
    rows = np.linspace(0.5, 2.0, 12) if weighted else np.ones(12)
    outputs = model.predict(x, verbose=0)
    logits = outputs if activation is None else [np.log(p) for p in outputs]
    wanted = (rows * cross_entropy(softmax(logits[-1], axis=1), y)).mean()
    for weight, early in ((0.3, logits[0]), (1.0, logits[1])):
        labels = (rows * cross_entropy(softmax(early, axis=1), y)).mean()
        teacher = (rows * divergence(logits[-1], early, 3.0)).mean()
        wanted += weight * (0.6 * labels + 0.4 * teacher)
    found = model.evaluate(
        x, y, sample_weight=rows, batch_size=12, verbose=0, return_dict=True
    )
    np.testing.assert_allclose(found["loss"], wanted, rtol=1e-5)


def test_binary_heads():
    """One unit: KL of two Bernoulli distributions."""
    model = dense_model("sigmoid", "binary_crossentropy", units=1, compiled=False)
    model.compile(
        "sgd",
        "binary_crossentropy",
        distillation_weight=1.0,
        distillation_temperature=1,
    )
    x, y = dense_data(8, classes=2)
    first, second, final = (p[:, 0] for p in model.predict(x, verbose=0))
    wanted = -np.log(np.where(y == 1, final, 1 - final)).mean()
    for q in (first, second):
        two_sides = [p * np.log(p / r) for p, r in ((final, q), (1 - final, 1 - q))]
        wanted += np.sum(two_sides) / 8
    found = model.evaluate(x, y, verbose=0, return_dict=True)["loss"]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_no_gradient_reaches_the_final_exit():
    """With alpha 1 the final head learns what it learns without early exits."""
    x, y = dense_data()
    heads = []
    for weight, loss_weights in ((1.0, None), (0.0, [0.0, 0.0, 1.0])):
        keras.utils.set_random_seed(0)
        model = dense_model(compiled=False)
        for layer in model.layers:  # a trunk that learns would move the final answer
            if layer.name.startswith("dense"):
                layer.trainable = False
        model.compile(
            keras.optimizers.SGD(0.5),
            "sparse_categorical_crossentropy",
            loss_weights,
            distillation_weight=weight,
        )
        before = model.get_layer("exit_1").get_weights()
        model.fit(x, y, shuffle=False, verbose=0)
        heads.append(model.get_layer("final").get_weights())
        moved = np.abs(before[1] - model.get_layer("exit_1").get_weights()[1]).max()
        assert (moved > 1e-4) == (weight > 0)
    for one, other in zip(*heads, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_exits_come_near_to_the_final_one():
    x, y = dense_data(200)
    model = dense_model()
    model.fit(x, y, epochs=3, verbose=0)

    def distance():
        first, _, final = model.predict(x, verbose=0)
        return divergence(np.log(final), np.log(first), 1.0).mean()

    before = distance()
    model.compile("adam", "sparse_categorical_crossentropy", distillation_weight=1.0)
    model.fit_exits(x, y, epochs=10, verbose=0)
    assert distance() < 0.8 * before


def test_loss_weights_that_change_count():
    model = dense_model(compiled=False)
    model.compile("sgd", "sparse_categorical_crossentropy", distillation_weight=0.5)
    x, y = dense_data()
    both = model.evaluate(x, y, verbose=0)
    for name in ("exit_1", "exit_2"):
        model.get_layer(name).loss_weight = 0.0
    final = cross_entropy(model.predict(x, verbose=0)[-1], y).mean()
    found = model.evaluate(x, y, verbose=0, return_dict=True)["loss"]
    np.testing.assert_allclose(found, final, rtol=1e-5)
    assert np.ravel(both)[0] > found


def test_it_is_saved_and_comes_back(tmp_path):
    model = dense_model(compiled=False)
    model.compile(
        "sgd",
        "sparse_categorical_crossentropy",
        distillation_weight=0.3,
        distillation_temperature=4.0,
    )
    x, y = dense_data()
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    config = again.get_compile_config()
    assert config["distillation_weight"] == 0.3
    assert config["distillation_temperature"] == 4.0
    np.testing.assert_allclose(
        again.evaluate(x, y, verbose=0), model.evaluate(x, y, verbose=0), rtol=1e-6
    )
    again.compile("sgd", "sparse_categorical_crossentropy")  # and is off again
    model.compile("sgd", "sparse_categorical_crossentropy")
    assert "distillation_weight" not in model.get_compile_config()
    np.testing.assert_allclose(
        again.evaluate(x, y, verbose=0), model.evaluate(x, y, verbose=0), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"distillation_weight": 1.5}, ValueError, r"in \[0, 1\].*1.5"),
        ({"distillation_weight": float("nan")}, ValueError, r"in \[0, 1\].*nan"),
        ({"distillation_weight": "0.5"}, TypeError, "must be a number.*'0.5'"),
        (
            {"distillation_weight": 0.5, "distillation_temperature": 0.0},
            ValueError,
            "finite and > 0.*0.0",
        ),
    ],
)
def test_bad_input(arguments, error, message):
    model = dense_model(compiled=False)
    with pytest.raises(error, match=message):
        model.compile("sgd", "sparse_categorical_crossentropy", **arguments)


def test_heads_that_are_no_distributions():
    model = dense_model("sigmoid", compiled=False)
    with pytest.raises(ValueError, match="neither probabilities.*nor logits"):
        model.compile("sgd", "binary_crossentropy", distillation_weight=0.5)


def test_two_replicas():
    """The term is divided by the number of replicas, as Keras' own losses are."""
    x, y = dense_data(16)

    def trained(scope):
        keras.utils.set_random_seed(0)
        with scope:
            model = dense_model(compiled=False)
            model.compile(
                keras.optimizers.SGD(0.5),
                "sparse_categorical_crossentropy",
                distillation_weight=0.7,
            )
        model.fit(x, y, batch_size=16, shuffle=False, verbose=0)
        return [keras.ops.convert_to_numpy(w) for w in model.trainable_weights]

    alone = trained(contextlib.nullcontext())
    for one, other in zip(alone, trained(two_replicas().scope()), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_selector_learns_beside_it():
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(8, "tanh")(inputs)
    outputs = [kd.EarlyExit(4)(hidden), keras.layers.Dense(4, "softmax")(hidden)]
    selector = kd.ExitSelector(2)(inputs)
    model = kd.DynamicModel(inputs, outputs, selector=selector)
    model.compile("sgd", "sparse_categorical_crossentropy", distillation_weight=0.5)
    history = model.fit(*dense_data(), verbose=0)
    assert np.isfinite(history.history["loss"]).all()
