"""What a `DynamicModel` does besides training: its methods for the dynamic road."""

import os

from keras_dynamic.layers._checks import positive_integer
from keras_dynamic.models import calibrating, certifying, inference, rules
from keras_dynamic.models.serving import DynamicFunction

__all__ = ["DynamicInference"]


class DynamicInference:
    """Mixin of `DynamicModel`: predicting, evaluating and calibrating."""

    def predict_dynamic(
        self,
        x,
        batch_size=None,
        verbose="auto",
        steps=None,
        callbacks=None,
        rule=None,
    ):
        """Answers each sample at the first exit where the rule lets it leave.

        A segment computes only the samples that reach it, and one that nobody reaches
        does not run. A short input is walked batch by batch, each in one compiled
        TensorFlow function. In a long one (four batches or more), survivors of several
        batches wait at each segment until it is worth running, never more than two
        batches of them, and the next batches begin meanwhile. After some work the
        segments are compiled with the weights as constants (as long as these do not
        change), and by XLA where that measures faster on full batches; where leaving
        early takes longer than computing everything at once, everything is computed,
        and `verbose` says so. None of it changes an answer, but for a sample whose
        score lies within rounding (1e-6) of a threshold; `cost` is what was executed.

        Batches are not pooled where `callbacks` are given, which may read each one's
        outputs, nor where `run_eagerly=True`. In a model made under `MirroredStrategy`
        every replica walks its own shard of each batch. A sample that was fed a NaN
        never leaves early.

        The heads of exits that the model's own rule closes (threshold `None`) are not
        computed, unless the rule remembers earlier exits. A `rule` given for the call
        asks every exit, so that rules that are tried out share compiled functions.

        Args:
            x: as in `predict`: array(s), a dict, `tf.data.Dataset`, `PyDataset` or
                generator.
            batch_size: int or `None` (32), as in `predict`.
            verbose: `"auto"`, 0, 1 or 2, as in `predict`.
            steps: int or `None`, as in `predict`.
            callbacks: list of callbacks; `on_predict_*` are called.
            rule: an `ExitRule` or its name in place of `exit_rule`, this once.
                Defaults to `None`.

        Returns:
            A `kd.DynamicPrediction`, rows in the order of the input.

        Raises:
            ValueError: if a head gives neither logits nor probabilities.
        """
        return inference.predict_dynamic(
            self, x, batch_size, verbose, steps, callbacks, rule
        )

    def evaluate_dynamic(
        self,
        x,
        y=None,
        batch_size=None,
        verbose="auto",
        sample_weight=None,
        steps=None,
        callbacks=None,
        rule=None,
    ):
        """The compiled loss and metrics of the answers of the dynamic road.

        Args:
            x, y, sample_weight: as in `evaluate`; one `y`.
            batch_size, verbose, steps: as in `evaluate`.
            callbacks: list of callbacks; `on_test_*` are called.
            rule: as in `predict_dynamic`.

        Returns:
            A dict: `loss` and the final exit's metrics, computed on the answers;
            `mean_cost` (1.0 is the plain network); `exit_rates`, a list.

        Raises:
            RuntimeError: before `compile`.
            ValueError: without targets.
        """
        if not self.compiled:
            raise RuntimeError("Call `compile` before `evaluate_dynamic`.")
        return inference.evaluate_dynamic(
            self, x, y, batch_size, verbose, sample_weight, steps, callbacks, rule
        )

    def calibrate(
        self,
        x,
        y=None,
        rule="max_probability",
        budget=None,
        max_accuracy_drop=None,
        batch_size=None,
        steps=None,
        min_accuracy=None,
        risk_confidence=None,
    ):
        """Fits temperatures and chooses thresholds on held-out data.

        Args:
            x: as in `predict`; a dataset may yield (x, y).
            y: labels, (n,) class numbers or (n, classes) one-hot.
            rule: name of a rule, or an `ExitRule`; it becomes the model's. Defaults
                to `"max_probability"`, also where the model has another.
            budget: float > 0, the largest `mean_cost` wished for, 1.0 being the plain
                network: the most accurate thresholds within it are chosen.
            max_accuracy_drop: float in [0, 1), how much below the final exit's
                accuracy the dynamic one may lie: the cheapest thresholds are chosen
                whose drop on this data, plus one standard error of it, is within.
                On other data it may still be exceeded: the fewer samples, the more.
            min_accuracy: float in [0, 1], the least accuracy on this data: as for a
                drop to it from the final exit's, with the same margin. Give one of
                the three; with none, the rule keeps the thresholds that it has.
            batch_size, steps: int or `None`, as in `predict`.
            risk_confidence: float in (0, 1), such as 0.95, or `None`, the default.
                With it, `max_accuracy_drop` is a promise for new data, not a figure of
                this: with that probability over the draw of `x`, the full network is
                right and the dynamic one wrong on at most that share of new samples,
                which bounds the accuracy drop. Temperatures and a path of thresholds
                come from a random half of the rows, exact tests along the path and the
                report's figures from the other half. Of what can be certified the
                cheapest on that half is chosen. Where that is nothing, a warning and
                the report say how many samples it would take, where it costs more
                than the full network, they say so, and all exits are closed.

        Returns:
            A `kd.calibration.CalibrationReport`; `print` it.

        Raises:
            RuntimeError: before `compile`.
            ValueError: for no samples, labels outside the classes, two goals at
                once, a `risk_confidence` without `max_accuracy_drop` or outside
                (0, 1), a goal that cannot be reached (a
                `kd.calibration.UnreachableGoal` says what can), or a model whose answer
                depends on batch-mates.

        Example:

        ```python
        inputs = keras.Input((4,))
        hidden = keras.layers.Dense(64, "relu")(inputs)
        outputs = [kd.EarlyExit(2)(inputs), keras.layers.Dense(2, "softmax")(hidden)]
        model = kd.DynamicModel(inputs, outputs)
        model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
        x = np.random.default_rng(0).normal(size=(1000, 4))
        y = (x[:, 0] > 0).astype(int)
        model.fit(x, y, epochs=3, verbose=0)
        report = model.calibrate(x, y, max_accuracy_drop=0.05, risk_confidence=0.95)
        print(report)
        ```

        Reference:
            Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural
            Networks", ICML 2017 (temperatures, here one an exit and bounded).
            Angelopoulos, Bates, Candes, Jordan and Lei, "Learn then Test: Calibrating
            Predictive Algorithms to Achieve Risk Control", 2021 (`risk_confidence`:
            fixed-sequence testing, with exact binomial p-values).
        """
        if not self.compiled:
            raise RuntimeError("Call `compile` before `calibrate`.")
        wanted = rules.get(rule)
        if isinstance(rule, str) and type(wanted) is type(self._rule):
            wanted = self.exit_rule  # the name alone changes no threshold
        goals = dict(
            budget=budget,
            max_accuracy_drop=max_accuracy_drop,
            min_accuracy=min_accuracy,
        )
        if risk_confidence is None:
            return calibrating.calibrate(self, x, y, wanted, goals, batch_size, steps)
        return certifying.calibrate_with_certificate(
            self, x, y, wanted, goals, risk_confidence, batch_size, steps
        )

    def stream_dynamic(self, x, batch_size=None, steps=None, rule=None):
        """Answers batch by batch, as the batches come.

        Args:
            x, batch_size, steps: as in `predict`.
            rule: as in `predict_dynamic`.

        Returns:
            An iterator of `kd.DynamicPrediction`, one a batch, in order. Nothing is
            kept of those that were yielded.

        Example:

        ```python
        inputs = keras.Input((4,))
        outputs = [kd.EarlyExit(2)(inputs), keras.layers.Dense(2, "softmax")(inputs)]
        model = kd.DynamicModel(inputs, outputs)
        for prediction in model.stream_dynamic(np.ones((100, 4)), batch_size=40):
            print(len(prediction))  # 40, 40, 20
        ```
        """
        return inference.stream_dynamic(self, x, batch_size, steps, rule)

    def dynamic_function(self, batch_size=1, rule=None):
        """One compiled function for batches of one size, for a serving loop.

        Weights, rule, thresholds and temperatures are frozen in it as they are now.
        Nothing is done in Python between the segments. For one sample XLA and
        TensorFlow's own kernels are compared on this machine when the function is made
        (which takes seconds), and the faster is taken.

        Args:
            batch_size: int >= 1. Defaults to 1.
            rule: as in `predict_dynamic`.

        Returns:
            A function of a batch as the model takes it (of `batch_size` samples), that
            returns a dict of tensors: `outputs` and `probabilities`
            (batch_size, units), `exit_index` and `confidence` (batch_size,). It may be
            called by several threads at once.

        Raises:
            ValueError: for a `batch_size` below 1, or a rule that does not fit the
                model; from the function, for a batch of another shape.

        Example:

        ```python
        inputs = keras.Input((4,))
        outputs = [kd.EarlyExit(2)(inputs), keras.layers.Dense(2, "softmax")(inputs)]
        model = kd.DynamicModel(inputs, outputs)
        answer = model.dynamic_function()
        print(answer(np.ones((1, 4), "float32"))["exit_index"])
        ```
        """
        batch_size = positive_integer("batch_size", batch_size)
        return DynamicFunction(self, batch_size, rule)

    def export(
        self,
        filepath,
        format="tf_saved_model",
        verbose=None,
        input_signature=None,
        **kwargs,
    ):
        """Writes a model that skips as `predict_dynamic` does, without Python.

        Its endpoint `serve` takes any batch (LiteRT: none that is empty) and gives a
        dict: `outputs`, `exit_index`, `confidence`, `probabilities` and, where known,
        `cost`. The rule, thresholds and temperatures in force are frozen.

        Args:
            filepath: path of the folder (SavedModel) or file.
            format: `"tf_saved_model"` (default), `"litert"` or `"onnx"`.
            verbose: whether to say what was written. Defaults to `None`, yes.
            input_signature: specs of the inputs that fix open sizes. Defaults to
                `None`, the model's own.
            **kwargs: `opset_version` for `"onnx"`.

        Raises:
            ValueError: for another format, an operation that it lacks, or other
                answers than the model's; no file is left behind.
            ImportError: if a package is missing.
        """
        from keras_dynamic.models.export import export

        if not isinstance(filepath, (str, os.PathLike)):
            raise TypeError(
                f"`filepath` must be a path. Received: filepath={filepath!r} of type "
                f"{type(filepath)}."
            )

        export(self, filepath, format, verbose, input_signature, kwargs)
