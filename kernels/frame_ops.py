"""The small operations between the engines of one frame, on the device: the kernels of `kernels/cuda/frame_ops.h` from Python.

    device addresses, sizes ─ FrameOps.<operation>(…, stream) ─► one launch (resize: two), in stream order

Every call is checked before anything is launched. Nothing waits and nothing allocates, so a sequence of calls may be captured into a CUDA
graph. Addresses are of C-contiguous tensors in device memory that the caller owns and keeps until the launch has run on its stream; a
destination shares no byte with a source. bfloat16 is held as its 16 bits.
"""

from __future__ import annotations

import struct
from functools import partial
from types import MappingProxyType
from typing import Any

from fastsam2.errors import PromptError, expected
from fastsam2.kernels.drivers import Driver, PyCudaDriver
from fastsam2.kernels.frame_tables import MEMORY_ENTRY, MemoryTable, resize_taps
from fastsam2.kernels.launch import load_functions
from fastsam2.kernels.nvrtc import FRAME_OPS_SOURCE, compile_cubin

THREADS = 256
CELL_THREADS = 64  # a cell takes long: smaller blocks reach more multiprocessors
MAX_BLOCKS = 4096  # threads beyond these take several elements each
MAX_ROW_BLOCKS = 64  # of one frame's rows
MAX_GRID_Y = 65535
MAX_COUNT = (1 << 31) - 1
CHUNK_BYTES = 16
LAYOUT = "See fastsam2/kernels/cuda/frame_ops.h for the layout of every tensor"
PARAMETERS = MappingProxyType(  # operation -> struct format of its arguments; "0P" pads to the alignment of the struct
    {
        "resize_columns": "PPPPiiiii0P",
        "resize_rows": "PPPPiiiii0P",
        "round_bfloat16": "PPq",
        "read_memory": "PPPPPPPPiiiiii",
        "pool_2x2": "PPii",
        "mask_scores": "PPPi0P",
        "uncertainty": "PPPi0P",
        "masks": "PPPPiii0P",
        "clamp": "PPqf0P",
        "fill_words": "PqI0P",
        "fill_bytes": "PqI0P",
    }
)


