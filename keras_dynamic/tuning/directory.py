"""Which search a tuner's directory belongs to.

keras-tuner goes on with whatever it finds in its directory. A file beside its own says
what was searched there, so that a search is never mixed up with another one.
"""

import json
import os

import tensorflow as tf
from keras_tuner.errors import FatalValueError

__all__ = ["check", "claim", "signature_of"]

_FILE = "keras_dynamic_search.json"
_REMEDY = "Give another `directory` or `project_name`, or `overwrite=True`."


def signature_of(objective, space):
    """What distinguishes a search: its objective and its hyperparameters.

    Args:
        objective: a `DynamicObjective`.
        space: list of keras-tuner's hyperparameters.
    """
    entries = {}
    for entry in space:
        config = {**entry.get_config(), "type": type(entry).__name__}
        entries.setdefault(config.pop("name"), []).append(config)
    signature = {"objective": objective.get_config(), "space": entries}
    return json.loads(json.dumps(signature, sort_keys=True, default=repr))


def claim(path, signature):
    """Checks that a directory is free or of this search, and marks it.

    Args:
        path: the project's directory, which exists.
        signature: what `signature_of` gave.

    Raises:
        FatalValueError: if it belongs to another search.
    """
    check(path, signature)
    file = os.path.join(path, _FILE)
    if not tf.io.gfile.exists(file):
        # Written aside and renamed: other workers read it whole or not at all.
        draft = f"{file}.{os.getpid()}"
        with tf.io.gfile.GFile(draft, "w") as stream:
            stream.write(json.dumps(signature, indent=1))
        tf.io.gfile.rename(draft, file, overwrite=True)


def check(path, signature):
    """Raises a `FatalValueError` if a directory belongs to another search."""
    file = os.path.join(path, _FILE)
    if not tf.io.gfile.exists(file):
        if _has_finished_trials(path):
            raise FatalValueError(
                f"The tuner's directory '{path}' holds trials of a search that is not "
                f"of a `DynamicHyperModel`. {_REMEDY}"
            )
        return
    with tf.io.gfile.GFile(file, "r") as stream:
        found = json.loads(stream.read())
    if found == signature:
        return
    differences = []
    if found["objective"] != signature["objective"]:
        differences.append(
            f"objective {found['objective']} there, {signature['objective']} here"
        )
    theirs, ours = found["space"], signature["space"]
    for name in sorted({*theirs, *ours}):
        if theirs.get(name) != ours.get(name):
            where = "only here" if name not in theirs else "only there"
            where = "different" if name in theirs and name in ours else where
            differences.append(f"hyperparameter '{name}' {where}")
    raise FatalValueError(
        f"The tuner's directory '{path}' belongs to another search: "
        f"{'; '.join(differences)}. {_REMEDY}"
    )


def _has_finished_trials(path):
    for file in tf.io.gfile.glob(os.path.join(path, "trial_*", "trial.json")):
        with tf.io.gfile.GFile(file, "r") as stream:
            if json.loads(stream.read())["status"] == "COMPLETED":
                return True
    return False
