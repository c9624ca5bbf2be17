"""The C++ tracker on a fake GPU (`fake_gpu.hpp`), with ONNX Runtime in the callback that runs its graphs."""

from __future__ import annotations

import ctypes as c
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastsam2.contracts import graph_spec
from fastsam2.enums import ExportTarget, GraphRole, PrunePolicy
from fastsam2.errors import FastSam2Error
from fastsam2.runtime.backends.protocol import Backend
from tests.cpp.c_interface import RUN
from tests.cpp.native import release


@cache
def library() -> Any:
    """tests/cpp/gpu/fake_interface.cpp."""
    loaded = c.CDLL(str(release() / "runtime" / "cpp" / "libfastsam2_gpu_fake.so"))
    loaded.gpu_fake_message.restype = c.c_char_p
    loaded.gpu_fake_open.restype = c.c_void_p
    loaded.gpu_fake_count.restype = c.c_int64
    return loaded


class Refused(FastSam2Error):
    """What the C++ side threw."""


def check(status: int) -> None:
    """Raises `Refused` unless a call worked."""
    if status != 0:
        raise Refused(library().gpu_fake_message().decode())


class GpuTracker:
    """The tracker.

    Args:
        backend: runs the graphs, of the form `target`.
        folder: of the bundle.
        target: of the graphs.
        most: objects in one run of a graph; 0 for any number.
        policy: of the memory.
        keep: fraction of rows; 0 for all.
        fill_hole_area: see `Tracker`.
    """

    def __init__(
        self,
        backend: Backend,
        folder: Path,
        *,
        target: ExportTarget = ExportTarget.ONNXRUNTIME,
        most: int = 0,
        policy: PrunePolicy = PrunePolicy.DENSE,
        keep: float = 0.0,
        fill_hole_area: int = 0,
    ) -> None:
        self.backend, self.target = backend, target
        self.objects: list[int] = []  # in each run of a graph
        self._callback = RUN(self._called)
        codes = list(ExportTarget).index(target), list(PrunePolicy).index(policy)
        opened = library().gpu_fake_open(
            str(folder).encode(), codes[0], c.c_int64(most), codes[1], c.c_double(keep), c.c_int64(fill_hole_area), self._callback
        )
        check(0 if opened else 1)
        self._session = c.c_void_p(opened)

    def step(self, frame: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        frame = np.ascontiguousarray(frame)
        check(library().gpu_fake_step(self._session, c.c_void_p(frame.ctypes.data), *map(c.c_int64, frame.shape[:2])))
        return self._result()

    def prompt(
        self, object_id: int, *, correct: bool = False, append: bool = False, box: Any = None, points: Any = None, labels: Any = None,
        mask: Any = None,
    ) -> dict[str, npt.NDArray[Any]]:  # fmt: skip
        """A new object, or a correction."""
        given = [
            None if value is None else np.ascontiguousarray(value, dtype)
            for value, dtype in ((box, np.float32), (points, np.float32), (labels, np.int32), (mask, np.uint8))
        ]
        boxed, xy, signs, pixels = (c.c_void_p(None if value is None else value.ctypes.data) for value in given)
        count, sizes = 0 if points is None else len(points), (0, 0) if mask is None else mask.shape
        flags = c.c_int32(correct), c.c_int32(append)
        prompted = library().gpu_fake_prompt(
            self._session, c.c_int64(object_id), *flags, boxed, xy, signs, c.c_int64(count), pixels, *map(c.c_int64, sizes)
        )
        check(prompted)
        return self._result()

    def remove(self, object_id: int) -> None:
        check(library().gpu_fake_remove(self._session, c.c_int64(object_id)))

    def count(self, call: str) -> int:
        """How often the GPU was called so since `clear`."""
        return int(library().gpu_fake_count(self._session, call.encode()))

    def clear(self) -> None:
        library().gpu_fake_clear(self._session)

    def close(self) -> None:
        library().gpu_fake_close(self._session)

    def _result(self) -> dict[str, npt.NDArray[Any]]:
        sizes = (c.c_int64 * 4)()
        library().gpu_fake_sizes(self._session, sizes)
        n, height, width, side = sizes
        shapes = {"ids": (n,), "masks": (n, height, width), "low_res_logits": (n, side, side), "scores": (n,), "ious": (n,)}
        types = {"ids": np.int64, "masks": np.bool_}
        arrays: dict[str, npt.NDArray[Any]] = {name: np.empty(shape, types.get(name, np.float32)) for name, shape in shapes.items()}
        library().gpu_fake_read(self._session, *(c.c_void_p(array.ctypes.data) for array in arrays.values()))
        return arrays

    def _called(self, _user: Any, name: bytes, inputs: Any, count: int, outputs: Any, _outputs: int, message: Any, size: int) -> int:
        try:
            role = GraphRole(name.decode())
            given = {inputs[i].name.decode(): inputs[i].array() for i in range(count)}
            answer = self.backend.run(role, given)
            for i, spec in enumerate(graph_spec(role, self.target).outputs):
                outputs[i].array()[...] = answer[spec.name]
            self.objects.append(max(len(value) for value in answer.values()))
        except Exception as error:  # what crosses the interface is a status and a text
            text = str(error).encode()[: size - 1] + b"\0"
            c.memmove(message, text, len(text))
            return 1
        return 0
