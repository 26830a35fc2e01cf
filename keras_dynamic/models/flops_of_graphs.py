"""FLOPs of an operation without a formula, read from the TensorFlow graph it makes.

The operation is traced, never run: its weights, its random state, its losses and
its place in a functional model stay as they are. Only what the outputs depend on
counts, and only floating-point arithmetic. TensorFlow's profiler is not asked,
since it passes over `Einsum`, most activations and whatever lies in a function
call (a grouped convolution on the CPU) without a word; the figures here agree with
it where it counts. An operation type that is not listed here, a loop, or a branch
makes the count unknown.
"""

import math

import keras
import tensorflow as tf
from keras import tree

from keras_dynamic.models.flops_primitives import (
    convolution_flops,
    einsum_flops,
    resize_flops,
    size,
)

__all__ = ["graph_flops", "trace_alone"]

# Constants, copies, rearrangements, choices, and logic on Booleans.
_FREE = frozenset(
    """
    All Any Assert BatchToSpaceND Bitcast BitwiseAnd BitwiseOr BitwiseXor
    BroadcastArgs BroadcastTo Cast CheckNumerics Complex Concat ConcatV2 Conj
    ConjugateTranspose Const DepthToSpace EnsureShape ExpandDims Fill Gather
    GatherNd GatherV2 GuaranteeConst Identity IdentityN Imag Invert
    InvertPermutation LeftShift LinSpace LogicalAnd LogicalNot LogicalOr
    MatrixBandPart MatrixDiagPartV3 MatrixDiagV3 MatrixSetDiagV3 MirrorPad NoOp
    OneHot OnesLike Pack Pad PadV2 Placeholder PlaceholderWithDefault
    PreventGradient Range Rank ReadVariableOp Real Reshape ResizeNearestNeighbor
    ResourceGather ResourceGatherNd Reverse ReverseSequence ReverseV2 RightShift
    Roll ScatterNd Select SelectV2 Shape ShapeN Size Slice Snapshot SpaceToBatchND
    SpaceToDepth Split SplitV Squeeze StopGradient StridedSlice TensorScatterUpdate
    Tile Transpose Unpack VarHandleOp Where ZerosLike
    """.split()
)

# FLOPs for each element of the output.
_ELEMENTWISE = dict.fromkeys(
    """
    Abs Acos Acosh Add AddV2 Asin Asinh Atan Atan2 Atanh BiasAdd Ceil Cos Cosh
    Digamma Div DivNoNan Elu Equal Erf Erfc Erfinv Exp Expm1 Floor FloorDiv FloorMod
    Greater GreaterEqual Inv IsFinite IsInf IsNan LeakyRelu Less LessEqual Lgamma
    Log Log1p Maximum Minimum Mod Mul MulNoNan Ndtri Neg NotEqual Pow RealDiv
    Reciprocal Relu Relu6 Rint Round Selu Sigmoid Sign Sin Sinh Softplus Softsign
    Sqrt Square Sub Tan Tanh TruncateDiv TruncateMod Xdivy Xlog1py Xlogy
    """.split(),
    1,
) | {"ClipByValue": 2, "Rsqrt": 2, "SquaredDifference": 2}

# FLOPs for each element of the input.
_PER_INPUT = dict.fromkeys(
    """
    ArgMax ArgMin Cumprod Cumsum Max Mean Min Prod SegmentSum Sum TopK TopKV2
    UnsortedSegmentSum
    """.split(),
    1,
) | {"EuclideanNorm": 2, "L2Loss": 2, "LogSoftmax": 5, "Softmax": 5}

_CALLS = frozenset({"PartitionedCall", "StatefulPartitionedCall"})


def graph_flops(operation, args, kwargs):
    """FLOPs of the inference pass of `operation`, from its TensorFlow graph.

    Args:
        operation: a Keras layer or operation, or another callable.
        args: positional arguments, `keras.KerasTensor`s of static shape among them.
        kwargs: keyword arguments.

    Returns:
        An int; None where the operation cannot be traced on its own, or its graph
        holds a loop, a branch, an unknown shape, or an operation type without a
        rule.
    """
    traced = trace_alone(operation, args, kwargs)
    if traced is None:
        return None
    definition = traced.graph.as_graph_def(add_shapes=True)
    functions = {
        function.signature.name: function for function in definition.library.function
    }
    body = _Body(definition.node, {}, traced.graph, functions)
    return body.count([tensor.name for tensor in traced.outputs])


class _InferencePass(keras.Layer):
    """Calls an operation as the outermost layer of a call.

    Keras empties the losses of the outermost layer and tells every layer inside
    whether it trains; this one stands where the operation's own losses would be
    lost. It takes tensors as they come and tracks nothing.
    """

    def __init__(self, function):
        super().__init__(name="inference_pass", dtype="float32", autocast=False)
        self._function = (function,)
        self.built = True

    def call(self, tensors, training=False):
        return self._function[0](tensors)


def trace_alone(operation, args, kwargs):
    """Concrete function of the operation alone, None where it cannot be made."""
    symbols = [
        leaf
        for leaf in tree.flatten((args, kwargs))
        if isinstance(leaf, keras.KerasTensor)
    ]
    if any(symbol.sparse or getattr(symbol, "ragged", False) for symbol in symbols):
        return None

    def run(tensors):
        remaining = iter(tensors)

        def feed(leaf):
            return next(remaining) if isinstance(leaf, keras.KerasTensor) else leaf

        fed_args, fed_kwargs = tree.map_structure(feed, (args, kwargs))
        if fed_kwargs.get("training"):
            fed_kwargs["training"] = False
        return operation(*fed_args, **fed_kwargs)

    inference = _InferencePass(run)

    @tf.function(autograph=False)
    def function(tensors):
        # Assignments, random states and losses stay in the scope, which is dropped.
        with keras.StatelessScope():
            return tree.flatten(inference(tensors, training=False))

    specs = [tf.TensorSpec(symbol.shape, symbol.dtype) for symbol in symbols]
    try:
        return function.get_concrete_function(specs)
    except Exception:
        # A user's `call` may raise anything where it cannot run on its own; that
        # leaves the count unknown, which the caller reports by name.
        return None


