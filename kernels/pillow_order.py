"""Whether the installed Pillow resizes the height or the width of a frame first.

The bits between the two passes are rounded, so the order shows in the result by up to 2 levels. Pillow 13 starts with the height where
that shrinks by more than twice as many pixels as the width (python-pillow/Pillow 13.0.0 `src/libImaging/Resample.c`,
`ImagingResampleInner`); 12.3 has another rule. A wrong guess would be silent, so Pillow is asked.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from fastsam2.errors import BackendError, expected
from fastsam2.kernels.frame_tables import PRECISION_BITS, resize_tables

_SEEDS = range(8)


@lru_cache(maxsize=64)
def rows_first(height: int, width: int, size: int) -> bool:
    """What `FrameOps.resize` is to be told for frames of this size; resizes a frame of noise with Pillow, once a size.

    Args:
        height: H, pixels.
        width: W, pixels.
        size: S, pixels.

    Returns:
        True where the height comes first; False where the width does, or both orders give the same.

    Raises:
        PromptError: if a size is not positive.
        BackendError: if Pillow answers as neither order does.
    """
    from PIL import Image, __version__

    if size in (height, width):
        return False
    middle = size // 2
    for seed in _SEEDS:
        frame = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
        line = np.asarray(Image.fromarray(frame).resize((size, size), Image.Resampling.BICUBIC))[middle]
        first, count = (int(value) for value in resize_tables(height, size)[0][middle])
        part = frame[first : first + count]
        by_width = _weigh_rows(_weigh_columns(part, size), height, size, middle)
        by_height = _weigh_columns(_weigh_rows(part, height, size, middle)[None], size)[0]
        if not np.array_equal(by_width, by_height):
            if np.array_equal(line, by_height):
                return True
            if np.array_equal(line, by_width):
                return False
            todo = "Resize frames on the host, or install another Pillow"
            raise BackendError(expected(f"Pillow to resize {width} x {height} to {size} in two passes", f"Pillow {__version__}", todo))
    return False


def _weigh_columns(rows: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """uint8 [n,W,3] -> [n,S,3]."""
    bounds, weights = resize_tables(rows.shape[1], size)
    tap = np.minimum(bounds[:, :1] + np.arange(weights.shape[1]), rows.shape[1] - 1)  # weights are 0 where an index was cut
    return _clip(np.einsum("nstc,st->nsc", rows[:, tap].astype(np.int64), weights))


def _weigh_rows(part: npt.NDArray[np.uint8], height: int, size: int, line: int) -> npt.NDArray[np.uint8]:
    """The rows that `line` of S is made of, uint8 [count,X,3] -> [X,3]."""
    weights = resize_tables(height, size)[1][line, : len(part)]
    return _clip(np.einsum("txc,t->xc", part.astype(np.int64), weights))


def _clip(sums: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    clipped: npt.NDArray[np.uint8] = np.clip((sums + (1 << (PRECISION_BITS - 1))) >> PRECISION_BITS, 0, 255).astype(np.uint8)
    return clipped
