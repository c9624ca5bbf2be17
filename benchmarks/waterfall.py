"""What each technique brings, alone and together, on a CPU: all variants and the official predictor take the same frames in turn.

    python -m benchmarks.waterfall --bundle bundles/tiny --objects 1 4 --out benchmarks/results/waterfall_tiny_1024.json

official eager ─ exported (standard attention, object by object) ─┬ absorbed values │ pruned memory │ batching: one at a time
                                                                  └ all before it and itself: one after the other

Standard attention is what the graphs of the target `tensorrt` have: memory is projected to values before it is attended to, and the
operator is ONNX's Attention; the target `onnxruntime` attends to memory as it is and projects once (`export/rewrites/`). The bundle needs
both targets. CUDA graphs and half precision have no place on a CPU.
"""

from __future__ import annotations

import argparse
import importlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastsam2.benchmarks.bench import WARM_UP_FRAMES
from fastsam2.benchmarks.bench_case import SETTLE_S, Taken, measure, numbers
from fastsam2.benchmarks.bench_frames import box_in, store_frames
from fastsam2.benchmarks.conditions import conditions
from fastsam2.benchmarks.official_weights import build_official, official_weights
from fastsam2.benchmarks.report_cases import MODEL
from fastsam2.benchmarks.sides import Official, Ours, Side, fill, multiply
from fastsam2.builtin import bundle_path
from fastsam2.bundle import MANIFEST_NAME, Manifest, sha256_of
from fastsam2.config import Prune
from fastsam2.enums import ExportTarget, GraphRole, PrunePolicy
from fastsam2.errors import FastSam2Error
from fastsam2.files import write_json
from fastsam2.runtime.backends.onnxruntime import OnnxRuntimeBackend
from fastsam2.runtime.backends.protocol import Array
from fastsam2.runtime.loaded import LoadedBundle, load
from fastsam2.runtime.run_record import bundle_text

KEEP = 0.05


class StandardAttention(OnnxRuntimeBackend):
    """The graphs of the target `tensorrt` in ONNX Runtime on the CPU."""

    target = ExportTarget.TENSORRT

    def run(self, role: GraphRole, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `Backend.run`; nothing is masked in the memory attention."""
        if role is GraphRole.MEMORY_ATTENTION:
            spec = self.manifest.model
            batch, rows = inputs["memory"].shape[:2]
            tokens = rows + inputs["pointers"].shape[1] * (spec.hidden_dim // spec.memory_dim)
            inputs = {**inputs, "memory_bias": np.zeros((batch, tokens), np.float32)}
        return super().run(role, inputs)


def variants(objects: int) -> dict[str, tuple[bool, bool, bool]]:
    """Name -> (absorbed values, pruned memory, batching). Batching is left out where there is one object."""
    alone = {
        "exported": (False, False, False),
        "absorbed values": (True, False, False),
        "pruned memory": (False, True, False),
        "batching": (False, False, True),
        "absorbed, pruned": (True, True, False),
        "absorbed, pruned, batching": (True, True, True),
    }
    return {name: on for name, on in alone.items() if objects > 1 or not on[2]}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", required=True, help="with the targets onnxruntime and tensorrt")
    parser.add_argument("--objects", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--pairs", type=int, default=3, help="timed frames")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--config", help="of the official side; that of the bundle if left out")
    parser.add_argument("--checkpoint", help="likewise")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    try:
        waterfall(**vars(args))
    except FastSam2Error as error:
        parser.exit(2, f"error: {error}\n")


def waterfall(
    bundle: str,
    *,
    objects: Sequence[int],
    pairs: int,
    threads: int,
    out: Path,
    config: str | None = None,
    checkpoint: str | None = None,
    settle_s: float = SETTLE_S,
) -> dict[str, Any]:
    """Every variant for each number of objects, all on the same frames.

    Args:
        bundle: folder, or name of a built-in bundle.
        objects: how many are tracked.
        pairs: timed frames.
        threads: CPU threads inside one operator.
        out: JSON file, written after each number of objects.
        config: of the official side; None for what the bundle was exported from.
        checkpoint: likewise.
        settle_s: pause before each sample, seconds.

    Returns:
        The content of the file: conditions and "cases", each with objects, variant, ours_ms, official_ms, ratio, ratio_spread, pairs.

    Raises:
        BundleError: if the bundle lacks a target, or the official weights are not its own.
        ExportError: if torch, sam2 or the checkpoint is missing.
    """
    folder = bundle_path(bundle)
    absorbed = load(bundle, threads=threads)
    manifest: Manifest = absorbed.manifest
    standard = LoadedBundle(folder, manifest, StandardAttention(folder, manifest, threads=threads))
    weights = official_weights(manifest, model=config, checkpoint=checkpoint)
    record: dict[str, Any] = {
        **conditions(threads, "benchmarks.waterfall"),
        "model": manifest.model.name,
        "image_size": manifest.model.image_size,
        "bundle": bundle_text(bundle),
        "bundle_sha256": sha256_of(folder / MANIFEST_NAME),
        "keep": KEEP,
        "boundary": MODEL,
        "cases": [],
    }
    with tempfile.TemporaryDirectory() as scratch:
        files, size = store_frames(None, WARM_UP_FRAMES + 1 + pairs, Path(scratch))
        module = build_official(weights, manifest)
        importlib.import_module("torch").set_num_threads(threads)
        official = Official(module, files[0], frames=len(files))
        ours: dict[tuple[bool, bool], Ours] = {}
        for fast in (False, True):
            for pruned in (False, True):
                prune = Prune(policy=PrunePolicy.MASK, keep=KEEP) if pruned else Prune()
                ours[fast, pruned] = Ours(absorbed if fast else standard, prune)
        sides: list[Side] = [official, *ours.values()]
        for side in sides:
            fill(side, files[:WARM_UP_FRAMES], box_in(size))
        for count in objects:
            record["cases"] += _cases(count, official, ours, files[WARM_UP_FRAMES:], settle_s)
            write_json(out, record)
    return record


def _cases(
    count: int, official: Official, filled: Mapping[tuple[bool, bool], Ours], files: Sequence[Path], settle_s: float
) -> list[dict[str, Any]]:
    """The cases of one number of objects, one frame after the other on every variant."""
    official.restore()
    sides: list[Side] = [official]
    for fast, pruned, batching in variants(count).values():
        like = filled[fast, pruned]
        own = Ours(like.loaded, like.tracker.pruner.prune, singly=not batching)
        own.follow(like)
        sides.append(own)
    for side in sides:
        multiply(side, count)
    taken: list[Taken] = measure(sides, [None] * len(sides), files, settle_s=settle_s)
    cases = []
    for name, one in zip(variants(count), taken[1:], strict=True):
        cases.append({"objects": count, "variant": name, **numbers(one, taken[0], MODEL)})
        print(f"{count} objects, {name}: {cases[-1]['ours_ms']:.0f} ms, {cases[-1]['ratio']:.2f} times the official", flush=True)
    return cases


if __name__ == "__main__":
    main()
