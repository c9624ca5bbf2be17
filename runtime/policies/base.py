"""What a pruning policy is given and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fastsam2.config import ModelSpec


@dataclass(frozen=True, slots=True)
class RowContext:
    """What is known of one object's memory rows when they are written.

    Attributes:
        spec: the model.
        object_id: the object the rows belong to.
        frame: index of the frame they were written on.
        logits: float32 [L,L], that frame's own low-resolution mask logits; -1024 everywhere when the object is not visible.
        seed: `Prune.seed`.
    """

    spec: ModelSpec
    object_id: int
    frame: int
    logits: npt.NDArray[np.float32]
    seed: int


class Policy(Protocol):
    """Scores the N grid rows of a frame; the K largest are kept."""

    def scores(self, context: RowContext) -> npt.NDArray[np.float32]:
        """Score every row, row-major over the grid.

        Args:
            context: the rows' object, frame and mask.

        Returns:
            float32 [N]; only the order matters. The same context always gives the same scores.
        """
        ...
