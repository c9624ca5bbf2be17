"""Frames that go to the GPU while the one before them is still being computed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastsam2.runtime.device import Tensor
from fastsam2.runtime.gpu.array import DeviceArray, Pool, Staging
from fastsam2.runtime.gpu.driver import Gpu


class FrameUploads:
    """See `runtime.device.FrameUploads`; two arrays in turn.

    A copy beside the stream writes the array that was read one step before: a step ends with a wait, so that reading is over.

    Args:
        gpu: copies.
        pool: where the two arrays come from.
        staging: page-locked memory of the copies; free again after the wait that ends the step.
    """

    def __init__(self, gpu: Gpu, pool: Pool, staging: Staging) -> None:
        self.gpu, self.pool, self.staging = gpu, pool, staging
        self._arrays: list[DeviceArray] = []  # the one written next first
        self._frame: npt.NDArray[np.uint8] | None = None

    def ahead(self, frame: npt.NDArray[np.uint8]) -> None:
        """See `runtime.device.FrameUploads.ahead`."""
        staged = self.staging.array(frame.shape, frame.dtype)
        staged[...] = frame
        if self._arrays and self._arrays[0].shape != frame.shape:
            self._arrays.clear()
        if len(self._arrays) < 2:  # memory of the pool may still be in use by what was enqueued: in its turn, not beside it
            self._arrays.insert(0, self.pool.empty(frame.shape, frame.dtype, "frame"))
            self.gpu.upload(self._arrays[0].address, staged)
        else:
            self.gpu.upload_beside(self._arrays[0].address, staged)
        self._frame = frame

    def take(self, frame: npt.NDArray[np.uint8]) -> Tensor:
        """See `runtime.device.FrameUploads.take`."""
        uploaded, self._frame = self._frame is frame, None
        if not uploaded:
            return frame
        self._arrays.reverse()
        return self._arrays[-1]

    def clear(self) -> None:
        """See `runtime.device.FrameUploads.clear`."""
        self._arrays.clear()
        self._frame = None
