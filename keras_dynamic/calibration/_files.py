"""Files that are whole or not there."""

import errno
import os
import uuid


def write_whole(path, text):
    """Writes beside the path first, then renames: no reader sees half a file.

    Args:
        path: `pathlib.Path`.
        text: String, written as UTF-8.

    Raises:
        OSError: where the path cannot be written to; it names that path.
    """
    # A short name, so that one of the greatest length fits as well.
    beside = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
    except OSError as error:
        if error.errno is None:
            raise
        raise type(error)(error.errno, error.strerror, str(path)) from None
    finally:
        beside.unlink(missing_ok=True)
