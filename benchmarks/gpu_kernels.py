"""Every operation between the engines, on a GPU, against its definition on the host: bits, neighbouring memory, repetition, milliseconds.

case(host) ─► what is expected        case(GPU), twice ─► the same bits, guard bytes as they were, sources as they were

The device is the one of the GPU loop; only its memory comes from a pool that puts known bytes before and behind each array.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from fastsam2.config import ModelSpec
from fastsam2.enums import ExportTarget
from fastsam2.kernels.drivers import Driver
from fastsam2.kernels.reference import top_k_gather
from fastsam2.kernels.top_k_gather import TopKGather
from fastsam2.runtime.bfloat16 import to_bfloat16
from fastsam2.runtime.device import Reading
from fastsam2.runtime.gpu.array import DeviceArray, Pool
from fastsam2.runtime.gpu.device import GpuDevice
from fastsam2.runtime.gpu.driver import Gpu, PyCudaGpu
from fastsam2.runtime.gpu.engines import Engines
from fastsam2.runtime.host_device import HostDevice

Array = npt.NDArray[Any]
Run = Callable[..., tuple[Any, ...]]
OpenGpu = Callable[[], tuple[Gpu, Driver | None]]

_GUARD_BYTES, _FILLER = 512, 0xA5
_REPEATS = 50
_TANH = 2e-6  # the tanh of a GPU and of numpy differ in their last bits ...
_LEVELS = 0.99  # ... which puts a cell whose probability lies on the border of a level on its other side


@dataclass(frozen=True, slots=True)
class Scale:
    """Sizes of one round of cases.

    Attributes:
        name: for records.
        values: of operations on single values.
        rows, keep: N and K of the gather.
        batch: objects.
        grid: g; cells of pooling and scores are g², logits 4g x 4g.
        dims: D and C of the memory.
        frame: height and width of the video, resized to 16g x 16g.
    """

    name: str
    values: int
    rows: int
    keep: int
    batch: int
    grid: int
    dims: tuple[int, int]
    frame: tuple[int, int]


SCALES = (
    Scale("small", 5, 7, 3, 1, 4, (8, 24), (37, 61)),
    Scale("odd", 100_003, 1009, 211, 3, 26, (12, 36), (271, 487)),  # nothing is a multiple of a block, or of 16 bytes
    Scale("1024 px", 1_048_653, 4096, 205, 2, 64, (64, 256), (1080, 1920)),  # more values than one launch has threads
    Scale("2048 px", 1_048_653, 16384, 820, 2, 128, (64, 256), (1080, 1920)),
)
SMALL = SCALES[:2]


@dataclass(frozen=True, slots=True)
class Case:
    """One operation at one size.

    Attributes:
        name: of the operation.
        inputs: host arrays; put on the device beforehand.
        run: device, inputs on it -> outputs on it.
        atol: largest difference that counts as equal; 0 asks for equal values.
        share: of the elements that have to be equal.
    """

    name: str
    inputs: tuple[Array, ...]
    run: Run
    atol: float = 0.0
    share: float = 1.0


class GuardedPool(Pool):
    """Memory whose every array lies between bytes that nothing may write, and starts as those bytes.

    Args:
        gpu: whose memory.

    Attributes:
        guarding: whether new arrays get guards.
    """

    def __init__(self, gpu: Gpu) -> None:
        super().__init__(gpu)
        self.guarding = True
        self._whole: list[DeviceArray] = []
        self._pattern = gpu.pinned(0)

    def empty(self, shape: Sequence[int], dtype: npt.DTypeLike, purpose: Hashable = None) -> DeviceArray:
        """See `Pool.empty`."""
        if not self.guarding:
            return super().empty(shape, dtype, purpose)
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        whole = super().empty((nbytes + 2 * _GUARD_BYTES,), np.uint8, purpose)
        if len(self._pattern) < whole.nbytes:
            self.gpu.synchronize()  # copies from the present pattern
            self._pattern = self.gpu.pinned(whole.nbytes)
            self._pattern[:] = _FILLER
        self.gpu.upload(whole.address, self._pattern[: whole.nbytes])
        self._whole.append(whole)
        return DeviceArray(whole.block, _GUARD_BYTES, tuple(shape), dtype)

    def intact(self) -> bool:
        """Whether all guards since the last call hold what was put there. Waits for the stream."""
        guards = self.gpu.pinned(2 * _GUARD_BYTES * len(self._whole)).reshape(-1, 2, _GUARD_BYTES)
        for (before, behind), whole in zip(guards, self._whole, strict=True):
            self.gpu.download(before, whole.address)
            self.gpu.download(behind, whole.address + whole.nbytes - _GUARD_BYTES)
        self.gpu.synchronize()
        self._whole.clear()
        return bool((guards == _FILLER).all())


class GuardedDevice(GpuDevice):
    """The device of the GPU loop on guarded memory, with what the loop does not ask for: other types and batches.

    Args:
        gpu: memory, copies and the stream.
        driver: launches kernels; pycuda when None.
    """

    pool: GuardedPool

    def __init__(self, gpu: Gpu, driver: Driver | None) -> None:
        super().__init__(gpu, cast(Engines, SimpleNamespace(target=ExportTarget.TENSORRT)), driver)  # memory with a bias
        self.pool = GuardedPool(gpu)

    def fill(self, shape: tuple[int, ...], value: np.generic) -> DeviceArray:
        """A constant, written anew."""
        target = self.pool.empty(shape, value.dtype)
        self._ops.fill(target=target.address, value=value.tobytes(), n=math.prod(shape), stream=self._stream())
        return target

    def gather(self, rows: DeviceArray, scores: DeviceArray, keep: int) -> tuple[DeviceArray, DeviceArray]:
        """Rows [B, N, D] and scores float16 or float32 [B, N] -> rows [B, keep, D] and index int32 [B, keep]."""
        batch, n, width = rows.shape
        kept, index = self.pool.empty((batch, keep, width), rows.dtype), self.pool.empty((batch, keep), np.int32)
        call = TopKGather(
            scores=scores.address,
            rows=rows.address,
            kept=kept.address,
            index=index.address,
            batch=batch,
            n=n,
            k=keep,
            row_bytes=width * rows.dtype.itemsize,
            score_dtype=scores.dtype.name,
        )
        self._gather.launch(call, self._stream())
        return kept, index


class Oracle(HostDevice):
    """The definition of every operation."""

    def fill(self, shape: tuple[int, ...], value: np.generic) -> Array:
        """See `GuardedDevice.fill`."""
        return np.full(shape, value)

    def gather(self, rows: Array, scores: Array, keep: int) -> tuple[Array, Array]:
        """See `GuardedDevice.gather`."""
        return top_k_gather(scores, rows, keep)


def cases(scale: Scale) -> list[Case]:
    """Every operation at one scale, on seeded inputs."""
    random = np.random.default_rng(scale.rows)
    n, grid, side, batch = scale.rows, scale.grid, 4 * scale.grid, scale.batch
    values = (random.standard_normal(scale.values) * 40).astype(np.float32)
    values[:5] = [np.nan, np.inf, -np.inf, -0.0, 32]
    any_bits = random.integers(0, 1 << 32, scale.values, np.uint32).view(np.float32)
    scores = np.round(random.standard_normal((batch, n)), 1).astype(np.float32)  # many are equal
    scores[:, n // 2] = np.nan
    rows = random.integers(0, 1 << 16, (batch, n, 64), np.uint16)
    cells = to_bfloat16(random.standard_normal((grid * grid, scale.dims[0])).astype(np.float32))
    frame = random.integers(0, 256, (*scale.frame, 3), np.uint8)
    logits = (random.standard_normal((batch, side, side)) * 4).astype(np.float32)
    decided = np.where(logits > 0, np.float32(30), np.float32(-30))  # every tanh is 1 or -1
    found = [
        Case("clamp", (values,), lambda d, v: (d.clamp(v, 32.0),)),
        Case("round_bfloat16", (any_bits,), lambda d, v: (d.to_bfloat16(v),)),
        Case("fill_words", (), lambda d: (d.fill((scale.values,), np.float32(-1024.5)),)),
        Case("fill_bytes", (), lambda d: (d.fill((scale.values,), np.True_),)),
        Case("copy", (values,), lambda d, v: (d.copy(v),)),
        Case("top_k_gather", (rows[0], scores[0]), lambda d, r, s: d.top_k_gather(r, s, scale.keep)),
        Case("top_k_gather of a batch", (rows, scores), lambda d, r, s: d.gather(r, s, scale.keep)),
        Case("top_k_gather by float16", (rows, scores.astype(np.float16)), lambda d, r, s: d.gather(r, s, scale.keep)),
        Case("pool_2x2", (cells,), lambda d, r: (d.pool_2x2(r, grid),)),
        _read_memory(scale, random),
        Case("resize", (frame,), lambda d, f: (d.pixels(f, 16 * grid),)),
        Case("resize of a tall frame", (frame.swapaxes(0, 1).copy(),), lambda d, f: (d.pixels(f, 16 * grid),)),
        Case("masks", (logits,), lambda d, x: (d.masks(x, scale.frame),)),
        Case("masks of the logits' size", (logits,), lambda d, x: (d.masks(x, (side, side)),)),
        Case("mask_scores", (decided[0],), lambda d, x: (d.mask_scores(x, grid),)),
        Case("uncertainty", (decided,), lambda d, x: (d.uncertainty(x, grid),)),
        Case("uncertainty of soft masks", (logits,), lambda d, x: (d.uncertainty(x, grid),), atol=_TANH),
    ]
    if grid * grid > 1000:
        found.append(Case("mask_scores of soft masks", (logits[0],), lambda d, x: (d.mask_scores(x, grid),), share=_LEVELS))
    return found


def _read_memory(scale: Scale, random: np.random.Generator) -> Case:
    """Each object has two frames, split at another row, and as many pointers."""
    (dim, hidden), pointers = scale.dims, 3
    sizes = {"name": "sizes", "image_size": 64, "hidden_dim": hidden, "memory_dim": dim, "num_maskmem": 7, "max_object_pointers": 16}
    points = {"multimask_min_points": 0, "multimask_max_points": 1, "multimask_for_tracking": True}
    spec = ModelSpec.model_validate({**sizes, **points, "pointer_offsets": True, "signed_pointer_offsets": True})
    inputs: list[Array] = []
    for b in range(scale.batch):
        for count in (b + 1, scale.rows - b - 1):
            inputs.append(to_bfloat16(random.standard_normal((count, dim)).astype(np.float32)))
            inputs.append(random.integers(0, 5000, count, np.int32))
        inputs += [random.standard_normal(hidden).astype(np.float32) for _ in range(pointers)]

    def run(device: Any, *given: Any) -> tuple[Any, ...]:
        take = iter(given)
        readings = [
            Reading(
                tuple((next(take), next(take), age) for age in (6, b)),
                tuple((next(take), np.float32(b + p / 16)) for p in range(pointers)),
            )
            for b in range(scale.batch)
        ]
        read = device.memory_reader(spec)(readings)
        bias = (scale.batch, scale.rows + pointers * spec.pointer_tokens)
        names = ("memory", "position", "age", "pointers", "pointer_offset")
        return (*(read[name] for name in names), read["memory_bias"] if "memory_bias" in read else device.fill(bias, np.float32(0)))

    return Case("read_memory", tuple(inputs), run)


def check_case(device: GuardedDevice, case: Case, *, repeats: int = _REPEATS) -> dict[str, Any]:
    """Runs one case on a GPU.

    Args:
        device: on that GPU.
        case: what.
        repeats: launches between two waits that are timed; 0 times nothing.

    Returns:
        "ok", and what it is made of: "equal" (share of elements), "difference" (largest), "repeats" (equal bits twice), "inside" (no
        guard byte changed), "sources" (inputs as they were); "ms" of one call with all it enqueues.
    """
    wanted = case.run(Oracle(), *case.inputs)
    given = [device.put(array) for array in case.inputs]
    answers, inside = [], True
    for _ in range(2):
        outputs = case.run(device, *given)
        inside &= device.pool.intact()
        answers.append(device.fetch(*outputs))
    sources = all(_bits(a) == _bits(b) for a, b in zip(device.fetch(*given), case.inputs, strict=True))
    equal = [_equal(have, want, case.atol) for have, want in zip(answers[0], wanted, strict=True)]
    share = float(np.mean(np.concatenate([e.reshape(-1) for e in equal])))
    found: dict[str, Any] = {
        "equal": share,
        "difference": max(_difference(have, want) for have, want in zip(answers[0], wanted, strict=True)),
        "repeats": all(_bits(a) == _bits(b) for a, b in zip(*answers, strict=True)),
        "inside": inside,
        "sources": sources,
    }
    found["ok"] = share >= case.share and found["repeats"] and inside and sources
    if repeats:
        found["ms"] = _milliseconds(device, case.run, given, repeats)
    return found


def check_kernels(
    *, scales: Sequence[Scale] = SCALES, repeats: int = _REPEATS, open_gpu: OpenGpu = lambda: (PyCudaGpu(), None)
) -> dict[str, Any]:
    """Runs every case; each is written to stderr as it ends.

    Args:
        scales: sizes.
        repeats: as in `check_case`.
        open_gpu: makes the GPU, and what launches kernels there (None for pycuda).

    Returns:
        "ok" and "cases", {operation, size: as in `check_case`}.

    Raises:
        BackendError: if the GPU or the compiler of kernels is missing, or a launch fails, which ends the context.
    """
    gpu, driver = open_gpu()
    try:
        device = GuardedDevice(gpu, driver)
        found: dict[str, Any] = {}
        for scale in scales:
            for case in cases(scale):
                name = f"{case.name}, {scale.name}"
                print(f"{name}: started", file=sys.stderr, flush=True)
                found[name] = check_case(device, case, repeats=repeats)
                print(f"{name}: {json.dumps(found[name])}", file=sys.stderr, flush=True)
        device.close()
    finally:
        gpu.close()
    return {"ok": all(entry["ok"] for entry in found.values()), "cases": found}


def _milliseconds(device: GuardedDevice, run: Run, given: Sequence[Any], repeats: int) -> float:
    device.pool.guarding = False
    try:
        run(device, *given)
        device.gpu.synchronize()
        start = time.perf_counter()
        for _ in range(repeats):
            run(device, *given)
        device.gpu.synchronize()
        return (time.perf_counter() - start) * 1e3 / repeats
    finally:
        device.pool.guarding = True
        device.fetch()  # page-locked memory of the copies is free again


def _bits(array: Array) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def _equal(have: Array, want: Array, atol: float) -> npt.NDArray[np.bool_]:
    """Per element; NaN equals the same NaN."""
    if have.shape != want.shape or have.dtype != want.dtype:
        return np.zeros(1, np.bool_)
    if atol:
        return np.asarray(np.abs(have - want) <= atol)
    bits = f"u{have.dtype.itemsize}"
    same = np.ascontiguousarray(have).view(bits) == np.ascontiguousarray(want).view(bits)
    return np.asarray(same | (have == want))


def _difference(have: Array, want: Array) -> float:
    """Largest difference of finite values; infinite between shapes or types."""
    if have.shape != want.shape or have.dtype != want.dtype:
        return math.inf
    a, b = have.astype(np.float64), want.astype(np.float64)
    both = np.isfinite(a) & np.isfinite(b)
    return float(np.abs(a[both] - b[both]).max(initial=0.0))
