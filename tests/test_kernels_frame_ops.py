"""The CUDA source of the operations between the engines, run on the CPU by `kernel_host`, against Pillow and the host device."""

from __future__ import annotations

import ctypes
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from fastsam2.errors import BackendError
from fastsam2.kernels.frame_ops import MAX_BLOCKS, PARAMETERS, THREADS, FrameOps
from fastsam2.kernels.frame_tables import FrameRows, MemoryTable, Pointer, lerp_table, memory_table, resize_tables
from fastsam2.kernels.launch import TopKGatherKernel
from fastsam2.kernels.pillow_order import rows_first
from fastsam2.kernels.reference import top_k_gather
from fastsam2.kernels.top_k_gather import TopKGather
from fastsam2.runtime.bfloat16 import to_bfloat16
from fastsam2.runtime.device import Reading
from fastsam2.runtime.host_device import HOST
from fastsam2.runtime.policies.mask import mask_scores
from fastsam2.runtime.postprocess import interpolation, masks_from_logits
from fastsam2.runtime.uncertainty import uncertainty
from fastsam2.spread import uniform_scores
from tests.kernel_host.driver import HostDriver, compile_kernels
from tests.kernel_host.harness import COMPILER, NO_COMPILER, SANITIZE, Order, Tensor, address_sanitizer, compile_library, run_python

pytestmark = pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER)

STREAM = object()
MORE_THAN_THREADS = MAX_BLOCKS * THREADS + 77
Array = npt.NDArray[Any]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_kernels(tmp_path_factory.mktemp("kernels") / "kernels.so")


@pytest.fixture(scope="module", params=[Order.FORWARD, Order.BACKWARD], ids=["forward", "backward"])
def driver(library: Path, request: pytest.FixtureRequest) -> HostDriver:
    """Both orders of threads, so that a thread that reads what another one writes shows."""
    driver = HostDriver(library)
    driver.configure(request.param)
    return driver


@pytest.fixture
def ops(driver: HostDriver) -> FrameOps:
    driver.launches.clear()
    return FrameOps(driver)


def given(array: Array) -> Array:
    """A 16-byte aligned copy."""
    array = np.ascontiguousarray(array)
    tensor = Tensor.allocate(array.nbytes)
    copy = tensor.view(array.shape, array.strides, array.dtype)
    copy[...] = array
    return copy


