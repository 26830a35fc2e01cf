"""Hyperparameters: names, ranges, scales, conditional scopes."""

import keras_tuner
import numpy as np
import pytest

import keras_dynamic as kd

tuning = kd.tuning

ON_LOG_SCALE = [
    (tuning.loss_weight, "exit_1_loss_weight", 1.0),
    (tuning.temperature, "exit_1_temperature", 1.0),
    (tuning.cost_weight, "exit_1_cost_weight", 0.03),
    (tuning.entropy_weight, "exit_1_entropy_weight", 0.01),
    (tuning.prior_weight, "exit_1_prior_weight", 1.0),
    (tuning.rate_weight, "exit_1_rate_weight", 1.0),
    (tuning.balance_weight, "exit_1_balance_weight", 0.01),
    (tuning.z_weight, "exit_1_z_weight", 0.001),
]


@pytest.mark.parametrize(("function", "name", "default"), ON_LOG_SCALE)
def test_name_default_and_scale(function, name, default):
    hp = keras_tuner.HyperParameters()
    assert function(hp, "exit_1") == default
    (entry,) = hp.space
    assert (entry.name, entry.sampling) == (name, "log")
    # Half of the draws lie below the geometric mean, of a fixed seed's 400 within 8 %.
    draws = np.array([entry.random_sample(seed) for seed in range(400)])
    middle = np.sqrt(entry.min_value * entry.max_value)
    assert abs(np.mean(draws < middle) - 0.5) < 0.08
    assert entry.min_value <= draws.min() and draws.max() <= entry.max_value
    hp.values[name] = entry.max_value  # what a tuner does
    assert function(hp, "exit_1") == entry.max_value


def test_target_rate_is_linear():
    hp = keras_tuner.HyperParameters()
    assert tuning.target_rate(hp, "gate", min_value=0.2, max_value=1.0) == 0.5
    (entry,) = hp.space
    assert (entry.name, entry.sampling) == ("gate_target_rate", "linear")


def test_one_temperature_for_all():
    hp = keras_tuner.HyperParameters()
    tuning.temperature(hp)
    tuning.temperature(hp)
    assert [entry.name for entry in hp.space] == ["temperature"]
    with hp.name_scope("trunk"):
        tuning.temperature(hp)
    assert [entry.name for entry in hp.space] == ["temperature", "trunk/temperature"]


def test_an_inactive_scope_gives_the_default():
    hp = keras_tuner.HyperParameters()
    hp.Choice("trunk", ["plain", "gated"])
    with hp.conditional_scope("trunk", ["gated"]):
        assert tuning.loss_weight(hp, "exit_1", default=0.4) == 0.4
    assert hp.values == {"trunk": "plain"}  # and is no part of the trial
    hp.values["trunk"] = "gated"
    hp.values["exit_1_loss_weight"] = 2.0
    with hp.conditional_scope("trunk", ["gated"]):
        assert tuning.loss_weight(hp, "exit_1", default=0.4) == 2.0


def test_a_name_has_one_range():
    hp = keras_tuner.HyperParameters()
    tuning.temperature(hp, max_value=2.0)
    with pytest.raises(ValueError, match="'temperature'.*0.1 to 2.0 and 0.1 to 5.0"):
        tuning.temperature(hp)
    tuning.temperature_schedule(hp, 5, layers=["a"])
    tuning.temperature_schedule(hp, 5, layers=["b"], initial=(1, 2), name="second")
    assert "second_temperature" in hp.values
    with pytest.raises(ValueError, match="'schedule_temperature'.*two ranges"):
        tuning.temperature_schedule(hp, 5, initial=(1, 2))


def test_the_default_is_the_usual_one_or_what_comes_nearest():
    hp = keras_tuner.HyperParameters()
    assert tuning.loss_weight(hp, "a", max_value=0.5) == 0.5
    assert tuning.temperature(hp, min_value=2.0) == 2.0
    assert tuning.cost_weight(hp, "gate") == 0.03


