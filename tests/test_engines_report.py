"""The record of built engines: its rows, what is replaced and what stays, what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from fastsam2.contracts import BASE_ROLES
from fastsam2.engines import records, report
from fastsam2.engines.layers import parse_listing
from fastsam2.engines.report import conditions, main, rows_of
from fastsam2.enums import Flavor
from fastsam2.errors import BundleError
from tests.engine_bundle import LISTING, SPEC, write_bundle
from tests.tensorrt_world import LIMITS, write_engines


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Engines of two fused attentions each, one of them in the dense profile."""
    folder = tmp_path / "bundle"
    manifest = write_bundle(folder)
    write_engines(folder, manifest, Flavor.TENSORRT_RTX, "8.9")
    monkeypatch.setattr("fastsam2.engines.records.parse_listing", lambda text: parse_listing(LISTING))
    monkeypatch.setattr(report, "inspect_engines", lambda *a: [{**e, "drift": {"a": 1e-4, "b": 2e-3}} for e in records.inspect_engines(*a)])
    return folder


def test_one_row_for_each_graph(bundle: Path) -> None:
    rows = rows_of(bundle)
    assert [row["graph"] for row in rows] == [role.value for role in BASE_ROLES]
    attention = dict(rows[1])
    assert attention.pop("load_average") >= 0
    assert attention == {
        "model": SPEC.name,
        "image_size": SPEC.image_size,
        "weights": "random:7",
        "graph": "memory_attention",
        "flavor": "tensorrt-rtx",
        "version": "1.7",
        "target": "8.9",
        "precision": "fp16",
        "largest_batch": LIMITS.max_objects,
        "build_seconds": 0.1,
        "bytes": len(b"engine memory_attention"),
        "fused_attention": 1,
        "expected_attention": 0,
        "attention": 0,
        "activation_bytes": 18022400,
        "worst_drift": 2e-3,
    }
    assert rows[0]["largest_batch"] == 1


def test_rows_of_other_engines_stay(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "record.json"
    assert main([str(bundle), "--out", str(file)]) == 0
    record = json.loads(file.read_text())
    assert record["conditions"] == conditions() and record["conditions"]["cores"] > 0 and record["object"]
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 7.25))
    assert main([str(bundle), "--out", str(file)]) == 0
    again = json.loads(file.read_text())
    assert again == {**record, "rows": [{**row, "load_average": 7.2} for row in record["rows"]]}
    record = again
    for row in record["rows"]:
        row["precision"], row["bytes"] = "bf16", 1
    file.write_text(json.dumps(record))
    assert main([str(bundle), str(bundle), "--out", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [row["precision"] for row in rows] == ["bf16"] * 5 + ["fp16"] * 5 and all(row["bytes"] == 1 for row in rows[:5])


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ({"conditions": {"cpu": "another"}, "rows": []}, "to be of {'cpu': "),
        ({"rows": []}, "expected a record of engines in "),
        ("text", "expected a record of engines in "),
    ],
)
def test_a_record_of_something_else_is_left_alone(bundle: Path, tmp_path: Path, capsys: Any, held: Any, message: str) -> None:
    file = tmp_path / "record.json"
    file.write_text(json.dumps(held))
    before = file.read_bytes()
    assert main([str(bundle), "--out", str(file)]) == 2
    said = capsys.readouterr().err
    assert message in said and "--out" in said and file.read_bytes() == before


def test_a_bundle_without_engines_is_refused(tmp_path: Path) -> None:
    write_bundle(tmp_path / "bare")
    with pytest.raises(BundleError, match=r"expected engines in .*, got none. Build them: fastsam2 build"):
        rows_of(tmp_path / "bare")
