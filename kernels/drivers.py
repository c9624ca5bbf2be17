"""Two ways into the CUDA driver, for kernels that run in a context someone else made current, and what stands for them elsewhere.

`PyCudaDriver` takes pycuda streams: the GPU loop, whose memory, streams and events are pycuda's. `CudaBindingsDriver` takes the handle of
any stream: a TensorRT plugin is handed TensorRT's own, which pycuda 2026.1 has no way to wrap (its `Stream` only creates new ones).
"""

from __future__ import annotations

import importlib
from typing import Any, Protocol, runtime_checkable

import numpy as np

from fastsam2.errors import BackendError, expected, reason

CONTEXT = "a current CUDA context"
MAKE_CONTEXT = "Make one current first (import pycuda.autoprimaryctx) on a machine with an NVIDIA driver"


class Driver(Protocol):
    """What launching a kernel needs. Everything happens in the current context of the calling thread."""

    def compute_capability(self) -> tuple[int, int]:
        """(major, minor) of the context's device."""
        ...

    def load(self, image: bytes, entry: str, parameter_bytes: int) -> Any:
        """The kernel `entry` of a cubin, whose one parameter is `parameter_bytes` long. The module lives as long as the answer."""
        ...

    def allow_shared(self, function: Any, shared_bytes: int) -> None:
        """Allows a kernel that much dynamic shared memory, bytes."""
        ...

    def launch(
        self, function: Any, grid: tuple[int, int], block: tuple[int, int, int], shared_bytes: int, stream: Any, parameters: bytes
    ) -> None:
        """Enqueues a kernel on `stream` and returns at once; `parameters` is copied."""
        ...


@runtime_checkable
class Prebuilt(Protocol):
    """What a driver has besides `Driver` if its kernels were compiled before it was made: nothing is compiled or loaded for it."""

    def find(self, entry: str, parameter_bytes: int) -> Any:
        """The kernel `entry`, whose one parameter is `parameter_bytes` long."""
        ...


class PyCudaDriver:
    """pycuda: `stream` is a `pycuda.driver.Stream`, or None for the default stream.

    Raises:
        BackendError: if pycuda is not installed or does not import; from every method, if the driver refuses.
    """

    def __init__(self) -> None:
        try:
            self._cuda = importlib.import_module("pycuda.driver")
        except (ImportError, OSError) as error:
            todo = "Run: pip install fastsam2[cuda] (pycuda builds from source: it needs the CUDA toolkit and a C++ compiler)"
            raise BackendError(expected("the Python package pycuda", reason(error), todo)) from error

    def compute_capability(self) -> tuple[int, int]:
        """See `Driver`."""
        try:
            major, minor = self._cuda.Context.get_device().compute_capability()
        except self._cuda.Error as error:
            raise BackendError(expected(CONTEXT, reason(error), MAKE_CONTEXT)) from error
        return major, minor

    def load(self, image: bytes, entry: str, parameter_bytes: int) -> Any:
        """See `Driver`; the answer is a `pycuda.driver.Function`, which keeps its module alive."""
        try:
            return self._cuda.module_from_buffer(image).get_function(entry).prepare([f"{parameter_bytes}s"])
        except self._cuda.Error as error:
            raise _refused(f"to load {entry}", error) from error

    def allow_shared(self, function: Any, shared_bytes: int) -> None:
        """See `Driver`."""
        try:
            function.set_attribute(self._cuda.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES, shared_bytes)
        except self._cuda.Error as error:
            raise _no_shared(shared_bytes, error) from error

    def launch(
        self, function: Any, grid: tuple[int, int], block: tuple[int, int, int], shared_bytes: int, stream: Any, parameters: bytes
    ) -> None:
        """See `Driver`."""
        try:
            function.prepared_async_call(grid, block, stream, parameters, shared_size=shared_bytes)
        except self._cuda.Error as error:
            raise _refused(f"to launch {grid} blocks of {block[0]} threads", error) from error


