"""How undecided a mask is in each grid cell: what the router is told besides the mask itself.

    logits [L,L] ─ sigmoid p ─► 4p(1-p) ─ mean of 4x4 ─► uncertainty [N]

The paper takes Monte-Carlo dropout for this (arXiv 2512.21333). SAM 2.1 has no dropout to draw from, and its mask logits already say where
a pixel could go either way: at a border, on a part that is about to be lost, all over an object that is barely found.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastsam2.config import IMAGE_STRIDE, LOW_RES_STRIDE
from fastsam2.errors import InternalError, expected
from fastsam2.runtime.policies.mask import rounded_tanh

_SIDE = IMAGE_STRIDE // LOW_RES_STRIDE


def uncertainty(logits: npt.NDArray[np.float32], grid: int) -> npt.NDArray[np.float32]:
    """Mean of 4p(1-p) over the 4x4 logits of each cell, p = sigmoid(logit).

    Args:
        logits: float32 [..., L, L], L = 4 · grid; -1024 everywhere for an object that is not visible.
        grid: g, cells along one side.

    Returns:
        float32 [..., N], N = g², row-major over the grid: 1 where every logit is 0, 0 where all are decided.

    Raises:
        InternalError: if the logits are not [..., 4g, 4g].
    """
    side = grid * _SIDE
    if logits.shape[-2:] != (side, side):
        raise InternalError(expected(f"logits [..., {side}, {side}]", list(logits.shape), "Pass low-resolution logits"))
    lead = logits.shape[:-2]
    undecided = np.float32(1.0) - np.square(rounded_tanh(np.float32(0.5) * logits))  # = 4p(1-p), exact at both ends
    cells = undecided.reshape(*lead, grid, _SIDE, grid, _SIDE).mean(axis=(-3, -1), dtype=np.float32)
    return np.ascontiguousarray(cells.reshape(*lead, grid * grid), np.float32)
