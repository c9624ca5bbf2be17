"""The command `benchmarks/gpu_check.py`: what is recorded of steps however they end, what is repeated, and what each step is given."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from fastsam2.benchmarks import gpu_check, gpu_kernels, gpu_tracking
from fastsam2.benchmarks.gpu_kernels import SMALL
from tests.fake_gpu import FakeGpu

SCRIPTS = {
    "good": "found = {'ok': True, 'value': float('inf')}",
    "bad": "found = {'ok': False, 'value': 3}",
    "raises": "raise ValueError('no such engine')",
    "aborts": "import os; os.abort()",
    "skips": "found = {'skipped': 'not installed'}",
}


def scripted(ran: list[str]) -> Callable[[str, Path], Sequence[str]]:
    """Commands of steps that end in all ways; what runs is noted. A step called "... late" aborts when it has answered."""

    def command(step: str, report: Path) -> list[str]:
        ran.append(step)
        lines = [
            "import os",
            "from pathlib import Path",
            "from fastsam2.benchmarks.gpu_check import answer",
            "def work():",
            f"    print('working on {step}')",
            f"    {SCRIPTS[step.removesuffix(' late')]}",
            "    return found",
            f"code = answer(work, Path({str(report)!r}))",
            "os.abort()" if step.endswith(" late") else "raise SystemExit(code)",
        ]
        return [sys.executable, "-u", "-c", "\n".join(lines)]

    return command


def test_however_a_step_ends_it_is_saved_and_the_next_one_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, ran = tmp_path / "sub" / "check.json", list[str]()
    wanted = ["aborts", "raises", "bad", "good late", "skips", "good"]
    assert gpu_check.check(wanted, scripted(ran), out, timeout=120) == 1
    record = json.loads(out.read_text())
    entries = {entry["step"]: entry for entry in record["steps"]}
    assert list(entries) == ran == wanted and record["conditions"]["command"]
    assert {step: entry.get("error") for step, entry in entries.items()} == {
        "aborts": "ended by SIGABRT",
        "raises": "ValueError: no such engine",
        "bad": None,
        "good late": "ended by SIGABRT after its answer",
        "skips": None,
        "good": None,
    }
    assert [step for step, entry in entries.items() if entry["ok"]] == ["good"]
    assert entries["bad"]["result"] == {"value": 3} and entries["good"]["result"] == entries["good late"]["result"] == {"value": "inf"}
    assert entries["skips"]["ok"] is None and entries["skips"]["skipped"] == "not installed"
    assert "Traceback" in entries["raises"]["stderr_tail"]
    assert all(f"working on {step}" in entry["stderr_tail"] and entry["seconds"] > 0 for step, entry in entries.items())
    said = capsys.readouterr().out
    assert "raises: FAILED ValueError: no such engine" in said and "skips: skipped, not installed" in said and "good: ok" in said


def test_a_step_that_hangs_is_killed_with_all_it_started(tmp_path: Path) -> None:
    out = tmp_path / "check.json"
    code = "import subprocess, time; print(subprocess.Popen(['sleep', '300']).pid, flush=True); time.sleep(300)"
    assert gpu_check.check(["hangs"], lambda step, report: [sys.executable, "-c", code], out, timeout=3) == 1
    assert gpu_check.check(["good"], scripted([]), out, timeout=120) == 0
    hung, good = json.loads(out.read_text())["steps"]
    assert hung["error"] == "no answer within 3 s" and not hung["ok"] and 3 <= hung["seconds"] < 60 and good["ok"]
    assert not is_running(int(hung["stderr_tail"]))


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{process}/stat")  # whoever inherited it may not have taken note of its end
    return not (status.is_file() and status.read_text().rsplit(")", 1)[1].split()[0] == "Z")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing tells a process that its parent is gone")
def test_steps_end_with_the_command_and_are_not_begun_again(tmp_path: Path) -> None:
    out, note = tmp_path / "check.json", tmp_path / "pid"
    step = f"""
import os, time
from pathlib import Path
from fastsam2.benchmarks.gpu_check import end_with_parent
end_with_parent()
Path({str(note)!r}).write_text(f"{{os.getpid()}} ")
time.sleep(600)
"""
    caller = f"""
