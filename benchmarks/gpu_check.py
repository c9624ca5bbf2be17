"""What works on a machine with an NVIDIA GPU, and how fast, in one command that may be interrupted at any time.

    python -m benchmarks.gpu_check --out gpu_check.json --bundles build/nano build/tiny

| step | answers |
|---|---|
| gpu | which GPU, driver and versions |
| engines:BUNDLE:FLAVOR | does TensorRT accept, load and run the stored engines, and with which difference to ONNX Runtime |
| build:BUNDLE:FLAVOR | the same for engines built on this GPU, into a copy of the bundle |
| kernels | is every operation between the engines right, inside its memory, repeatable; milliseconds |
| kernels:memcheck, kernels:racecheck | the same at small sizes under compute-sanitizer |
| reference:BUNDLE | nothing of the GPU: what the CPU says, for masks |
| masks:BUNDLE:BACKEND | do masks of the sample clip agree with the CPU's |
| time:BUNDLE:BACKEND | milliseconds of a step and of each graph |

Each step runs in a process of its own, which ends with this one, and is saved when it ends, however it ends: "ok" and "result", or "error",
or "skipped"; with what the process wrote last. Called again, the command goes on with the steps that were not begun; `--again` also repeats
those that failed or were cut off. Where the command itself has a time limit, `--timeout` has to be well below it.
Copies with engines and the CPU's answers are kept in a folder beside OUT.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastsam2 import files
from fastsam2.benchmarks.conditions import conditions
from fastsam2.enums import BackendName, Flavor
from fastsam2.runtime.backends.onnxruntime import usable_cores
from fastsam2.runtime.gpu.driver import Gpu, PyCudaGpu

MODULE = "benchmarks.gpu_check"
GPU_BACKENDS = (BackendName.TENSORRT_RTX, BackendName.TENSORRT, BackendName.ONNXRUNTIME_CUDA)
FLAVORS = tuple(flavor.value for flavor in Flavor)
PACKAGES = (
    *("numpy", "pillow", "onnx", "onnxruntime", "onnxruntime-gpu", "pycuda", "cuda-bindings", "nvidia-cuda-nvrtc"),
    *("nvidia-cuda-nvrtc-cu12", "tensorrt", "tensorrt-rtx-cu13"),
)
_TAIL_CHARACTERS = 6000


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0 if every step that was asked for is answered with ok, or was skipped."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if args.report is not None:
        end_with_parent()
        return answer(lambda: run_step(args.step, args), args.report)
    labels = [Path(bundle).name for bundle in args.bundles]
    if len(set(labels)) < len(labels):
        parser.error(f"bundles need different names, got {labels}")
    wanted = [step for step in steps(labels, args.backends) if not args.only or any(_is(step, only) for only in args.only)]
    if not wanted:
        parser.error(f"--only names no step of {steps(labels, args.backends)}")
    return check(wanted, lambda step, report: _command(args, step, report), args.out, timeout=args.timeout, again=args.again)


def steps(bundles: Sequence[str], backends: Sequence[str]) -> list[str]:
    """Names of all steps, in order.

    Args:
        bundles: names.
        backends: names.
    """
    flavors = [backend for backend in backends if backend in FLAVORS]
    gpu = [backend for backend in backends if backend != BackendName.ONNXRUNTIME.value]
    return [
        "gpu",
        *(f"{kind}:{bundle}:{flavor}" for bundle in bundles for flavor in flavors for kind in ("engines", "build")),
        "kernels",
        "kernels:memcheck",
        "kernels:racecheck",
        *(f"reference:{bundle}" for bundle in bundles),
        *(f"masks:{bundle}:{backend}" for bundle in bundles for backend in gpu),
        *(f"time:{bundle}:{backend}" for bundle in bundles for backend in backends),
    ]


def check(wanted: Sequence[str], command: Callable[[str, Path], Sequence[str]], out: Path, *, timeout: float, again: bool = False) -> int:
    """Runs steps that have no answer yet, one after the other, and saves each answer.

    Args:
        wanted: names of steps.
        command: step, file for its answer -> what runs it.
        out: JSON file of all answers.
        timeout: of one step, seconds.
        again: also run steps whose answer is not ok.

    Returns:
        0 if all of `wanted` are ok or skipped.
    """
    record = read_record(out)
    record["conditions"] = conditions(usable_cores(), MODULE, PACKAGES)
    entries: dict[str, dict[str, Any]] = {entry["step"]: entry for entry in record["steps"]}

    def note(entry: dict[str, Any]) -> None:
        entries[entry["step"]] = entry
        record["steps"] = list(entries.values())
        write_json(out, record)

    for step in wanted:
        if step in entries and (entries[step]["ok"] or not again):
            continue
        note({"step": step, "ok": False, "error": "cut off: it was begun and there is no answer", "seconds": 0.0})
        note({**ask(step, command, timeout), "commit": record["conditions"]["commit"]})
        print(f"{step}: {_summary(entries[step])} ({entries[step]['seconds']:.1f} s)", flush=True)
    return 0 if all(entries[step]["ok"] or "skipped" in entries[step] for step in wanted) else 1


def ask(step: str, command: Callable[[str, Path], Sequence[str]], timeout: float) -> dict[str, Any]:
    """Runs one step in a process of its own.

    Args:
        step: its name.
        command: as in `check`.
        timeout: after which the process and those it started are killed, seconds.

    Returns:
        What `answer` wrote, or "ok" False and "error"; with "step", "seconds", "command", and "stderr_tail", which has stdout too.
    """
    with tempfile.TemporaryDirectory(prefix="fastsam2-gpu-check-") as scratch:
        report = Path(scratch) / "answer.json"
        words = list(command(step, report))
        start = time.perf_counter()
        with (Path(scratch) / "log").open("w+b") as log:
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
            try:
                status = process.wait(timeout)
                ended = _ending(status)
            except subprocess.TimeoutExpired:
                ended = f"no answer within {timeout:g} s"
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            log.seek(max(0, log.seek(0, os.SEEK_END) - 4 * _TAIL_CHARACTERS))
            tail = log.read().decode(errors="replace")[-_TAIL_CHARACTERS:]
        entry: dict[str, Any] = {"step": step, "ok": False}
        if report.is_file():
            entry |= json.loads(report.read_text(encoding="utf-8"))
            if ended and entry["ok"] is not False:
                entry |= {"ok": False, "error": f"{ended} after its answer"}
        else:
            entry["error"] = ended or "it ended without an answer"
        return {**entry, "seconds": time.perf_counter() - start, "command": shlex.join(words), "stderr_tail": tail}


def answer(work: Callable[[], dict[str, Any]], report: Path) -> int:
    """Writes what a step found to `report`; what runs in the process that `ask` starts.

    Args:
        work: returns "ok" and results, or "skipped" with the reason.
        report: JSON file: "ok" and "result"; "ok" null and "skipped"; or "ok" false and "error".

    Returns:
        Exit status.
    """
    try:
        found = work()
        entry = {"ok": None, **found} if "skipped" in found else {"ok": bool(found.pop("ok")), "result": found}
    except Exception as error:  # whatever it is, it is the answer
        traceback.print_exc()
        entry = {"ok": False, "error": f"{type(error).__name__}: {error}"}
    write_json(report, entry)
    return 1 if entry["ok"] is False else 0


def run_step(step: str, args: argparse.Namespace) -> dict[str, Any]:
    """One step, in this process. Each kind imports what it needs, so that what is missing fails only where it is needed."""
    kind, *parts = step.split(":")
    bundles = {Path(bundle).name: bundle for bundle in args.bundles}
    work = args.out.with_suffix(".work")
    if kind == "gpu":
        return gpu_facts()
    if kind == "kernels":
        from fastsam2.benchmarks.gpu_kernels import SMALL, check_kernels

        if not parts:
            return check_kernels()
        if parts[0] == "small":
            return check_kernels(scales=SMALL, repeats=0)
        return sanitized(parts[0], lambda report: _command(args, "kernels:small", report))
    bundle, label = bundles[parts[0]], parts[0]
    if kind in ("engines", "build"):
        from fastsam2.benchmarks.gpu_engines import build_and_check, check_engines

        flavor = Flavor(parts[1])
        return check_engines(bundle, flavor) if kind == "engines" else build_and_check(bundle, flavor, work / f"{label}-{flavor.value}")
    from fastsam2.benchmarks.gpu_tracking import compare_masks, make_references, time_tracker

    if kind == "reference":
        return make_references(bundle, frames=args.frames, store=work)
    backend = BackendName(parts[1])
    built = read_record(args.out)["steps"]
    name = f"build:{label}:{backend.value}"
    engines = next((Path(entry["result"]["bundle"]) for entry in built if entry["step"] == name and "result" in entry), None)
    if kind == "masks":
        return compare_masks(bundle, backend, frames=args.frames, store=work, engines=engines)
    return time_tracker(engines or bundle, backend, frames=args.frames, objects=args.objects)


def gpu_facts(open_gpu: Callable[[], Gpu] = PyCudaGpu) -> dict[str, Any]:
    """The GPU, its memory in bytes, the driver and what is installed; packages that are there but broken say why.

    Args:
        open_gpu: makes the GPU.

    Raises:
        BackendError: if there is none, or no pycuda; nvidia-smi's answer is on stderr then.
    """
    import onnxruntime as ort

    smi = _nvidia_smi()
    print(f"nvidia-smi: {smi}", file=sys.stderr, flush=True)
    gpu = open_gpu()
    try:
        free, total = gpu.memory()
        facts = {"name": gpu.name, "compute_capability": gpu.capability, "memory_free": free, "memory_total": total}
    finally:
        gpu.close()
    providers = ort.get_available_providers()
    return {"ok": True, **facts, "nvidia_smi": smi, "providers": providers, **conditions(usable_cores(), MODULE, PACKAGES)}


def sanitized(tool: str, command: Callable[[Path], Sequence[str]]) -> dict[str, Any]:
    """Runs a step under compute-sanitizer.

    Args:
        tool: memcheck or racecheck.
        command: file for the step's answer -> what runs it.

    Returns:
        "ok" (the tool found nothing, and the step is ok), "summary" (the last lines of the tool) and "answer" (of the step, None where it
        gave none); or "skipped" where the program is not on PATH.
    """
    program = shutil.which("compute-sanitizer")
    if program is None:
        return {"skipped": "compute-sanitizer is not installed, or not on PATH"}
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "answer.json"
        words = [program, "--tool", tool, "--error-exitcode", "99", *command(report)]
        done = subprocess.run(
            words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False, preexec_fn=end_with_parent
        )
        print(done.stdout[-_TAIL_CHARACTERS:], file=sys.stderr)
        inner = json.loads(report.read_text(encoding="utf-8")) if report.is_file() else None
    summary = [line for line in done.stdout.splitlines() if line.startswith("=========")][-20:]
    return {"ok": done.returncode == 0 and inner is not None, "exit_status": done.returncode, "summary": summary, "answer": inner}


def end_with_parent() -> None:
    """On Linux, end this process when the one that started it ends: a step whose caller was killed would keep the GPU."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def read_record(out: Path) -> dict[str, Any]:
    """What was saved so far; empty where there is no file."""
    if not out.exists():
        return {"conditions": {}, "steps": []}
    record: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return record


