"""Device and server: the two halves of a model that was split at an exit."""

import dataclasses

import numpy as np
import tensorflow as tf
from keras import tree

from keras_dynamic.models.costs import Costs
from keras_dynamic.models.export import named_specs, write_saved_model
from keras_dynamic.models.prediction import DynamicPrediction

__all__ = ["Device", "DeviceAnswers", "Sent", "Server"]

_COLUMNS = ("outputs", "exit_index", "confidence", "probabilities")


@dataclasses.dataclass(frozen=True, repr=False)
class Sent:
    """What a device has to send for the samples that it could not answer.

    What travels is `tensors`, a flat dict of arrays: any way of sending arrays will do,
    and a server takes such a dict in place of a `Sent`.

    Attributes:
        tensors: dict from a name to an array (n, ...), the rows of every tensor that
            the server needs, in order: live tensors of the graph, skip connections
            over the cut and masks (`<name>_mask`) included, the rule's memory of the
            samples (`memory_<i>`), and `broken`, which of them hold a NaN.
        rows: (n,) int32, where they stood in the batch, for the device. It need not
            travel. Defaults to `None`.
        costs: the model's `Costs`, for the server's account. Needed where the model
            leaves sizes of its inputs open, on which they depend. Defaults to `None`,
            those of the model.
    """

    tensors: dict
    rows: np.ndarray | None = None
    costs: Costs | None = None

    @property
    def nbytes(self):
        """Bytes of all tensors; of strings, the bytes of their characters."""
        return sum(_nbytes(array) for array in self.tensors.values())

    @property
    def bytes_per_sample(self):
        """Bytes that one sample takes, also where none has to be sent.

        Strings count with the mean of those that are sent, rounded up.
        """
        total = 0
        for array in self.tensors.values():
            if array.dtype == object:
                total += -(-_nbytes(array) // max(len(array), 1))
            else:
                total += array.dtype.itemsize * int(np.prod(array.shape[1:]))
        return total

    def __len__(self):
        return len(self.tensors["broken"])

    def __repr__(self):
        return (
            f"Sent({len(self)} samples, {self.bytes_per_sample:,} bytes each: "
            f"{', '.join(self.tensors)})"
        )


@dataclasses.dataclass(frozen=True, repr=False)
class DeviceAnswers:
    """What a device knows of a batch, one row a sample, in order.

    Attributes:
        outputs, probabilities, confidence: as in a `DynamicPrediction`; for samples
            that go on, those of the device's last exit, in case nobody listens.
        exit_index: (n,) int32, the exit taken; -1 for samples that go on.
        cost: (n,) int64, FLOPs executed on the device.
        sent: `Sent`, what the server needs of those that go on.
        exit_names, segment_rows, reference_cost: as in a `DynamicPrediction`.
    """

    outputs: np.ndarray
    exit_index: np.ndarray
    confidence: np.ndarray
    probabilities: np.ndarray
    cost: np.ndarray
    sent: Sent
    exit_names: tuple
    segment_rows: np.ndarray
    reference_cost: float

    @property
    def answered(self):
        """(n,) bool, which samples have left."""
        return self.exit_index >= 0

    def completed(self, served):
        """The answers of both halves in one record.

        Args:
            served: the `DynamicPrediction` that the server gave for `sent`.

        Returns:
            A `kd.DynamicPrediction`, equal to that of `predict_dynamic`.

        Raises:
            ValueError: if it holds another number of samples than were sent.
        """
        rows = self.sent.rows
        if len(served.exit_index) != len(rows):
            raise ValueError(
                f"`served` must hold the answers of the {len(rows)} samples that were "
                f"sent. Received: {len(served.exit_index)} answers."
            )
        columns = {name: getattr(self, name).copy() for name in _COLUMNS}
        for name, column in columns.items():
            column[rows] = getattr(served, name)
        cost = self.cost.copy()
        cost[rows] += served.cost
        return DynamicPrediction(
            **columns,
            cost=cost,
            exit_names=self.exit_names,
            segment_rows=self.segment_rows + served.segment_rows,
            reference_cost=self.reference_cost,
        )

    def __repr__(self):
        return f"DeviceAnswers({int(self.answered.sum())} answered, {self.sent!r})"


class _Half:
    """What both halves are: a part of a walk with the numbers that were in force.

    Args:
        model: the `DynamicModel`, whose weights it shares.
        walk: a `PartialWalk`.
        thresholds: (exits - 1,) float32.
        temperatures: (exits,) float32.
    """

    def __init__(self, model, walk, thresholds, temperatures):
        self.model = model
        self._walk = walk
        self._numbers = tf.constant(thresholds), tf.constant(temperatures)

    def _answers(self, x, costs):
        """(fields, sent): fields of a record, and the dict that is handed out."""
        answers, sent = self._walk(x, *self._numbers)
        fields = {name: answers[name].numpy() for name in _COLUMNS}
        fields["cost"] = self._cost(
            costs.exits, fields["exit_index"], np.asarray(answers.get("saved", 0.0))
        )
        fields |= {
            "exit_names": tuple(self.model.exit_names),
            "segment_rows": answers["segment_rows"].numpy().astype("int64"),
            "reference_cost": costs.reference,
        }
        return fields, {name: tensor.numpy() for name, tensor in sent.items()}

    def _cost(self, exits, exit_index, saved):
        exits = np.asarray(exits, "int64")
        numbers, first, last = self._walk.numbers, self._walk.first, self._walk.last
        before = exits[numbers[first - 1]] if first else 0
        here = np.where(exit_index < 0, numbers[last], exit_index)
        return exits[here] - before - np.rint(saved).astype("int64")

    def _served(self, x):
        """The tensors of an endpoint: answers, and `sent_<name>` of what goes on."""
        numbers = [tf.constant(number.numpy()) for number in self._numbers]
        # Traced into the function that is exported, not compiled by itself.
        answers, sent = self._walk(x, *numbers, eagerly=True)
        found = {name: answers[name] for name in _COLUMNS}
        return found | {f"sent_{name}": tensor for name, tensor in sent.items()}


class Device(_Half):
    """The first half of a model, see `kd.split`: answers whom it can.

    `device(x)` takes one batch, as the model does, and gives `DeviceAnswers`.
    """

    def __call__(self, x):
        x = tree.map_structure(_tensor, x)
        rule, asked = self._walk.rule, self._walk.numbers
        costs = self.model.road.costs_of_batch(x, rule, asked)
        fields, sent = self._answers(x, costs)
        rows = sent.pop("rows")
        return DeviceAnswers(**fields, sent=Sent(sent, rows, costs))

    def export(self, filepath, verbose=True):
        """Writes a SavedModel.

        Its endpoint `serve` takes a batch and gives a dict: `outputs`, `exit_index`
        (-1 for those who go on), `confidence`, `probabilities`, and what has to be
        sent as `sent_<name>`.

        Args:
            filepath: path of the folder.
            verbose: whether Keras prints the endpoint. Defaults to `True`.
        """
        specs = named_specs(self.model)
        signature = [tree.pack_sequence_as(self.model.input, specs)]
        write_saved_model(filepath, self._served, signature, [self.model], verbose)


class Server(_Half):
    """The second half of a model, see `kd.split`: answers the rest.

    `server(sent)` takes what a device sent, a `Sent` or its dict of arrays `tensors`,
    and gives a `kd.DynamicPrediction`, whose `cost` is what was executed on the server.
    It may run in another process, on a model that was loaded there and split alike.

    Args:
        model, walk, thresholds, temperatures: as of `_Half`.
        specs: dict from the name of each tensor sent to its `tf.TensorSpec`.
        optional: names of those that are not sent where they are absent.
    """

    def __init__(self, model, walk, thresholds, temperatures, specs, optional=()):
        super().__init__(model, walk, thresholds, temperatures)
        self.specs, self._optional = specs, set(optional)

    def __call__(self, sent):
        if isinstance(sent, dict):
            sent = Sent(sent)
        if not isinstance(sent, Sent):
            raise TypeError(
                "`sent` must be the `Sent` that a device gave, or the dict of its "
                f"`tensors`. Received: sent={sent!r} of type {type(sent)}."
            )
        missing = sorted(set(self.specs) - set(sent.tensors) - self._optional)
        if missing:
            raise ValueError(
                f"`sent` must hold the tensors {list(self.specs)}: it comes from "
                f"another split. Received: {list(sent.tensors)}, {missing} missing."
            )
        tensors = {name: _tensor(sent.tensors.get(name)) for name in self.specs}
        fields, _ = self._answers(tensors, self._costs_of(sent))
        return DynamicPrediction(**fields)

    def _costs_of(self, sent):
        road = self.model.road
        if sent.costs is None and road.open_sizes:
            raise ValueError(
                "`sent` must hold `costs`: the model leaves sizes of its inputs open, "
                "on which they depend. Give the device's `Sent` as a whole, pickled on "
                "the way, in place of its `tensors`. Received: costs=None."
            )
        if sent.costs is None:
            return road.costs(None, self._walk.rule, self._walk.numbers)
        return sent.costs

    def export(self, filepath, verbose=True):
        """Writes a SavedModel.

        Its endpoint `serve` takes a dict of the device's `sent_<name>` and gives a
        dict: `outputs`, `exit_index`, `confidence`, `probabilities`.

        Args:
            filepath: path of the folder.
            verbose: whether Keras prints the endpoint. Defaults to `True`.
        """
        signature = {
            f"sent_{name}": tf.TensorSpec(spec.shape, spec.dtype, name=f"sent_{name}")
            for name, spec in self.specs.items()
        }

        def serve(sent):
            return self._served({n.removeprefix("sent_"): t for n, t in sent.items()})

        write_saved_model(filepath, serve, [signature], [self.model], verbose)


def _nbytes(array):
    """Bytes of an array, of the strings in it rather than of pointers to them."""
    if array.dtype != object:
        return array.nbytes
    return sum(len(string) for string in array.ravel())


def _tensor(array):
    return None if array is None else tf.convert_to_tensor(array)
