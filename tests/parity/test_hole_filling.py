"""Filled holes are the official ones and feed the memory as they do there.

Oracle: as in test_parity, with `fill_hole_area` 8 (what `apply_postprocessing=True` asks for on CUDA) over a stand-in for its extension.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastsam2.runtime.loaded import LoadedBundle
from tests import official_extension

from .clips import Clip
from .compare import Run, compare
from .official import run_official
from .ours import run_tracker, tracker_options
from .scenarios import BY_NAME, Scenario

AREA = 8


@pytest.mark.filterwarnings("error:.*Skipping the post-processing step")
@pytest.mark.parametrize("checkpoint", ["micro", "tiny256_seed0"])
def test_filled_masks_are_the_official_ones(
    checkpoint: str,
    bundle: Callable[[str], LoadedBundle],
    official_run: Callable[[str, Scenario], Run],
    new_official: Callable[[str], Any],
    clips: dict[str, Clip],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scenario = BY_NAME["correction"]
    clip = clips[scenario.clip]
    unfilled = official_run(checkpoint, scenario)
    official_extension.install(monkeypatch)
    predictor = new_official(checkpoint)
    predictor.fill_hole_area = AREA
    official = run_official(predictor, scenario, clip, clip.write_official(tmp_path / "clip"))
    assert any(not np.array_equal(official[key].low_res, unfilled[key].low_res) for key in official)
    ours = run_tracker(bundle(checkpoint).tracker(fill_hole_area=AREA, **tracker_options(scenario)), scenario, clip)
    compare(official, ours).check()
