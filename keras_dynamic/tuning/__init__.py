"""Search over lambda, tau and the rest, on keras-tuner.

Hyperparameters for a functional `build(hp)`, a hypermodel that scores each network as
it will run, objectives that no lambda rescales, and the front of what was found. It is
imported when `kd.tuning` is first used.
"""

from keras_dynamic.tuning.hyper_model import DynamicHyperModel
from keras_dynamic.tuning.hyperparameters import (
    balance_weight,
    cost_weight,
    entropy_weight,
    loss_weight,
    prior_weight,
    rate_weight,
    target_rate,
    temperature,
    z_weight,
)
from keras_dynamic.tuning.objectives import AccuracyUnderBudget, CostUnderAccuracy
from keras_dynamic.tuning.pareto import Pareto, pareto
from keras_dynamic.tuning.schedules import temperature_schedule

__all__ = [
    "AccuracyUnderBudget",
    "CostUnderAccuracy",
    "DynamicHyperModel",
    "Pareto",
    "balance_weight",
    "cost_weight",
    "entropy_weight",
    "loss_weight",
    "pareto",
    "prior_weight",
    "rate_weight",
    "target_rate",
    "temperature",
    "temperature_schedule",
    "z_weight",
]
