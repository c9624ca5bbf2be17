"""Rows spread evenly over the frame, the same ones each frame.

    g = 4, order of choice:   4 12  6 14      the first cell is near the centre,
                              8  0 10  2      the first four lie one in each quadrant,
                              7 15  5 13      the first eight two in each
                             11  3  9  1

The order is Bayer's, so any number of cells is spread as evenly as the grid allows.
"""

from __future__ import annotations

from fastsam2.runtime.device import Device, Tensor
from fastsam2.runtime.policies.base import RowContext
from fastsam2.spread import uniform_scores


class UniformPolicy:
    """Keeps an even spread for every K: the larger selections contain the smaller ones."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def scores(self, context: RowContext) -> Tensor:
        """Score every row; see `Policy.scores`."""
        return self._device.put(uniform_scores(context.spec.grid))
