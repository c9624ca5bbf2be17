"""A bundle with engines as `fastsam2 build` leaves them, a GPU without memory and the module of a flavor that runs them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from fastsam2.bundle import FileEntry, Manifest
from fastsam2.contracts import graph_spec
from fastsam2.engines.profiles import Limits, axis_sizes, profiles
from fastsam2.engines.records import ENGINES, EngineEntry, EngineSet, write_set
from fastsam2.enums import ExportTarget, Flavor, GraphRole, Precision
from fastsam2.runtime.gpu.engines import Engines
from fastsam2.runtime.gpu.tensorrt import TensorRTEngines
from tests.engine_bundle import SPEC, write_bundle
from tests.fake_tensorrt import FakeGpu, FakeTrt

ATTENTION, DECODER, ENCODER = GraphRole.MEMORY_ATTENTION, GraphRole.MASK_DECODER, GraphRole.IMAGE_ENCODER
LIMITS = Limits(max_objects=3, keep_buckets=(0.05,))
VERSIONS = {Flavor.TENSORRT: "10.9", Flavor.TENSORRT_RTX: "1.7"}
RTX = Flavor.TENSORRT_RTX


@dataclass(frozen=True)
class Tensor:
    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    nbytes: int = 0


Tensors = dict[str, Tensor]


def tensors(role: GraphRole, start: int = 4096, **sizes: int) -> tuple[Tensors, Tensors]:
    """Inputs and outputs at addresses of their own; M, P and R are those of the dense profile unless given."""
    dynamic = {axis: high for axis, (_, _, high) in axis_sizes(SPEC, LIMITS).items()} | {"B": 1, "Q": 1} | sizes
    dynamic["R"] = sizes.get("R", dynamic["M"] + SPEC.pointer_tokens * dynamic["P"])
    table = graph_spec(role, ExportTarget.TENSORRT)
    made = {
        t.name: Tensor(start + 512 * i, tuple(dynamic[d] if isinstance(d, str) else d for d in t.shape(SPEC)), np.dtype(t.dtype))
        for i, t in enumerate((*table.inputs, *table.outputs))
    }
    return {t.name: made[t.name] for t in table.inputs}, {t.name: made[t.name] for t in table.outputs}


def write_engines(folder: Path, manifest: Manifest, flavor: Flavor, target: str) -> Path:
    """A set of engines as `fastsam2 build` leaves it; the folder of the set."""
    engines = EngineSet(flavor=flavor, version=VERSIONS[flavor], target=target, limits=LIMITS)
    out = folder / ENGINES / engines.folder_name
    out.mkdir(parents=True)
    for graph in manifest.graphs:
        role = graph.role
        (out / f"{role.value}.engine").write_bytes(f"engine {role.value}".encode())
        (out / f"{role.value}.layers.txt").write_text("layers")
        engines = engines.with_engine(
            EngineEntry(
                graph=role,
                precision=Precision.FP16,
                file=FileEntry.of(out, PurePosixPath(f"{role.value}.engine")),
                listing=FileEntry.of(out, PurePosixPath(f"{role.value}.layers.txt")),
                source_sha256=graph.file.sha256,
                recipe_sha256="0" * 64,
                profiles=profiles(SPEC, role, LIMITS),
                options={},
                fused_attention=0,
                expected_attention=0,
                attention=0,
                activation_bytes=5000 if role is ATTENTION else 700,
                build_seconds=0.1,
                drift={},
                created=datetime(2025, 1, 2, tzinfo=timezone.utc),
            )
        )
    write_set(out, engines)
    return out


class World:
    """A bundle with engines, a GPU and the module of a flavor."""

    def __init__(self, folder: Path, flavor: Flavor, target: str = "8.9") -> None:
        self.folder, self.flavor, self.gpu = folder, flavor, FakeGpu()
        self.manifest = write_bundle(folder, SPEC)
        self.engines_folder = write_engines(folder, self.manifest, flavor, target)
        self.trt = FakeTrt(SPEC, LIMITS, version=VERSIONS[flavor], rtx=flavor is RTX)

    def open(self, **options: Any) -> Engines:
        return TensorRTEngines(self.folder, self.manifest, self.gpu, self.flavor, **options)  # type: ignore[arg-type]


def cache_files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()} if folder.is_dir() else {}
