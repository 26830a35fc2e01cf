"""A network with gates and no exits: one output, and still a cost for each sample."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_dynamic as kd
from tests.models.small_models import dense_data


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    gate = kd.SkipGate(layers.Dense(6), gate=layers.Dense(1, name="g"), name="gate")
    model = kd.DynamicModel(inputs, [layers.Dense(4, "softmax")(gate(inputs))])
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def test_costs_by_hand(model):
    x, y = dense_data()
    # The gate 2*6 + 1 = 13, its layer 2*36 + 6 = 78, the head 2*24 + 4 + 4*5 = 72.
    assert model.exit_costs.tolist() == [163]
    opened = model.get_layer("gate").decider(x).numpy()[:, 0] > 0
    assert 0 < opened.mean() < 1
    p = model.predict_dynamic(x, verbose=0)
    np.testing.assert_array_equal(p.cost, np.where(opened, 163, 85))
    np.testing.assert_allclose(p.outputs, model.predict(x, verbose=0), rtol=1e-5)
    assert p.exit_rates.tolist() == [1.0]
    scores = model.evaluate_dynamic(x, y, verbose=0)
    plain = model.evaluate(x, y, len(x), verbose=0, return_dict=True)
    np.testing.assert_allclose(scores["mean_cost"], p.cost.mean() / 163)
    np.testing.assert_allclose(scores["accuracy"], plain["accuracy"], rtol=1e-6)
    np.testing.assert_allclose(plain["gate_open_rate"], opened.mean(), rtol=1e-6)


def test_calibration_fits_a_temperature_and_has_no_goals(model):
    x, y = dense_data()
    report = model.calibrate(x, y)
    assert len(report.exits) == 1
    np.testing.assert_allclose(
        report.mean_cost, model.predict_dynamic(x, verbose=0).mean_cost
    )
    with pytest.raises(ValueError, match="needs an early exit.*budget=0.5"):
        model.calibrate(x, y, budget=0.5)


def test_saved_and_loaded(model, tmp_path):
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    x = dense_data()[0]
    one, other = (m.predict_dynamic(x, verbose=0) for m in (model, loaded))
    np.testing.assert_array_equal(one.cost, other.cost)
    np.testing.assert_allclose(one.outputs, other.outputs, rtol=1e-6)
