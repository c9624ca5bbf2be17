"""The C interface tracks as Python does, bit for bit. Oracle: `fastsam2.runtime.tracker.Tracker` over the same ONNX Runtime sessions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastsam2
from fastsam2.config import Prune
from fastsam2.enums import PrunePolicy
from fastsam2.runtime.loaded import LoadedBundle
from tests.parity.clips import make_clip
from tests.parity.scenarios import BY_NAME

from .both import Recorder, play
from .c_interface import CInterface
from .native import library, needs_native

pytestmark = [needs_native, pytest.mark.xdist_group("cpp")]

MASK = 3  # fastsam2_policy


@pytest.mark.parametrize("scenario", ["three_objects", "mask_correction", "refined_first_frame"])
def test_masks_are_those_of_python(scenario: str, bundle_micro: Path) -> None:
    loaded, clip, known = fastsam2.load(bundle_micro, threads=1), make_clip("short", 1, frames=12), {}  # type: ignore[var-annotated]
    backend = Recorder(loaded.backend, known)
    prune = Prune(policy=PrunePolicy.MASK, keep=0.25, guard=True)
    tracker = LoadedBundle(loaded.folder, loaded.manifest, backend).tracker(prune=prune)
    native: Any = CInterface(library(), bundle_micro, Recorder(loaded.backend, known).run_by_name, policy=MASK, keep=0.25, guard=1)
    compared = 0
    for want, got in zip(play(tracker, BY_NAME[scenario], clip), play(native, BY_NAME[scenario], clip), strict=True):
        raw: Any = got
        assert (raw["frame"], tuple(raw["ids"]), tuple(raw["rows_held"])) == (want.frame, want.ids, want.memory.rows)
        for name in ("masks", "scores", "ious", "low_res_logits"):
            assert raw[name].tobytes() == getattr(want, name).tobytes(), f"{name} on frame {want.frame}"
        compared += int(want.masks.any())
    assert compared > 8
    native.close()


def test_blue_first_is_red_first(bundle_micro: Path) -> None:
    """Oracle: the same frames with their channels the other way round."""
    loaded, clip = fastsam2.load(bundle_micro, threads=1), make_clip("short", 1, frames=3)
    masks = []
    for bgr in (False, True):
        native = CInterface(library(), bundle_micro, Recorder(loaded.backend, {}).run_by_name)
        native.step(clip.frames[0], bgr=bgr)
        native.add(1, box=(90, 60, 210, 170))
        masks.append(native.step(clip.frames[1], bgr=bgr)["low_res_logits"])
        native.close()
    np.testing.assert_array_equal(masks[0], masks[1])


def test_errors_of_the_callback_come_back(bundle_micro: Path) -> None:
    def failing(role: str, inputs: Any) -> Any:
        raise MemoryError("the arena is full")

    native = CInterface(library(), bundle_micro, failing)
    native.step(np.zeros((20, 30, 3), np.uint8))
    with pytest.raises(RuntimeError, match="status 3: expected graph image_encoder to run in the callback, got the arena is full"):
        native.add(1, points=[(3, 4)], labels=[1])
    native.close()
