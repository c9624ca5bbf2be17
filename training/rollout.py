"""One training step: follow the objects of a batch through its frames with the official `track_step`, and sum the losses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fastsam2.training.clips import Batch, Objects
from fastsam2.training.matching import matching_loss
from fastsam2.training.model import Candidates, TrainableSam2, look_at

_MEAN = (0.485, 0.456, 0.406)  # ImageNet, as sam2/utils/misc.py
_STD = (0.229, 0.224, 0.225)
_NEAR = 7  # logits round an object that count as its surroundings
_READ_RIDGE = 1e-2  # of the mean second moment of what is read from the memory
_READ_WEIGHT = 0.5
_STEEPNESS = 4.0  # logits of these rules where they are sure
_LEAST_WAY = 1e-3  # squared distance of two means


@dataclass(frozen=True, slots=True)
class Rolled:
    """Loss to differentiate, and what to print: mean IoU of the chosen masks on prompted and on tracked frames, right scores, matching."""

    loss: Tensor
    prompted_iou: float
    tracked_iou: float
    score_accuracy: float
    matching: float = float("nan")


def to_input(frames: Tensor) -> Tensor:
    """uint8 [n, 3, S, S] to normalised float32."""
    mean = torch.tensor(_MEAN, device=frames.device)[:, None, None]
    std = torch.tensor(_STD, device=frames.device)[:, None, None]
    return (frames.float() / 255 - mean) / std


def roll(model: TrainableSam2, batch: Batch, *, device: torch.device, teach_presence: bool, matching: float = 0.0) -> Rolled:
    """Track a batch.

    Args:
        model: in evaluation mode.
        batch: frames, truth and prompts.
        device: where the model is.
        teach_presence: gate masks by the truth about who is in the frame instead of the model's score.
        matching: weight of `matching_loss`.
    """
    look_at(model, batch.frames.shape[-1], *batch.place)
    frames = torch.from_numpy(batch.frames).to(device, non_blocking=True)
    backbone = model.forward_image(to_input(frames.flatten(0, 1)))
    _, features, positions, sizes = model._prepare_backbone_features(backbone)
    seen = _Seen(features, positions, sizes, batch.frames.shape[1])
    parts = [_follow(model, seen, objects, teach_presence=teach_presence) for objects in batch.objects]
    loss, matched = torch.stack([part.loss for part in parts]).sum(), float("nan")
    if matching:
        rule = matching_loss(model, features[-1], positions[-1], torch.from_numpy(batch.ids).to(device))
        loss, matched = loss + matching * rule, float(rule.detach())
    prompted, tracked, right = (_mean([x for part in parts for x in part.told[k]]) for k in range(3))
    return Rolled(loss, prompted, tracked, right, matched)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the image encoder made of all frames, as `SAM2Base.track_step` takes it: lists by level, [h * w, clips * T, C]."""

    features: list[Tensor]
    positions: list[Tensor]
    sizes: list[tuple[int, int]]
    length: int


@dataclass(frozen=True, slots=True)
class _Followed:
    """Loss of some objects, and what is told of them: IoU where prompted, IoU where tracked, right scores."""

    loss: Tensor
    told: tuple[list[Tensor], list[Tensor], list[Tensor]]


