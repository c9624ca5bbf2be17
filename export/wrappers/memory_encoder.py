"""Upsampling of the low-resolution logits and `SAM2Base._encode_new_memory` -> memory_encoder.

Mirrors facebookresearch/sam2 @2b90b9f `sam2/modeling/sam2_base.py` and `sam2/modeling/memory_encoder.py`. The image branch is the same
for all objects and is computed once for the batch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fastsam2.config import ModelSpec


class MemoryEncoderGraph(nn.Module):
    """Tokens and masks -> memory rows.

    Args:
        model: official SAM 2 model.
        spec: its sizes.
    """

    def __init__(self, model: Any, spec: ModelSpec) -> None:
        super().__init__()
        self.model, self.spec = model, spec

    def forward(
        self, tokens: torch.Tensor, low_res_logits: torch.Tensor, object_score: torch.Tensor, prompted: torch.Tensor
    ) -> torch.Tensor:
        """Inputs and outputs as in `contracts.GRAPHS[MEMORY_ENCODER]`."""
        model, encoder, size = self.model, self.model.memory_encoder, self.spec.image_size
        logits = F.interpolate(low_res_logits, size=(size, size), mode="bilinear", align_corners=False)
        mask = torch.sigmoid(logits)
        if model.binarize_mask_from_pts_for_mem_enc:
            mask = torch.where(prompted[:, None, None, None], (logits > 0).to(logits.dtype), mask)
        mask = mask * model.sigmoid_scale_for_mem_enc + model.sigmoid_bias_for_mem_enc
        features = tokens.transpose(1, 2).unflatten(2, (self.spec.grid, self.spec.grid))
        x = encoder.pix_feat_proj(features) + encoder.mask_downsampler(mask)
        rows: torch.Tensor = encoder.out_proj(encoder.fuser(x)).flatten(2).transpose(1, 2)
        if model.no_obj_embed_spatial is not None:
            absent = 1 - (object_score > 0).to(rows.dtype)
            rows = rows + absent[:, None, None] * model.no_obj_embed_spatial
        return rows
