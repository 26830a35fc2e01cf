"""Calibration: honest probabilities at every exit, and thresholds for a goal.

Pure functions of NumPy arrays; they know no model and no rule.
"""

from keras_dynamic.calibration._goals import UnreachableGoal
from keras_dynamic.calibration._probabilities import (
    accuracy,
    apply_temperature,
    brier_score,
    expected_calibration_error,
    negative_log_likelihood,
)
from keras_dynamic.calibration.candidates import candidate_thresholds, open_threshold
from keras_dynamic.calibration.front import pareto_front, threshold_front
from keras_dynamic.calibration.guarantees import (
    Certificate,
    PathStep,
    certify,
    risk_p_value,
    samples_to_certify,
)
from keras_dynamic.calibration.paths import risk_path
from keras_dynamic.calibration.report import (
    CalibrationReport,
    ExitReport,
    ProbabilityQuality,
    build_report,
)
from keras_dynamic.calibration.temperature import TemperatureFit, fit_temperature
from keras_dynamic.calibration.thresholds import (
    ThresholdChoice,
    choose_thresholds,
    exit_indices,
)

__all__ = [
    "CalibrationReport",
    "Certificate",
    "ExitReport",
    "PathStep",
    "ProbabilityQuality",
    "TemperatureFit",
    "ThresholdChoice",
    "UnreachableGoal",
    "accuracy",
    "apply_temperature",
    "brier_score",
    "build_report",
    "candidate_thresholds",
    "certify",
    "choose_thresholds",
    "exit_indices",
    "expected_calibration_error",
    "fit_temperature",
    "negative_log_likelihood",
    "open_threshold",
    "pareto_front",
    "risk_p_value",
    "risk_path",
    "samples_to_certify",
    "threshold_front",
]
