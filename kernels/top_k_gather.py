"""One launch of the top-k gather on the device, checked: the arguments of `kernels/cuda/top_k_gather.h` in Python.

    device addresses, sizes, strides ─ TopKGather ─► entry point, grid, block, shared memory, packed parameters

Same limits and same launch shape as the C launcher; tests hold the two against each other.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from types import MappingProxyType

from fastsam2.errors import PromptError, expected

MAX_ROWS = 16384  # N
MAX_BATCH = 65535  # B, the grid's second axis
MAX_ROW_BYTES = 1 << 20
MAX_STRIDE = 1 << 40  # keeps every offset far inside 64 bits
CHUNK_BYTES = 16  # one load of one thread
ROWS_PER_BLOCK = 128
THREADS = 512
SCRATCH_BYTES = 1416  # shared memory beside the keys
SHARED_WITHOUT_ASKING = 48 * 1024  # beyond it a kernel's attribute must allow dynamic shared memory
SCORE_BYTES = MappingProxyType({"float32": 4, "float16": 2})
PARAMETERS = "PPPPqqqqqqiiii"  # struct format of fastsam2_top_k_gather_args


@dataclass(frozen=True, slots=True, kw_only=True)
class TopKGather:
    """scores [B,N], rows [B,N,row_bytes] ─► the k best rows [B,k,row_bytes] in ascending order and their index int32 [B,k].

    Order of scores as in `fastsam2.kernels.reference.top_k_gather`. Addresses are of device memory that the caller owns and keeps until
    the launch has run on its stream. A stride left out means a contiguous tensor; gaps of a destination are not written.

    Args:
        scores: address, aligned to the element size.
        rows: address, 16-byte aligned.
        kept: address, 16-byte aligned, for instance of a slot of the memory bank; shares no byte with `rows`.
        index: address, 4-byte aligned.
        batch: B, 1..65535.
        n: N, 1..16384.
        k: rows to keep of each entry, 0..N.
        row_bytes: a multiple of 16, 16..1048576.
        score_dtype: "float32" or "float16".
        scores_batch_stride: elements; 0 gives every entry the same scores.
        rows_pitch: bytes from row to row, a multiple of 16.
        rows_batch_stride: bytes, a multiple of 16; 0 gives every entry the same rows.
        kept_pitch: bytes from row to row, a multiple of 16.
        kept_batch_stride: bytes, a multiple of 16.
        index_batch_stride: elements.

    Raises:
        PromptError: if a value is out of range, unaligned, or `kept` meets `rows`.
    """

    scores: int
    rows: int
    kept: int
    index: int
    batch: int
    n: int
    k: int
    row_bytes: int
    score_dtype: str = "float32"
    scores_batch_stride: int | None = None
    rows_pitch: int | None = None
    rows_batch_stride: int | None = None
    kept_pitch: int | None = None
    kept_batch_stride: int | None = None
    index_batch_stride: int | None = None

    def __post_init__(self) -> None:
        if self.score_dtype not in SCORE_BYTES:
            raise PromptError(expected(f"score_dtype of {list(SCORE_BYTES)}", repr(self.score_dtype), "Convert the scores first"))
        for name, low, high, multiple_of in (
            ("batch", 1, MAX_BATCH, 1),
            ("n", 1, MAX_ROWS, 1),
            ("k", 0, self.n, 1),
            ("row_bytes", CHUNK_BYTES, MAX_ROW_BYTES, CHUNK_BYTES),
        ):
            self._check(name, low, high, multiple_of)
        self._fill_strides()
        many = self.batch > 1
        for name, low, multiple_of in (
            ("scores_batch_stride", 0, 1),
            ("rows_pitch", self.row_bytes, CHUNK_BYTES),
            ("rows_batch_stride", 0, CHUNK_BYTES),
            ("kept_pitch", self.row_bytes, CHUNK_BYTES),
            ("kept_batch_stride", self.k * self._stride("kept_pitch") if many else 0, CHUNK_BYTES),
            ("index_batch_stride", self.k if many else 0, 1),
        ):
            self._check(name, low, MAX_STRIDE, multiple_of)
        least = 1 if self.k else 0
        for name, multiple_of in (("scores", SCORE_BYTES[self.score_dtype]), ("rows", CHUNK_BYTES), ("kept", CHUNK_BYTES), ("index", 4)):
            self._check(name, least, (1 << 64) - 1, multiple_of)
        if self.k and self._overlaps():
            got = f"rows at {self.rows:#x} and kept at {self.kept:#x}, which meet"
            raise PromptError(expected("kept apart from rows", got, "Gather into another slot: blocks would read what others have written"))

    @property
    def entry(self) -> str:
        """Name of the kernel in the module."""
        return f"fastsam2_top_k_gather_{self.score_dtype}"

    @property
    def grid(self) -> tuple[int, int]:
        """Blocks; (0, B) where k is 0 and nothing is to be launched."""
        return -(-self.k // ROWS_PER_BLOCK), self.batch

    @property
    def block(self) -> tuple[int, int, int]:
        """Threads of a block."""
        return THREADS, 1, 1

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block, bytes."""
        return SCRATCH_BYTES + self.n * SCORE_BYTES[self.score_dtype]

    @property
    def parameters(self) -> bytes:
        """The kernel's one parameter, `fastsam2_top_k_gather_args`, as it lies in memory."""
        addresses = (self.scores, self.rows, self.kept, self.index)
        names = ("scores_batch_stride", "rows_pitch", "rows_batch_stride", "kept_pitch", "kept_batch_stride", "index_batch_stride")
        strides = (self._stride(name) for name in names)
        return struct.pack(PARAMETERS, *addresses, *strides, self.batch, self.n, self.k, self.row_bytes)

    def _stride(self, name: str) -> int:
        return int(getattr(self, name))

    def _fill_strides(self) -> None:
        def fill(name: str, contiguous: int) -> None:
            if getattr(self, name) is None:
                object.__setattr__(self, name, contiguous)

        fill("scores_batch_stride", self.n)
        fill("rows_pitch", self.row_bytes)
        fill("rows_batch_stride", self.n * self._stride("rows_pitch"))
        fill("kept_pitch", self.row_bytes)
        fill("kept_batch_stride", self.k * self._stride("kept_pitch"))
        fill("index_batch_stride", self.k)

    def _check(self, name: str, low: int, high: int, multiple_of: int) -> None:
        value = getattr(self, name)
        if not low <= value <= high or value % multiple_of:
            what = f"{name} in {low}..{high}" + (f", a multiple of {multiple_of}" if multiple_of > 1 else "")
            raise PromptError(expected(what, value, "See fastsam2/kernels/cuda/top_k_gather.h for the layout of every tensor"))

    def _overlaps(self) -> bool:
        """Whether rows of an entry, from its first byte to its last, meet the bytes that some entry writes."""
        stride = self._stride("rows_batch_stride")
        rows_extent = (self.n - 1) * self._stride("rows_pitch") + self.row_bytes
        kept_extent = (self.k - 1) * self._stride("kept_pitch") + self.row_bytes
        for writer in range(self.batch):
            begin = self.kept - self.rows + writer * self._stride("kept_batch_stride")
            past = begin - rows_extent
            if past >= 0 and stride == 0:
                continue
            reader = 0 if past < 0 else past // stride + 1  # the first entry that ends after `begin`
            if reader < self.batch and reader * stride < begin + kept_extent:
                return True
        return False
