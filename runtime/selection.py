"""Which frames a step attends to, with their ages and pointer offsets: the official rules as one pure function.

Mirrors facebookresearch/sam2 @2b90b9f `SAM2Base._prepare_memory_conditioned_features` (temporal stride 1, pointers of prompt frames from
the past only) and `select_closest_cond_frames` in `sam2/modeling/sam2_utils.py`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

UNBOUNDED = -1  # official max_cond_frames_in_attn without a limit


@dataclass(frozen=True, slots=True)
class Selection:
    """What one step of one object reads.

    Attributes:
        rows: (frame, age row) whose memory rows are read, prompt frames first, then the oldest frame to the newest.
        pointers: (frame, offset in frames) whose object pointers are read, prompt frames first, then the newest frame to the oldest.
        pointer_span: frames that an encoded offset of 1 stands for.
    """

    rows: tuple[tuple[int, int], ...]
    pointers: tuple[tuple[int, int], ...]
    pointer_span: int


def closest_prompt_frames(frame: int, prompt_frames: Collection[int], limit: int) -> list[int]:
    """Up to `limit` prompt frames nearest to `frame`: the nearest before, the nearest at or after, then the nearest of the rest."""
    if limit == UNBOUNDED or len(prompt_frames) <= limit:
        return list(prompt_frames)
    chosen: list[int] = []
    before = [t for t in prompt_frames if t < frame]
    after = [t for t in prompt_frames if t >= frame]
    if before:
        chosen.append(max(before))
    if after and len(chosen) < limit:
        chosen.append(min(after))
    rest = sorted((t for t in prompt_frames if t not in chosen), key=lambda t: abs(t - frame))
    return chosen + rest[: limit - len(chosen)]


def select(
    frame: int,
    prompt_frames: Collection[int],
    other_frames: Collection[int],
    *,
    num_maskmem: int,
    max_pointers: int,
    max_prompt_frames: int = UNBOUNDED,
    signed_offsets: bool = True,
    reverse: bool = False,
    num_frames: int | None = None,
) -> Selection:
    """Choose what to attend to when `frame` is tracked.

    Args:
        frame: index of the frame.
        prompt_frames: frames whose memory counts as a prompt (official conditioning frames), in the order they were prompted.
        other_frames: frames with ordinary memory.
        num_maskmem: official `num_maskmem`; the last num_maskmem - 1 frames are read by frame index.
        max_pointers: most object pointers of ordinary frames plus one, official `max_obj_ptrs_in_encoder`; a shorter clip lowers it.
        max_prompt_frames: official `max_cond_frames_in_attn`.
        signed_offsets: official `use_signed_tpos_enc_to_obj_ptrs`.
        reverse: track backwards in time.
        num_frames: length of the clip where it is known.
    """
    if num_frames is not None:
        max_pointers = min(num_frames, max_pointers)
    selected = closest_prompt_frames(frame, prompt_frames, max_prompt_frames)
    ordinary = set(other_frames) | (set(prompt_frames) - set(selected))
    direction = 1 if reverse else -1
    rows = [(t, num_maskmem - 1) for t in selected]
    for back in range(num_maskmem - 1, 0, -1):
        t = frame + direction * back
        if t in ordinary:
            rows.append((t, back - 1))
    offsets = [
        (t, (frame - t) * -direction if signed_offsets else abs(frame - t)) for t in selected if (t >= frame if reverse else t <= frame)
    ]
    for back in range(1, max_pointers):
        t = frame + direction * back
        if t < 0 or (num_frames is not None and t >= num_frames):
            break
        if t in ordinary:
            offsets.append((t, back))
    return Selection(tuple(rows), tuple(offsets), max(max_pointers - 1, 1))  # a clip of one frame has offsets 0 only
