"""Plots of what a network does: the data first, as a record, and then its drawing.

    kd.plots.expert_load(history, "moe").plot()

Every function returns a record of NumPy arrays, whose `plot(ax=None)` draws it into the
given axes of matplotlib, or new ones, and returns them. matplotlib comes with the extra
`plots`. Colors are legible to the color-blind.
"""

from keras_dynamic.plots.choices import Blends, LayerChoices, blend, layer_choices
from keras_dynamic.plots.confidence import (
    ConfidenceHistograms,
    confidence_histograms,
)
from keras_dynamic.plots.diagram import ModelDiagram, model_diagram
from keras_dynamic.plots.experts import (
    ExpertLoad,
    ExpertLoadByClass,
    expert_load,
    expert_load_by_class,
)
from keras_dynamic.plots.gates import GatesByClass, gates_by_class
from keras_dynamic.plots.honesty import Reliability, ReliabilityBins, reliability
from keras_dynamic.plots.patches import PatchExperts, patch_experts
from keras_dynamic.plots.rates import ExitRates, exit_rates
from keras_dynamic.plots.samples import SamplesByExit, samples_by_exit
from keras_dynamic.plots.selection import ExitSelection, exit_selection
from keras_dynamic.plots.simplex import GumbelSimplex, gumbel_simplex
from keras_dynamic.plots.trade_off import AccuracyCost, accuracy_cost

__all__ = [
    "AccuracyCost",
    "Blends",
    "ConfidenceHistograms",
    "ExitRates",
    "ExitSelection",
    "ExpertLoad",
    "ExpertLoadByClass",
    "GatesByClass",
    "GumbelSimplex",
    "LayerChoices",
    "ModelDiagram",
    "PatchExperts",
    "Reliability",
    "ReliabilityBins",
    "SamplesByExit",
    "accuracy_cost",
    "blend",
    "confidence_histograms",
    "exit_rates",
    "exit_selection",
    "expert_load",
    "expert_load_by_class",
    "gates_by_class",
    "gumbel_simplex",
    "layer_choices",
    "model_diagram",
    "patch_experts",
    "reliability",
    "samples_by_exit",
]
