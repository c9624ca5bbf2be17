"""`SAM2Base` for training: inference semantics everywhere, and every candidate mask handed out for the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from sam2.modeling.position_encoding import PositionEmbeddingSine
from sam2.modeling.sam2_base import NO_OBJ_SCORE, SAM2Base
from torch import Tensor
from torch.nn import functional

from fastsam2.config import POSTPROCESSING

CONFIG = Path(__file__).with_name("nano.yaml")


@dataclass(frozen=True, slots=True)
class Candidates:
    """All the decoder says on one frame, before any choice.

    Attributes:
        logits: [B, 4, L, L].
        iou: [B, 4], 0..1.
        score: [B, 1], logit.
        pixels: [B, C, L, L], the embedding that a mask's own vector is multiplied with to give its logits.
        embedding: [B, D, L / 4, L / 4], what the decoder was given: image features, read against the memory from the second frame on.
    """

    logits: Tensor
    iou: Tensor
    score: Tensor
    pixels: Tensor
    embedding: Tensor


class TrainableSam2(SAM2Base):  # type: ignore[misc]
    """The official model in evaluation mode, with two differences while training.

    `candidates` holds what the last decoder run gave. `present`, when set, is the truth about who is in the frame ([B] bool) and stands in
    for the predicted object score where it gates masks and pointers: a wrong score early in training would otherwise hide every mask.
    """

    candidates: Candidates | None = None
    present: Tensor | None = None
    _pixels: Tensor

    def keep_pixels(self, module: object, inputs: object, output: Tensor) -> None:
        """Forward hook of the decoder's upscaling: what it gave, for `candidates`."""
        self._pixels = output

    def _forward_sam_heads(
        self,
        backbone_features: Tensor,
        point_inputs: dict[str, Tensor] | None = None,
        mask_inputs: Tensor | None = None,
        high_res_features: list[Tensor] | None = None,
        multimask_output: bool = False,
    ) -> tuple[Tensor, ...]:
        """As facebookresearch/sam2 @2b90b9f `SAM2Base._forward_sam_heads`, in evaluation mode."""
        count, device = len(backbone_features), backbone_features.device
        if point_inputs is None:
            points, labels = torch.zeros(count, 1, 2, device=device), -torch.ones(count, 1, dtype=torch.int32, device=device)
        else:
            points, labels = point_inputs["point_coords"], point_inputs["point_labels"]
        if mask_inputs is not None and mask_inputs.shape[-2:] != self.sam_prompt_encoder.mask_input_size:
            size = self.sam_prompt_encoder.mask_input_size
            mask_inputs = functional.interpolate(mask_inputs.float(), size=size, mode="bilinear", align_corners=False, antialias=True)
        sparse, dense = self.sam_prompt_encoder(points=(points, labels), boxes=None, masks=mask_inputs)
        decoder = self.sam_mask_decoder
        logits, iou, tokens, score = decoder.predict_masks(
            image_embeddings=backbone_features,
            image_pe=self.sam_prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            repeat_image=False,
            high_res_features=high_res_features,
        )
        self.candidates = Candidates(logits, iou, score, self._pixels, backbone_features)
        appears = score > 0 if self.present is None else self.present[:, None]
        gated = torch.where(appears[:, None, None], logits, NO_OBJ_SCORE)
        rows = torch.arange(count, device=device)
        if multimask_output:
            best = 1 + iou[:, 1:].argmax(-1)
            low, best_iou, token = gated[rows, best][:, None], iou[rows, best][:, None], tokens[rows, best]
        else:
            low, best_iou = decoder._dynamic_multimask_via_stability(gated, iou)
            token = tokens[:, 0]
        high = functional.interpolate(low, scale_factor=4.0, mode="bilinear", align_corners=False)
        there = appears.float()
        pointer = there * self.obj_ptr_proj(token) + (1 - there) * self.no_obj_ptr
        return low, high, best_iou, low, high, pointer, torch.where(appears, 1.0, -1.0) if self.present is not None else score


def look_at(model: TrainableSam2, side: int, row: int = 0, column: int = 0) -> None:
    """From now on take frames to be pieces of whole ones: every table of positions answers with that piece of itself.

    What is learned on pieces then holds for whole frames, which cost as many times as much as they have pixels more, and in memory
    attention the square of that.

    Args:
        model: built for whole frames, `model.image_size` pixels a side.
        side: of a piece, pixels; a multiple of 128, the widest window of the encoder, as are the others.
        row: of its upper edge in the whole frame.
        column: of its left edge.
    """
    whole, prompts, trunk = model.image_size, model.sam_prompt_encoder, model.image_encoder.trunk

    def piece(table: Tensor, axis: int) -> Tensor:
        cells = table.shape[axis]
        top, left, n = row * cells // whole, column * cells // whole, side * cells // whole
        return table.narrow(axis, top, n).narrow(axis + 1, left, n)

    def sine(module: PositionEmbeddingSine) -> Callable[[Tensor], Tensor]:
        def positions(x: Tensor) -> Tensor:
            height, width = (n * whole // side for n in x.shape[-2:])
            return piece(module._pe(1, x.device, height, width), 2).expand(len(x), -1, -1, -1)

        return positions

    for module in (model.image_encoder.neck.position_encoding, model.memory_encoder.position_encoding):
        module.forward = sine(module)
    trunk._get_pos_embed = lambda hw: piece(type(trunk)._get_pos_embed(trunk, [n * whole // side for n in hw]), 1)
    cells = model.sam_image_embedding_size
    prompts.get_dense_pe = lambda: piece(prompts.pe_layer((cells, cells))[None], 2)
    prompts.image_embedding_size = (cells * side // whole,) * 2
    prompts.mask_input_size = (4 * cells * side // whole,) * 2
    prompts._embed_points = lambda points, labels, pad: type(prompts)._embed_points(
        prompts, points + torch.tensor([column, row], device=points.device), labels, pad
    )


def build_model(image_size: int) -> TrainableSam2:
    """A nano with fresh weights.

    Args:
        image_size: side of its square input, pixels; a multiple of 64. Weights do not depend on it.
    """
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    config = OmegaConf.load(CONFIG).model
    config._target_ = f"{TrainableSam2.__module__}.{TrainableSam2.__qualname__}"
    config.image_size = image_size
    for option, value in POSTPROCESSING.items():
        OmegaConf.update(config, option, value, force_add=True)
    model = instantiate(config, _recursive_=True)
    assert isinstance(model, TrainableSam2)
    model.sam_mask_decoder.output_upscaling[-1].register_forward_hook(model.keep_pixels)
    return model.eval()
