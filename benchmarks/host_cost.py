"""What the GPU loop itself costs the host: one step where the GPU, its driver and the engines take no time at all.

    python -m benchmarks.host_cost --bundle nano --objects 1 4 16 --keep 1.0 0.05 --out benchmarks/results/gpu_host_cost.json

tracker ─ GpuBackend ─┬ memory, copies: addresses are numbers, nothing is copied
                      ├ kernels: counted
                      └ engines: counted

A step enqueues and then waits once, so this time passes beside the GPU's work unless the GPU is faster than that. What launches, copies
and engines cost in the driver comes on top; their number is in the record. Needs no GPU; masks mean nothing here.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastsam2.benchmarks.bench import WARM_UP_FRAMES
from fastsam2.benchmarks.conditions import conditions
from fastsam2.builtin import bundle_path
from fastsam2.bundle import Manifest, read_manifest
from fastsam2.config import Prune
from fastsam2.enums import ExportTarget, GraphRole, PrunePolicy
from fastsam2.errors import FastSam2Error
from fastsam2.files import write_json
from fastsam2.runtime.gpu.backend import GpuBackend
from fastsam2.runtime.gpu.engines import DeviceTensor
from fastsam2.runtime.tracker import Tracker

VIDEO_SIZE = (720, 1280)
_FIRST_ADDRESS = 1 << 40
_ALIGNMENT = 512


class NoGpu:
    """See `Gpu`: hands out addresses behind which there is nothing, and counts copies.

    Attributes:
        copies: enqueued so far.
    """

    index, name, capability, stream_handle, stream = 0, "none", "9.0", 0, None

    def __init__(self) -> None:
        self.copies = 0
        self._next = _FIRST_ADDRESS

    def allocate(self, nbytes: int) -> int:
        """See `Gpu.allocate`."""
        address = self._next
        self._next += -(-nbytes // _ALIGNMENT) * _ALIGNMENT
        return address

    def release(self, address: int) -> None:
        """See `Gpu.release`; addresses are not used again."""

    def pinned(self, nbytes: int) -> npt.NDArray[np.uint8]:
        """See `Gpu.pinned`; ordinary memory, which costs the same to write."""
        return np.zeros(nbytes, np.uint8)

    def upload(self, address: int, source: npt.NDArray[Any]) -> None:
        """See `Gpu.upload`."""
        self.copies += 1

    def upload_beside(self, address: int, source: npt.NDArray[Any]) -> None:
        """See `Gpu.upload_beside`."""
        self.copies += 1

    def download(self, target: npt.NDArray[Any], address: int) -> None:
        """See `Gpu.download`."""
        self.copies += 1

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """See `Gpu.copy`."""
        self.copies += 1

    def fill_zero(self, address: int, nbytes: int) -> None:
        """See `Gpu.fill_zero`."""
        self.copies += 1

    def synchronize(self) -> None:
        """See `Gpu.synchronize`; there is nothing to wait for."""

    def memory(self) -> tuple[int, int]:
        """See `Gpu.memory`."""
        return 0, 0

    def activate(self) -> None:
        """See `Gpu.activate`."""

    def close(self) -> None:
        """See `Gpu.close`."""


class NoDriver:
    """See `kernels.drivers.Driver` and `Prebuilt`: counts launches.

    Attributes:
        launches: enqueued so far.
    """

    def __init__(self) -> None:
        self.launches = 0

    def compute_capability(self) -> tuple[int, int]:
        """See `Driver.compute_capability`."""
        return 9, 0

    def load(self, image: bytes, entry: str, parameter_bytes: int) -> str:
        """See `Driver.load`; not called, as `find` is there."""
        return entry

    def find(self, entry: str, parameter_bytes: int) -> str:
        """See `Prebuilt.find`."""
        return entry

    def allow_shared(self, function: str, shared_bytes: int) -> None:
        """See `Driver.allow_shared`."""

    def launch(
        self, function: str, grid: tuple[int, int], block: tuple[int, int, int], shared_bytes: int, stream: None, parameters: bytes
    ) -> None:
        """See `Driver.launch`."""
        self.launches += 1


class NoEngines:
    """See `Engines`: every graph is there and writes nothing.

    Args:
        most: objects in one run, as engines are built for.

    Attributes:
        runs: enqueued so far.
    """

    name, target = "none", ExportTarget.TENSORRT

    def __init__(self, most: int) -> None:
        self.runs, self._most = 0, most

    def max_objects(self, role: GraphRole) -> int | None:
        """See `Engines.max_objects`."""
        return self._most

    def max_prompt_frames(self) -> int | None:
        """See `Engines.max_prompt_frames`."""
        return None

    def has(self, role: GraphRole) -> bool:
        """See `Engines.has`."""
        return True

    def enqueue(self, role: GraphRole, inputs: Mapping[str, DeviceTensor], outputs: Mapping[str, DeviceTensor]) -> None:
        """See `Engines.enqueue`."""
        self.runs += 1

    def cuda_graphs(self) -> None:
        """See `Engines.cuda_graphs`."""

    def activation_bytes(self) -> int:
        """See `Engines.activation_bytes`."""
        return 0

    def close(self) -> None:
        """See `Engines.close`."""


def host_cost(manifest: Manifest, *, objects: int, keep: float, max_objects: int, frames: int) -> dict[str, Any]:
    """One case.

    Args:
        manifest: of the bundle whose sizes are taken.
        objects: tracked.
        keep: share of rows of the policy `mask`; 1 keeps all.
        max_objects: in one run of an engine.
        frames: timed, after memory and pools are full.

    Returns:
        "objects", "keep", "max_objects", "host_ms" (median of a step, the copy of masks to the caller included), "host_ms_p90", and of one
        step "launches", "copies" and "engine_runs".
    """
    gpu, driver, engines = NoGpu(), NoDriver(), NoEngines(max_objects)
    backend = GpuBackend(gpu, engines, manifest.model, driver=driver)
    prune = Prune() if keep == 1 else Prune(policy=PrunePolicy.MASK, keep=keep)
    tracker = Tracker(backend, manifest.model, prune=prune)
    frame = np.zeros((*VIDEO_SIZE, 3), np.uint8)
    tracker.step(frame)
    for object_id in range(1, objects + 1):
        tracker.add(object_id, box=(100, 100, 300, 300))
    for _ in range(WARM_UP_FRAMES):
        tracker.step(frame)
    gc.collect()
    before = driver.launches, gpu.copies, engines.runs
    taken = np.empty(frames)
    for t in range(frames):
        start = time.perf_counter()
        tracker.step(frame)
        taken[t] = 1e3 * (time.perf_counter() - start)
    counted = [round((now - then) / frames, 1) for now, then in zip((driver.launches, gpu.copies, engines.runs), before, strict=True)]
    return {
        "objects": objects,
        "keep": keep,
        "max_objects": max_objects,
        "host_ms": round(float(np.median(taken)), 3),
        "host_ms_p90": round(float(np.percentile(taken, 90)), 3),
        **dict(zip(("launches", "copies", "engine_runs"), counted, strict=True)),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="nano", help="folder, or name of a built-in bundle, whose sizes are taken")
    parser.add_argument("--objects", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--keep", type=float, nargs="+", default=[1.0, 0.05])
    parser.add_argument("--max-objects", type=int, default=4, help="in one run of an engine, as in `fastsam2 build`")
    parser.add_argument("--frames", type=int, default=200, help="timed frames")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    try:
        manifest = read_manifest(bundle_path(args.bundle))
    except FastSam2Error as error:
        parser.exit(2, f"error: {error}\n")
    cases = []
    for objects in args.objects:
        for keep in args.keep:
            cases.append(host_cost(manifest, objects=objects, keep=keep, max_objects=args.max_objects, frames=args.frames))
            print(cases[-1], flush=True)
    sizes = {"model": manifest.model.name, "image_size": manifest.model.image_size, "video_size": list(VIDEO_SIZE)}
    write_json(args.out, {**conditions(1, "benchmarks.host_cost", ("numpy",)), **sizes, "cases": cases})


if __name__ == "__main__":
    main()
