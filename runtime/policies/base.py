"""What a pruning policy is given and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from fastsam2.config import ModelSpec
from fastsam2.runtime.device import Tensor


@dataclass(frozen=True, slots=True)
class RowContext:
    """What is known of one object's memory rows when they are written.

    Attributes:
        spec: the model.
        object_id: the object the rows belong to.
        frame: index of the frame they were written on.
        logits: float32 [L,L] on the pruner's device, that frame's own low-resolution mask logits; -1024 everywhere when the object is
            not visible.
        seed: `Prune.seed`.
    """

    spec: ModelSpec
    object_id: int
    frame: int
    logits: Tensor
    seed: int


class Policy(Protocol):
    """Scores the N grid rows of a frame on a device; the K largest are kept."""

    def scores(self, context: RowContext) -> Tensor:
        """Score every row, row-major over the grid.

        Args:
            context: the rows' object, frame and mask.

        Returns:
            float32 [N] on the device; only the order matters. The same context always gives the same scores.
        """
        ...
