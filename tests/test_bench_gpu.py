"""The benchmark on a GPU that is this machine (`fake_gpu`). Oracle: the same on the host."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from fastsam2.benchmarks import bench, bench_case, bench_frames, bench_memory
from fastsam2.benchmarks.bench import run_bench
from fastsam2.benchmarks.bench_case import worst_iou
from fastsam2.benchmarks.bench_frames import box_in, make_frames
from fastsam2.benchmarks.bench_memory import Request, answer
from fastsam2.benchmarks.sides import Masks, Ours
from fastsam2.bundle import read_manifest
from fastsam2.config import Prune
from fastsam2.engines import trt_compat
from fastsam2.enums import PrunePolicy
from fastsam2.errors import BackendError
from fastsam2.runtime.loaded import LoadedBundle, load
from tests.fake_gpu import fake_backend
from tests.kernel_host.driver import compile_kernels
from tests.kernel_host.harness import COMPILER, NO_COMPILER
from tests.tensorrt_world import RTX, World

SIZE = (96, 160)
MASK = Prune(policy=PrunePolicy.MASK, keep=0.25)

needs_compiler = pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_kernels(tmp_path_factory.mktemp("kernels") / "kernels.so")


@pytest.fixture
def loaded(bundle_micro: Path, library: Path) -> LoadedBundle:
    manifest = read_manifest(bundle_micro)
    return LoadedBundle(bundle_micro, manifest, fake_backend(bundle_micro, manifest, library))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("frames")
    for t, frame in enumerate(make_frames(21, SIZE)):
        Image.fromarray(frame).save(folder / f"{t:02d}.png")
    return sorted(folder.iterdir())


def filled(loaded: LoadedBundle, files: list[Path]) -> Ours:
    side = Ours(loaded, MASK)
    side.prompt(side.decode(files[0]), box_in(SIZE))
    advance(side, files[1:18])
    side.save()
    return side


def advance(side: Ours, files: list[Path]) -> list[Masks]:
    return [side.step(side.decode(file)) for file in files]


@needs_compiler
def test_copies_have_device_memory_of_their_own(loaded: LoadedBundle, files: list[Path], bundle_micro: Path) -> None:
    side, host = filled(loaded, files), filled(load(bundle_micro, threads=1), files)
    wanted = advance(host, files[18:20])
    assert wanted[0].any()
    assert min(map(worst_iou, advance(side, files[18:20]), wanted)) > 0.99
    side.restore()
    side.copy_object(2)
    first, second = (side.tracker._objects[i].memory.frames for i in (1, 2))
    rows: list[Any] = [frames[t].rows for t in first for frames in (first, second) if first[t].rows is not None]
    assert len(rows) == len({tensor.address for tensor in rows}) == 14
    for masks, want in zip(advance(side, files[18:20]), wanted, strict=True):
        assert min(worst_iou(masks[i : i + 1], want) for i in (0, 1)) > 0.99
    side.restore()
    assert side.tracker.ids == (1,)
    with side.waiting():
        side.clear_stages()
        advance(side, files[20:21])
    assert {"memory_attention", "image_encoder"} <= set(side.tracker.stages_ms())


@needs_compiler
def test_device_memory_is_what_the_gpu_has_less_than_before(
    loaded: LoadedBundle, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend: Any = loaded.backend
    taken_by_others = backend.gpu.allocate(1 << 20)
    before = backend.gpu.memory()[0]
    monkeypatch.setattr(bench_memory, "load", lambda *_, **__: loaded)
    request = Request(
        side="ours",
        bundle=str(loaded.folder),
        backend="onnxruntime-cuda",
        threads=1,
        gpu=0,
        files=[str(file) for file in files],
        box=box_in(SIZE),
        frames=30,
        objects=[1, 3],
    )
    peaks = answer(request, lambda index: backend.gpu)["peaks"]
    assert 0 < peaks[1]["device_peak_bytes"] < peaks[3]["device_peak_bytes"] == before - backend.gpu.memory()[0]
    assert taken_by_others in backend.gpu.held


class Joules:
    """Thirty joules from look to look, which are ten calls apart."""

    def __init__(self) -> None:
        self.open = 0
        self.count = 0.0

    def joules(self) -> float:
        assert self.open == 1
        self.count += 30.0
        return self.count

    def __enter__(self) -> Joules:
        self.open += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.open -= 1


@needs_compiler
def test_a_case_on_a_gpu(loaded: LoadedBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[Request] = []

    def peak_memory(request: Request) -> dict[str, Any]:
        requests.append(request)
        return {"start_up_ms": 1.0, "peaks": {n: {"peak_bytes": 5, "device_peak_bytes": 3} for n in request.objects}}

    pauses: list[float] = []
    monkeypatch.setattr(bench_frames, "SCENE_SIZE", SIZE)
    monkeypatch.setattr(bench, "load", lambda *_, **__: loaded)
    monkeypatch.setattr(bench, "peak_memory", peak_memory)
    monkeypatch.setattr(bench, "open_meter", lambda gpu: {0: Joules()}[gpu])
    monkeypatch.setattr(bench_case.time, "sleep", pauses.append)
    monkeypatch.setattr("fastsam2.benchmarks.energy.LEAST_S", 0.0)
    record = run_bench("micro", out=tmp_path / "bench.json", backend="onnxruntime-cuda", keep=[0.25], frames=2, threads=1)
    assert (record["gpu"], record["compute_capability"]) == ("FAKE GPU", "9.0")
    assert record["gpu_memory"] == 1 << 34
    whole, model = record["cases"]
    assert (whole["backend"], whole["precision"], whole["device_peak_bytes"]) == (loaded.backend.name, "fp32", 3)
    assert whole["energy_j_per_frame"] == 3.0
    assert "energy_j_per_frame" not in model
    assert {"decode", "image_encoder", "memory_attention"} <= whole["stages_ms"].keys()
    assert [r.gpu for r in requests] == [0]
    assert set(pauses) == {0.0}, "a pause would let the GPU's clocks fall"
    with pytest.raises(BackendError, match="CUDA build of torch"):
        run_bench(
            "micro", out=tmp_path / "other.json", backend="onnxruntime-cuda", against="official", config=config(), frames=2, threads=1
        )


def config() -> str:
    return str(Path(__file__).parent / "data" / "micro.yaml")


def test_precision_is_that_of_the_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path / "bundle", RTX)
    monkeypatch.setattr(trt_compat, "load", lambda flavor: SimpleNamespace(__version__="1.7"))
    facts = {"compute_capability": "8.9"}
    backend: Any = SimpleNamespace(name="tensorrt-rtx", describe=lambda: facts)
    assert bench._precision(LoadedBundle(world.folder, world.manifest, backend)) == "fp16"
    backend.name = "onnxruntime-cuda"
    assert bench._precision(LoadedBundle(world.folder, world.manifest, backend)) == "fp32"
