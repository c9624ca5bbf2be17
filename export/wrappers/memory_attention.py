"""`SAM2Base._prepare_memory_conditioned_features` after frame selection, and `MemoryAttention` -> memory_attention.

Mirrors facebookresearch/sam2 @2b90b9f `sam2/modeling/sam2_base.py` and `sam2/modeling/memory_attention.py`, with these exact rewrites:
positions from tables, rotation of halves, absorbed values (ONNX Runtime target), and the first self-attention, whose input is the same for
every object, computed once for the whole batch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fastsam2.config import ModelSpec
from fastsam2.enums import ExportTarget
from fastsam2.export.rewrites import position_tables
from fastsam2.export.rewrites.attention import attend
from fastsam2.export.rewrites.rotate_half import halves, rotate
from fastsam2.export.rewrites.value_absorption import absorb


class MemoryAttentionCore(nn.Module):
    """What the memory_attention and query_attention graphs share: queries attend to each other, to memory rows and object pointers.

    Args:
        model: official SAM 2 model.
        spec: its sizes.
        target: form of the attention nodes, and value width.
    """

    sine: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    temporal: torch.Tensor
    token_position: torch.Tensor
    wavelength: torch.Tensor

    def __init__(self, model: Any, spec: ModelSpec, target: ExportTarget) -> None:
        super().__init__()
        self.spec, self.target = spec, target
        official = model.memory_attention
        self.norm = official.norm
        self.layers = nn.ModuleList(_Layer(layer, target) for layer in official.layers)
        encoding = model.memory_encoder.position_encoding
        self.register_buffer(
            "sine", position_tables.sine_table(spec.grid, spec.memory_dim, temperature=encoding.temperature, scale=encoding.scale)
        )
        rope = official.layers[0].cross_attn_image
        theta = position_tables.recover_theta(rope.freqs_cis, spec.hidden_dim)
        cos, sin = position_tables.rotary_tables(spec.grid, spec.hidden_dim, theta=theta)
        self.register_buffer("cos", cos)
        self.register_buffer("sin", sin)
        self.register_buffer("temporal", model.maskmem_tpos_enc.detach()[:, 0, 0])
        neck = model.image_encoder.neck.position_encoding
        grid_code = position_tables.sine_table(spec.grid, spec.hidden_dim, temperature=neck.temperature, scale=neck.scale)[: spec.tokens]
        self.register_buffer("token_position", 0.1 * grid_code[None] if official.pos_enc_at_input else torch.zeros(1, 1, 1))
        self.offset_projection = model.obj_ptr_tpos_proj
        half = spec.hidden_dim // 2
        self.register_buffer("wavelength", 10000.0 ** (2 * (torch.arange(half, dtype=torch.float32) // 2) / half))

    def pointer_tokens(self, pointers: torch.Tensor, pointer_offset: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pointers [B, P, C] split into [B, P·C/D, D], and the temporal code of each (official `get_1d_sine_pe`)."""
        tokens = pointers.unflatten(2, (self.spec.pointer_tokens, self.spec.memory_dim)).flatten(1, 2)
        if not self.spec.pointer_offsets:
            return tokens, pointer_offset.repeat_interleave(self.spec.pointer_tokens, dim=1).unsqueeze(-1) * 0.0
        angle = pointer_offset.unsqueeze(-1) / self.wavelength
        code = self.offset_projection(torch.cat([angle.sin(), angle.cos()], dim=-1))
        code = code.unsqueeze(2).expand(-1, -1, self.spec.pointer_tokens, -1).flatten(1, 2)
        return tokens, code

    def run_layers(
        self,
        x: torch.Tensor,
        query_index: torch.Tensor,
        memory: torch.Tensor,
        position: torch.Tensor,
        age: torch.Tensor,
        pointers: torch.Tensor,
        pointer_offset: torch.Tensor,
        memory_bias: torch.Tensor | None,
    ) -> torch.Tensor:
        """The residual stream after all layers, before the last norm, float32 [B, K, C].

        Args:
            x: float32 [1, K, C] for queries that all objects share, or [B, K, C]; positional code added.
            query_index: int32, of x's first two sizes: rows of the position tables.
            memory: as in `contracts`, like all that follow.
            position: see there.
            age: see there.
            pointers: see there.
            pointer_offset: see there.
            memory_bias: see there.
        """
        pointer_rows, pointer_code = self.pointer_tokens(pointers, pointer_offset)
        keys = torch.cat([memory + F.embedding(position, self.sine) + F.embedding(age, self.temporal), pointer_rows + pointer_code], dim=1)
        values = torch.cat([memory, pointer_rows], dim=1)
        identity = position.new_full((position.shape[0], pointer_rows.shape[1]), self.spec.table_rows - 1)
        key_index = torch.cat([position, identity], dim=1)
        for layer in self.layers:
            x = layer(x, query_index, keys, values, key_index, self.cos, self.sin, memory_bias)
        return x


class MemoryAttentionGraph(MemoryAttentionCore):
    """All tokens of the frame are queries."""

    def forward(
        self,
        tokens: torch.Tensor,
        memory: torch.Tensor,
        position: torch.Tensor,
        age: torch.Tensor,
        pointers: torch.Tensor,
        pointer_offset: torch.Tensor,
        memory_bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Inputs and outputs as in `contracts.graph_spec(MEMORY_ATTENTION, target)`."""
        grid = torch.arange(tokens.shape[1], dtype=position.dtype)[None]
        x = self.run_layers(tokens + self.token_position, grid, memory, position, age, pointers, pointer_offset, memory_bias)
        normed: torch.Tensor = self.norm(x)
        return normed


class _Layer(nn.Module):
    def __init__(self, layer: Any, target: ExportTarget) -> None:
        super().__init__()
        self.target = target
        self.official = layer
        own, cross = layer.self_attn, layer.cross_attn_image
        self.own_q, self.own_k = halves(own.q_proj), halves(own.k_proj)
        self.cross_q, self.cross_k = halves(cross.q_proj), halves(cross.k_proj)
        self.absorbed = absorb(cross.v_proj, cross.out_proj)

    def forward(
        self,
        x: torch.Tensor,
        query_index: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        key_index: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        layer, target = self.official, self.target
        index = query_index.expand(x.shape[0], -1)
        normed = layer.norm1(x)
        q = rotate(self.own_q(normed), index, cos, sin, target=target)
        k = rotate(self.own_k(normed), index, cos, sin, target=target)
        x = x + layer.self_attn.out_proj(attend(q, k, layer.self_attn.v_proj(normed), heads=1, target=target))

        q = rotate(self.cross_q(layer.norm2(x)), index, cos, sin, target=target).expand(keys.shape[0], -1, -1)
        k = rotate(self.cross_k(keys), key_index, cos, sin, target=target)
        if target is ExportTarget.ONNXRUNTIME:
            x = x + self.absorbed(attend(q, k, values, heads=1, target=target))
        else:
            cross = layer.cross_attn_image
            x = x + cross.out_proj(attend(q, k, cross.v_proj(values), heads=1, target=target, bias=bias))
        return x + layer.linear2(F.relu(layer.linear1(layer.norm3(x))))
