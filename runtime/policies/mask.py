"""Rows of the object first, then of what surrounds it, judged by the frame's own mask.

    logits [L,L] ─ sigmoid, mean of 4x4 ─► coverage [g,g] ─ blur, quantise ─► level 0..32 ─ uniform order within a level ─► scores [N]

`MaskPolicy` gives the reasons.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastsam2.config import IMAGE_STRIDE, LOW_RES_STRIDE
from fastsam2.runtime.device import Device, Tensor
from fastsam2.runtime.policies.base import RowContext
from fastsam2.spread import uniform_scores

_LEVELS = 32  # fine enough for a cell that only touches a covered one at a corner (blurred coverage 1/16) to rank above the far background
_OWN = 0.5  # coverage from which a cell belongs to the object


class MaskPolicy:
    """Prefers the object, then its border, then an even spread over the rest.

    Three choices make a small budget useful:

    - All cells of the object (coverage >= 0.5) share one level. Ranking them by confidence would fill an object larger than K from
      the row-major top, or keep only its core; on one level the uniform order samples its whole area, rim included.
    - Every other cell ranks by coverage blurred with a 1-2-1 kernel: cells the object half covers, then a ring around it. The
      ring tells the object from its surroundings. Thin objects that fill no cell by half rank by the same scale.
    - Equal levels fall back to the uniform order, so what is left of the budget is spread over the background. An object that is
      not visible covers nothing and gives exactly the uniform choice.
    """

    def __init__(self, device: Device) -> None:
        self._device = device

    def scores(self, context: RowContext) -> Tensor:
        """Score every row; see `Policy.scores`."""
        return self._device.mask_scores(context.logits, context.spec.grid)


def mask_scores(logits: npt.NDArray[np.float32], grid: int) -> npt.NDArray[np.float32]:
    """Scores of `MaskPolicy`.

    Args:
        logits: float32 [L,L], L = 4g.
        grid: g.

    Returns:
        float32 [N].
    """
    coverage = cell_coverage(logits, grid)
    level = np.where(coverage >= _OWN, np.float32(_LEVELS), np.floor(_blur(coverage) * np.float32(_LEVELS - 1)))
    return level.reshape(-1) * np.float32(grid * grid) + uniform_scores(grid)


def cell_coverage(logits: npt.NDArray[np.float32], grid: int) -> npt.NDArray[np.float32]:
    """Share of each grid cell that the object covers.

    Args:
        logits: float32 [L,L], L = 4g.
        grid: g.

    Returns:
        float32 [g,g], mean probability of the 4x4 logits of a cell, 0..1.
    """
    side = IMAGE_STRIDE // LOW_RES_STRIDE
    probability = np.float32(0.5) * (np.float32(1.0) + rounded_tanh(np.float32(0.5) * logits))
    coverage: npt.NDArray[np.float32] = probability.reshape(grid, side, grid, side).mean(axis=(1, 3), dtype=np.float32)
    return coverage


def rounded_tanh(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Hyperbolic tangent in float64, rounded to float32: the bits of every good C library, unlike what these have for float32."""
    exact: npt.NDArray[np.float32] = np.tanh(values, dtype=np.float64).astype(np.float32)
    return exact


def _blur(cells: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Separable 1-2-1 blur with repeated edges, float32 [g,g] -> [g,g]."""
    wide = np.pad(cells, 1, mode="edge")
    tall = (wide[:, :-2] + 2 * wide[:, 1:-1] + wide[:, 2:]) / np.float32(4.0)
    blurred: npt.NDArray[np.float32] = (tall[:-2] + 2 * tall[1:-1] + tall[2:]) / np.float32(4.0)
    return blurred
