"""The only file that uses what Keras and TensorFlow keep private, each with a reason.

`tests/test_compat.py` fails when Keras changes one of them.
"""

import contextlib

import keras
import tensorflow as tf
from keras import tree
from keras.src import backend
from keras.src.backend.common import global_state
from keras.src.models.functional import Functional, functional_like_constructor
from keras.src.saving.serialization_lib import SerializableDict
from keras.src.trainers.compile_utils import get_loss, get_metric
from keras.src.trainers.data_adapters.array_data_adapter import ArrayDataAdapter
from keras.src.trainers.data_adapters.tf_dataset_adapter import TFDatasetAdapter
from keras.src.trainers.epoch_iterator import EpochIterator
from keras.src.utils.io_utils import ask_to_proceed_with_overwrite
from tensorflow.python.framework.convert_to_constants import (
    convert_variables_to_constants_v2,
)
from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext

__all__ = [
    "BatchIterator",
    "absent_as_none",
    "ask_to_proceed_with_overwrite",
    "calls_before",
    "changes_variables",
    "exclude_from_weight_decay",
    "frozen",
    "functional_nodes",
    "functional_of",
    "get_mask",
    "layers_within",
    "keep_mask",
    "keeping_losses",
    "kept_mask",
    "loss_for",
    "losses_within",
    "metric_for",
    "producer_of",
    "rename_metrics_by_exit",
    "replace_compile_config",
    "scoped_name",
    "set_mask",
    "show_mask",
    "takes_a_graph",
    "training_otherwise",
    "under_xla",
    "untouched",
    "validation_writer",
]


def functional_of(operation):
    """The functional graph that `operation` runs when called, or None.

    A subclass with a `call` of its own is opaque. Keras has no public way to ask.
    """
    if isinstance(operation, keras.Sequential):
        if type(operation).call is not keras.Sequential.call:
            return None
        # A built Sequential delegates to a Functional that it holds.
        return getattr(operation, "_functional", None)
    if isinstance(operation, Functional) and type(operation).call is Functional.call:
        return operation
    return None


def takes_a_graph(cls):
    """Whether a class of models is made from inputs and outputs, as `keras.Model` is.

    Keras asks the same when it clones a model or makes one from its config.
    """
    return functional_like_constructor(cls)


def functional_nodes(functional):
    """Yields (operation, args, kwargs, outputs) in an order that can be executed.

    Keras publishes a model's layers, but not their calls; a shared one has several.
    """
    nodes_by_depth = functional._nodes_by_depth
    for depth in sorted(nodes_by_depth, reverse=True):
        for node in nodes_by_depth[depth]:
            if not node.is_input:
                arguments = node.arguments
                yield node.operation, arguments.args, arguments.kwargs, node.outputs


def producer_of(tensor):
    """The layer or operation that gave a symbolic tensor."""
    return tensor._keras_history.operation


def calls_before(tensors):
    """Yields (operation, kwargs) for every call that symbolic tensors come from.

    Those within nested functional models too. Keras publishes no way back.
    """
    pending, seen = list(tensors), set()
    while pending:
        history = getattr(pending.pop(), "_keras_history", None)
        if history is None or history.operation is None:
            continue
        node = history.operation._inbound_nodes[history.node_index]
        if id(node) in seen or node.is_input:
            continue
        seen.add(id(node))
        yield node.operation, node.arguments.kwargs
        inner = functional_of(node.operation)
        if inner is not None:
            pending.extend(inner.outputs)
        pending.extend(node.input_tensors)


def get_mask(tensor):
    """The mask that Keras carries as an attribute of `tensor`, or None."""
    return backend.get_keras_mask(tensor)


def set_mask(tensor, mask):
    """Attaches `mask` to `tensor`; operations outside Keras layers lose it."""
    if mask is not None:
        backend.set_keras_mask(tensor, mask)
    return tensor


def keep_mask(tensor):
    """Remembers the mask that `tensor` carries now; Keras' attention removes it."""
    mask = get_mask(tensor)
    if mask is not None:
        tensor._keras_dynamic_mask = mask


def kept_mask(tensor):
    """The mask that `keep_mask` remembered, or None."""
    return getattr(tensor, "_keras_dynamic_mask", None)


def show_mask(tensor, shown):
    """Lets the next layer see the kept mask of `tensor`, or none."""
    mask = kept_mask(tensor) if shown else None
    if get_mask(tensor) is not mask:
        backend.set_keras_mask(tensor, mask)


