"""Callbacks for dynamic models."""

from keras_dynamic.callbacks.dynamic_validation import DynamicValidation
from keras_dynamic.callbacks.temperature_schedule import TemperatureSchedule

__all__ = ["DynamicValidation", "TemperatureSchedule"]
