"""Engines as CUDA graphs, recorded and replayed on the stand-in for a GPU; and what CUDA itself is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import fastsam2
from fastsam2 import Tracker
from fastsam2.config import Prune
from fastsam2.enums import GraphRole
from fastsam2.errors import BackendError
from fastsam2.runtime.gpu.backend import GpuBackend
from fastsam2.runtime.gpu.graphs import CAPTURE_AFTER, MOST_GRAPHS, CudaCapture, GraphEngines
from fastsam2.runtime.loaded import LoadedBundle
from tests.fake_gpu import FakeGpu, LateDriver, fake_backend
from tests.kernel_host.driver import compile_kernels
from tests.kernel_host.harness import COMPILER, NO_COMPILER
from tests.parity.clips import make_clip

FRAMES = make_clip("gpu_graphs", 11).frames
ENGINES = {GraphRole.IMAGE_ENCODER, GraphRole.MEMORY_ATTENTION, GraphRole.MASK_DECODER, GraphRole.MEMORY_ENCODER}


class FakeCapture:
    """Takes what the stand-in has queued since `begin`, and queues it again at each launch."""

    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu, self.held, self.launches = gpu, [], 0  # type: tuple[FakeGpu, list[Any], int]
        self.fails = ""
        self._before: list[Callable[[], object]] = []

    def begin(self) -> None:
        self._before, self.gpu._queue = self.gpu._queue, []

    def end(self) -> Any:
        recorded, self.gpu._queue = self.gpu._queue, self._before
        if self.fails:
            raise BackendError(self.fails)
        self.held.append(recorded)
        return recorded

    def launch(self, graph: Any) -> None:
        assert any(graph is held for held in self.held), "a graph that was released"
        self.launches += 1
        self.gpu._queue.extend(graph)

    def release(self, graph: Any) -> None:
        assert not self.gpu._queue, "the stream is not through with it"
        self.held = [held for held in self.held if held is not graph]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if COMPILER is None:
        pytest.skip(NO_COMPILER)
    return compile_kernels(tmp_path_factory.mktemp("kernels") / "kernels.so")


@pytest.fixture(scope="module")
def host(bundle_micro: Path) -> LoadedBundle:
    return fastsam2.load(bundle_micro, threads=1)


def replaying(host: LoadedBundle, library: Path) -> tuple[GpuBackend, GraphEngines, FakeCapture]:
    plain = fake_backend(host.folder, host.manifest, library)
    gpu = plain.gpu
    assert isinstance(gpu, FakeGpu)
    capture = FakeCapture(gpu)
    engines = GraphEngines(plain.engines, gpu, capture)
    return GpuBackend(gpu, engines, host.spec, driver=LateDriver(gpu, library)), engines, capture


def tracked(tracker: Tracker) -> list[np.ndarray[Any, Any]]:
    masks = []
    for t in range(3 * len(FRAMES)):
        result = tracker.step(FRAMES[t % len(FRAMES)])
        if t == 0:
            tracker.add(1, box=(90, 60, 210, 170))
            result = tracker.add(2, box=(60, 90, 160, 200))
        if t == 60:
            result = tracker.correct(1, points=[(120, 90)])
        masks.append(result.low_res_logits)
    return masks


@pytest.mark.parametrize("prune", [Prune(), Prune(policy="uniform", keep=0.25)], ids=["dense", "uniform"])
def test_replayed_engines_give_the_same_bits(host: LoadedBundle, library: Path, prune: Prune) -> None:
    backend, engines, capture = replaying(host, library)
    for ours, theirs in zip(tracked(Tracker(backend, host.spec, prune=prune)), tracked(host.tracker(prune=prune)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    facts = backend.describe()["cuda_graphs"]
    assert facts["refused"] == {} and facts["captured"] == len(capture.held) <= 4 * len(ENGINES)
    assert facts["launched"] == capture.launches > 100
    assert {role for role, _ in engines._graphs} == ENGINES
    backend.close()
    assert capture.held == []


def test_an_engine_that_cannot_be_captured_runs_as_before(host: LoadedBundle, library: Path) -> None:
    backend, _, capture = replaying(host, library)
    capture.fails = "no graphs today"
    for ours, theirs in zip(tracked(Tracker(backend, host.spec)), tracked(host.tracker()), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert backend.describe()["cuda_graphs"] == {"captured": 0, "launched": 0, "refused": {r.value: "no graphs today" for r in ENGINES}}


class Counted:
    """Engines that only count."""

    name, target = "counted", None

    def __init__(self) -> None:
        self.runs, self.bytes = 0, 100

    def enqueue(self, role: GraphRole, inputs: Any, outputs: Any) -> None:
        self.runs += 1

    def activation_bytes(self) -> int:
        return self.bytes

    def close(self) -> None:
        self.runs = -1


def at(address: int, batch: int = 1) -> dict[str, Any]:
    return {"x": SimpleNamespace(address=address, shape=(batch, 2))}


def test_a_change_of_shapes_is_never_captured() -> None:
    """Two groups of objects take turns: their engine is told other shapes in each run, which no capture survives."""
    gpu, inner = FakeGpu(), Counted()
    capture = FakeCapture(gpu)
    engines = GraphEngines(inner, gpu, capture)  # type: ignore[arg-type]
    for _ in range(2 * CAPTURE_AFTER):
        for batch in (1, 2):
            engines.enqueue(GraphRole.MASK_DECODER, at(256, batch), at(512, batch))
    assert (capture.launches, inner.runs) == (0, 4 * CAPTURE_AFTER)
    engines.enqueue(GraphRole.MASK_DECODER, at(256, 2), at(512, 2))
    assert capture.launches == 1


def test_graphs_go_when_the_memory_they_point_at_moves() -> None:
    gpu, inner = FakeGpu(), Counted()
    capture = FakeCapture(gpu)
    engines = GraphEngines(inner, gpu, capture)  # type: ignore[arg-type]

    def run(address: int = 256) -> None:
        engines.enqueue(GraphRole.IMAGE_ENCODER, at(address), at(512))
        gpu.synchronize()

    for _ in range(CAPTURE_AFTER + 3):
        run()
    assert (inner.runs, capture.launches, len(capture.held)) == (CAPTURE_AFTER + 1, 3, 1)  # one run is the recording
    run(1024)
    assert (inner.runs, capture.launches) == (CAPTURE_AFTER + 2, 3), "other addresses"
    inner.bytes = 200
    run()
    assert (inner.runs, capture.held) == (CAPTURE_AFTER + 3, [])
    for address in range(0, 256 * (MOST_GRAPHS + 5), 256):
        for _ in range(CAPTURE_AFTER + 1):
            run(address)
    assert len(capture.held) == len(engines._graphs) == MOST_GRAPHS
    engines.close()
    assert capture.held == [] and inner.runs == -1


class FakeCuda:
    """cuda.bindings.driver as far as capturing uses it; `told` holds every call."""

    CUresult = SimpleNamespace(CUDA_SUCCESS=SimpleNamespace(name="CUDA_SUCCESS"))
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL="thread local")

    def __init__(self, fails: str = "") -> None:
        self.told: list[tuple[Any, ...]] = []
        self.fails = fails

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> tuple[Any, ...]:
            self.told.append((name, *arguments))
            if name == self.fails:
                return SimpleNamespace(name="CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"), 0
            made = {"cuStreamEndCapture": ("graph",), "cuGraphInstantiate": ("ready",)}.get(name, ())
            return (self.CUresult.CUDA_SUCCESS, *made)

        return call


def test_what_cuda_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, gpu = FakeCuda(), FakeGpu()
    monkeypatch.setattr("fastsam2.runtime.gpu.graphs.importlib.import_module", lambda name: {"cuda.bindings.driver": cuda}[name])
    capture = CudaCapture(gpu)
    capture.begin()
    ready = capture.end()
    capture.launch(ready)
    capture.release(ready)
    assert cuda.told == [
        ("cuStreamBeginCapture", gpu.stream_handle, "thread local"),
        ("cuStreamEndCapture", gpu.stream_handle),
        ("cuGraphInstantiate", "graph", 0),
        ("cuGraphDestroy", "graph"),
        ("cuGraphLaunch", "ready", gpu.stream_handle),
        ("cuGraphExecDestroy", "ready"),
    ]


@pytest.mark.parametrize("step", ["cuStreamEndCapture", "cuGraphInstantiate"])
def test_what_cuda_refuses_is_an_error(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    cuda = FakeCuda(step)
    monkeypatch.setattr("fastsam2.runtime.gpu.graphs.importlib.import_module", lambda name: cuda)
    capture = CudaCapture(FakeGpu())
    capture.begin()
    with pytest.raises(BackendError, match=rf"CUDA_ERROR_STREAM_CAPTURE_INVALIDATED from {step}"):
        capture.end()
    assert (("cuGraphDestroy", "graph") in cuda.told) == (step == "cuGraphInstantiate")


def test_without_the_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cuda.bindings.driver", None)
    with pytest.raises(BackendError, match=r"cuda.bindings.*fastsam2\[cuda\]"):
        CudaCapture(FakeGpu())


def test_the_real_bindings_have_what_is_used() -> None:
    cuda = pytest.importorskip("cuda.bindings.driver")
    for name in (
        "cuStreamBeginCapture",
        "cuStreamEndCapture",
        "cuGraphInstantiate",
        "cuGraphDestroy",
        "cuGraphLaunch",
        "cuGraphExecDestroy",
    ):
        assert callable(getattr(cuda, name))
    assert cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL is not None
