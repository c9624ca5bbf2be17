"""fastsam2.runtime.guard: what counts as an alarm, and how the level moves. Oracle: the limits written in the module, applied by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fastsam2.config import KEEP_BUCKETS, PRESET_KEEP, Prune, bucket_rows
from fastsam2.enums import Alarm, PrunePolicy, PrunePreset
from fastsam2.errors import PromptError
from fastsam2.runtime.guard import AREA_JUMP, CALM_FRAMES, IOU_DROP, SCORE_DROP, GuardState, Observation, judge

CALM = Observation(score=8.0, iou=0.9, area=0.1, prompted=False)
KNOWN, _ = judge(GuardState(), {1: CALM}, levels=3)


@pytest.mark.parametrize(
    ("seen", "alarm"),
    [
        (CALM, None),
        (replace(CALM, score=8.0 - SCORE_DROP + 0.1), None),
        (replace(CALM, score=8.0 - SCORE_DROP - 0.1), Alarm.SCORE),
        (replace(CALM, iou=0.9 - IOU_DROP + 0.01), None),
        (replace(CALM, iou=0.9 - IOU_DROP - 0.01), Alarm.IOU),
        (replace(CALM, area=0.1 * AREA_JUMP * 0.99), None),
        (replace(CALM, area=0.1 * AREA_JUMP * 1.01), Alarm.AREA),
        (replace(CALM, area=0.1 / AREA_JUMP * 1.01), None),
        (replace(CALM, area=0.1 / AREA_JUMP * 0.99), Alarm.AREA),
        (Observation(score=-1.0, iou=0.0, area=0.0, prompted=True), None),
    ],
)
def test_alarms(seen: Observation, alarm: Alarm | None) -> None:
    state, alarms = judge(KNOWN, {1: seen}, levels=3)
    assert alarms.get(1) is alarm
    assert state.level == (alarm is not None)


def test_an_invisible_object_is_an_alarm_whatever_its_mean() -> None:
    state, _ = judge(GuardState(), {1: replace(CALM, score=1.0)}, levels=3)
    assert judge(state, {1: replace(CALM, score=0.0)}, levels=3)[1] == {1: Alarm.SCORE}
    assert judge(GuardState(), {1: replace(CALM, score=0.0)}, levels=3)[1] == {1: Alarm.SCORE}


@pytest.mark.parametrize(
    "lasting",
    [
        Observation(score=-8.0, iou=0.1, area=0.0, prompted=False),  # gone
        replace(CALM, area=0.4),  # near the camera now
        replace(CALM, iou=0.3, score=2.0),  # hard to see from here on
    ],
)
def test_what_lasts_is_an_alarm_for_a_few_frames_only(lasting: Observation) -> None:
    state, alarmed, levels = KNOWN, [], []
    for _ in range(40):
        state, alarms = judge(state, {1: lasting}, levels=4)
        alarmed.append(bool(alarms))
        levels.append(state.level)
    count = sum(alarmed)
    assert 1 <= count <= 12 and all(alarmed[:count])
    assert max(levels) == min(count, 4) and levels[-1] == 0
    state, alarms = judge(state, {1: CALM}, levels=4)
    assert (alarms == {}) is (lasting.area == CALM.area)  # what comes back is a change again


def test_a_prompt_sets_no_standard() -> None:
    """A given mask has score 10 and predicted IoU 1 by definition; no frame after it reaches that."""
    given = Observation(score=10.0, iou=1.0, area=0.1, prompted=True)
    state, levels = GuardState(), []
    for seen in [given, *[replace(CALM, score=5.0, iou=0.7)] * 3, given, *[replace(CALM, score=4.0, iou=0.6)] * 3]:
        state, _ = judge(state, {1: seen}, levels=3)
        levels.append(state.level)
    assert levels == [0] * len(levels)


def test_the_level_rises_to_the_last_bucket_and_falls_one_by_one() -> None:
    state, bad = KNOWN, {1: replace(CALM, iou=0.1)}
    levels = []
    for seen in [bad] * 3 + [{1: CALM}] * (2 * CALM_FRAMES + 2):
        state, _ = judge(state, seen, levels=2)
        levels.append(state.level)
    assert levels == [1, 2, 2] + [2] * (CALM_FRAMES - 1) + [1] * CALM_FRAMES + [0] * 3
    assert state.means[1].iou == pytest.approx(0.9 - 0.8 * (1 - 0.8**3) * 0.8 ** (2 * CALM_FRAMES + 2))  # bad frames count like any other


def test_objects_are_judged_by_their_own_means_and_forgotten_when_removed() -> None:
    small = replace(CALM, area=0.001)
    state, alarms = judge(KNOWN, {1: CALM, 2: small}, levels=3)
    assert not alarms and set(state.means) == {1, 2}
    state, alarms = judge(state, {2: small}, levels=3)
    assert not alarms and set(state.means) == {2}


def test_budgets_are_the_buckets_from_the_asked_one_up() -> None:
    prune = Prune(policy=PrunePolicy.MASK, keep=0.04, guard=True)
    assert prune.budgets(4096) == tuple(bucket_rows(b, 4096) for b in KEEP_BUCKETS if b >= 0.05)
    assert replace(prune, guard=False).budgets(4096) == (205,)
    assert replace(prune, keep=1.0).budgets(4096) == (4096,)
    with pytest.raises(PromptError, match="guard with a policy that has a budget, got dense"):
        Prune(guard=True)


def test_presets() -> None:
    for preset in PrunePreset:
        prune = Prune.preset(preset.value)
        assert (prune.policy, prune.keep, prune.guard) == (PrunePolicy.ROUTER, PRESET_KEEP[preset], True)
    with pytest.raises(PromptError, match=r"a preset of .*fast"):
        Prune.preset("slow")
