"""Milliseconds per frame of the tracker and of the official predictor, on the same frames, alternating, in one process.

    python -m benchmarks.against_official --model sam2.1_hiera_tiny --objects 1 8 --out benchmarks/results/cpu_tiny_1024.json

Weights are seeded random ones (`random:<seed>`): speed does not depend on them. Timing starts when the bank is full (7 frames, 16
pointers). To get there in reasonable time one object is tracked alone and its state, on both sides, is then copied to the others; what a
step reads and computes per object is the same. A sample is one whole frame: ours from the RGB frame (resize included) to masks at video
resolution, the official one from its preloaded, already resized frame to logits at video resolution.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from PIL import Image

import fastsam2
from fastsam2.enums import ExportTarget
from fastsam2.export.checkpoints import build_model
from fastsam2.export.exporter import export_bundle
from fastsam2.runtime.loaded import LoadedBundle

WARM_UP_FRAMES = 18  # 16 pointers and the two frames that settle allocators
BOX = (0.28, 0.25, 0.65, 0.7)  # of the frame


def make_frames(count: int, size: tuple[int, int], seed: int = 0) -> list[np.ndarray[Any, Any]]:
    """Smooth random texture that drifts, uint8 [H, W, 3] each."""
    height, width = size
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (height // 16, width // 8, 3), np.uint8))
    wide = np.asarray(small.resize((width + 4 * count, height), Image.Resampling.BICUBIC))
    return [np.ascontiguousarray(wide[:, 4 * t : 4 * t + width]) for t in range(count)]


class Official:
    """The official predictor, one frame at a time."""

    def __init__(self, module: Any, frames: list[np.ndarray[Any, Any]]) -> None:
        self.module = module
        with tempfile.TemporaryDirectory() as folder:
            for t, frame in enumerate(frames):  # PNG bytes under the only name the official loader reads
                Image.fromarray(frame).save(Path(folder) / f"{t:05d}.jpg", format="PNG", compress_level=1)
            self.state = module.init_state(folder)

    def prompt(self, box: tuple[float, ...]) -> None:
        """Add object 1 on frame 0."""
        self.module.add_new_points_or_box(self.state, 0, 1, box=np.array(box, np.float32))

    def copy_object(self, object_id: int) -> None:
        """Give another object the history of object 1."""
        index = self.module._obj_id_to_idx(self.state, object_id)
        for key in ("point_inputs_per_obj", "output_dict_per_obj", "temp_output_dict_per_obj", "frames_tracked_per_obj"):
            self.state[key][index] = copy.deepcopy(self.state[key][0])

    def step(self, frame: int) -> np.ndarray[Any, Any]:
        """Masks of a frame, bool [B, H, W]."""
        _, _, logits = next(iter(self.module.propagate_in_video(self.state, start_frame_idx=frame, max_frame_num_to_track=0)))
        return (logits[:, 0] > 0).numpy()  # type: ignore[no-any-return]


class Ours:
    """A tracker."""

    def __init__(self, tracker: fastsam2.Tracker, frames: list[np.ndarray[Any, Any]]) -> None:
        self.tracker, self.frames = tracker, frames

    def prompt(self, box: tuple[float, ...]) -> None:
        """Take frame 0 and add object 1."""
        self.tracker.step(self.frames[0])
        self.tracker.add(1, box=box)

    def copy_object(self, object_id: int) -> None:
        """Give another object the history of object 1."""
        self.tracker._objects[object_id] = copy.deepcopy(self.tracker._objects[1])

    def step(self, frame: int) -> np.ndarray[Any, Any]:
        """Masks of a frame, bool [B, H, W]."""
        return self.tracker.step(self.frames[frame]).masks


Frames = list[np.ndarray[Any, Any]]


def measure(module: Any, bundle: LoadedBundle, frames: Frames, objects: int, prune: fastsam2.Prune, pairs: int) -> dict[str, Any]:
    """One case: raw pairs, their ratios, stages, and how far the masks are apart."""
    height, width = frames[0].shape[:2]
    box = (BOX[0] * width, BOX[1] * height, BOX[2] * width, BOX[3] * height)
    official, ours = Official(module, frames), Ours(bundle.tracker(prune=prune), frames)
    for side in (official, ours):
        side.prompt(box)
    official.step(0)
    for t in range(1, WARM_UP_FRAMES):
        official.step(t)
        ours.step(t)
    for object_id in range(2, objects + 1):
        official.copy_object(object_id)
        ours.copy_object(object_id)
    samples, ious = [], []
    for t in range(WARM_UP_FRAMES, WARM_UP_FRAMES + pairs + 1):
        if t == WARM_UP_FRAMES + 1:  # the first frame at the new batch size only allocates
            samples, ious = [], []
            ours.tracker._timer.clear()
        took, masks = {}, {}
        for name, side in sorted((("official", official), ("ours", ours)), reverse=t % 2 == 0):
            time.sleep(0.2)  # idle threads of the other side stop spinning
            start = time.perf_counter()
            masks[name] = side.step(t)
            took[name] = (time.perf_counter() - start) * 1e3
        samples.append((took["official"], took["ours"]))
        both, either = (masks["ours"] & masks["official"]).sum(), (masks["ours"] | masks["official"]).sum()
        ious.append(float(both / either) if either else 1.0)
    theirs, mine = (np.array(column) for column in zip(*samples, strict=True))
    spec, held = bundle.spec, ours.tracker._objects[1].memory
    return {
        "model": spec.name,
        "image_size": spec.image_size,
        "backend": bundle.backend.name,
        "objects": objects,
        "policy": prune.policy.value,
        "keep": prune.rows(spec.tokens) / spec.tokens,
        "memory_share": held.rows_held / (spec.num_maskmem * spec.tokens),
        "bytes_per_object": held.nbytes,
        "ours_ms": float(np.median(mine)),
        "official_ms": float(np.median(theirs)),
        "ratio": float(np.median(theirs / mine)),
        "ratio_spread": [float((theirs / mine).min()), float((theirs / mine).max())],
        "pairs": [[round(a, 1), round(b, 1)] for a, b in samples],
        "mask_iou": min(ious),
        "stages_ms": ours.tracker.stages_ms(),
    }


def conditions(threads: int) -> dict[str, Any]:
    """The machine and the versions, for the record."""
    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "commit": commit,
        "cpu": cpu or platform.processor(),
        "threads": threads,
        "fastsam2": fastsam2.__version__,
        "onnxruntime": onnxruntime.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "command": " ".join([Path(sys.executable).name, "-m", "benchmarks.against_official", *sys.argv[1:]]),
    }


def main() -> None:
    """Measure every case asked for and write the results after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sam2.1_hiera_tiny")
    parser.add_argument("--checkpoint", default="random:0")
    parser.add_argument("--image-size", type=int, default=1024)
    parser.add_argument("--bundle", type=Path, help="a bundle of this model, checkpoint and size; exported when left out")
    parser.add_argument("--objects", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--keep", type=float, nargs="+", default=[1.0, 0.05], help="1.0 is dense, below it policy mask")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--video-size", type=int, nargs=2, default=(720, 1280), metavar=("H", "W"))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    loaded = build_model(args.model, args.checkpoint, image_size=args.image_size)
    frames = make_frames(WARM_UP_FRAMES + args.pairs + 1, tuple(args.video_size))
    with tempfile.TemporaryDirectory() as scratch:
        path = args.bundle or export_bundle(
            args.model, args.checkpoint, Path(scratch) / "bundle", image_size=args.image_size, targets=(ExportTarget.ONNXRUNTIME,)
        )
        bundle = fastsam2.load(path, threads=args.threads)
        cases = []
        for objects in args.objects:
            for keep in args.keep:
                prune = fastsam2.Prune() if keep == 1.0 else fastsam2.Prune(policy="mask", keep=keep)
                cases.append(measure(loaded.module, bundle, frames, objects, prune, args.pairs))
                case = cases[-1]
                print(
                    f"{objects} objects, keep {case['keep']:.3f}: ours {case['ours_ms']:.0f} ms, official {case['official_ms']:.0f} ms, "
                    f"{case['ratio']:.2f}x, IoU {case['mask_iou']:.4f}",
                    flush=True,
                )
                args.out.parent.mkdir(parents=True, exist_ok=True)
                args.out.write_text(json.dumps({**conditions(args.threads), "cases": cases}, indent=2) + "\n")


if __name__ == "__main__":
    main()
