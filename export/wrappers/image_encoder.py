"""`SAM2Base.forward_image` and input normalisation -> image_encoder.

Mirrors facebookresearch/sam2 @2b90b9f `sam2/modeling/sam2_base.py` (forward_image) and `sam2/utils/misc.py` (mean and std of the loader).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class ImageEncoderGraph(nn.Module):
    """uint8 pixels -> tokens and the two high-resolution maps.

    Args:
        model: official SAM 2 model.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(STD)[:, None, None])

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Inputs and outputs as in `contracts.GRAPHS[IMAGE_ENCODER]`."""
        out = self.model.forward_image((pixels.float() / 255.0 - self.mean) / self.std)
        high_res_0, high_res_1, top = out["backbone_fpn"]
        return top.flatten(2).transpose(1, 2), high_res_0, high_res_1
