"""fastsam2.h through ctypes: what a program in another language does, with ONNX Runtime in the callback."""

from __future__ import annotations

import ctypes as c
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastsam2.contracts import graph_spec
from fastsam2.enums import ExportTarget, GraphRole

DTYPES = (np.float32, np.int32, np.uint16, np.uint8, np.bool_)  # fastsam2_dtype
ABI_VERSION = 1


class Tensor(c.Structure):
    _fields_ = (("name", c.c_char_p), ("dtype", c.c_uint32), ("rank", c.c_uint32), ("shape", c.c_int64 * 4), ("data", c.c_void_p),
                ("bytes", c.c_uint64))  # fmt: skip

    def array(self) -> npt.NDArray[Any]:
        """The tensor's own memory."""
        raw = (c.c_uint8 * self.bytes).from_address(self.data)
        return np.frombuffer(raw, DTYPES[self.dtype]).reshape(self.shape[: self.rank])


RUN = c.CFUNCTYPE(c.c_int32, c.c_void_p, c.c_char_p, c.POINTER(Tensor), c.c_uint32, c.POINTER(Tensor), c.c_uint32, c.POINTER(c.c_char),
                  c.c_uint32)  # fmt: skip


class BundleOptions(c.Structure):
    _fields_ = (("struct_size", c.c_uint32), ("abi_version", c.c_uint32), ("run", RUN), ("user", c.c_void_p),
                *((name, c.c_uint32) for name in ("skip_hashes", "reserved", "backend", "threads", "gpu", "cuda_graphs")))  # fmt: skip


class TrackerOptions(c.Structure):
    _fields_ = (("struct_size", c.c_uint32), ("policy", c.c_uint32), ("keep", c.c_double), ("tokens", c.c_int64), ("seed", c.c_int64),
                *((name, c.c_uint32) for name in ("guard", "prune_prompt_frames", "prune_newest_frame", "corrections_as_prompts",
                                                  "max_prompt_frames", "fill_hole_area", "memory_budget_mb")))  # fmt: skip


class Image(c.Structure):
    _fields_ = (("struct_size", c.c_uint32), ("format", c.c_uint32), ("height", c.c_uint32), ("width", c.c_uint32),
                ("row_bytes", c.c_uint64), ("pixels", c.c_void_p), ("pixel_bytes", c.c_uint64))  # fmt: skip


class Prompt(c.Structure):
    _fields_ = (("struct_size", c.c_uint32), ("point_count", c.c_uint32), ("box", c.c_void_p), ("points", c.c_void_p),
                ("labels", c.c_void_p), ("mask", c.c_void_p), ("mask_height", c.c_uint32), ("mask_width", c.c_uint32))  # fmt: skip


class ResultView(c.Structure):
    _fields_ = (("struct_size", c.c_uint32), ("object_count", c.c_uint32), ("frame", c.c_int64), ("height", c.c_uint32),
                ("width", c.c_uint32), ("low_res_side", c.c_uint32), ("reserved", c.c_uint32), ("ids", c.c_void_p), ("masks", c.c_void_p),
                ("scores", c.c_void_p), ("ious", c.c_void_p), ("low_res_logits", c.c_void_p), ("rows_held", c.c_void_p))  # fmt: skip


