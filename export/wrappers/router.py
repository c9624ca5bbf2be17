"""Ranks the memory rows of a frame: three cues of a cell -> two-layer MLP -> even noise -> softmax over the frame.

    tokens ─ norm ─ project to 32 ─┬─ h, 3x3 mean of h, |h - mean|, context ───────► [1,N,·] ─ Linear ─┐  once a frame
                                   └─ minus the frame's mean token, unit length ─► u                    │
    text ─ W ─► direction, cosine with u ─► relevance [B,N], has_text ─┐                                +─ MLP, noise, softmax ─► scores
    uncertainty ───────────────────────────────────────────────────────┼─► [B,N,·] ──────── Linear ────┘  for each object
    mask ─► coverage, how near the object is, likeness; score, IoU ────┘

The cues and the MLP follow arXiv 2512.21333 (local visual context, relevance to a text, uncertainty); it prunes tokens of the current
frame, this graph ranks memory rows. Two Linears whose outputs are added are one Linear on the concatenated features; the split lets all
objects share what depends on the frame alone. Ours, not the paper's: uncertainty read from the mask logits, the mask prior (what a text
would have to stand in for is known once an object is tracked), and likeness, the cosine of a cell with the object's mean token.

Cosines are taken after subtracting the frame's mean token: all tokens share a large common part, and what is left is what tells one cell
from another. `training/text_fit.py` fits W to the same differences. The sign of the relevance is not assumed: the MLP learns it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from fastsam2.config import IMAGE_STRIDE, LOW_RES_STRIDE, ModelSpec
from fastsam2.errors import ExportError, expected
from fastsam2.spread import even_noise

WIDTH = 32  # of projected tokens
HIDDEN = 64  # of the MLP
DROPOUT = 0.2  # share of hidden values dropped, where there is dropout
_NEIGHBOURS = 3  # cells along the side of a neighbourhood
_NEAR = 7  # the same for "near the object"
_REACH = 5  # the same for "within reach of the object"
_SHARED = 3 * WIDTH + 1
_OWN = 11
_SHORTEST = 1e-6  # lengths are divided by at least this


class RouterGraph(nn.Module):
    """Scores of every memory row of a frame.

    With `dropout_samples`, Monte-Carlo dropout: hidden values are dropped in training, and scores are the mean over that many fixed
    patterns of dropped values, which are constants of the graph and run as one matrix product. What a single pattern happens to rely on
    then counts less than what most agree on. The paper drops in the encoder; the official Hiera has no dropout to keep switched on, and
    each sample would cost an encoder run, so the dropout is added here.

    Args:
        spec: model sizes.
        projection: float32 [E, C], text embedding -> token; None for a router that never reads a text.
        dropout_samples: patterns, T; 0 for no dropout.

    Raises:
        ExportError: if the projection has another shape.
    """

    text_projection: torch.Tensor
    reads_text: torch.Tensor
    patterns: torch.Tensor
    noise: torch.Tensor

    def __init__(self, spec: ModelSpec, projection: torch.Tensor | None = None, *, dropout_samples: int = 0) -> None:
        super().__init__()
        shape = (spec.text_dim, spec.hidden_dim)
        if projection is not None and tuple(projection.shape) != shape:
            todo = "Fit it to this bundle with `fastsam2 fit-text`"
            raise ExportError(expected(f"a text projection {list(shape)}", list(projection.shape), todo))
        self.spec = spec
        self.project = nn.Linear(spec.hidden_dim, WIDTH)
        self.shared = nn.Linear(_SHARED, HIDDEN)
        self.own = nn.Linear(_OWN, HIDDEN, bias=False)
        self.score = nn.Linear(HIDDEN, 1, bias=False)  # a constant would cancel in the softmax
        self.register_buffer("text_projection", torch.zeros(shape) if projection is None else projection.detach().float().clone())
        self.register_buffer("reads_text", torch.tensor(float(projection is not None)))
        self.register_buffer("noise", torch.from_numpy(even_noise(spec.grid).copy()).unsqueeze(1), persistent=False)  # [N, 1]
        chance = torch.full((dropout_samples, HIDDEN), 1 - DROPOUT)
        self.register_buffer("patterns", torch.bernoulli(chance, generator=torch.Generator().manual_seed(0)) / (1 - DROPOUT))

    @property
    def dropout_samples(self) -> int:
        """T."""
        return len(self.patterns)

    def forward(
        self,
        tokens: torch.Tensor,
        text: torch.Tensor,
        has_text: torch.Tensor,
        low_res_logits: torch.Tensor,
        uncertainty: torch.Tensor,
        object_score: torch.Tensor,
        iou: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Inputs and outputs as in `contracts.GRAPHS[ROUTER]`; `relevance` is the cosine with the token minus the frame's mean token."""
        logits, relevance, context = self.rank(tokens, text, has_text, low_res_logits, uncertainty, object_score, iou)
        return (logits + self.noise).softmax(dim=1).mean(dim=-1), relevance, context

    def rank(
        self,
        tokens: torch.Tensor,
        text: torch.Tensor,
        has_text: torch.Tensor,
        low_res_logits: torch.Tensor,
        uncertainty: torch.Tensor,
        object_score: torch.Tensor,
        iou: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`forward` before noise and softmax, for training: with dropout, of one new pattern for each sample instead of the T fixed ones.

        Args:
            tokens: [1, N, C] as in the graph, or [B, N, C] where every object is on a frame of its own (its first axis is 1 or B below).
            text: [B, E].
            has_text: [B].
            low_res_logits: [B, 1, L, L].
            uncertainty: [B, N].
            object_score: [B].
            iou: [B].

        Returns:
            logits of the attention to come [B, N, patterns], relevance [B, N], context [1 or B, N].
        """
        context = self._context(tokens)
        hidden = self.shared(torch.cat([self._local(tokens), context.unsqueeze(-1)], dim=-1))  # [1 or B, N, HIDDEN]

        unit = _unit(tokens - tokens.mean(dim=1, keepdim=True))  # [1 or B, N, C]
        known = has_text.to(unit.dtype).unsqueeze(1) * self.reads_text  # [B, 1]
        given = torch.where(has_text.unsqueeze(1), text, torch.zeros_like(text))  # a text that is not there may hold anything
        relevance = _cosine(given @ self.text_projection, unit)  # 0 without text

        coverage = F.avg_pool2d(torch.sigmoid(low_res_logits), IMAGE_STRIDE // LOW_RES_STRIDE)  # [B, 1, g, g]
        covered = coverage.flatten(1)
        likeness = _cosine(torch.matmul(covered.unsqueeze(1), unit).squeeze(1), unit)
        of_object = (
            torch.stack([torch.sigmoid(object_score), iou, covered.mean(dim=1)], dim=1).unsqueeze(1).expand(-1, covered.shape[1], -1)
        )
        own = torch.stack(
            [
                relevance,
                known.expand(-1, covered.shape[1]),
                uncertainty,
                covered,
                _mean_around(coverage, _NEIGHBOURS).flatten(1),
                _mean_around(coverage, _NEAR).flatten(1),
                F.max_pool2d(coverage, _REACH, stride=1, padding=_REACH // 2).flatten(1),
                likeness,
            ],
            dim=-1,
        )
        hidden = hidden + self.own(torch.cat([own, of_object.expand(-1, covered.shape[1], -1)], dim=-1))
        hidden = F.gelu(hidden)
        if self.dropout_samples and not self.training:
            return torch.matmul(hidden, (self.patterns * self.score.weight).T), relevance, context
        if self.dropout_samples:
            hidden = hidden * F.dropout(torch.ones_like(hidden[:, :1]), DROPOUT)
        return self.score(hidden), relevance, context

    def _local(self, tokens: torch.Tensor) -> torch.Tensor:
        """Projected tokens, their neighbourhood's mean and the distance to it, [1 or B, N, 3 · WIDTH]."""
        projected = self._as_map(self.project(F.layer_norm(tokens, (tokens.shape[-1],))))
        around = _mean_around(projected, _NEIGHBOURS)
        return torch.cat([projected, around, (projected - around).abs()], dim=1).flatten(2).transpose(1, 2)

    def _context(self, tokens: torch.Tensor) -> torch.Tensor:
        """Distance of a token to the mean of its neighbourhood, in mean token lengths, [1 or B, N]."""
        grid = self._as_map(tokens)
        apart = (grid - _mean_around(grid, _NEIGHBOURS)).square().sum(dim=1).sqrt().flatten(1)
        length = tokens.square().sum(dim=-1).sqrt().mean(dim=1, keepdim=True)
        return apart / length.clamp_min(_SHORTEST)

    def _as_map(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.transpose(1, 2).unflatten(2, (self.spec.grid, self.spec.grid))


def _unit(rows: torch.Tensor) -> torch.Tensor:
    """Rows of unit length; a row of zeros stays zero."""
    return rows / rows.square().sum(dim=-1, keepdim=True).sqrt().clamp_min(_SHORTEST)


def _cosine(direction: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
    """Cosine of each direction [B, C] with unit rows [1 or B, N, C], [B, N]."""
    return torch.matmul(unit, _unit(direction).unsqueeze(-1)).squeeze(-1)


def _mean_around(cells: torch.Tensor, side: int) -> torch.Tensor:
    """Mean over side x side cells, of those inside the frame."""
    return F.avg_pool2d(cells, side, stride=1, padding=side // 2, count_include_pad=False)


def multiply_adds(spec: ModelSpec, objects: int = 1, dropout_samples: int = 0) -> int:
    """Multiply-adds of one call: matrix products, and one for each value a pooling window reads.

    Args:
        spec: model sizes.
        objects: B.
        dropout_samples: T.
    """
    n, c = spec.tokens, spec.hidden_dim
    window = _NEIGHBOURS**2
    frame = n * (c * WIDTH + _SHARED * HIDDEN + window * (c + WIDTH) + 5 * c)  # 5: normalising, three lengths, the frame's mean
    pooled = (IMAGE_STRIDE // LOW_RES_STRIDE) ** 2 + window + _NEAR**2 + _REACH**2
    one = spec.text_dim * c + n * (3 * c + (_OWN + max(1, dropout_samples)) * HIDDEN + pooled)
    return frame + objects * one
