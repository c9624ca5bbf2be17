"""Graphs on ONNX Runtime's CPU execution provider."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path

import onnxruntime as ort

from fastsam2.bundle import Manifest
from fastsam2.enums import ExportTarget, GraphRole
from fastsam2.errors import BackendError, expected
from fastsam2.runtime.backends.protocol import Array

CPU_PROVIDER = "CPUExecutionProvider"


class OnnxRuntimeBackend:
    """One session per graph, opened at first use and shared by all trackers.

    Args:
        folder: bundle folder.
        manifest: its manifest.
        threads: threads inside one operator; None takes every core this process may use.
    """

    name = "onnxruntime"

    def __init__(self, folder: Path, manifest: Manifest, *, threads: int | None = None) -> None:
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
                    self._sessions[role] = ort.InferenceSession(str(path), options, providers=[CPU_PROVIDER])
                except Exception as error:
                    raise BackendError(
                        expected(
                            f"{path.name} to load in ONNX Runtime {ort.__version__}", error, "Export the bundle again with this release"
                        )
                    ) from error
            return self._sessions[role]


def usable_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
