"""What cannot be saved leaves the file that was there."""

import contextlib
import errno
import hashlib
import os
import resource
import traceback

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_dynamic as kd
from keras_dynamic import _files
from tests.calibration.test_report import by_hand
from tests.models.worker import exits

WAYS = {
    "model.keras": lambda model, path: model.save(path),
    "model.weights.h5": lambda model, path: model.save_weights(path),
    "report.json": lambda model, path: by_hand().save(path),
    "report.html": lambda model, path: by_hand().save(path),
    "exported": lambda model, path: model.export(path, verbose=False),
}


@pytest.fixture(scope="module")
def model():
    return exits()


@pytest.fixture(scope="module")
def other():
    """The same with other weights."""
    return exits()


@contextlib.contextmanager
def full_disk(num_bytes):
    """No file can have more than so many bytes, as where the disk has no more."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def content(folder):
    """Hashes of all files in a folder, however deep."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.fault(
    case="a full disk at save",
    made="a limit on the size of a file, met at its first byte or at its last, for "
    "`.keras`, `.weights.h5`, reports and exports",
    lost="nothing: the error is an OSError (of an export TensorFlow's own), what was "
    "there is what it was, byte by byte, nothing is left beside it, and the next save "
    "succeeds",
)
@pytest.mark.parametrize("name", WAYS)
def test_full_disk(tmp_path, model, other, name):
    save, path = WAYS[name], tmp_path / name
    save(model, path)
    before = content(tmp_path)
    last = max(file.stat().st_size for file in before) - 1
    for num_bytes in (0, 100, last):
        with pytest.raises((OSError, tf.errors.OpError)) as caught:
            with full_disk(num_bytes):
                save(other, path)
        assert name == "exported" or path.name in str(caught.value)
        assert content(tmp_path) == before
    save(other, path)
    assert content(tmp_path).keys() == before.keys()


def test_what_failed_holds_no_view_of_a_buffer(tmp_path, model):
    """Collected in another order than the buffer, it ends Python 3.12."""
    with pytest.raises(OSError) as caught, full_disk(0):
        model.save_weights(tmp_path / "model.weights.h5")
    error, held = caught.value, []
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            held += frame.f_locals.values()
        error = error.__cause__ or error.__context__
    views = [each for each in held if isinstance(each, memoryview)]
    assert views and all(isinstance(view.obj, bytes) for view in views)


@pytest.mark.fault(
    case="an unwritable path at save",
    made="a folder that is missing, a path below a file, a folder in the file's place",
    lost="nothing: the error is an OSError that names the path, and nothing is left "
    "beside it",
)
@pytest.mark.parametrize("name", [name for name in WAYS if name != "exported"])
def test_unwritable_path(tmp_path, model, name):
    (tmp_path / "file").write_text("here")
    (tmp_path / "taken" / name).mkdir(parents=True)
    before = content(tmp_path)
    for folder in ("nowhere", "file", "taken"):
        path = tmp_path / folder / name
        with pytest.raises(OSError) as caught:
            WAYS[name](model, path)
        assert str(path) in str(caught.value)
    assert content(tmp_path) == before


@pytest.mark.fault(
    case="an export to an unwritable path",
    made="a path below a file",
    lost="nothing: the error is an OSError that names the path",
)
def test_unwritable_export(tmp_path, model):
    (tmp_path / "file").write_text("here")
    with pytest.raises(OSError, match="file"):
        model.export(tmp_path / "file" / "exported", verbose=False)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_export_over_another_keeps_foreign_files(tmp_path, model, other):
    model.export(tmp_path, verbose=False)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "variables" / "old").write_text("gone with the old variables")
    other.export(tmp_path, verbose=False)
    x = np.ones((2, 6), "float32")
    loaded = tf.saved_model.load(tmp_path)
    np.testing.assert_allclose(
        loaded.serve(x)["outputs"],
        other.predict_dynamic(x, verbose=0).outputs,
        rtol=1e-5,
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "assets",
        "fingerprint.pb",
        "notes.txt",
        "saved_model.pb",
        "variables",
    ]
    assert not (tmp_path / "variables" / "old").exists()


@pytest.mark.parametrize("name", ["model.keras", "model.weights.h5"])
def test_overwriting_is_asked_for(tmp_path, model, other, name, monkeypatch):
    path = tmp_path / name

    def save(model):
        (model.save if name == "model.keras" else model.save_weights)(path, False)

    save(model)  # nothing is there
    before = content(tmp_path)
    monkeypatch.setattr("builtins.input", lambda *prompt: "n")
    save(other)
    assert content(tmp_path) == before
    monkeypatch.setattr("builtins.input", lambda *prompt: "y")
    save(other)
    assert content(tmp_path) != before


def test_links_and_permissions_stay(tmp_path, model, other):
    path, link = tmp_path / "model.keras", tmp_path / "latest.keras"
    model.save(path)
    path.chmod(0o600)
    link.symlink_to(path)
    before = content(tmp_path)
    other.save(link)
    assert link.is_symlink() and content(tmp_path)[path] != before[path]
    assert path.stat().st_mode & 0o777 == 0o600


def test_former_formats_and_foreign_endings(tmp_path, model):
    with pytest.raises(ValueError, match="`filepath` must end in .keras.*m.h5"):
        model.save(tmp_path / "m.h5")
    with pytest.raises(ValueError, match="m.txt"):
        model.save(tmp_path / "m.txt")
    with pytest.raises(ValueError, match="m.txt"):
        model.save_weights(tmp_path / "m.txt")
    assert not list(tmp_path.iterdir())
    # What is no single file is Keras' own affair.
    model.save(tmp_path / "folder", zipped=False)
    model.save_weights(tmp_path / "m.weights.json", max_shard_size=1)
    again = keras.saving.load_model(tmp_path / "folder")
    assert isinstance(again, kd.DynamicModel)
    again.load_weights(tmp_path / "m.weights.json")


def test_a_folder_whose_exchange_fails_halfway(tmp_path, monkeypatch):
    """The part that could not be replaced is there again, and nothing beside it."""
    (tmp_path / "a").write_text("old a")
    (tmp_path / "b").write_text("old b")
    replace = _files.os.replace

    def refusing(source, target):
        if "new" in str(source.parent) and source.name == "b":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        replace(source, target)

    monkeypatch.setattr(_files.os, "replace", refusing)
    with pytest.raises(OSError), _files.whole_folder(tmp_path) as new:
        (new / "a").write_text("new a")
        (new / "b").write_text("new b")
    assert (tmp_path / "b").read_text() == "old b"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
