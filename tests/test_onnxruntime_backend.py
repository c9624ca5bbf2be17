"""ONNX Runtime's providers: the one that was asked for runs, or an error says what is missing."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

import fastsam2
from fastsam2.enums import BackendName, GraphRole
from fastsam2.errors import BackendError
from fastsam2.runtime.backends import onnxruntime as module
from fastsam2.runtime.backends.onnxruntime import CPU_PROVIDER, CUDA_PROVIDER

PIXELS = {"pixels": np.zeros((1, 3, 512, 512), np.uint8)}


class Session:
    """Stands for `InferenceSession` where CUDA is built in: it starts with the providers of `starts`."""

    starts: tuple[str, ...]

    def __init__(self, path: str, options: ort.SessionOptions, providers: list[Any]) -> None:
        self.asked = providers

    def get_providers(self) -> list[str]:
        return list(self.starts)


@pytest.fixture
def with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA_PROVIDER, CPU_PROVIDER])
    monkeypatch.setattr(ort, "InferenceSession", Session)


def test_a_provider_that_is_not_built_in_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CPU_PROVIDER])
    with pytest.raises(BackendError, match=r"CUDAExecutionProvider.*pip install onnxruntime-gpu"):
        fastsam2.load("nano", backend="onnxruntime-cuda")


def test_the_cpu_does_not_stand_in_for_a_provider_that_fails_to_start(with_cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "starts", (CPU_PROVIDER,), raising=False)
    bundle = fastsam2.load("nano", backend="onnxruntime-cuda")
    with pytest.raises(BackendError, match="CUDAExecutionProvider to start"):
        bundle.backend.run(GraphRole.IMAGE_ENCODER, PIXELS)


def test_cuda_computes_in_float32(with_cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "starts", (CUDA_PROVIDER, CPU_PROVIDER), raising=False)
    backend = fastsam2.load("nano", backend="onnxruntime-cuda").backend
    assert isinstance(backend, module.OnnxRuntimeBackend) and backend.name == BackendName.ONNXRUNTIME_CUDA.value
    session = backend._session(GraphRole.IMAGE_ENCODER)
    assert isinstance(session, Session) and session.asked == [(CUDA_PROVIDER, {"use_tf32": "0"}), CPU_PROVIDER]


@pytest.mark.gpu
@pytest.mark.skipif(CUDA_PROVIDER not in ort.get_available_providers(), reason="onnxruntime-gpu is not installed")
@pytest.mark.parametrize("role", [GraphRole.IMAGE_ENCODER])
def test_cuda_agrees_with_the_cpu(role: GraphRole) -> None:
    """The oracle is the same graph on the CPU provider."""
    rng = np.random.default_rng(0)
    inputs = {"pixels": rng.integers(0, 256, PIXELS["pixels"].shape, dtype=np.uint8)}
    ours, oracle = (fastsam2.load("nano", backend=b.value).backend.run(role, inputs) for b in reversed(BackendName))
    for name, value in oracle.items():
        assert np.abs(ours[name] - value).max() < 1e-3 * value.std()
