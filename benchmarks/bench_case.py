"""One group of cases: all trackers take every frame in turn, and every number of a case is worked out from what they took.

frame t:  official, dense, mask 0.05 │ t+1:  dense, mask 0.05, official │ ...      each: decode ─ step ─► masks on the host
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastsam2.benchmarks.gpu_tracking import LEAST_IOU as LEAST_MEAN_IOU
from fastsam2.benchmarks.report_cases import END_TO_END, MODEL
from fastsam2.benchmarks.score import jaccard
from fastsam2.benchmarks.sides import Masks, Ours, Side
from fastsam2.enums import BackendName, Precision
from fastsam2.runtime.timing import StageTimer

SETTLE_S = 0.2  # idle threads of the side before stop spinning
WAITED_FRAMES = 10  # whose graphs are waited for one by one, on a GPU
LEAST_IOU = 0.999  # in float32, worst frame and object: what tests/parity/thresholds.toml demands
LEAST_HALF_IOU = LEAST_MEAN_IOU[BackendName.TENSORRT]
COVERED = (0.0025, 0.95)  # share of the pixels in masks: fewer or more agree by chance
BOUNDARIES = (END_TO_END, MODEL)
DECODE, STEP = "decode", "step"


@dataclass(slots=True)
class Taken:
    """What one side gave and took.

    Attributes:
        timer: stages decode and step, a sample for each frame.
        ious: of each frame, the worst object's with the side it is compared with.
        covered: of each frame, share of the pixels in masks.
        digest: of the masks of all frames.
    """

    timer: StageTimer = field(default_factory=StageTimer)
    ious: list[float] = field(default_factory=list)
    covered: list[float] = field(default_factory=list)
    digest: Any = field(default_factory=hashlib.sha256)

    def milliseconds(self, boundary: str) -> np.ndarray[Any, Any]:
        """Of each frame, float64 [T], rounded as they are recorded."""
        step = np.array(self.timer.samples_ms(STEP))
        return np.round(step if boundary == MODEL else step + self.timer.samples_ms(DECODE), 3)


def measure(sides: Sequence[Side], compared_with: Sequence[int | None], files: Sequence[Path], *, settle_s: float) -> list[Taken]:
    """Every frame runs on all sides, in an order that turns by one from frame to frame.

    Args:
        sides: with full memories and equal objects.
        compared_with: for each side the one that its masks are compared with.
        files: the frames to come; the first is thrown away, because allocators grow with the batch.
        settle_s: pause before each sample, seconds.
    """
    taken = [Taken() for _ in sides]
    for t, file in enumerate(files):
        masks: list[Masks] = [np.zeros(0, np.bool_)] * len(sides)
        turn = t % len(sides)
        for k in (*range(turn, len(sides)), *range(turn)):
            time.sleep(settle_s)
            with taken[k].timer.stage(DECODE):
                frame = sides[k].decode(file)
            with taken[k].timer.stage(STEP):
                masks[k] = sides[k].step(frame)
        if t == 0:
            for one, side in zip(taken, sides, strict=True):
                one.timer.clear()
                if isinstance(side, Ours):
                    side.clear_stages()
            continue
        for one, own, other in zip(taken, masks, compared_with, strict=True):
            one.digest.update(np.packbits(own).tobytes())
            one.covered.append(float(own.mean()))
            if other is not None:
                one.ious.append(worst_iou(own, masks[other]))
    return taken


def worst_iou(one: Masks, other: Masks) -> float:
    """IoU of the object that agrees least, bool [B, H, W] each; 1 where both are empty."""
    return min(jaccard(a, b) for a, b in zip(one, other, strict=True))


def numbers(ours: Taken, official: Taken | None, boundary: str) -> dict[str, Any]:
    """Milliseconds of a case: ours_ms and frames_ms, and with the official side official_ms, ratio, ratio_spread and pairs."""
    mine = ours.milliseconds(boundary)
    out: dict[str, Any] = {
        "ours_ms": float(np.median(mine)),
        "frames_ms": {f"p{q}": float(np.quantile(mine, q / 100)) for q in (50, 90, 99)},
    }
    if official is not None:
        theirs = official.milliseconds(boundary)
        ratio = theirs / mine
        out |= {
            "official_ms": float(np.median(theirs)),
            "ratio": float(np.median(ratio)),
            "ratio_spread": [float(ratio.min()), float(ratio.max())],
            "pairs": np.stack([theirs, mine], axis=1).tolist(),
        }
    return out


def quality(ours: Taken, *, dense: bool, precision: str) -> dict[str, Any]:
    """What the masks say: mask_iou, mask_sha256, covered, and for a dense case whether it counts, and why not.

    Args:
        ours: compared with the official predictor if dense, else with the dense side; a dense side that was compared with nothing has no
            mask_iou and neither counts nor fails to.
        dense: all memory is kept.
        precision: of the graphs.
    """
    covered = float(np.mean(ours.covered))
    out: dict[str, Any] = {"mask_sha256": ours.digest.hexdigest(), "covered": covered}
    if not ours.ious:
        return out
    out["mask_iou"] = min(ours.ious)
    if dense:
        least = LEAST_IOU if precision == Precision.FP32.value else LEAST_HALF_IOU
        whys = []
        if not out["mask_iou"] >= least:
            whys.append(f"mask IoU {out['mask_iou']:.4f} with the official predictor is below {least}")
        if not COVERED[0] <= covered <= COVERED[1]:
            whys.append(f"masks cover {100 * covered:.2f} % of the frames, outside {100 * COVERED[0]:g} to {100 * COVERED[1]:g} %")
        out["counts"] = not whys
        if whys:
            out["counts_why"] = "; ".join(whys)
    return out


def stages(side: Ours, taken: Taken, files: Sequence[Path], *, on_gpu: bool) -> Mapping[str, Mapping[str, float]]:
    """{stage: {median, p90}} in milliseconds, decode first.

    Args:
        side: after `measure`.
        taken: of that side.
        files: frames for a second pass, on a GPU, where only waiting for each graph tells what it takes.
        on_gpu: whether the backend needs that.
    """
    if on_gpu:
        side.clear_stages()
        with side.waiting():
            for file in files[:WAITED_FRAMES]:
                side.step(side.decode(file))
    return {DECODE: taken.timer.summary()[DECODE], **side.tracker.stages_ms()}
