"""benchmarks/host_cost.py: the loop runs to its end on nothing, and what it would have enqueued is counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastsam2.benchmarks.host_cost import main


def test_cases_have_a_time_and_the_calls_of_one_step(tmp_path: Path) -> None:
    out = tmp_path / "cost.json"
    main(["--objects", "1", "3", "--keep", "1.0", "0.1", "--max-objects", "2", "--frames", "3", "--out", str(out)])
    cases = {(case["objects"], case["keep"]): case for case in json.loads(out.read_text())["cases"]}
    assert [*cases] == [(1, 1.0), (1, 0.1), (3, 1.0), (3, 0.1)]
    assert all(case["host_ms"] > 0 and case["host_ms_p90"] >= case["host_ms"] for case in cases.values())
    # image encoder once; memory attention, mask decoder and memory encoder in batches of at most two objects
    assert cases[1, 1.0]["engine_runs"] == 4
    assert cases[3, 1.0]["engine_runs"] == 7
    assert cases[3, 0.1]["launches"] > cases[3, 1.0]["launches"], "scores and the choice of rows are launches"


def test_a_bundle_that_is_not_there_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--bundle", str(tmp_path / "none"), "--out", str(tmp_path / "cost.json")])
    assert stopped.value.code == 2
    assert "expected a bundle folder" in capsys.readouterr().err
