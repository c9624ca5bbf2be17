"""The backend that was asked for, or an error; `auto` says what it passed over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

import fastsam2
from fastsam2.builtin import bundle_path
from fastsam2.bundle import read_manifest
from fastsam2.cli import main
from fastsam2.enums import BackendName, GraphRole
from fastsam2.errors import BackendError, BundleError
from fastsam2.runtime.backends import open as opening
from fastsam2.runtime.backends.onnxruntime import CUDA_PROVIDER, OnnxRuntimeBackend
from fastsam2.runtime.gpu import driver
from tests.fake_gpu import FakeGpu
from tests.videos import counting, write_video

ON_GPU = list(opening.GPU_BACKENDS)


@pytest.fixture
def no_pycuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pycuda.driver", None)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[FakeGpu]:
    """Every GPU that is opened."""
    opened: list[FakeGpu] = []

    def gpu(index: int) -> FakeGpu:
        opened.append(FakeGpu())
        return opened[-1]

    monkeypatch.setattr(driver, "PyCudaGpu", gpu)
    return opened


@pytest.mark.parametrize("name", [*ON_GPU, BackendName.GPU])
def test_nothing_stands_in_for_a_gpu(no_pycuda: None, name: BackendName) -> None:
    with pytest.raises(BackendError, match=r"pycuda.*pip install fastsam2\[cuda\]"):
        fastsam2.load("nano", backend=name.value)


def test_auto_ends_with_the_cpu_and_says_why(no_pycuda: None) -> None:
    loaded = fastsam2.load("nano", backend="auto")
    assert isinstance(loaded.backend, OnnxRuntimeBackend)
    assert list(loaded.passed_over) == [b.value for b in opening.GPU_BACKENDS]
    assert all("pycuda" in why for why in loaded.passed_over.values())


@pytest.mark.parametrize("ready", opening.GPU_BACKENDS)
def test_auto_takes_the_first_that_is_ready(gpus: list[FakeGpu], monkeypatch: pytest.MonkeyPatch, ready: BackendName) -> None:
    class Ready:
        name = ready.value

    def on_gpu(folder: Path, manifest: Any, name: BackendName, gpu: FakeGpu, threads: int | None, cuda_graphs: bool) -> Any:
        assert [gpu] == gpus, "opened once"
        if name is ready:
            return Ready()
        raise BundleError(f"no {name.value}")

    monkeypatch.setattr(opening, "_on_gpu", on_gpu)
    loaded = fastsam2.load("nano", backend="auto")
    before = opening.GPU_BACKENDS[: opening.GPU_BACKENDS.index(ready)]
    assert loaded.backend.name == ready.value and loaded.passed_over == {b.value: f"no {b.value}" for b in before}
    assert (loaded.target.value == "tensorrt") == (ready is not BackendName.ONNXRUNTIME_CUDA)
    assert gpus[0].calls == []


@pytest.mark.parametrize("name", opening.GPU_BACKENDS)
def test_who_captures_cuda_graphs(monkeypatch: pytest.MonkeyPatch, name: BackendName) -> None:
    """TensorRT-RTX does so itself, as it knows when its kernels are compiled."""
    from fastsam2.runtime.gpu import backend, graphs, onnxruntime, tensorrt

    by_us = name is not BackendName.TENSORRT_RTX

    class Some:
        def __init__(self, *_: Any, cuda_graphs: bool = False, **more: Any) -> None:
            self.itself = cuda_graphs

        def cuda_graphs(self) -> Any:
            return {} if self.itself else None

    class Wrapped(Some):
        pass

    for module, used in ((onnxruntime, "OrtEngines"), (tensorrt, "TensorRTEngines")):
        monkeypatch.setattr(module, used, Some)
    monkeypatch.setattr(graphs, "GraphEngines", Wrapped)
    monkeypatch.setattr(backend, "GpuBackend", lambda gpu, engines, spec: engines)
    manifest = read_manifest(bundle_path("nano"))
    opened: Any = opening._on_gpu(bundle_path("nano"), manifest, name, FakeGpu(), None, True)
    assert isinstance(opened, Wrapped) == by_us and opened.itself == (not by_us)
    opened = opening._on_gpu(bundle_path("nano"), manifest, name, FakeGpu(), None, False)
    assert not isinstance(opened, Wrapped) and not opened.itself


@pytest.mark.skipif(CUDA_PROVIDER in ort.get_available_providers(), reason="onnxruntime-gpu is installed")
@pytest.mark.parametrize("name", [*ON_GPU, BackendName.GPU])
def test_a_gpu_that_cannot_be_used_is_given_back(gpus: list[FakeGpu], name: BackendName) -> None:
    """There is a GPU, but no engines in nano and no CUDA in this ONNX Runtime."""
    with pytest.raises((BackendError, BundleError), match=r"onnxruntime-gpu|fastsam2 build|pip install tensorrt"):
        fastsam2.load("nano", backend=name.value)
    assert [gpu.calls for gpu in gpus] == [[("close", 0)]]


def test_run_records_what_auto_chose(no_pycuda: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = write_video(tmp_path / "clip.mp4", counting(3))
    with pytest.raises(SystemExit, match="0"):
        main(
            [
                "run",
                "nano",
                "--video",
                str(clip),
                "--out",
                str(tmp_path / "out"),
                "--box",
                "1,1,40,40",
                "--backend",
                "auto",
                "--frames",
                "2",
            ]
        )
    said = capsys.readouterr().err
    assert "backend: onnxruntime\n  not tensorrt, tensorrt-rtx, onnxruntime-cuda: " in said
    assert '"backend": "onnxruntime"' in (tmp_path / "out" / "run.json").read_text()


@pytest.mark.gpu
@pytest.mark.skipif(CUDA_PROVIDER not in ort.get_available_providers(), reason="onnxruntime-gpu is not installed")
def test_cuda_agrees_with_the_cpu() -> None:
    """The oracle is the same graph on the CPU provider."""
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, 512, 512), np.uint8)
    oracle = fastsam2.load("nano").backend.run(GraphRole.IMAGE_ENCODER, {"pixels": pixels})
    loaded = fastsam2.load("nano", backend="onnxruntime-cuda")
    ours = loaded.backend.run(GraphRole.IMAGE_ENCODER, {"pixels": pixels})
    for name, value in oracle.items():
        (have,) = loaded.backend.device.fetch(ours[name])  # type: ignore[attr-defined]
        assert np.abs(have - value).max() < 1e-3 * value.std()


def test_options_of_the_cpu() -> None:
    folder = bundle_path("nano")
    with pytest.raises(BackendError, match="threads >= 1, got 0"):
        OnnxRuntimeBackend(folder, read_manifest(folder), threads=0)
