"""`fastsam2 run` writes the official predictor's masks. Oracle: as in test_parity."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from .clips import Clip
from .compare import THRESHOLDS, Run, invalid, video_iou
from .ours import run_command_line
from .scenarios import BY_NAME, OCCLUSION, Scenario
from .test_parity import CASES as TRACKER_CASES

CASES = [
    # A prompts file names one state per object and frame, so points cannot be appended there.
    *((c, s) for c, s in TRACKER_CASES if c in ("micro", "tiny256_seed0") and not any(event.append for event in s.events)),
    ("tiny256_occlusion", OCCLUSION),
    ("tiny256_sam20", BY_NAME["correction"]),
]


@pytest.mark.parametrize(("checkpoint", "scenario"), CASES, ids=[f"{checkpoint}-{scenario.name}" for checkpoint, scenario in CASES])
def test_written_masks_are_the_official_ones(
    checkpoint: str,
    scenario: Scenario,
    bundle_path: Callable[[str], Path],
    official_run: Callable[[str, Scenario], Run],
    clips: dict[str, Clip],
    tmp_path: Path,
) -> None:
    official = official_run(checkpoint, scenario)
    assert not invalid(official)
    masks = run_command_line(bundle_path(checkpoint), scenario, clips[scenario.clip], tmp_path)
    assert masks.keys() == official.keys()
    worst = {key: video_iou(want, masks[key]) for key, want in official.items()}
    low = {key: iou for key, iou in worst.items() if iou < THRESHOLDS["video_iou"]["minimum"]}
    assert not low
