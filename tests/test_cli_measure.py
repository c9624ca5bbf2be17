"""What each option of the subcommands that measure becomes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastsam2.benchmarks import bench, report
from fastsam2.benchmarks import eval as evaluation
from fastsam2.cli import main
from fastsam2.config import Prune
from fastsam2.enums import BackendName, PrunePolicy


def _call(*args: str) -> int:
    with pytest.raises(SystemExit) as exited:
        main(args)
    assert isinstance(exited.value.code, int)
    return exited.value.code


def _recorded(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, answer: Any = None) -> list[tuple[Any, dict[str, Any]]]:
    calls: list[tuple[Any, dict[str, Any]]] = []

    def call(first: Any, **options: Any) -> Any:
        calls.append((first, options))
        if "progress" in options:
            options["progress"]("working")
        return answer

    monkeypatch.setattr(module, name, call)
    return calls


def test_bench_options(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    calls = _recorded(monkeypatch, bench, "run_bench")
    assert _call("bench", "nano", "--out", "b.json") == 0
    first, options = calls[-1]
    options.pop("progress")
    assert first == "nano"
    assert options == {
        "backend": BackendName.ONNXRUNTIME,
        "against": None,
        "objects": (1, 8),
        "keep": (1.0, 0.05),
        "policy": PrunePolicy.MASK,
        "frames": 60,
        "video": None,
        "out": Path("b.json"),
        "model": None,
        "config": None,
        "checkpoint": None,
        "threads": None,
        "gpu": 0,
        "cuda_graphs": False,
    }
    assert capsys.readouterr() == ("", "working\n")
    args = ["--against", "official-compiled", "--backend", "tensorrt", "--gpu", "1", "--cuda-graphs", "--objects", "1,4,16"]
    args += [
        "--keep",
        "0.25",
        "--policy",
        "router",
        "--frames",
        "5",
        "--video",
        "v.mp4",
        "--model",
        "m",
        "--config",
        "y",
        "--checkpoint",
        "c",
        "--threads",
        "2",
    ]
    assert _call("bench", "bundle", "--out", "b.json", *args) == 0
    options = calls[-1][1]
    options.pop("progress")
    assert list(options.values()) == [
        BackendName.TENSORRT,
        "official-compiled",
        (1, 4, 16),
        (0.25,),
        PrunePolicy.ROUTER,
        5,
        "v.mp4",
        Path("b.json"),
        "m",
        "y",
        "c",
        2,
        1,
        True,
    ]


@pytest.mark.parametrize(("option", "value"), [("--objects", "1,x"), ("--objects", ""), ("--keep", "all"), ("--objects", "1.5")])
def test_lists_of_numbers_are_checked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str, value: str) -> None:
    calls = _recorded(monkeypatch, bench, "run_bench")
    assert _call("bench", "nano", "--out", "b.json", option, value) == 2
    assert f"expected numbers for {option}" in capsys.readouterr().err
    assert not calls


def test_eval_options(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    calls = _recorded(monkeypatch, evaluation, "evaluate", {"j_and_f": 50.5, "j": 50, "f": 51})
    needed = ["eval", "--bundle", "nano", "--dataset", "davis", "--root", "DAVIS", "--out", "e.json"]
    assert _call(*needed) == 0
    first, options = calls[-1]
    options.pop("progress")
    assert first == "nano"
    assert capsys.readouterr() == ("J&F 50.50 (J 50.00, F 51.00)\n", "working\n")
    assert options == {
        "dataset": "davis",
        "root": Path("DAVIS"),
        "split": None,
        "expressions": None,
        "backend": "onnxruntime",
        "prune": Prune(),
        "out": Path("e.json"),
        "submission": None,
        "videos": None,
        "processes": 1,
        "threads": None,
        "gpu": 0,
    }
    args = ["--split", "val", "--expressions", "x.json", "--prune", "router", "--keep", "0.05", "--video", "a", "--video", "b"]
    assert _call(*needed, *args, "--submission", "s", "--processes", "2", "--threads", "1", "--protect", "none") == 0
    options = calls[-1][1]
    assert (options["split"], options["expressions"], options["videos"]) == ("val", Path("x.json"), ["a", "b"])
    assert options["prune"] == Prune(policy=PrunePolicy.ROUTER, keep=0.05, protect=())
    assert (options["submission"], options["processes"], options["threads"]) == (Path("s"), 2, 1)


def test_report_prints_the_page(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    calls = _recorded(monkeypatch, report, "write_report", Path("r/index.html"))
    assert _call("report", "a.json", "b.json", "--out", "r") == 0
    assert calls == [([Path("a.json"), Path("b.json")], {"out": Path("r")})]
    assert capsys.readouterr().out == "r/index.html\n"
