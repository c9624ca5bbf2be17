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
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import fastsam2
from fastsam2.benchmarks.conditions import conditions
from fastsam2.enums import ExportTarget, PrunePolicy
from fastsam2.export.checkpoints import build_model
from fastsam2.export.exporter import export_bundle

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


def measure(official: Official, variants: Sequence[Ours], objects: int, first: int, pairs: int) -> list[dict[str, Any]]:
    """One case per variant: every frame runs on the official side and on all variants, in turning order.

    Args:
        official: warmed up.
        variants: warmed up, each with its own pruning.
        objects: number of objects, already present on all sides.
        first: frame to start with; its samples are thrown away, because allocators grow with the batch.
        pairs: frames that count.
    """
    sides: list[Official | Ours] = [official, *variants]
    took: list[list[float]] = []
    ious: list[list[float]] = []
    for t in range(first, first + pairs + 1):
        if t == first + 1:
            took, ious = [], []
            for variant in variants:
                variant.tracker._timer.clear()
        times, masks = [0.0] * len(sides), [np.zeros(0, bool)] * len(sides)
        for k in np.roll(np.arange(len(sides)), t):
            time.sleep(0.2)  # idle threads of the side before stop spinning
            start = time.perf_counter()
            masks[k] = sides[k].step(t)
            times[k] = (time.perf_counter() - start) * 1e3
        took.append(times)
        ious.append([_worst_iou(masks[0], m) for m in masks[1:]])
    return [_case(variant, objects, took, [row[k] for row in ious], k + 1) for k, variant in enumerate(variants)]


def _worst_iou(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    either = (a | b).sum(axis=(1, 2))
    return float(((a & b).sum(axis=(1, 2)) / np.maximum(either, 1))[either > 0].min(initial=1.0))


def _case(variant: Ours, objects: int, took: list[list[float]], ious: list[float], column: int) -> dict[str, Any]:
    tracker = variant.tracker
    spec, prune, held = tracker.spec, tracker.pruner.prune, tracker._objects[1].memory
    theirs, mine = np.array(took)[:, 0], np.array(took)[:, column]
    return {
        "model": spec.name,
        "image_size": spec.image_size,
        "backend": "onnxruntime",
        "objects": objects,
        "policy": prune.policy.value,
        "keep": tracker.pruner.rows / spec.tokens,
        "memory_share": held.rows_held / (spec.num_maskmem * spec.tokens),
        "bytes_per_object": held.nbytes,
        "ours_ms": float(np.median(mine)),
        "official_ms": float(np.median(theirs)),
        "ratio": float(np.median(theirs / mine)),
        "ratio_spread": [float((theirs / mine).min()), float((theirs / mine).max())],
        "pairs": [[round(a, 1), round(b, 1)] for a, b in zip(theirs, mine, strict=True)],
        "mask_iou": min(ious),
        "stages_ms": tracker.stages_ms(),
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
    module = build_model(args.model, args.checkpoint, image_size=args.image_size).module
    frames = make_frames(WARM_UP_FRAMES + len(args.objects) * (args.pairs + 1), tuple(args.video_size))
    height, width = args.video_size
    box = (BOX[0] * width, BOX[1] * height, BOX[2] * width, BOX[3] * height)
    with tempfile.TemporaryDirectory() as scratch:
        path = args.bundle or export_bundle(
            args.model, args.checkpoint, Path(scratch) / "bundle", image_size=args.image_size, targets=(ExportTarget.ONNXRUNTIME,)
        )
        bundle = fastsam2.load(path, threads=args.threads)
        prunes = [fastsam2.Prune() if keep == 1.0 else fastsam2.Prune(policy=PrunePolicy.MASK, keep=keep) for keep in args.keep]
        official, variants = Official(module, frames), [Ours(bundle.tracker(prune=prune), frames) for prune in prunes]
        sides: tuple[Official | Ours, ...] = (official, *variants)
        for side in sides:
            side.prompt(box)
            for t in range(0 if side is official else 1, WARM_UP_FRAMES):
                side.step(t)
        cases, present, first = [], 1, WARM_UP_FRAMES
        for objects in sorted(args.objects):
            for object_id in range(present + 1, objects + 1):
                for side in sides:
                    side.copy_object(object_id)
            present = objects
            cases += measure(official, variants, objects, first, args.pairs)
            first += args.pairs + 1
            for case in cases[-len(variants) :]:
                print(
                    f"{objects} objects, keep {case['keep']:.3f}: ours {case['ours_ms']:.0f} ms, official {case['official_ms']:.0f} ms, "
                    f"{case['ratio']:.2f}x ({case['ratio_spread'][0]:.2f} to {case['ratio_spread'][1]:.2f}), IoU {case['mask_iou']:.4f}",
                    flush=True,
                )
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps({**conditions(args.threads, "benchmarks.against_official"), "cases": cases}, indent=2) + "\n")


if __name__ == "__main__":
    main()
