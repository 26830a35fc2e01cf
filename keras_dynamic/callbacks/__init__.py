"""Callbacks for dynamic models."""

from keras_dynamic.callbacks.dynamic_validation import DynamicValidation
from keras_dynamic.callbacks.loss_weight_schedule import LossWeightSchedule
from keras_dynamic.callbacks.temperature_schedule import TemperatureSchedule
from keras_dynamic.callbacks.tensorboard import TensorBoard

__all__ = [
    "DynamicValidation",
    "LossWeightSchedule",
    "TemperatureSchedule",
    "TensorBoard",
]
