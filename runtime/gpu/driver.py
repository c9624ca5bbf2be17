"""Memory, copies and the streams of one GPU: the only module besides `kernels.drivers` that knows pycuda.

Work is enqueued on one stream and runs in the order of the calls; only copies of coming frames go beside it, on a stream of their own. Only
`synchronize` waits. The context is the device's primary one, which
ONNX Runtime, TensorRT and torch use as well.
"""

from __future__ import annotations

import atexit
import importlib
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from fastsam2.errors import BackendError, InternalError, StateError, expected, reason

MIB = 1024 * 1024
_LOST = "If an earlier step failed on this GPU its context is lost: start again"
_NEED_GPU = "Check nvidia-smi, or use the backend onnxruntime, which needs no GPU"
_T = TypeVar("_T")


class Gpu(Protocol):
    """What the GPU loop needs of a GPU. Addresses are integers; sizes are bytes."""

    index: int  # among the machine's GPUs
    name: str  # for records and messages, "NVIDIA H200"
    capability: str  # "9.0"
    stream_handle: int  # CUstream of `stream`

    @property
    def stream(self) -> Any:
        """What `kernels.drivers.PyCudaDriver` takes."""
        ...

    def allocate(self, nbytes: int) -> int:
        """Device address of new memory, 256-byte aligned, not initialised.

        Raises:
            BackendError: if memory ran out; says how much was asked for, what there is, and what lowers the need.
        """
        ...

    def release(self, address: int) -> None:
        """Frees what `allocate` gave, when the stream is through with it."""
        ...

    def pinned(self, nbytes: int) -> npt.NDArray[np.uint8]:
        """Page-locked host memory [nbytes], uint8; the caller keeps it until copies from and to it are done."""
        ...

    def upload(self, address: int, source: npt.NDArray[Any]) -> None:
        """Enqueues a copy of a C-contiguous array to the device."""
        ...

    def upload_beside(self, address: int, source: npt.NDArray[Any]) -> None:
        """Starts a copy to the device beside what is enqueued; only what is enqueued after this call waits for it.

        Nothing enqueued so far may use that memory.
        """
        ...

    def download(self, target: npt.NDArray[Any], address: int) -> None:
        """Enqueues a copy from the device into a C-contiguous array, valid after `synchronize`."""
        ...

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Enqueues a copy from device to device."""
        ...

    def fill_zero(self, address: int, nbytes: int) -> None:
        """Enqueues zeros."""
        ...

    def synchronize(self) -> None:
        """Waits for the stream.

        Raises:
            BackendError: if anything enqueued failed; the GPU's context is lost then.
        """
        ...

    def memory(self) -> tuple[int, int]:
        """Free and total device memory, bytes."""
        ...

    def activate(self) -> None:
        """Makes the context current in the calling thread; cheap when it is."""
        ...

    def close(self) -> None:
        """Waits for the stream and releases everything; a second call does nothing, any other call a StateError."""
        ...


class PyCudaGpu:
    """A GPU through pycuda. Usable from several threads, one at a time.

    Args:
        index: which of the machine's GPUs, as CUDA_VISIBLE_DEVICES leaves them.

    Raises:
        BackendError: if pycuda, the driver or that GPU is missing.
    """

    def __init__(self, index: int = 0) -> None:
        self._cuda = _pycuda()
        device = _device(self._cuda, index)
        self.index = index
        self.name = str(_call(self._cuda, "its name", device.name))
        major, minor = _call(self._cuda, "its compute capability", device.compute_capability)
        self.capability = f"{major}.{minor}"
        self._held = _Held(self._cuda, _call(self._cuda, f"a context on {self.name}", device.retain_primary_context))
        self._finalizer = weakref.finalize(self, self._held.close)  # at the end of the process too, while the driver is still there
        try:
            self._held.activate()
            self._held.stream = _call(self._cuda, f"a stream on {self.name}", self._cuda.Stream)
            self._held.copies = _call(self._cuda, f"a stream on {self.name}", self._cuda.Stream)
            self._held.copied = _call(self._cuda, f"an event on {self.name}", self._cuda.Event, self._cuda.event_flags.DISABLE_TIMING)
        except BackendError:
            self.close()
            raise
        self.stream_handle = int(self._held.stream.handle)

    @property
    def stream(self) -> Any:
        """The `pycuda.driver.Stream` of everything that is enqueued."""
        self._held.check_open(self.name)
        return self._held.stream

    def allocate(self, nbytes: int) -> int:
        """See `Gpu.allocate`."""
        self.activate()
        try:
            allocation = self._cuda.mem_alloc(max(1, nbytes))
        except self._cuda.MemoryError as error:
            free, total = self.memory()
            raise BackendError(
                expected(
                    f"{nbytes / MIB:.1f} MiB of memory on {self.name}",
                    f"{free / MIB:.1f} MiB free of {total / MIB:.1f} MiB",
                    "Track fewer objects, build engines with a smaller --max-objects, prune the memory (--prune), "
                    "or export with a smaller --image-size; other programs on this GPU take memory too",
                )
            ) from error
        except self._cuda.Error as error:
            raise _failed(f"{nbytes} bytes on {self.name}", error) from error
        self._held.allocations[int(allocation)] = allocation
        return int(allocation)

    def release(self, address: int) -> None:
        """See `Gpu.release`."""
        self.activate()
        allocation = self._held.allocations.pop(address, None)
        if allocation is None:
            raise InternalError(f"{address:#x} is not allocated on {self.name}")
        _call(self._cuda, "to free memory", allocation.free)

    def pinned(self, nbytes: int) -> npt.NDArray[np.uint8]:
        """See `Gpu.pinned`."""
        self.activate()
        try:
            array: npt.NDArray[np.uint8] = self._cuda.pagelocked_empty(max(1, nbytes), np.uint8)[:nbytes]
        except self._cuda.Error as error:
            todo = "Close other programs, or raise the limit of locked memory (ulimit -l)"
            raise BackendError(expected(f"{nbytes / MIB:.1f} MiB of page-locked host memory", reason(error), todo)) from error
        return array

    def upload(self, address: int, source: npt.NDArray[Any]) -> None:
        """See `Gpu.upload`."""
        self._check_contiguous(source)
        self.activate()
        if source.nbytes:
            _call(self._cuda, "to copy to the GPU", self._cuda.memcpy_htod_async, address, source, self._held.stream)

    def upload_beside(self, address: int, source: npt.NDArray[Any]) -> None:
        """See `Gpu.upload_beside`."""
        self._check_contiguous(source)
        self.activate()
        if source.nbytes:
            held = self._held
            _call(self._cuda, "to copy to the GPU", self._cuda.memcpy_htod_async, address, source, held.copies)
            _call(self._cuda, "to mark a copy", held.copied.record, held.copies)
            _call(self._cuda, "to wait for a copy", held.stream.wait_for_event, held.copied)

    def download(self, target: npt.NDArray[Any], address: int) -> None:
        """See `Gpu.download`."""
        self._check_contiguous(target)
        self.activate()
        if target.nbytes:
            _call(self._cuda, "to copy from the GPU", self._cuda.memcpy_dtoh_async, target, address, self._held.stream)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """See `Gpu.copy`."""
        self.activate()
        if nbytes:
            _call(self._cuda, "to copy on the GPU", self._cuda.memcpy_dtod_async, target, source, nbytes, self._held.stream)

    def fill_zero(self, address: int, nbytes: int) -> None:
        """See `Gpu.fill_zero`."""
        self.activate()
        if nbytes:
            _call(self._cuda, "to fill memory with zeros", self._cuda.memset_d8_async, address, 0, nbytes, self._held.stream)

    def synchronize(self) -> None:
        """See `Gpu.synchronize`."""
        self.activate()
        _call(self._cuda, f"{self.name} to finish what was enqueued", self._held.stream.synchronize)

    def memory(self) -> tuple[int, int]:
        """See `Gpu.memory`."""
        self.activate()
        free, total = _call(self._cuda, f"the free memory of {self.name}", self._cuda.mem_get_info)
        return int(free), int(total)

    def activate(self) -> None:
        """See `Gpu.activate`."""
        self._held.check_open(self.name)
        self._held.activate()

    def close(self) -> None:
        """See `Gpu.close`."""
        self._finalizer()

    def _check_contiguous(self, array: npt.NDArray[Any]) -> None:
        if not array.flags.c_contiguous:  # pycuda would copy the bytes of a transposed array in their own order
            raise InternalError(f"copies are of C-contiguous arrays, got strides {array.strides} of shape {array.shape}")


class _Held:
    """What a `PyCudaGpu` has to give back."""

    def __init__(self, cuda: Any, context: Any) -> None:
        self.cuda, self.context = cuda, context
        self.stream: Any = None  # of all work
        self.copies: Any = None  # of copies beside it
        self.copied: Any = None  # the event that ends one
        self.allocations: dict[int, Any] = {}
        self.closed = False

    def check_open(self, name: str) -> None:
        if self.closed:
            raise StateError(expected(f"an open {name}", "a closed one", "Make a new one"))

    def activate(self) -> None:
        """Makes the context the only one that this module has on pycuda's stack of the thread."""
        thread = _thread(self.cuda)
        if thread.current is self:
            return
        context = self.cuda.Context
        try:
            if thread.current is not None and not thread.current.closed:
                context.pop()
            thread.current = None
            context.get_current()  # takes contexts off the stack that another thread closed meanwhile
            self.context.push()
        except self.cuda.Error as error:
            raise _failed("its context to become current", error) from error
        thread.current = self

    def close(self) -> None:
        """Stream and memory go first: what lives in a context cannot be freed after it."""
        with suppress(BackendError):  # a context that is lost frees its memory itself
            self.activate()
        self.closed = True
        self._finish(self.copies)
        self._finish(self.stream)
        for allocation in self.allocations.values():
            with suppress(self.cuda.Error):
                allocation.free()
        self.allocations.clear()
        self.stream = self.copies = self.copied = None
        with suppress(self.cuda.Error):
            self.context.detach()  # a current context also leaves pycuda's stack

    def _finish(self, stream: Any) -> None:
        if stream is not None:
            with suppress(self.cuda.Error):
                stream.synchronize()


