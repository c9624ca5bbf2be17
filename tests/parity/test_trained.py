"""Parity on trained weights: the shipped bundle of nano against the official predictor with nano's checkpoint, over 60 frames.

Oracle: as in test_parity. A trained model amplifies rounding, hence thresholds of its own; where it loses its object, by half with every
frame, so the scenarios run on a clip on which the official predictor itself holds every object.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from fastsam2.runtime.loaded import LoadedBundle
from fastsam2.training.clips import tight_box

from .clips import SHAPES, Clip
from .compare import Run, compare, mask_iou
from .ours import run_tracker, tracker_options
from .scenarios import SCENARIOS, Event, Scenario

FAST = ("box", "mask_correction", "many_prompts")  # box, mask and click prompts; the others take some minutes in all
HELD = 0.5  # smallest IoU of the official masks with the truth


@pytest.mark.parametrize("scenario", [pytest.param(s, marks=[] if s.name in FAST else [pytest.mark.slow], id=s.name) for s in SCENARIOS])
@pytest.mark.xdist_group("nano")
def test_trained_masks_are_the_official_ones(
    scenario: Scenario,
    bundle: Callable[[str], LoadedBundle],
    official_run: Callable[[str, Scenario], Run],
    clips: dict[str, Clip],
) -> None:
    things = _things(scenario)
    scenario = _on_things(scenario, things, clips["drawn"])
    official = official_run("nano", scenario)
    assert len({frame for frame, _ in official}) == 60
    held = min(mask_iou(track.video > 0, clips["drawn"].truth[frame, things[i]]) for (frame, i), track in official.items())
    assert held > HELD, f"the official predictor holds its objects at IoU {held} only: the case proves nothing"
    ours = run_tracker(bundle("nano").tracker(**tracker_options(scenario)), scenario, clips["drawn"])
    compare(official, ours, trained=True).check()


def _things(scenario: Scenario) -> dict[int, int]:
    """Object id -> which of a clip's three things it is."""
    return {i: k for k, i in enumerate(dict.fromkeys(e.id for e in scenario.events))}


def _on_things(scenario: Scenario, things: dict[int, int], clip: Clip) -> Scenario:
    """The same events with boxes, clicks and masks that meet the things of another clip."""
    events = (_on_thing(e, clip.truth[e.frame, things[e.id]], SHAPES[things[e.id]]) for e in scenario.events)
    return replace(scenario, clip=clip.name, events=tuple(events))


def _on_thing(event: Event, mask: npt.NDArray[np.bool_], shape: str) -> Event:
    x0, y0, x1, y1 = tight_box(mask).tolist()
    y, x = np.nonzero(mask)
    nearest = int(np.argmin((x - x.mean()) ** 2 + (y - y.mean()) ** 2))
    inside, beside = (float(x[nearest]), float(y[nearest])), (x0 + 2.0, y0 + 2.0)
    return replace(
        event,
        box=(x0, y0, x1, y1) if event.box else None,
        points=tuple(inside if label else beside for label in event.labels),
        mask=shape if event.mask else None,
    )
