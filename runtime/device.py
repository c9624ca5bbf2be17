"""Where a tracker's arrays live, and what it does with them besides running graphs: one protocol, so that the loop never asks.

A backend that computes elsewhere than in host memory has an attribute `device`; every other one gets `HOST` of `runtime/host_device.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from fastsam2.config import ModelSpec
from fastsam2.enums import GraphRole
from fastsam2.errors import BackendError

_Given = ParamSpec("_Given")
_Answer = TypeVar("_Answer")


class Tensor(Protocol):
    """An array of some device. Indexing and slicing along the first axis, and `reshape`, give views."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any, /) -> Any: ...

    def reshape(self, shape: tuple[int, ...], /) -> Any:
        """The same elements in another shape."""
        ...


@dataclass(frozen=True, slots=True)
class Reading:
    """What a step reads of one object.

    Attributes:
        frames: rows uint16 [K, D] (bfloat16 bits), position int32 [K] and age of each frame.
        pointers: float32 [C] and offset of each pointer.
    """

    frames: tuple[tuple[Tensor, Tensor, int], ...]
    pointers: tuple[tuple[Tensor, np.float32], ...]


MemoryReader = Callable[[Sequence[Reading]], dict[str, Tensor]]
"""B readings with equal counts -> inputs memory, position, age, pointers, pointer_offset of memory_attention, valid until the next call."""


class FrameUploads(Protocol):
    """Frames of one tracker on their way to the device."""

    def ahead(self, frame: npt.NDArray[np.uint8]) -> None:
        """Starts to copy a frame, uint8 [H, W, 3], beside what is being computed; read before the call returns."""
        ...

    def take(self, frame: npt.NDArray[np.uint8]) -> Tensor:
        """What `Device.pixels` takes: the copy if this very array went ahead, or else the frame itself."""
        ...

    def clear(self) -> None:
        """Forgets what went ahead."""
        ...


class Device(Protocol):
    """Array operations in the memory graphs read and write. Arguments may lie on the device or on the host.

    Nothing but `fetch` waits for the device; failures of it may surface there.
    """

    def max_objects(self, role: GraphRole) -> int | None:
        """Most objects that one run of a graph takes; None for any number."""
        ...

    def max_prompt_frames(self) -> int | None:
        """Most prompt frames of one object that graphs have room for, besides its latest frames; None for any number."""
        ...

    def put(self, array: npt.NDArray[Any]) -> Tensor:
        """A host array on the device; the same array where that is the host."""
        ...

    def fetch(self, *tensors: Tensor | None) -> tuple[Any, ...]:
        """Host arrays, owned by the caller unless the tensor was a host array already; None stays None. Waits once for all.

        Raises:
            BackendError: if something that was enqueued before has failed.
        """
        ...

    def full(self, shape: tuple[int, ...], value: float, dtype: npt.DTypeLike) -> Tensor:
        """A constant; not to be written."""
        ...

    def arange(self, start: int, stop: int) -> Tensor:
        """int32 [stop - start]; not to be written."""
        ...

    def copy(self, tensor: Tensor) -> Tensor:
        """A copy that does not keep a larger array alive."""
        ...

    def stack(self, tensors: Sequence[Tensor]) -> Tensor:
        """Arrays of one shape along a new first axis."""
        ...

    def concatenate(self, tensors: Sequence[Tensor]) -> Tensor:
        """Arrays along their first axis; a single one as it is."""
        ...

    def clamp(self, tensor: Tensor, limit: float) -> Tensor:
        """float32 values, bounded to [-limit, limit]."""
        ...

    def to_bfloat16(self, rows: Tensor) -> Tensor:
        """float32 -> uint16 bits, as `runtime.bfloat16.to_bfloat16`."""
        ...

    def top_k_gather(self, rows: Tensor, scores: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        """Rows uint16 [N, D] and scores float32 [N] -> rows [keep, D] and their index int32 [keep], as `kernels.reference.top_k_gather`."""
        ...

    def pool_2x2(self, rows: Tensor, grid: int) -> Tensor:
        """Means of 2x2 cells: uint16 [N, D] (bfloat16 bits) -> uint16 [N/4, D]."""
        ...

    def memory_reader(self, spec: ModelSpec) -> MemoryReader:
        """Something that assembles what steps read; it may keep buffers."""
        ...

    def frame_uploads(self) -> FrameUploads:
        """For one tracker, whose every step ends with `fetch`."""
        ...

    def pixels(self, frame: Tensor, size: int) -> Tensor:
        """uint8 [H, W, 3] -> uint8 [1, 3, S, S], as `runtime.preprocess.frame_to_pixels`."""
        ...

    def masks(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """float32 [B, L, L] -> bool [B, H, W], as `runtime.postprocess.masks_from_logits`."""
        ...

    def mask_scores(self, logits: Tensor, grid: int) -> Tensor:
        """float32 [L, L] -> float32 [N], as `runtime.policies.mask.mask_scores`."""
        ...

    def uncertainty(self, logits: Tensor, grid: int) -> Tensor:
        """float32 [B, L, L] -> float32 [B, N], as `runtime.uncertainty.uncertainty`."""
        ...


def ends_with_a_wait(method: Callable[Concatenate[Any, _Given], _Answer]) -> Callable[Concatenate[Any, _Given], _Answer]:
    """A method that ends with `fetch` of its `_device` also where it fails: only after a wait memory of copies is used again."""

    @wraps(method)
    def waiting(self: Any, /, *args: _Given.args, **kwargs: _Given.kwargs) -> _Answer:
        try:
            return method(self, *args, **kwargs)
        except BaseException:
            with suppress(BackendError):  # the GPU may be what failed
                self._device.fetch()
            raise

    return waiting
