"""The import law of the package, read from the source files with `ast`.

Floors: a file imports from lower floors only.

    5  tuning
    4  callbacks   plots
    3  models
    2  layers      calibration
    1  ops
    0  _compat     _files

`keras_dynamic/__init__.py` stands above them all and is imported by none of them; so
does the `__init__.py` of a folder above the files of that folder. Siblings import each
other only as `ORDERED` says: in a folder listed there, a file may import those that
stand before it. Elsewhere a file may import a sibling only if its name begins with an
underscore, and such a private helper imports no sibling itself, save those listed.
`COMPANIONS` names the public files that siblings may import all the same.
"""

import ast
import sys
from pathlib import Path

import pytest

import keras_dynamic

PACKAGE = Path(keras_dynamic.__file__).resolve().parent

FLOORS = {
    "_compat": 0,
    "_files": 0,
    "ops": 1,
    "layers": 2,
    "calibration": 2,
    "models": 3,
    "callbacks": 4,
    "tuning": 5,
    "plots": 4,
}

# A new file of these folders has to be given its place here.
ORDERED = {
    "models": (
        "graph",
        "flops_primitives",
        "flops_of_sequences",
        "flops_of_choices",
        "flops_of_mixtures",
        "flops_of_layers",
        "flops_of_ops",
        "flops_of_graphs",
        "operation_flops",
        "gates",
        "batch_axis",
        "segments",
        "stages",
        "costs",
        "binding",
        "exit_rule",
        "exit_rule",
        "rules",
        "rows",
        "timing",
        "feeding",
        "saying",
        "engine",
        "stage_functions",
        "pools",
        "joining",
        "replicas",
        "selected_walk",
        "prediction",
        "heads",
        "loss_weights",
        "per_exit",
        "distilling",
        "selection",
        "tallies",
        "inference",
        "exit_table",
        "dense_answers",
        "calibrating",
        "certifying",
        "road",
        "structure",
        "structure",
        "weight_decay",
        "training_exits",
        "several_workers",
        "whole_files",
        "serving",
        "dynamic_inference",
        "dynamic_model",
        "converting",
        "comparing",
        "export",
        "parts",
        "halves",
        "splitting",
        "surgery",
        "rebuilding",
        "discretizing",
        "pairs",
        "upcycling",
        "token_masks",
        "head_style",
        "opening",
        "cuts",
        "suggestions",
        "adding_checks",
        "adding_exits",
    ),
    "tuning": (
        "hyperparameters",
        "schedules",
        "objectives",
        "directory",
        "scoring",
        "hyper_model",
        "pareto",
    ),
}

# (importer, imported): imports up or aside, made inside a function, when it runs.
LAZY_DOORS = {
    ("models.dynamic_inference", "models.export"),
    ("tuning.pareto", "plots._drawing"),
}

# (importer, imported): private helpers that stand on another private helper.
HELPERS_OF_HELPERS = {
    ("calibration._closing", "calibration._search"),
    ("calibration._closing", "calibration._walk"),
    ("calibration._exit_report", "calibration._probabilities"),
    ("calibration._goals", "calibration._arguments"),
    ("calibration._page", "calibration._page_template"),
    ("calibration._page", "calibration._tables"),
    ("calibration._probabilities", "calibration._arguments"),
    ("calibration._problem", "calibration._arguments"),
    ("layers._exit_weights", "layers._selector"),
    ("layers._experts", "layers._gate_records"),
    ("layers._experts", "layers._sub_layers"),
    ("layers._moe_arguments", "layers._checks"),
    ("layers._moe_choices", "layers._moe_roads"),
    ("layers._moe_roads", "layers._experts"),
    ("layers._pooled_head", "layers._checks"),
    ("layers._selector", "layers._checks"),
    ("layers._selector", "layers._choosing"),
    ("layers._skipping", "layers._gate_records"),
}

# (importer, imported): public files of a folder without an order. Routers are public
# classes, to be subclassed, and `SparseMoE` makes those of them that it knows by name.
# A report holds a certificate.
COMPANIONS = {
    ("calibration.report", "calibration.guarantees"),
    ("layers.sparse_moe", "layers.routers"),
    ("layers._moe_arguments", "layers.routers"),
    ("layers._moe_choices", "layers.routers"),
}

# Imported by name, by whoever wants them.
IMPORTED_BY_NOBODY = {"tuning", "plots"}

