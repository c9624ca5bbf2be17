"""Plain numpy definitions of the kernels: any faster implementation must give exactly these results.

    scores [B,N], rows [B,N,D], k ─ top_k_gather ─► kept rows [B,k,D], index [B,k]

Written for clarity; not for speed.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from fastsam2.errors import PromptError, expected

Row = TypeVar("Row", bound=np.generic)


def top_k_gather(scores: npt.NDArray[np.floating], rows: npt.NDArray[Row], k: int) -> tuple[npt.NDArray[Row], npt.NDArray[np.int32]]:
    """Keep the k rows with the largest scores, in their original order.

    Larger scores rank first; equal scores (-0.0 equals +0.0) rank by lower index; NaN ranks behind everything, -inf included,
    NaNs among themselves by lower index. The answer depends on nothing else: it is the same for every batch size.

    Args:
        scores: float [B,N].
        rows: [B,N,D] of any dtype; copied bit for bit.
        k: rows to keep of each batch entry, 0..N.

    Returns:
        rows [B,k,D] of the same dtype and index int32 [B,k], strictly ascending; both C-contiguous and owned by the caller.

    Raises:
        PromptError: if a shape or dtype does not fit, or k is not in 0..N.
    """
    if scores.ndim != 2 or not np.issubdtype(scores.dtype, np.floating):
        raise PromptError(expected("scores float [B, N]", f"{scores.dtype} {list(scores.shape)}", "Pass one score per row"))
    if rows.ndim != 3 or rows.shape[:2] != scores.shape:
        todo = "Pass as many rows as scores"
        raise PromptError(expected(f"rows [B, N, D] with [B, N] = {list(scores.shape)}", list(rows.shape), todo))
    if not 0 <= k <= scores.shape[1]:
        raise PromptError(expected(f"k in 0..{scores.shape[1]}", k, "There are no more rows to keep"))
    index = top_k(scores, k)
    return np.take_along_axis(rows, index[:, :, None], axis=1), index


def top_k(scores: npt.NDArray[np.floating], k: int) -> npt.NDArray[np.int32]:
    """Index int32 [B,k] of the k largest of scores [B,N], strictly ascending; order of equal ones as in `top_k_gather`."""
    ranking = np.argsort(-scores, axis=1, kind="stable")
    return np.sort(ranking[:, :k], axis=1).astype(np.int32)
