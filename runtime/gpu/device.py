"""The device that is a GPU: what a tracker does with its arrays, as kernels and copies on one stream.

put, pixels ─ page-locked memory ─► device arrays ─ kernels, engines ─► device arrays ─ fetch: one wait ─► host arrays
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from fastsam2.config import ModelSpec
from fastsam2.enums import ExportTarget, GraphRole
from fastsam2.kernels.drivers import Driver
from fastsam2.kernels.frame_ops import FrameOps
from fastsam2.kernels.frame_tables import FrameRows, Pointer, lerp_table, memory_table, resize_tables
from fastsam2.kernels.launch import TopKGatherKernel
from fastsam2.kernels.pillow_order import rows_first
from fastsam2.kernels.top_k_gather import TopKGather
from fastsam2.runtime.device import MemoryReader, Reading, Tensor
from fastsam2.runtime.gpu.array import DeviceArray, Pool, Staging
from fastsam2.runtime.gpu.driver import Gpu
from fastsam2.runtime.gpu.engines import Engines
from fastsam2.runtime.gpu.uploads import FrameUploads
from fastsam2.runtime.postprocess import interpolation
from fastsam2.spread import uniform_scores

_UNSEEN = -1e4  # added to the logits of keys that are not there; half precision holds it
_CONSTANTS = 128  # kept; those used least recently are forgotten first


class GpuDevice:
    """See `Device`. Trackers of one backend share it; not for several threads at once.

    Args:
        gpu: memory, copies and the stream.
        engines: whose limits hold.
        driver: launches kernels; pycuda unless given.

    Raises:
        BackendError: if the kernels do not build for this GPU.
    """

    def __init__(self, gpu: Gpu, engines: Engines, driver: Driver | None = None) -> None:
        self.gpu, self.engines = gpu, engines
        gpu.activate()
        self.pool = Pool(gpu)
        self._ops, self._gather = FrameOps(driver), TopKGatherKernel(driver)
        self._staging = Staging(gpu)
        self._constants: OrderedDict[Hashable, DeviceArray] = OrderedDict()

    def max_objects(self, role: GraphRole) -> int | None:
        """See `Device.max_objects`."""
        return self.engines.max_objects(role)

    def max_prompt_frames(self) -> int | None:
        """See `Device.max_prompt_frames`."""
        return self.engines.max_prompt_frames()

    def put(self, array: Tensor) -> DeviceArray:
        """See `Device.put`; a device array stays as it is."""
        if isinstance(array, DeviceArray):
            return array
        source = np.asarray(array)
        staged = self._staging.array(source.shape, source.dtype)
        staged[...] = source
        target = self.pool.empty(source.shape, source.dtype, "put")
        self.gpu.upload(target.address, staged)
        return target

    def fetch(self, *tensors: Tensor | None) -> tuple[Any, ...]:
        """See `Device.fetch`."""
        staged: list[Any] = []
        for tensor in tensors:
            if isinstance(tensor, DeviceArray):
                staged.append(self._staging.array(tensor.shape, tensor.dtype))
                self.gpu.download(staged[-1], tensor.address)
            else:
                staged.append(tensor)
        self.gpu.synchronize()
        self._staging.reset()
        return tuple(s.copy() if isinstance(t, DeviceArray) else s for s, t in zip(staged, tensors, strict=True))

    def full(self, shape: tuple[int, ...], value: float, dtype: npt.DTypeLike) -> DeviceArray:
        """See `Device.full`; made once."""
        word = np.asarray(value, dtype)

        def make() -> DeviceArray:
            target = self.pool.empty(shape, word.dtype, "full")
            self._ops.fill(target=target.address, value=word.tobytes(), n=target.nbytes // word.itemsize, stream=self.gpu.stream)
            return target

        return self._constant(("full", shape, word.tobytes(), word.dtype.str), make)

    def arange(self, start: int, stop: int) -> DeviceArray:
        """See `Device.arange`; uploaded once."""
        return self._constant(("arange", start, stop), lambda: self.put(np.arange(start, stop, dtype=np.int32)))

    def copy(self, tensor: Tensor) -> DeviceArray:
        """See `Device.copy`."""
        return self._joined([self.put(tensor)], tensor.shape, "copy")

    def stack(self, tensors: Sequence[Tensor]) -> DeviceArray:
        """See `Device.stack`; a view where the arrays lie behind each other already."""
        parts = [self.put(t) for t in tensors]
        shape = (len(parts), *parts[0].shape)
        return _in_place(parts, shape) or self._joined(parts, shape, "stack")

    def concatenate(self, tensors: Sequence[Tensor]) -> DeviceArray:
        """See `Device.concatenate`; a view where the arrays lie behind each other already."""
        parts = [self.put(t) for t in tensors]
        shape = (sum(len(p) for p in parts), *parts[0].shape[1:])
        return _in_place(parts, shape) or self._joined(parts, shape, "concatenate")

    def clamp(self, tensor: Tensor, limit: float) -> DeviceArray:
        """See `Device.clamp`."""
        values = self.put(tensor)
        clamped = self.pool.empty(values.shape, np.float32, "clamp")
        self._ops.clamp(values=values.address, clamped=clamped.address, n=values.nbytes // 4, limit=limit, stream=self._stream())
        return clamped

    def to_bfloat16(self, rows: Tensor) -> DeviceArray:
        """See `Device.to_bfloat16`."""
        values = self.put(rows)
        bits = self.pool.empty(values.shape, np.uint16, "rows")
        self._ops.round_bfloat16(values=values.address, bits=bits.address, n=values.nbytes // 4, stream=self._stream())
        return bits

    def top_k_gather(self, rows: Tensor, scores: Tensor, keep: int) -> tuple[DeviceArray, DeviceArray]:
        """See `Device.top_k_gather`."""
        source, order = self.put(rows), self.put(scores)
        (n, width), item = source.shape, source.dtype.itemsize
        kept, index = self.pool.empty((keep, width), source.dtype, "rows"), self.pool.empty((keep,), np.int32, "index")
        call = TopKGather(
            scores=order.address,
            rows=source.address,
            kept=kept.address,
            index=index.address,
            batch=1,
            n=n,
            k=keep,
            row_bytes=width * item,
        )
        self._gather.launch(call, self._stream())
        return kept, index

    def pool_2x2(self, rows: Tensor, grid: int) -> DeviceArray:
        """See `Device.pool_2x2`."""
        source = self.put(rows)
        pooled = self.pool.empty((len(source) // 4, source.shape[1]), np.uint16, "rows")
        self._ops.pool_2x2(rows=source.address, pooled=pooled.address, grid=grid, dim=source.shape[1], stream=self._stream())
        return pooled

    def memory_reader(self, spec: ModelSpec) -> MemoryReader:
        """See `Device.memory_reader`; one upload and one launch."""
        dim, hidden, with_bias = spec.memory_dim, spec.hidden_dim, self.engines.target is ExportTarget.TENSORRT

        def read(readings: Sequence[Reading]) -> dict[str, Tensor]:
            unseen = with_bias and not readings[0].pointers  # engines have no room for none: one that nothing attends to
            frames = [[(self.put(rows), self.put(position), age) for rows, position, age in r.frames] for r in readings]
            pointers = [[(self.put(pointer), offset) for pointer, offset in r.pointers] for r in readings]
            if unseen:
                pointers = [[(self.full((hidden,), 0, np.float32), np.float32(0))] for _ in readings]
            layout = memory_table(
                [[FrameRows(rows.address, position.address, len(position), age) for rows, position, age in own] for own in frames],
                [[Pointer(pointer.address, float(offset)) for pointer, offset in own] for own in pointers],
            )
            table = self.put(layout.data)
            b, m, p = layout.batch, layout.rows, layout.pointers
            inputs = {
                name: self.pool.empty(shape, dtype, name)
                for name, shape, dtype in (
                    ("memory", (b, m, dim), np.float32),
                    ("position", (b, m), np.int32),
                    ("age", (b, m), np.int32),
                    ("pointers", (b, p, hidden), np.float32),
                    ("pointer_offset", (b, p), np.float32),
                    *([("memory_bias", (b, m + p * spec.pointer_tokens), np.float32)] if with_bias and not unseen else []),
                )
            }
            addresses = {name: array.address for name, array in inputs.items()}
            self._ops.read_memory(table=table.address, layout=layout, dim=dim, hidden=hidden, **addresses, stream=self._stream())
            if unseen:
                bias = np.zeros((b, m + spec.pointer_tokens), np.float32)
                bias[:, m:] = _UNSEEN
                inputs["memory_bias"] = self.put(bias)
            return dict(inputs)

        return read

    def frame_uploads(self) -> FrameUploads:
        """See `Device.frame_uploads`."""
        return FrameUploads(self.gpu, self.pool, self._staging)

    def pixels(self, frame: Tensor, size: int) -> DeviceArray:
        """See `Device.pixels`."""
        height, width = frame.shape[:2]
        by_rows = rows_first(height, width, size)
        source, scratch = self.put(frame), self.pool.empty((size, width, 3) if by_rows else (height, size, 3), np.uint8, "scratch")
        pixels = self.pool.empty((1, 3, size, size), np.uint8, "pixels")
        column_bounds, column_weights = self._resize_tables(width, size)
        row_bounds, row_weights = self._resize_tables(height, size)
        self._ops.resize(
            frame=source.address,
            height=height,
            width=width,
            size=size,
            column_bounds=column_bounds.address,
            column_weights=column_weights.address,
            row_bounds=row_bounds.address,
            row_weights=row_weights.address,
            scratch=scratch.address,
            pixels=pixels.address,
            rows_first=by_rows,
            stream=self._stream(),
        )
        return pixels

    def masks(self, logits: Tensor, size: tuple[int, int]) -> DeviceArray:
        """See `Device.masks`."""
        values, (height, width) = self.put(logits), size
        batch, side = values.shape[:2]
        masks = self.pool.empty((batch, height, width), np.bool_, "masks")
        tables = {} if (height, width) == (side, side) else {"rows": self._lerp(side, height), "columns": self._lerp(side, width)}
        self._ops.masks(
            logits=values.address,
            masks=masks.address,
            batch=batch,
            side=side,
            height=height,
            width=width,
            **{name: table.address for name, table in tables.items()},
            stream=self._stream(),
        )
        return masks

    def mask_scores(self, logits: Tensor, grid: int) -> DeviceArray:
        """See `Device.mask_scores`."""
        values, order = self.put(logits), self._constant(("order", grid), lambda: self.put(uniform_scores(grid)))
        scores = self.pool.empty((grid * grid,), np.float32, "scores")
        addresses = {"logits": values.address, "order": order.address, "scores": scores.address}
        self._ops.mask_scores(**addresses, batch=1, grid=grid, stream=self._stream())
        return scores

    def uncertainty(self, logits: Tensor, grid: int) -> DeviceArray:
        """See `Device.uncertainty`."""
        source = self.put(logits)
        values = self.pool.empty((len(source), grid * grid), np.float32, "uncertainty")
        self._ops.uncertainty(logits=source.address, values=values.address, batch=len(source), grid=grid, stream=self._stream())
        return values

    def close(self) -> None:
        """Give memory back; a second call does nothing."""
        self._constants.clear()
        self.pool.close()

    def _stream(self) -> Any:
        """The stream, with the GPU's context current in this thread, as launches need it."""
        self.gpu.activate()
        return self.gpu.stream

    def _constant(self, key: Hashable, make: Callable[[], DeviceArray]) -> DeviceArray:
        found = self._constants.get(key)
        if found is None:
            found = self._constants[key] = make()
            if len(self._constants) > _CONSTANTS:
                self._constants.popitem(last=False)
        self._constants.move_to_end(key)
        return found

    def _resize_tables(self, source: int, size: int) -> tuple[DeviceArray, DeviceArray]:
        def one(which: int) -> DeviceArray:
            return self._constant(("resize", source, size, which), lambda: self.put(resize_tables(source, size)[which]))

        return one(0), one(1)

    def _lerp(self, side: int, size: int) -> DeviceArray:
        return self._constant(("lerp", side, size), lambda: self.put(lerp_table(*interpolation(side, size)).view(np.uint8)))

    def _joined(self, parts: Sequence[DeviceArray], shape: tuple[int, ...], purpose: str) -> DeviceArray:
        target = self.pool.empty(shape, parts[0].dtype, purpose)
        start = target.address
        for part in parts:
            self.gpu.copy(start, part.address, part.nbytes)
            start += part.nbytes
        return target


def _in_place(parts: Sequence[DeviceArray], shape: tuple[int, ...]) -> DeviceArray | None:
    """The parts as one view, if they lie behind each other in memory."""
    if not all(after.follows(before) for before, after in pairwise(parts)):
        return None
    return DeviceArray(parts[0].block, parts[0].offset, shape, parts[0].dtype)
