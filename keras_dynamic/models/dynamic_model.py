"""DynamicModel: a functional Keras model that can stop early."""

import functools

import keras
import numpy as np

from keras_dynamic import _compat
from keras_dynamic.models import rules
from keras_dynamic.models.binding import fill_in_costs, wants_costs
from keras_dynamic.models.distilling import Distillation
from keras_dynamic.models.dynamic_inference import DynamicInference
from keras_dynamic.models.exit_table import exit_table
from keras_dynamic.models.road import Road
from keras_dynamic.models.selection import DERIVED_NAMES
from keras_dynamic.models.several_workers import SeveralWorkers
from keras_dynamic.models.structure import (
    check_exits,
    check_functional_call,
    check_inputs,
    check_outputs,
    ends_in_selector,
    shapes_of_inputs,
    with_selector_output,
)
from keras_dynamic.models.training_exits import fit_exits
from keras_dynamic.models.weight_decay import exclude_from_weight_decay
from keras_dynamic.models.whole_files import WholeFiles

__all__ = ["DynamicModel"]


@keras.saving.register_keras_serializable(package="keras_dynamic")
class DynamicModel(DynamicInference, SeveralWorkers, WholeFiles, keras.Model):
    """A functional model with early exits that runs only as far as it has to.

    It is made like `keras.Model` and is one: `fit`, `evaluate`, `predict`, `save`
    and the rest work on all exits at once. With one loss and one `y` the objective
    is sum_e lambda_e L(y, y_e) + L(y, y_final) + all `add_loss` terms, lambda_e being
    the `loss_weight` of the `EarlyExit` that output e descends from (1 for other
    heads). Metrics are named after their exit (`exit_1_accuracy`); the last exit's
    have their plain names (`accuracy`).

    `predict_dynamic` takes the sparse road: after each exit only the samples that
    the rule keeps go on. Each sample gets the answer that `predict` followed by the
    same rule would have given.

    Args:
        inputs: `keras.Input` tensor(s): one, a list or a dict.
        outputs: list of at least two tensors (batch, units), the exits in the order
            of their depth; the last is the final one. Where there is a `SkipGate` or a
            `SparseMoE` one output will do: these are then all that is dynamic.
        exit_rule: the `kd.rules.ExitRule` in force, or its name. Defaults to `None`,
            `MaxProbability(0.9)`, or `Selected` with a selector.
            (`keras.models.clone_model` makes a clone with the default; `from_config`
            keeps the rule.)
        selector: tensor (batch, exits) of weights, from an `ExitSelector` or a
            `LayerwiseSelector`. The loss is then that of the mixture
            sum_e w_e y_e of the exits' probabilities, plus the exits' own as above;
            `predict` gives the weights last; `accuracy` is that of the answer
            selected, beside `final_accuracy` and `mixture_accuracy`. Defaults to
            `None`.
        name: string, the model's name.

    Raises:
        ValueError: for fewer outputs than that, outputs of different shapes, an input
            with a fixed batch size, an operation that mixes rows of the batch, a
            graph that cannot be cut, or an `EarlyExit` that was called with targets.

    Example:

    ```python
    inputs = keras.Input((8, 8, 1))
    h = keras.layers.Conv2D(8, 3, activation="relu")(inputs)
    y1 = kd.EarlyExit(10, loss_weight=0.5, name="exit_1")(h)
    h = keras.layers.Conv2D(16, 3, activation="relu")(h)
    y2 = keras.layers.Dense(10, "softmax", name="final")(keras.layers.Flatten()(h))
    model = kd.DynamicModel(inputs, [y1, y2])
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    x, y = np.random.rand(64, 8, 8, 1), np.random.randint(0, 10, 64)
    model.fit(x, y, verbose=0)
    report = model.calibrate(x, y, max_accuracy_drop=0.01)
    print(model.predict_dynamic(x, verbose=0))
    ```

    Reference:
        Teerapittayanon, McDanel and Kung, "BranchyNet: Fast inference via early
        exiting from deep neural networks", ICPR 2016; Scardapane, Scarpiniti,
        Baccarelli and Uncini, "Why should we add early exits to neural networks?",
        Cognitive Computation, 2020.
    """

    # Keras rebuilds a model from its config only where the signature is literally
    # `*args, **kwargs` (`Model.from_config`).
    def __init__(self, *args, exit_rule=None, selector=None, **kwargs):
        check_functional_call(args, kwargs)
        # The weights are a last output, so that they belong to the model's graph; in a
        # config they are there already, and `selector` is True.
        if selector is not None and selector is not True:
            args, kwargs = with_selector_output(args, kwargs, selector)
        super().__init__(*args, **kwargs)
        self._distillation = None
        self._has_selector = selector is not None or ends_in_selector(self)
        check_inputs(self.inputs)
        check_outputs(self, self._has_selector)
        self.road = Road(self, self._has_selector)
        check_exits(self.road)
        # Keras names losses, metrics and targets after these.
        self.output_names = self.exit_names
        if self._has_selector:
            self.output_names += DERIVED_NAMES
            self.road.bind_selector_costs()
        if not self.road.open_sizes and wants_costs(self):
            fill_in_costs(self, self.road.costs().reference)
        num_exits = len(self.exit_names)
        self.exit_thresholds = self._own_weight("exit_thresholds", (num_exits - 1,))
        self.calibration_temperatures = self._own_weight(
            "calibration_temperatures", (num_exits,)
        )
        self._rule_code = self._own_weight("exit_rule_code", (), "int32")
        self.calibration_temperatures.assign(np.ones(num_exits))
        if isinstance(exit_rule, dict):  # from a config
            exit_rule = keras.saving.deserialize_keras_object(exit_rule)
        if exit_rule is None:
            exit_rule = "selected" if self._has_selector else "max_probability"
        self.exit_rule = exit_rule

    @property
    def exit_names(self):
        """Names of the exits, the final one last."""
        return [head.name for head in self.road.heads]

    @property
    def exit_costs(self):
        """(exits,) int64, FLOPs to leave at each exit under the rule in force, with
        all heads passed, or the selector and one head under `Selected`."""
        return np.array(self.compute_costs().exits, "int64")

    @property
    def exit_rule(self):
        """The rule in force, with the thresholds that the weights hold now."""
        with self.road.lock:
            code = int(np.asarray(self._rule_code))
            return rules.in_force(self._rule, code, np.asarray(self.exit_thresholds))

    @exit_rule.setter
    def exit_rule(self, rule):
        rule = rules.get(rule)
        self.road.check_rule(rule)
        with self.road.lock:  # others may be predicting
            self.exit_thresholds.assign(rule.thresholds(len(self.exit_names) - 1))
            self._rule_code.assign(rules.code_of(type(rule)))
            self._rule = rule

    def __setattr__(self, name, value):
        # TensorFlow's tracking reads an attribute before it sets it, which fails where
        # a new rule is to mend a mismatch with the weights.
        if name == "exit_rule":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def compile(
        self,
        optimizer="rmsprop",
        loss=None,
        loss_weights=None,
        metrics=None,
        weighted_metrics=None,
        distillation_weight=0.0,
        distillation_temperature=2.0,
        **kwargs,
    ):
        """Configures training, as `keras.Model.compile` does.

        Args:
            optimizer: as in Keras. Defaults to `"rmsprop"`.
            loss: one loss for every exit, or a list or dict with one for each, as
                Keras means it.
            loss_weights: list (one an exit) or dict by exit name; overrides the
                exits' own `loss_weight`, whose changes then have no effect
                (`kd.callbacks.LossWeightSchedule` changes those in force). Defaults
                to `None`, the exits' own.
            metrics, weighted_metrics: with one loss a flat list applies to every
                exit; a list of lists or a dict is one entry an exit, as in Keras.
            distillation_weight: float in [0, 1], alpha: early exits learn from the
                final exit's answer too, no gradient reaching it. The loss of early exit
                e is lambda_e times (1 - alpha) L(y, y_e) +
                alpha T^2 KL(softmax(z_final / T) || softmax(z_e / T)), with logits z.
                Defaults to 0.0, labels alone.
            distillation_temperature: float > 0, T. Defaults to 2.0.
            **kwargs: `jit_compile`, `run_eagerly` and the rest, as in Keras.

        Raises:
            ValueError: if a loss expects logits where a head gives probabilities, or
                the other way round; for numbers outside their range; for distillation
                between heads that give neither logits nor probabilities.

        Reference:
            Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network",
            2015; Phuong and Lampert, "Distillation-Based Training for Multi-Exit
            Architectures", ICCV 2019. They anneal T upwards; here it is constant.
        """
        given = dict(
            optimizer=optimizer,
            loss=loss,
            loss_weights=loss_weights,
            metrics=metrics,
            weighted_metrics=weighted_metrics,
            **kwargs,
        )
        distillation = Distillation(distillation_weight, distillation_temperature)
        self._distillation = None
        if distillation_weight:
            given["distillation_weight"] = distillation_weight
            given["distillation_temperature"] = distillation_temperature
            self._distillation = distillation
        with self.distribute_strategy.scope():  # it makes variables
            arguments = self.road.compiled_with(
                loss, loss_weights, metrics, weighted_metrics, self._distillation
            )
        super().compile(optimizer, **arguments, **kwargs)
        if self.optimizer is not None:
            exclude_from_weight_decay(self.optimizer, self)
        _compat.replace_compile_config(self, **given)

    def get_compile_config(self):
        config = super().get_compile_config()
        if config and self.optimizer is not None and not self.optimizer.built:
            # Never trained, but for its exits by `fit_exits`.
            return {**config, "optimizer_built": False}
        return config

    def compile_from_config(self, config):
        config = dict(keras.saving.deserialize_keras_object(config))
        has_state = config.pop("optimizer_built", True)
        self.compile(**config)
        if self.optimizer is not None and self.built and has_state:
            # Else the optimizer's state in a file has nowhere to go.
            self.optimizer.build(self.trainable_variables)

    @functools.wraps(keras.Model.fit)
    def fit(self, *args, **kwargs):
        try:
            return super().fit(*args, **kwargs)
        finally:
            # Where `BackupAndRestore` went on; Keras would begin there ever after.
            self._initial_epoch = None

    def fit_exits(
        self, x=None, y=None, batch_size=None, epochs=1, *, trunk_epochs=0, **kwargs
    ):
        """Trains the early exits alone: the second stage, on a trained network.

        For its duration everything that the last exit needs is frozen (batch
        normalizations there run in inference mode), and a selector as well; only the
        heads of early exits learn. A new optimizer with the configuration of the
        compiled one does it. Then, after an exception too, trainable layers and
        optimizer, with its state, are what they were. The answers of the last exit do
        not change: what a frozen layer itself assigns to its weights in training, as
        `SpectralNormalization` does, is undone after each batch (or each execution of
        `steps_per_execution` of them). The losses are those of `fit`, the last exit's
        among them.
        A callback that saves the model (`ModelCheckpoint`) saves it with the layers
        trainable that were so before, and the compiled optimizer's state; weights
        alone (`BackupAndRestore`) come with the state of the one at work.

        With `trunk_epochs` it does both stages, for a network that is not trained. The
        first one trains trunk and last exit as if there were no others: early exits
        are frozen and count nothing in the loss, whatever their `loss_weight`. Each
        stage begins with an optimizer of its own, and so with a learning rate schedule
        at its start; epochs are counted on, so that callbacks can tell the stages.

        Args:
            x, y, batch_size, epochs: as in `fit`.
            trunk_epochs: int >= 0, epochs of the first stage; those of the second are
                `epochs`. Defaults to 0, no first stage.
            **kwargs: as in `fit`, but no `initial_epoch` beside `trunk_epochs`.

        Returns:
            A `History`, as `fit` does, of both stages.

        Raises:
            RuntimeError: before `compile`.
            TypeError: for epochs or a batch size that are no integers, and for strings
                in NumPy arrays.
            ValueError: if no early exit has trainable weights of its own; for data
                without samples; for epochs < 0, a batch size < 1, and `trunk_epochs`
                with `initial_epoch`, with a selector, or with `BackupAndRestore`.

        Example:

        ```python
        x, y = np.random.rand(64, 8), np.random.randint(0, 3, 64)
        layers = [keras.layers.Dense(16, "relu") for _ in range(3)]
        layers += [keras.layers.Dense(3, "softmax")]
        model = kd.add_exits(keras.Sequential([keras.Input((8,)), *layers]), at=0.55)
        model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        history = model.fit_exits(x, y, epochs=2, verbose=0)
        print(sorted(history.history))  # accuracy, ..., exit_1_accuracy, ...
        model.fit_exits(x, y, trunk_epochs=3, epochs=2, verbose=0)  # from the beginning
        ```

        Reference:
            Xin, Tang, Lee, Yu and Lin, "DeeBERT: Dynamic Early Exiting for
            Accelerating BERT Inference", ACL 2020 (two-stage fine-tuning). Dropout in
            the frozen part stays active, as in their code and in any `fit`.
        """
        kwargs |= {"batch_size": batch_size, "epochs": epochs}
        return fit_exits(self, x, y, trunk_epochs, **kwargs)

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        y, y_pred = self.road.targets_and_outputs(y, y_pred)
        weights = self.road.sample_weights(sample_weight)
        loss = super().compute_loss(x, y, y_pred, weights, training)
        if self._distillation is None or not self.road.losses:
            return loss
        return loss + self.road.distilled(self._distillation, y_pred, sample_weight)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        y, y_pred = self.road.targets_and_outputs(y, y_pred)
        _compat.rename_metrics_by_exit(self, y, y_pred, self.road.metric_prefixes)
        sample_weight = self.road.sample_weights(sample_weight)
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def compute_costs(self, input_shape=None):
        """FLOPs of segments, exits and heads for one sample under the rule in force.

        Args:
            input_shape: shape of one sample without the batch axis (a list of them
                in the order of `model.inputs` for several inputs), for sizes that
                the model leaves open. Defaults to `None`, the model's own.

        Returns:
            `Costs` with `segments`, `exits`, `heads`, `reference`, `unknown`.

        Raises:
            ValueError: if a size is unknown and not given.
        """
        shapes = shapes_of_inputs(input_shape, len(self.inputs))
        asked = self.road.asked_under(self.exit_rule)
        return self.road.costs(shapes, self.exit_rule, asked)

    def summary(self, *args, print_fn=None, **kwargs):
        """Keras' summary, then the exits with their share of the cost."""
        super().summary(*args, print_fn=print_fn, **kwargs)
        (print_fn or print)(exit_table(self.road, self.exit_rule))

    def save(self, filepath, overwrite=True, zipped=None, **kwargs):
        """As in Keras, written beside an older file and then renamed.

        Where the disk is full, the path cannot be written to or the process is killed,
        the older file stays as it was; a process that is killed leaves a hidden file
        `.part-...` beside it. `keras.saving.load_model` finds by a checksum what is
        changed since. A model saved while `fit_exits` runs has nothing frozen.

        Args:
            filepath, overwrite, zipped: as in Keras; the path ends in `.keras`.

        Raises:
            OSError: where the file cannot be written.
            ValueError: for another ending.
        """
        with _compat.untouched(self):
            super().save(filepath, overwrite, zipped, **kwargs)

    def load_own_variables(self, store):
        weights = self.exit_thresholds, self.calibration_temperatures
        kept = [(each, each.numpy()) for each in (*weights, self._rule_code)]
        try:
            super().load_own_variables(store)
            rules.check_weights(
                self._rule, int(np.asarray(self._rule_code)), *map(np.asarray, weights)
            )
        except Exception:
            # With `skip_mismatch` Keras makes a warning of it and goes on.
            for variable, value in kept:
                variable.assign(value)
            raise

    def get_config(self):
        with _compat.untouched(self):
            config = super().get_config()
        config = {
            **config,
            "exit_rule": keras.saving.serialize_keras_object(self.exit_rule),
        }
        return {**config, "selector": True} if self._has_selector else config

    def _own_weight(self, name, shape, dtype="float32"):
        return self.add_weight(
            shape=shape,
            initializer="zeros",
            dtype=dtype,
            trainable=False,
            autocast=False,
            name=name,
        )