def test_two_scopes_may_share_a_name_but_not_with_two_ranges():
    hp = keras_tuner.HyperParameters()
    hp.Choice("trunk", ["plain", "gated"])
    with hp.conditional_scope("trunk", ["plain"]):
        tuning.loss_weight(hp, "exit_1")
        tuning.loss_weight(hp, "exit_2")
    with hp.conditional_scope("trunk", ["gated"]):
        tuning.loss_weight(hp, "exit_1")
        with pytest.raises(ValueError, match=r"'exit_2_loss_weight'.*0.03.*0.5 to 2"):
            tuning.loss_weight(hp, "exit_2", 0.5, 2.0)


def test_an_override_of_the_tuner_is_followed():
    hp = keras_tuner.HyperParameters()
    hp.Fixed("exit_1_loss_weight", 0.25)
    assert tuning.loss_weight(hp, "exit_1") == 0.25


def test_schedule_has_what_its_form_needs():
    hp = keras_tuner.HyperParameters()
    constant = tuning.temperature_schedule(hp, 10)
    assert hp.values == {"schedule": "constant", "schedule_temperature": 1.0}
    assert [constant.schedule(step) for step in (0, 5, 50)] == [1.0, 1.0, 1.0]
    assert len(hp.space) == 4

    falling = {
        "schedule": "exponential",
        "schedule_initial_temperature": 4.0,
        "schedule_final_temperature": 0.25,
    }
    hp.values = dict(falling)
    exponential = tuning.temperature_schedule(hp, 10, update_freq="epoch")
    assert hp.values == falling
    assert exponential.update_freq == "epoch"
    # 4 * (1 / 16) ** 0.5 = 1 half way, and 0.25 from the end on.
    values = [exponential.schedule(step) for step in (0, 5, 10, 99)]
    np.testing.assert_allclose(values, [4.0, 1.0, 0.25, 0.25])
    hp.values["schedule"] = "linear"
    linear = tuning.temperature_schedule(hp, 10, layers=["a"])
    assert linear.layers == ["a"]
    np.testing.assert_allclose(
        [linear.schedule(s) for s in (0, 5, 11)], [4, 2.125, 0.25]
    )


def test_bad_input():
    hp = keras_tuner.HyperParameters()
    with pytest.raises(TypeError, match="`exit` must be the name.*Received: 1"):
        tuning.loss_weight(hp, 1)
    with pytest.raises(TypeError, match="`layer` must be the name.*None"):
        tuning.cost_weight(hp, None)
    with pytest.raises(ValueError, match="min_value=0, max_value=3.0, for 'e_loss"):
        tuning.loss_weight(hp, "e", min_value=0)
    with pytest.raises(ValueError, match="min_value=4, max_value=3.0"):
        tuning.loss_weight(hp, "e", min_value=4)
    with pytest.raises(ValueError, match=r"lie in \[0.03, 3.0\].*default=5"):
        tuning.loss_weight(hp, "e", default=5)
    with pytest.raises(TypeError, match="`default` must be a number.*'a'"):
        tuning.loss_weight(hp, "e", default="a")
    with pytest.raises(ValueError, match="at most 1. Received: max_value=2"):
        tuning.target_rate(hp, "gate", max_value=2)
    with pytest.raises(TypeError, match="`max_value` must be a number.*'a'"):
        tuning.target_rate(hp, "gate", max_value="a")
    with pytest.raises(TypeError, match="`initial` must be a pair.*initial=5.0"):
        tuning.temperature_schedule(hp, 5, initial=5.0)
    with pytest.raises(ValueError, match=r"`final` must be a range.*\(0, 1\)"):
        tuning.temperature_schedule(hp, 5, final=(0, 1))
    with pytest.raises(ValueError, match="`decay_steps`.*decay_steps=0"):
        tuning.temperature_schedule(hp, 0)
    assert not hp.space
