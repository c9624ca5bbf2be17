"""The top-k gather on a GPU, from Python: compiled for the current context's device, launched on a given stream.

    TopKGather(addresses, sizes, strides) ─ TopKGatherKernel.launch(…, stream) ─► rows and index on the device, in stream order

It waits for nothing and allocates nothing, so it may be captured into a CUDA graph.
"""

from __future__ import annotations

import struct
from typing import Any

from fastsam2.kernels.drivers import Driver, PyCudaDriver
from fastsam2.kernels.nvrtc import compile_cubin
from fastsam2.kernels.top_k_gather import PARAMETERS, SHARED_WITHOUT_ASKING, TopKGather


class TopKGatherKernel:
    """The kernel, loaded into the current context for both score types; make it before capturing.

    Args:
        driver: pycuda unless given.

    Raises:
        BackendError: if pycuda, NVRTC, the driver or a current context is missing, or the kernel does not build for this GPU.
    """

    def __init__(self, driver: Driver | None = None) -> None:
        self._driver: Driver = PyCudaDriver() if driver is None else driver
        cubin = compile_cubin(self._driver.compute_capability())
        self._functions: dict[str, Any] = {}
        for dtype in ("float32", "float16"):
            entry = f"fastsam2_top_k_gather_{dtype}"
            self._functions[entry] = self._driver.load(cubin, entry, struct.calcsize(PARAMETERS))
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
