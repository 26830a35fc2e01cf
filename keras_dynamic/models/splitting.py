"""A model in two halves: device and server."""

import tensorflow as tf
from keras import tree

from keras_dynamic.models.dynamic_model import DynamicModel
from keras_dynamic.models.export import named_specs
from keras_dynamic.models.halves import Device, Server
from keras_dynamic.models.parts import PartialWalk
from keras_dynamic.models.rules import Selected

__all__ = ["split"]


def split(model, exit):
    """Cuts a model at an exit: one half for a device, one for a server.

    The device runs the model up to the exit and answers the samples that the rule lets
    leave until there. Of the others it gives what the server needs to go on, with its
    size in bytes: the rows of every live tensor, skip connections over the cut and
    masks included, and what the rule remembers of them. Together they give the answers
    of `predict_dynamic`:

    ```text
    answers = device(x)
    whole = answers.completed(server(answers.sent))
    ```

    Both share the model's weights. The rule, its thresholds and the temperatures are
    those in force when the model is split; split it again after calibrating it anew.
    `device.export(path)` and `server.export(path)` write a SavedModel each.

    Args:
        model: a `DynamicModel`. Its rule must ask exit after exit: one with a selector
            needs another rule than `Selected`.
        exit: name or number of an early exit, the last that the device has.

    Returns:
        (device, server): two callables.

    Raises:
        TypeError: if `model` is not a `DynamicModel`, or `exit` no string or int.
        ValueError: for an exit that there is not, the final one, the rule `Selected`,
            or a cut over a value that cannot be had on both sides.

    Example:

    ```python
    inputs = keras.Input((4,))
    y1 = kd.EarlyExit(3, name="exit_1")(inputs)
    y2 = keras.layers.Dense(3, "softmax", name="final")(inputs)
    device, server = kd.split(kd.DynamicModel(inputs, [y1, y2]), "exit_1")
    answers = device(np.ones((5, 4), "float32"))
    print(answers.sent)
    print(answers.completed(server(answers.sent)))
    ```

    Reference:
        Laskaridis, Venieris, Almeida, Leontiadis and Lane, "SPINN: Synergistic
        Progressive Inference of Neural Networks over Device and Cloud", MobiCom 2020.
        It also quantizes and compresses what is sent; here it is sent as it is.
    """
    if not isinstance(model, DynamicModel):
        raise TypeError(
            "`model` must be a `DynamicModel`. Received: "
            f"model={model!r} of type {type(model)}."
        )
    last = _index_of(model, exit)
    rule = model.exit_rule
    if isinstance(rule, Selected):
        raise ValueError(
            "`model` must have a rule that asks exit after exit; its selector decides "
            "on its own features. Assign one, such as `model.exit_rule = "
            f"'max_probability'`. Received: exit_rule={rule!r}."
        )
    walk, thresholds = model.road.walk_under(
        rule, model, model.road.asked_under(rule, also=(last,))
    )
    cut = walk.numbers.index(last)
    first_half = PartialWalk(walk, 0, cut)
    second_half = PartialWalk(walk, cut + 1, walk.depth - 1)
    numbers = thresholds.numpy(), model.calibration_temperatures.numpy()
    specs = _specs_of_sent(model, first_half, numbers)
    return Device(model, first_half, *numbers), Server(
        model, second_half, *numbers, specs, first_half.optional
    )


def _index_of(model, exit):
    names = model.exit_names
    if isinstance(exit, bool) or not isinstance(exit, (str, int)):
        raise TypeError(
            "`exit` must be the name or the number of an early exit. Received: "
            f"exit={exit!r} of type {type(exit)}."
        )
    early = names[:-1]
    index = early.index(exit) if exit in early else exit
    if isinstance(index, str) or not 0 <= index < len(early):
        raise ValueError(
            f"`exit` must be one of the early exits {early}, or a number from 0 to "
            f"{len(early) - 1}. Received: exit={exit!r}."
        )
    return index


def _specs_of_sent(model, walk, numbers):
    """Shape and dtype of each tensor that the first half hands out."""

    def sent(x):
        return walk(x, *(tf.constant(number) for number in numbers), eagerly=True)[1]

    signature = tree.pack_sequence_as(model.input, named_specs(model))
    traced = tf.function(sent, autograph=False).get_concrete_function(signature)
    return {
        name: tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype)
        for name, tensor in traced.structured_outputs.items()
        if name != "rows"
    }
