"""Dynamic neural networks for Keras 3 on TensorFlow: compute that follows the input.

`import keras_dynamic as kd`.
"""

import importlib
import json
import os
from pathlib import Path


def _check_backend():
    """Stops before Keras loads a backend that this package cannot use."""
    backend = os.environ.get("KERAS_BACKEND")
    if backend is None:
        home = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras"))
        file = home / "keras.json"
        if file.is_file():
            try:
                backend = json.loads(file.read_text()).get("backend")
            except ValueError:  # Keras ignores such a file too
                backend = None
    if backend not in (None, "", "tensorflow"):
        raise ImportError(
            "keras_dynamic runs on Keras' TensorFlow backend. Set the environment "
            "variable KERAS_BACKEND=tensorflow before Keras is imported. Received: "
            f"KERAS_BACKEND={backend}."
        )


_check_backend()

from keras_dynamic import calibration, callbacks  # noqa: E402
from keras_dynamic.layers import routers  # noqa: E402
from keras_dynamic.layers.blended_activation import BlendedActivation  # noqa: E402
from keras_dynamic.layers.early_exit import EarlyExit  # noqa: E402
from keras_dynamic.layers.exit_selector import ExitSelector  # noqa: E402
from keras_dynamic.layers.gumbel_softmax import GumbelSoftmax  # noqa: E402
from keras_dynamic.layers.layer_choice import LayerChoice  # noqa: E402
from keras_dynamic.layers.layerwise_selector import LayerwiseSelector  # noqa: E402
from keras_dynamic.layers.skip_gate import SkipGate  # noqa: E402
from keras_dynamic.layers.sparse_moe import SparseMoE  # noqa: E402
from keras_dynamic.models import rules  # noqa: E402
from keras_dynamic.models.adding_exits import (  # noqa: E402
    add_exits,
    suggest_exits,
)
from keras_dynamic.models.binding import bind_costs  # noqa: E402
from keras_dynamic.models.discretizing import discretize  # noqa: E402
from keras_dynamic.models.dynamic_model import DynamicModel  # noqa: E402
from keras_dynamic.models.prediction import DynamicPrediction  # noqa: E402
from keras_dynamic.models.splitting import split  # noqa: E402
from keras_dynamic.models.surgery import strip_exits  # noqa: E402
from keras_dynamic.models.upcycling import upcycle  # noqa: E402
from keras_dynamic.models.weight_decay import exclude_from_weight_decay  # noqa: E402

__version__ = "0.1.0"

__all__ = [
    "BlendedActivation",
    "DynamicModel",
    "DynamicPrediction",
    "EarlyExit",
    "ExitSelector",
    "GumbelSoftmax",
    "LayerChoice",
    "LayerwiseSelector",
    "SkipGate",
    "SparseMoE",
    "add_exits",
    "bind_costs",
    "calibration",
    "callbacks",
    "discretize",
    "exclude_from_weight_decay",
    "routers",
    "rules",
    "split",
    "strip_exits",
    "suggest_exits",
    "upcycle",
]

# Made when they are asked for: nobody else pays for keras-tuner and matplotlib.
_ON_DEMAND = ("plots", "tuning")


def __getattr__(name):
    if name in _ON_DEMAND:
        return importlib.import_module(f"keras_dynamic.{name}")
    raise AttributeError(f"module 'keras_dynamic' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_ON_DEMAND])
