"""Compare two runs of a scenario frame by frame, object by object, against `thresholds.toml`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

THRESHOLDS: dict[str, Any] = tomllib.loads((Path(__file__).parent / "thresholds.toml").read_text())


@dataclass(frozen=True, slots=True)
class Track:
    """One object on one frame.

    Attributes:
        low_res: float32 [L, L]; mask logits, -1024 everywhere when not visible.
        score: object score logit.
        video: float32 [H, W] logits, or bool [H, W] masks, at video resolution.
    """

    low_res: npt.NDArray[np.float32]
    score: float
    video: npt.NDArray[Any]


Run = dict[tuple[int, int], Track]  # (frame, object id) -> what was said of it


@dataclass(frozen=True, slots=True)
class Comparison:
    """Worst values over all frames and objects, and everything that breaks a threshold.

    Attributes:
        low_res_iou: smallest IoU of the low-resolution masks.
        logit_delta: largest mean |difference| of the logits, in standard deviations of the official ones.
        video_iou: smallest IoU at video resolution, undecided pixels ignored.
        different: what breaks a threshold.
        invalid: why the official run proves nothing; empty for a valid case.
    """

    low_res_iou: float
    logit_delta: float
    video_iou: float
    different: tuple[str, ...]
    invalid: tuple[str, ...]

    def check(self) -> None:
        """Raise AssertionError unless the case is valid and every threshold holds."""
        assert not self.invalid, f"the case proves nothing: {self.invalid}"
        assert not self.different, f"{len(self.different)} differences, first {self.different[:5]}, {self}"


def compare(official: Run, ours: Run, *, trained: bool = False) -> Comparison:
    """Compare our run with the official one, with the thresholds of seeded or of trained weights.

    Raises:
        AssertionError: if the two runs do not hold the same frames and objects.
    """
    assert official.keys() == ours.keys(), f"different frames and objects: {sorted(official.keys() ^ ours.keys())}"
    limits = THRESHOLDS["trained"] if trained else THRESHOLDS
    different: list[str] = []
    ious, deltas, video_ious = [], [], []
    for key, want in official.items():
        got = ours[key]
        ious.append(mask_iou(want.low_res > 0, got.low_res > 0))
        deltas.append(logit_delta(want, got))
        video_ious.append(video_iou(want, got.video))
        if (want.score > 0) != (got.score > 0):
            different.append(f"{key}: visible {got.score > 0}, official score {want.score}, ours {got.score}")
        if ious[-1] < limits["low_res_iou"]["minimum"]:
            different.append(f"{key}: low-resolution IoU {ious[-1]}")
        if not deltas[-1] <= limits["logits"]["maximum"]:
            different.append(f"{key}: logits differ by {deltas[-1]} standard deviations")
        if video_ious[-1] < limits["video_iou"]["minimum"]:
            different.append(f"{key}: video IoU {video_ious[-1]}")
    return Comparison(min(ious), max(deltas), min(video_ious), tuple(different), tuple(invalid(official, trained=trained)))


def invalid(official: Run, *, trained: bool = False) -> list[str]:
    """Why an official run proves nothing: too short, an empty or full mask on a visible frame, a score without a sign."""
    valid = THRESHOLDS["valid"] | (THRESHOLDS["trained"]["valid"] if trained else {})
    frames = {frame for frame, _ in official}
    reasons = [] if len(frames) >= valid["min_frames"] else [f"{len(frames)} frames"]
    for key, track in official.items():
        cover = float((track.low_res > 0).mean())
        if track.score > 0 and not valid["min_cover"] <= cover <= valid["max_cover"]:
            reasons.append(f"{key}: the mask covers {cover:.1%}")
        if abs(track.score) < valid["min_score"]:
            reasons.append(f"{key}: object score {track.score}")
    return reasons


def mask_iou(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> float:
    """Intersection over union; 1 for two empty masks."""
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 1.0


def logit_delta(want: Track, got: Track) -> float:
    """Mean |difference| over the standard deviation of the official logits; of an invisible object, any difference is infinite."""
    delta, spread = float(np.abs(want.low_res - got.low_res).mean()), float(want.low_res.std())
    if spread == 0.0:
        return 0.0 if delta == 0.0 else float("inf")
    return delta / spread


def video_iou(want: Track, got: npt.NDArray[Any]) -> float:
    """IoU at video resolution of official logits and our logits or mask; pixels in the dead band take our value on both sides."""
    ours = got if got.dtype == np.bool_ else got > 0
    undecided = np.abs(want.video) <= THRESHOLDS["video_iou"]["dead_band"] * float(want.low_res.std())
    return mask_iou(np.where(undecided, ours, want.video > 0), ours)
