"""Which search a tuner's directory belongs to.

keras-tuner goes on with whatever it finds in its directory. A file beside its own says
what was searched there, so that a search is never mixed up with another one.
"""

import json
import os

import keras
import tensorflow as tf
from keras_tuner.errors import FatalValueError

from keras_dynamic.models.exit_rule import ExitRule

__all__ = ["check", "claim", "signature_of"]

_FILE = "keras_dynamic_search.json"
_REMEDY = "Give another `directory` or `project_name`, or `overwrite=True`."


def signature_of(objective, rule, space):
    """What distinguishes a search, as far as it can be compared.

    Args:
        objective: a `DynamicObjective`.
        rule: name of a rule, an `ExitRule`, or None.
        space: list of keras-tuner's hyperparameters.
    """
    entries = {}
    for entry in space:
        config = {**entry.get_config(), "type": type(entry).__name__}
        entries.setdefault(config.pop("name"), []).append(config)
    if isinstance(rule, ExitRule):
        rule = keras.saving.serialize_keras_object(rule)
    signature = {"objective": objective.get_config(), "rule": rule, "space": entries}
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


def check(path, signature, has_begun=True):
    """Raises a `FatalValueError` if a directory belongs to another search.

    Args:
        path, signature: as in `claim`.
        has_begun: whether the directory may hold trials of this search without a mark,
            made by a tuner that is at its first one.
    """
    file = os.path.join(path, _FILE)
    if not tf.io.gfile.exists(file):
        begun = tf.io.gfile.exists(os.path.join(path, "oracle.json"))
        if _has_finished_trials(path) if has_begun else begun:
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
    for name in ("objective", "rule"):
        if found[name] != signature[name]:
            differences.append(f"{name} {found[name]} there, {signature[name]} here")
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
