"""What the operations between the engines refuse, and what they launch, against a driver that records every call."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastsam2.errors import BackendError, PromptError
from fastsam2.kernels import frame_ops
from fastsam2.kernels.frame_ops import PARAMETERS, FrameOps
from fastsam2.kernels.frame_tables import FrameRows, Pointer, memory_table, resize_tables, resize_taps
from fastsam2.kernels.nvrtc import FRAME_OPS_SOURCE, compile_cubin
from fastsam2.kernels.pillow_order import rows_first
from tests.kernel_host.harness import needs_nvrtc

STREAM = object()


def test_equal_sizes_have_tables_that_copy() -> None:
    bounds, weights = resize_tables(40, 40)
    dense = np.zeros((40, 40), np.int64)
    for row, (first, count), weight in zip(dense, bounds, weights, strict=True):
        row[first : first + count] = weight[:count]
        assert not weight[count:].any()
    np.testing.assert_array_equal(dense, np.eye(40, dtype=np.int64) << 22)
    assert resize_tables(1080, 512)[1].shape == (512, resize_taps(1080, 512)) == (512, 11)
    assert {table.dtype for table in (bounds, weights)} == {np.dtype(np.int32)}


@pytest.mark.parametrize(("source", "target"), [(0, 8), (8, 0), (-1, 8)])
def test_tables_of_nothing_are_refused(source: int, target: int) -> None:
    with pytest.raises(PromptError, match="at least one pixel"):
        resize_tables(source, target)


def test_pillow_that_resizes_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    bicubic = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, size, _: bicubic(self, size, Image.Resampling.BILINEAR))
    with pytest.raises(BackendError, match=r"Pillow to resize 61 x 37 to 64 in two passes, got Pillow \d"):
        rows_first.__wrapped__(37, 61, 64)
    assert not rows_first.__wrapped__(64, 61, 64), "one pass has no order"


ROWS, POSITION, POINTER = 0x1000, 0x2000, 0x3000


@pytest.mark.parametrize(
    ("frames", "pointers", "message"),
    [
        ([], [], "equally many rows"),
        ([[FrameRows(ROWS, POSITION, 4, 0)], [FrameRows(ROWS, POSITION, 5, 0)]], [[], []], "equally many rows"),
        ([[FrameRows(ROWS, POSITION, 4, 0)]] * 2, [[Pointer(POINTER, 0.5)], []], "equally many rows and pointers"),
        ([[FrameRows(ROWS, POSITION, 4, 0)]], [[], []], "equally many rows and pointers"),
        ([[FrameRows(0, POSITION, 4, 0)]], [[]], "device addresses"),
        ([[FrameRows(ROWS + 1, POSITION, 4, 0)]], [[]], "multiple of 2"),
        ([[FrameRows(ROWS, POSITION + 2, 4, 0)]], [[]], "positions at a multiple of 4"),
        ([[FrameRows(ROWS, POSITION, -1, 0)]], [[]], "count of at least 0"),
        ([[FrameRows(ROWS, POSITION, 4, 0)]], [[Pointer(POINTER + 2, 0.5)]], "multiples of 4"),
        ([[FrameRows(ROWS, POSITION, 4, 0)]], [[Pointer(0, 0.5)]], "multiples of 4"),
    ],
)
def test_bad_memory_tables_are_refused(frames: Any, pointers: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        memory_table(frames, pointers)


CELLS = {"logits": 0x1000, "batch": 2, "grid": 4}
FINE: dict[str, dict[str, Any]] = {
    "resize": {
        "frame": 0x1001, "height": 480, "width": 640, "size": 512, "column_bounds": 0x2000, "column_weights": 0x3000, "row_bounds": 0x4000,
        "row_weights": 0x5000, "scratch": 0x6001, "pixels": 0x7001, "rows_first": False,
    },
    "round_bfloat16": {"values": 0x1000, "bits": 0x2002, "n": 5},
    "read_memory": {
        "table": 0x1000, "layout": memory_table([[FrameRows(ROWS, POSITION, 4, 0)]], [[Pointer(POINTER, 0.5)]]), "dim": 8, "hidden": 32,
        "memory": 0x2000, "position": 0x3000, "age": 0x4000, "pointers": 0x5000, "pointer_offset": 0x6000, "memory_bias": 0x7000,
    },
    "pool_2x2": {"rows": 0x1002, "pooled": 0x2002, "grid": 4, "dim": 64},
    "mask_scores": {**CELLS, "order": 0x2000, "scores": 0x3000},
    "uncertainty": {**CELLS, "values": 0x3000},
    "masks": {"logits": 0x1000, "masks": 0x2001, "batch": 2, "side": 16, "height": 20, "width": 30, "rows": 0x3000, "columns": 0x4000},
    "clamp": {"values": 0x1000, "clamped": 0x1000, "n": 5, "limit": 0.0},
    "fill": {"target": 0x1000, "value": b"\0\0\0\0", "n": 5},
}  # fmt: skip
UNALIGNED_ROWS = memory_table([[FrameRows(ROWS + 8, POSITION, 4, 0)]], [[]])
MANY_FRAMES = memory_table([[FrameRows(ROWS, POSITION, 1, 0)] * 65535], [[]])
NO_ROWS = memory_table([[]], [[]])
BAD = [
    ("resize", {"height": 0}), ("resize", {"width": 65536}), ("resize", {"size": 0}), ("resize", {"frame": 0}), ("resize", {"pixels": 0}),
    ("resize", {"scratch": 0}), ("resize", {"column_bounds": 0x2002}), ("resize", {"column_weights": 0}), ("resize", {"row_bounds": 0}),
    ("resize", {"row_weights": 0x5001}), ("resize", {"frame": -1}), ("resize", {"frame": 1 << 64}),
    ("round_bfloat16", {"n": -1}), ("round_bfloat16", {"values": 0x1002}), ("round_bfloat16", {"bits": 0x2001}),
    ("round_bfloat16", {"bits": 0}),
    ("read_memory", {"table": 0x1008}), ("read_memory", {"table": 0}), ("read_memory", {"memory": 0x2008}),
    ("read_memory", {"position": 0}),
    ("read_memory", {"age": 0x4002}), ("read_memory", {"pointers": 0}), ("read_memory", {"pointer_offset": 0x6001}),
    ("read_memory", {"memory_bias": 0x7002}), ("read_memory", {"dim": 0}), ("read_memory", {"hidden": 0}), ("read_memory", {"hidden": 36}),
    ("read_memory", {"layout": UNALIGNED_ROWS}), ("read_memory", {"layout": MANY_FRAMES}), ("read_memory", {"layout": NO_ROWS}),
    ("pool_2x2", {"grid": 5}), ("pool_2x2", {"grid": 0}), ("pool_2x2", {"dim": 0}), ("pool_2x2", {"rows": 0x1001}),
    ("pool_2x2", {"pooled": 0}),
    ("pool_2x2", {"grid": 1 << 14, "dim": 64}),
    ("mask_scores", {"logits": 0x1004}), ("mask_scores", {"order": 0}), ("mask_scores", {"scores": 0x3002}), ("mask_scores", {"batch": 0}),
    ("uncertainty", {"batch": 65536}), ("uncertainty", {"grid": 0}), ("uncertainty", {"values": 0}), ("uncertainty", {"logits": 0}),
    ("masks", {"logits": 0x1002}), ("masks", {"masks": 0}), ("masks", {"batch": 65536}), ("masks", {"height": 0}), ("masks", {"width": 0}),
    ("masks", {"side": 0}), ("masks", {"height": 1 << 16, "width": 1 << 16}), ("masks", {"rows": 0}), ("masks", {"columns": 0x4008}),
    ("masks", {"height": 16, "width": 16}), ("masks", {"height": 16, "width": 16, "rows": 0}),
    ("clamp", {"limit": -1.0}), ("clamp", {"limit": float("nan")}), ("clamp", {"n": -1}), ("clamp", {"values": 0}),
    ("clamp", {"clamped": 0x1002}),
    ("fill", {"value": b"\0\0"}), ("fill", {"value": b""}), ("fill", {"n": -1}), ("fill", {"target": 0x1002}), ("fill", {"target": 0}),
]  # fmt: skip


class RecordingDriver:
    """A Driver that compiles, loads and launches nothing."""

    def __init__(self) -> None:
        self.loaded: list[tuple[bytes, str, int]] = []
        self.launched: list[tuple[Any, ...]] = []

    def compute_capability(self) -> tuple[int, int]:
        return 8, 7

    def load(self, image: bytes, entry: str, parameter_bytes: int) -> str:
        self.loaded.append((image, entry, parameter_bytes))
        return entry

    def allow_shared(self, function: Any, shared_bytes: int) -> None:
        raise AssertionError("no operation uses dynamic shared memory")

    def launch(self, *arguments: Any) -> None:
        self.launched.append(arguments)


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[FrameOps, RecordingDriver]]:
    monkeypatch.setattr(frame_ops, "compile_cubin", lambda capability, source: f"{source.name} {capability}".encode())
    driver = RecordingDriver()
    yield FrameOps(driver), driver


@pytest.mark.parametrize(("operation", "change"), BAD)
def test_bad_arguments_are_refused(recording: tuple[FrameOps, RecordingDriver], operation: str, change: dict[str, Any]) -> None:
    ops, driver = recording
    with pytest.raises(PromptError, match=r"expected .*, got "):
        getattr(ops, operation)(**{**FINE[operation], **change}, stream=STREAM)
    assert driver.launched == []


@pytest.mark.parametrize("operation", FINE)
def test_launches_on_the_given_stream(recording: tuple[FrameOps, RecordingDriver], operation: str) -> None:
    ops, driver = recording
    getattr(ops, operation)(**FINE[operation], stream=STREAM)
    assert len(driver.launched) == (2 if operation == "resize" else 1)
    for function, grid, block, shared_bytes, stream, parameters in driver.launched:
        assert stream is STREAM and shared_bytes == 0
        assert block[0] in (64, 256) and block[1:] == (1, 1) and grid[0] >= 1 and 1 <= grid[1] <= 65535
        assert len(parameters) == struct.calcsize(PARAMETERS[function.removeprefix("fastsam2_")])


def test_every_kernel_is_loaded_from_the_compiled_source(recording: tuple[FrameOps, RecordingDriver]) -> None:
    loaded = [(b"frame_ops.cu (8, 7)", f"fastsam2_{name}", struct.calcsize(layout)) for name, layout in PARAMETERS.items()]
    assert recording[1].loaded == loaded


def test_blocks_are_no_larger_than_the_kernels_are_compiled_for() -> None:
    header = FRAME_OPS_SOURCE.with_suffix(".h").read_text(encoding="utf-8")
    limit = re.search(r"FASTSAM2_FRAME_OPS_THREADS = (\d+)", header)
    assert limit is not None and frame_ops.CELL_THREADS <= frame_ops.THREADS == int(limit[1])


def test_nvrtc_builds_every_operation() -> None:
    needs_nvrtc()
    cubin = compile_cubin((8, 9), FRAME_OPS_SOURCE)
    assert all(f".text.fastsam2_{name}".encode() in cubin for name in PARAMETERS)
