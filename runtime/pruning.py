"""Which memory rows survive once a frame is no longer the newest.

    frame t written:      logits ─ policy, or the router graph ─► scores [N]
    frame t+1 written:    rows of t [N,D], scores ─ top_k_gather ─► rows [K,D], position [K]

Scores come from the frame's own mask, at the moment its memory is written; the rows stay dense for one more step. The router's scores are
computed for all objects at once by `Stages.route`.
"""

from __future__ import annotations

from collections.abc import Callable

from fastsam2.config import ModelSpec, Prune
from fastsam2.enums import PrunePolicy
from fastsam2.errors import InternalError, expected
from fastsam2.runtime.device import Device, Tensor
from fastsam2.runtime.host_device import HOST
from fastsam2.runtime.policies.base import Policy, RowContext
from fastsam2.runtime.policies.mask import MaskPolicy
from fastsam2.runtime.policies.random import RandomPolicy
from fastsam2.runtime.policies.uniform import UniformPolicy

__all__ = ["Policy", "Pruner", "RowContext"]

_SCORING: dict[PrunePolicy, Callable[[Device], Policy]] = {
    PrunePolicy.RANDOM: RandomPolicy,
    PrunePolicy.UNIFORM: UniformPolicy,
    PrunePolicy.MASK: MaskPolicy,
}


class Pruner:
    """Scores and compacts the rows of one object's frame. Holds no rows; one pruner serves every object.

    Attributes:
        prune: the options it was made with.
        device: where rows and scores lie.
        budgets: K, rows left of a frame after compaction, and with the guard the larger K it may rise to.
        gathers: compactions run so far.
    """

    def __init__(self, prune: Prune, spec: ModelSpec, device: Device = HOST) -> None:
        """Choose the policy.

        Args:
            prune: policy and budget.
            spec: the model; gives N, D and the grid.
            device: where rows and scores lie.

        Raises:
            PromptError: if the budget asks for more rows than a frame has.
        """
        self.budgets = prune.budgets(spec.tokens)
        self.gathers = 0
        self.prune, self.device = prune, device
        self._spec = spec
        self._policy = _SCORING[prune.policy](device) if prune.policy in _SCORING else None

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

    def score(self, context: RowContext) -> Tensor | None:
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

    def compact(self, rows: Tensor, scores: Tensor | None, keep: int | None = None) -> tuple[Tensor, Tensor]:
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
            tokens = self._spec.tokens
            return self.device.pool_2x2(rows, self._spec.grid), self.device.arange(tokens, tokens + tokens // 4)
        return self.device.top_k_gather(rows, scores, self.rows if keep is None else keep)
