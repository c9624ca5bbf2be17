"""`CLIPTextModelWithProjection.forward` -> text_encoder.

    ids [T, 77] -> token + position embeddings -> causal transformer -> row of the end token -> projection -> unit length

Calls the `text_model` of huggingface/transformers `models/clip/modeling_clip.py` (read and tested with 5.23) as it is, so the end token is
found as there: where `config.eos_token_id` is 2, as in checkpoints from before that field was right, it is the highest id of the row;
otherwise the first one equal to `config.eos_token_id`. Nothing attends to what comes later, so padding behind the end token has no
influence and the graph takes no attention mask.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class TextEncoderGraph(nn.Module):
    """Token ids -> text embeddings.

    Args:
        model: a `CLIPTextModelWithProjection`, or a `CLIPModel`, of which only the text half becomes part of this module. Any attention
            implementation exports; `eager` gives plain operators, `sdpa` the Attention of opset 23.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.text_model, self.text_projection = model.text_model, model.text_projection

    @property
    def text_dim(self) -> int:
        """E, the width of the embeddings."""
        return int(self.text_projection.out_features)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Inputs and outputs as in `contracts.GRAPHS[TEXT_ENCODER]`."""
        pooled = self.text_model(input_ids=ids).pooler_output
        return F.normalize(self.text_projection(pooled), dim=-1)
