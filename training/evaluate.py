"""J&F on held-out clips: of a bundle, of the official predictor with the same weights, and of two rules that know nothing.

Every object of a clip is prompted once, with its box on the first frame; all later frames are scored.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from fastsam2.benchmarks.score import Score, score_masks
from fastsam2.config import Prune
from fastsam2.runtime.loaded import LoadedBundle
from fastsam2.training.held_out import HeldOutClip

Masks: TypeAlias = npt.NDArray[np.bool_]
Method: TypeAlias = Callable[[HeldOutClip], Masks]
"""A clip -> masks bool [objects, T, H, W]; the first frame is not scored."""

_BINS = 16  # per colour channel


def evaluate(method: Method, clips: Iterable[HeldOutClip]) -> dict[str, Score]:
    """Score a method on clips; by name of the clip."""
    scores = {}
    for clip in clips:
        masks = method(clip)
        predicted = {i: masks[i - 1] for i in clip.ids}
        scores[clip.name] = score_masks(predicted, {i: clip.truth == i for i in clip.ids}, prompted=dict.fromkeys(clip.ids, 0))
    return scores


def summary(scores: dict[str, Score]) -> dict[str, Any]:
    """Means over all objects, and the clips one by one: {"j_and_f", "j", "f", "objects", "clips"}."""
    objects = [o for score in scores.values() for o in score.objects]
    j, f = (float(np.mean([getattr(o, name) for o in objects])) for name in ("j", "f"))
    clips = {name: {"j_and_f": score.j_and_f, "j": score.j, "f": score.f, "objects": len(score.objects)} for name, score in scores.items()}
    return {"j_and_f": (j + f) / 2, "j": j, "f": f, "objects": len(objects), "clips": clips}


def with_tracker(bundle: LoadedBundle, *, prune: Prune | None = None) -> Method:
    """Our tracker, objects together."""

    def track(clip: HeldOutClip) -> Masks:
        tracker = bundle.tracker(prune=prune)
        masks = np.zeros((len(clip.ids), *clip.truth.shape), np.bool_)
        result = tracker.step(clip.frames[0])
        for i, box in zip(clip.ids, clip.boxes, strict=True):
            result = tracker.add(i, box=box)
        masks[:, 0] = result.masks
        for t, frame in enumerate(clip.frames[1:], 1):
            masks[:, t] = tracker.step(frame).masks
        return masks

    return track


def with_official(predictor: Any) -> Method:
    """The official `SAM2VideoPredictor` in torch."""

    def track(clip: HeldOutClip) -> Masks:
        masks = np.zeros((len(clip.ids), *clip.truth.shape), np.bool_)
        with tempfile.TemporaryDirectory() as folder:
            write_official(clip.frames, Path(folder))
            state = predictor.init_state(folder)
            for i, box in zip(clip.ids, clip.boxes, strict=True):
                predictor.add_new_points_or_box(state, 0, i, box=box)
            for t, _, logits in predictor.propagate_in_video(state):
                masks[:, t] = logits[:, 0].cpu().numpy() > 0
        return masks

    return track


def write_official(frames: npt.NDArray[np.uint8], folder: Path) -> None:
    """PNG bytes under .jpg names: the official loader reads .jpg names only, and Pillow looks at the bytes."""
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{index:05d}.jpg", format="PNG", compress_level=1)


def first_mask_copied(clip: HeldOutClip) -> Masks:
    """Baseline: the true first mask, for ever."""
    return np.stack([np.broadcast_to(clip.truth[0] == i, clip.truth.shape) for i in clip.ids])


def nearest_colour(clip: HeldOutClip) -> Masks:
    """Baseline: pixels whose colour is likelier inside the true first mask than outside, in one piece near the last answer."""
    out = np.zeros((len(clip.ids), *clip.truth.shape), np.bool_)
    for row, i in enumerate(clip.ids):
        inside = clip.truth[0] == i
        codes = _codes(clip.frames[0])
        of_object, of_rest = _histogram(codes[inside]), _histogram(codes[~inside])
        last = inside
        for t, frame in enumerate(clip.frames):
            likely = (of_object > of_rest)[_codes(frame)].astype(np.uint8)
            opened = cv2.morphologyEx(likely, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
            _, pieces = cv2.connectedComponents(opened)
            overlap = np.bincount(pieces[last & (pieces > 0)], minlength=1)
            if overlap.any():
                last = pieces == int(overlap.argmax())
                out[row, t] = last
            elif opened.any():
                sizes = np.bincount(pieces[pieces > 0])
                last = pieces == int(sizes.argmax())
                out[row, t] = last
    return out


def _codes(frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    step = 256 // _BINS
    r, g, b = (frame[..., c].astype(np.int64) // step for c in range(3))
    return (r * _BINS + g) * _BINS + b


def _histogram(codes: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    counts = np.bincount(codes, minlength=_BINS**3).astype(np.float64)
    cube = counts.reshape(_BINS, _BINS, _BINS)
    for axis in range(3):  # neighbours share a little, so that unseen shades are judged
        cube = cube + 0.25 * (np.roll(cube, 1, axis) + np.roll(cube, -1, axis))
    flat = cube.ravel() + 1e-3
    return np.asarray(flat / flat.sum())
