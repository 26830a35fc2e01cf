"""What the layers that choose have in common: temperature, estimator, noise."""

import keras
import numpy as np

from keras_dynamic.ops import estimators
from keras_dynamic.ops.seeds import replica_seed

__all__ = ["ChoosingLayer"]


class ChoosingLayer(keras.layers.Layer):
    """A layer with a temperature, an estimator and a seed generator of its own.

    A subclass calls `_categorical` or `_binary` with its logits. The temperature in
    force is the non-trainable weight `current_temperature`, by which
    `callbacks.TemperatureSchedule` finds such layers.

    Args:
        temperature: number > 0, for `reinmax` >= 1.
        estimator: one of `ops.estimators.ESTIMATORS`.
        seed: int, or None for a random one.
    """

    def __init__(self, temperature, estimator, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.estimator = estimators.check_estimator(estimator)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self._given_temperature = self._checked_temperature(temperature)
        self.current_temperature = self.add_weight(
            name="temperature",
            shape=(),
            initializer=keras.initializers.Constant(self._given_temperature),
            trainable=False,
            dtype="float32",
            autocast=False,
        )

    @property
    def temperature(self):
        """tau as a float; assigning changes the weight, also during `fit`."""
        current = keras.ops.convert_to_numpy(self.current_temperature).item()
        given = self._given_temperature
        if np.float32(given) == np.float32(current):
            return given
        # The shortest number that is this float32: 0.3, not 0.30000001192092896.
        return float(str(np.float32(current)))

    @temperature.setter
    def temperature(self, value):
        self._given_temperature = self._checked_temperature(value)
        self.current_temperature.assign(self._given_temperature)

    def _categorical(self, logits, axis=-1, training=False):
        """One of K along `axis`, float32; with noise where `training`."""
        return estimators.categorical(
            logits,
            self.estimator,
            self.current_temperature,
            axis=axis,
            seed=self._next_seed(training),
            training=training,
        )

    def _binary(self, logits, training=False):
        """Yes (1) or no (0) for each logit, float32; with noise where `training`."""
        return estimators.binary(
            logits,
            self.estimator,
            self.current_temperature,
            seed=self._next_seed(training),
            training=training,
        )

    def _soft(self, logits):
        """Probabilities of one of K, float32: softmax(l / tau) without noise, and
        softmax(l), which the draws follow, with it."""
        return estimators.categorical(logits, "soft", self._own_temperature())

    def _binary_probabilities(self, logits):
        """The same for yes or no."""
        return estimators.binary(logits, "soft", self._own_temperature())

    def _own_temperature(self):
        if self.estimator in estimators.SAMPLING_ESTIMATORS:
            return 1.0
        return keras.ops.convert_to_tensor(self.current_temperature)

    def get_config(self):
        return {
            **super().get_config(),
            "temperature": self.temperature,
            "estimator": self.estimator,
            "seed": self.seed,
        }

    def _next_seed(self, training):
        if training and self.estimator in estimators.SAMPLING_ESTIMATORS:
            return replica_seed(self.seed_generator.next())
        return None

    def _checked_temperature(self, value):
        estimators.check_temperature(value, self.estimator)
        return float(value)