class _Body:
    """Nodes of a graph, or of a function in its library, and the FLOPs they do.

    Args:
        nodes: `NodeDef`s that carry the shapes of their outputs.
        arguments: shapes of a function's arguments by name.
        graph: the `tf.Graph`, which knows the signatures of operation types.
        functions: `FunctionDef`s by name.
    """

    def __init__(self, nodes, arguments, graph, functions):
        self.nodes = {node.name: node for node in nodes}
        self.arguments = arguments
        self.graph = graph
        self.functions = functions

    def count(self, outputs):
        """FLOPs of all that the references `outputs` depend on, None if unknown."""
        needed, waiting, flops = set(), list(outputs), 0
        while waiting:
            name = waiting.pop().partition(":")[0]
            if name in needed or name not in self.nodes:
                continue
            needed.add(name)
            node = self.nodes[name]
            own = self._node_flops(node)
            if own is None:
                return None
            flops += own
            waiting.extend(i for i in node.input if not i.startswith("^"))
        return flops

    def _node_flops(self, node):
        if node.op in _FREE:
            return 0
        if node.op in _CALLS:
            return self._function_flops(node)
        weight = _ELEMENTWISE.get(node.op, _PER_INPUT.get(node.op))
        formula = _FORMULAS.get(node.op)
        if weight is None and formula is None:
            return None
        dtype = tf.as_dtype(node.attr["T"].type)
        if not (dtype.is_floating or dtype.is_complex):
            return 0
        shapes = [self._shape(i) for i in node.input if not i.startswith("^")]
        output = _output_shapes(node)[0] if _output_shapes(node) else None
        if output is None or None in shapes:
            return None
        if formula:
            return formula(node, shapes, output)
        return weight * size(output if node.op in _ELEMENTWISE else shapes[0])

    def _function_flops(self, node):
        function = self.functions.get(node.attr["f"].func.name)
        if function is None:
            return None
        names = [argument.name for argument in function.signature.input_arg]
        data = [i for i in node.input if not i.startswith("^")]
        shapes = {n: self._shape(i) for n, i in zip(names, data, strict=True)}
        body = _Body(function.node_def, shapes, self.graph, self.functions)
        return body.count(function.ret.values())

    def _shape(self, reference):
        """Shape of `node`, `node:index`, `node:output:index` or an argument."""
        name, *rest = reference.split(":")
        if name not in self.nodes:
            return self.arguments.get(name)
        node = self.nodes[name]
        index = int(rest[-1]) if rest else 0
        if len(rest) == 2:
            index += self._offset(node, rest[0])
        shapes = _output_shapes(node)
        return shapes[index] if index < len(shapes) else None

    def _offset(self, node, output_name):
        """Position of the first tensor of a named output among all outputs."""
        offset = 0
        for output in self.graph.op_def_for_type(node.op).output_arg:
            if output.name == output_name:
                break
            if output.number_attr:
                offset += node.attr[output.number_attr].i
            elif output.type_list_attr:
                offset += len(node.attr[output.type_list_attr].list.type)
            else:
                offset += 1
        return offset


def _output_shapes(node):
    """Shapes of a node's outputs; None for one that is not fully known."""
    return [
        None
        if shape.unknown_rank or any(axis.size < 0 for axis in shape.dim)
        else tuple(axis.size for axis in shape.dim)
        for shape in node.attr["_output_shapes"].list.shape
    ]


def _matmul(transposed):
    def flops(node, shapes, output):
        depth = shapes[0][-2 if node.attr[transposed].b else -1]
        return 2 * depth * size(output)

    return flops


def _einsum(node, shapes, output):
    return einsum_flops(node.attr["equation"].s.decode(), shapes, output)


def _convolution(node, shapes, output):
    return convolution_flops(size(output), shapes[1])


def _depthwise_convolution(node, shapes, output):
    return 2 * size(output) * size(shapes[1][:2])


def _transposed_convolution(node, shapes, output):
    # Inputs: sizes, kernel (*window, outputs, inputs), tensor to be spread out.
    return 2 * size(shapes[2]) * size(shapes[1][:-1])


def _pooling(node, shapes, output):
    return math.prod(node.attr["ksize"].list.i) * size(output)


def _batch_normalization(node, shapes, output):
    return None if node.attr["is_training"].b else 2 * size(output)


def _add_n(node, shapes, output):
    return (len(shapes) - 1) * size(output)


def _resize(interpolation):
    return lambda node, shapes, output: resize_flops(interpolation, False, size(output))


_FORMULAS = {
    "AddN": _add_n,
    "AvgPool": _pooling,
    "AvgPool3D": _pooling,
    "BatchMatMulV2": _matmul("adj_x"),
    "Conv2D": _convolution,
    "Conv2DBackpropInput": _transposed_convolution,
    "Conv3D": _convolution,
    "Conv3DBackpropInputV2": _transposed_convolution,
    "DepthwiseConv2dNative": _depthwise_convolution,
    "Einsum": _einsum,
    "FusedBatchNormV3": _batch_normalization,
    "MatMul": _matmul("transpose_a"),
    "MaxPool": _pooling,
    "MaxPool3D": _pooling,
    "ResizeBicubic": _resize("bicubic"),
    "ResizeBilinear": _resize("bilinear"),
}
