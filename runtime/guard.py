"""When tracking looks unsure, keep more rows: the guard of the row budget.

    score, predicted IoU, area of every object on frame t ─► judge ─► level ─► rows kept of frame t = budget raised by `level` buckets

The level belongs to the whole tracker, so that objects go on sharing one batch. It only ever changes how many rows are kept.

Alarms are for change: means follow what is seen, also through an alarm, so that an object which stays small, stays away or stays hard to
see raises the level for a few frames and then lets it fall.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fastsam2.enums import Alarm

IOU_DROP = 0.2  # below the object's running mean
SCORE_DROP = 4.0  # logit, below the running mean; going out of sight (a score <= 0 after a mean above) is an alarm whatever the drop
AREA_JUMP = 2.0  # times the running mean, or one over it
CALM_FRAMES = 5  # without any alarm, until the level falls by one
_MEMORY = 0.8  # share of the old running mean
_LEAST_AREA = 1e-4  # share of the mask, about two of 128 x 128: areas below are alike


@dataclass(frozen=True, slots=True)
class Observation:
    """What is known of one object on one frame.

    Attributes:
        score: object score logit.
        iou: predicted IoU, 0..1.
        area: share of the low-resolution mask that is covered, 0..1.
        prompted: the frame was prompted. A prompt says what the object is, so that its running mean begins anew on the next frame.
    """

    score: float
    iou: float
    area: float
    prompted: bool


@dataclass(frozen=True, slots=True)
class GuardState:
    """Running means of every object (of areas the geometric one, so that ratios count), the present level, and calm frames in a row."""

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
        if seen.prompted:
            continue
        mean = state.means.get(object_id)
        alarm = _alarm(mean, seen)
        if alarm is not None:
            alarms[object_id] = alarm
        means[object_id] = seen if mean is None else _blend(mean, seen)
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
        area=(mean.area + _LEAST_AREA) ** old * (seen.area + _LEAST_AREA) ** new - _LEAST_AREA,
        prompted=False,
    )


def _alarm(mean: Observation | None, seen: Observation) -> Alarm | None:
    if seen.score <= 0 and (mean is None or mean.score > 0):
        return Alarm.SCORE
    if mean is None:
        return None
    if seen.score < mean.score - SCORE_DROP:
        return Alarm.SCORE
    if seen.iou < mean.iou - IOU_DROP:
        return Alarm.IOU
    if not 1 / AREA_JUMP <= (seen.area + _LEAST_AREA) / (mean.area + _LEAST_AREA) <= AREA_JUMP:
        return Alarm.AREA
    return None
