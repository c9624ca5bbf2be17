"""`CLIPModel.get_image_features` and input normalisation -> crop_encoder.

    crop uint8 [1, 3, I, I] -> scale, mean, std -> vision transformer -> row of the class token -> projection -> unit length

Calls the `vision_model` of huggingface/transformers `models/clip/modeling_clip.py` (read and tested with 5.23) as it is; the normalisation
is that of its `CLIPImageProcessor`. The output is not called "embedding", because torch gives that name to a value inside the graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

# Of openai/CLIP, the defaults of CLIPImageProcessor.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
SCALE = 1 / 255


@dataclass(frozen=True, slots=True)
class Normalisation:
    """(pixel · scale - mean) / std, with pixels 0..255.

    Attributes:
        scale: of all channels.
        mean: of red, green and blue.
        std: of red, green and blue.
    """

    scale: float = SCALE
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD


class CropEncoderGraph(nn.Module):
    """A picture -> its embedding.

    Args:
        model: a `CLIPModel`, of which only the image half becomes part of this module.
        normalisation: of its image processor.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, model: Any, normalisation: Normalisation) -> None:
        super().__init__()
        self.vision_model, self.visual_projection = model.vision_model, model.visual_projection
        self.scale = normalisation.scale
        self.register_buffer("mean", torch.tensor(normalisation.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(normalisation.std)[:, None, None])

    def forward(self, crop: torch.Tensor) -> torch.Tensor:
        """Inputs and outputs as in `contracts.GRAPHS[CROP_ENCODER]`."""
        pooled = self.vision_model(pixel_values=(crop.float() * self.scale - self.mean) / self.std).pooler_output
        return F.normalize(self.visual_projection(pooled), dim=-1)
