"""Files that are there whole, or as they were before."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastsam2.errors import StateError, VideoError, expected

fcntl: Any = import_module("fcntl") if find_spec("fcntl") else None  # not on Windows


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


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Keeps a folder for one process at a time, as long as the block lasts or the process lives.

    Windows has no such locks: there it only makes the folder.

    Args:
        folder: made where it is missing, and removed in the end if nothing came into it.

    Raises:
        StateError: if another process keeps it.
        VideoError: if it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VideoError(expected(f"a folder that can be made at {folder}", error, "Choose another one")) from error
    held = os.open(folder, os.O_RDONLY) if fcntl else None
    try:
        if fcntl:
            _lock(held, folder)
        yield
        with suppress(OSError):
            folder.rmdir()
    finally:
        if held is not None:
            os.close(held)


def _lock(held: int | None, folder: Path) -> None:
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        todo = "Wait for it, or write to another folder; one call with --processes shares the work"
        raise StateError(expected(f"{folder} for this call alone", "another call that is writing to it", todo)) from error


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
