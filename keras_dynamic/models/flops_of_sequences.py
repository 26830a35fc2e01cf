"""FLOPs of attention and recurrence, one formula a family of layers.

A formula takes the layer and its `Call`, as in `flops_of_layers`. The figures of
one step of a recurrent cell follow the order of Keras' own `call`; a loop is its
step times the number of steps.
"""

import keras
from keras import layers

from keras_dynamic.models.flops_primitives import shape_of, size, total

__all__ = ["SEQUENCE_FORMULAS"]


def _multi_head_attention(layer, call):
    query, value = call.shape("query"), call.shape("value")
    key = call.shape("key") or value
    return _projected_attention(
        query,
        key,
        value,
        query_width=layer.num_heads * layer.key_dim,
        key_width=layer.num_heads * layer.key_dim,
        value_width=layer.num_heads * layer.value_dim,
        attended_width=layer.num_heads * layer.value_dim,
        scores=layer.num_heads * _score_positions(query, value, layer.attention_axes),
        key_dim=layer.key_dim,
        value_dim=layer.value_dim,
        output_size=size(call.output_shape),
        layer=layer,
    )


def _grouped_query_attention(layer, call):
    query, value = call.shape("query"), call.shape("value")
    key = call.shape("key") or value
    query_width = layer.num_query_heads * layer.head_dim
    shared_width = layer.num_key_value_heads * layer.head_dim
    return _projected_attention(
        query,
        key,
        value,
        query_width=query_width,
        key_width=shared_width,
        value_width=shared_width,
        attended_width=query_width,
        scores=layer.num_query_heads * _score_positions(query, value, (1,)),
        key_dim=layer.head_dim,
        value_dim=layer.head_dim,
        output_size=size(call.output_shape),
        layer=layer,
    )


def _score_positions(query, value, axes):
    """Pairs of a query and a key position; axes not attended over act as batch."""
    return size(query[1:-1]) * size(value[axis] for axis in axes)


def _projected_attention(
    query,
    key,
    value,
    query_width,
    key_width,
    value_width,
    attended_width,
    scores,
    key_dim,
    value_dim,
    output_size,
    layer,
):
    def project(shape, width):
        return (2 * shape[-1] + bool(layer.use_bias)) * size(shape[:-1]) * width

    flops = project(query, query_width) + project(key, key_width)
    flops += project(value, value_width)
    # Products with keys, scale, softmax, products with values.
    flops += scores * (2 * key_dim + 1 + 5 + 2 * value_dim)
    if layer.get_config()["use_gate"]:
        # Projection, sigmoid, product.
        flops += project(query, attended_width)
        flops += 2 * size(query[:-1]) * attended_width
    return flops + (2 * attended_width + bool(layer.use_bias)) * output_size


def _attention(layer, call):
    query, value = (shape_of(tensor) for tensor in call.inputs[:2])
    depth = query[-1]
    scores = size(query[:-1]) * value[-2]
    if isinstance(layer, layers.AdditiveAttention):
        # Sum, tanh, scale, sum over the features.
        flops = scores * depth * (3 + bool(layer.use_scale))
    elif layer.score_mode == "concat":
        flops = scores * (depth * (3 + bool(layer.use_scale)) + 1)
    else:
        flops = scores * (2 * depth + bool(layer.use_scale))
    return flops + scores * (5 + 2 * value[-1])


# Recurrence


def _simple_rnn_cell(cell, call):
    # Products with input and state, their sum, bias.
    gates = (2 * (call.input_shape[-1] + cell.units) + 1 + cell.use_bias) * cell.units
    return total(gates, call.activation(cell.activation, (cell.units,)))


def _lstm_cell(cell, call):
    units = cell.units
    gates = (2 * (call.input_shape[-1] + units) + 1 + cell.use_bias) * 4 * units
    return total(
        gates,
        call.activation(cell.recurrent_activation, (3, units)),
        call.activation(cell.activation, (2, units)),
        # f * c + i * g, then o * activation(c).
        4 * units,
    )


def _gru_cell(cell, call):
    units = cell.units
    biases = cell.use_bias * (2 if cell.reset_after else 1)
    gates = (2 * (call.input_shape[-1] + units) + biases) * 3 * units
    return total(
        gates,
        call.activation(cell.recurrent_activation, (2, units)),
        call.activation(cell.activation, (units,)),
        # Three sums of input and state, the reset, z * h + (1 - z) * candidate.
        (3 + 1 + 4) * units,
    )


def _stacked_cells(stack, call):
    counts, inputs = [], call.inputs[0]
    for cell in stack.cells:
        counts.append(call.count(cell, inputs, _state_of(cell)))
        output_size = getattr(cell, "output_size", None)
        inputs = _state_of(cell)[0] if output_size is None else _sample(output_size)
    return total(*counts)


def _state_of(cell):
    """Symbolic state of one sample, in the structure that `cell.call` expects."""
    if isinstance(cell, layers.StackedRNNCells):
        return [_state_of(inner) for inner in cell.cells]
    widths = cell.state_size
    widths = [widths] if isinstance(widths, int) else widths
    return [_sample(width) for width in widths]


def _sample(width):
    """Symbolic tensor of one sample with an integer width or a tuple of extents."""
    return keras.KerasTensor((1, width) if isinstance(width, int) else (1, *width))


def _recurrence(layer, call):
    _, steps, *features = call.input_shape
    step = keras.KerasTensor((1, *features), call.inputs[0].dtype)
    one = call.count(layer.cell, step, _state_of(layer.cell))
    return None if one is None else steps * one


def _convolutional_lstm(layer, call):
    cell = layer.cell
    shape = (1, *call.input_shape[2:])
    state = cell.compute_output_shape(shape)[0]
    widths = shape[1 if cell.data_format == "channels_first" else -1], cell.filters
    # Four gates: products with input and state, their sum, bias.
    gates = (2 * size(cell.kernel_size) * sum(widths) + 1 + cell.use_bias) * 4
    one = total(
        gates * size(state),
        call.activation(cell.recurrent_activation, (3, *state)),
        call.activation(cell.activation, (2, *state)),
        4 * size(state),
    )
    return None if one is None else call.input_shape[1] * one


def _bidirectional(layer, call):
    merge = {"sum": 1, "mul": 1, "ave": 2}.get(layer.merge_mode, 0)
    return total(
        call.count(layer.forward_layer, call.inputs[0]),
        call.count(layer.backward_layer, call.inputs[0]),
        merge * size(call.output_shape),
    )


def _time_distributed(layer, call):
    _, steps, *features = call.input_shape
    step = keras.KerasTensor((1, *features), call.inputs[0].dtype)
    one = call.count(layer.layer, step)
    return None if one is None else steps * one


# Formula by the names of the layers that it holds for.
SEQUENCE_FORMULAS = {
    "MultiHeadAttention": _multi_head_attention,
    "GroupQueryAttention": _grouped_query_attention,
    "Attention AdditiveAttention": _attention,
    "SimpleRNNCell": _simple_rnn_cell,
    "LSTMCell": _lstm_cell,
    "GRUCell": _gru_cell,
    "StackedRNNCells": _stacked_cells,
    "RNN SimpleRNN LSTM GRU": _recurrence,
    "ConvLSTM1D ConvLSTM2D ConvLSTM3D": _convolutional_lstm,
    "Bidirectional": _bidirectional,
    "TimeDistributed": _time_distributed,
}
