"""Parity of SAM 2.1 tiny at its published 1024 px. Oracle: as in test_parity. About two minutes on two cores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from fastsam2.runtime.loaded import LoadedBundle

from .clips import Clip
from .compare import Run, compare
from .ours import run_tracker, tracker_options
from .scenarios import BY_NAME, Scenario


@pytest.mark.xdist_group("tiny1024")
def test_masks_are_the_official_ones_at_full_size(
    bundle: Callable[[str], LoadedBundle], official_run: Callable[[str, Scenario], Run], clips: dict[str, Clip]
) -> None:
    scenario = replace(BY_NAME["box"], clip="full_size")
    official = official_run("tiny1024", scenario)
    assert len(official) == len(clips["full_size"].frames)
    compare(official, run_tracker(bundle("tiny1024").tracker(**tracker_options(scenario)), scenario, clips["full_size"])).check()