import sys
from pathlib import Path
from fastsam2.benchmarks.gpu_check import check
check(["slow"], lambda *_: [sys.executable, "-c", {step!r}], Path({str(out)!r}), timeout=600)
"""
    process = subprocess.Popen([sys.executable, "-c", caller])
    wait_until(lambda: note.is_file() and note.read_text().endswith(" "))
    process.kill()
    process.wait()
    wait_until(lambda: not is_running(int(note.read_text())))
    ran: list[str] = []
    assert gpu_check.check(["slow"], scripted(ran), out, timeout=10) == 1
    assert ran == [] and gpu_check.read_record(out)["steps"][0]["error"] == "cut off: it was begun and there is no answer"


def wait_until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.1)


def test_what_has_an_answer_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, ran = tmp_path / "check.json", list[str]()
    gpu_check.check(["good", "bad"], scripted(ran), out, timeout=120)
    assert gpu_check.check(["good", "bad", "skips"], scripted(ran), out, timeout=120) == 1
    assert ran == ["good", "bad", "skips"]
    monkeypatch.setitem(SCRIPTS, "bad", SCRIPTS["good"])
    assert gpu_check.check(["good", "bad"], scripted(ran), out, timeout=120, again=True) == 0
    assert ran[3:] == ["bad"]
    assert [entry["step"] for entry in json.loads(out.read_text())["steps"]] == ["good", "bad", "skips"]


def test_steps_are_in_the_order_of_their_worth() -> None:
    names = gpu_check.steps(["nano", "tiny"], ["tensorrt-rtx", "onnxruntime-cuda", "onnxruntime"])
    assert names[:5] == [
        "gpu",
        "engines:nano:tensorrt-rtx",
        "build:nano:tensorrt-rtx",
        "engines:tiny:tensorrt-rtx",
        "build:tiny:tensorrt-rtx",
    ]
    assert names[5:10] == ["kernels", "kernels:memcheck", "kernels:racecheck", "reference:nano", "reference:tiny"]
    assert names[10:14] == [f"masks:{bundle}:{backend}" for bundle in ("nano", "tiny") for backend in ("tensorrt-rtx", "onnxruntime-cuda")]
    assert names[14:] == [
        f"time:{bundle}:{backend}" for bundle in ("nano", "tiny") for backend in ("tensorrt-rtx", "onnxruntime-cuda", "onnxruntime")
    ]


def test_the_command_where_there_is_no_gpu(bundle_micro: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that need a GPU say so; the CPU's answers are there for a machine that has one."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    out = tmp_path / "check.json"
    options = ["--out", str(out), "--bundles", str(bundle_micro), "--backends", "onnxruntime-cuda", "--frames", "2", "--timeout", "120"]
    assert gpu_check.main([*options, "--only", "gpu", "kernels", "reference", "masks:micro"]) == 1
    entries = {entry["step"]: entry for entry in json.loads(out.read_text())["steps"]}
    assert list(entries) == ["gpu", "kernels", "kernels:memcheck", "kernels:racecheck", "reference:micro", "masks:micro:onnxruntime-cuda"]
    assert entries["reference:micro"]["ok"] and len(list((tmp_path / "check.work").glob("micro-*.npz"))) == 2
    for step in ("gpu", "kernels", "masks:micro:onnxruntime-cuda"):
        assert entries[step]["ok"] is False and entries[step]["error"].startswith("BackendError: expected")
    assert "nvidia-smi" in entries["gpu"]["stderr_tail"]
    for arguments in ([*options, "--only", "kernel"], ["--out", str(out), "--bundles", "a/x", "b/x"]):
        with pytest.raises(SystemExit):
            gpu_check.main(arguments)


def test_engines_built_here_are_those_that_track(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(gpu_tracking, "compare_masks", lambda *args, **options: given.append(options["engines"]) or {"ok": True})
    monkeypatch.setattr(gpu_tracking, "time_tracker", lambda bundle, *args, **options: given.append(bundle) or {"ok": True})
    out = tmp_path / "check.json"
    args = gpu_check._parser().parse_args(["--out", str(out), "--bundles", "b/nano"])
    built = {"step": "build:nano:tensorrt-rtx", "ok": False, "result": {"bundle": "copy"}}
    for steps in ([], [{"step": "build:nano:tensorrt-rtx", "ok": False, "error": "no"}], [built]):
        gpu_check.write_json(out, {"conditions": {}, "steps": steps})
        gpu_check.run_step("masks:nano:tensorrt-rtx", args)
        gpu_check.run_step("time:nano:tensorrt-rtx", args)
    assert given == [None, "b/nano", None, "b/nano", Path("copy"), Path("copy")]


def test_facts_of_the_gpu(capfd: pytest.CaptureFixture[str]) -> None:
    gpu = FakeGpu()
    facts = gpu_check.gpu_facts(lambda: gpu)
    assert facts["ok"] and (facts["name"], facts["compute_capability"], facts["memory_total"]) == ("FAKE GPU", "9.0", 1 << 34)
    assert facts["onnxruntime"] and facts["commit"] is not None and "CPUExecutionProvider" in facts["providers"]
    assert gpu.calls[-1] == ("close", 0)


SANITIZER = """#!/bin/sh
echo "========= COMPUTE-SANITIZER $2"
shift 4
"$@"
status=$?
echo "========= ERROR SUMMARY: {errors} errors"
[ {errors} = 0 ] || exit 99
exit $status
"""


@pytest.mark.parametrize(("step", "errors", "ok"), [("good", 0, True), ("good", 2, False), ("bad", 0, False), ("aborts", 0, False)])
def test_under_the_sanitizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, errors: int, ok: bool) -> None:
    program = tmp_path / "compute-sanitizer"
    program.write_text(SANITIZER.format(errors=errors))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = gpu_check.sanitized("racecheck", lambda report: scripted([])(step, report))
    assert found["ok"] is ok and (found["answer"] is None) == (step == "aborts")
    assert found["summary"] == ["========= COMPUTE-SANITIZER racecheck", f"========= ERROR SUMMARY: {errors} errors"]
    monkeypatch.setenv("PATH", "")
    assert set(gpu_check.sanitized("racecheck", lambda report: [])) == {"skipped"}


def test_the_sanitized_step_is_small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(gpu_kernels, "check_kernels", lambda **options: asked.append(options) or {"ok": True})
    monkeypatch.setattr(gpu_check, "sanitized", lambda tool, command: asked.append((tool, command(tmp_path)[-4:])) or {"ok": True})
    args = gpu_check._parser().parse_args(["--out", str(tmp_path / "check.json")])
    for step in ("kernels", "kernels:small", "kernels:memcheck"):
        assert gpu_check.run_step(step, args)["ok"]
    assert asked == [{}, {"scales": SMALL, "repeats": 0}, ("memcheck", ["--step", "kernels:small", "--report", str(tmp_path)])]
