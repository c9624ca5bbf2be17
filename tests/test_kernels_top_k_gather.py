"""The CUDA source, run on the CPU by `kernel_host`, against the numpy definition."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from fastsam2.errors import PromptError
from fastsam2.kernels.reference import top_k_gather
from fastsam2.kernels.top_k_gather import THREADS, TopKGather
from tests.kernel_host.harness import (
    COMPILER,
    CUDA_ERRORS,
    NO_COMPILER,
    SANITIZE,
    SCORE_TYPES,
    HostKernel,
    Order,
    address_sanitizer,
    compile_library,
    run_python,
)

pytestmark = pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER)

BARRIERS = {"float32": 4 * 3 + 2, "float16": 2 * 3 + 2}  # three a radix pass, two in the listing of the kept rows
SPECIAL = (np.nan, -np.nan, -np.inf, np.inf, 0.0, -0.0, 1.0, -1.0, 6e-8, -6e-8, 65504.0)
SCORE_KINDS = ("distinct", "bytes", "ties", "special", "constant", "nan")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_library(tmp_path_factory.mktemp("kernel") / "top_k_gather.so")


@pytest.fixture(scope="module")
def kernel(library: Path) -> HostKernel:
    return HostKernel(library)


@pytest.fixture(autouse=True)
def forward(kernel: HostKernel) -> None:
    kernel.configure()


def make_scores(kind: str, batch: int, n: int, dtype: npt.DTypeLike) -> npt.NDArray[np.floating]:
    rng = np.random.default_rng(n)
    scores = rng.standard_normal((batch, n))
    if kind == "ties":
        scores = np.round(scores)
    if kind == "special":
        scores = rng.choice(np.array(SPECIAL), (batch, n))
    if kind == "constant":
        scores[:] = -3.0
    if kind == "nan":
        scores[:] = np.nan
    if kind == "bytes":  # few values of each byte, so that every radix pass has many keys to tell apart
        quarters = rng.integers(0, 4, (batch, n, np.dtype(dtype).itemsize), np.uint8)
        quarters[:, :, -1] += 0x38
        return quarters.view(dtype)[:, :, 0]
    return scores.astype(dtype)


def make_rows(batch: int, n: int, row_bytes: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(n).integers(0, 256, (batch, n, row_bytes), np.uint8)


def assert_equals_reference(
    kernel: HostKernel, scores: npt.NDArray[np.floating], rows: npt.NDArray[np.uint8], k: int, **layout: int
) -> None:
    kept, index = kernel.gather(scores, rows, k, **layout)
    expected_rows, expected_index = top_k_gather(scores, rows, k)
    np.testing.assert_array_equal(index, expected_index)
    np.testing.assert_array_equal(kept, expected_rows)


@pytest.mark.parametrize("dtype", SCORE_TYPES)
@pytest.mark.parametrize("kind", SCORE_KINDS)
@pytest.mark.parametrize("n", [1, 2, 31, 257, 1021])
def test_equals_the_reference(kernel: HostKernel, n: int, kind: str, dtype: str) -> None:
    scores, rows = make_scores(kind, 2, n, dtype), make_rows(2, n, 32)
    for k in sorted({0, 1, n // 3, n - 1, n}):
        assert_equals_reference(kernel, scores, rows, k)


@pytest.mark.parametrize(("n", "dtype", "ks"), [(4096, "float32", (205, 4096)), (4096, "float16", (1,)), (16384, "float32", (820,)),
                                                (16384, "float16", (16384,))])  # fmt: skip
def test_large_frames(kernel: HostKernel, n: int, dtype: str, ks: tuple[int, ...]) -> None:
    scores, rows = make_scores("ties", 1, n, dtype), make_rows(1, n, 16)
    for k in ks:
        assert_equals_reference(kernel, scores, rows, k)


@pytest.mark.parametrize("distance", [0, 8, 16, 24])
def test_scores_that_differ_in_one_byte(kernel: HostKernel, distance: int) -> None:
    """Each radix pass decides once."""
    bits = 0x3F800000 ^ (np.random.default_rng(distance).permutation(200).astype(np.uint32) << np.uint32(distance))
    assert_equals_reference(kernel, bits.view(np.float32)[None], make_rows(1, 200, 16), 77)


@pytest.mark.parametrize("dtype", SCORE_TYPES)
def test_every_half_is_ranked_as_the_reference_ranks_it(kernel: HostKernel, dtype: str) -> None:
    """All 65536 bit patterns of a half, in pieces that fit."""
    halves = np.random.default_rng(0).permutation(np.arange(65536, dtype=np.uint16)).view(np.float16)
    for piece in halves.reshape(16, 4096):
        with np.errstate(invalid="ignore"):
            scores = piece[None].astype(dtype)
        assert_equals_reference(kernel, scores, make_rows(1, 4096, 16), 100)


@pytest.mark.parametrize(("row_bytes", "gap", "slots", "batch"), [(16, 0, 1, 1), (16, 16, 3, 2), (128, 48, 2, 3), (496, 0, 7, 2)])
def test_pitched_slot_of_a_bank(kernel: HostKernel, row_bytes: int, gap: int, slots: int, batch: int) -> None:
    scores = make_scores("distinct", batch, 300, "float32")
    assert_equals_reference(kernel, scores, make_rows(batch, 300, row_bytes), 141, gap=gap, slots=slots)


def test_source_and_destination_may_interleave_in_one_bank(kernel: HostKernel) -> None:
    """Frame 0 of every object's ring is compacted into slot 2 of the same ring."""
    bank = np.random.default_rng(0).integers(0, 256, (3, 4, 64, 16), np.uint8)
    aligned = np.zeros(bank.nbytes + 16, np.uint8)
    start = -aligned.ctypes.data % 16
    ring = aligned[start : start + bank.nbytes].reshape(bank.shape)
    ring[:] = bank
    scores, index = make_scores("distinct", 3, 64, "float32"), np.zeros((3, 20), np.int32)
    entry, slot = ring.strides[:2]
    call = TopKGather(
        scores=scores.ctypes.data, rows=ring.ctypes.data, kept=ring.ctypes.data + 2 * slot, index=index.ctypes.data,
        batch=3, n=64, k=20, row_bytes=16, rows_batch_stride=entry, kept_batch_stride=entry,
    )  # fmt: skip
    assert kernel.run(call.parameters, 0) == 0
    bank[:, 2, :20], expected = top_k_gather(scores, bank[:, 0], 20)
    np.testing.assert_array_equal(index, expected)
    np.testing.assert_array_equal(ring, bank)


