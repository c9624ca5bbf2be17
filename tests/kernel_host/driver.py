"""A `kernels.drivers.Driver` whose GPU is this machine's CPU: device addresses are addresses of numpy arrays.

TopKGatherKernel(HostDriver(library)), FrameOps(HostDriver(library)): every launch has run when it returns
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any, NamedTuple

from fastsam2.errors import BackendError, expected
from fastsam2.kernels.nvrtc import SOURCE
from tests.kernel_host.harness import HEADERS, Order, compile_library


class HostFunction(NamedTuple):
    """A kernel of the library."""

    entry: str
    number: int


class HostLaunch(NamedTuple):
    """One launch as it was asked for."""

    entry: str
    grid: tuple[int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    stream: Any


def compile_kernels(out: Path, *flags: str) -> Path:
    """Every kernel of the package in one shared library; a few seconds."""
    return compile_library(out, f"-I{SOURCE.parent}", *flags, source=HEADERS / "kernels.cpp")


class HostDriver:
    """The kernels on the CPU. `stream` may be anything: launches run at once, in the order they are made.

    Args:
        library: from `compile_kernels`.

    Attributes:
        launches: so far; a test may clear it.
    """

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.host_find.argtypes = (ctypes.c_char_p, ctypes.POINTER(ctypes.c_size_t))
        self._library.host_launch.argtypes = (*(ctypes.c_uint,) * 5, ctypes.c_char_p)
        self._library.host_error.restype = ctypes.c_char_p
        self.launches: list[HostLaunch] = []

    def configure(self, order: Order = Order.FORWARD, seed: int = 0) -> None:
        """In which order threads run."""
        self._library.host_configure(int(order), seed, -1)

    def compute_capability(self) -> tuple[int, int]:
        """None: nothing is compiled for this driver."""
        raise AssertionError("no kernel is compiled for the host driver: it finds them in its library")

    def load(self, image: bytes, entry: str, parameter_bytes: int) -> HostFunction:
        """Not there either."""
        raise AssertionError("no cubin runs on a CPU")

    def find(self, entry: str, parameter_bytes: int) -> HostFunction:
        """See `kernels.drivers.Prebuilt`; the size of the parameter must be that of the C struct."""
        size = ctypes.c_size_t()
        number = self._library.host_find(entry.encode(), ctypes.byref(size))
        assert number >= 0, f"no kernel {entry} in tests/kernel_host/kernels.cpp"
        assert size.value == parameter_bytes, f"{entry} takes {size.value} bytes, got {parameter_bytes}"
        return HostFunction(entry, number)

    def allow_shared(self, function: HostFunction, shared_bytes: int) -> None:
        """See `Driver`."""
        self._library.host_allow_shared(shared_bytes)

    def launch(
        self, function: HostFunction, grid: tuple[int, int], block: tuple[int, int, int], shared_bytes: int, stream: Any, parameters: bytes
    ) -> None:
        """See `Driver`."""
        assert block[1:] == (1, 1), block
        self.launches.append(HostLaunch(function.entry, grid, block, shared_bytes, stream))
        status = self._library.host_launch(function.number, *grid, block[0], shared_bytes, parameters)
        if status != 0:
            got = self._library.host_error(status).decode()
            raise BackendError(expected(f"the host to launch {function.entry}", got, "See tests/kernel_host/cuda_runtime.h"))
