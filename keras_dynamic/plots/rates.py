"""Who leaves where, epoch after epoch."""

import dataclasses

import numpy as np
from matplotlib.ticker import MaxNLocator

from keras_dynamic.layers._checks import positive_integer
from keras_dynamic.plots._drawing import axes_or_new, style_of
from keras_dynamic.plots._inputs import checked_logs

__all__ = ["ExitRates", "exit_rates"]


@dataclasses.dataclass(frozen=True)
class ExitRates:
    """Shares of the samples that leave at each exit, over the epochs of a training.

    Attributes:
        epochs: (epochs,), counted from 1.
        rates: (epochs, exits), rows sum to 1.
        mean_costs: (epochs,), 1.0 being the plain network.
        accuracies: (epochs,), of the dynamic road; `None` where none was logged.
        metric: string, the name that the accuracy has in the logs.

    Example:

    ```python
    rates = np.array([[0.2, 0.8], [0.5, 0.5]])
    record = kd.plots.ExitRates(
        np.array([1, 2]), rates, np.array([0.9, 0.7]), np.array([0.8, 0.85])
    )
    ax = record.plot()
    ```
    """

    epochs: np.ndarray
    rates: np.ndarray
    mean_costs: np.ndarray
    accuracies: np.ndarray | None
    metric: str = "accuracy"

    def plot(self, ax=None):
        """Draws the shares as stacked bars, accuracy and mean cost as lines.

        Args:
            ax: matplotlib `Axes`, or `None` for new ones.

        Returns:
            The `Axes`.
        """
        ax = axes_or_new(ax, figsize=(7, 4))
        step = self.epochs[1] - self.epochs[0] if len(self.epochs) > 1 else 1
        bottom = np.zeros(len(self.epochs))
        last = self.rates.shape[1] - 1
        for index, share in enumerate(self.rates.T):
            ax.bar(
                self.epochs,
                share,
                0.8 * step,
                bottom=bottom,
                alpha=0.6,
                **style_of(index),
                label=f"exit {index}" + (" (final)" if index == last else ""),
            )
            bottom = bottom + share
        line = {"color": "black", "markersize": 5}
        ax.plot(self.epochs, self.mean_costs, "s--", label="mean cost", **line)
        if self.accuracies is not None:
            ax.plot(self.epochs, self.accuracies, "o-", label=self.metric, **line)
        ax.set(
            xlabel="epoch",
            ylabel=f"share of samples;\n{self.metric}; cost (1 = plain network)",
            ylim=(0, max(1.0, float(self.mean_costs.max())) * 1.02),
            title="Where samples leave during training",
        )
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize="small")
        return ax


def exit_rates(history, update_freq=1, metric="accuracy"):
    """Who leaves where, from what `kd.callbacks.DynamicValidation` logs.

    Args:
        history: what `fit` returns, or a dict of lists with `val_exit_0_rate` and so
            on, `val_mean_cost` and, where it was a metric, `val_dynamic_<metric>`.
        update_freq: int >= 1, that of the callback. Defaults to 1.
        metric: string, name of the accuracy among the final exit's metrics, such as
            `"acc"`. Defaults to `"accuracy"`, which is left out where it was not
            logged.

    Returns:
        An `ExitRates`.

    Raises:
        TypeError: if `history` is neither.
        ValueError: if the logs hold no rates, or no metric of another name than
            `"accuracy"`.

    Example:

    ```python
    logs = {
        "val_exit_0_rate": [0.2, 0.5],
        "val_exit_1_rate": [0.8, 0.5],
        "val_mean_cost": [0.9, 0.7],
        "val_dynamic_accuracy": [0.80, 0.85],
    }
    ax = kd.plots.exit_rates(logs).plot()
    ```
    """
    update_freq = positive_integer("update_freq", update_freq)
    logs = checked_logs("history", history)
    rates = []
    while f"val_exit_{len(rates)}_rate" in logs:
        rates.append(logs[f"val_exit_{len(rates)}_rate"])
    if not rates or "val_mean_cost" not in logs:
        raise ValueError(
            "`history` must hold what `kd.callbacks.DynamicValidation` logs, "
            f"'val_exit_0_rate', 'val_mean_cost' and so on. Received: {sorted(logs)}."
        )
    rates = np.stack(rates, axis=1)
    accuracies = logs.get(f"val_dynamic_{metric}")
    if accuracies is None and metric != "accuracy":
        raise ValueError(
            f"`metric` must be one of which 'val_dynamic_<metric>' is in the logs. "
            f"Received: metric={metric!r} with {sorted(logs)}."
        )
    return ExitRates(
        epochs=update_freq * np.arange(1, len(rates) + 1),
        rates=rates,
        mean_costs=np.array(logs["val_mean_cost"]),
        accuracies=None if accuracies is None else np.array(accuracies),
        metric=metric,
    )