def test_entries_may_share_scores_and_rows(kernel: HostKernel) -> None:
    scores, rows = make_scores("distinct", 1, 50, "float32"), make_rows(1, 50, 16)
    source = np.zeros(rows.nbytes + 16, np.uint8)
    offset = -source.ctypes.data % 16
    source[offset : offset + rows.nbytes] = rows.reshape(-1)
    kept, index = np.zeros((2 * 9 * 16 + 16,), np.uint8), np.zeros((2, 9), np.int32)
    first = -kept.ctypes.data % 16
    call = TopKGather(
        scores=scores.ctypes.data, rows=source.ctypes.data + offset, kept=kept.ctypes.data + first, index=index.ctypes.data,
        batch=2, n=50, k=9, row_bytes=16, scores_batch_stride=0, rows_batch_stride=0,
    )  # fmt: skip
    assert kernel.run(call.parameters, 0) == 0
    expected_rows, expected_index = top_k_gather(scores, rows, 9)
    np.testing.assert_array_equal(index, np.repeat(expected_index, 2, 0))
    np.testing.assert_array_equal(kept[first : first + 2 * 9 * 16].reshape(2, 9, 16), np.repeat(expected_rows, 2, 0))


@pytest.mark.parametrize("dtype", SCORE_TYPES)
def test_any_order_of_threads_gives_the_same_bits(kernel: HostKernel, dtype: str) -> None:
    scores, rows = make_scores("ties", 1, 1500, dtype), make_rows(1, 1500, 16)
    for order, seed in ((Order.FORWARD, 0), (Order.FORWARD, 1), (Order.BACKWARD, 2), (Order.SHUFFLED, 3), (Order.SHUFFLED, 4)):
        kernel.configure(order, seed)
        for k in (3, 64, 200, 333, 600, 1111):
            assert_equals_reference(kernel, scores, rows, k)


