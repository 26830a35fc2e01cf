"""New models from old ones, sharing their weights."""

import keras

from keras_dynamic._compat import functional_of
from keras_dynamic.models.graph import build_graph, run_steps
from keras_dynamic.models.segments import needed_steps

__all__ = ["strip_exits"]


def strip_exits(model):
    """The plain network of a model with exits, trained better by them.

    The result is a functional `keras.Model` from the same inputs to the final output.
    It shares its layers with `model` and holds none of the exits' heads. Nested models
    are kept as they are, unless one holds an exit: then they are inlined.

    Args:
        model: a `DynamicModel`, or any functional or built Sequential `keras.Model`
            whose last output is the one to keep.

    Returns:
        A `keras.Model`; its output equals the last output of `model`.

    Raises:
        ValueError: if `model` is not functional.

    Example:

    ```python
    inputs = keras.Input((4,))
    y1 = kd.EarlyExit(3)(inputs)
    y2 = keras.layers.Dense(3, "softmax")(inputs)
    plain = kd.strip_exits(kd.DynamicModel(inputs, [y1, y2]))
    print(plain.predict(np.ones((2, 4)), verbose=0).shape)  # (2, 3)
    ```
    """
    if not (isinstance(model, keras.Model) and getattr(model, "inputs", None)):
        raise ValueError(
            "`model` must be a functional `keras.Model`. Received: "
            f"{model!r} of type {type(model)}."
        )
    model = functional_of(model) or model  # a Sequential has no `input` of its own
    # A selector's weights come after the exits.
    exits = getattr(model, "exit_names", model.outputs)
    final = model.outputs[len(exits) - 1]
    plain = keras.Model(model.input, final, name=model.name)
    graph = build_graph(plain)
    needed = needed_steps(graph, graph.outputs)
    if len(needed) == len(graph.steps):
        return plain
    # A nested model computes heads that the final output does not need.
    values = dict(zip(graph.inputs, model.inputs, strict=True))
    run_steps(needed, values)
    return keras.Model(model.input, values[graph.outputs[0]], name=model.name)
