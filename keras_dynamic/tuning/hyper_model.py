"""DynamicHyperModel: a search space of dynamic networks, scored as they will run."""

import os
import random
import warnings

import keras_tuner
import numpy as np
from keras_tuner.errors import FatalTypeError, FatalValueError

from keras_dynamic.callbacks.dynamic_validation import DynamicValidation
from keras_dynamic.models.dynamic_model import DynamicModel
from keras_dynamic.tuning.directory import check, claim, signature_of
from keras_dynamic.tuning.hyperparameters import KINDS
from keras_dynamic.tuning.objectives import DynamicObjective
from keras_dynamic.tuning.scoring import ObjectiveCheck, Scoring

__all__ = ["DynamicHyperModel"]

_TUNERS = {
    "random": "RandomSearch",
    "bayesian": "BayesianOptimization",
    "hyperband": "Hyperband",
    "grid": "GridSearch",
}


class DynamicHyperModel(keras_tuner.HyperModel):
    """A search over lambda, tau and the rest, on keras-tuner.

    At the end of each epoch of each trial the network's exits are calibrated on one
    set, its dynamic road is scored on another (see `kd.callbacks.DynamicValidation`),
    and the objective is computed from accuracy and mean cost. All of that is in the
    trial's metrics, and `kd.tuning.pareto` shows it. The best epoch's weights are kept,
    thresholds and calibration temperatures among them, so that `get_best_models` gives
    networks that are ready to `predict_dynamic`. A model with a selector is scored
    under its own choice of exits, without thresholds.

    The test set is a third one: a search fits its objective's set.

    Args:
        build: function of `hp` that returns a compiled `DynamicModel`. Its
            hyperparameters come from `kd.tuning` (`loss_weight`, `temperature`, ...)
            or from `hp` itself.
        calibration_data: tuple (x, y), or a dataset of such tuples.
        validation_data: the same, other samples.
        objective: a `kd.tuning.AccuracyUnderBudget` or `CostUnderAccuracy`.
        rule: as in `DynamicModel.calibrate`. Defaults to `None`, `"max_probability"`,
            or `"selected"` for a model with a selector.
        callbacks: function of `hp` that returns a list of callbacks, such as a
            `kd.tuning.temperature_schedule`, new ones for each trial. Defaults to
            `None`.
        batch_size: int or `None` (32), of calibration and validation.
        name: string. Defaults to `None`.

    Raises:
        TypeError: for a `build` or `callbacks` that is no function, data of another
            form, another objective, or a `build` that returns no `DynamicModel`.
        ValueError: for a space without any hyperparameter, a model that is not
            compiled, a loss weight that `compile(loss_weights=)` overrides, a metric
            that the objective needs and the model lacks, or a `DynamicValidation` of
            the user's beside this one. Within a search these are keras-tuner's
            `FatalValueError` and `FatalTypeError`, which end it; any other error makes
            its trial fail, and three in a row end the search.

    Example:

    ```python
    def build(hp):
        inputs = keras.Input((4,))
        h = keras.layers.Dense(8, "relu")(inputs)
        weight = kd.tuning.loss_weight(hp, "exit_1")
        early = kd.EarlyExit(2, loss_weight=weight, name="exit_1")(h)
        model = kd.DynamicModel(inputs, [early, keras.layers.Dense(2, "softmax")(h)])
        model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        return model


    x, y = np.random.default_rng(0).normal(size=(90, 4)), np.arange(90) % 2
    hypermodel = kd.tuning.DynamicHyperModel(
        build,
        calibration_data=(x[:30], y[:30]),
        validation_data=(x[30:60], y[30:60]),
        objective=kd.tuning.AccuracyUnderBudget(0.9),
    )
    tuner = hypermodel.tuner("random", max_trials=2, directory="search")
    tuner.search(x[60:], y[60:], epochs=1, verbose=0)
    print(kd.tuning.pareto(tuner))
    ```
    """

    def __init__(
        self,
        build,
        calibration_data,
        validation_data,
        objective,
        rule=None,
        callbacks=None,
        batch_size=None,
        name=None,
    ):
        super().__init__(name=name)
        for argument, value in (("build", build), ("callbacks", callbacks)):
            if not callable(value) and not (argument == "callbacks" and value is None):
                raise TypeError(
                    f"`{argument}` must be a function of `hp`. Received: "
                    f"{argument}={value!r} of type {type(value)}."
                )
        if not isinstance(objective, DynamicObjective):
            raise TypeError(
                "`objective` must be a `kd.tuning.AccuracyUnderBudget` or "
                f"`CostUnderAccuracy`. Received: {objective!r} of type "
                f"{type(objective)}."
            )
        self.objective = objective
        self._function, self._callbacks = build, callbacks
        self._validation = (calibration_data, validation_data)
        self._arguments = {"rule": rule, "batch_size": batch_size}
        self._signature = None
        self._scoring()  # data of a wrong form is found here, before any search

    def build(self, hp):
        """The compiled model for some values of the hyperparameters."""
        model = self._function(hp)
        if not isinstance(model, DynamicModel):
            raise FatalTypeError(
                "`build` must return a `DynamicModel`. Received: "
                f"{model!r} of type {type(model)}."
            )
        if not model.compiled:
            raise FatalValueError(
                "`build` must return a compiled model. Received: model "
                f"'{model.name}', which is not."
            )
        _check_loss_weights(model, hp)
        # Else its state in a trial's weights has nowhere to go.
        model.optimizer.build(model.trainable_variables)
        # So that their hyperparameters are in the space from the start.
        self._callbacks_for(hp)
        if not hp.space:
            raise FatalValueError(
                "`build` must have hyperparameters, such as "
                "`kd.tuning.loss_weight(hp, 'exit_1')`. Received: a search space "
                "without any."
            )
        return model

    def fit(self, hp, model, *args, callbacks=(), **kwargs):
        """Trains a trial's model; called by the tuner, with what `search` is given."""
        tuner = next((c.tuner for c in callbacks if hasattr(c, "tuner")), None)
        checks = []
        if tuner is not None:
            claim(tuner.project_dir, self.signature())
            checks = [ObjectiveCheck(tuner.oracle.objective, self.objective)]
        # Ours come first: others, such as EarlyStopping, monitor what they log.
        ours = [*self._callbacks_for(hp), self._scoring()]
        if any(
            isinstance(each, DynamicValidation) for each in (*ours[:-1], *callbacks)
        ):
            raise FatalValueError(
                "`callbacks` must hold no `DynamicValidation`: the search has its own, "
                "whose thresholds and logs another one would overwrite."
            )
        return model.fit(*args, callbacks=[*ours, *callbacks, *checks], **kwargs)

    def tuner(self, tuner, **kwargs):
        """A tuner for this search, in a directory that is its own.

        Args:
            tuner: `"random"`, `"bayesian"` (needs scikit-learn), `"hyperband"`,
                `"grid"`, or a class of keras-tuner's.
            **kwargs: what its constructor takes: `max_trials` (`max_epochs` for
                Hyperband), `directory`, `project_name`, `overwrite`, `seed`,
                `executions_per_trial`, `distribution_strategy` and the rest. The
                objective is this one's.

        Returns:
            The tuner. With `overwrite=False` (the default) it goes on where a search
            that was interrupted stopped: the trial that was running is run again with
            the same values.

        Raises:
            ValueError: for an unknown name, a directory that holds another search, or
                one that cannot be made.
        """
        if isinstance(tuner, str):
            if tuner not in _TUNERS:
                raise ValueError(
                    f"`tuner` must be one of {sorted(_TUNERS)}, or a class. Received: "
                    f"tuner={tuner!r}."
                )
            tuner = getattr(keras_tuner, _TUNERS[tuner])
        if not (isinstance(tuner, type) and issubclass(tuner, keras_tuner.Tuner)):
            raise TypeError(
                f"`tuner` must be one of {sorted(_TUNERS)}, or a class of tuners. "
                f"Received: tuner={tuner!r} of type {type(tuner)}."
            )
        if "objective" in kwargs:
            raise ValueError(
                "`objective` is the hypermodel's own. Received: "
                f"objective={kwargs['objective']!r}."
            )
        directory = kwargs.get("directory") or "."
        project = kwargs.get("project_name") or "untitled_project"
        path = os.path.join(str(directory), project)
        try:
            os.makedirs(path, exist_ok=True)
        except OSError as error:
            raise ValueError(
                "`directory` must be a place where a folder can be made. Received: "
                f"directory={directory!r}, project_name={project!r} ({error})."
            ) from error
        if not kwargs.get("overwrite"):
            check(path, self.signature(), has_begun=False)
        made = tuner(self, objective=self.objective, **kwargs)
        claim(made.project_dir, self.signature())
        return made

    def signature(self):
        """What distinguishes this search from others, as a dict."""
        if self._signature is None:
            hp = keras_tuner.HyperParameters()
            state = random.getstate()  # Keras draws seeds from it
            self.build(hp)
            random.setstate(state)
            rule = self._arguments["rule"]
            self._signature = signature_of(self.objective, rule, hp.space)
            names = [entry.name for entry in hp.space]
            if not any(name.endswith(KINDS) for name in names):
                warnings.warn(
                    "The search space has no lambda, temperature or other weight of "
                    f"`kd.tuning`, only {names}: all trials train their exits alike.",
                    stacklevel=3,
                )
        return self._signature

    def _callbacks_for(self, hp):
        made = [] if self._callbacks is None else self._callbacks(hp)
        if not isinstance(made, (list, tuple)):
            raise FatalTypeError(
                "`callbacks` must return a list of callbacks. Received: "
                f"{made!r} of type {type(made)}."
            )
        return list(made)

    def _scoring(self):
        return Scoring(self.objective, *self._validation, **self._arguments)


def _check_loss_weights(model, hp):
    """Raises where `compile(loss_weights=)` overrides a lambda that is searched."""
    values = {name.rpartition("/")[2]: value for name, value in hp.values.items()}
    weights = model.road.loss_weights or []
    for head, weight in zip(model.road.heads, weights, strict=False):
        searched = values.get(f"{head.name}_loss_weight")
        if searched is None or head.exit_layer is None:
            continue
        own, used = head.exit_layer.loss_weight, float(np.asarray(weight))
        if np.isclose(own, searched) and not np.isclose(used, own):
            raise FatalValueError(
                f"The loss weight of exit '{head.name}' is searched as "
                f"'{head.name}_loss_weight', but `compile(loss_weights=)` overrides "
                f"it. Leave that out. Received: {used:g} in place of {searched:g}."
            )
