"""Seeded weights whose outputs react to everything a tracker can get wrong.

    official modules, initialised from a seed -> the same modules, with the layers that carry memory signals scaled up

Plain random weights prove nothing: object scores are negative, masks are empty or nearly constant, and a tracker that ignores temporal
codes, pointer offsets or even RoPE still "matches". Scaling the layers of those signals makes each such mistake visible in the masks,
while the model stays an ordinary SAM 2 checkpoint. Layers are those of facebookresearch/sam2 @2b90b9f `sam2/modeling/sam2_base.py`; the
masks mean nothing about a picture, so never use such a checkpoint for anything but tests and timing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

TEMPORAL_STD = 1.0  # age rows as large as the memory they are added to
EMBEDDING_STD = 0.5  # no-memory embedding and pointer-offset bias
ATTENTION_GAIN = 2.0  # every memory attention projection; sharper attention, larger residuals
CROSS_KEY_VALUE_GAIN = 2.0  # once more on keys and values of the memory
MASK_GAIN = 30.0  # logits of the order of 10 instead of 0.1
POINTER_OFFSET_GAIN = 20.0
POINTER_GAIN = 3.0  # per layer of the pointer projection
SCORE_BIAS = 3.0  # objects are visible


def seeded(build: Callable[[], torch.nn.Module], seed: int, *, score_gain: float = 1.0, score_bias: float = SCORE_BIAS) -> torch.nn.Module:
    """Build a model from the global random state of `seed` and condition its weights; the caller's random state is untouched.

    Args:
        build: makes the official model; called once, after seeding.
        seed: same seed, same torch version, same weights.
        score_gain: see `condition_weights`.
        score_bias: see `condition_weights`.

    Returns:
        The model `build` made, in eval mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
    condition_weights(model, seed, score_gain=score_gain, score_bias=score_bias)
    return model.eval()


@torch.no_grad()
def condition_weights(model: torch.nn.Module, seed: int, *, score_gain: float = 1.0, score_bias: float = SCORE_BIAS) -> None:
    """Scale a freshly initialised official `SAM2Base` in place. Not idempotent: call it once.

    Args:
        model: a SAM 2 or SAM 2.1 model of any width.
        seed: of the redrawn embeddings (a generator of its own, seeded with seed + 1).
        score_gain: factor on the object score; 1 keeps every score near `score_bias`, 30 or more lets it follow the frame (occlusion).
        score_bias: added to the object score logit.
    """
    official: Any = model
    generator = torch.Generator().manual_seed(seed + 1)
    official.maskmem_tpos_enc.normal_(0, TEMPORAL_STD, generator=generator)
    official.no_mem_embed.normal_(0, EMBEDDING_STD, generator=generator)
    head = official.sam_mask_decoder.pred_obj_score_head
    score = head.layers[-1] if hasattr(head, "layers") else head  # pred_obj_scores_mlp
    score.weight.mul_(score_gain)
    score.bias.add_(score_bias)
    for layer in official.memory_attention.layers:
        for attention in (layer.self_attn, layer.cross_attn_image):
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj):
                projection.weight.mul_(ATTENTION_GAIN)
        layer.cross_attn_image.k_proj.weight.mul_(CROSS_KEY_VALUE_GAIN)
        layer.cross_attn_image.v_proj.weight.mul_(CROSS_KEY_VALUE_GAIN)
    for mlp in official.sam_mask_decoder.output_hypernetworks_mlps:
        mlp.layers[-1].weight.mul_(MASK_GAIN)
    if isinstance(official.obj_ptr_tpos_proj, torch.nn.Linear):  # SAM 2.0: Identity
        official.obj_ptr_tpos_proj.weight.mul_(POINTER_OFFSET_GAIN)
        official.obj_ptr_tpos_proj.bias.normal_(0, EMBEDDING_STD, generator=generator)
    for layer in getattr(official.obj_ptr_proj, "layers", []):
        layer.weight.mul_(POINTER_GAIN)
