"""Low-resolution logits -> masks at video resolution.

    logits float32 [B,h,w] ─ fill_holes (optional) ─► [B,h,w] ─ bilinear ─► [B,H,W] ─ > 0 ─► masks bool [B,H,W]

Mirrors facebookresearch/sam2 @2b90b9f `sam2/sam2_video_predictor.py` (`_get_orig_video_res_output`: `F.interpolate`, bilinear,
align_corners False) and `sam2/utils/misc.py` (`fill_holes_in_mask_scores`).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastsam2.errors import BackendError, PromptError, expected

HOLE_LOGIT = 0.1  # official value given to a filled hole
_BLOCK_ROWS = 32  # output rows interpolated at a time: few numpy calls, and temporaries that stay in the cache

Float32Array = npt.NDArray[np.float32]


class Interpolation(NamedTuple):
    """Two-point interpolation of one axis; all arrays have one entry per output."""

    low: npt.NDArray[np.int64]
    high: npt.NDArray[np.int64]
    low_weight: Float32Array
    high_weight: Float32Array


@lru_cache(maxsize=16)
def interpolation(source: int, target: int) -> Interpolation:
    """Sample points of torch's `area_pixel_compute_source_index`, align_corners False, in float32."""
    scale = np.float32(source) / np.float32(target)
    point = np.maximum(np.float64(scale) * (np.arange(target) + 0.5) - 0.5, 0.0).astype(np.float32)  # torch: one fused multiply-subtract
    low = np.minimum(point.astype(np.int64), source - 1)
    high_weight = np.clip(point - low.astype(np.float32), np.float32(0.0), np.float32(1.0))
    return Interpolation(low, np.minimum(low + 1, source - 1), np.float32(1.0) - high_weight, high_weight)


def resize_logits(logits: Float32Array, size: tuple[int, int]) -> Float32Array:
    """Bilinear resize, not antialiased; at most 5e-7 of the largest |logit| away from torch's CPU result.

    Args:
        logits: float32 [B,h,w].
        size: (H, W), pixels.

    Returns:
        float32 [B,H,W]; `logits` itself when it has that size.
    """
    height, width = size
    if logits.shape[1:] == (height, width):
        return logits
    resized = np.empty((len(logits), height, width), np.float32)
    rows, columns = interpolation(logits.shape[1], height), interpolation(logits.shape[2], width)
    for one, target in zip(logits, resized, strict=True):
        across = _stretch_columns(one, columns, slice(0, width))
        for part in _blocks(0, height):
            target[part] = _mix_rows(across, rows, part)
    return resized


def masks_from_logits(logits: Float32Array, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """`resize_logits(logits, size) > 0`, computed in blocks of rows and only where an object can be.

    An interpolated value is positive only if one of its four neighbours is, so the work is limited to the bounding box of
    the positive logits; objects without any are skipped.

    Args:
        logits: float32 [B,h,w].
        size: (H, W), pixels.

    Returns:
        bool [B,H,W], owned by the caller.
    """
    height, width = size
    if logits.shape[1:] == (height, width):
        return logits > 0
    masks = np.zeros((len(logits), height, width), np.bool_)
    rows, columns = interpolation(logits.shape[1], height), interpolation(logits.shape[2], width)
    for one, mask in zip(logits, masks, strict=True):
        positive = one > 0
        y_span, x_span = _reach(positive.any(axis=1), rows), _reach(positive.any(axis=0), columns)
        if x_span.stop == 0 or y_span.stop == 0:
            continue
        across = _stretch_columns(one, columns, x_span)
        for part in _blocks(y_span.start, y_span.stop):
            np.greater(_mix_rows(across, rows, part), 0, out=mask[part, x_span])
    return masks


def check_hole_area(area: int) -> None:
    """Whether holes of that size can be filled here.

    Raises:
        PromptError: if it is negative.
        BackendError: if OpenCV, which finds them, is not installed.
    """
    if area < 0:
        raise PromptError(expected("fill_hole_area >= 0", area, "0 fills nothing; the official predictor uses 8 on CUDA"))
    if area:
        _opencv()


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        todo = "Run `pip install 'fastsam2[holes]'`, or set the hole area to 0"
        raise BackendError(expected("OpenCV for hole filling", "no module cv2", todo)) from error
    return cv2


def fill_holes(logits: Float32Array, max_area: int) -> Float32Array:
    """Give small holes a small positive logit, as the official `fill_holes_in_mask_scores`.

    A hole is an 8-connected component of logits <= 0 with at most `max_area` members, wherever it lies.

    Args:
        logits: float32 [B,h,w].
        max_area: members, counted at the resolution of `logits`; 0 switches filling off.

    Returns:
        float32 [B,h,w]: a new array, or `logits` itself when `max_area` is 0.

    Raises:
        BackendError: if OpenCV, which labels the components, is not installed.
    """
    if max_area == 0:
        return logits
    cv2 = _opencv()
    filled = logits.copy()
    for one in filled:
        background = (one <= 0).astype(np.uint8)
        _, labels, stats, _ = cv2.connectedComponentsWithStats(background, connectivity=8, ltype=cv2.CV_32S)
        is_hole = stats[:, cv2.CC_STAT_AREA] <= max_area
        is_hole[0] = False  # label 0 is the object
        one[is_hole[labels]] = HOLE_LOGIT
    return filled


def _reach(positive: npt.NDArray[np.bool_], axis: Interpolation) -> slice:
    """Outputs of one axis that sample between the first and last positive input; slice(0, 0) when there is none."""
    touched = np.flatnonzero(positive)
    if touched.size == 0:
        return slice(0, 0)
    outputs = np.flatnonzero((axis.high >= touched[0]) & (axis.low <= touched[-1]))
    return slice(int(outputs[0]), int(outputs[-1]) + 1) if outputs.size else slice(0, 0)


def _stretch_columns(one: Float32Array, columns: Interpolation, part: slice) -> Float32Array:
    """Interpolate along x, float32 [h,w] -> output columns `part`, [h,len(part)]."""
    stretched: Float32Array = one[:, columns.low[part]] * columns.low_weight[part]
    stretched += one[:, columns.high[part]] * columns.high_weight[part]
    return stretched


def _mix_rows(across: Float32Array, rows: Interpolation, part: slice) -> Float32Array:
    """Interpolate along y, float32 [h,X] -> output rows `part`, [len(part),X]."""
    mixed: Float32Array = across[rows.low[part]]
    mixed *= rows.low_weight[part, None]
    other = across[rows.high[part]]
    other *= rows.high_weight[part, None]
    mixed += other
    return mixed


def _blocks(start: int, stop: int) -> Iterator[slice]:
    """Slices of `_BLOCK_ROWS` rows from start to stop."""
    for first in range(start, stop, _BLOCK_ROWS):
        yield slice(first, min(first + _BLOCK_ROWS, stop))
