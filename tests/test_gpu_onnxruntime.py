"""ONNX Runtime bound to addresses: on the CPU provider for real, on the CUDA provider what it is told. Oracle: `OnnxRuntimeBackend`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest

from fastsam2.builtin import bundle_path
from fastsam2.bundle import Manifest, read_manifest
from fastsam2.contracts import GRAPHS, TensorSpec
from fastsam2.enums import ExportTarget, GraphRole
from fastsam2.errors import BackendError, BundleError, InternalError, StateError
from fastsam2.runtime.backends.onnxruntime import CPU_PROVIDER, CUDA_PROVIDER, OnnxRuntimeBackend
from fastsam2.runtime.gpu.engines import Engines
from fastsam2.runtime.gpu.onnxruntime import OrtEngines

GPU: Any = SimpleNamespace(index=3, stream_handle=4711, name="NVIDIA A")
SIZES = {"B": 2, "K": 5, "M": 9, "P": 3, "Q": 2, "T": 2}


@dataclass(frozen=True)
class HostTensor:
    """Stands for device memory where engines run on the CPU."""

    array: npt.NDArray[Any]

    @property
    def address(self) -> int:
        return self.array.ctypes.data

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    @property
    def nbytes(self) -> int:
        return self.array.nbytes


Arrays = dict[str, npt.NDArray[Any]]


def tensors(arrays: Arrays) -> dict[str, HostTensor]:
    return {name: HostTensor(array) for name, array in arrays.items()}


@pytest.fixture(scope="module")
def nano() -> tuple[Path, Manifest]:
    folder = bundle_path("nano")
    return folder, read_manifest(folder)


@pytest.fixture
def engines(nano: tuple[Path, Manifest]) -> Engines:
    return OrtEngines(*nano, GPU, device="cpu", threads=1)


def arrays(manifest: Manifest, role: GraphRole, seed: int = 0, **sizes: int) -> tuple[Arrays, Arrays]:
    """Random inputs, and outputs full of sevens."""
    rng = np.random.default_rng(seed)

    def shape(tensor: TensorSpec) -> tuple[int, ...]:
        return tuple({**SIZES, **sizes}[d] if isinstance(d, str) else d for d in tensor.shape(manifest.model))

    def fill(tensor: TensorSpec) -> npt.NDArray[Any]:
        if tensor.dtype == "float32":
            return rng.normal(size=shape(tensor)).astype(np.float32)
        return rng.integers(0, 2, shape(tensor)).astype(tensor.dtype)

    return {t.name: fill(t) for t in GRAPHS[role].inputs}, {t.name: np.full(shape(t), 7, t.dtype) for t in GRAPHS[role].outputs}


@pytest.mark.parametrize("role", [r for r in GraphRole if r not in (GraphRole.QUERY_ATTENTION, GraphRole.ROUTER_GATHER)])
def test_graphs_compute_the_same_on_addresses(nano: tuple[Path, Manifest], engines: Engines, role: GraphRole) -> None:
    """Twice with other addresses and sizes: nothing is left bound."""
    oracle = OnnxRuntimeBackend(*nano, threads=1)
    for seed, sizes in enumerate(({}, {"B": 1, "P": 0})):
        inputs, outputs = arrays(nano[1], role, seed, **sizes)
        before = {name: array.copy() for name, array in inputs.items()}
        engines.enqueue(role, tensors(inputs), tensors(outputs))
        for name, wanted in oracle.run(role, inputs).items():
            np.testing.assert_array_equal(outputs[name], wanted)
        for name, array in inputs.items():
            np.testing.assert_array_equal(array, before[name])
    engines.close()


def test_what_the_engines_are(engines: Engines) -> None:
    assert (engines.name, engines.target) == ("onnxruntime-cpu", ExportTarget.ONNXRUNTIME)
    assert engines.has(GraphRole.MASK_DECODER) and not engines.has(GraphRole.QUERY_ATTENTION)
    assert engines.max_objects(GraphRole.MASK_DECODER) is None and engines.max_prompt_frames() is None
    assert engines.activation_bytes() == 0


def test_a_tensor_that_is_missing_or_of_another_type_is_refused(nano: tuple[Path, Manifest], engines: Engines) -> None:
    role = GraphRole.TEXT_ENCODER
    inputs, outputs = arrays(nano[1], role)
    engines.enqueue(role, tensors(inputs), tensors(outputs))
    for wrong_in, wrong_out in (({}, outputs), (inputs, {}), ({"ids": inputs["ids"].astype(np.int64)}, outputs)):
        with pytest.raises(InternalError, match="of text_encoder are"):
            engines.enqueue(role, tensors(wrong_in), tensors(wrong_out))
    with pytest.raises(BackendError, match=r"graph text_encoder to run on onnxruntime-cpu.*invalid dimensions"):
        engines.enqueue(role, tensors(inputs), {"text": HostTensor(outputs["text"][:, :-1].copy())})
    engines.enqueue(role, tensors(inputs), tensors(outputs))


def test_a_graph_that_is_not_there_and_engines_that_are_closed(nano: tuple[Path, Manifest], engines: Engines) -> None:
    inputs, outputs = (tensors(a) for a in arrays(nano[1], GraphRole.QUERY_ATTENTION))
    with pytest.raises(BundleError, match=r"query_attention.*--query-attention"):
        engines.enqueue(GraphRole.QUERY_ATTENTION, inputs, outputs)
    inputs, outputs = (tensors(a) for a in arrays(nano[1], GraphRole.TEXT_ENCODER))
    engines.close()
    engines.close()
    with pytest.raises(StateError, match="open engines, got closed ones"):
        engines.enqueue(GraphRole.TEXT_ENCODER, inputs, outputs)


def test_graphs_of_the_other_target_have_their_own_table(nano: tuple[Path, Manifest]) -> None:
    folder, manifest = nano
    theirs = manifest.model_copy(update={"graphs": tuple(g.model_copy(update={"target": ExportTarget.TENSORRT}) for g in manifest.graphs)})
    engines = OrtEngines(folder, theirs, GPU, device="cpu", target=ExportTarget.TENSORRT, threads=1)
    inputs, outputs = arrays(manifest, GraphRole.MEMORY_ATTENTION)
    with pytest.raises(InternalError, match="memory_bias"):
        engines.enqueue(GraphRole.MEMORY_ATTENTION, tensors(inputs), tensors(outputs))
    assert engines.has(GraphRole.MEMORY_ATTENTION) and not OrtEngines(folder, theirs, GPU, device="cpu").has(GraphRole.MEMORY_ATTENTION)


class CudaSession:
    """Stands for `InferenceSession` where CUDA is built in; keeps what it was told."""

    starts: tuple[str, ...] = (CUDA_PROVIDER, CPU_PROVIDER)
    opened: list[CudaSession]

    def __init__(self, path: str, options: ort.SessionOptions, providers: list[Any]) -> None:
        self.asked, self.bound, self.ran = providers, list[tuple[Any, ...]](), list[Any]()
        self.opened.append(self)

    def get_providers(self) -> list[str]:
        return list(self.starts)

    def io_binding(self) -> Any:
        return SimpleNamespace(
            bind_input=lambda *told: self.bound.append(("input", *told)), bind_output=lambda *told: self.bound.append(("output", *told))
        )

    def run_with_iobinding(self, binding: Any, run_options: Any) -> None:
        self.ran.append(run_options.get_run_config_entry("disable_synchronize_execution_providers"))


@pytest.fixture
def with_cuda(monkeypatch: pytest.MonkeyPatch) -> list[CudaSession]:
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA_PROVIDER, CPU_PROVIDER])
    monkeypatch.setattr(ort, "InferenceSession", CudaSession)
    monkeypatch.setattr(CudaSession, "opened", [], raising=False)
    return CudaSession.opened


def test_cuda_runs_on_the_stream_of_the_loop_and_does_not_wait(nano: tuple[Path, Manifest], with_cuda: list[CudaSession]) -> None:
    engines = OrtEngines(*nano, GPU)
    inputs, outputs = arrays(nano[1], GraphRole.TEXT_ENCODER)
    for _ in range(2):
        engines.enqueue(GraphRole.TEXT_ENCODER, tensors(inputs), tensors(outputs))
    (session,) = with_cuda
    options = {"use_tf32": "0", "device_id": "3", "user_compute_stream": "4711", "do_copy_in_default_stream": "1"}
    assert engines.name == "onnxruntime-cuda" and session.asked == [(CUDA_PROVIDER, options), CPU_PROVIDER]
    ids, text = inputs["ids"], outputs["text"]
    once = [
        ("input", "ids", "cuda", 3, np.dtype(np.int32), ids.shape, ids.ctypes.data),
        ("output", "text", "cuda", 3, np.dtype(np.float32), text.shape, text.ctypes.data),
    ]
    assert session.bound == once * 2 and session.ran == ["1", "1"]


def test_nothing_stands_in_for_cuda(nano: tuple[Path, Manifest], with_cuda: list[CudaSession], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CudaSession, "starts", (CPU_PROVIDER,))
    inputs, outputs = (tensors(a) for a in arrays(nano[1], GraphRole.TEXT_ENCODER))
    with pytest.raises(BackendError, match="CUDAExecutionProvider to start"):
        OrtEngines(*nano, GPU).enqueue(GraphRole.TEXT_ENCODER, inputs, outputs)
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CPU_PROVIDER])
    with pytest.raises(BackendError, match=r"CUDAExecutionProvider.*pip install onnxruntime-gpu"):
        OrtEngines(*nano, GPU)
    with pytest.raises(BackendError, match="threads >= 1, got 0"):
        OrtEngines(*nano, GPU, device="cpu", threads=0)
