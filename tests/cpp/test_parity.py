"""The C++ tracker gives the Python tracker's results bit for bit, and asks the same of the same graphs in the same order.

Oracle: `fastsam2.runtime.tracker.Tracker`, which tests/parity compares with the official predictor. Both run the same
ONNX Runtime sessions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastsam2
from fastsam2.builtin import bundle_path
from fastsam2.config import Prune
from fastsam2.enums import GraphRole, Protect, PrunePolicy
from fastsam2.runtime.backends.protocol import Array, Backend
from fastsam2.runtime.loaded import LoadedBundle
from fastsam2.runtime.result import Result
from tests.parity.clips import Clip, make_clip
from tests.parity.ours import tracker_options
from tests.parity.scenarios import BY_NAME, SCENARIOS, Scenario

from .both import Call, CppTracker, Recorder, assert_same, play
from .native import core, needs_native

pytestmark = [needs_native, pytest.mark.xdist_group("cpp")]

PRUNES = {
    "mask": Prune(policy=PrunePolicy.MASK, keep=0.25),
    "mask-guard": Prune(policy=PrunePolicy.MASK, keep=0.05, guard=True),
    "mask-unprotected": Prune(policy=PrunePolicy.MASK, keep=0.5, protect=()),
    "mask-all-rows": Prune(policy=PrunePolicy.MASK, keep=1.0),
    "uniform-tokens": Prune(policy=PrunePolicy.UNIFORM, tokens=20, protect=(Protect.NEWEST,)),
    "random": Prune(policy=PrunePolicy.RANDOM, keep=0.1, seed=-3),
    "pool2x2": Prune(policy=PrunePolicy.POOL2X2, protect=(Protect.PROMPT,)),
}
ROUTED = {
    "router": Prune(policy=PrunePolicy.ROUTER, keep=0.25),
    "router-guard": Prune.preset("fast"),
}


@pytest.fixture(scope="module")
def clips() -> dict[str, Clip]:
    return {"wide": make_clip("wide", 1), "tall": make_clip("tall", 2, width=200, height=280), "short": make_clip("short", 1, frames=12)}


@pytest.fixture(scope="module")
def loaded(bundle_micro: Path, bundle_tiny256_seed0: Path) -> Callable[[str], tuple[LoadedBundle, dict[Call, Any]]]:
    folders = {"micro": bundle_micro, "tiny256_seed0": bundle_tiny256_seed0, "nano": bundle_path("nano")}
    known: dict[str, tuple[LoadedBundle, dict[Call, Any]]] = {}

    def load(name: str) -> tuple[LoadedBundle, dict[Call, Any]]:
        if name not in known:
            known[name] = fastsam2.load(folders[name], threads=1), {}
        return known[name]

    return load


def compare(bundle: tuple[LoadedBundle, dict[Call, Any]], scenario: Scenario, clip: Clip, **options: Any) -> list[Result]:
    """Results of the Python tracker, once those of the C++ tracker are known to be the same."""
    loaded, known = bundle
    options = {**tracker_options(scenario), **options}
    python, cpp = Recorder(loaded.backend, known), Recorder(loaded.backend, known)
    with_python = LoadedBundle(loaded.folder, loaded.manifest, python)
    ours = list(play(with_python.tracker(**options), scenario, clip))
    theirs = list(play(CppTracker(cpp, loaded.folder, **options), scenario, clip))
    for want, got in zip(ours, theirs, strict=True):
        assert_same(want, got)
    assert cpp.calls == python.calls
    return ours


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
def test_micro_dense(scenario: Scenario, loaded: Any, clips: dict[str, Clip]) -> None:
    results = compare(loaded("micro"), scenario, clips[scenario.clip])
    assert sum(r.masks.any() for r in results) > len(results) // 2


@pytest.mark.parametrize("scenario", ["three_objects", "removed_object", "many_prompts"])
@pytest.mark.parametrize("prune", PRUNES)
def test_micro_pruned(prune: str, scenario: str, loaded: Any, clips: dict[str, Clip]) -> None:
    dense = list(compare(loaded("micro"), BY_NAME[scenario], clips["wide"]))
    pruned = compare(loaded("micro"), BY_NAME[scenario], clips["wide"], prune=PRUNES[prune])
    kept = prune == "mask-all-rows"
    assert all((a.masks == b.masks).all() for a, b in zip(dense, pruned, strict=True)) == kept, "pruning did not show"


class Harsh:
    """A backend whose masks saturate and have small holes, so that clamping and hole filling show.

    Args:
        inner: runs the graphs.
    """

    def __init__(self, inner: Backend) -> None:
        self.inner, self.name = inner, inner.name

    def run(self, role: GraphRole, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `Backend.run`."""
        outputs = dict(self.inner.run(role, inputs))
        if role is GraphRole.MASK_DECODER:
            logits = outputs["low_res_logits"] * np.float32(20.0)
            logits[..., 10:20, 10:20] = 9.0
            logits[..., 14:16, 14:16] = -3.0
            outputs["low_res_logits"] = logits
        return outputs


