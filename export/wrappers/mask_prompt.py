"""`SAM2Base._use_mask_as_output` -> mask_prompt.

Mirrors facebookresearch/sam2 @2b90b9f `sam2/modeling/sam2_base.py`. The antialiased 4x shrink becomes two matrix products (TensorRT knows
no antialiased resize).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fastsam2.config import LOW_RES_STRIDE, ModelSpec
from fastsam2.export.wrappers.mask_decoder import MaskDecoderGraph, blend_no_object

MASK_SCALE, MASK_BIAS = 20.0, -10.0  # official: 0/1 -> logits ±10


def shrink_matrix(size: int) -> torch.Tensor:
    """Antialiased bilinear shrink by 4 as a matrix, float32 [size/4, size]."""
    identity = torch.eye(size)[None, None]
    return F.interpolate(identity, size=(size // LOW_RES_STRIDE, size), mode="bilinear", align_corners=False, antialias=True)[0, 0]


class MaskPromptGraph(nn.Module):
    """A given mask becomes the output mask; the decoder only makes its pointer.

    Args:
        model: official SAM 2 model.
        spec: its sizes.
    """

    shrink: torch.Tensor

    def __init__(self, model: Any, spec: ModelSpec) -> None:
        super().__init__()
        self.model = model
        self.decoder = MaskDecoderGraph(model, spec)
        self.register_buffer("shrink", shrink_matrix(spec.image_size))

    def forward(
        self, tokens: torch.Tensor, high_res_0: torch.Tensor, high_res_1: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Inputs and outputs as in `contracts.GRAPHS[MASK_PROMPT]`."""
        logits = self.shrink @ (mask * MASK_SCALE + MASK_BIAS) @ self.shrink.T
        batch = mask.shape[0]
        points, labels = self.decoder.padding(batch)
        given = torch.ones(batch, dtype=torch.bool)
        small = self.model.mask_downsample(mask)
        features = tokens.expand(batch, -1, -1)
        _, _, pointer, _ = self.decoder.decode(features, high_res_0, high_res_1, points, labels, small, given, ~given)
        present = mask.flatten(1).amax(dim=1, keepdim=True) > 0
        pointer = blend_no_object(self.model, pointer, present)
        return logits, pointer, present[:, 0].to(mask.dtype) * MASK_SCALE + MASK_BIAS