def differs_without(kernel: HostKernel, dtype: str, order: Order, barrier: int) -> bool:
    """Whether leaving out a barrier shows: a wrong answer, a refused launch, a crash or a hang, seen from a child process."""
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        scores, rows = make_scores("bytes", 1, 1500, dtype), make_rows(1, 1500, 16)
        kernel.configure(order, 5, barrier)
        right = False
        with suppress(AssertionError):
            kept, index = kernel.gather(scores, rows, 333)
            expected_rows, expected_index = top_k_gather(scores, rows, 333)
            right = np.array_equal(index, expected_index) and np.array_equal(kept, expected_rows)
        os._exit(0 if right else 1)
    return os.waitpid(child, 0)[1] != 0


@pytest.mark.parametrize("dtype", SCORE_TYPES)
def test_no_barrier_is_to_spare(library: Path, dtype: str) -> None:
    """Without any one barrier some order of warps shows the race; a barrier past the last changes nothing."""
    code = f"""
from pathlib import Path
from tests.kernel_host.harness import HostKernel, Order
from tests.test_kernels_top_k_gather import differs_without
kernel = HostKernel(Path({str(library)!r}))
print([any(differs_without(kernel, {dtype!r}, order, barrier) for order in Order) for barrier in range({BARRIERS[dtype] + 1})])
"""
    assert run_python(code) == f"{[True] * BARRIERS[dtype] + [False]}\n"


ARGUMENTS = {
    "scores": 0x1000, "rows": 0x10000, "kept": 0x80000, "index": 0x2000, "batch": 2, "n": 64, "k": 8, "row_bytes": 32,
    "scores_batch_stride": 64, "rows_pitch": 48, "rows_batch_stride": 64 * 48, "kept_pitch": 64, "kept_batch_stride": 8 * 64,
    "index_batch_stride": 8,
}  # fmt: skip
BAD = [
    ({"batch": 0}, "batch"), ({"batch": 65536}, "batch"), ({"n": 0, "k": 0}, "n must"), ({"n": 16385}, "n must"), ({"k": -1}, "k must"),
    ({"k": 65}, "k must"), ({"row_bytes": 0}, "row_bytes"), ({"row_bytes": 24}, "row_bytes"), ({"row_bytes": 1048592}, "row_bytes"),
    ({"scores": 0x1002}, "scores"), ({"scores_batch_stride": -1}, "scores"), ({"rows": 0x10008}, "rows"), ({"rows_pitch": 40}, "rows"),
    ({"rows_pitch": 16}, "rows"), ({"rows_batch_stride": 64 * 48 + 8}, "rows"), ({"rows_batch_stride": -16}, "rows"),
    ({"kept": 0x80004}, "kept"), ({"kept_pitch": 72}, "kept"), ({"kept_pitch": 16}, "kept"), ({"kept_batch_stride": 8 * 64 - 16}, "kept"),
    ({"kept_batch_stride": 8 * 64 + 8}, "kept"), ({"kept_batch_stride": (1 << 40) + 16}, "kept"), ({"index": 0x2002}, "index"),
    ({"index_batch_stride": 7}, "index"), ({"scores": 0}, "null"), ({"rows": 0}, "null"), ({"kept": 0}, "null"), ({"index": 0}, "null"),
    ({"kept": 0x10000}, "share no byte"), ({"kept": 0x10000 + 63 * 48 + 16}, "share no byte"),
    ({"kept": 0x10000 - 7 * 64 - 16}, "share no byte"), ({"kept": 0x10000 + 2 * 64 * 48 - 32}, "share no byte"),
    ({"rows_batch_stride": 0, "kept": 0x10000 + 63 * 48}, "share no byte"),
]  # fmt: skip
FINE = [
    {}, {"k": 0}, {"k": 64, "kept_batch_stride": 64 * 64, "index_batch_stride": 64}, {"n": 16384, "rows_batch_stride": 0, "kept": 0x100000},
    {"k": 0, "kept_batch_stride": 0, "index_batch_stride": 0, "scores": 0, "rows": 0, "kept": 0, "index": 0},
    {"batch": 1, "kept_batch_stride": 0, "index_batch_stride": 0, "kept": 0x10000 + 63 * 48 + 32}, {"scores_batch_stride": 0},
    {"kept": 0x10000 - 2 * 8 * 64 + 32}, {"kept": 0x10000 + 2 * 64 * 48},
    {"rows_batch_stride": 1 << 16, "kept_batch_stride": 1 << 16, "kept": 0x10000 + 63 * 48 + 32},
]  # fmt: skip


