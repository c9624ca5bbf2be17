"""Rows spread evenly over the frame, the same ones each frame.

    g = 4, order of choice:   4 12  6 14      the first cell is near the centre,
                              8  0 10  2      the first four lie one in each quadrant,
                              7 15  5 13      the first eight two in each
                             11  3  9  1

The order is Bayer's, so any number of cells is spread as evenly as the grid allows.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from fastsam2.runtime.device import Device, Tensor
from fastsam2.runtime.policies.base import RowContext

_CENTRING = 0x55555555  # flips every second coordinate bit, so that a coarse lattice sits in the middle of its cells, not in their corners


class UniformPolicy:
    """Keeps an even spread for every K: the larger selections contain the smaller ones."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def scores(self, context: RowContext) -> Tensor:
        """Score every row; see `Policy.scores`."""
        return self._device.put(uniform_scores(context.spec.grid))


@lru_cache(maxsize=8)
def uniform_scores(grid: int) -> npt.NDArray[np.float32]:
    """Scores N-1 (first chosen) down to 0, each once, in the order of Bayer's dispersed-dot dither matrix.

    For every K, two aligned 2^m x 2^m blocks that lie inside the grid differ by at most one kept cell. A grid whose side is not a
    power of two is cut from the next larger one.

    Args:
        grid: g, cells along one side.

    Returns:
        float32 [g²], row-major, read-only (shared between callers).
    """
    bits = (grid - 1).bit_length()
    coordinate = np.arange(grid) ^ (_CENTRING & ((1 << bits) - 1))
    y, x = np.meshgrid(coordinate, coordinate, indexing="ij")
    rank = np.zeros_like(x)
    for bit in range(bits):
        quadrant = 2 * ((x ^ y) >> bit & 1) + (y >> bit & 1)
        rank += quadrant << 2 * (bits - 1 - bit)
    scores = np.empty(grid * grid, np.float32)
    scores[np.argsort(rank, axis=None)] = np.arange(grid * grid, dtype=np.float32)[::-1]
    scores.flags.writeable = False
    return scores
