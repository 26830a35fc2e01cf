"""What a user feeds, in the order of the model's own inputs."""

import keras
from keras import tree

__all__ = ["arranged"]


def arranged(structure, x):
    """A batch whose dict has the keys in the order in which the model was given them.

    TensorFlow and Keras flatten a dict by its sorted keys, but an `OrderedDict` as it
    stands; only names say for sure what is meant.

    Args:
        structure: `model.input`.
        x: a batch.
    """
    if not isinstance(x, dict):
        return x
    if isinstance(structure, dict):
        if set(structure) != set(x):
            return x  # Keras says what is missing
        return type(structure)((name, x[name]) for name in structure)
    tensors = tree.flatten(structure)
    if all(isinstance(t, keras.KerasTensor) and t.name in x for t in tensors):
        return tree.pack_sequence_as(structure, [x[t.name] for t in tensors])
    return x
