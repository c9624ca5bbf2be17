"""Frames and masks -> what the graphs take.

    frame uint8 [H,W,3] ─ Pillow bicubic ─► pixels uint8 [1,3,S,S]
    mask  0/1   [H,W]   ─ antialiased bilinear, >= 0.5 ─► float32 [S,S]

Mirrors facebookresearch/sam2 @2b90b9f `sam2/utils/misc.py` (`_load_img_as_tensor`) and `sam2/sam2_video_predictor.py`
(`add_new_mask`). The mask resize repeats, in float32 and in the same order, the arithmetic of torch's CPU kernel
(pytorch `aten/src/ATen/native/cpu/UpSampleKernel.cpp`, `_compute_indices_min_size_weights_aa` and the separable loops) as its
AVX2 build executes it: an object's edge often lies exactly on 0.5, where one rounding flips a pixel.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from fastsam2.errors import PromptError, expected

_VECTOR = 4  # taps the compiled loop multiplies at once and adds in order; the remainder runs as fused multiply-adds


def check_frame(frame: object) -> None:
    """Refuse what is not an RGB frame.

    Args:
        frame: must be a numpy array uint8 [H,W,3] with H, W >= 1; any strides.

    Raises:
        PromptError: if it is anything else.
    """
    if not isinstance(frame, np.ndarray):
        raise PromptError(expected("a numpy array uint8 [H, W, 3] in RGB order", type(frame).__name__, "Convert with numpy.asarray(image)"))
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
        got = f"{frame.dtype} {list(frame.shape)}"
        raise PromptError(expected("a frame of uint8 [H, W, 3] in RGB order", got, "Scale to 0..255, drop alpha, put channels last"))


def checked_size(frame: npt.NDArray[np.uint8], known: tuple[int, int] | None) -> tuple[int, int]:
    """Height and width of a frame of a stream.

    Args:
        frame: uint8 [H, W, 3].
        known: height and width of the frames before it; None if there are none.

    Raises:
        PromptError: as `check_frame`, and if the size is another one.
    """
    check_frame(frame)
    size = (frame.shape[0], frame.shape[1])
    if known not in (None, size):
        raise PromptError(expected(f"a frame of {known} (height, width)", size, "Call reset() before another video"))
    return size


def frame_to_pixels(frame: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """Resize a frame to the model's square input, not keeping the aspect ratio.

    Args:
        frame: uint8 [H,W,3] RGB, any strides.
        size: S, pixels.

    Returns:
        uint8 [1,3,S,S], C-contiguous, owned by the caller.

    Raises:
        PromptError: as `check_frame`.
    """
    check_frame(frame)
    resized = np.asarray(Image.fromarray(frame).resize((size, size), Image.Resampling.BICUBIC))
    return np.ascontiguousarray(resized.transpose(2, 0, 1)[None])


def mask_to_input(mask: npt.NDArray[np.generic], size: int) -> npt.NDArray[np.float32]:
    """Resize a mask prompt to the model's square input.

    Args:
        mask: [H,W] of bool, or of integers or floats that are only 0 and 1; uint8 may use 0 and 255.
        size: S, pixels.

    Returns:
        float32 [S,S] of 0.0 and 1.0, C-contiguous. A mask that is S x S already is not changed.

    Raises:
        PromptError: if the mask has another shape, dtype or other values (NaN included).
    """
    return _resized(_binary(mask).astype(np.float32), size)


def soft_mask_to_input(mask: npt.NDArray[np.float32], size: int) -> npt.NDArray[np.float32]:
    """Resize a mask prompt of any values as the official predictor does a tensor: values first, then what is at least 0.5 is foreground.

    Args:
        mask: [H,W] float32. One that is S x S already is taken as it is officially, and must be of 0 and 1 here.
        size: S, pixels.

    Returns:
        float32 [S,S] of 0.0 and 1.0, C-contiguous.

    Raises:
        PromptError: if the mask has another shape, a value is not finite, or an S x S one has other values.
    """
    if mask.ndim != 2 or 0 in mask.shape or mask.shape == (size, size):
        return mask_to_input(mask, size)
    if not np.isfinite(mask).all():
        raise PromptError(expected("a mask of finite numbers", "NaN or infinity among them", "Threshold it, for example mask > 0"))
    return _resized(mask, size)


def _resized(values: npt.NDArray[np.float32], size: int) -> npt.NDArray[np.float32]:
    if values.shape == (size, size):
        return values
    height, width = values.shape
    across = _resample_rows(np.ascontiguousarray(values.T), width, size)
    resized = _resample_rows(np.ascontiguousarray(across.T), height, size)
    return (resized >= np.float32(0.5)).astype(np.float32)


def _binary(mask: object) -> npt.NDArray[np.bool_]:
    """Check a mask and return it as bool [H,W]."""
    if not isinstance(mask, np.ndarray) or mask.ndim != 2 or 0 in mask.shape or mask.dtype.kind not in "buif":
        got = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise PromptError(expected("a mask [H, W] of bool or of 0 and 1", got, "Pass one 2-D array per object"))
    foreground = mask.astype(bool)  # NaN becomes True and fails the comparison below
    one_is = 255 if mask.dtype == np.uint8 and mask.max() > 1 else 1
    if not np.all((mask == 0) | (mask == one_is)):
        low, high = np.min(mask), np.max(mask)
        got = f"values from {low} to {high}"
        raise PromptError(expected("a mask of 0 and 1 (or 0 and 255 as uint8)", got, "Threshold it, for example mask > 0"))
    return foreground


class _Taps(NamedTuple):
    """Antialiased triangle filter of one axis: T taps for each of `target` outputs."""

    pixel: npt.NDArray[np.int64]  # [T, target] input indices
    weight: npt.NDArray[np.float32]  # [T, target], 0 where a tap is unused
    unfused: npt.NDArray[np.int64]  # [target] taps 1..unfused are multiplied and then added, later ones fused


@lru_cache(maxsize=16)
def _taps(source: int, target: int) -> _Taps:
    """Filter from `source` to `target` pixels, in torch's mix of float32 and float64."""
    f32, f64 = np.float32, np.float64
    scale = f32(source) / f32(target)
    support = max(scale, f32(1.0))
    inverse = f32(1.0) / support
    center = (f64(scale) * (np.arange(target) + 0.5)).astype(f32)
    first = np.maximum(((center - support).astype(f64) + 0.5).astype(np.int64), 0)
    count = np.minimum(((center + support).astype(f64) + 0.5).astype(np.int64), source) - first
    count = np.clip(count, 0, int(np.ceil(support)) * 2 + 1)

    tap = np.arange(count.max())[:, None]
    distance = (((first + tap).astype(f32) - center).astype(f64) + 0.5) * f64(inverse)
    weight = np.maximum(f32(1.0) - np.abs(distance.astype(f32)), f32(0.0))
    weight[tap >= count] = 0.0
    total = np.zeros(target, f32)
    for row in weight:
        total += row
    weight /= total
    return _Taps(np.minimum(first + tap, source - 1), weight, (count - 1) // _VECTOR * _VECTOR)


def _resample_rows(values: npt.NDArray[np.float32], source: int, target: int) -> npt.NDArray[np.float32]:
    """Resize axis 0, float32 [source, X] -> [target, X], adding the taps first to last.

    A fused multiply-add is computed in float64, where the product is exact, and rounded once more to float32.
    """
    pixel, weight, unfused = _taps(source, target)
    total: npt.NDArray[np.float32] = np.take(values, pixel[0], axis=0) * weight[0][:, None]
    for tap in range(1, len(pixel)):
        term = np.take(values, pixel[tap], axis=0)
        is_fused = tap > unfused
        if not is_fused.any():
            total += term * weight[tap][:, None]
            continue
        fused = (total + term * weight[tap].astype(np.float64)[:, None]).astype(np.float32)
        total = fused if is_fused.all() else np.where(is_fused[:, None], fused, total + term * weight[tap][:, None])
    return total
