"""`SAM2Base._forward_sam_heads` with its prompt encoder -> mask_decoder.

Mirrors facebookresearch/sam2 @2b90b9f `sam2/modeling/sam2_base.py`, `sam2/modeling/sam/mask_decoder.py` and `prompt_encoder.py`. Optional
inputs of the official method are per-object flags here; the choice among masks, the stability fallback and the handling of invisible
objects are inside the graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fastsam2.config import ModelSpec
from fastsam2.contracts import LABEL_PADDING, NO_OBJECT_LOGIT


def _choose(candidates: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """candidates[b, index[b]] for [B, n, ...] and int64 [B]."""
    shape = (-1, 1, *([1] * (candidates.dim() - 2)))
    return candidates.gather(1, index.view(shape).expand(-1, 1, *candidates.shape[2:])).squeeze(1)


class MaskDecoderGraph(nn.Module):
    """Conditioned tokens and prompts -> one mask per object.

    Args:
        model: official SAM 2 model.
        spec: its sizes.
    """

    dense_position: torch.Tensor

    def __init__(self, model: Any, spec: ModelSpec) -> None:
        super().__init__()
        self.model, self.spec = model, spec
        self.register_buffer("dense_position", model.sam_prompt_encoder.get_dense_pe().detach())

    def forward(
        self,
        conditioned: torch.Tensor,
        high_res_0: torch.Tensor,
        high_res_1: torch.Tensor,
        points: torch.Tensor,
        labels: torch.Tensor,
        mask_prompt: torch.Tensor,
        has_mask: torch.Tensor,
        multimask: torch.Tensor,
        first_frame: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """Inputs and outputs as in `contracts.GRAPHS[MASK_DECODER]`."""
        model = self.model
        features = conditioned + first_frame[:, None, None] * model.no_mem_embed
        return self.decode(features, high_res_0, high_res_1, points, labels, mask_prompt, has_mask, multimask)

    def decode(
        self,
        features: torch.Tensor,
        high_res_0: torch.Tensor,
        high_res_1: torch.Tensor,
        points: torch.Tensor,
        labels: torch.Tensor,
        mask_prompt: torch.Tensor,
        has_mask: torch.Tensor,
        multimask: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """The same without the no-memory embedding: logits [B, 1, L, L], iou [B], pointer [B, C], object score [B]."""
        model, encoder, decoder = self.model, self.model.sam_prompt_encoder, self.model.sam_mask_decoder
        grid = self.spec.grid
        sparse = encoder._embed_points(points, labels, pad=True)
        no_mask = encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
        dense = torch.where(has_mask[:, None, None, None], encoder._embed_masks(mask_prompt), no_mask)
        masks, ious, mask_tokens, score = decoder.predict_masks(
            image_embeddings=features.transpose(1, 2).unflatten(2, (grid, grid)),
            image_pe=self.dense_position,
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            repeat_image=False,
            high_res_features=[high_res_0, high_res_1],
        )
        best = ious[:, 1:].argmax(dim=-1) + 1
        single = torch.zeros_like(best)
        if decoder.dynamic_multimask_via_stability:
            stable = decoder._get_stability_scores(masks[:, 0]) >= decoder.dynamic_multimask_stability_thresh
        else:
            stable = torch.ones_like(multimask)
        chosen = torch.where(multimask | ~stable, best, single)
        visible = score > 0
        logits = torch.where(visible[:, :, None, None], _choose(masks, chosen)[:, None], NO_OBJECT_LOGIT)
        token_index = torch.where(multimask, best, single) if decoder.use_multimask_token_for_obj_ptr else single
        pointer = model.obj_ptr_proj(_choose(mask_tokens, token_index))
        pointer = blend_no_object(model, pointer, visible)
        return logits, _choose(ious[..., None], chosen)[:, 0], pointer, score[:, 0]

    def padding(self, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Points and labels of a frame without prompts."""
        return torch.zeros(batch, 1, 2), torch.full((batch, 1), LABEL_PADDING, dtype=torch.int32)


def blend_no_object(model: Any, pointer: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Pointer [B, C] with the official no-object pointer mixed in where `visible` [B, 1] is false."""
    present = visible.to(pointer.dtype)
    if model.fixed_no_obj_ptr:
        pointer = present * pointer
    return pointer + (1 - present) * model.no_obj_ptr
