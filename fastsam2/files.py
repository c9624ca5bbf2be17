"""Files that are there whole, or as they were before."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
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


def read_json_lines(path: Path) -> list[Any]:
    """What a file of JSON lines holds, up to a line that was cut off; empty where there is none.

    Raises:
        OSError: if it cannot be read.
    """
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def write_json_lines(path: Path, lines: Iterable[Any]) -> None:
    """`write_whole` of one line of JSON each, for `read_json_lines` and for appending.

    Raises:
        OSError: as `write_whole`.
        TypeError: if something is not JSON.
    """
    write_whole(path, "".join(json.dumps(line) + "\n" for line in lines))


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
