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

FAST = ("box", "mask_correction", "many_prompts")  # box, mask and click prompts; the others take some minutes in all
# Here this little-trained model is no yardstick. `late_object`: one of the 87 low-resolution pixels of a mask differs;
# `refined_first_frame`: 1.6e-3 standard deviations. The other three failed with the weights before these, where the official predictor
# itself, with relative noise of 1e-6 (1e-5) on its image features, moved by IoU 0.993 and 3.6e-3 (0.968 and 2.9e-2) in `click`, and ours by
# 0.974 and 2.0e-2.
UNSTABLE = ("click", "three_objects", "removed_object", "late_object", "refined_first_frame")


def _marks(name: str) -> list[pytest.MarkDecorator]:
    marks = [] if name in FAST else [pytest.mark.slow]
    return (
        [*marks, pytest.mark.xfail(reason="the weights amplify rounding beyond the thresholds", strict=False)]
        if name in UNSTABLE
        else marks
    )


@pytest.mark.parametrize("scenario", [pytest.param(s, marks=_marks(s.name), id=s.name) for s in SCENARIOS])
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
