"""What a model decides about data at inference, as histograms."""

import keras
import numpy as np

from keras_dynamic._compat import keeping_losses, layers_within
from keras_dynamic.layers._gate_records import listening
from keras_dynamic.layers._selector import soft_weights
from keras_dynamic.layers.skip_gate import SkipGate
from keras_dynamic.layers.sparse_moe import SparseMoE
from keras_dynamic.models import rules
from keras_dynamic.models.dynamic_model import DynamicModel
from keras_dynamic.models.feeding import batches_over

__all__ = ["histograms_of", "is_dynamic"]

_BUCKETS = 20


def is_dynamic(model):
    """Whether there is something that `histograms_of` could tell of a model."""
    return isinstance(model, DynamicModel) or _holds_gates(model)


def histograms_of(model, x, batch_size=None):
    """Runs samples through a model and counts what was decided.

    Args:
        model: a `keras.Model` that `is_dynamic`.
        x, batch_size: as in `predict`.

    Returns:
        A dict from names to arrays (buckets, 3): left edge, right edge, count.
    """
    histograms = {}
    if isinstance(model, DynamicModel):
        answers = model.predict_dynamic(x, batch_size, verbose=0)
        exits = np.bincount(answers.exit_index, minlength=len(model.exit_names))
        histograms["exit_index"] = _one_a_number(exits)
        scores = answers.confidence[np.isfinite(answers.confidence)]
        if isinstance(model.exit_rule, rules.Patience):  # it counts agreements
            scores = _one_a_number(np.bincount(scores.astype("int64")))
        else:
            scores = _of_scores(scores)
        histograms["exit_confidence"] = scores
    has_selector = isinstance(model, DynamicModel) and model.road.plan is not None
    if has_selector or _holds_gates(model):
        records, weights = _dense_pass(model, x, batch_size, has_selector)
        if has_selector:
            histograms["exit_weights"] = _one_a_number(weights)
        histograms |= _of_gates(model, records)
    return histograms


def _holds_gates(model):
    return any(isinstance(each, (SkipGate, SparseMoE)) for each in layers_within(model))


def _dense_pass(model, x, batch_size, has_selector):
    """(records, weights): what every gate did with all samples, exits or not, and the
    sum of the selector's soft weights."""
    records, weights = [], 0.0
    for _, _, batches in batches_over(x, batch_size):
        for batch in batches:
            inputs, _, _ = keras.utils.unpack_x_y_sample_weight(batch)
            # Eagerly: a batch's records then have no graph that they cannot leave.
            with keeping_losses(model), listening() as heard:
                outputs = model(inputs, training=False)
            records.extend(heard)
            if has_selector:
                weights += np.sum(np.asarray(soft_weights(outputs[-1])), axis=0)
    return records, weights


def _of_gates(model, records):
    histograms = {}

    def add(name, buckets):
        """Names of layers are unique in each nested model only."""
        names = [
            name,
            *(f"{name}_{number}" for number in range(1, len(histograms) + 1)),
        ]
        histograms[next(each for each in names if each not in histograms)] = buckets

    for layer in layers_within(model):
        own = [record for record in records if record.gate is layer]
        if isinstance(layer, SkipGate):
            # Of the samples that got there; others have a probability of 0.
            values = [
                np.asarray(record.probability)[np.asarray(record.reached) > 0]
                for record in own
            ]
            values = np.concatenate([[], *values])
            add(f"{layer.name}_open_probability", _of_scores(values))
        elif isinstance(layer, SparseMoE):
            loads = [[np.sum(c) for c in record.computed] for record in own]
            loads.append([0.0] * layer.num_experts)
            add(f"{layer.name}_expert_load", _one_a_number(np.sum(loads, axis=0)))
    return histograms


def _one_a_number(counts):
    """A bucket for each of the numbers 0, 1, ..., with the number in its middle."""
    numbers = np.arange(len(counts))
    return np.stack([numbers - 0.5, numbers + 0.5, counts], axis=1)


def _of_scores(values):
    """Buckets over [0, 1], or over what there is where scores are no probabilities."""
    within = np.all((values >= 0) & (values <= 1))
    limits = (0, 1) if within else (values.min(), values.max())
    counts, edges = np.histogram(values, _BUCKETS, limits)
    return np.stack([edges[:-1], edges[1:], counts], axis=1)
