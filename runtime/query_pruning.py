"""Which tokens of the current frame go through memory attention as queries, for each object.

    drop    last mask [L,L] ─► cells by closeness to it, and anchors all over the frame ─► K queries; other cells follow the nearest
    merge   tokens [N,C], last mask ─► 2x2 cells by flatness, away from it first ─► one query each; other cells keep theirs

K follows from the share asked for alone, so every frame and object has the same shapes. What cells without a query of their own receive is
decided in `export/wrappers/query_attention.py`. Under drop it is the update of the nearest query, and some queries are anchors far from the
mask: cells that skip the layers altogether are nothing the decoder knows, and it puts the mask there (measured in docs/pruning.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastsam2.config import IMAGE_STRIDE, LOW_RES_STRIDE, ModelSpec, Prune
from fastsam2.enums import QueryPolicy
from fastsam2.runtime.backends.protocol import Float
from fastsam2.runtime.uncertainty import uncertainty
from fastsam2.spread import uniform_scores

UNDECIDED = 0.25  # uncertainty from which a cell counts as undecided: the mean logit is within ±2.6 of the border
ANCHORS = 0.25  # share of the queries of drop that is spread over the cells far from the mask

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Queries:
    """The queries of one object.

    Attributes:
        position: int32 [K], ascending rows of the position tables.
        source: int32 [N]: whose update each cell takes, an index into `position`.
    """

    position: npt.NDArray[np.int32]
    source: npt.NDArray[np.int32]


class QueryPruner:
    """Chooses queries. Holds nothing of the objects; one serves all.

    Args:
        prune: form and share.
        spec: model sizes.
    """

    def __init__(self, prune: Prune, spec: ModelSpec) -> None:
        self.policy, self.spec = prune.queries, spec
        self.count = prune.query_rows(spec.tokens)
        self._spread = uniform_scores(spec.grid)

    @property
    def active(self) -> bool:
        """Whether query_attention runs at all: True even where every token stays a query."""
        return self.policy is not QueryPolicy.ALL

    def choose(self, tokens: Float, logits: Sequence[Float]) -> list[Queries | None]:
        """Queries of each object for a frame that is about to be tracked.

        Args:
            tokens: float32 [1, N, C] of that frame.
            logits: float32 [L, L] of each object on the frame before.

        Returns:
            One entry for each object; None where all tokens are to go through memory_attention. That is so for every object without
            query pruning, and with `drop` for an object without a mask: it may come back anywhere.
        """
        if self.policy is QueryPolicy.ALL:
            return [None] * len(logits)
        if self.policy is QueryPolicy.MERGE:
            flatness = self._roughness(tokens)
            return [self._merge(flatness, own) for own in logits]
        return [self._drop(own) if (own > 0).any() else None for own in logits]

    def _drop(self, logits: Float) -> Queries:
        tiers, distance = self._tiers(logits)
        order = np.lexsort((-self._spread, distance, tiers))
        near = self.count - int(ANCHORS * self.count)
        far = order[near:]
        anchors = far[np.argsort(-self._spread[far])[: self.count - near]]
        marked = np.zeros(self.spec.tokens, np.bool_)
        marked[order[:near]] = marked[anchors] = True
        _, nearest = nearest_marked(marked.reshape(self.spec.grid, self.spec.grid))
        slot = np.cumsum(marked, dtype=np.int32) - 1
        return Queries(np.flatnonzero(marked).astype(np.int32), slot[nearest.reshape(-1)])

    def _merge(self, roughness: Float, logits: Float) -> Queries:
        spec = self.spec
        tiers, _ = self._tiers(logits)
        protected = 2 - _blocks(tiers, spec.grid).min(axis=1)  # 0: neither mask nor undecided, 1: undecided, 2: at the mask
        merged = np.sort(np.lexsort((roughness, protected))[: (spec.tokens - self.count) // 3])
        members = _blocks(np.arange(spec.tokens), spec.grid)[merged]
        alone = np.ones(spec.tokens, np.bool_)
        alone[members] = False
        own = np.flatnonzero(alone)
        source = np.empty(spec.tokens, np.int32)
        source[own] = np.arange(len(own), dtype=np.int32)
        source[members] = np.arange(len(own), len(own) + len(merged), dtype=np.int32)[:, None]
        return Queries(np.concatenate([own, merged + spec.tokens]).astype(np.int32), source)

    def _tiers(self, logits: Float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """0 for cells of the mask and their neighbours, 1 for undecided cells, 2 for the rest; squared distance to the first; each [N]."""
        grid, side = self.spec.grid, IMAGE_STRIDE // LOW_RES_STRIDE
        covered: Bools = np.any((logits > 0).reshape(grid, side, grid, side), axis=(1, 3))
        near = _dilated(covered)
        undecided = uncertainty(logits, grid) >= UNDECIDED
        tiers = np.where(near.reshape(-1), 0, np.where(undecided, 1, 2))
        return tiers, nearest_marked(near)[0].reshape(-1)

    def _roughness(self, tokens: Float) -> Float:
        """Variance of the four tokens of each 2x2 cell, summed over channels, float32 [N/4]."""
        half = self.spec.grid // 2
        cells = tokens.reshape(half, 2, half, 2, -1)
        summed: Float = cells.var(axis=(1, 3)).sum(axis=-1, dtype=np.float32).reshape(-1)
        return summed


def nearest_marked(cells: Bools) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Squared Euclidean distance of every cell to the nearest marked one, and the row-major index of that one.

    Args:
        cells: bool [g, g].

    Returns:
        int64 [g, g] each; equal distances everywhere, and indices that mean nothing, where no cell is marked.
    """
    side = len(cells)
    along = np.arange(side)
    apart = np.square(along[:, None] - along[None, :])
    far = 2 * side**2
    vertical = np.where(cells[None], apart[:, :, None], far)  # [y, marked y, x]
    row, column = vertical.argmin(axis=1), vertical.min(axis=1)  # the nearest marked cell of the same column
    whole = column[:, None, :] + apart[None, :, :]  # [y, x, marked x]
    x = whole.argmin(axis=2)
    return np.minimum(whole.min(axis=2), far), np.take_along_axis(row, x, axis=1) * side + x


def _dilated(cells: Bools) -> Bools:
    """Marked cells and their eight neighbours, [g, g]."""
    g = cells.shape[0]
    padded = np.pad(cells, 1)
    marked: Bools = np.logical_or.reduce([padded[y : y + g, x : x + g] for y in range(3) for x in range(3)])
    return marked


def _blocks(cells: npt.NDArray[np.int64], grid: int) -> npt.NDArray[np.int64]:
    """Values of the members of each 2x2 cell: [N] -> [N/4, 4]."""
    half = grid // 2
    return cells.reshape(half, 2, half, 2).transpose(0, 2, 1, 3).reshape(half * half, 4)