@pytest.mark.parametrize("scenario", ["three_objects", "correction", "refined_first_frame"])
def test_chunks_clamped_logits_and_hole_filling(scenario: str, loaded: Any, clips: dict[str, Clip]) -> None:
    bundle, _ = loaded("micro")
    harsh = LoadedBundle(bundle.folder, bundle.manifest, Harsh(bundle.backend)), {}
    filled = compare(harsh, BY_NAME[scenario], clips["wide"], memory_budget_mb=1, fill_hole_area=8)
    open_ones = compare(harsh, BY_NAME[scenario], clips["wide"], memory_budget_mb=1)
    assert max(np.abs(r.low_res_logits).max(initial=0) for r in filled) > 32
    assert (filled[-1].low_res_logits[:, 14:16, 14:16] > 0).all()
    assert (open_ones[-1].low_res_logits[:, 14:16, 14:16] < 0).all()


@pytest.mark.parametrize("scenario", ["box", "many_prompts"])
def test_tiny_dense(scenario: str, loaded: Any, clips: dict[str, Clip]) -> None:
    compare(loaded("tiny256_seed0"), BY_NAME[scenario], clips["short"])


@pytest.mark.parametrize("scenario", ["box", "three_objects"])
def test_nano_dense(scenario: str, loaded: Any, clips: dict[str, Clip]) -> None:
    compare(loaded("nano"), BY_NAME[scenario], clips["short"])


@pytest.mark.parametrize("prune", ROUTED)
def test_nano_with_its_router(prune: str, loaded: Any, clips: dict[str, Clip]) -> None:
    results = compare(loaded("nano"), BY_NAME["three_objects"], clips["short"], prune=ROUTED[prune])
    assert results[-1].tokens is not None and results[-1].tokens.uncertainty is not None


def test_descriptions_reach_the_router(loaded: Any, clips: dict[str, Clip]) -> None:
    bundle, known = loaded("nano")
    python, cpp = Recorder(bundle.backend, known), Recorder(bundle.backend, known)
    prune, frames, texts = ROUTED["router"], clips["short"].frames[:4], ("the red disc", "a striped star")
    ours = LoadedBundle(bundle.folder, bundle.manifest, python).tracker(prune=prune)
    theirs = CppTracker(cpp, bundle.folder, prune=prune)
    encoder = bundle.texts
    assert encoder is not None
    first, second = encoder.encode(texts)
    box = (90.0, 60.0, 210.0, 170.0)
    calls = [
        (ours.step(frames[0]), theirs.step(frames[0])),
        (ours.add(1, box=box, text=texts[0]), theirs.add(1, box=box, text=first)),
        (ours.step(frames[1]), theirs.step(frames[1])),
    ]
    ours.describe(1, texts[1])
    theirs.describe(1, second)
    calls.append((ours.step(frames[2]), theirs.step(frames[2])))
    ours.describe(1, None)
    theirs.describe(1, None)
    calls.append((ours.step(frames[3]), theirs.step(frames[3])))
    for want, got in calls:
        assert_same(want, got)
    routed = [call for call in python.calls if call[0] == "router"]
    assert len({call[1] for call in routed}) == 3
    assert cpp.calls == [call for call in python.calls if call[0] != "text_encoder"]


def test_the_module_is_the_one_under_test() -> None:
    assert {"Tracker", "pixels", "random_scores"} <= set(dir(core()))
    assert np.array_equal(core().uniform_scores(1), [0.0])
