"""When tracking looks unsure, keep more rows: the guard of the row budget.

    score, predicted IoU, area of every object on frame t ─► judge ─► level ─► rows kept of frame t = budget raised by `level` buckets

The level belongs to the whole tracker, so that objects go on sharing one batch. It only ever changes how many rows are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fastsam2.enums import Alarm

IOU_DROP = 0.15  # below the object's running mean
SCORE_DROP = 3.0  # logit, below the running mean; a score <= 0 (not visible) is an alarm of its own
AREA_JUMP = 1.6  # times the running mean, or one over it
CALM_FRAMES = 5  # without any alarm, until the level falls by one
_MEMORY = 0.8  # share of the old running mean; only calm frames enter it


@dataclass(frozen=True, slots=True)
class Observation:
    """What is known of one object on one frame.

    Attributes:
        score: object score logit.
        iou: predicted IoU, 0..1.
        area: share of the low-resolution mask that is covered, 0..1.
        prompted: the frame was prompted; its values are taken as they are, without alarm.
    """

    score: float
    iou: float
    area: float
    prompted: bool


@dataclass(frozen=True, slots=True)
class GuardState:
    """Running means of every object, the present level, and calm frames in a row."""

    means: Mapping[int, Observation] = field(default_factory=dict)
    level: int = 0
    calm: int = 0


def judge(state: GuardState, observed: Mapping[int, Observation], levels: int) -> tuple[GuardState, dict[int, Alarm]]:
    """Look at one frame.

    Args:
        state: after the frame before.
        observed: every tracked object.
        levels: buckets above the budget, 0 or more; the level stops there.

    Returns:
        The new state, whose level holds for this frame; the alarm of every object that has one.
    """
    alarms: dict[int, Alarm] = {}
    means: dict[int, Observation] = {}
    for object_id, seen in observed.items():
        mean = state.means.get(object_id)
        alarm = None if mean is None or seen.prompted else _alarm(mean, seen)
        if alarm is not None:
            alarms[object_id] = alarm
        if mean is None or seen.prompted:
            means[object_id] = seen
        elif alarm is None:
            means[object_id] = _blend(mean, seen)
        else:
            means[object_id] = mean
    if alarms:
        return GuardState(means, min(state.level + 1, levels), 0), alarms
    calm = state.calm + 1
    if calm >= CALM_FRAMES:
        return GuardState(means, max(state.level - 1, 0), 0), alarms
    return GuardState(means, state.level, calm), alarms


def _blend(mean: Observation, seen: Observation) -> Observation:
    old, new = _MEMORY, 1 - _MEMORY
    return Observation(
        score=old * mean.score + new * seen.score,
        iou=old * mean.iou + new * seen.iou,
        area=old * mean.area + new * seen.area,
        prompted=False,
    )


def _alarm(mean: Observation, seen: Observation) -> Alarm | None:
    if seen.score <= 0 or seen.score < mean.score - SCORE_DROP:
        return Alarm.SCORE
    if seen.iou < mean.iou - IOU_DROP:
        return Alarm.IOU
    if mean.area > 0 and not mean.area / AREA_JUMP <= seen.area <= mean.area * AREA_JUMP:
        return Alarm.AREA
    return None
