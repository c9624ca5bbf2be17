"""Variants of the waterfall: the same masks from both forms of attention, batches where they are meant, every case paired."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fastsam2.benchmarks.waterfall import StandardAttention, variants, waterfall
from fastsam2.bundle import read_manifest
from fastsam2.enums import GraphRole
from fastsam2.runtime.backends.onnxruntime import OnnxRuntimeBackend
from fastsam2.runtime.loaded import LoadedBundle
from fastsam2.runtime.stages import Stages

pytest.importorskip("sam2", reason="sam2, the official side, is not installed")
from tests.conftest import MICRO_CONFIG, MICRO_SEED


def test_both_forms_of_attention_give_the_same_masks(bundle_micro: Path) -> None:
    manifest = read_manifest(bundle_micro)
    frames = np.random.default_rng(0).integers(0, 256, (9, 120, 160, 3), np.uint8)
    logits = []
    for backend in (OnnxRuntimeBackend, StandardAttention):
        tracker = LoadedBundle(bundle_micro, manifest, backend(bundle_micro, manifest, threads=1)).tracker()
        tracker.step(frames[0])
        for object_id, box in ((1, (20, 20, 100, 90)), (2, (60, 10, 150, 80))):
            tracker.add(object_id, box=box)
        logits.append([tracker.step(frame).low_res_logits for frame in frames[1:]][-1])
    np.testing.assert_allclose(logits[1], logits[0], atol=1e-3 * logits[0].std())


def test_one_object_needs_no_batching() -> None:
    assert not any(batching for _, _, batching in variants(1).values())
    assert len(variants(2)) == len(set(variants(2).values())) == 6


def test_every_variant_is_paired_and_runs_as_named(bundle_micro: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    run = Stages._run

    def recorded(self: Stages, role: GraphRole, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if role is GraphRole.MEMORY_ATTENTION:
            batches.append(len(inputs["memory"]))
        return run(self, role, inputs)

    monkeypatch.setattr(Stages, "_run", recorded)
    out = tmp_path / "w.json"
    options = {"config": str(MICRO_CONFIG), "checkpoint": f"random:{MICRO_SEED}", "settle_s": 0.0}
    record = waterfall(str(bundle_micro), objects=[1, 3], pairs=1, threads=1, out=out, **options)
    assert json.loads(out.read_text()) == record
    assert [(c["objects"], c["variant"]) for c in record["cases"]] == [(n, name) for n in (1, 3) for name in variants(n)]
    for case in record["cases"]:
        ((theirs, mine),) = case["pairs"]
        assert case["ratio"] == pytest.approx(theirs / mine) and case["ours_ms"] == mine and case["official_ms"] == theirs
    together = sum(batching for _, _, batching in variants(3).values())
    assert batches.count(3) == 2 * together  # the frame that is thrown away, and the pair
    assert set(batches) == {1, 3}
