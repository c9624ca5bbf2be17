"""Rows chosen by chance: the baseline any other policy has to beat."""

from __future__ import annotations

import numpy as np

from fastsam2.runtime.device import Device, Tensor
from fastsam2.runtime.policies.base import RowContext


class RandomPolicy:
    """A random permutation drawn from (seed, object id, frame) alone, so that other objects and frames do not change it."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def scores(self, context: RowContext) -> Tensor:
        """Score every row; see `Policy.scores`."""
        entropy = [value % 2**64 for value in (context.seed, context.object_id, context.frame)]
        return self._device.put(np.random.default_rng(entropy).permutation(context.spec.tokens).astype(np.float32))
