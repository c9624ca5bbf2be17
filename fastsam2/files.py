"""Files that are there whole, or as they were before."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_whole(path: Path, content: bytes | str) -> None:
    """Writes a file beside `path` and puts it in its place; whoever reads `path` meets the old content or the new one.

    Args:
        path: the file; its folder is made where it is missing.
        content: of the file; text becomes UTF-8.

    Raises:
        OSError: if it cannot be written; `path` is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Any) -> None:
    """`write_whole` of indented JSON.

    Args:
        path: the file.
        content: what `json` takes, without NaN and infinities.

    Raises:
        OSError: as `write_whole`.
        ValueError: if a number is NaN or infinite.
        TypeError: if something is not JSON.
    """
    write_whole(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
