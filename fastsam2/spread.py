"""Orders in which cells of a grid are taken so that they lie evenly.

    Bayer's matrix ─► uniform_scores [N]: any K largest are spread over the grid
                              └─► even_noise [N]: the K largest of log-density + noise are a sample in proportion to the density

Both are the same on every frame and for every object.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

_CENTRING = 0x55555555  # flips every second coordinate bit, so that a coarse lattice sits in the middle of its cells, not in their corners


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


@lru_cache(maxsize=8)
def even_noise(grid: int) -> npt.NDArray[np.float32]:
    """Values of a standard Gumbel distribution, one for each cell, the larger the earlier the cell comes in `uniform_scores`.

    The K largest of log-probability plus Gumbel noise are a sample without replacement in proportion to the probabilities (Gumbel-top-k,
    arXiv 1903.06059). With the quantiles of that distribution laid out in Bayer's order instead of drawn by chance, the sample is the same
    each time and as even as a halftone: equal probabilities give the uniform order, a probability near 1 is always taken.

    Args:
        grid: g, cells along one side.

    Returns:
        float32 [g²], row-major, read-only (shared between callers).
    """
    quantile = (uniform_scores(grid).astype(np.float64) + 0.5) / grid**2
    noise = (-np.log(-np.log(quantile))).astype(np.float32)
    noise.flags.writeable = False
    return noise
