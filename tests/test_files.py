"""Files that are there whole, or as they were before."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from fastsam2.files import read_json_lines, write_json, write_json_lines, write_whole


def test_text_bytes_and_json_arrive_and_folders_are_made(tmp_path: Path) -> None:
    write_whole(tmp_path / "a" / "b.txt", "größe\n")
    write_whole(tmp_path / "c.bin", b"\0\1")
    write_json(tmp_path / "d.json", {"x": [1, 2.5]})
    assert (tmp_path / "a" / "b.txt").read_bytes() == "größe\n".encode()
    assert (tmp_path / "c.bin").read_bytes() == b"\0\1"
    assert json.loads((tmp_path / "d.json").read_text()) == {"x": [1, 2.5]}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "c.bin", "d.json"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"old": 1})

    def fail(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_json(file, {"new": 1})
    monkeypatch.undo()
    with pytest.raises(ValueError):
        write_json(file, {"new": float("nan")})
    assert json.loads(file.read_text()) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_lines_are_read_up_to_one_that_was_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "a" / "lines.jsonl"
    assert read_json_lines(file) == []
    write_json_lines(file, [{"a": 1}, [2], "größe"])
    assert file.read_text().count("\n") == 3 and read_json_lines(file) == [{"a": 1}, [2], "größe"]
    file.write_bytes(file.read_bytes() + b'{"b": \n"later"\n')
    assert read_json_lines(file) == [{"a": 1}, [2], "größe"]
