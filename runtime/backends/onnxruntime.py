"""Graphs on one of ONNX Runtime's execution providers: the CPU, or CUDA.

Arrays go in and come out as numpy; on CUDA each graph copies them there and back.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime as ort

from fastsam2.bundle import Manifest
from fastsam2.enums import BackendName, ExportTarget, GraphRole
from fastsam2.errors import BackendError, expected
from fastsam2.runtime.backends.protocol import Array

CPU_PROVIDER, CUDA_PROVIDER = "CPUExecutionProvider", "CUDAExecutionProvider"
_PROVIDERS: Mapping[BackendName, tuple[str, dict[str, str]]] = {
    BackendName.ONNXRUNTIME: (CPU_PROVIDER, {}),
    # TF32 would round every product to 10 bits: the graphs are float32, and so are the masks they are compared with
    BackendName.ONNXRUNTIME_CUDA: (CUDA_PROVIDER, {"use_tf32": "0"}),
}
_INSTALL_CUDA = (
    "Run: pip uninstall onnxruntime, then pip install onnxruntime-gpu (the two share a folder), with the CUDA and cuDNN versions it was "
    "built for; `fastsam2 doctor` shows what is there"
)


class OnnxRuntimeBackend:
    """One session per graph, opened at first use and shared by all trackers.

    Args:
        folder: bundle folder.
        manifest: its manifest.
        provider: which of its backends.
        threads: CPU threads inside one operator; None takes every core this process may use.

    Raises:
        BackendError: if this ONNX Runtime does not have the provider, or threads < 1.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, *, provider: BackendName = BackendName.ONNXRUNTIME, threads: int | None = None
    ) -> None:
        self.name = provider.value
        self._provider, self._options = _PROVIDERS[provider]
        if self._provider not in ort.get_available_providers():
            raise BackendError(expected(f"an ONNX Runtime with {self._provider}", ort.get_available_providers(), _INSTALL_CUDA))
        if threads is not None and threads < 1:
            raise BackendError(expected("threads >= 1", threads, "Leave it out to use every core"))
        self.folder, self.manifest = folder, manifest
        self.threads = threads or usable_cores()
        self._sessions: dict[GraphRole, ort.InferenceSession] = {}
        self._lock = threading.Lock()

    def run(self, role: GraphRole, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `Backend.run`."""
        session = self._session(role)
        names = [output.name for output in session.get_outputs()]
        try:
            values = session.run(names, dict(inputs))
        except Exception as error:  # ONNX Runtime raises its own unrelated classes
            raise BackendError(
                expected(
                    f"graph {role.value} to run on {self.name}",
                    f"{type(error).__name__}: {error}",
                    "If memory ran out, lower memory_budget_mb or the number of objects",
                )
            ) from error
        return dict(zip(names, values, strict=True))

    def _session(self, role: GraphRole) -> ort.InferenceSession:
        with self._lock:
            if role not in self._sessions:
                path = self.folder / self.manifest.graph(role, ExportTarget.ONNXRUNTIME).file.path
                options = ort.SessionOptions()
                options.intra_op_num_threads = self.threads
                options.inter_op_num_threads = 1
                options.log_severity_level = 3
                try:
                    session = ort.InferenceSession(str(path), options, providers=self._ranked())
                except Exception as error:
                    raise BackendError(
                        expected(
                            f"{path.name} to load in ONNX Runtime {ort.__version__}", error, "Export the bundle again with this release"
                        )
                    ) from error
                if session.get_providers()[0] != self._provider:  # ONNX Runtime goes on without a provider that does not start
                    got = f"only {session.get_providers()} started; its log says why"
                    raise BackendError(expected(f"{self._provider} to start", got, _INSTALL_CUDA))
                self._sessions[role] = session
            return self._sessions[role]

    def _ranked(self) -> list[Any]:
        """The provider, and the CPU for what every provider leaves to it: sums over shapes."""
        return [(self._provider, self._options)] if self._provider == CPU_PROVIDER else [(self._provider, self._options), CPU_PROVIDER]


def usable_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