class Out:
    """An aligned destination with known bytes around it."""

    def __init__(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        empty = np.empty(shape, dtype)
        self._tensor, self._nbytes = Tensor.allocate(empty.nbytes), empty.nbytes
        self.address = self._tensor.address
        self.array = self._tensor.view(shape, empty.strides, dtype)

    def result(self) -> Array:
        memory, first = self._tensor.memory, self.address - self._tensor.memory.ctypes.data
        outside = np.concatenate([memory[:first], memory[first + self._nbytes :]])
        assert (outside == Tensor.FILLER).all(), "a byte outside the destination was written"
        return self.array


def at(array: Array) -> int:
    return array.ctypes.data


def entries(driver: HostDriver) -> list[str]:
    return [launch.entry.removeprefix("fastsam2_") for launch in driver.launches]


def resized(ops: FrameOps, frame: Array, size: int, *, by_rows: bool) -> Array:
    height, width = frame.shape[:2]
    source, pixels = given(frame), Out((3, size, size), np.uint8)
    scratch = Out((size, width, 3) if by_rows else (height, size, 3), np.uint8)
    columns, rows = ([given(table) for table in resize_tables(extent, size)] for extent in (width, height))
    ops.resize(
        frame=at(source), height=height, width=width, size=size, column_bounds=at(columns[0]), column_weights=at(columns[1]),
        row_bounds=at(rows[0]), row_weights=at(rows[1]), scratch=scratch.address, pixels=pixels.address, rows_first=by_rows, stream=STREAM,
    )  # fmt: skip
    scratch.result()
    return pixels.result()


FRAMES = [
    (1, 1, 16),
    (37, 61, 64),
    (64, 64, 64),
    (33, 32, 32),
    (32, 50, 32),
    (3, 500, 16),
    (500, 3, 16),
    (120, 90, 33),
    (270, 480, 320),
    (700, 300, 250),
]


def pillow(frame: Array, size: int) -> Array:
    return np.asarray(Image.fromarray(frame).resize((size, size), Image.Resampling.BICUBIC)).transpose(2, 0, 1)


@pytest.mark.parametrize(("height", "width", "size"), FRAMES)
@pytest.mark.parametrize("kind", ["noise", "extremes"])
def test_resize_gives_the_bits_of_pillow(ops: FrameOps, driver: HostDriver, height: int, width: int, size: int, kind: str) -> None:
    frame = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    if kind == "extremes":  # overshoots at every edge, so that sums are clipped at both ends
        frame = np.where(frame > 127, np.uint8(255), np.uint8(0))
    by_rows = rows_first(height, width, size)
    np.testing.assert_array_equal(resized(ops, frame, size, by_rows=by_rows), pillow(frame, size))
    passes = ["resize_columns", "resize_rows"]
    assert entries(driver) == (passes[::-1] if by_rows else passes)


@pytest.mark.parametrize(("height", "width", "size"), [(500, 3, 16), (60, 100, 16)])
def test_order_of_the_passes_shows(ops: FrameOps, height: int, width: int, size: int) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    right = rows_first(height, width, size)
    assert not np.array_equal(resized(ops, frame, size, by_rows=not right), pillow(frame, size))


def test_every_kind_of_float_is_rounded_to_bfloat16(ops: FrameOps, driver: HostDriver) -> None:
    upper = np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    values = given(np.tile((upper[:, None] | lower).view(np.float32).reshape(-1), 3))  # more than there are threads
    bits = Out(values.shape, np.uint16)
    ops.round_bfloat16(values=at(values), bits=bits.address, n=values.size, stream=STREAM)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(bits.result(), to_bfloat16(values))
    assert entries(driver) == ["round_bfloat16"]


def readings(batch: int, dim: int, hidden: int, pointers: int) -> list[Reading]:
    """Objects with 40 rows each, in one to four frames; the positions of whole frames are shared."""
    rng = np.random.default_rng(dim)
    grid = given(np.arange(40, dtype=np.int32))
    answer = []
    for index in range(batch):
        counts = [(40,), (1, 39), (16, 8, 16), (10, 0, 11, 19)][index % 4]
        frames = tuple(
            (
                given(to_bfloat16(rng.standard_normal((count, dim)).astype(np.float32))),
                grid if count == 40 else given(rng.integers(0, 5000, count, np.int32)),
                int(rng.integers(0, 7)),
            )
            for count in counts
        )
        held = tuple((given(rng.standard_normal(hidden).astype(np.float32)), np.float32(rng.random())) for _ in range(pointers))
        answer.append(Reading(frames, held))
    return answer


def packed(objects: list[Reading]) -> MemoryTable:
    frames = [[FrameRows(at(rows), at(position), len(position), age) for rows, position, age in one.frames] for one in objects]
    return memory_table(frames, [[Pointer(at(pointer), float(offset)) for pointer, offset in one.pointers] for one in objects])


@pytest.mark.parametrize(
    ("batch", "dim", "hidden", "pointers"), [(1, 64, 256, 3), (4, 64, 256, 16), (3, 8, 24, 0), (2, 12, 36, 5), (2, 7, 7, 1)]
)
@pytest.mark.parametrize("biased", [True, False])
def test_memory_is_read(ops: FrameOps, driver: HostDriver, batch: int, dim: int, hidden: int, pointers: int, biased: bool) -> None:
    objects = readings(batch, dim, hidden, pointers)
    table = packed(objects)
    assert (table.batch, table.rows, table.pointers) == (batch, 40, pointers)
    uploaded = given(table.data)
    shapes = {"memory": (40, dim), "position": (40,), "age": (40,), "pointers": (pointers, hidden), "pointer_offset": (pointers,)}
    outs = {name: Out((batch, *shape), np.int32 if name in ("position", "age") else np.float32) for name, shape in shapes.items()}
    bias = Out((batch, 40 + hidden // dim * pointers), np.float32)
    ops.read_memory(
        table=at(uploaded), layout=table, dim=dim, hidden=hidden, memory_bias=bias.address if biased else 0, stream=STREAM,
        **{name: out.address for name, out in outs.items()},
    )  # fmt: skip
    expected = HOST.memory_reader(SimpleNamespace(memory_dim=dim, hidden_dim=hidden))(objects)  # type: ignore[arg-type]
    for name, out in outs.items():
        np.testing.assert_array_equal(out.result(), expected[name], err_msg=name)
    assert (bias.result() == 0).all() if biased else (bias.result().view(np.uint8) == Tensor.FILLER).all()
    assert entries(driver) == ["read_memory"]


@pytest.mark.parametrize(("grid", "dim"), [(2, 8), (6, 64), (16, 5), (32, 64)])
def test_cells_are_pooled(ops: FrameOps, driver: HostDriver, grid: int, dim: int) -> None:
    rng = np.random.default_rng(grid)
    values = rng.standard_normal((grid * grid, dim)) * 10.0 ** rng.integers(-4, 5, (grid * grid, dim))
    values[[0, 1, grid, grid + 1]] = -0.0
    values[1, 0], values[0, 1], values[grid, 2] = np.nan, np.inf, 3e38
    rows, pooled = given(to_bfloat16(values.astype(np.float32))), Out((grid * grid // 4, dim), np.uint16)
    ops.pool_2x2(rows=at(rows), pooled=pooled.address, grid=grid, dim=dim, stream=STREAM)
    np.testing.assert_array_equal(pooled.result(), HOST.pool_2x2(rows, grid))
    assert entries(driver) == ["pool_2x2"]


def decided_logits(grid: int) -> Array:
    """Discs, bars and specks of ±30, which every tanh takes to exactly ±1: in corners, on edges, one logit wide, and nothing at all."""
    side = 4 * grid
    y, x = np.mgrid[:side, :side]
    shapes = [(y - side * 0.4) ** 2 + (x - side * 0.6) ** 2 < (side * 0.3) ** 2, (y < 3) | (x == side - 1), (x + 3 * y) % 7 == 0, x < 0]
    return np.where(np.stack(shapes), np.float32(30), np.float32(-30))


def soft_logits(batch: int, grid: int) -> Array:
    """Smooth blobs with noise: every level and every probability."""
    rng = np.random.default_rng(grid)
    coarse = np.kron(rng.standard_normal((batch, grid // 4, grid // 4)), np.ones((16, 16)))
    return (4 * coarse + rng.standard_normal(coarse.shape)).astype(np.float32)


def scored(ops: FrameOps, logits: Array, grid: int) -> Array:
    source, order = given(logits), given(uniform_scores(grid))
    scores = Out((len(logits), grid * grid), np.float32)
    ops.mask_scores(logits=at(source), order=at(order), scores=scores.address, batch=len(logits), grid=grid, stream=STREAM)
    return scores.result()


@pytest.mark.parametrize("grid", [4, 9, 32])
def test_masks_give_scores(ops: FrameOps, driver: HostDriver, grid: int) -> None:
    logits = decided_logits(grid)
    np.testing.assert_array_equal(scored(ops, logits, grid), np.stack([mask_scores(one, grid) for one in logits]))
    assert entries(driver) == ["mask_scores"]


def test_soft_masks_give_scores_but_where_tanh_meets_a_level(ops: FrameOps) -> None:
    """The tanh of this C library, of numpy and of a GPU differ in the last bit."""
    logits = soft_logits(8, 32)
    expected = np.stack([mask_scores(one, 32) for one in logits])
    equal = scored(ops, logits, 32) == expected
    assert equal.mean() >= 0.999
    assert len(np.unique(expected // 1024)) > 20, "the logits reach most levels"


@pytest.mark.parametrize("grid", [4, 9, 32])
def test_uncertainty_of_cells(ops: FrameOps, driver: HostDriver, grid: int) -> None:
    for logits, tolerance in ((decided_logits(grid), 0.0), (soft_logits(3, 32)[:, : 4 * grid, : 4 * grid], 1e-6)):
        source, values = given(logits), Out((len(logits), grid * grid), np.float32)
        ops.uncertainty(logits=at(source), values=values.address, batch=len(logits), grid=grid, stream=STREAM)
        np.testing.assert_allclose(values.result(), uncertainty(logits, grid), rtol=0, atol=tolerance)
    assert entries(driver) == ["uncertainty"] * 2


def masked(ops: FrameOps, logits: Array, height: int, width: int) -> Array:
    batch, side, _ = logits.shape
    source, masks = given(logits), Out((batch, height, width), np.uint8)
    extents = {} if (height, width) == (side, side) else {"rows": height, "columns": width}
    tables = {name: given(lerp_table(*interpolation(side, extent))) for name, extent in extents.items()}
    addresses = {name: at(table) for name, table in tables.items()}
    ops.masks(logits=at(source), masks=masks.address, batch=batch, side=side, height=height, width=width, **addresses, stream=STREAM)
    return masks.result()


@pytest.mark.parametrize(
    ("side", "height", "width"), [(32, 32, 32), (32, 32, 33), (32, 270, 481), (64, 20, 30), (16, 1, 1), (128, 480, 854)]
)
def test_masks_at_video_resolution(ops: FrameOps, driver: HostDriver, side: int, height: int, width: int) -> None:
    rng = np.random.default_rng(side)
    logits = rng.standard_normal((3, side, side)).astype(np.float32)
    logits[1] = np.where(rng.random((side, side)) < 0.5, np.float32(0), logits[1])  # sums that are exactly 0
    logits[2] = -1024
    np.testing.assert_array_equal(masked(ops, logits, height, width), masks_from_logits(logits, (height, width)))
    assert entries(driver) == ["masks"]


def test_masks_round_every_product(ops: FrameOps) -> None:
    """0.75 b and 0.25 (-3 b), each rounded, cancel; with the first one exact, as a fused multiply-add has it, something is left."""
    logits = np.random.default_rng(0).standard_normal((1, 32, 32)).astype(np.float32)
    logits[..., 1::2] = np.float32(-3) * logits[..., ::2]
    exact = 0.75 * logits[..., ::2].astype(np.float64) + 0.25 * logits[..., 1::2]
    expected = masks_from_logits(logits, (32, 64))
    assert (exact > 0).mean() > 0.2 and not expected[..., 1::4].any()
    np.testing.assert_array_equal(masked(ops, logits, 32, 64), expected)


def test_values_are_clamped_in_place(ops: FrameOps, driver: HostDriver) -> None:
    values = np.random.default_rng(0).standard_normal(MORE_THAN_THREADS).astype(np.float32) * 40
    values[:9] = [np.nan, -np.nan, np.inf, -np.inf, 32, -32, -0.0, 0.0, np.nextafter(np.float32(32), np.float32(33))]
    out = Out(values.shape, np.float32)
    out.array[:] = values
    ops.clamp(values=out.address, clamped=out.address, n=values.size, limit=32.0, stream=STREAM)
    np.testing.assert_array_equal(out.result().view(np.uint32), np.clip(values, -32, 32).view(np.uint32))
    assert entries(driver) == ["clamp"]


@pytest.mark.parametrize("n", [1, 255, MORE_THAN_THREADS])
@pytest.mark.parametrize("value", [np.float32(-1024.5), np.int32(-1), np.True_, np.uint8(200)])
def test_constants_are_written(ops: FrameOps, driver: HostDriver, value: np.generic, n: int) -> None:
    out = Out((n,), value.dtype)
    ops.fill(target=out.address, value=value.tobytes(), n=n, stream=STREAM)
    assert (out.result() == value).all()
    assert entries(driver) == ["fill_words" if value.itemsize == 4 else "fill_bytes"]


def test_nothing_is_launched_for_no_values(ops: FrameOps, driver: HostDriver) -> None:
    ops.round_bfloat16(values=0, bits=0, n=0, stream=STREAM)
    ops.clamp(values=0, clamped=0, n=0, limit=1.0, stream=STREAM)
    ops.fill(target=0, value=b"\0", n=0, stream=STREAM)
    assert driver.launches == []


@pytest.mark.parametrize(("n", "k"), [(300, 41), (16384, 3)])
def test_top_k_gather_runs_through_the_host_driver(driver: HostDriver, n: int, k: int) -> None:
    rng = np.random.default_rng(n)
    scores, rows = given(np.round(rng.standard_normal((1, n)), 1).astype(np.float32)), given(rng.integers(0, 256, (1, n, 16), np.uint8))
    kept, index = Out((1, k, 16), np.uint8), Out((1, k), np.int32)
    call = TopKGather(scores=at(scores), rows=at(rows), kept=kept.address, index=index.address, batch=1, n=n, k=k, row_bytes=16)
    TopKGatherKernel(driver).launch(call, STREAM)
    for out, expected in zip((kept, index), top_k_gather(scores, rows, k), strict=True):
        np.testing.assert_array_equal(out.result(), expected)


def test_host_driver_says_what_it_cannot_launch(driver: HostDriver) -> None:
    function = driver.find("fastsam2_clamp", struct.calcsize(PARAMETERS["clamp"]))
    for grid, block, shared_bytes in (((0, 1), 32, 0), ((1, 65536), 32, 0), ((1, 1), 48, 0), ((1, 1), 512, 0), ((1, 1), 32, 16)):
        with pytest.raises(BackendError, match=r"the host to launch fastsam2_clamp, got invalid argument"):
            driver.launch(function, grid, (block, 1, 1), shared_bytes, STREAM, bytes(32))
    with pytest.raises(AssertionError, match="no kernel fastsam2_nothing"):
        driver.find("fastsam2_nothing", 8)
    with pytest.raises(AssertionError, match="fastsam2_clamp takes 32 bytes, got 24"):
        driver.find("fastsam2_clamp", 24)


WAITING_KERNEL = """
#include <cuda_runtime.h>
struct Args { int ballot; };
void kernel(Args args) {
  if (args.ballot) __ballot_sync(0xffffffffu, true); else __syncthreads();
}
extern "C" int launch(int ballot) { return host::launch_plain(kernel, dim3(1), dim3(32), Args{ballot}, nullptr); }
"""


def test_threads_in_a_loop_must_not_wait_for_each_other(tmp_path: Path) -> None:
    (tmp_path / "waiting.cpp").write_text(WAITING_KERNEL, encoding="utf-8")
    library = ctypes.CDLL(str(compile_library(tmp_path / "waiting.so", source=tmp_path / "waiting.cpp")))
    launch_failure = 719
    assert library.launch(0) == library.launch(1) == launch_failure


def test_under_address_and_undefined_behaviour_sanitizers(tmp_path: Path) -> None:
    """Reads and writes outside arrays, misaligned accesses and signed overflow end the process."""
    environment = address_sanitizer()
    library = compile_kernels(tmp_path / "sanitized.so", *SANITIZE)
    code = f"""
from pathlib import Path
import numpy as np
from tests import test_kernels_frame_ops as t
def given(array):  # nothing lies behind it
    memory = np.empty(max(array.nbytes, 1), np.uint8)
    assert memory.ctypes.data % 16 == 0
    copy = memory[:array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
t.given = given
driver = t.HostDriver(Path({str(library)!r}))
def ops():
    driver.launches.clear()
    return t.FrameOps(driver)
for height, width, size in ((1, 1, 16), (37, 61, 64), (64, 64, 64), (120, 90, 33)):
    t.test_resize_gives_the_bits_of_pillow(ops(), driver, height, width, size, "extremes")
for batch, dim, hidden, pointers in ((4, 64, 256, 3), (2, 7, 7, 1), (3, 8, 24, 0)):
    t.test_memory_is_read(ops(), driver, batch, dim, hidden, pointers, True)
t.test_cells_are_pooled(ops(), driver, 6, 8)
t.test_masks_give_scores(ops(), driver, 9)
t.test_uncertainty_of_cells(ops(), driver, 9)
for size in ((32, 32), (100, 33), (7, 5)):
    t.test_masks_at_video_resolution(ops(), driver, 32, *size)
t.test_constants_are_written(ops(), driver, np.float32(3), 255)
print("clean")
"""
    assert run_python(code, **environment) == "clean\n"
