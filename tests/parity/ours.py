"""Our side: the same scenarios through the tracker and through the command line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from fastsam2 import cli
from fastsam2.enums import GraphRole
from fastsam2.runtime.backends.protocol import Array, Backend
from fastsam2.runtime.tracker import Tracker

from .clips import Clip
from .compare import Run, Track
from .scenarios import Action, Event, Scenario

Inputs = dict[str, Array]


class CachedImages:
    """Encodes each picture once; scenarios share clips, and the encoder knows nothing of prompts.

    Args:
        inner: runs the graphs.
        known: pictures encoded before with the same encoder.
    """

    def __init__(self, inner: Backend, known: dict[bytes, dict[str, Array]] | None = None) -> None:
        self.inner, self.name = inner, inner.name
        self._known = {} if known is None else known

    def run(self, role: GraphRole, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `Backend.run`."""
        if role is not GraphRole.IMAGE_ENCODER:
            return self.inner.run(role, inputs)
        key = hashlib.sha256(inputs["pixels"].tobytes()).digest()
        if key not in self._known:
            self._known[key] = self.inner.run(role, inputs)
        return self._known[key]


class MutatedBackend:
    """A backend that falsifies the inputs of graphs.

    Args:
        inner: runs the graphs.
        edits: what becomes of the inputs of each graph; other graphs get theirs unchanged.
    """

    def __init__(self, inner: Backend, edits: dict[GraphRole, Callable[[Inputs], Inputs]]) -> None:
        self.name, self.inner, self.edits = inner.name, inner, edits

    def run(self, role: GraphRole, inputs: Any) -> Inputs:
        """See `Backend.run`."""
        given = {**inputs, **self.edits[role](dict(inputs))} if role in self.edits else inputs
        return self.inner.run(role, {name: np.ascontiguousarray(value) for name, value in given.items()})


def tracker_options(scenario: Scenario) -> dict[str, Any]:
    """Arguments of a tracker for a scenario."""
    return {"corrections_as_prompts": scenario.corrections_as_prompts, "max_prompt_frames": scenario.max_prompt_frames}


def run_tracker(tracker: Tracker, scenario: Scenario, clip: Clip) -> Run:
    """Track a clip with a new tracker; a frame's entry is its state after the prompts on it."""
    run: Run = {}
    for index, frame in enumerate(clip.frames):
        events = scenario.at(index)
        for event in events:
            if event.action is Action.REMOVE:
                tracker.remove(event.id)
        result = tracker.step(frame)
        for event in events:
            if event.action is Action.ADD:
                result = tracker.add(event.id, **_prompt(event, clip))
            elif event.action is Action.CORRECT:
                result = tracker.correct(event.id, **_prompt(event, clip), append=event.append)
        assert result.frame == index
        for row, object_id in enumerate(result.ids):
            assert bool(result.visible[row]) == (result.scores[row] > 0)
            run[index, object_id] = Track(result.low_res_logits[row].copy(), float(result.scores[row]), result.masks[row].copy())
    return run


def _prompt(event: Event, clip: Clip) -> dict[str, Any]:
    if event.mask is not None:
        return {"mask": clip.mask(event.frame, event.mask)}
    if not event.points:
        return {"box": event.box}
    return {"box": event.box, "points": event.points, "labels": event.labels}


def run_command_line(bundle: Path, scenario: Scenario, clip: Clip, folder: Path) -> dict[tuple[int, int], npt.NDArray[np.bool_]]:
    """Track a clip with `fastsam2 run --separate`, in this process.

    Args:
        bundle: its folder.
        scenario: without `append`, which a prompts file cannot say.
        clip: what to track.
        folder: empty; prompts, frames and masks go there.

    Returns:
        (frame, object id) -> bool [H, W], as read from the PNG files.
    """
    frames, out = clip.write_png(folder / "frames"), folder / "out"
    entries = [_entry(event, clip, folder) for event in scenario.events]
    (folder / "prompts.json").write_text(json.dumps(entries))
    options = ["--separate", "--no-overlay", "--quiet", "--threads", "1", "--max-prompt-frames", str(scenario.max_prompt_frames)]
    if scenario.corrections_as_prompts:
        options.append("--corrections-as-prompts")
    with pytest.raises(SystemExit) as done:
        cli.main(["run", str(bundle), "--video", str(frames), "--out", str(out), "--prompts", str(folder / "prompts.json"), *options])
    assert done.value.code == 0
    return {(int(file.stem), int(file.parent.name)): _read_mask(file) for file in out.glob("masks/*/*.png")}


def _entry(event: Event, clip: Clip, folder: Path) -> dict[str, Any]:
    assert not event.append
    entry: dict[str, Any] = {"id": event.id, "frame": event.frame}
    if event.action is Action.REMOVE:
        return {**entry, "remove": True}
    if event.mask is not None:
        name = f"mask_{event.id}_{event.frame}.png"
        Image.fromarray(clip.mask(event.frame, event.mask).astype(np.uint8) * np.uint8(255)).save(folder / name)
        return {**entry, "mask": name}
    if event.box is not None:
        entry["box"] = event.box
    if event.points:
        entry |= {"points": event.points, "labels": event.labels}
    return entry


def _read_mask(file: Path) -> npt.NDArray[np.bool_]:
    with Image.open(file) as image:
        values = np.asarray(image)
    assert set(np.unique(values)) <= {0, 255}
    mask: npt.NDArray[np.bool_] = values == 255
    return mask
