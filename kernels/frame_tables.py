"""Tables in device memory that the kernels of `frame_ops` read, made on the host and uploaded by the caller.

source, target size ─ resize_tables ─► bounds int32 [S,2], weights int32 [S,taps]
sample points       ─ lerp_table ─► LERP [outputs]
addresses of rows, positions and pointers ─ memory_table ─► MemoryTable: one block of bytes and its sizes
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastsam2.errors import PromptError, expected

PRECISION_BITS = 32 - 8 - 2  # of Pillow's fixed-point weights
LERP = np.dtype([("low", "<i4"), ("high", "<i4"), ("low_weight", "<f4"), ("high_weight", "<f4")])  # fastsam2_lerp
MEMORY_ENTRY = np.dtype(  # fastsam2_memory_entry
    [("rows", "<u8"), ("position", "<u8"), ("object", "<i4"), ("first", "<i4"), ("count", "<i4"), ("age", "<i4")]
)
POINTER_ENTRY = np.dtype([("pointer", "<u8"), ("offset", "<f4"), ("reserved", "<i4")])  # fastsam2_pointer_entry
_BICUBIC_SUPPORT = 2.0
_A = -0.5  # Pillow's bicubic


def resize_taps(source: int, target: int) -> int:
    """Columns of the weights of `resize_tables`."""
    return math.ceil(_BICUBIC_SUPPORT * max(source / target, 1.0)) * 2 + 1


@lru_cache(maxsize=16)
def resize_tables(source: int, target: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """One axis of Pillow's antialiased bicubic resize of 8-bit pixels.

    Repeats `precompute_coeffs` and `normalize_coeffs_8bpc` of python-pillow/Pillow `src/libImaging/Resample.c` in float64. Where both
    sizes are equal, Pillow leaves the pass out; the table then copies.

    Args:
        source: pixels of the input.
        target: pixels of the output, S.

    Returns:
        bounds int32 [S,2], first input and number of inputs of each output; weights int32 [S,taps] in units of 2^-22, 0 where unused.
        Both C-contiguous and read-only (shared between callers).

    Raises:
        PromptError: if a size is not positive.
    """
    if source < 1 or target < 1:
        raise PromptError(expected("a source and a target of at least one pixel", f"{source} and {target}", "Pass the sizes of the axis"))
    scale = source / target
    filter_scale = max(scale, 1.0)
    support = _BICUBIC_SUPPORT * filter_scale
    center = (np.arange(target) + 0.5) * scale
    first = np.maximum((center - support + 0.5).astype(np.int64), 0)
    count = np.minimum((center + support + 0.5).astype(np.int64), source) - first
    weight = np.zeros((target, resize_taps(source, target)))
    total = np.zeros(target)
    for tap in range(weight.shape[1]):
        value = _bicubic((tap + first - center + 0.5) * (1.0 / filter_scale))
        weight[:, tap] = np.where(tap < count, value, 0.0)
        total += weight[:, tap]
    weight /= np.where(total == 0.0, 1.0, total)[:, None]
    fixed = (weight * (1 << PRECISION_BITS) + np.where(weight < 0.0, -0.5, 0.5)).astype(np.int32)
    bounds = np.stack([first, count], axis=1).astype(np.int32)
    bounds.flags.writeable = fixed.flags.writeable = False
    return bounds, fixed


def _bicubic(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    x = np.abs(x)
    near = ((_A + 2.0) * x - (_A + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * _A
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def lerp_table(
    low: npt.NDArray[np.integer], high: npt.NDArray[np.integer], low_weight: npt.NDArray[np.float32], high_weight: npt.NDArray[np.float32]
) -> npt.NDArray[np.void]:
    """Sample points of one axis as `FrameOps.masks` reads them.

    Args:
        low: integers [outputs], first input of each output.
        high: integers [outputs], second input.
        low_weight: float32 [outputs].
        high_weight: float32 [outputs].

    Returns:
        `LERP` [outputs], 16 bytes each.
    """
    table = np.empty(len(low), LERP)
    for name, values in zip(LERP.names or (), (low, high, low_weight, high_weight), strict=True):
        table[name] = values
    return table


@dataclass(frozen=True, slots=True)
class FrameRows:
    """Rows of one frame of one object.

    Attributes:
        rows: address of bfloat16 [count,D].
        position: address of int32 [count].
        count: k.
        age: row of the temporal table.
    """

    rows: int
    position: int
    count: int
    age: int


class Pointer(NamedTuple):
    """One object pointer: address of float32 [C], and its offset."""

    pointer: int
    offset: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryTable:
    """What `FrameOps.read_memory` reads of B objects.

    Attributes:
        data: uint8 [nbytes], to be uploaded to a 16-byte aligned address: MEMORY_ENTRY [entries], POINTER_ENTRY [B,P].
        entries: frames of all objects together.
        batch: B.
        rows: M of each object.
        pointers: P of each object.
        alignment: the largest power of two, at most 16, that divides every address of rows.
    """

    data: npt.NDArray[np.uint8]
    entries: int
    batch: int
    rows: int
    pointers: int
    alignment: int


def memory_table(frames: Sequence[Sequence[FrameRows]], pointers: Sequence[Sequence[Pointer]]) -> MemoryTable:
    """Packs what a batch of objects reads.

    Args:
        frames: of each of B objects, in the order in which its memory is to hold them; equally many rows in all.
        pointers: of each object, equally many, possibly none.

    Raises:
        PromptError: if there is no object, a count is negative, an address is null or misaligned, or the objects differ in rows or
            pointers.
    """
    totals, counts = {sum(f.count for f in own) for own in frames}, {len(own) for own in pointers}
    if len(totals) != 1 or len(counts) != 1 or len(frames) != len(pointers):
        got = f"{len(frames)} with {sorted(totals)} rows and {len(pointers)} with {sorted(counts)} pointers"
        raise PromptError(expected("objects with equally many rows and pointers", got, "Run others as another batch"))
    entries = np.zeros(sum(len(own) for own in frames), MEMORY_ENTRY)
    at = 0
    for index, own in enumerate(frames):
        first = 0
        for frame in own:
            _check_frame(frame)
            entries[at] = (frame.rows, frame.position, index, first, frame.count, frame.age)
            first, at = first + frame.count, at + 1
    listed = [one for own in pointers for one in own]
    if any(one.pointer <= 0 or one.pointer % 4 for one in listed):
        addresses = [hex(one.pointer) for one in listed]
        raise PromptError(expected("addresses of pointers that are multiples of 4", addresses, "Pass device addresses"))
    slots = np.array([(*one, 0) for one in listed], POINTER_ENTRY)
    data = np.concatenate([entries.view(np.uint8), slots.view(np.uint8)])
    mixed = int(np.bitwise_or.reduce(entries["rows"])) if len(entries) else 0
    aligned = math.gcd(mixed, 16)
    return MemoryTable(data=data, entries=at, batch=len(frames), rows=totals.pop(), pointers=counts.pop(), alignment=aligned)


def _check_frame(frame: FrameRows) -> None:
    if frame.count < 0 or min(frame.rows, frame.position) <= 0 or frame.rows % 2 or frame.position % 4:
        what = "rows at a multiple of 2, positions at a multiple of 4, and a count of at least 0"
        raise PromptError(expected(what, frame, "Pass device addresses"))
