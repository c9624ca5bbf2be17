"""`fastsam2 run` writes the official predictor's masks. Oracle: as in test_parity."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from .clips import Clip
from .compare import THRESHOLDS, Run, invalid, video_iou
from .ours import run_command_line
from .scenarios import BY_NAME, Scenario

CASES = [
    ("micro", "removed_object"),
    ("micro", "late_object"),
    ("micro", "many_prompts"),
    ("tiny256_seed0", "three_objects"),
]


@pytest.mark.parametrize(("checkpoint", "name"), CASES)
def test_written_masks_are_the_official_ones(
    checkpoint: str,
    name: str,
    bundle_path: Callable[[str], Path],
    official_run: Callable[[str, Scenario], Run],
    clips: dict[str, Clip],
    tmp_path: Path,
) -> None:
    scenario = BY_NAME[name]
    official = official_run(checkpoint, scenario)
    assert not invalid(official)
    masks = run_command_line(bundle_path(checkpoint), scenario, clips[scenario.clip], tmp_path)
    assert masks.keys() == official.keys()
    worst = {key: video_iou(want, masks[key]) for key, want in official.items()}
    low = {key: iou for key, iou in worst.items() if iou < THRESHOLDS["video_iou"]["minimum"]}
    assert not low