def _follow(model: TrainableSam2, seen: _Seen, objects: Objects, *, teach_presence: bool) -> _Followed:
    """Prompt objects and track them over the frames they have masks for."""
    device, length = seen.features[-1].device, len(objects.masks)
    truth = torch.from_numpy(objects.masks).to(device, non_blocking=True).float()
    first = torch.from_numpy(objects.clip * seen.length + objects.start).to(device)
    low = functional.adaptive_avg_pool2d(truth, truth.shape[-1] // 4)
    present = truth.flatten(2).any(-1)
    prompts = objects.prompts
    points = None
    if prompts.points is not None and prompts.labels is not None:
        points = {"point_coords": torch.from_numpy(prompts.points).to(device), "point_labels": torch.from_numpy(prompts.labels).to(device)}
    masks = None if prompts.masks is None else torch.from_numpy(prompts.masks).to(device)

    memory: dict[str, dict[int, dict[str, Tensor]]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
    losses: list[Tensor] = []
    told: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    read: list[tuple[Tensor, Tensor]] = []
    for t in range(length):
        rows = first + t
        model.present = present[t] if teach_presence else None
        out = model.track_step(
            frame_idx=t,
            is_init_cond_frame=t == 0,
            current_vision_feats=[f[:, rows] for f in seen.features],
            current_vision_pos_embeds=[p[:, rows] for p in seen.positions],
            feat_sizes=seen.sizes,
            point_inputs=points if t == 0 else None,
            mask_inputs=masks if t == 0 else None,
            output_dict=memory,
            num_frames=max(length, 16),
            run_mem_encoder=t + 1 < length,
        )
        memory["cond_frame_outputs" if t == 0 else "non_cond_frame_outputs"][t] = out
        if t == 0 and masks is not None:
            continue  # the mask itself is the answer; the decoder only makes its pointer
        assert model.candidates is not None
        losses.append(frame_loss(model.candidates, low[t], present[t]))
        if t:
            read.append((model.candidates.embedding[present[t]], low[t][present[t]]))
        with torch.no_grad():
            told[t > 0].append(_iou(out["pred_masks"][:, 0] > 0, low[t] > 0.5)[present[t]])
            told[2].append(((model.candidates.score[:, 0] > 0) == present[t]).float())
    model.present = None
    loss = torch.stack(losses).mean()
    if read:
        loss = loss + _READ_WEIGHT * reading_loss(*map(torch.cat, zip(*read, strict=True)))
    return _Followed(loss, told)


def frame_loss(candidates: Candidates, target: Tensor, present: Tensor) -> Tensor:
    """Mask loss of all masks where the object is present, L1 of predicted IoUs, cross-entropy of the object score.

    The mask loss is Dice + 2 x cross-entropy over the frame + cross-entropy over the object and its surroundings: an object covers one to
    three hundredths of a frame, so a mean over the whole says next to nothing about its edges. Mask 0 (single-mask prompts) counts once;
    of masks 1 to 3 the best and the mean count half each, so that none of them starves. One more mask, by a simple rule on the pixel
    embedding (`nearer_mean`), teaches that embedding what the decoder's own vectors do not ask for yet.

    Args:
        candidates: of B objects.
        target: [B, L, L], share of each pixel that is covered.
        present: bool [B].
    """
    logits = candidates.logits
    near = (functional.max_pool2d(target[:, None], 2 * _NEAR + 1, 1, _NEAR) > 0).float()
    mask = mask_loss(logits, target[:, None], near) + 2 * _cross_entropy(logits, target[:, None]).mean((-2, -1))
    several = 0.5 * mask[:, 1:].min(-1).values + 0.5 * mask[:, 1:].mean(-1)
    ideal = mask_loss(nearer_mean(candidates.pixels, target, near[:, 0])[:, None], target[:, None], near)[:, 0]
    actual = _iou(logits.detach() > 0, target[:, None] > 0.5)
    guess = (candidates.iou - actual).abs().mean(-1)
    weight = present.float()
    seen = ((mask[:, 0] + several + ideal + guess) * weight).sum() / weight.sum().clamp(min=1)
    return seen + functional.binary_cross_entropy_with_logits(candidates.score[:, 0], weight)


def reading_loss(embedding: Tensor, target: Tensor) -> Tensor:
    """How badly one linear rule for all objects of a batch finds them in what was read from the memory: the rule that does it best.

    It asks of memory attention itself to say where the object is, and not only through all of the decoder.

    Args:
        embedding: [n, D, l, l], of tracked frames in which the object is present.
        target: [n, L, L], share of each pixel that is covered.
    """
    if not len(embedding):
        return embedding.sum()
    target = functional.adaptive_avg_pool2d(target, embedding.shape[-1])
    near = (functional.max_pool2d(target[:, None], 3, 1, 1) > 0).float()
    logits = separation(embedding.movedim(1, 0).flatten(1), target.flatten()).view_as(near)
    return mask_loss(logits, target[:, None], near).mean() + 2 * _cross_entropy(logits, target[:, None]).mean()


def mask_loss(logits: Tensor, target: Tensor, near: Tensor) -> Tensor:
    """Dice + mean cross-entropy of the pixels in `near`, [B, M].

    Args:
        logits: [B, M, L, L].
        target: [B, 1, L, L], 0..1.
        near: [B, 1, L, L], 0 or 1.
    """
    p = logits.sigmoid()
    dice = 1 - (2 * (p * target).sum((-2, -1)) + 1) / (p.sum((-2, -1)) + target.sum((-2, -1)) + 1)
    return dice + (_cross_entropy(logits, target) * near).sum((-2, -1)) / near.sum((-2, -1)).clamp(min=1)


def separation(places: Tensor, target: Tensor) -> Tensor:
    """Logits [n] of the linear rule that tells places apart best: ridge regression to +-1, differentiable.

    Args:
        places: [D, n], embedding.
        target: [n], 0..1.
    """
    x = torch.cat([places, torch.ones_like(places[:1])]).float()
    with torch.autocast(x.device.type, enabled=False):
        gram = x @ x.T / len(target)
        least = _READ_RIDGE * gram.diagonal().mean().clamp(min=0.1)
        rule = torch.linalg.solve(gram + least * torch.eye(len(gram), device=gram.device), x @ (2 * target - 1) / len(target))
        return _STEEPNESS * rule @ x


def nearer_mean(pixels: Tensor, target: Tensor, near: Tensor) -> Tensor:
    """Logits [B, L, L] of the rule that asks which mean a pixel is nearer to, the object's or that of its surroundings.

    Means are what attention can work out, which the best rule of `separation` is not; an embedding for which this one does is one that
    the decoder's own vectors can use.

    Args:
        pixels: [B, C, L, L], embedding.
        target: [B, L, L], 0..1.
        near: [B, L, L], 0 or 1: the pixels to tell apart; logits elsewhere are far below zero.
    """
    x = pixels.flatten(2).float()
    inside, outside = (near * target).flatten(1), (near * (1 - target)).flatten(1)
    with torch.autocast(x.device.type, enabled=False):
        ours, theirs = ((x @ share[..., None]) / share.sum(1).clamp(min=1)[:, None, None] for share in (inside, outside))
        way = ours - theirs
        between = (x - (ours + theirs) / 2).mT @ way / (way.square().sum(1, keepdim=True) + _LEAST_WAY)  # -1/2 at theirs, 1/2 at ours
        return 2 * _STEEPNESS * between.view_as(target) - 30 * (1 - near)


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits, target.expand_as(logits), reduction="none")


def _iou(a: Tensor, b: Tensor) -> Tensor:
    both, either = (a & b).sum((-2, -1)).float(), (a | b).sum((-2, -1)).float()
    return both / either.clamp(min=1)


def _mean(parts: list[Tensor]) -> float:
    values = torch.cat(parts) if parts else torch.zeros(0)
    return float(values.mean()) if len(values) else float("nan")
