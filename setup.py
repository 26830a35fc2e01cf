"""Package metadata. The build system and the tools are set up in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def read_version():
    """Returns `__version__` without importing the package, which needs TensorFlow."""
    source = (ROOT / "keras_dynamic" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', source, flags=re.MULTILINE)
    if match is None:
        raise RuntimeError("keras_dynamic/__init__.py has no line `__version__ = ...`.")
    return match.group(1)


# Supported versions. The whole test suite runs with the newest, on Python 3.11, before
# each change is merged, and has been run with the oldest and with Python 3.12 and 3.13,
# but for what needs the extras `export`, `hub` and `docs`. tests/oldest.txt pins the
# oldest, and CONTRIBUTING.md has the commands.
#
#                            oldest       newest
#   Python                   3.11         3.11, 3.12, 3.13
#   tensorflow               2.18.0       2.21.0
#   keras                    3.14.0       3.15.1
#   tensorflow-probability   0.25.0       0.25.0
#   keras-tuner              1.4.7        1.4.8
#   tensorboard              2.18.0       2.21.0
#   numpy                    2.0.0        2.4.6 (Python 3.11), 2.5.5
#   scipy                    1.13.0       1.17.1
#   rich                     13.0.0       15.0.0
#   jinja2                   3.1.0        3.1.6
#   matplotlib               3.10.7       3.11.2
#   scikit-learn (tests)     1.8.0        1.9.1
#
# TensorFlow has no upper bound here. TensorFlow Probability imports tf_keras, and each
# tf_keras release admits one minor version of TensorFlow only, so the resolver already
# holds TensorFlow to the newest version that tf_keras knows. A bound of our own would
# say the same thing again and have to be lifted by hand. What the package uses of
# Keras without a public door is in keras_dynamic/_compat.py, and has tests that fail
# when a new release changes it.
#
# keras-tuner cannot run a trial on TensorFlow without tensorboard, and does not say so
# in its own metadata. The extras `export`, `hub` and `docs`, and the tools of the
# tests, have the newest versions as floors: nobody needs old ones.
INSTALL_REQUIRES = [
    "tensorflow>=2.18.0",
    "keras>=3.14.0",
    "tensorflow-probability[tf]>=0.25.0",
    "keras-tuner>=1.4.7",
    "tensorboard>=2.18.0",
    "numpy>=2.0.0",
    "scipy>=1.13.0",
    "rich>=13.0.0",
    "jinja2>=3.1.0",
]

EXTRAS_REQUIRE = {
    "plots": ["matplotlib>=3.10.7"],
    "export": [
        "tf2onnx>=1.17",
        "onnx>=1.23",
        "onnxruntime>=1.32",
        "ai-edge-litert>=2.3",
    ],
    "hub": ["keras-hub>=0.32"],
    # The tutorials draw their results; most take the digits of scikit-learn, two take
    # MNIST from keras.datasets.
    "docs": [
        "sphinx>=9.0",
        "myst-nb>=1.4",
        "jupytext>=1.19",
        "furo>=2025.12",
        "matplotlib>=3.11",
        "scikit-learn>=1.9",
    ],
    "test": [
        "pytest>=9.2",
        "pytest-xdist>=3.8",
        "hypothesis>=6.170",
        "scikit-learn>=1.8.0",
        "ruff>=0.17",
    ],
    # Other frameworks to measure against: gigabytes, so never part of `all`.
    "bench": ["torch", "transformers"],
}
EXTRAS_REQUIRE["all"] = sorted(
    {
        requirement
        for extra, requirements in EXTRAS_REQUIRE.items()
        if extra != "bench"
        for requirement in requirements
    }
)

setup(
    name="keras-dynamic",
    version=read_version(),
    description=(
        "Dynamic neural networks for Keras: models whose amount of computation "
        "depends on the input."
    ),
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The keras_dynamic authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Education",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Software Development :: Libraries :: Python Modules",
    ],
    keywords=["keras", "tensorflow", "early exit", "dynamic neural networks"],
    packages=find_packages(include=["keras_dynamic", "keras_dynamic.*"]),
    python_requires=">=3.11",
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
)
