"""Peak memory and start-up of one side, each in a process of its own; both sides in the same way.

    Request, as JSON ─► python -m fastsam2.benchmarks.bench_memory ─► {"start_up_ms", "peaks": {objects: {peak_bytes, device_peak_bytes}}}

The memory is filled with 8 frames of one object, which is then copied; objects only grow in number, so one process serves all counts.
Start-up is from opening the weights to the mask of the first frame; importing packages is not in it.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastsam2.benchmarks.bench_frames import Box
from fastsam2.benchmarks.official_weights import Weights, build_official
from fastsam2.benchmarks.sides import COMPILED, OURS, Official, Ours, Side, multiply
from fastsam2.builtin import PACKAGE
from fastsam2.bundle import read_manifest
from fastsam2.config import Prune
from fastsam2.enums import PrunePolicy
from fastsam2.errors import BackendError, FastSam2Error, expected
from fastsam2.runtime.gpu.driver import Gpu, PyCudaGpu
from fastsam2.runtime.loaded import load
from fastsam2.runtime.timing import StageTimer

FILL_FRAMES = 8  # 7 are read, and the newest is written
FRAMES_EACH = 2  # with each number of objects


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One process.

    Attributes:
        side: ours, official or official-compiled.
        bundle: folder.
        backend: of ours, none of those that choose.
        threads: of one operator.
        gpu: index of the GPU that runs this side; None for the CPU.
        half: the official side in bfloat16 autocast.
        cuda_graphs: of ours.
        policy, keep: of ours.
        model, checkpoint: of the official side.
        files: frames; used over and over if there are too few.
        box: on the first frame.
        frames: of the whole clip.
        objects: ascending.
    """

    side: str
    bundle: str
    backend: str = ""
    threads: int
    gpu: int | None
    half: bool = False
    cuda_graphs: bool = False
    policy: str = PrunePolicy.DENSE.value
    keep: float | None = None
    model: str = ""
    checkpoint: str = ""
    files: Sequence[str]
    box: Box
    frames: int
    objects: Sequence[int]


def peak_memory(request: Request) -> dict[str, Any]:
    """Runs a request in a new process.

    Returns:
        "start_up_ms", and "peaks": number of objects -> "peak_bytes", and on a GPU "device_peak_bytes".

    Raises:
        BackendError: if the process fails.
    """
    path = os.pathsep.join([str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "fastsam2.benchmarks.bench_memory"],
        input=json.dumps(asdict(request)),
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "nothing")
        what = f"a process to measure the memory of {request.side} with {list(request.objects)} objects"
        todo = "If memory ran out, ask for fewer objects"
        raise BackendError(expected(what, f"exit status {done.returncode}: {last}", todo))
    answer = json.loads(done.stdout.splitlines()[-1])
    return {"start_up_ms": answer["start_up_ms"], "peaks": {int(k): v for k, v in answer["peaks"].items()}}


def answer(request: Request, open_gpu: Callable[[int], Gpu] = PyCudaGpu) -> dict[str, Any]:
    """What a request asks for, of this process."""
    if request.side != OURS:
        torch: Any = importlib.import_module("torch")
        torch.set_num_threads(request.threads)
        importlib.import_module("sam2.sam2_video_predictor")
    gpu = None if request.gpu is None else open_gpu(request.gpu)
    free_before = 0 if gpu is None else gpu.memory()[0]
    files = [Path(file) for file in request.files]
    timer = StageTimer()
    with timer.stage("start_up"):
        side = _open_side(request, files[0])
        side.prompt(side.decode(files[0]), request.box)
    frames = iter(range(1, FILL_FRAMES + FRAMES_EACH * len(request.objects)))
    _advance(side, files, [next(frames) for _ in range(FILL_FRAMES - 1)])
    peaks, present = {}, 1
    for objects in request.objects:
        multiply(side, objects, present=present)
        present = objects
        _advance(side, files, [next(frames) for _ in range(FRAMES_EACH)])
        peaks[objects] = {"peak_bytes": peak_bytes()}
        if gpu is not None:
            peaks[objects]["device_peak_bytes"] = free_before - gpu.memory()[0]
    return {"start_up_ms": round(timer.samples_ms("start_up")[0], 3), "peaks": peaks}


def peak_bytes() -> int:
    """Most resident memory of this process so far."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux: there ru_maxrss starts at the size of the process that started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _open_side(request: Request, first: Path) -> Side:
    if request.side == OURS:
        gpu = request.gpu or 0
        loaded = load(Path(request.bundle), backend=request.backend, threads=request.threads, gpu=gpu, cuda_graphs=request.cuda_graphs)
        return Ours(loaded, Prune(policy=PrunePolicy(request.policy), keep=request.keep))
    module = build_official(Weights(request.model, request.checkpoint), read_manifest(Path(request.bundle)))
    device = "cpu" if request.gpu is None else f"cuda:{request.gpu}"
    return Official(module, first, frames=request.frames, device=device, half=request.half, compiled=request.side == COMPILED)


def _advance(side: Side, files: Sequence[Path], frames: Sequence[int]) -> None:
    for t in frames:
        side.step(side.decode(files[t % len(files)]))


def main() -> int:
    """Answer the request on stdin; the answer is the last line of stdout."""
    given: dict[str, Any] = json.load(sys.stdin)
    request = Request(**given)
    try:
        print("\n" + json.dumps(answer(request)))
    except FastSam2Error as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