# Third-party packages, and the files that may import each ("" means every file).
ALLOWED = {
    "keras": "",
    "tensorflow": "",
    "tensorflow_probability": "",
    "numpy": "",
    "scipy": "",
    "rich": "",
    "jinja2": "calibration",
    "keras_tuner": "tuning",
    "matplotlib": "plots",
}
# Optional packages, which only a function may import, when it runs.
OPTIONAL = {"onnx", "onnxruntime", "tf2onnx", "ai_edge_litert", "keras_hub"}

PRIVATE = ("keras.src", "tensorflow.python", "tf_keras")
PRINTS = set()
MAX_LINES = 400


class Import:
    """One imported module or name: who imports what, where, and whether lazily."""

    def __init__(self, importer, target, line, lazy):
        self.importer, self.target, self.line, self.lazy = importer, target, line, lazy

    def __str__(self):
        return f"{self.importer} (line {self.line}) imports {self.target}"


def module_name(path):
    """`models.rules` for models/rules.py, `models` for models/__init__.py, "" for
    keras_dynamic/__init__.py."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in FILES.items()}


def nodes_with_laziness(tree):
    """Yields (node, is it inside a function)."""
    pending = [(tree, False)]
    while pending:
        node, lazy = pending.pop()
        yield node, lazy
        inside = lazy or isinstance(
            node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
        )
        pending.extend((child, inside) for child in ast.iter_child_nodes(node))


def absolute_base(importer, node):
    """The module that a `from ... import` names, relative dots resolved."""
    if not node.level:
        return node.module
    package = ["keras_dynamic", *filter(None, importer.split("."))]
    if FILES[importer].name != "__init__.py":
        package = package[:-1]
    package = package[: len(package) - (node.level - 1)]
    return ".".join(package + ([node.module] if node.module else []))


def imports_of(importer):
    for node, lazy in nodes_with_laziness(TREES[importer]):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = absolute_base(importer, node)
            targets = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            yield Import(importer, target, node.lineno, lazy)


IMPORTS = [each for importer in FILES for each in imports_of(importer)]


def inner_module(target):
    """The module of the package that `target` lies in, None for a foreign target.

    `keras_dynamic.models.rules.Entropy` lies in `models.rules`, and
    `keras_dynamic.models.Entropy` in `models`, whose `__init__.py` provides it.
    """
    parts = target.split(".")
    if parts[0] != "keras_dynamic":
        return None
    inner = parts[1:]
    while inner and ".".join(inner) not in FILES:
        inner = inner[:-1]
    return ".".join(inner)


INNER_IMPORTS = [
    (each, inner_module(each.target))
    for each in IMPORTS
    if inner_module(each.target) is not None
]


def breach(importer, imported, lazy):
    """Says which law an import inside the package breaks, or None."""
    if importer == "":
        if imported.split(".")[0] in IMPORTED_BY_NOBODY:
            return "is imported by name, so that nobody pays for it unasked"
        return None
    if imported == "":
        return "is the public face, which no file of the package imports"
    above, below = importer.split(".")[0], imported.split(".")[0]
    if lazy and (importer, imported) in LAZY_DOORS:
        return None
    if below in IMPORTED_BY_NOBODY and above != below:
        return "is imported by name, so that nobody pays for it unasked"
    if not {above, below} <= set(FLOORS):
        return "or the importer has no place in FLOORS"
    if above != below:
        if FLOORS[above] <= FLOORS[below]:
            return f"is on floor {FLOORS[below]}, the importer on {FLOORS[above]}"
        return None
    if importer == above:  # the __init__.py of the folder
        return None
    if imported == below:
        return "is the __init__.py of the importer's own folder"
    importer_file, imported_file = importer.split(".")[1], imported.split(".")[1]
    if above in ORDERED:
        order = ORDERED[above]
        if not {importer_file, imported_file} <= set(order):
            return f"or the importer has no place in ORDERED[{above!r}]"
        if order.index(imported_file) >= order.index(importer_file):
            return f"does not stand before the importer in ORDERED[{above!r}]"
        return None
    if (importer, imported) in HELPERS_OF_HELPERS | COMPANIONS:
        return None
    if imported_file.startswith("_") and not importer_file.startswith("_"):
        return None
    return "is a sibling"


def test_every_file_has_a_floor():
    homeless = [name for name in FILES if name and name.split(".")[0] not in FLOORS]
    assert not homeless, f"give these a floor in FLOORS: {homeless}"


@pytest.mark.parametrize("folder", ORDERED)
def test_every_file_of_an_ordered_folder_is_listed(folder):
    files = {
        path.stem for path in PACKAGE.glob(f"{folder}/*.py") if path.stem != "__init__"
    }
    unlisted = files - set(ORDERED[folder])
    assert not unlisted, f"give these a place in ORDERED[{folder!r}]: {unlisted}"


def test_imports_go_down():
    breaches = [
        f"{each}, but {imported or 'keras_dynamic'} {law}"
        for each, imported in INNER_IMPORTS
        if (law := breach(each.importer, imported, each.lazy))
    ]
    assert not breaches, "\n".join(breaches)


@pytest.mark.parametrize(
    ("importer", "imported", "lazy", "law"),
    [
        ("models.rules", "ops.confidence", False, None),
        ("ops.confidence", "models.rules", False, "floor 3"),
        ("ops.confidence", "models.rules", True, "floor 3"),
        ("layers.early_exit", "calibration.report", False, "floor 2"),
        ("layers.early_exit", "_compat", False, None),
        ("layers.early_exit", "layers.skip_gate", False, "sibling"),
        ("layers.sparse_moe", "layers._experts", False, None),
        ("layers._experts", "layers._routers", False, "sibling"),
        ("layers.sparse_moe", "layers.routers", False, None),
        ("layers.skip_gate", "layers.routers", False, "sibling"),
        ("layers.routers", "layers.sparse_moe", False, "sibling"),
        ("models.engine", "models.rules", False, None),
        ("models.rules", "models.engine", False, "ORDERED"),
        ("models.dynamic_inference", "models.export", True, None),
        ("models.dynamic_inference", "models.export", False, "ORDERED"),
        ("models.engine", "models", False, "own folder"),
        ("models.engine", "", True, "public face"),
        ("models", "models.surgery", False, None),
        ("", "callbacks", False, None),
        ("", "plots", False, "by name"),
        ("callbacks", "tuning", True, "by name"),
        ("tuning.pareto", "plots._drawing", True, None),
        ("tuning.pareto", "plots._drawing", False, "by name"),
    ],
)
def test_the_law_itself(importer, imported, lazy, law):
    found = breach(importer, imported, lazy)
    assert found is None if law is None else law in found


def test_private_imports_only_in_compat():
    found = [
        str(each)
        for each in IMPORTS
        if each.importer != "_compat"
        and any(f"{each.target}.".startswith(f"{private}.") for private in PRIVATE)
    ]
    for importer, tree in TREES.items():
        if importer != "_compat":
            found += [
                f"{importer} (line {node.lineno}) uses {ast.unparse(node)}"
                for node in ast.walk(tree)
                if isinstance(node, ast.Attribute)
                and ast.unparse(node) in ("keras.src", "tf.python", "tensorflow.python")
            ]
    assert not found, "\n".join(found)


def names_defined_in_package():
    """Every name that the package itself gives to an attribute, function or class."""
    names = set()
    for tree in TREES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
    return names


def test_private_attributes_of_others_only_in_compat():
    """A private attribute that the package does not define is somebody else's."""
    # Documented parts of named tuples, in spite of the underscore.
    own = names_defined_in_package() | {"_asdict", "_replace", "_fields"}
    found = [
        f"{importer} (line {node.lineno}) uses {ast.unparse(node)}"
        for importer, tree in TREES.items()
        if importer != "_compat"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and node.attr not in own
    ]
    assert not found, "\n".join(found)


def test_third_party_imports_are_declared():
    found = []
    for each in IMPORTS:
        package = each.target.split(".")[0]
        floor = each.importer.split(".")[0]
        if package in sys.stdlib_module_names or package == "keras_dynamic":
            continue
        if package in PRIVATE and each.importer == "_compat":
            continue
        if package in OPTIONAL and each.lazy:
            continue
        if package in ALLOWED and ALLOWED[package] in ("", floor):
            continue
        found.append(str(each))
    assert not found, "\n".join(found)


def test_no_prints():
    found = [
        f"{importer} (line {node.lineno})"
        for importer, tree in TREES.items()
        if importer not in PRINTS
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    ]
    assert not found, f"print() in {found}"


def test_files_are_short():
    lengths = {
        name: len(path.read_text("utf-8").splitlines()) for name, path in FILES.items()
    }
    long = {name: lines for name, lines in lengths.items() if lines > MAX_LINES}
    assert not long, f"over {MAX_LINES} lines; split by concept: {long}"


def test_every_public_name_resolves():
    assert len(set(keras_dynamic.__all__)) == len(keras_dynamic.__all__)
    missing = [
        name for name in keras_dynamic.__all__ if not hasattr(keras_dynamic, name)
    ]
    assert not missing
