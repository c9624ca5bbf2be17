"""bfloat16 as the upper 16 bits of float32, for a numpy that has no such type.

    float32 ─ round to nearest, ties to even ─► uint16 bits ─ append 16 zero bits ─► float32

The official predictor stores memory rows as bfloat16 even in float32 runs (facebookresearch/sam2 @2b90b9f
`sam2/sam2_video_predictor.py`, `maskmem_features.to(torch.bfloat16)`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastsam2.errors import InternalError, expected

_QUIET_NAN = np.uint16(0x7FC0)
_BLOCK = 1 << 16  # values rounded at a time: the temporaries stay in the cache


def to_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round to bfloat16.

    Args:
        values: float32, any shape and strides.

    Returns:
        uint16 bits of the same shape, C-contiguous. Too large values become infinite, every NaN the bits 0x7FC0.
    """
    bits = np.empty(values.shape, np.uint16)
    source, target = np.ascontiguousarray(values, np.float32).reshape(-1), bits.reshape(-1)
    for start in range(0, source.size, _BLOCK):
        block = source[start : start + _BLOCK]
        word = block.view(np.uint32)
        rounded = word >> np.uint32(16)
        rounded &= np.uint32(1)
        rounded += word
        rounded += np.uint32(0x7FFF)
        rounded >>= np.uint32(16)
        target[start : start + _BLOCK] = rounded
        if np.isnan(block.max()):
            target[start : start + _BLOCK][np.isnan(block)] = _QUIET_NAN
    return bits


def from_bfloat16(bits: npt.NDArray[np.uint16], out: npt.NDArray[np.float32] | None = None) -> npt.NDArray[np.float32]:
    """Widen bfloat16 bits, exactly.

    Args:
        bits: uint16, any shape and strides.
        out: float32 of the same shape, any strides, written in place; allocated when None.

    Returns:
        float32 of the same shape; `out` itself when given.

    Raises:
        InternalError: if `out` has another shape or dtype.
    """
    if out is None:
        out = np.empty(bits.shape, np.float32)
    elif out.shape != bits.shape or out.dtype != np.float32:
        raise InternalError(expected(f"out float32 {bits.shape}", f"{out.dtype} {out.shape}", "Pass a slice of the same shape"))
    np.left_shift(bits, np.uint32(16), out=out.view(np.uint32), dtype=np.uint32)
    return out
