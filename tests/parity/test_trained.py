"""Parity on trained weights: the shipped bundle of nano against the official predictor with nano's checkpoint, over 60 frames.

Oracle: as in test_parity. A trained model amplifies rounding, hence thresholds of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from fastsam2.runtime.loaded import LoadedBundle

from .clips import Clip
from .compare import Run, compare
from .ours import run_tracker, tracker_options
from .scenarios import SCENARIOS, Scenario

FAST = ("three_objects", "correction")  # box, click and mask prompts; a correction. The others take a minute each


@pytest.mark.parametrize("scenario", [pytest.param(s, marks=() if s.name in FAST else pytest.mark.slow, id=s.name) for s in SCENARIOS])
@pytest.mark.xdist_group("nano")
def test_trained_masks_are_the_official_ones(
    scenario: Scenario,
    bundle: Callable[[str], LoadedBundle],
    official_run: Callable[[str, Scenario], Run],
    clips: dict[str, Clip],
) -> None:
    scenario = replace(scenario, clip=f"{scenario.clip}60")
    official = official_run("nano", scenario)
    assert len({frame for frame, _ in official}) == 60
    ours = run_tracker(bundle("nano").tracker(**tracker_options(scenario)), scenario, clips[scenario.clip])
    compare(official, ours, trained=True).check()
