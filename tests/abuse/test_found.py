"""What random arguments brought to light, each as a test of its own."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_dynamic as kd
from keras_dynamic.ops.estimators import check_temperature
from tests.abuse.models import gated, plain
from tests.abuse.surgery import network

X = np.random.default_rng(0).normal(size=(5, 6)).astype("float32")


@pytest.mark.fault(
    case="a mixture of experts gets a token that its router cannot weigh",
    made="an infinity in one token: two experts get the weight 0, and a third NaN",
    lost="nothing: the dense road answers NaN, as the sparse ones do, not 0",
)
@pytest.mark.parametrize("dispatch", ["ragged", "capacity"])
def test_a_token_without_weights_is_nan_on_every_road(dispatch):
    def mixture(dispatch):
        keras.utils.set_random_seed(3)
        layer = kd.SparseMoE(
            3, 4, top_k=2, dispatch=dispatch, capacity_factor=3.0, activation="relu"
        )
        layer.build((None, 3))
        # Logits -inf, -inf and inf, of which a softmax makes 0, 0 and NaN.
        layer.router.kernel.assign([[-1, -1, 1], [0, 0, 0], [0, 0, 0]])
        return layer

    tokens = np.array([[np.inf, 0.1, 0.2], [0.1, 0.2, 0.3]], "float32")
    dense = np.asarray(mixture("dense")(tokens))
    np.testing.assert_allclose(dense, mixture(dispatch)(tokens), rtol=1e-5)
    assert np.isnan(dense[0]).all() and np.isfinite(dense[1]).all()


def test_what_nobody_asked_for_has_no_gradient_on_the_dense_road():
    keras.utils.set_random_seed(1)
    layer = kd.SparseMoE(2, 4, dispatch="dense", noise_stddev=0, balance_loss=None)
    layer.build((None, 3))
    layer.router.kernel.assign([[5.0, -5.0]] * 3)  # all tokens go to the first
    layer.experts[1].second_bias.assign([np.inf] * 3)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(np.ones((2, 3), "float32"), training=True))
    gradients = tape.gradient(loss, layer.trainable_weights)
    assert np.isfinite(loss)
    assert all(np.isfinite(each).all() for each in gradients)


def test_discretize_judges_gates_beside_mixtures_by_data():
    plain_model, report = kd.discretize(gated(), X, return_report=True)
    assert set(report.kept) | set(report.replaced) >= {"gate"}
    assert plain_model.count_params() <= gated().count_params()


def test_strip_exits_takes_a_sequential_model():
    stripped = kd.strip_exits(network())
    np.testing.assert_allclose(stripped(X), network()(X), rtol=1e-6)


@pytest.mark.parametrize("confidence", [1.0, 1.5, np.nan])
def test_samples_to_certify_ends(confidence):
    # No p-value falls to 1 - 1.5: the search went on until its numbers overflowed.
    with pytest.raises(ValueError, match=r"`confidence` must lie in \(0, 1\)"):
        kd.calibration.samples_to_certify(0.1, confidence)


@pytest.mark.parametrize(
    "given",
    [
        {"num_lost": 3, "num_samples": 2, "max_risk": 0.1},
        {"num_lost": 0.5, "num_samples": 2, "max_risk": 0.1},
        {"num_lost": 0, "num_samples": -1, "max_risk": 0.1},
        {"num_lost": 0, "num_samples": 2, "max_risk": np.nan},
    ],
)
def test_risk_p_value_refuses_what_is_no_count_of_losses(given):
    with pytest.raises(ValueError, match="Received: "):
        kd.calibration.risk_p_value(**given)


@pytest.mark.fault(
    case="`predict_dynamic` with a size that is none",
    made="batch_size and steps of 0, -1, 2.5, True and strings; x without axes",
    lost="nothing: an error that names the argument, and the model works on",
)
@pytest.mark.parametrize("name", ["batch_size", "steps"])
@pytest.mark.parametrize("size", [0, -1, 2.5, True, "2", np.nan])
def test_sizes_of_batches_are_checked(name, size):
    message = rf"`{name}` must be .* Received: {name}={size!r}"
    with pytest.raises((TypeError, ValueError), match=message):
        plain().predict_dynamic(X, verbose=0, **{name: size})
    assert len(plain().predict_dynamic(X, verbose=0)) == 5


@pytest.mark.parametrize(
    "arguments",
    [
        {"batch_size": 0},
        {"batch_size": 2.5},
        {"epochs": -1},
        {"epochs": 1.5},
        {"trunk_epochs": -1},
    ],
)
def test_sizes_of_a_training_of_exits_are_checked(arguments):
    model, ((name, size),) = plain(), arguments.items()
    before = model.get_weights()
    with pytest.raises((TypeError, ValueError), match=f"`{name}` .*={size}"):
        model.fit_exits(X, np.zeros(len(X)), verbose=0, **arguments)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("verbose", ["x", 3, -1, 0.5, None, [0]])
def test_verbose_is_checked(verbose):
    message = r'`verbose` must be "auto", 0, 1 or 2\. Received: verbose='
    with pytest.raises(ValueError, match=message):
        plain().predict_dynamic(X, verbose=verbose)
    with pytest.raises(ValueError, match=message):
        plain().evaluate_dynamic(X, np.zeros(len(X)), verbose=verbose)


@pytest.mark.parametrize("x", [{}, [], {"a": None}, np.float32(1), np.array(["a"])])
def test_data_that_hold_nothing_are_an_error(x):
    with pytest.raises((TypeError, ValueError), match="`x` must hold .* Received: "):
        plain().predict_dynamic(x, verbose=0)


@pytest.mark.parametrize("weight", [np.nan, np.inf, -1.0, "a", True])
def test_loss_weights_given_to_compile_are_checked(weight):
    model = gated()
    with pytest.raises((TypeError, ValueError), match="`loss_weights` must .*Received"):
        model.compile(
            "sgd", "sparse_categorical_crossentropy", loss_weights=[weight, 1]
        )
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])


@pytest.mark.parametrize("temperature", [{}, [1.0], print, b"1"])
def test_a_temperature_is_a_number_or_a_tensor(temperature):
    with pytest.raises(TypeError, match="`temperature` must be a number.*Received"):
        check_temperature(temperature, "soft")
