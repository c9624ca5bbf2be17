"""A GPU whose memory is this machine's: what is enqueued waits until `synchronize`, and every call is on record.

Kernels run in the host emulation of `kernel_host`, engines in ONNX Runtime on host addresses. That things happen late is the point: a
staging buffer that is used again too early, or a result that is read before the wait, gives other numbers than the host's.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastsam2.bundle import Manifest
from fastsam2.enums import ExportTarget, GraphRole
from fastsam2.errors import BackendError, expected
from fastsam2.runtime.gpu.backend import GpuBackend
from fastsam2.runtime.gpu.engines import ALIGNMENT, DeviceTensor
from fastsam2.runtime.gpu.onnxruntime import OrtEngines
from tests.kernel_host.driver import HostDriver


class Place(NamedTuple):
    """A tensor without what keeps its memory: `DeviceTensor`."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    nbytes: int


class FakeGpu:
    """See `runtime.gpu.driver.Gpu`.

    Args:
        limit: memory there is, bytes.
        early: copies beside the stream happen at once; or else as late as they may, when the stream comes to what waits for them.

    Attributes:
        calls: (name, bytes) of every call, in order; a test may clear it.
        fails: message of the error that the next `synchronize` raises, as a lost context does from then on.
    """

    index, name, capability, stream_handle = 0, "FAKE GPU", "9.0", 0

    def __init__(self, limit: int = 1 << 34, *, early: bool = True) -> None:
        self.early = early
        self.stream = object()
        self.calls: list[tuple[str, int]] = []
        self.limit, self.fails = limit, ""
        self.held: dict[int, npt.NDArray[np.uint8]] = {}
        self._queue: list[Callable[[], object]] = []

    def enqueue(self, name: str, nbytes: int, work: Callable[[], object]) -> None:
        self.calls.append((name, nbytes))
        self._queue.append(work)

    def count(self, name: str) -> int:
        return sum(1 for called, _ in self.calls if called == name)

    def allocate(self, nbytes: int) -> int:
        self.calls.append(("allocate", nbytes))
        if sum(len(held) for held in self.held.values()) + nbytes > self.limit:
            raise BackendError(expected(f"{nbytes} bytes of memory", f"{self.limit} in all", "Track fewer objects"))
        held = np.full(nbytes + ALIGNMENT, 0xFF, np.uint8)  # NaN in every float
        address = -(-held.ctypes.data // ALIGNMENT) * ALIGNMENT
        self.held[address] = held
        return address

    def release(self, address: int) -> None:
        self.calls.append(("release", 0))
        del self.held[address]

    def pinned(self, nbytes: int) -> npt.NDArray[np.uint8]:
        self.calls.append(("pinned", nbytes))
        return np.full(nbytes, 0xFF, np.uint8)

    def upload(self, address: int, source: npt.NDArray[Any]) -> None:
        assert source.flags.c_contiguous
        self.enqueue("upload", source.nbytes, lambda: ctypes.memmove(address, source.ctypes.data, source.nbytes))

    def upload_beside(self, address: int, source: npt.NDArray[Any]) -> None:
        def work() -> object:
            return ctypes.memmove(address, source.ctypes.data, source.nbytes)

        assert source.flags.c_contiguous
        if self.early:
            self.calls.append(("upload_beside", source.nbytes))
            work()
        else:
            self.enqueue("upload_beside", source.nbytes, work)

    def download(self, target: npt.NDArray[Any], address: int) -> None:
        assert target.flags.c_contiguous
        self.enqueue("download", target.nbytes, lambda: ctypes.memmove(target.ctypes.data, address, target.nbytes))

    def copy(self, target: int, source: int, nbytes: int) -> None:
        self.enqueue("copy", nbytes, lambda: ctypes.memmove(target, source, nbytes))

    def fill_zero(self, address: int, nbytes: int) -> None:
        self.enqueue("fill_zero", nbytes, lambda: ctypes.memset(address, 0, nbytes))

    def synchronize(self) -> None:
        self.calls.append(("synchronize", 0))
        if self.fails:
            raise BackendError(expected("the GPU to finish what was enqueued", self.fails, "Start again"))
        queue, self._queue = self._queue, []
        for work in queue:
            work()

    def memory(self) -> tuple[int, int]:
        return self.limit - sum(len(held) for held in self.held.values()), self.limit

    def activate(self) -> None:
        pass

    def close(self) -> None:
        self.calls.append(("close", 0))


class LateDriver(HostDriver):
    """A `HostDriver` whose launches wait for `synchronize`."""

    def __init__(self, gpu: FakeGpu, library: Path) -> None:
        super().__init__(library)
        self.gpu = gpu

    def launch(self, function: Any, grid: Any, block: Any, shared_bytes: int, stream: Any, parameters: bytes) -> None:
        assert stream is self.gpu.stream, "everything goes to the loop's stream"
        held, at_once = bytes(parameters), super().launch
        self.gpu.enqueue(function.entry, 0, lambda: at_once(function, grid, block, shared_bytes, stream, held))


class LateEngines(OrtEngines):
    """`OrtEngines` on host memory, whose runs wait for `synchronize`."""

    def __init__(self, gpu: FakeGpu, folder: Path, manifest: Manifest, target: ExportTarget, most: int | None) -> None:
        super().__init__(folder, manifest, gpu, device="cpu", target=target, threads=1)
        self.gpu, self.most = gpu, most
        self.objects: list[int] = []

    def max_objects(self, role: GraphRole) -> int | None:
        return self.most

    def enqueue(self, role: GraphRole, inputs: Mapping[str, DeviceTensor], outputs: Mapping[str, DeviceTensor]) -> None:
        given, wanted = ({n: Place(t.address, t.shape, t.dtype, t.nbytes) for n, t in side.items()} for side in (inputs, outputs))
        assert all(t.address % ALIGNMENT == 0 for t in (*given.values(), *wanted.values()))
        self.objects.append(max(t.shape[0] for t in wanted.values()))
        super_enqueue = super().enqueue
        self.gpu.enqueue(role.value, 0, lambda: super_enqueue(role, given, wanted))


def fake_backend(
    folder: Path,
    manifest: Manifest,
    library: Path,
    *,
    target: ExportTarget = ExportTarget.ONNXRUNTIME,
    most: int | None = None,
    early: bool = True,
) -> GpuBackend:
    """The GPU loop on this machine; `backend.gpu` is a `FakeGpu`. At most `most` objects in one run of a graph."""
    gpu = FakeGpu(early=early)
    return GpuBackend(gpu, LateEngines(gpu, folder, manifest, target, most), manifest.model, driver=LateDriver(gpu, library))