def write_json(file: Path, value: Any) -> None:
    """Writes a file in one step; numbers that JSON lacks become text."""
    files.write_json(file, _plain(value))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _ending(status: int) -> str:
    """How a process ended; empty for success and for a step that says itself what failed."""
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    return "" if status in (0, 1) else f"ended with status {status}"


def _summary(entry: dict[str, Any]) -> str:
    if "skipped" in entry:
        return f"skipped, {entry['skipped']}"
    return "ok" if entry["ok"] else f"FAILED {entry.get('error', 'see its result')[:300]}"


def _is(step: str, only: str) -> bool:
    return step == only or step.startswith(f"{only}:")


def _nvidia_smi() -> str:
    """Name, driver, memory, clocks and power limit as nvidia-smi says them, or why it does not."""
    fields = "name,driver_version,memory.total,clocks.max.sm,clocks.max.memory,power.limit,persistence_mode,mig.mode.current"
    try:
        words = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv"]
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{type(error).__name__}: {error}"
    return done.stdout.strip()


def _command(args: argparse.Namespace, step: str, report: Path) -> list[str]:
    """What answers one step of the same call."""
    options = ["--out", args.out, "--bundles", *args.bundles, "--backends", *args.backends]
    numbers = ["--frames", args.frames, "--objects", args.objects, "--step", step, "--report", report]
    return [sys.executable, "-X", "faulthandler", "-m", f"fastsam2.{MODULE}", *map(str, [*options, *numbers])]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file of all answers")
    parser.add_argument("--bundles", nargs="+", default=[], metavar="BUNDLE", help="folders, or names of built-in bundles")
    names = [backend.value for backend in (*GPU_BACKENDS, BackendName.ONNXRUNTIME)]
    parser.add_argument("--backends", nargs="+", choices=names, default=[backend.value for backend in GPU_BACKENDS], help="to check")
    parser.add_argument("--frames", type=int, default=30, help="of the clip, for masks and times")
    parser.add_argument("--objects", type=int, default=2, help="the larger number of objects that is timed")
    parser.add_argument("--only", nargs="+", default=[], metavar="STEP", help="steps, or kinds of steps")
    parser.add_argument("--timeout", type=float, default=600.0, help="of one step, seconds")
    parser.add_argument("--again", action="store_true", help="repeat steps that failed")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