class CInterface:
    """One bundle and one tracker behind the C interface.

    Args:
        library: the shared library.
        folder: the bundle.
        run: runs one graph by name; None where a backend of the library does.
        backend: fastsam2_backend.
        threads: of the backend; 0 takes every core.
        options: of the tracker, by the names of `fastsam2_tracker_options`.
    """

    def __init__(
        self,
        library: Path,
        folder: Path,
        run: Callable[[str, dict[str, Any]], dict[str, Any]] | None,
        *,
        backend: int = 0,
        threads: int = 0,
        **options: float,
    ) -> None:
        self._c = c.CDLL(str(library))
        self._c.fastsam2_last_error.restype = c.c_char_p
        self._run = run
        self._callback = RUN() if run is None else RUN(self._called)
        self._bundle, self._tracker = c.c_uint64(), c.c_uint64()
        opened = BundleOptions(c.sizeof(BundleOptions), ABI_VERSION, self._callback, skip_hashes=1, backend=backend, threads=threads)
        self._check(self._c.fastsam2_bundle_open(str(folder).encode(), c.byref(opened), c.byref(self._bundle)))
        given = TrackerOptions(struct_size=c.sizeof(TrackerOptions), **options)
        self._check(self._c.fastsam2_tracker_open(self._bundle, c.byref(given), c.byref(self._tracker)))

    def step(self, frame: npt.NDArray[np.uint8], *, bgr: bool = False) -> dict[str, Any]:
        frame = np.ascontiguousarray(frame[..., ::-1] if bgr else frame)
        height, width, _ = frame.shape
        image = Image(c.sizeof(Image), int(bgr), height, width, 0, frame.ctypes.data, frame.nbytes)
        return self._answered(self._c.fastsam2_tracker_step, c.byref(image))

    def add(self, object_id: int, **prompt: Any) -> dict[str, Any]:
        given, _kept = _prompt(**prompt)
        return self._answered(self._c.fastsam2_tracker_add, c.c_int64(object_id), c.byref(given))

    def correct(self, object_id: int, *, append: bool = False, **prompt: Any) -> dict[str, Any]:
        given, _kept = _prompt(**prompt)
        return self._answered(self._c.fastsam2_tracker_correct, c.c_int64(object_id), c.byref(given), c.c_int32(append))

    def close(self) -> None:
        self._check(self._c.fastsam2_tracker_close(self._tracker))
        self._check(self._c.fastsam2_bundle_close(self._bundle))

    def _called(self, _user: Any, role: bytes, inputs: Any, count: int, outputs: Any, _outputs: int, message: Any, size: int) -> int:
        assert self._run is not None
        try:
            answer = self._run(role.decode(), {inputs[i].name.decode(): inputs[i].array() for i in range(count)})
            for i, spec in enumerate(graph_spec(GraphRole(role.decode()), ExportTarget.ONNXRUNTIME).outputs):
                outputs[i].array()[...] = answer[spec.name]
        except Exception as error:  # what crosses the interface is a status and a text
            text = str(error).encode()[: size - 1] + b"\0"
            c.memmove(message, text, len(text))
            return 1
        return 0

    def _answered(self, call: Any, *arguments: Any) -> dict[str, Any]:
        result, view = c.c_uint64(), ResultView(struct_size=c.sizeof(ResultView))
        self._check(call(self._tracker, *arguments, c.byref(result)))
        self._check(self._c.fastsam2_result_read(result, c.byref(view)))
        n, side = view.object_count, view.low_res_side
        shapes = {"ids": ((n,), np.int64), "masks": ((n, view.height, view.width), np.bool_), "scores": ((n,), np.float32),
                  "ious": ((n,), np.float32), "low_res_logits": ((n, side, side), np.float32), "rows_held": ((n,), np.int64)}  # fmt: skip
        arrays = {name: _copied(getattr(view, name), shape, dtype) for name, (shape, dtype) in shapes.items()}
        self._check(self._c.fastsam2_result_close(result))
        return {"frame": view.frame, **arrays}

    def _check(self, status: int) -> None:
        if status != 0:
            raise RuntimeError(f"status {status}: {self._c.fastsam2_last_error().decode()}")


def _copied(address: int | None, shape: tuple[int, ...], dtype: Any) -> npt.NDArray[Any]:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(c.string_at(address, size) if size else b"", dtype).reshape(shape)


def _prompt(*, box: Any = None, points: Any = None, labels: Any = None, mask: Any = None) -> tuple[Prompt, list[Any]]:
    kept = [None if value is None else np.ascontiguousarray(value, dtype)
            for value, dtype in ((box, np.float32), (points, np.float32), (labels, np.int32), (mask, np.uint8))]  # fmt: skip
    addresses = [None if value is None else value.ctypes.data for value in kept]
    height, width = (0, 0) if mask is None else mask.shape
    return Prompt(c.sizeof(Prompt), 0 if points is None else len(points), *addresses, height, width), kept
