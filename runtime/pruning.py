"""Which memory rows survive once a frame is no longer the newest.

    frame t written:      logits ─ policy, or the router graph ─► scores [N]
    frame t+1 written:    rows of t [N,D], scores ─ top_k_gather ─► rows [K,D], position [K]

Scores come from the frame's own mask, at the moment its memory is written; the rows stay dense for one more step. The router's scores are
computed for all objects at once by `Stages.route`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastsam2.config import ModelSpec, Prune
from fastsam2.enums import PrunePolicy
from fastsam2.errors import InternalError, expected
from fastsam2.kernels.reference import top_k_gather
from fastsam2.runtime.bfloat16 import from_bfloat16, to_bfloat16
from fastsam2.runtime.policies.base import Policy, RowContext
from fastsam2.runtime.policies.mask import MaskPolicy
from fastsam2.runtime.policies.random import RandomPolicy
from fastsam2.runtime.policies.uniform import UniformPolicy

__all__ = ["Policy", "Pruner", "RowContext"]

_SCORING: dict[PrunePolicy, type[Policy]] = {
    PrunePolicy.RANDOM: RandomPolicy,
    PrunePolicy.UNIFORM: UniformPolicy,
    PrunePolicy.MASK: MaskPolicy,
}


class Pruner:
    """Scores and compacts the rows of one object's frame. Holds no rows; one pruner serves every object.

    Attributes:
        prune: the options it was made with.
        budgets: K, rows left of a frame after compaction, and with the guard the larger K it may rise to.
        gathers: compactions run so far.
    """

    def __init__(self, prune: Prune, spec: ModelSpec) -> None:
        """Choose the policy.

        Args:
            prune: policy and budget.
            spec: the model; gives N, D and the grid.

        Raises:
            PromptError: if the budget asks for more rows than a frame has.
        """
        self.budgets = prune.budgets(spec.tokens)
        self.gathers = 0
        self.prune = prune
        self._spec = spec
        self._policy = _SCORING[prune.policy]() if prune.policy in _SCORING else None

    @property
    def active(self) -> bool:
        """Whether frames are compacted at all: False for `dense` only, True even where K = N."""
        return self.prune.policy is not PrunePolicy.DENSE

    @property
    def rows(self) -> int:
        """K where the guard is calm."""
        return self.budgets[0]

    @property
    def routes(self) -> bool:
        """Whether scores come from the router graph instead of `score`."""
        return self.prune.policy is PrunePolicy.ROUTER

    def score(self, context: RowContext) -> npt.NDArray[np.float32] | None:
        """Score a frame's rows when they are written.

        Args:
            context: the rows' object, frame and mask logits [L,L].

        Returns:
            float32 [N] to hand to `compact` later, possibly read-only; None for policies without scores of their own (dense, pool2x2,
            router).

        Raises:
            InternalError: if the logits have another shape.
        """
        if self._policy is None:
            return None
        side = self._spec.low_res
        if context.logits.shape != (side, side):
            raise InternalError(expected(f"logits [{side}, {side}]", list(context.logits.shape), "Pass one object's low-resolution logits"))
        return self._policy.scores(context)

    def compact(
        self, rows: npt.NDArray[np.uint16], scores: npt.NDArray[np.float32] | None, keep: int | None = None
    ) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.int32]]:
        """Reduce a frame's N rows to K.

        Args:
            rows: uint16 [N,D], bfloat16 bits, row-major over the grid.
            scores: what `score` or the router answered for this frame.
            keep: K, one of `budgets`; the least when None. Not read by pool2x2.

        Returns:
            rows uint16 [K,D] and position int32 [K], ascending rows of the position tables: grid rows 0..N-1 keep their own, pooled
            2x2 cells have N..N+N/4-1, row-major. Both are new arrays.

        Raises:
            InternalError: if called for policy dense, with rows of another shape, or with scores missing or not wanted.
        """
        shape = (self._spec.tokens, self._spec.memory_dim)
        if not self.active or rows.shape != shape or (scores is None) == self.prune.policy.scores_rows:
            got = f"policy {self.prune.policy.value}, rows {list(rows.shape)}, {'no scores' if scores is None else 'scores'}"
            what = f"a pruning policy, rows {list(shape)} and what score() answered"
            raise InternalError(expected(what, got, "Compact a dense frame once"))
        self.gathers += 1
        if scores is None:
            return self._pool(rows)
        kept, index = top_k_gather(scores[None], rows[None], self.rows if keep is None else keep)
        return kept[0], index[0]

    def _pool(self, rows: npt.NDArray[np.uint16]) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.int32]]:
        """Mean of each 2x2 block of cells, in float32, rounded to bfloat16."""
        half, tokens = self._spec.grid // 2, self._spec.tokens
        cells = from_bfloat16(rows).reshape(half, 2, half, 2, -1)
        pooled = cells.mean(axis=(1, 3), dtype=np.float32).reshape(half * half, -1)
        return to_bfloat16(pooled), np.arange(tokens, tokens + half * half, dtype=np.int32)
