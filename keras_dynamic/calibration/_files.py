"""Files that are whole or not there."""

import os
import uuid


def write_whole(path, text):
    """Writes beside the path first, then renames: no reader sees half a file.

    Args:
        path: `pathlib.Path`.
        text: String, written as UTF-8.
    """
    beside = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