class CudaBindingsDriver:
    """cuda.bindings: `stream` is the handle of any stream as an integer (`pycuda.driver.Stream.handle` too); 0 is the default stream.

    Raises:
        BackendError: if cuda.bindings or the NVIDIA driver is missing; from every method, if the driver refuses.
    """

    def __init__(self) -> None:
        try:
            self._cuda = importlib.import_module("cuda.bindings.driver")
            status = self._cuda.cuInit(0)[0]
        except (ImportError, OSError, RuntimeError) as error:  # RuntimeError: the bindings are there, the driver is not
            todo = "Run: pip install fastsam2[cuda], on a machine with an NVIDIA driver"
            raise BackendError(expected("cuda.bindings and an NVIDIA driver", reason(error), todo)) from error
        if status != self._cuda.CUresult.CUDA_SUCCESS:
            raise BackendError(expected("an NVIDIA driver with a GPU", status.name, "Check nvidia-smi"))

    def context(self) -> int:
        """Handle of the current context.

        Raises:
            BackendError: if there is none.
        """
        try:
            (current,) = self._call("cuCtxGetCurrent")
        except RuntimeError as error:
            raise BackendError(expected(CONTEXT, str(error), MAKE_CONTEXT)) from error
        if not int(current):
            raise BackendError(expected(CONTEXT, "none", MAKE_CONTEXT))
        return int(current)

    def compute_capability(self) -> tuple[int, int]:
        """See `Driver`."""
        attributes = self._cuda.CUdevice_attribute
        wanted = (attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)
        try:
            (device,) = self._call("cuCtxGetDevice")
            major, minor = (int(self._call("cuDeviceGetAttribute", attribute, device)[0]) for attribute in wanted)
        except RuntimeError as error:
            raise BackendError(expected(CONTEXT, str(error), MAKE_CONTEXT)) from error
        return major, minor

    def load(self, image: bytes, entry: str, parameter_bytes: int) -> Any:
        """See `Driver`; the module stays loaded until its context ends."""
        try:
            (module,) = self._call("cuModuleLoadData", image)
            (function,) = self._call("cuModuleGetFunction", module, entry.encode())
        except RuntimeError as error:
            raise _refused(f"to load {entry}", error) from error
        return function

    def allow_shared(self, function: Any, shared_bytes: int) -> None:
        """See `Driver`."""
        attribute = self._cuda.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        try:
            self._call("cuFuncSetAttribute", function, attribute, shared_bytes)
        except RuntimeError as error:
            raise _no_shared(shared_bytes, error) from error

    def launch(
        self, function: Any, grid: tuple[int, int], block: tuple[int, int, int], shared_bytes: int, stream: Any, parameters: bytes
    ) -> None:
        """See `Driver`."""
        parameter = np.frombuffer(parameters, np.uint8)
        addresses = np.array([parameter.ctypes.data], np.uint64)
        try:
            self._call("cuLaunchKernel", function, *grid, 1, *block, shared_bytes, int(stream), addresses.ctypes.data, 0)
        except RuntimeError as error:
            raise _refused(f"to launch {grid} blocks of {block[0]} threads", error) from error

    def _call(self, name: str, *arguments: Any) -> tuple[Any, ...]:
        """What a driver function returns behind its status; RuntimeError with the status' name if that is not success."""
        status, *values = getattr(self._cuda, name)(*arguments)
        if status != self._cuda.CUresult.CUDA_SUCCESS:
            raise RuntimeError(f"{status.name} from {name}")
        return tuple(values)


def _refused(what: str, error: Exception) -> BackendError:
    todo = "If an earlier step failed on this GPU its context is lost: start again"
    return BackendError(expected(f"the CUDA driver {what}", reason(error), todo))


def _no_shared(shared_bytes: int, error: Exception) -> BackendError:
    todo = "Give the kernel fewer scores per row, or float16 scores: it holds one key for each"
    return BackendError(expected(f"{shared_bytes} bytes of shared memory for a block on this GPU", reason(error), todo))