class _Thread:
    """The context that this module made current in one thread.

    pycuda aborts the process when a thread ends with a context on its stack, so the stack is emptied then. At the end of the process
    finalizers have closed what was open; contexts that another thread closed leave the stack of the main thread when it is looked at.
    """

    def __init__(self, cuda: Any) -> None:
        self.cuda = cuda
        self.current: _Held | None = None
        if threading.current_thread() is threading.main_thread():
            atexit.register(cuda.Context.get_current)

    def __del__(self) -> None:
        if sys.is_finalizing():
            return
        with suppress(self.cuda.Error):
            while self.cuda.Context.get_current() is not None:
                self.cuda.Context.pop()


_threads = threading.local()


def _thread(cuda: Any) -> _Thread:
    found: _Thread | None = getattr(_threads, "of", None)
    if found is None or found.cuda is not cuda:
        found = _threads.of = _Thread(cuda)
    return found


def _pycuda() -> Any:
    try:
        cuda = importlib.import_module("pycuda.driver")
    except (ImportError, OSError) as error:
        todo = "Run: pip install fastsam2[cuda] (pycuda builds from source: it needs the CUDA toolkit and a C++ compiler)"
        raise BackendError(expected("the Python package pycuda and an NVIDIA driver", reason(error), todo)) from error
    try:
        cuda.init()
    except cuda.Error as error:
        raise BackendError(expected("an NVIDIA driver with a GPU", reason(error), _NEED_GPU)) from error
    return cuda


def _device(cuda: Any, index: int) -> Any:
    count = _call(cuda, "a list of GPUs", cuda.Device.count)
    if not 0 <= index < count:
        there = [f"{i}: {cuda.Device(i).name()}" for i in range(count)]
        todo = "Choose one of these" if there else _NEED_GPU
        raise BackendError(expected(f"a GPU with index {index}", there or "none", todo))
    return _call(cuda, f"GPU {index}", cuda.Device, index)


def _call(cuda: Any, what: str, function: Callable[..., _T], *arguments: Any) -> _T:
    try:
        return function(*arguments)
    except cuda.Error as error:
        raise _failed(what, error) from error


def _failed(what: str, error: Exception) -> BackendError:
    return BackendError(expected(f"the CUDA driver {what}" if what.startswith("to ") else what, reason(error), _LOST))
