"""Graphs in ONNX Runtime on device memory: the CUDA execution provider, bound to addresses and to the stream of the GPU loop.

With `device="cpu"` the same class runs them on the CPU provider and on host addresses, which is how a machine without a GPU tests the loop.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import onnxruntime as ort

from fastsam2.bundle import Manifest
from fastsam2.contracts import graph_spec
from fastsam2.enums import ExportTarget, GraphRole
from fastsam2.errors import StateError, expected
from fastsam2.runtime.backends.onnxruntime import (
    CPU_PROVIDER,
    CUDA_OPTIONS,
    CUDA_PROVIDER,
    check_provider,
    open_session,
    run_failed,
    usable_cores,
)
from fastsam2.runtime.gpu.driver import Gpu
from fastsam2.runtime.gpu.engines import DeviceTensor, check_tensors

Device = Literal["cuda", "cpu"]


class OrtEngines:
    """One session per graph, opened at first use. Arguments and results stay where they are; see `Engines`.

    Args:
        folder: bundle folder.
        manifest: its manifest.
        gpu: whose stream and memory are used.
        device: where graphs run and what addresses mean: "cuda", or "cpu" for host memory, where `enqueue` waits for the run.
        target: which form of the graphs.
        threads: CPU threads inside one operator; None takes every core this process may use.

    Raises:
        BackendError: if this ONNX Runtime does not have the provider, or threads < 1.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        gpu: Gpu,
        *,
        device: Device = "cuda",
        target: ExportTarget = ExportTarget.ONNXRUNTIME,
        threads: int | None = None,
    ) -> None:
        self.name, self.target = f"onnxruntime-{device}", target
        self._folder, self._manifest, self._gpu = folder, manifest, gpu
        self._device = device
        self._index = gpu.index if device == "cuda" else 0
        self._provider = CUDA_PROVIDER if device == "cuda" else CPU_PROVIDER
        check_provider(self._provider, threads)
        self._threads = threads or usable_cores()
        self._sessions: dict[GraphRole, ort.InferenceSession] = {}
        self._run_options = ort.RunOptions()
        self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._lock = threading.Lock()
        self._closed = False

    def max_objects(self, role: GraphRole) -> int | None:
        """None: graphs take any number."""
        return None

    def max_prompt_frames(self) -> int | None:
        """None: graphs take any number."""
        return None

    def has(self, role: GraphRole) -> bool:
        """See `Engines.has`."""
        return any(g.role is role and g.target is self.target for g in self._manifest.graphs)

    def enqueue(self, role: GraphRole, inputs: Mapping[str, DeviceTensor], outputs: Mapping[str, DeviceTensor]) -> None:
        """See `Engines.enqueue`.

        Raises:
            BackendError: if the graph does not load or run.
            BundleError: if there is no such graph.
            StateError: after `close`.
        """
        check_tensors(graph_spec(role, self.target), inputs, outputs)
        with self._lock:
            session = self._session(role)
            binding = session.io_binding()
            try:
                for name, tensor in inputs.items():
                    binding.bind_input(name, self._device, self._index, tensor.dtype, tensor.shape, tensor.address)
                for name, tensor in outputs.items():
                    binding.bind_output(name, self._device, self._index, tensor.dtype, tensor.shape, tensor.address)
                session.run_with_iobinding(binding, self._run_options)
            except Exception as error:  # ONNX Runtime raises its own unrelated classes
                raise run_failed(role, self.name, error) from error

    def cuda_graphs(self) -> None:
        """None: sessions run as they are."""

    def activation_bytes(self) -> int:
        """0: ONNX Runtime does not tell."""
        return 0

    def close(self) -> None:
        """See `Engines.close`."""
        with self._lock:
            self._closed = True
            self._sessions.clear()

    def _session(self, role: GraphRole) -> ort.InferenceSession:
        if self._closed:
            raise StateError(expected("open engines", "closed ones", "Load the bundle again"))
        if role not in self._sessions:
            path = self._folder / self._manifest.graph(role, self.target).file.path
            self._sessions[role] = open_session(path, self._provider, self._options(), self._threads)
        return self._sessions[role]

    def _options(self) -> dict[str, str]:
        """With the loop's stream for everything, copies between CPU and GPU inside a graph included."""
        if self._device == "cpu":
            return {}
        stream = {"user_compute_stream": str(self._gpu.stream_handle), "do_copy_in_default_stream": "1"}
        return {**CUDA_OPTIONS, "device_id": str(self._index), **stream}
