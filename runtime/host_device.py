"""The device that is the host: numpy arrays, and the definition of every operation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastsam2.config import ModelSpec
from fastsam2.enums import GraphRole
from fastsam2.kernels.reference import top_k_gather
from fastsam2.runtime.backends.protocol import Array, Float
from fastsam2.runtime.bfloat16 import from_bfloat16, to_bfloat16
from fastsam2.runtime.device import Device, MemoryReader, Reading
from fastsam2.runtime.policies.mask import mask_scores
from fastsam2.runtime.postprocess import masks_from_logits
from fastsam2.runtime.preprocess import frame_to_pixels
from fastsam2.runtime.uncertainty import uncertainty

Bits = npt.NDArray[np.uint16]


class HostFrames:
    """See `FrameUploads`; frames are where they are used."""

    def ahead(self, frame: npt.NDArray[np.uint8]) -> None:
        """Nothing to do."""

    def take(self, frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """The frame itself."""
        return frame

    def clear(self) -> None:
        """Nothing to forget."""


class HostDevice:
    """See `Device`; tensors are numpy arrays. Keeps nothing, so one serves every tracker."""

    def max_objects(self, role: GraphRole) -> None:
        """Any number."""

    def max_prompt_frames(self) -> None:
        """Any number."""

    def put(self, array: Array) -> Array:
        """The same array."""
        return array

    def fetch(self, *tensors: Any) -> tuple[Any, ...]:
        """The same arrays."""
        return tensors

    def full(self, shape: tuple[int, ...], value: float, dtype: npt.DTypeLike) -> Array:
        """A new array."""
        return np.full(shape, value, dtype)

    def arange(self, start: int, stop: int) -> npt.NDArray[np.int32]:
        """A new array."""
        return np.arange(start, stop, dtype=np.int32)

    def copy(self, tensor: Any) -> Array:
        """A new array."""
        return np.array(tensor)

    def stack(self, tensors: Sequence[Any]) -> Array:
        """A new array."""
        return np.stack(tensors)

    def concatenate(self, tensors: Sequence[Any]) -> Array:
        """A new array, or the only one."""
        return tensors[0] if len(tensors) == 1 else np.concatenate(tensors)

    def clamp(self, tensor: Any, limit: float) -> Float:
        """A new array."""
        clamped: Float = np.clip(tensor, -limit, limit)
        return clamped

    def to_bfloat16(self, rows: Any) -> Bits:
        """A new array."""
        return to_bfloat16(rows)

    def top_k_gather(self, rows: Any, scores: Any, keep: int) -> tuple[Bits, npt.NDArray[np.int32]]:
        """New arrays."""
        kept, index = top_k_gather(scores[None], rows[None], keep)
        return kept[0], index[0]

    def pool_2x2(self, rows: Any, grid: int) -> Bits:
        """In float32, rounded to bfloat16."""
        half = grid // 2
        cells = from_bfloat16(rows).reshape(half, 2, half, 2, -1)
        return to_bfloat16(cells.mean(axis=(1, 3), dtype=np.float32).reshape(half * half, -1))

    def memory_reader(self, spec: ModelSpec) -> MemoryReader:
        """One with buffers that are reused from step to step."""
        return _Buffers(spec).read

    def frame_uploads(self) -> HostFrames:
        """Frames need no copy."""
        return HostFrames()

    def pixels(self, frame: Any, size: int) -> npt.NDArray[np.uint8]:
        """With Pillow."""
        return frame_to_pixels(frame, size)

    def masks(self, logits: Any, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
        """A new array."""
        return masks_from_logits(logits, size)

    def mask_scores(self, logits: Any, grid: int) -> Float:
        """A new array."""
        return mask_scores(logits, grid)

    def uncertainty(self, logits: Any, grid: int) -> Float:
        """A new array."""
        return uncertainty(logits, grid)


class _Buffers:
    """Assembles what a batch reads."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self._flat: dict[str, Array] = {}

    def read(self, readings: Sequence[Reading]) -> dict[str, Any]:
        """See `MemoryReader`."""
        batch, first = len(readings), readings[0]
        rows, count = sum(len(position) for _, position, _ in first.frames), len(first.pointers)
        inputs: dict[str, Array] = {
            "memory": self._buffer("memory", (batch, rows, self.spec.memory_dim), np.float32),
            "position": self._buffer("position", (batch, rows), np.int32),
            "age": self._buffer("age", (batch, rows), np.int32),
            "pointers": self._buffer("pointers", (batch, count, self.spec.hidden_dim), np.float32),
            "pointer_offset": self._buffer("pointer_offset", (batch, count), np.float32),
        }
        for b, reading in enumerate(readings):
            start = 0
            for held, position, age in reading.frames:
                end = start + len(position)
                from_bfloat16(np.asarray(held), out=inputs["memory"][b, start:end])
                inputs["position"][b, start:end] = position
                inputs["age"][b, start:end] = age
                start = end
            for p, (pointer, offset) in enumerate(reading.pointers):
                inputs["pointers"][b, p] = pointer
                inputs["pointer_offset"][b, p] = offset
        return inputs

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: type[np.generic]) -> Array:
        size = int(np.prod(shape))
        flat = self._flat.get(name)
        if flat is None or flat.size < size:
            flat = self._flat[name] = np.empty(size, dtype)
        return flat[:size].reshape(shape)


HOST: Device = HostDevice()


def device_of(backend: object) -> Device:
    """Where a backend wants its arrays: its attribute `device`, or the host."""
    device: Device = getattr(backend, "device", HOST)
    return device
