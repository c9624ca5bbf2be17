"""Arrays in device memory, and the pool their memory comes from.

All work is enqueued on one stream, so memory may be handed out again as soon as nothing on the host refers to it: whatever still uses it
was enqueued before whatever will write it. A loop whose shapes repeat therefore allocates nothing after its first rounds.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastsam2.errors import BackendError, InternalError
from fastsam2.runtime.gpu.driver import Gpu

_ALIGNMENT = 512
_STAGING_BYTES = 4 * 1024 * 1024  # of one piece of page-locked memory, at least


class Block:
    """Device memory; goes back to its pool when nothing refers to it."""

    __slots__ = ("address", "nbytes", "pool", "purpose")

    def __init__(self, pool: Pool, address: int, nbytes: int, purpose: Hashable) -> None:
        self.pool, self.address, self.nbytes, self.purpose = pool, address, nbytes, purpose

    def __del__(self) -> None:
        self.pool.take_back(self)


class DeviceArray:
    """A C-contiguous array in device memory.

    Attributes:
        block: the memory that is kept alive.
        offset: of the first byte in it.
        shape: sizes.
        dtype: element type.
    """

    __slots__ = ("block", "dtype", "offset", "shape")

    def __init__(self, block: Block, offset: int, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        self.block, self.offset, self.shape, self.dtype = block, offset, shape, np.dtype(dtype)

    @property
    def address(self) -> int:
        """Of the first byte."""
        return self.block.address + self.offset

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: int | slice, /) -> DeviceArray:
        """A view of one element, or of consecutive ones, of the first axis."""
        start, stop, step = (key, key + 1, 1) if isinstance(key, int) else key.indices(len(self))
        if step != 1 or not 0 <= start <= stop <= len(self):
            raise InternalError(f"consecutive elements of {len(self)}, got {key}")
        rest = self.shape[1:]
        shape = rest if isinstance(key, int) else (stop - start, *rest)
        return DeviceArray(self.block, self.offset + start * math.prod(rest) * self.dtype.itemsize, shape, self.dtype)

    def reshape(self, shape: tuple[int, ...], /) -> DeviceArray:
        """A view; one size may be -1."""
        count, known = math.prod(self.shape), math.prod(n for n in shape if n != -1)
        resolved = tuple(count // max(known, 1) if n == -1 else n for n in shape)
        if math.prod(resolved) != count:
            raise InternalError(f"{self.shape} cannot become {shape}")
        return DeviceArray(self.block, self.offset, resolved, self.dtype)

    def follows(self, other: DeviceArray) -> bool:
        """Whether it begins in the same memory where the other one ends."""
        return self.block is other.block and self.offset == other.offset + other.nbytes


class Pool:
    """Memory of one GPU, kept for reuse.

    Args:
        gpu: whose memory.

    Attributes:
        allocations: how often the GPU was asked for memory.
        held_bytes: device memory taken from the GPU, in use or not.
        peak_bytes: the most that was ever in use at once.
    """

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.allocations = self.held_bytes = self.used_bytes = self.peak_bytes = 0
        self._free: dict[tuple[Hashable, int], list[int]] = defaultdict(list)  # purpose and size -> addresses
        self._closed = False

    def empty(self, shape: Sequence[int], dtype: npt.DTypeLike, purpose: Hashable = None) -> DeviceArray:
        """An array whose elements mean nothing yet.

        Args:
            shape: sizes.
            dtype: element type.
            purpose: memory goes round among arrays of one purpose, so that a loop that repeats itself meets the same addresses soon again;
                what waits for a purpose of its own is little beside that.

        Raises:
            BackendError: if device memory ran out, even after giving back what was kept for reuse.
        """
        size = _rounded(math.prod(shape) * np.dtype(dtype).itemsize)
        free = self._free[purpose, size]
        address = free.pop() if free else self._allocate(size)
        self.used_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.used_bytes)
        return DeviceArray(Block(self, address, size, purpose), 0, tuple(shape), dtype)

    def take_back(self, block: Block) -> None:
        """What a block does when nothing refers to it any more."""
        self.used_bytes -= block.nbytes
        if not self._closed:
            self._free[block.purpose, block.nbytes].append(block.address)

    def trim(self) -> None:
        """Give what is not in use back to the GPU. Waits for the stream."""
        self.gpu.synchronize()
        for (_, size), addresses in self._free.items():
            for address in addresses:
                self.gpu.release(address)
                self.held_bytes -= size
        self._free.clear()

    def close(self) -> None:
        """Give everything that is not in use back; blocks in use go with the GPU's context."""
        if not self._closed:
            self.trim()
            self._closed = True

    def _allocate(self, size: int) -> int:
        try:
            address = self.gpu.allocate(size)
        except BackendError:
            if not any(self._free.values()):
                raise
            self.trim()
            address = self.gpu.allocate(size)
        self.allocations += 1
        self.held_bytes += size
        return address


class Staging:
    """Page-locked host memory for copies of one round; `reset` when the stream is through with all of them.

    Args:
        gpu: to and from which copies go.
    """

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self._pieces: list[npt.NDArray[np.uint8]] = []
        self._piece = self._start = self._taken = 0
        self._least = _STAGING_BYTES

    def array(self, shape: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Memory that nothing else gets until `reset`."""
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        while self._piece < len(self._pieces) and self._start + nbytes > len(self._pieces[self._piece]):
            self._piece, self._start = self._piece + 1, 0
        if self._piece == len(self._pieces):
            self._pieces.append(self.gpu.pinned(max(nbytes, self._least)))
        bytes_ = self._pieces[self._piece][self._start : self._start + nbytes]
        padded = -(-nbytes // 64) * 64
        self._start, self._taken = self._start + padded, self._taken + padded
        return bytes_.view(dtype).reshape(shape)

    def reset(self) -> None:
        """All of it is free again; where one piece was not enough, a piece as large as all that was taken takes their place."""
        if len(self._pieces) > 1:
            self._pieces, self._least = [], max(_STAGING_BYTES, self._taken)
        self._piece = self._start = self._taken = 0


def _rounded(nbytes: int) -> int:
    """The next of eight sizes between powers of two: shapes that differ a little share memory."""
    step = max(_ALIGNMENT, 1 << max(0, nbytes.bit_length() - 4))
    return max(1, -(-nbytes // step)) * step
