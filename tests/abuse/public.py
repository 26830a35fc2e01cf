"""Which public entries there are, which are abused, and why the others are not."""

import re

from tests.abuse import (
    calibration,
    drawings,
    layers_called,
    layers_made,
    models,
    operations,
    rules,
    surgery,
    training,
)
from tests.test_docstrings import PUBLIC, methods

FAMILIES = {
    "ops": operations.ENTRIES,
    "rules": rules.ENTRIES,
    "calibration": calibration.ENTRIES,
    "layers": [*layers_made.ENTRIES, *layers_called.ENTRIES],
    "models": [*models.ENTRIES, *surgery.ENTRIES],
    "callbacks and tuning": training.ENTRIES,
    "plots": drawings.ENTRIES,
}

RECORD = "a record that the package fills in; it checks nothing and computes nothing"
KERAS = "Keras calls it, on what its own `__call__`, `fit` or `load_model` got"
INNER = "the package calls it, on what an abused entry has checked"
READS = "takes no argument; what it reads was made by an abused entry"
SIGNALS = "a callback's door for `fit`; abused by a training's first step"

# Regular expression to the reason why an entry has no arguments drawn for it.
EXEMPT = {
    r"DynamicPrediction.*": RECORD,
    r"calibration\.(Certificate|ExitReport|PathStep|ProbabilityQuality)(\..*)?": RECORD,
    r"calibration\.(TemperatureFit|ThresholdChoice|UnreachableGoal)": RECORD,
    r"calibration\.CalibrationReport.*": RECORD + "; tests/calibration feed `save`",
    r"plots\.[A-Z]\w*(\.\w+)?": RECORD + "; drawn by every twentieth call",
    r"tuning\.Pareto(\..*)?": RECORD,
    r"routers\.Routing": RECORD,
    r".*\.(build|call|count_features|get_config|from_config)": KERAS,
    r".*\.(compute_\w+|load_own_variables|get_compile_config)": KERAS,
    r"DynamicModel\.(train_step|test_step|compile_from_config|summary|save)": KERAS,
    r"DynamicModel\.fit": KERAS + "; trained in every way in tests/models",
    r"DynamicModel\.(save|load)_weights": "files; broken in tests/faults",
    r"(SkipGate|SparseMoE|LayerChoice|.*Selector)\.bind_costs": INNER,
    r"SkipGate\.(run|pass_by|observe|record_size|weights_without_decay)": INNER,
    r"SparseMoE\.(observe|record_size)": INNER,
    r"LayerwiseSelector\.(gate_logit|stopping_probabilities|probabilities)": INNER,
    r"routers\.\w+\.(logits|noisy|experts_per_token|tokens_for_each)": INNER,
    r"rules\.\w+\.(score|leaves|threshold_at|initial_state|update)": INNER,
    r"rules\.\w+\.(remembers|closed_value|thresholds|with_values)": INNER,
    r"rules\.\w+\.(candidates|with_threshold|bind)": INNER,
    r"(\w+Selector|SkipGate|BlendedActivation|LayerChoice)\.temperature": (
        "the property of `GumbelSoftmax`, which is abused"
    ),
    r"(BlendedActivation|LayerChoice)\.(blend|winner|strongest|probabilities)": READS,
    r"LayerChoice\.(choice_weights|layer_names)": READS,
    r"SkipGate\.(bypass|decider)": READS,
    r"DynamicModel\.(exit_names|exit_costs)": READS,
    r"callbacks\.\w+\.(on_\w+|set_model)": SIGNALS,
    r"tuning\.\w+\.(accuracy_name|score_of|signature)": READS,
    r"tuning\.DynamicHyperModel\.(build|fit|tuner)": "keras-tuner calls it in a search",
}


def public_names():
    """Names of all public functions, classes and methods, as users write them."""
    for qualified, value in PUBLIC.items():
        name = re.sub(r"^keras_dynamic\.((layers|models)\.)?", "", qualified)
        yield name
        if isinstance(value, type):
            for method, _ in methods(name, value):
                yield method


def abused_names():
    """Names of the entries in the tables, without what stands behind a comma."""
    return {
        re.split(r"[,(]", entry.name)[0]
        for entries in FAMILIES.values()
        for entry in entries
    }


def exempt(name):
    return any(re.fullmatch(pattern, name) for pattern in EXEMPT)
