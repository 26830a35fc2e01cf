"""Something that follows a schedule during `fit`: which step it is, and what then."""

import sys
import warnings

import keras
import numpy as np

__all__ = ["Schedule", "check_schedule"]


def check_schedule(schedule):
    """Raises for what cannot be called with a step."""
    if not callable(schedule):
        raise TypeError(
            "`schedule` must be a `LearningRateSchedule` or a function of the "
            f"step. Received: schedule={schedule!r} of type {type(schedule)}."
        )


class Schedule(keras.callbacks.Callback):
    """Sets variables of the model before each step or epoch.

    The callback keeps no count of its own, so that it may be deep-copied and training
    may be interrupted. A subclass says what to set.

    Args:
        update_freq: `"batch"` or `"epoch"`.
        verbose: 0 or 1.
    """

    _common = None  # what is logged without saying of which layer or exit

    def __init__(self, update_freq, verbose):
        super().__init__()
        if update_freq not in ("batch", "epoch"):
            raise ValueError(
                "`update_freq` must be 'batch' or 'epoch'. Received: "
                f"update_freq={update_freq!r}."
            )
        self.update_freq = update_freq
        self.verbose = verbose

    def _find(self):
        """Whatever is to be set in `self.model`; raises where there is nothing."""
        raise NotImplementedError

    def _set_to(self, found, step):
        """Sets what `_find` gave; returns the numbers for the logs by their names."""
        raise NotImplementedError

    def on_train_begin(self, logs=None):
        if self.update_freq == "batch" and self.model.optimizer is None:
            raise ValueError(
                "`update_freq='batch'` counts the steps of the optimizer. Use 'epoch'. "
                "Received: a model without an optimizer."
            )
        self._found = self._find()
        self._missing = None
        self._logged = {}

    def on_epoch_begin(self, epoch, logs=None):
        if self.update_freq == "epoch":
            self._logged = self._set_to(self._found, epoch)
        elif self._missing is None:
            self._missing = self._steps_missing(epoch)

    def on_train_batch_begin(self, batch, logs=None):
        if self.update_freq == "batch":
            step = self._iterations() + self._missing
            self._logged = self._set_to(self._found, step)

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            for name, value in self._logged.items():
                # Of several callbacks of a kind the first one has the common name.
                logs[name] = logs.get(name, value) if name == self._common else value
        if self.verbose:
            words = ", ".join(f"{name} {value}" for name, value in self._logged.items())
            sys.stdout.write(f"\nEpoch {epoch + 1}: {words}\n")

    def on_train_end(self, logs=None):
        self._found = None  # a copy of this callback is no copy of the model's layers

    @property
    def _unit(self):
        """What a step is, in words."""
        return "step" if self.update_freq == "batch" else "epoch"

    def _value_at(self, schedule, step):
        """What a schedule gives, an array or tensor of one number as a float."""
        value = schedule(step)
        if not (keras.ops.is_tensor(value) or isinstance(value, np.ndarray)):
            return value
        array = keras.ops.convert_to_numpy(value)
        if array.size != 1:
            raise ValueError(
                f"`schedule` must give one number at {self._unit} {step}. Received: an "
                f"array of shape {array.shape}."
            )
        return array.item()

    def _iterations(self):
        return int(keras.ops.convert_to_numpy(self.model.optimizer.iterations))

    def _steps_missing(self, epoch):
        """What the optimizer lacks of the steps of the epochs before this `fit`."""
        if epoch == 0:
            return 0
        iterations = self._iterations()
        steps = self.params.get("steps")
        if steps is None:
            if iterations == 0:
                warnings.warn(
                    f"`fit` starts at epoch {epoch} with an optimizer that has made no "
                    "step, and how many batches an epoch has is not known: the "
                    "schedule starts at step 0. Use `update_freq='epoch'`, or give "
                    "`steps_per_epoch` to `fit`.",
                    stacklevel=2,
                )
            return 0
        # In mixed_float16 the user's optimizer is inside one that scales the loss.
        optimizer = self.model.optimizer
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)
        accumulated = optimizer.gradient_accumulation_steps or 1
        return max(0, epoch * steps // accumulated - iterations)
