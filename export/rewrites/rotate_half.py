"""Complex rotation of adjacent pairs -> rotation of two halves, by permuting the projection's output channels once.

    before  q = W x, pairs (q0, q1), (q2, q3), ... multiplied by e^(i·angle)
    after   q' = W' x with W' = the even rows of W, then the odd rows; [a·cos - b·sin, b·cos + a·sin] on the halves a, b of q'

Scores q·k do not change when q and k are permuted alike. Mirrors `apply_rotary_enc` of facebookresearch/sam2 @2b90b9f
`sam2/modeling/position_encoding.py`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from fastsam2.enums import ExportTarget


def halves(projection: nn.Linear) -> nn.Linear:
    """A copy of `projection` whose even output channels come first, then the odd ones."""
    width = projection.out_features
    order = torch.cat([torch.arange(0, width, 2), torch.arange(1, width, 2)])
    copy = nn.Linear(projection.in_features, width)
    copy.weight = nn.Parameter(projection.weight.detach()[order].clone())
    copy.bias = nn.Parameter(projection.bias.detach()[order].clone())
    return copy


def rotate(x: torch.Tensor, index: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, target: ExportTarget) -> torch.Tensor:
    """Rotate each row by the angles of its table row. Under ONNXRUNTIME only the exported graph computes; eager gives zeros.

    Args:
        x: float32 [B, n, width], channels in halves order.
        index: integer [B, n], rows of the tables.
        cos: float32 [rows, width/2].
        sin: float32 [rows, width/2].
        target: one gathering RotaryEmbedding node for ONNX Runtime, gathers and mul/add for TensorRT.

    Returns:
        float32 [B, n, width].
    """
    if target is ExportTarget.ONNXRUNTIME:
        rows = x.reshape(-1, 1, x.shape[-1])  # each row a batch entry: the node refuses sequences longer than its tables
        turned = torch.onnx.ops.symbolic(
            "com.microsoft::RotaryEmbedding",
            (rows, index.reshape(-1, 1).to(torch.int64), cos, sin),
            {"interleaved": 0},
            dtype=x.dtype,
            shape=rows.shape,
            version=1,
        )
        return turned.reshape(x.shape)
    a, b = x.chunk(2, dim=-1)
    c, s = F.embedding(index, cos), F.embedding(index, sin)
    return torch.cat([a * c - b * s, b * c + a * s], dim=-1)
