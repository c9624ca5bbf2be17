"""The tracker on a GPU: its masks against those of ONNX Runtime on the CPU, and milliseconds of a step and of its graphs.

sample clip, its boxes ─ tracker on the backend ─► masks, logits ─┐
                       └ tracker on the CPU ─► stored once ───────┴─► mask IoU of each frame, largest difference of logits
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from itertools import cycle, islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from fastsam2.benchmarks.score import jaccard
from fastsam2.benchmarks.settle import QUIET_S, settle
from fastsam2.builtin import bundle_path, sample_path
from fastsam2.bundle import MANIFEST_NAME, sha256_of
from fastsam2.config import Prune
from fastsam2.contracts import NO_OBJECT_LOGIT
from fastsam2.enums import BackendName, GraphRole, PrunePolicy
from fastsam2.files import write_whole
from fastsam2.runtime.host_device import device_of
from fastsam2.runtime.loaded import LoadedBundle, load
from fastsam2.runtime.result import Result
from fastsam2.runtime.timing import StageTimer
from fastsam2.runtime.tracker import Tracker
from fastsam2.runtime.video import open_video

Frame = npt.NDArray[np.uint8]
Box = tuple[float, float, float, float]
OpenBundle = Callable[[Path, BackendName], LoadedBundle]

SAMPLE = "hard_000"
PRUNES = MappingProxyType({"dense": Prune(), "mask 0.05": Prune(policy=PrunePolicy.MASK, keep=0.05)})
# Mean over frames and objects. float32 in another order of sums moves some border pixels; half precision does so in every frame, and what a
# tracker remembers of them goes on from frame to frame.
LEAST_IOU = MappingProxyType({BackendName.ONNXRUNTIME_CUDA: 0.99, BackendName.TENSORRT_RTX: 0.95, BackendName.TENSORRT: 0.95})
WARM_FRAMES = 20  # the bank is full after 7, the pointers after 16


def open_bundle(folder: Path, backend: BackendName) -> LoadedBundle:
    """A bundle as a user opens it."""
    return load(folder, backend=backend.value)


def reference(
    bundle: Path | str, prune: str, *, frames: int, store: Path, open_bundle: OpenBundle = open_bundle
) -> dict[str, npt.NDArray[Any]]:
    """Masks bool [B, H, W] and logits float32 [B, L, L] of each frame on the CPU, "masks_0", "logits_0", ...; worked out once.

    Args:
        bundle: folder, or name of a built-in one.
        prune: key of PRUNES.
        frames: of the sample clip.
        store: folder of the answers; made where missing.
        open_bundle: opens it.
    """
    folder = bundle_path(bundle)
    name = f"{folder.name}-{sha256_of(folder / MANIFEST_NAME)[:12]}-{SAMPLE}-{frames}-{prune.replace(' ', '-')}.npz"
    if not (store / name).is_file():
        arrays: dict[str, npt.NDArray[Any]] = {}
        for t, result in enumerate(_tracked(open_bundle(folder, BackendName.ONNXRUNTIME), PRUNES[prune], frames)):
            arrays[f"masks_{t}"], arrays[f"logits_{t}"] = result.masks, result.low_res_logits
        packed = BytesIO()
        np.savez_compressed(packed, **arrays)  # type: ignore[arg-type]  # its stub takes allow_pickle for one of them
        write_whole(store / name, packed.getvalue())
    with np.load(store / name) as stored:
        return dict(stored)


def make_references(bundle: Path | str, *, frames: int, store: Path, open_bundle: OpenBundle = open_bundle) -> dict[str, Any]:
    """Works out what `compare_masks` compares with; needs no GPU.

    Args:
        bundle: as in `reference`.
        frames: as in `reference`.
        store: as in `reference`.
        open_bundle: as in `reference`.

    Returns:
        "ok" and, for each of PRUNES, the share of the pixels that masks cover.
    """
    covered = {}
    for prune in PRUNES:
        wanted = reference(bundle, prune, frames=frames, store=store, open_bundle=open_bundle)
        covered[prune] = float(np.mean([array.mean() for name, array in wanted.items() if name.startswith("masks_")]))
    return {"ok": True, "covered": covered}


def compare_masks(
    bundle: Path | str,
    backend: BackendName,
    *,
    frames: int,
    store: Path,
    engines: Path | None = None,
    open_bundle: OpenBundle = open_bundle,
) -> dict[str, Any]:
    """Tracks the sample clip on a backend, with each of PRUNES, against the CPU.

    Args:
        bundle: folder, or name of a built-in one.
        backend: under test.
        frames: of the clip.
        store: as in `reference`.
        engines: the bundle's copy to open instead, where engines were built.
        open_bundle: opens a bundle.

    Returns:
        "ok" (every mean IoU reaches LEAST_IOU), "device" (`LoadedBundle.device_facts` at the end), and for each of PRUNES "iou_mean" and
        "iou_min" over frames and objects, "iou" of each frame (the worst object), "logits" (largest difference / standard deviation, of
        objects that both see), "visible" (object frames that only one of the two sees), "covered" (share of the pixels in masks).

    Raises:
        BackendError: if the backend is not usable here.
        BundleError: if bundle or engines are not whole.
    """
    loaded = open_bundle(engines or bundle_path(bundle), backend)
    try:
        found: dict[str, Any] = {}
        for prune in PRUNES:
            wanted = reference(bundle, prune, frames=frames, store=store, open_bundle=open_bundle)
            found[prune] = agreement(list(_tracked(loaded, PRUNES[prune], frames)), wanted)
            print(f"{prune}: {json.dumps(found[prune])}", file=sys.stderr, flush=True)
        ok = all(entry["iou_mean"] >= LEAST_IOU[backend] for entry in found.values())
        return {"ok": ok, "bundle": str(loaded.folder), "device": loaded.device_facts(), **found}
    finally:
        loaded.close()


def agreement(results: list[Result], wanted: Mapping[str, npt.NDArray[Any]]) -> dict[str, Any]:
    """What `compare_masks` says of one clip."""
    ious, logits, unseen, covered = [], [0.0], 0, []
    for t, result in enumerate(results):
        masks, reference_logits = wanted[f"masks_{t}"], wanted[f"logits_{t}"]
        ious.append(np.array([jaccard(ours, theirs) for ours, theirs in zip(result.masks, masks, strict=True)]))
        covered.append(masks.mean())
        ours, theirs = ((x != NO_OBJECT_LOGIT).any(axis=(1, 2)) for x in (result.low_res_logits, reference_logits))
        unseen += int((ours != theirs).sum())
        for i in np.flatnonzero(ours & theirs):
            difference = np.abs(result.low_res_logits[i] - reference_logits[i]).max()
            logits.append(float(difference / max(float(reference_logits[i].std()), 1e-12)))
    each = np.concatenate(ious)
    return {
        "iou_mean": float(each.mean()),
        "iou_min": float(each.min()),
        "iou": [round(float(frame.min()), 4) for frame in ious],
        "logits": max(logits),
        "visible": unseen,
        "covered": float(np.mean(covered)),
    }


def time_tracker(
    bundle: Path | str,
    backend: BackendName,
    *,
    frames: int,
    objects: int,
    warm: int = WARM_FRAMES,
    quiet_s: float = QUIET_S,
    open_bundle: OpenBundle = open_bundle,
) -> dict[str, Any]:
    """Milliseconds of a step in the steady state, with one and with `objects` objects, for each of PRUNES.

    Args:
        bundle: folder, or name of a built-in one.
        backend: to time.
        frames: that are timed, of the sample clip, over and over.
        objects: prompted by the clip's boxes, over and over.
        warm: frames before them.
        quiet_s: on a GPU more frames pass until none was faster for so long, see `settle`.
        open_bundle: opens the bundle.

    Returns:
        "ok", "device", "note", and "cases": "objects", "prune", "step_ms" (a whole step without waits inside), "settled" (whether it had
        come to rest), and from a second pass "stages_ms" of each graph and "step_with_waits_ms"; each {"median", "p90"}.

    Raises:
        BackendError: if the backend is not usable here.
        BundleError: if bundle or engines are not whole.
    """
    loaded = open_bundle(bundle_path(bundle), backend)
    try:
        cases = []
        for count in sorted({1, objects}):
            for name, prune in PRUNES.items():
                whole = StageTimer()
                rest = quiet_s if hasattr(loaded.backend, "gpu") else 0.0
                settled = _timed(loaded.tracker(prune=prune), count, warm, frames, whole, rest)
                waiting = WaitingBackend(loaded.backend)
                staged = LoadedBundle(loaded.folder, loaded.manifest, waiting)
                _timed(staged.tracker(prune=prune), count, warm, frames, waiting.timer, 0.0)
                stages = waiting.timer.summary()
                entry = {"objects": count, "prune": name, "step_ms": whole.summary()["step"], "settled": settled}
                cases.append({**entry, "step_with_waits_ms": stages.pop("step"), "stages_ms": stages})
                print(json.dumps(cases[-1]), file=sys.stderr, flush=True)
        note = "step_ms is of whole steps, from frame to masks on the host; stages_ms waits for the GPU before and after each graph"
        return {"ok": True, "bundle": str(loaded.folder), "device": loaded.device_facts(), "note": note, "cases": cases}
    finally:
        loaded.close()


class WaitingBackend:
    """A backend that waits for its GPU before and after each graph; see `Backend`.

    Args:
        backend: runs the graphs.

    Attributes:
        timer: has a sample for each run.
    """

    def __init__(self, backend: Any) -> None:
        self.name, self.device = backend.name, device_of(backend)
        self.timer = StageTimer()
        self._backend = backend
        self._wait: Callable[[], None] = backend.gpu.synchronize if hasattr(backend, "gpu") else lambda: None

    def run(self, role: GraphRole, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """See `Backend.run`."""
        self._wait()
        with self.timer.stage(role.value):
            outputs: dict[str, Any] = self._backend.run(role, inputs)
            self._wait()
        return outputs


def _timed(tracker: Tracker, objects: int, warm: int, frames: int, timer: StageTimer, quiet_s: float) -> bool:
    """Adds a sample "step" for each of `frames` steps; forgets what `timer` has of those before. Whether it had come to rest."""
    stream, prompts = cycle(list(_frames())), list(islice(cycle(_prompts()[1]), objects))
    tracker.step(next(stream))
    for object_id, box in enumerate(prompts, 1):
        tracker.add(object_id, box=box)
    for _ in range(warm):
        tracker.step(next(stream))
    settled = settle(lambda: tracker.step(next(stream)), quiet_s=quiet_s)
    timer.clear()
    for _ in range(frames):
        frame = next(stream)
        with timer.stage("step"):
            tracker.step(frame)
    return settled


def _tracked(loaded: LoadedBundle, prune: Prune, frames: int) -> Iterator[Result]:
    """Results of the sample clip, objects prompted by their boxes on its first frame."""
    tracker = loaded.tracker(prune=prune)
    for t, frame in enumerate(islice(_frames(), frames)):
        result = tracker.step(frame)
        if t == 0:
            for object_id, box in zip(*_prompts(), strict=True):
                result = tracker.add(object_id, box=box)
        yield result


def _frames() -> Iterator[Frame]:
    with open_video(str(sample_path(SAMPLE) / "clip.mp4")) as source:
        yield from source


def _prompts() -> tuple[list[int], list[Box]]:
    """Ids and boxes of the sample's objects; all are there on its first frame."""
    objects = json.loads((sample_path(SAMPLE) / "clip.json").read_text(encoding="utf-8"))["objects"]
    return [o["id"] for o in objects], [tuple(o["box"]) for o in objects]
