"""The top-k gather on a GPU, from Python: compiled for the current context's device, launched on a given stream.

    TopKGather(addresses, sizes, strides) ─ TopKGatherKernel.launch(…, stream) ─► rows and index on the device, in stream order

It waits for nothing and allocates nothing, so it may be captured into a CUDA graph.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any

from fastsam2.kernels.drivers import Driver, Prebuilt, PyCudaDriver
from fastsam2.kernels.nvrtc import compile_cubin
from fastsam2.kernels.top_k_gather import PARAMETERS, SCORE_BYTES, SHARED_WITHOUT_ASKING, TopKGather


def load_functions(driver: Driver, compile_for: Callable[[tuple[int, int]], bytes], parameter_bytes: Mapping[str, int]) -> dict[str, Any]:
    """The functions of a module by entry point, loaded into the current context; found, not compiled, where `driver` is `Prebuilt`.

    Args:
        driver: what launches them.
        compile_for: compute capability -> cubin.
        parameter_bytes: entry point -> size of its parameter.

    Raises:
        BackendError: if NVRTC, the driver or a current context is missing, or the kernels do not build for this GPU.
    """
    if isinstance(driver, Prebuilt):
        return {entry: driver.find(entry, size) for entry, size in parameter_bytes.items()}
    cubin = compile_for(driver.compute_capability())
    return {entry: driver.load(cubin, entry, size) for entry, size in parameter_bytes.items()}


class TopKGatherKernel:
    """The kernel, loaded into the current context for both score types; make it before capturing.

    Args:
        driver: pycuda unless given.

    Raises:
        BackendError: if pycuda, NVRTC, the driver or a current context is missing, or the kernel does not build for this GPU.
    """

    def __init__(self, driver: Driver | None = None) -> None:
        self._driver: Driver = PyCudaDriver() if driver is None else driver
        sizes = {f"fastsam2_top_k_gather_{dtype}": struct.calcsize(PARAMETERS) for dtype in SCORE_BYTES}
        self._functions = load_functions(self._driver, compile_cubin, sizes)
        self._allowed_shared = dict.fromkeys(self._functions, SHARED_WITHOUT_ASKING)

    def launch(self, call: TopKGather, stream: Any) -> None:
        """Enqueues one launch; none where k is 0.

        Args:
            call: what to gather; its memory must stay until the launch has run.
            stream: of the driver's kind (`fastsam2.kernels.drivers`).

        Raises:
            BackendError: if the driver refuses, or N scores do not fit into this GPU's shared memory.
        """
        if call.k == 0:
            return
        function = self._functions[call.entry]
        if call.shared_bytes > self._allowed_shared[call.entry]:
            self._driver.allow_shared(function, call.shared_bytes)
            self._allowed_shared[call.entry] = call.shared_bytes
        self._driver.launch(function, call.grid, call.block, call.shared_bytes, stream, call.parameters)