@contextlib.contextmanager
def keeping_losses(layer=None):
    """Puts the `add_loss` terms of layers back to what they were.

    Without a `layer`, those of all layers of the call that is going on: around a
    reduction over replicas, which lets the other replicas run, one after the other, up
    to the same place or to their end. They share the layers, whose terms Keras keeps in
    one list for all. With a `layer`, around a call of it in a branch of a conditional,
    from which no tensor may be added up outside of it.
    """
    if layer is None:
        context = global_state.get_global_attribute("current_call_ctx")
        layer = context and context.entry_layer
    layers = [] if layer is None else layer._flatten_layers()
    kept = [(each, list(each._losses), set(each._loss_ids)) for each in layers]
    yield
    for each, losses, ids in kept:
        each._losses[:] = losses
        each._loss_ids.clear()
        each._loss_ids.update(ids)


@contextlib.contextmanager
def losses_within(layer):
    """Around a call of a layer in a branch: its `add_loss` terms are taken off it.

    Yields a function that returns the list of terms added since.
    """
    before = {id(each): len(each._losses) for each in layer._flatten_layers()}

    def added():
        return [
            loss
            for each in layer._flatten_layers()
            for loss in each._losses[before.get(id(each), 0) :]
        ]

    with keeping_losses(layer):
        yield added


def under_xla():
    """Whether the graph that is being built is to be compiled by XLA.

    TensorFlow tells it by a control flow context that it puts around such a graph.
    """
    return not tf.executing_eagerly() and GraphOrParentsInXlaContext(
        tf.compat.v1.get_default_graph()
    )


def exclude_from_weight_decay(optimizer, variables):
    """Adds to what an optimizer excludes; its own method starts anew each time, and
    not once it is built."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # it scales losses
    excluded = getattr(optimizer, "_exclude_from_weight_decay", set())
    keys = {optimizer._var_key(variable) for variable in variables}
    optimizer._exclude_from_weight_decay = set(excluded) | keys
    optimizer._exclude_from_weight_decay_cache = {}


def layers_within(layer):
    """`layer` and every layer in it, however deep, once each.

    Keras publishes the layers of a model, but not those that a layer holds.
    """
    return layer._flatten_layers()


def validation_writer(callback):
    """The writer of Keras' `TensorBoard` callback for the run "validation".

    A second one would write a second file, and Keras closes its own at the end.
    """
    return callback._val_writer


class BatchIterator(EpochIterator):
    """Batches of anything that `Model.predict` takes, as TensorFlow tensors.

    Keras' own adapters decide what is an array, a dataset, a `PyDataset` or a
    generator, so the data arguments mean here what they mean in `predict`. Unlike
    the trainer's iterator, this one never shards over a distribution strategy.
    """

    def _get_iterator(self):
        if isinstance(self.data_adapter, ArrayDataAdapter):
            # Slices of arrays, without the tf.data pipeline that Keras builds for each
            # `predict`: on small inputs that alone costs more than the network.
            batches = self.data_adapter.get_numpy_iterator()
            return (tree.map_structure(_to_tensor, batch) for batch in batches)
        dataset = self.data_adapter.get_tf_dataset()
        if isinstance(self.data_adapter, TFDatasetAdapter):
            dataset = dataset.prefetch(tf.data.AUTOTUNE)  # as the other adapters do
        return dataset

    def abandon(self):
        """Ends a pass that nobody wants to finish: workers of a `PyDataset` stop."""
        self.data_adapter.on_epoch_end()

    def _interrupted_warning(self):
        # Data of unknown length ends when it ends; Keras warns of that as well.
        if self.steps_per_epoch:
            super()._interrupted_warning()


def absent_as_none(batch):
    """A batch of a generator, in which Keras writes absent inputs as `Optional`s."""
    return tree.map_structure(
        lambda t: None if isinstance(t, tf.experimental.Optional) else t, batch
    )


def _to_tensor(array):
    return None if array is None else tf.convert_to_tensor(array)


def replace_compile_config(model, **arguments):
    """Makes `model` save the arguments that its user gave to `compile`.

    `DynamicModel.compile` hands Keras one of each for each exit, which hold variables.
    """
    model._compile_config = SerializableDict(**arguments)


@contextlib.contextmanager
def training_otherwise(model, optimizer):
    """Around a `fit` with another optimizer and other layers frozen, as it ends too.

    Keras' setter of `trainable` reaches all layers inside, where the user may have
    frozen some; and Keras, from 3.15 on, warns where flags differ from `compile`'s.
    Yields a function without arguments, to be called once the layers are frozen.
    """
    layers = model._flatten_layers()
    flags = [(layer, layer._trainable) for layer in layers]
    variables = {id(v): v for layer in layers for v in layer.variables}
    variable_flags = [(variable, variable.trainable) for variable in variables.values()]
    kept, state = model.optimizer, getattr(model, "_compiled_trainable_state", None)

    def begin():
        model.optimizer = optimizer
        model._compiled_trainable_state = {each: each.trainable for each in layers}
        model.train_function = None  # it holds the variables that it trains

    model._untouched = lambda: (flags, kept)  # Keras would track layers in a tuple
    try:
        yield begin
    finally:
        model._untouched = None
        _show(model, flags, kept)
        for variable, flag in variable_flags:
            if variable.trainable != flag:
                variable.trainable = flag
        model._compiled_trainable_state = state
        model.train_function = None


@contextlib.contextmanager
def untouched(model):
    """Shows a model's own flags and optimizer, for a while, in `training_otherwise`."""
    shown = getattr(model, "_untouched", None)
    if not shown:
        yield
        return
    flags, optimizer = shown()
    now = [(layer, layer._trainable) for layer, _ in flags], model.optimizer
    _show(model, flags, optimizer)
    try:
        yield
    finally:
        _show(model, *now)


