"""torch scaled_dot_product_attention with explicit heads -> one attention node per target.

ONNX Runtime: com.microsoft MultiHeadAttention on [B, tokens, heads * width] (no head transposes; values may be narrower than keys).
TensorRT: standard `Attention` of opset 23, which torch's exporter emits for scaled_dot_product_attention.

`fused` swaps the forward of the official `Attention` (mask decoder) and `MultiScaleAttention` (Hiera) while a graph is exported.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from sam2.modeling.backbones.hieradet import MultiScaleAttention, do_pool
from sam2.modeling.sam.transformer import Attention

from fastsam2.enums import ExportTarget


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, heads: int, target: ExportTarget, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Softmax attention, float32 [B, Nq, heads * value width]. Under ONNXRUNTIME only the exported graph computes; eager gives zeros.

    Args:
        q: [B, Nq, heads * width].
        k: [B, Nk, heads * width].
        v: [B, Nk, heads * value width].
        heads: number of heads; the scale is 1/sqrt(width).
        target: form of the node.
        bias: [B, Nk], added to the logits of each key; TENSORRT only.
    """
    if target is ExportTarget.ONNXRUNTIME:
        if bias is not None:
            raise ValueError("expected no bias for the onnxruntime target: batch objects of equal counts instead")
        return torch.onnx.ops.symbolic(
            "com.microsoft::MultiHeadAttention",
            (q, k, v),
            {"num_heads": heads},
            dtype=q.dtype,
            shape=(q.shape[0], q.shape[1], v.shape[2]),
            version=1,
        )
    mask = None if bias is None else bias[:, None, None, :].expand(-1, heads, q.shape[1], -1)
    q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def _decoder_attention(self: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    mixed = attend(self.q_proj(q), self.k_proj(k), self.v_proj(v), heads=self.num_heads, target=ExportTarget.ONNXRUNTIME)
    return self.out_proj(mixed)


def _hiera_attention(self: Any, x: torch.Tensor) -> torch.Tensor:
    batch, height, width, _ = x.shape
    q, k, v = self.qkv(x).reshape(batch, height * width, 3, -1).unbind(2)
    if self.q_pool:
        pooled = do_pool(q.reshape(batch, height, width, -1), self.q_pool)
        height, width = pooled.shape[1:3]
        q = pooled.reshape(batch, height * width, -1)
    mixed = attend(q, k, v, heads=self.num_heads, target=ExportTarget.ONNXRUNTIME)
    return self.proj(mixed.reshape(batch, height, width, -1))


@contextmanager
def fused(target: ExportTarget) -> Iterator[None]:
    """While active, official attention modules trace to the node of `target`."""
    if target is not ExportTarget.ONNXRUNTIME:
        yield
        return
    with mock.patch.object(Attention, "forward", _decoder_attention), mock.patch.object(MultiScaleAttention, "forward", _hiera_attention):
        yield
