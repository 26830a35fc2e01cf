"""Files that are whole or not there."""

import contextlib
import errno
import os
import shutil
import tempfile
import uuid
from pathlib import Path

__all__ = ["whole_file", "whole_folder", "write_whole"]

_PREFIX = ".part-"


@contextlib.contextmanager
def whole_file(path, ending=""):
    """Around the writing of a file: written beside it, then renamed.

    No reader sees half a file, and what was there before stays whole until then: where
    the disk is full, where the process is killed, where writing raises. An existing
    file's permissions are kept, and a link goes on to lead to the file.

    Args:
        path: string or path of the file to be.
        ending: string, the ending that the name to write to must have. Defaults to
            `""`, none.

    Yields:
        `pathlib.Path` to write to.

    Raises:
        OSError: where the path cannot be written to; it names that path.
    """
    target = Path(os.path.realpath(path))
    # A short name, so that one of the greatest length fits as well.
    partial = target.with_name(f"{_PREFIX}{uuid.uuid4().hex}{ending}")
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        yield partial
        _flush(partial)
        if target.exists():
            shutil.copymode(target, partial)
        os.replace(partial, target)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def write_whole(path, text):
    """Writes a text as UTF-8; see `whole_file`."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def whole_folder(path):
    """Around the writing of a folder's content: within it, then moved to its place.

    What the folder holds under other names stays. What it holds under the same names
    is there until all of the new is written; then they change places.

    Args:
        path: string or path of the folder, made where it is missing.

    Yields:
        `pathlib.Path` of an empty folder to write to.

    Raises:
        OSError: where it cannot be written to.
    """
    target = Path(path)
    is_new = not target.exists()
    target.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=target))
    new, old = partial / "new", partial / "old"
    try:
        for folder in (new, old):
            folder.mkdir()
        yield new
        for entry in sorted(new.iterdir()):
            place, aside = target / entry.name, old / entry.name
            if place.exists():
                os.replace(place, aside)
            try:
                os.replace(entry, place)
            except BaseException:
                if aside.exists():
                    os.replace(aside, place)
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if is_new:
            with contextlib.suppress(OSError):
                target.rmdir()  # it is empty if nothing came of it


def _flush(path):
    """A disk that is full may say so only now; and a rename may overtake the content
    on its way to the disk, which a machine that loses power would show."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