def _show(model, flags, optimizer):
    for layer, flag in flags:
        layer._trainable = flag
    model.optimizer = optimizer


def loss_for(identifier, y_true, y_pred):
    """The `Loss` that `compile(loss=identifier)` would make for an output, or None."""
    return get_loss(identifier, y_true, y_pred)


def metric_for(identifier, y_true, y_pred):
    """The metric that `compile(metrics=[identifier])` would make for an output."""
    return get_metric(identifier, y_true, y_pred)


def rename_metrics_by_exit(model, y, y_pred, prefixes):
    """Builds the compiled metrics and names each one after its exit.

    Keras prefixes names when it reports a dict, but looks values up by the bare name
    when it reports a list, and lists one metric several times. Unique names mend both.
    `prefixes` has one string an output; an empty one leaves the plain name.
    """
    compiled = model._compile_metrics
    if compiled is None or compiled.built:
        return
    compiled.build(y, y_pred)
    taken = set()
    for kind, groups in (
        ("", compiled._flat_metrics),
        ("weighted_", compiled._flat_weighted_metrics),
    ):
        for group, prefix in zip(groups, prefixes, strict=False):
            if group is None:
                continue
            group.output_name = None
            for metric in group.metrics:
                name = f"{prefix}{metric.name}"
                # As Keras names a weighted metric beside an unweighted one.
                metric.name = f"{prefix}{kind}{metric.name}" if name in taken else name
                taken.add(metric.name)


def scoped_name(hp, name):
    """The whole name of a hyperparameter of keras-tuner, its name scopes before it."""
    return hp._get_name(name)


def frozen(function):
    """A concrete function with its variables as constants, at their values now.

    It must change no variable; the result takes the same tensors, nested or flat.
    """
    # They list what the whole process has; TensorFlow would warn of what is eager.
    for name in list(function.graph.collections):
        function.graph.clear_collection(name)
    constant = convert_variables_to_constants_v2(function, lower_control_flow=False)
    handles = {id(variable.handle) for variable in function.graph.variables}
    # Lookup tables stay what they are, and are fed as it was traced.
    resources = [t for t in function.captured_inputs if t.dtype == tf.resource]
    others = [handle for handle in resources if id(handle) not in handles]
    known = tf.nest.flatten(function.structured_outputs)

    def call(*given):
        tensors = [t for t in tf.nest.flatten(given) if t is not None]
        found = iter(tf.nest.flatten(constant(*tensors, *others)))
        results = [None if each is None else next(found) for each in known]
        return tf.nest.pack_sequence_as(function.structured_outputs, results)

    return call


def changes_variables(function):
    """Whether a concrete function assigns to variables when it is called."""
    graph = function.graph.as_graph_def()
    nodes = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
    kinds = {node.op for node in nodes} - {"ResourceGather", "ResourceGatherNd"}
    return any(kind.startswith(("Assign", "Resource")) for kind in kinds)
