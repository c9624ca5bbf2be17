"""The oracle: facebookresearch/sam2's video predictor, driven through a scenario as time passes.

The official predictor holds a whole clip; asking it for one frame at a time (`max_frame_num_to_track=0`) and prompting in between gives
what a user would have seen live. Hole filling is off, which is what the official wheel does without its CUDA extension.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import sam2
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from fastsam2.export.random_weights import seeded

from .clips import Clip
from .compare import Run, Track
from .scenarios import Action, Event, Scenario

POSTPROCESSING = {  # what build_sam2_video_predictor(apply_postprocessing=True) overrides, but for fill_hole_area
    "model._target_": "sam2.sam2_video_predictor.SAM2VideoPredictor",
    "model.sam_mask_decoder_extra_args.dynamic_multimask_via_stability": True,
    "model.sam_mask_decoder_extra_args.dynamic_multimask_stability_delta": 0.05,
    "model.sam_mask_decoder_extra_args.dynamic_multimask_stability_thresh": 0.98,
    "model.binarize_mask_from_pts_for_mem_enc": True,
}


def official_predictor(
    config: str | Path,
    seed: int,
    *,
    image_size: int | None = None,
    score_gain: float = 1.0,
    score_bias: float = 3.0,
    weights: Path | None = None,
) -> torch.nn.Module:
    """The official predictor with conditioned weights, or those of a checkpoint.

    Args:
        config: a path inside the sam2 package (`configs/sam2.1/sam2.1_hiera_t.yaml`) or a yaml file.
        seed: of the weights.
        image_size: overrides the config's, pixels.
        score_gain: see `condition_weights`.
        score_bias: see `condition_weights`.
        weights: checkpoint in the official form, in place of seeded weights.
    """
    path = Path(config) if Path(config).is_absolute() else Path(sam2.__path__[0]) / config
    settings = OmegaConf.load(path)
    overrides: dict[str, Any] = dict(POSTPROCESSING)
    if image_size is not None:
        overrides["model.image_size"] = image_size
    for key, value in overrides.items():
        OmegaConf.update(settings, key, value, force_add=True)
    OmegaConf.resolve(settings)
    if weights is not None:
        model: torch.nn.Module = instantiate(settings.model, _recursive_=True)
        model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True)["model"])
        return model.eval()
    return seeded(lambda: instantiate(settings.model, _recursive_=True), seed, score_gain=score_gain, score_bias=score_bias)


@dataclass(frozen=True, slots=True)
class Images:
    """Pictures that the official predictors of one checkpoint have encoded.

    Attributes:
        known: digest of a picture -> what `forward_image` says of it.
        codes: the positional codes of every answer, most of its bytes: the same for all pictures.
    """

    known: dict[bytes, dict[str, Any]] = field(default_factory=dict)
    codes: list[torch.Tensor] = field(default_factory=list)


def cache_images(model: Any, images: Images) -> None:
    """Encode each picture once; scenarios share clips, and the encoder knows nothing of prompts."""
    encode = model.forward_image

    def forward_image(picture: torch.Tensor) -> dict[str, Any]:
        key = hashlib.sha256(picture.numpy().tobytes()).digest()
        if key not in images.known:
            answer = encode(picture)
            images.codes[:] = images.codes or answer["vision_pos_enc"]
            assert all(map(torch.equal, images.codes, answer["vision_pos_enc"]))
            images.known[key] = {**answer, "vision_pos_enc": images.codes}
        return {name: list(value) if isinstance(value, list) else value for name, value in images.known[key].items()}

    model.forward_image = forward_image


def save_checkpoint(model: torch.nn.Module, path: Path) -> Path:
    """Write the weights in the official form, `{"model": state_dict}`."""
    torch.save({"model": model.state_dict()}, path)
    return path


def run_official(predictor: Any, scenario: Scenario, clip: Clip, folder: Path) -> Run:
    """Track a clip with the official predictor.

    Args:
        predictor: from `official_predictor`.
        scenario: what happens when.
        clip: for mask prompts and the number of frames.
        folder: the clip, as written by `Clip.write_official`.
    """
    predictor.add_all_frames_to_correct_as_cond = scenario.corrections_as_prompts
    predictor.max_cond_frames_in_attn = scenario.max_prompt_frames
    state = predictor.init_state(str(folder))
    run: Run = {}
    for frame in range(len(clip.frames)):
        events = scenario.at(frame)
        for event in events:
            if event.action is Action.REMOVE:
                predictor.remove_object(state, event.id, strict=True, need_output=False)
        known = set(state["obj_ids"])
        for event in events:
            if event.action is not Action.REMOVE and event.id not in known:
                _prompt(predictor, state, event, clip)
        for _ in predictor.propagate_in_video(state, start_frame_idx=frame, max_frame_num_to_track=0):
            pass
        for event in events:
            if event.action is not Action.REMOVE and event.id in known:
                _prompt(predictor, state, event, clip)
        predictor.propagate_in_video_preflight(state)
        run.update({(frame, object_id): _track(predictor, state, frame, object_id) for object_id in state["obj_ids"]})
    return run


def _prompt(predictor: Any, state: Any, event: Event, clip: Clip) -> None:
    if event.mask is not None:
        predictor.add_new_mask(state, event.frame, event.id, clip.mask(event.frame, event.mask))
        return
    points = np.array(event.points, np.float32) if event.points else None
    labels = np.array(event.labels, np.int32) if event.points else None
    predictor.add_new_points_or_box(
        state, event.frame, event.id, points=points, labels=labels, box=event.box, clear_old_points=not event.append
    )


def _track(predictor: Any, state: Any, frame: int, object_id: int) -> Track:
    outputs = state["output_dict_per_obj"][state["obj_id_to_idx"][object_id]]
    kept = outputs["cond_frame_outputs"].get(frame) or outputs["non_cond_frame_outputs"][frame]
    _, video = predictor._get_orig_video_res_output(state, kept["pred_masks"])
    return Track(
        low_res=kept["pred_masks"][0, 0].numpy().copy(), score=float(kept["object_score_logits"].item()), video=video[0, 0].numpy().copy()
    )
