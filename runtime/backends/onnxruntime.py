"""Graphs in ONNX Runtime on the CPU, and what its sessions on a GPU share with them (`runtime/gpu/onnxruntime.py`)."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path

import onnxruntime as ort

from fastsam2.bundle import Manifest
from fastsam2.enums import BackendName, ExportTarget, GraphRole
from fastsam2.errors import BackendError, expected
from fastsam2.runtime.backends.protocol import Array

CPU_PROVIDER, CUDA_PROVIDER = "CPUExecutionProvider", "CUDAExecutionProvider"
# TF32 would round every product to 10 bits: the graphs are float32, and so are the masks they are compared with
CUDA_OPTIONS: Mapping[str, str] = {"use_tf32": "0"}
_INSTALL_CUDA = (
    "Run: pip uninstall onnxruntime, then pip install onnxruntime-gpu (the two share a folder), with the CUDA and cuDNN versions it was "
    "built for; `fastsam2 doctor` shows what is there"
)


class OnnxRuntimeBackend:
    """One session per graph, opened at first use and shared by all trackers.

    Args:
        folder: bundle folder.
        manifest: its manifest.
        threads: CPU threads inside one operator; None takes every core this process may use.

    Attributes:
        target: whose graphs are run.

    Raises:
        BackendError: if threads < 1.
    """

    name = BackendName.ONNXRUNTIME.value
    target = ExportTarget.ONNXRUNTIME

    def __init__(self, folder: Path, manifest: Manifest, *, threads: int | None = None) -> None:
        check_provider(CPU_PROVIDER, threads)
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
            raise run_failed(role, self.name, error) from error
        return dict(zip(names, values, strict=True))

    def _session(self, role: GraphRole) -> ort.InferenceSession:
        with self._lock:
            if role not in self._sessions:
                path = self.folder / self.manifest.graph(role, self.target).file.path
                self._sessions[role] = open_session(path, CPU_PROVIDER, {}, self.threads)
            return self._sessions[role]


def check_provider(provider: str, threads: int | None) -> None:
    """Whether sessions can be opened at all.

    Args:
        provider: ONNX Runtime's name of it.
        threads: CPU threads inside one operator, or None.

    Raises:
        BackendError: if this ONNX Runtime does not have the provider, or threads < 1.
    """
    if provider not in ort.get_available_providers():
        raise BackendError(expected(f"an ONNX Runtime with {provider}", ort.get_available_providers(), _INSTALL_CUDA))
    if threads is not None and threads < 1:
        raise BackendError(expected("threads >= 1", threads, "Leave it out to use every core"))


def open_session(path: Path, provider: str, options: Mapping[str, str], threads: int) -> ort.InferenceSession:
    """A graph on one provider, with the CPU for what every provider leaves to it: sums over shapes.

    Args:
        path: of the ONNX file.
        provider: ONNX Runtime's name of it.
        options: of the provider.
        threads: CPU threads inside one operator.

    Raises:
        BackendError: if the file does not load, or the provider does not start.
    """
    session_options = ort.SessionOptions()
    session_options.intra_op_num_threads = threads
    session_options.inter_op_num_threads = 1
    session_options.log_severity_level = 3
    # Each session has threads of its own, which go on spinning after a run: they would take the cores from the next graph's
    session_options.add_session_config_entry("session.force_spinning_stop", "1")
    if provider != CPU_PROVIDER and hasattr(ort, "preload_dlls"):
        ort.preload_dlls(directory="")  # CUDA and cuDNN of pip packages, which no loader path names; else where they usually are
    ranked = [(provider, dict(options)), *([] if provider == CPU_PROVIDER else [CPU_PROVIDER])]
    try:
        session = ort.InferenceSession(str(path), session_options, providers=ranked)
    except Exception as error:  # ONNX Runtime raises its own unrelated classes
        raise BackendError(
            expected(f"{path.name} to load in ONNX Runtime {ort.__version__}", error, "Export the bundle again with this release")
        ) from error
    if session.get_providers()[0] != provider:  # ONNX Runtime goes on without a provider that does not start
        got = f"only {session.get_providers()} started; its log says why"
        raise BackendError(expected(f"{provider} to start", got, _INSTALL_CUDA))
    return session


def run_failed(role: GraphRole, name: str, error: Exception) -> BackendError:
    """What to say when a run raised.

    Args:
        role: the graph.
        name: of the backend.
        error: what ONNX Runtime raised.
    """
    todo = "If memory ran out, lower memory_budget_mb or the number of objects"
    return BackendError(expected(f"graph {role.value} to run on {name}", f"{type(error).__name__}: {error}", todo))


def usable_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