class FrameOps:
    """The operations, loaded into the current context; make it before capturing.

    Args:
        driver: pycuda unless given; `stream` of every method is of its kind (`fastsam2.kernels.drivers`).

    Raises:
        BackendError: if pycuda, NVRTC, the driver or a current context is missing, or the kernels do not build for this GPU; from every
            method, if the driver refuses the launch.
    """

    def __init__(self, driver: Driver | None = None) -> None:
        self._driver: Driver = PyCudaDriver() if driver is None else driver
        sizes = {f"fastsam2_{name}": struct.calcsize(layout) for name, layout in PARAMETERS.items()}
        self._functions = load_functions(self._driver, partial(compile_cubin, source=FRAME_OPS_SOURCE), sizes)

    def resize(
        self,
        *,
        frame: int,
        height: int,
        width: int,
        size: int,
        column_bounds: int,
        column_weights: int,
        row_bounds: int,
        row_weights: int,
        scratch: int,
        pixels: int,
        rows_first: bool,
        stream: Any,
    ) -> None:
        """uint8 [H,W,3] -> uint8 [3,S,S], the bits of Pillow's `Image.resize((S, S), BICUBIC)`. Two launches.

        Args:
            frame: uint8 [H,W,3].
            height: H, 1..65535.
            width: W, 1..65535.
            size: S, 1..65535.
            column_bounds: int32 [S,2] of `resize_tables(W, S)`.
            column_weights: int32 [S,taps] of `resize_tables(W, S)`.
            row_bounds: int32 [S,2] of `resize_tables(H, S)`.
            row_weights: int32 [S,taps] of `resize_tables(H, S)`.
            scratch: uint8 [H,S,3], or [S,W,3] with `rows_first`; overwritten.
            pixels: uint8 [3,S,S].
            rows_first: the height is resized first; `pillow_order.rows_first(H, W, S)`, because releases of Pillow differ in it.
            stream: where to enqueue.

        Raises:
            PromptError: if a size is out of range or an address is null or misaligned.
        """
        _check_sizes(MAX_GRID_Y, height=height, width=width, size=size)
        _check_addresses(1, frame=frame, scratch=scratch, pixels=pixels)
        tables = {"column_bounds": column_bounds, "column_weights": column_weights, "row_bounds": row_bounds, "row_weights": row_weights}
        _check_addresses(4, **tables)
        across = (column_bounds, column_weights)
        down = (row_bounds, row_weights)
        taps = resize_taps(width, size), resize_taps(height, size)
        blocks, full_blocks = -(-size // THREADS), -(-width // THREADS)
        if rows_first:
            self._launch("resize_rows", (full_blocks, size), stream, frame, scratch, *down, size, width, width, taps[1], 0)
            self._launch("resize_columns", (blocks, size), stream, scratch, pixels, *across, size, size, width, taps[0], 1)
        else:
            self._launch("resize_columns", (blocks, height), stream, frame, scratch, *across, height, size, width, taps[0], 0)
            self._launch("resize_rows", (blocks, size), stream, scratch, pixels, *down, size, size, size, taps[1], 1)

    def round_bfloat16(self, *, values: int, bits: int, n: int, stream: Any) -> None:
        """float32 [n] -> bfloat16 [n], to the nearest, ties to even; too large values become infinite, every NaN 0x7FC0.

        Args:
            values: float32 [n].
            bits: uint16 [n].
            n: values; 0 launches nothing.
            stream: where to enqueue.

        Raises:
            PromptError: if n is negative or an address is null or misaligned.
        """
        if _check_n(n):
            _check_addresses(4, values=values)
            _check_addresses(2, bits=bits)
            self._launch("round_bfloat16", (_blocks(n), 1), stream, values, bits, n)

    def read_memory(
        self,
        *,
        table: int,
        layout: MemoryTable,
        dim: int,
        hidden: int,
        memory: int,
        position: int,
        age: int,
        pointers: int,
        pointer_offset: int,
        memory_bias: int = 0,
        stream: Any,
    ) -> None:
        """Assembles the inputs of memory attention of B objects with M rows and P pointers each.

        Args:
            table: `layout.data`, uploaded, 16-byte aligned.
            layout: from `memory_table`; says B, M and P.
            dim: D, width of a row. Where it is a multiple of 8, rows and `memory` must be 16-byte aligned.
            hidden: C, width of a pointer.
            memory: float32 [B,M,D].
            position: int32 [B,M].
            age: int32 [B,M].
            pointers: float32 [B,P,C]; not read where P is 0.
            pointer_offset: float32 [B,P]; not read where P is 0.
            memory_bias: float32 [B,R], R = M + (C/D)·P, set to 0; 0 where the graph has none.
            stream: where to enqueue.

        Raises:
            PromptError: if a size is out of range or does not fit, or an address is null or misaligned.
        """
        _check_sizes(MAX_COUNT, dim=dim, hidden=hidden, rows=layout.rows)
        _check_sizes(MAX_GRID_Y, frames_and_objects=layout.entries + layout.batch)
        _check_sizes(MAX_COUNT, values_of_an_object=max(layout.rows * dim, layout.pointers * hidden))
        if hidden % dim and memory_bias:
            raise PromptError(expected(f"hidden to be a multiple of dim {dim}", hidden, LAYOUT))
        wide = CHUNK_BYTES if dim % 8 == 0 else 4
        _check_addresses(CHUNK_BYTES, table=table)
        _check_addresses(wide, memory=memory)
        if dim % 8 == 0 and layout.alignment < CHUNK_BYTES:
            got = f"rows at a multiple of {layout.alignment}"
            raise PromptError(expected(f"16-byte aligned rows of {dim} values", got, LAYOUT))
        _check_addresses(4, position=position, age=age)
        if layout.pointers:
            _check_addresses(4, pointers=pointers, pointer_offset=pointer_offset)
        _check_multiple("memory_bias", memory_bias, 4, least=0)
        keys = layout.rows + hidden // dim * layout.pointers
        slots = table + layout.entries * MEMORY_ENTRY.itemsize
        blocks = min(-(-layout.rows * dim // (8 * THREADS)), MAX_ROW_BLOCKS)
        addresses = (table, slots, memory, position, age, pointers, pointer_offset, memory_bias)
        sizes = (layout.entries, layout.rows, layout.pointers, dim, hidden, keys)
        self._launch("read_memory", (blocks, layout.entries + layout.batch), stream, *addresses, *sizes)

    def pool_2x2(self, *, rows: int, pooled: int, grid: int, dim: int, stream: Any) -> None:
        """bfloat16 [g·g,D] -> bfloat16 [g/2·g/2,D]: the mean of each 2x2 block of cells, in float32, rounded.

        Args:
            rows: uint16 [g·g,D], row-major over the grid.
            pooled: uint16 [g/2·g/2,D].
            grid: g, even.
            dim: D.
            stream: where to enqueue.

        Raises:
            PromptError: if a size is out of range, g is odd, or an address is null or misaligned.
        """
        _check_sizes(MAX_COUNT, grid=grid, dim=dim, values=grid * grid * dim)
        if grid % 2:
            raise PromptError(expected("an even grid", grid, LAYOUT))
        _check_addresses(2, rows=rows, pooled=pooled)
        self._launch("pool_2x2", (_blocks(grid * grid // 4 * dim), 1), stream, rows, pooled, grid, dim)

    def mask_scores(self, *, logits: int, order: int, scores: int, batch: int, grid: int, stream: Any) -> None:
        """Worth of memory rows by the mask: `MaskPolicy` of `runtime/policies/mask.py`, except where tanh rounds differently at a level.

        Args:
            logits: float32 [B,4g,4g], 16-byte aligned.
            order: float32 [g·g], `uniform_scores(g)`.
            scores: float32 [B,g·g].
            batch: B, 1..65535.
            grid: g.
            stream: where to enqueue.

        Raises:
            PromptError: if a size is out of range or an address is null or misaligned.
        """
        _check_addresses(4, order=order)
        self._cells("mask_scores", logits, order, scores, batch, grid, stream)

    def uncertainty(self, *, logits: int, values: int, batch: int, grid: int, stream: Any) -> None:
        """How undecided the mask is in each cell: `runtime/uncertainty.py` to within the rounding of tanh.

        Args:
            logits: float32 [B,4g,4g], 16-byte aligned.
            values: float32 [B,g·g], 0..1.
            batch: B, 1..65535.
            grid: g.
            stream: where to enqueue.

        Raises:
            PromptError: if a size is out of range or an address is null or misaligned.
        """
        self._cells("uncertainty", logits, 0, values, batch, grid, stream)

    def masks(
        self, *, logits: int, masks: int, batch: int, side: int, height: int, width: int, rows: int = 0, columns: int = 0, stream: Any
    ) -> None:
        """float32 [B,L,L] -> uint8 0/1 [B,H,W]: bilinear, > 0; the bits of `masks_from_logits` of `runtime/postprocess.py`.

        Args:
            logits: float32 [B,L,L].
            masks: uint8 [B,H,W].
            batch: B, 1..65535.
            side: L.
            height: H.
            width: W.
            rows: `lerp_table` of L -> H, 16-byte aligned; 0, like `columns`, exactly where H = W = L and nothing is resized.
            columns: `lerp_table` of L -> W, 16-byte aligned.
            stream: where to enqueue.

        Raises:
            PromptError: if a size is out of range, or an address is null, misaligned or given where it must not be.
        """
        _check_sizes(MAX_GRID_Y, batch=batch)
        _check_sizes(MAX_COUNT, side=side, height=height, width=width, pixels=height * width, logits_of_an_object=side * side)
        _check_addresses(4, logits=logits)
        _check_addresses(1, masks=masks)
        if (height, width) != (side, side):
            _check_addresses(CHUNK_BYTES, rows=rows, columns=columns)
        elif rows or columns:
            raise PromptError(expected("no tables where nothing is resized", f"rows {rows:#x} and columns {columns:#x}", "Pass 0 for both"))
        self._launch("masks", (_blocks(height * width), batch), stream, logits, rows, columns, masks, side, height, width)

    def clamp(self, *, values: int, clamped: int, n: int, limit: float, stream: Any) -> None:
        """float32 [n] -> float32 [n] within -limit..limit; NaN stays.

        Args:
            values: float32 [n].
            clamped: float32 [n]; may be `values`.
            n: values; 0 launches nothing.
            limit: at least 0.
            stream: where to enqueue.

        Raises:
            PromptError: if n or limit is negative, or an address is null or misaligned.
        """
        if not limit >= 0:
            raise PromptError(expected("limit >= 0", limit, LAYOUT))
        if _check_n(n):
            _check_addresses(4, values=values, clamped=clamped)
            self._launch("clamp", (_blocks(n), 1), stream, values, clamped, n, limit)

    def fill(self, *, target: int, value: bytes, n: int, stream: Any) -> None:
        """Writes a constant of 1 or 4 bytes n times.

        Args:
            target: address, a multiple of the constant's size.
            value: its bytes, for instance `np.float32(1).tobytes()` or `np.True_.tobytes()`.
            n: how often; 0 launches nothing.
            stream: where to enqueue.

        Raises:
            PromptError: if the constant has another size, n is negative, or the address is null or misaligned.
        """
        if len(value) not in (1, 4):
            raise PromptError(expected("a constant of 1 or 4 bytes", f"{len(value)} bytes", LAYOUT))
        if _check_n(n):
            _check_addresses(len(value), target=target)
            operation = "fill_words" if len(value) == 4 else "fill_bytes"
            self._launch(operation, (_blocks(n), 1), stream, target, n, int.from_bytes(value, "little"))

    def _cells(self, operation: str, logits: int, order: int, values: int, batch: int, grid: int, stream: Any) -> None:
        _check_sizes(MAX_GRID_Y, batch=batch)
        _check_sizes(MAX_COUNT, grid=grid, logits_of_an_object=16 * grid * grid)
        _check_addresses(CHUNK_BYTES, logits=logits)
        _check_addresses(4, values=values)
        blocks = _blocks(grid * grid, CELL_THREADS)
        self._launch(operation, (blocks, batch), stream, logits, order, values, grid, threads=CELL_THREADS)

    def _launch(self, operation: str, grid: tuple[int, int], stream: Any, *arguments: float, threads: int = THREADS) -> None:
        parameters = struct.pack(PARAMETERS[operation], *arguments)
        self._driver.launch(self._functions[f"fastsam2_{operation}"], grid, (threads, 1, 1), 0, stream, parameters)


def _blocks(n: int, threads: int = THREADS) -> int:
    return min(-(-n // threads), MAX_BLOCKS)


def _check_n(n: int) -> bool:
    """Whether there is anything to launch."""
    if n < 0:
        raise PromptError(expected("n >= 0", n, LAYOUT))
    return n > 0


def _check_sizes(most: int, **sizes: int) -> None:
    for name, size in sizes.items():
        if not 1 <= size <= most:
            raise PromptError(expected(f"{name} in 1..{most}", size, LAYOUT))


def _check_addresses(multiple_of: int, **addresses: int) -> None:
    for name, address in addresses.items():
        _check_multiple(name, address, multiple_of, least=1)


def _check_multiple(name: str, address: int, of: int, *, least: int) -> None:
    if not least <= address < 1 << 64 or address % of:
        what = f"{name} to be a device address" + (f", a multiple of {of}" if of > 1 else "")
        raise PromptError(expected(what, f"{address:#x}", LAYOUT))