def packed(change: dict[str, int]) -> bytes:
    """The C struct, unchecked."""
    raw = object.__new__(TopKGather)
    for name, value in {**ARGUMENTS, "score_dtype": "float32", **change}.items():
        object.__setattr__(raw, name, value)
    return raw.parameters


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_arguments_are_refused_in_c_and_in_python(kernel: HostKernel, change: dict[str, int], message: str) -> None:
    status, _ = kernel.check(packed(change), 0)
    assert 0 < status < CUDA_ERRORS and message in kernel.message(status)
    launched = kernel.launches()[0]
    assert kernel.run(packed(change), 0) == status
    assert kernel.launches()[0] == launched
    with pytest.raises(PromptError, match=r"expected .*, got "):
        TopKGather(**{**ARGUMENTS, **change})


@pytest.mark.parametrize("change", FINE)
@pytest.mark.parametrize("dtype", SCORE_TYPES)
def test_c_and_python_plan_the_same_launch(kernel: HostKernel, dtype: str, change: dict[str, int]) -> None:
    call = TopKGather(**{**ARGUMENTS, **change}, score_dtype=dtype)
    assert call.parameters == packed(change)
    status, plan = kernel.check(call.parameters, SCORE_TYPES[dtype])
    assert status == 0, kernel.message(status)
    assert (plan.grid_x, plan.grid_y) == call.grid
    assert (plan.threads, 1, 1) == call.block
    assert plan.shared_bytes == call.shared_bytes


def test_half_scores_need_less_alignment(kernel: HostKernel) -> None:
    call = TopKGather(**{**ARGUMENTS, "scores": 0x1002}, score_dtype="float16")
    assert kernel.check(call.parameters, SCORE_TYPES["float16"])[0] == 0
    with pytest.raises(PromptError, match="score_dtype"):
        TopKGather(**ARGUMENTS, score_dtype="bfloat16")
    status, _ = kernel.check(call.parameters, 2)
    assert "score type" in kernel.message(status)
    assert "null" in kernel.message(kernel.check(None, 0)[0])
    assert kernel.message(999) == kernel.message(-1) == "unknown status"


def test_one_launch_on_the_given_stream(kernel: HostKernel) -> None:
    scores, index = np.zeros((1, 16384), np.float32), np.zeros(300, np.int32)
    rows, kept = np.zeros(16384 * 16 + 16, np.uint8), np.zeros(300 * 16 + 16, np.uint8)
    at = [-(-array.ctypes.data // 16) * 16 for array in (rows, kept)]
    call = TopKGather(
        scores=scores.ctypes.data, rows=at[0], kept=at[1], index=index.ctypes.data, batch=1, n=16384, k=300, row_bytes=16
    )  # fmt: skip
    before, _ = kernel.launches()
    assert kernel.run(call.parameters, 0, stream=0xABC0) == 0
    count, launch = kernel.launches()
    assert count == before + 1
    assert (tuple(launch.grid), tuple(launch.block), launch.shared_bytes) == ((3, 1, 1), (THREADS, 1, 1), call.shared_bytes)
    assert launch.stream == 0xABC0 and index.tolist() == list(range(300))


def test_nothing_is_launched_for_no_rows(kernel: HostKernel) -> None:
    before, _ = kernel.launches()
    assert kernel.run(packed({"k": 0}), 0) == 0
    assert kernel.launches()[0] == before


def test_under_address_and_undefined_behaviour_sanitizers(tmp_path: Path) -> None:
    """Reads and writes outside arrays or shared memory, misaligned accesses and signed overflow end the process."""
    environment = address_sanitizer()
    library = compile_library(tmp_path / "sanitized.so", *SANITIZE)
    code = f"""
import numpy as np
from pathlib import Path
from tests.kernel_host.harness import HostKernel, Order
from tests.test_kernels_top_k_gather import assert_equals_reference, make_rows, make_scores
kernel = HostKernel(Path({str(library)!r}))
for order in Order:
    kernel.configure(order)
    for dtype, batch, n, k in (("float32", 1, 1, 1), ("float16", 2, 67, 66), ("float32", 1, 600, 129)):
        assert_equals_reference(kernel, make_scores("special", batch, n, dtype), make_rows(batch, n, 48), k, gap=16, slots=2)
print("clean")
"""
    assert run_python(code, **environment) == "clean\n"
