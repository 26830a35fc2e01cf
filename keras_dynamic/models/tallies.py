"""What `evaluate_dynamic` adds up."""

import numpy as np

from keras_dynamic._compat import loss_for, metric_for
from keras_dynamic.models.per_exit import own_metric

__all__ = ["Tallies"]


class Tallies:
    """The compiled loss and metrics of the final output, on the answers.

    Args:
        final: dict with `loss`, `metrics` and `weighted_metrics`, as `compile` got it.
    """

    def __init__(self, final):
        self._final, self._loss_sum, self._rows = final, 0.0, 0
        self._metrics = None

    def _build(self, y, outputs):
        self._loss = loss_for(self._final["loss"], y, outputs)
        # Copies: the model's own hold the state of a `fit` that may be under way.
        self._metrics, self._weighted = (
            [metric_for(own_metric(m), y, outputs) for m in self._final[kind]]
            for kind in ("metrics", "weighted_metrics")
        )

    def update(self, y, outputs, weight):
        if self._metrics is None:
            self._build(y, outputs)
        rows = outputs.shape[0]
        if self._loss is not None:
            self._loss_sum += rows * float(self._loss(y, outputs, weight))
            self._rows += rows
        for metric in self._metrics:
            metric.update_state(y, outputs)
        for metric in self._weighted:
            metric.update_state(y, outputs, sample_weight=weight)

    def results(self):
        results = {}
        if self._loss is not None:
            results["loss"] = self._loss_sum / self._rows
        for metric in [*self._metrics, *self._weighted]:
            value = metric.result()
            flat = value if isinstance(value, dict) else {metric.name: value}
            for name, number in flat.items():
                name = name if name not in results else f"weighted_{name}"
                results[name] = np.asarray(number).tolist()
        return results
