"""Positions computed from the shape of the grid -> rows of tables, gathered by index, so that any subset of rows is legal.

Row r of every table, for a g x g grid with N = g² tokens:

    0 .. N-1          token (y, x) = divmod(r, g)
    N .. N+N/4-1      centre of the pooled 2x2 cell (y, x) = divmod(r - N, g/2), at (2y + 0.5, 2x + 0.5)
    N+N/4             identity: no rotation, no spatial code (object pointers)

Mirrors `PositionEmbeddingSine` and `compute_axial_cis` of facebookresearch/sam2 @2b90b9f `sam2/modeling/position_encoding.py`; computed in
float64, so the tables differ from the official float32 arithmetic by a few 1e-6 at most (angles reach g - 1 radians).
"""

from __future__ import annotations

import math

import torch


def grid_centres(grid: int) -> torch.Tensor:
    """(y, x) of the N grid tokens and the N/4 pooled cells, float64 [N + N/4, 2], in units of tokens, first token at 0."""
    if grid % 2:
        raise ValueError(f"expected an even grid, got {grid}")
    full = torch.arange(grid, dtype=torch.float64)
    pooled = torch.arange(grid // 2, dtype=torch.float64) * 2 + 0.5
    return torch.cat([torch.cartesian_prod(full, full), torch.cartesian_prod(pooled, pooled)])


def sine_table(grid: int, channels: int, *, temperature: float, scale: float) -> torch.Tensor:
    """Spatial code of every table row, float32 [N + N/4 + 1, channels]: channels/2 of y, then channels/2 of x.

    Args:
        grid: g.
        channels: width of the code.
        temperature: official `PositionEmbeddingSine.temperature`.
        scale: official `PositionEmbeddingSine.scale` (2π).
    """
    centres = (grid_centres(grid) + 1) / (grid + 1e-6) * scale
    half = channels // 2
    wavelength = temperature ** (2 * (torch.arange(half, dtype=torch.float64) // 2) / half)
    angles = centres[:, :, None] / wavelength  # [rows, (y, x), half]
    code = torch.stack((angles[..., 0::2].sin(), angles[..., 1::2].cos()), dim=-1).flatten(1)
    return torch.cat([code, torch.zeros(1, channels, dtype=torch.float64)]).float()


def rotary_tables(grid: int, width: int, *, theta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of the axial rotary angles of every table row, each float32 [N + N/4 + 1, width/2].

    The first width/4 angles turn with x, the others with y, as in `compute_axial_cis`.

    Args:
        grid: g.
        width: head width.
        theta: official `rope_theta`.
    """
    centres = grid_centres(grid)
    frequency = theta ** -(torch.arange(0, width, 4, dtype=torch.float64)[: width // 4] / width)
    angles = torch.cat([centres[:, 1:] * frequency, centres[:, :1] * frequency], dim=1)
    angles = torch.cat([angles, torch.zeros(1, width // 2, dtype=torch.float64)])
    return angles.cos().float(), angles.sin().float()


def recover_theta(cis: torch.Tensor, width: int) -> float:
    """`rope_theta` of an official `RoPEAttention`, which keeps it only inside its table.

    Args:
        cis: official `freqs_cis`, complex [tokens, width/2]; token 1 lies at x = 1.
        width: head width.

    Raises:
        ValueError: if the table has no token at x = 1, or one frequency only.
    """
    if cis.shape[0] < 2 or width < 8:
        raise ValueError(f"expected at least two tokens and a head width of 8, got {tuple(cis.shape)} and {width}")
    slowest = float(torch.angle(cis[1, width // 4 - 1]))  # theta ** -((width - 4) / width); the faster ones would magnify rounding
    return float(f"{math.exp(-math.log(slowest) * width / (width - 4)):.6g}")
