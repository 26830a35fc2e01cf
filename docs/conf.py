"""Sphinx configuration.

Build from the project's root with
`.venv/bin/python -m sphinx -W -j 2 -b html docs docs/_build/html`
"""

import inspect
import os
import re
import shutil
import sys
from pathlib import Path

# Read by the kernels that run the tutorials: TensorFlow's start-up lines do not belong
# on a page, and a figure has to appear there, whatever backend the caller's shell set.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"

import keras_dynamic  # noqa: E402

project = "keras_dynamic"
author = "The keras_dynamic authors"
copyright = f"2026, {author}"
version = release = keras_dynamic.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "myst_nb",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"keras_dynamic {version}"
html_show_sourcelink = False
# Single backticks in docstrings are code, as in Keras' own.
default_role = "code"

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# Tutorials are percent scripts in tutorials/, outside of the pages' own folder, which
# Sphinx cannot read: copies are made here at every build, and git ignores them. A copy
# keeps its time stamp, so that only a changed tutorial is read, and run, again.
nb_custom_formats = {".py": "tutorial_pages.read"}
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_execution_timeout = 600
nb_merge_streams = True
# TensorFlow logs there what it found on the machine, and cannot be kept from it.
nb_output_stderr = "remove"


def copy_tutorials(source, target):
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for script in sorted(source.glob("*.py")):
        shutil.copy2(script, target)


def start_kernels_with(script, folder):
    """Makes a folder of settings for the kernels, which run the script first."""
    startup = folder / "profile_default" / "startup"
    startup.mkdir(parents=True, exist_ok=True)
    shutil.copy2(script, startup)
    os.environ["IPYTHONDIR"] = str(folder)


HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # for tutorial_pages
# The kernels take data sets from where the benchmarks do, and download what is not
# there.
os.environ.setdefault("KERAS_DYNAMIC_DATA", str(HERE.parent / "../shared/data"))
start_kernels_with(HERE / "local_data.py", HERE / "_build" / "ipython")
copy_tutorials(HERE.parent / "tutorials", HERE / "tutorials")
exclude_patterns += ["*.py"]

# Docstrings are Google's style with Keras' sections.
napoleon_numpy_docstring = False
napoleon_custom_sections = [
    ("Call arguments", "params_style"),
    "Input shape",
    "Output shape",
    "Reference",
]
autodoc_member_order = "bysource"
autodoc_typehints = "none"
# A method that only overrides Keras' own, such as get_config, needs no second page.
autodoc_inherit_docstrings = False
autodoc_default_options = {"members": True, "show-inheritance": True}


def markdown_to_rest(app, what, name, obj, options, lines):
    """Turns the Markdown of a docstring into reStructuredText, before napoleon.

    That is: blocks between ``` fences, and bars around absolute values, which would be
    read as substitutions.
    """
    result, indent = [], None
    for line in lines:
        fence = re.match(r"^( *)```(\w*)$", line)
        if fence and indent is None:
            indent = fence.group(1)
            result += ["", f"{indent}.. code-block:: {fence.group(2) or 'text'}", ""]
        elif fence:
            indent = None
            result.append("")
        elif indent is None:
            prose_and_code = line.split("`")
            prose_and_code[::2] = [
                part.replace("|", r"\|") for part in prose_and_code[::2]
            ]
            result.append("`".join(prose_and_code))
        else:
            result.append(f"   {line}" if line else line)
    lines[:] = result


def signature_of_init(app, what, name, obj, options, signature, return_annotation):
    """Shows a class's own arguments: Keras' classes have a `__new__` that takes any."""
    if what != "class":
        return None
    own = inspect.signature(obj.__init__)
    own = own.replace(parameters=list(own.parameters.values())[1:])
    return str(own), return_annotation


def halve_tutorials(app, env, docnames):
    """Puts every other tutorial first, and the rest of them last.

    Processes that work in parallel (`-j 2`) read runs of neighboring pages. So two of
    them share the tutorials evenly, which take nearly all of the time.
    """
    tutorials = [name for name in docnames if name.startswith("tutorials/")]
    others = [name for name in docnames if name not in tutorials]
    docnames[:] = [*tutorials[::2], *others, *tutorials[1::2]]


def setup(app):
    app.connect("env-before-read-docs", halve_tutorials)
    app.connect("autodoc-process-signature", signature_of_init)
    # Napoleon listens with the default priority, 500.
    app.connect("autodoc-process-docstring", markdown_to_rest, priority=400)
