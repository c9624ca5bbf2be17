"""Graphs on a GPU: arrays stay on it, and nothing waits but `GpuDevice.fetch`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastsam2.config import ModelSpec
from fastsam2.contracts import GraphSpec, graph_spec
from fastsam2.enums import GraphRole
from fastsam2.errors import BackendError, InternalError, expected
from fastsam2.kernels.drivers import Driver
from fastsam2.runtime.device import Tensor
from fastsam2.runtime.gpu.array import DeviceArray
from fastsam2.runtime.gpu.device import GpuDevice
from fastsam2.runtime.gpu.driver import Gpu
from fastsam2.runtime.gpu.engines import ALIGNMENT, Engines


class GpuBackend:
    """See `Backend`; its tensors are those of `device`. Trackers may share it, in one thread at a time.

    Args:
        gpu: memory, copies and the stream; closed with the backend.
        engines: run the graphs on that GPU; closed with the backend.
        spec: model sizes.
        driver: launches kernels; pycuda unless given.
    """

    def __init__(self, gpu: Gpu, engines: Engines, spec: ModelSpec, *, driver: Driver | None = None) -> None:
        self.name = engines.name
        self.gpu, self.engines, self.spec = gpu, engines, spec
        self.device = GpuDevice(gpu, engines, driver)

    def run(self, role: GraphRole, inputs: Mapping[str, Tensor]) -> dict[str, DeviceArray]:
        """See `Backend.run`. Enqueues and returns; an error of the GPU itself shows at the next `GpuDevice.fetch`."""
        if not self.engines.has(role):
            raise BackendError(expected(f"graph {role.value} on {self.name}", "none", "Export or build the bundle again with it"))
        table = graph_spec(role, self.engines.target)
        given = {name: self._aligned(self.device.put(tensor)) for name, tensor in inputs.items()}
        sizes = self._sizes(table, given)
        outputs = {t.name: self.device.pool.empty(t.sized(self.spec, sizes), t.dtype, (role, t.name)) for t in table.outputs}
        self.gpu.activate()
        self.engines.enqueue(role, given, outputs)
        return outputs

    def describe(self) -> dict[str, Any]:
        """For records: name, compute capability, and device memory in bytes.

        "arrays_peak" is the most that arrays (frames, features, memory) ever took at once, "arrays_held" what is kept for them,
        "activations" what engines share, and "used" everything on the GPU, other programs included; "cuda_graphs" where they are replayed.
        """
        pool, (free, total) = self.device.pool, self.gpu.memory()
        facts = self.engines.cuda_graphs()
        graphs = {} if facts is None else {"cuda_graphs": facts}
        return {
            "name": self.gpu.name,
            "compute_capability": self.gpu.capability,
            "arrays_peak": pool.peak_bytes,
            "arrays_held": pool.held_bytes,
            "activations": self.engines.activation_bytes(),
            "used": total - free,
            "total": total,
            **graphs,
        }

    def close(self) -> None:
        """Release engines, memory and the GPU, in that order; a second call does nothing."""
        self.engines.close()
        self.device.close()
        self.gpu.close()

    def _aligned(self, array: DeviceArray) -> DeviceArray:
        """Views may begin anywhere, and what engines read may not."""
        return self.device.copy(array) if array.address % ALIGNMENT else array

    def _sizes(self, table: GraphSpec, given: Mapping[str, DeviceArray]) -> dict[str, int]:
        """What the symbols of dynamic axes stand for."""
        sizes: dict[str, int] = {}
        if set(given) != {t.name for t in table.inputs}:
            raise InternalError(f"{table.role.value} takes {[t.name for t in table.inputs]}, got {list(given)}")
        for tensor in table.inputs:
            wanted, have = tensor.shape(self.spec), given[tensor.name].shape
            fits = len(wanted) == len(have) and given[tensor.name].dtype == np.dtype(tensor.dtype)
            if not fits or any(sizes.setdefault(w, h) != h if isinstance(w, str) else w != h for w, h in zip(wanted, have, strict=True)):
                got = f"{given[tensor.name].dtype} {list(have)}"
                raise InternalError(f"{tensor.name} of {table.role.value} is {tensor.dtype} {list(wanted)} with {sizes}, got {got}")
        return sizes
