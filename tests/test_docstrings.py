"""Every public class and function shows an example, and every example runs.

Examples are ```python blocks under `Example:` (or `Examples:`), as in Keras' own
docstrings. The blocks of one docstring run in order, in one namespace of their own that
has `keras`, `np` (NumPy) and `kd` (keras_dynamic); those of `kd.tuning` have
`keras_tuner` too.
"""

import inspect
import re
import textwrap

import keras
import keras_tuner
import numpy as np
import pytest
from matplotlib import pyplot

import keras_dynamic as kd

# Public by their own name: `kd.rules.Entropy`.
SUBMODULES = ("rules", "calibration", "callbacks", "plots", "routers", "tuning")


def public_names(module):
    names = getattr(module, "__all__", None)
    if names is not None:
        return names
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and getattr(value, "__module__", "").startswith(module.__name__)
    ]


def public_objects():
    """Yields (qualified name, object) for each public class and function."""
    modules = [kd, *(getattr(kd, name) for name in SUBMODULES)]
    seen = set()
    for module in modules:
        for name in public_names(module):
            value = getattr(module, name, None)
            is_public = inspect.isclass(value) or inspect.isfunction(value)
            if is_public and id(value) not in seen:
                seen.add(id(value))
                yield f"{module.__name__}.{name}", value


def methods(qualified_name, cls):
    """Yields (qualified name, function) for the public methods that the package gives.

    Those of a mixin, too.
    """
    own = [each for each in cls.__mro__ if each.__module__.startswith("keras_dynamic")]
    for name, value in {
        n: v for each in own[::-1] for n, v in vars(each).items()
    }.items():
        function = getattr(value, "fget", None) or getattr(value, "__func__", value)
        if not name.startswith("_") and inspect.isfunction(function):
            yield f"{qualified_name}.{name}", function


def example_of(value):
    """The code under `Example:` in a docstring, "" where there is none."""
    docstring = inspect.cleandoc(value.__doc__ or "")
    match = re.search(r"^Examples?:\n(.*)", docstring, flags=re.MULTILINE | re.DOTALL)
    if match is None:
        return ""
    # The section ends where the next one, a line such as `Reference:`, begins.
    section = re.split(r"^[A-Z][\w ]*:$", match.group(1), flags=re.MULTILINE)[0]
    blocks = re.findall(
        r"^( *)```python\n(.*?)^\1```", section, flags=re.MULTILINE | re.DOTALL
    )
    return "\n".join(textwrap.dedent(code) for _, code in blocks)


PUBLIC = dict(public_objects())
EXAMPLES = {name: code for name, value in PUBLIC.items() if (code := example_of(value))}
EXAMPLES |= {
    name: code
    for owner, value in PUBLIC.items()
    if inspect.isclass(value)
    for name, method in methods(owner, value)
    if (code := example_of(method))
}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_object_has_an_example(name):
    assert PUBLIC[name].__doc__, f"{name} has no docstring"
    assert example_of(PUBLIC[name]), (
        f"{name} has no ```python block under `Example:` in its docstring"
    )


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where an example saves its model
    code = compile(EXAMPLES[name], f"<example of {name}>", "exec")
    names = {"keras": keras, "np": np, "kd": kd, "__name__": "__example__"}
    if name.startswith("keras_dynamic.tuning."):
        names["keras_tuner"] = keras_tuner
    exec(code, names)
    pyplot.close("all")


def test_examples_are_found():
    def documented():
        """One sentence.

        Args:
            x: A number.

        Example:

        ```python
        x = 1
        if x:
            y = 2
        ```

        and then

        ```python
        z = x + y
        ```

        Reference:
            Somebody, 2020.

        ```python
        raise AssertionError("not an example")
        ```
        """

    namespace = {}
    exec(example_of(documented), namespace)
    assert namespace["z"] == 3
    assert example_of(test_examples_are_found) == ""
