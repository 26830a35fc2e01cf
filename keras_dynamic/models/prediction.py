"""DynamicPrediction: what comes back from the dynamic road."""

import dataclasses

import numpy as np

__all__ = ["DynamicPrediction"]


@dataclasses.dataclass(frozen=True, repr=False)
class DynamicPrediction:
    """Answers of `DynamicModel.predict_dynamic`, one row a sample, in input order.

    Attributes:
        outputs: (n, units), the head's own output at the exit taken, as in `predict`.
        exit_index: (n,) int32, the exit taken, from 0; the last is the final one.
        confidence: (n,) float32, the rule's score at the exit taken (nats for
            `Entropy`, a count for `Patience`).
        cost: (n,) int64, FLOPs executed for the sample: heads that were asked, selector
            and gates included, layers behind closed gates not.
        probabilities: (n, units) float32, calibrated.
        exit_names: names of all exits.
        segment_rows: (exits,) int64, how many rows each segment really computed.
        reference_cost: FLOPs of the final output alone, the plain network.

    Example:

    ```python
    inputs = keras.Input((4,))
    y1 = kd.EarlyExit(3, name="exit_1")(inputs)
    y2 = keras.layers.Dense(3, "softmax", name="final")(inputs)
    model = kd.DynamicModel(inputs, [y1, y2])
    p = model.predict_dynamic(np.ones((5, 4)), verbose=0)
    print(p.outputs.shape, p.exit_index.shape, p.exit_rates)
    ```
    """

    outputs: np.ndarray
    exit_index: np.ndarray
    confidence: np.ndarray
    cost: np.ndarray
    probabilities: np.ndarray
    exit_names: tuple[str, ...]
    segment_rows: np.ndarray
    reference_cost: int

    def __len__(self):
        return len(self.exit_index)

    @property
    def mean_cost(self):
        """Mean cost over the plain network's: 1.0 is the plain network."""
        if not len(self):
            return float("nan")
        return float(np.mean(self.cost)) / self.reference_cost

    @property
    def exit_rates(self):
        """(exits,) share of the samples that left at each exit."""
        counts = np.bincount(self.exit_index, minlength=len(self.exit_names))
        return counts / max(len(self), 1)

    def __repr__(self):
        rates = ", ".join(
            f"{name} {rate:.1%}"
            for name, rate in zip(self.exit_names, self.exit_rates, strict=True)
        )
        return (
            f"<DynamicPrediction of {len(self)} samples: {rates}; "
            f"mean cost {self.mean_cost:.3f}>"
        )
