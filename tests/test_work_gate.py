"""What a frame costs may not grow without a reason in `work_limits.toml`: products and bytes of nano's graphs, rows held, calls of a GPU.

The GPU is `fake_gpu`: what the loop asks of it is what it would ask of a real one.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import fastsam2
from fastsam2 import Prune, Tracker
from fastsam2.benchmarks.graph_work import work_of
from fastsam2.builtin import MODELS
from fastsam2.bundle import read_manifest
from fastsam2.enums import PrunePolicy
from tests.fake_gpu import FakeGpu, fake_backend
from tests.kernel_host.driver import compile_kernels
from tests.kernel_host.harness import COMPILER, NO_COMPILER
from tests.parity.clips import make_clip

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = Path(__file__).with_name("work_limits.toml")
LIMITS: dict[str, Any] = tomllib.loads(FILE.read_text(encoding="utf-8"))
PRUNES = {"dense": Prune(), "pruned": Prune(policy=PrunePolicy.ROUTER, keep=0.05)}
OBJECTS, STEADY = 2, 19  # frames until the bank and the pointers of both are full
COUNTED = ("multiply_adds", "weight_bytes", "activation_bytes")


def complaints(limits: Mapping[str, int], measured: Mapping[str, int], slack: float) -> list[str]:
    """What grew, what is not listed, and which limits are higher than they have to be."""
    found = []
    for name in sorted({*limits, *measured}):
        limit, value = limits.get(name, 0), measured.get(name, 0)
        if value > limit:
            found.append(f"{name} grew: {value}, limit {limit}")
        elif value < limit * (1 - slack):
            found.append(f"{name} fell to {value}: lower its limit of {limit}")
    return found


def limits_of(table: Mapping[str, Any]) -> dict[str, int]:
    return {name: entry["limit"] for name, entry in table.items()}


def test_a_gate_that_moves_neither_way() -> None:
    limits = {"a": 1000, "b": 3}
    assert complaints(limits, {"a": 1000, "b": 3}, 0.02) == complaints(limits, {"a": 981, "b": 3}, 0.02) == []
    assert complaints(limits, {"a": 1001, "b": 3}, 0.02) == ["a grew: 1001, limit 1000"]
    assert complaints(limits, {"a": 979, "b": 2}, 0.02) == ["a fell to 979: lower its limit of 1000", "b fell to 2: lower its limit of 3"]
    assert complaints(limits, {"a": 1000, "b": 3, "c": 1}, 0.02) == ["c grew: 1, limit 0"]
    assert complaints(limits, {"a": 1000}, 0.02) == ["b fell to 0: lower its limit of 3"]


def test_every_limit_has_a_reason() -> None:
    entries = [*LIMITS["rows"].values(), *LIMITS["bank_bytes"].values(), *LIMITS["graph"]]
    entries += [entry for frame in LIMITS["frame"].values() for entry in frame.values()]
    assert len(entries) > 40
    assert [entry for entry in entries if len(entry["reason"].strip()) < 3] == []


@pytest.mark.parametrize("entry", LIMITS["graph"], ids=lambda e: f"{e['role']}-{e['objects']}-{e['memory']}")
def test_graphs(entry: dict[str, Any]) -> None:
    bundle, rows = MODELS / "nano", LIMITS["rows"][entry["memory"]]["limit"]
    work = work_of(bundle, read_manifest(bundle, verify=False), objects=entry["objects"], rows=rows, pointers=16)[entry["role"]]
    limits, measured = ({name: side[name] for name in COUNTED} for side in (entry, work))
    assert complaints(limits, measured, LIMITS["slack"]) == []


def test_all_graphs_of_a_frame_are_limited() -> None:
    bundle = MODELS / "nano"
    present = work_of(bundle, read_manifest(bundle, verify=False), objects=1, rows=1, pointers=1)
    assert {entry["role"] for entry in LIMITS["graph"]} == present.keys()


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_kernels(tmp_path_factory.mktemp("kernels") / "kernels.so")


@pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER)
@pytest.mark.parametrize("memory", PRUNES)
def test_a_frame(memory: str, library: Path) -> None:
    """Oracle: none but the limits. Every frame of the steady state costs the same."""
    loaded = fastsam2.load("nano", threads=1)
    backend = fake_backend(loaded.folder, loaded.manifest, library)
    assert isinstance(backend.gpu, FakeGpu)
    tracker = Tracker(backend, loaded.spec, prune=PRUNES[memory])
    frames = make_clip("gpu_loop", STEADY + 2).frames
    tracker.step(frames[0])
    tracker.add(1, box=(90, 60, 210, 170))
    tracker.add(2, box=(60, 90, 160, 200))
    for frame in frames[1:STEADY]:
        tracker.step(frame)
    limits = limits_of(LIMITS["frame"][memory])
    for frame in frames[STEADY:]:
        backend.gpu.calls.clear()
        result = tracker.step(frame)
        calls = backend.gpu.calls
        moved = {f"{name}ed_bytes": sum(n for called, n in calls if called == name) for name in ("upload", "download")}
        assert complaints(limits, {**Counter(name for name, _ in calls), **moved}, LIMITS["slack"]) == []
        for table, values in (("rows", result.memory.rows), ("bank_bytes", (sum(result.memory.bytes),))):
            for value in values:
                assert complaints({memory: LIMITS[table][memory]["limit"]}, {memory: value}, LIMITS["slack"]) == []
