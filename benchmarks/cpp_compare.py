"""The C++ tracker against the Python tracker: the same frames, bundle and engines, each frame on both in turn.

    python -m benchmarks.cpp_compare build/tiny --backend tensorrt-rtx --cmake -DTENSORRT_RTX_ROOT=/opt/TensorRT-RTX --out cpp.json
    python -m benchmarks.cpp_compare nano --out cpp.json

Builds the C++ library, compares masks and logits of every frame, and says what a step takes on both sides, in milliseconds until masks are
on the host. With the backend `onnxruntime` the C++ tracker runs the Python side's ONNX Runtime sessions through its callback, so that only
the loops differ; with every other one it has engines of its own, replayed as CUDA graphs on both sides.
"""

from __future__ import annotations

import argparse
import ctypes as c
import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

from fastsam2.benchmarks.bench_case import LEAST_IOU, worst_iou
from fastsam2.benchmarks.bench_frames import Box, box_in, store_frames
from fastsam2.benchmarks.conditions import conditions
from fastsam2.contracts import graph_spec
from fastsam2.enums import BackendName, ExportTarget, GraphRole
from fastsam2.errors import BackendError, FastSam2Error, expected
from fastsam2.files import write_json
from fastsam2.runtime.backends.onnxruntime import usable_cores
from fastsam2.runtime.loaded import LoadedBundle, load
from fastsam2.runtime.timing import StageTimer

ROOT = Path(__file__).resolve().parent.parent
WARM_FRAMES = 60  # the bank is full after 7, the pointers after 16; engines are captured some twenty frames later
CODES = {BackendName.ONNXRUNTIME: 0, BackendName.TENSORRT: 2, BackendName.TENSORRT_RTX: 3}  # fastsam2_backend; 0 is the callback
ABI_VERSION = 1
DTYPES = (np.float32, np.int32, np.uint16, np.uint8, np.bool_)  # fastsam2_dtype
PYTHON, CPP = "python", "cpp"
Answer = dict[str, npt.NDArray[Any]]


def _struct(called: str, /, **fields: Any) -> Any:
    return type(called, (c.Structure,), {"_fields_": list(fields.items())})


# The structs of runtime/cpp/include/fastsam2/fastsam2.h that are used here.
_Tensor = _struct("Tensor", name=c.c_char_p, dtype=c.c_uint32, rank=c.c_uint32, shape=c.c_int64 * 4, data=c.c_void_p, bytes=c.c_uint64)
_RUN = c.CFUNCTYPE(
    c.c_int32, c.c_void_p, c.c_char_p, c.POINTER(_Tensor), c.c_uint32, c.POINTER(_Tensor), c.c_uint32, c.c_void_p, c.c_uint32
)
_BundleOptions = _struct(
    "BundleOptions", struct_size=c.c_uint32, abi_version=c.c_uint32, run=_RUN, user=c.c_void_p, skip_hashes=c.c_uint32,
    reserved=c.c_uint32, backend=c.c_uint32, threads=c.c_uint32, gpu=c.c_uint32, cuda_graphs=c.c_uint32,
)  # fmt: skip
_Image = _struct(
    "Image", struct_size=c.c_uint32, format=c.c_uint32, height=c.c_uint32, width=c.c_uint32, row_bytes=c.c_uint64, pixels=c.c_void_p,
    pixel_bytes=c.c_uint64,
)  # fmt: skip
_Prompt = _struct(
    "Prompt", struct_size=c.c_uint32, point_count=c.c_uint32, box=c.c_void_p, points=c.c_void_p, labels=c.c_void_p, mask=c.c_void_p,
    mask_height=c.c_uint32, mask_width=c.c_uint32,
)  # fmt: skip
_ResultView = _struct(
    "ResultView", struct_size=c.c_uint32, object_count=c.c_uint32, frame=c.c_int64, height=c.c_uint32, width=c.c_uint32,
    low_res_side=c.c_uint32, reserved=c.c_uint32, ids=c.c_void_p, masks=c.c_void_p, scores=c.c_void_p, ious=c.c_void_p,
    low_res_logits=c.c_void_p, rows_held=c.c_void_p,
)  # fmt: skip


class CppTracker:
    """A tracker behind the C interface.

    Args:
        library: libfastsam2_runtime.
        bundle: its folder, and the backend whose graphs the callback runs.
        backend: which; with `onnxruntime` the callback.
        gpu: index of the GPU.

    Raises:
        BackendError: if the library refuses; says why.
    """

    def __init__(self, library: Path, bundle: LoadedBundle, backend: BackendName, gpu: int = 0) -> None:
        self._c = c.CDLL(str(library))
        self._c.fastsam2_last_error.restype = c.c_char_p
        self._graphs, self._failed = bundle.backend, ""
        self._run = _RUN(self._called) if backend is BackendName.ONNXRUNTIME else _RUN()
        self._bundle, self._tracker = c.c_uint64(), c.c_uint64()
        options = _BundleOptions(c.sizeof(_BundleOptions), ABI_VERSION, self._run, backend=CODES[backend], gpu=gpu, cuda_graphs=1)
        self._check(self._c.fastsam2_bundle_open(str(bundle.folder).encode(), c.byref(options), c.byref(self._bundle)))
        self._check(self._c.fastsam2_tracker_open(self._bundle, None, c.byref(self._tracker)))

    def step(self, frame: npt.NDArray[np.uint8]) -> Answer:
        """Masks bool [B, H, W] and low_res_logits float32 [B, L, L] of the next frame."""
        height, width, _ = frame.shape
        image = _Image(c.sizeof(_Image), 0, height, width, 0, frame.ctypes.data, frame.nbytes)
        return self._answered(self._c.fastsam2_tracker_step, c.byref(image))

    def add(self, object_id: int, box: Box) -> Answer:
        """The same after a new object."""
        corners = np.array(box, np.float32)
        prompt = _Prompt(c.sizeof(_Prompt), box=corners.ctypes.data)
        return self._answered(self._c.fastsam2_tracker_add, c.c_int64(object_id), c.byref(prompt))

    def close(self) -> None:
        """Closes tracker and bundle."""
        self._check(self._c.fastsam2_tracker_close(self._tracker))
        self._check(self._c.fastsam2_bundle_close(self._bundle))

    def _called(self, _user: Any, name: bytes, inputs: Any, count: int, outputs: Any, _outputs: int, _message: Any, _size: int) -> int:
        try:
            role = GraphRole(name.decode())
            answer = self._graphs.run(role, {inputs[i].name.decode(): _array(inputs[i]) for i in range(count)})
            for i, tensor in enumerate(graph_spec(role, ExportTarget.ONNXRUNTIME).outputs):
                _array(outputs[i])[...] = answer[tensor.name]
        except Exception as error:  # nothing may pass through the C interface; `_check` says it
            self._failed = str(error)
            return 1
        return 0

    def _answered(self, call: Any, *arguments: Any) -> Answer:
        result, view = c.c_uint64(), _ResultView(struct_size=c.sizeof(_ResultView))
        self._check(call(self._tracker, *arguments, c.byref(result)))
        self._check(self._c.fastsam2_result_read(result, c.byref(view)))
        n, side = view.object_count, view.low_res_side
        answer = {
            "masks": _copied(view.masks, (n, view.height, view.width), np.bool_),
            "low_res_logits": _copied(view.low_res_logits, (n, side, side), np.float32),
        }
        self._check(self._c.fastsam2_result_close(result))
        return answer

    def _check(self, status: int) -> None:
        if status != 0:
            got = self._failed or self._c.fastsam2_last_error().decode().rstrip(".")
            raise BackendError(expected("the C++ tracker to answer", f"status {status}: {got}", "See runtime/cpp/README.md"))


def _array(tensor: Any) -> npt.NDArray[Any]:
    raw = (c.c_uint8 * tensor.bytes).from_address(tensor.data)
    return np.frombuffer(raw, DTYPES[tensor.dtype]).reshape(tensor.shape[: tensor.rank])


def _copied(address: int | None, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(c.string_at(address, size) if address and size else b"", dtype).reshape(shape)


def build_library(folder: Path, options: Sequence[str] = ()) -> Path:
    """Configures and builds the C++ runtime of this checkout as a shared library.

    Args:
        folder: of the build; an earlier one is gone on with.
        options: further ones for CMake.

    Raises:
        BackendError: if there is no checkout, CMake or compiler, or it does not build; quotes what was said last.
    """
    configure = ["cmake", "-S", str(ROOT), "-B", str(folder), "-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=ON",
                 "-DFASTSAM2_BUILD_TESTS=OFF", *options]  # fmt: skip
    for command in (configure, ["cmake", "--build", str(folder), "--parallel", "--target", "fastsam2_runtime"]):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise BackendError(expected("CMake on PATH", error, "Install cmake and a C++20 compiler, or give --library")) from error
        if done.returncode != 0:
            said = " ".join((done.stdout + done.stderr).split())[-800:]
            raise BackendError(expected(f"`{' '.join(command)}` to succeed", said, "Run it by hand, or give --library"))
    return folder / "runtime" / "cpp" / "libfastsam2_runtime.so"


def compare(
    bundle: LoadedBundle, cpp: CppTracker, files: Sequence[Path], boxes: Sequence[Box], *, warm: int = WARM_FRAMES
) -> dict[str, Any]:
    """Runs both trackers over the frames, in an order that turns by one from frame to frame.

    Args:
        bundle: for the Python tracker.
        cpp: the C++ tracker, before its first frame.
        files: pictures of one size, more than `warm`.
        boxes: one for each object, on the first frame.
        warm: frames at the beginning whose masks are compared but whose time does not count.

    Returns:
        Milliseconds (p50, p90, p99 of each side, pairs python and cpp, ratio python / cpp) and what the masks say: frames equal in every
        bit of mask and logit, the worst IoU of an object, the largest difference of a logit, and the masks' SHA-256 of both sides.
    """
    tracker, timer = bundle.tracker(), StageTimer()
    equal, ious, differences = 0, [], []
    digests = {PYTHON: hashlib.sha256(), CPP: hashlib.sha256()}
    for t, file in enumerate(files):
        with Pillow.open(file) as picture:
            frame = np.ascontiguousarray(picture.convert("RGB"))
        if t == warm:
            timer.clear()
        answers: dict[str, Answer] = {}
        for side in (PYTHON, CPP)[:: 1 if t % 2 == 0 else -1]:
            with timer.stage(side):
                result = tracker.step(frame) if side == PYTHON else cpp.step(frame)
            answers[side] = result if isinstance(result, dict) else {"masks": result.masks, "low_res_logits": result.low_res_logits}
        if t == 0:
            for object_id, box in enumerate(boxes, start=1):
                own = tracker.add(object_id, box=box)
                answers = {PYTHON: {"masks": own.masks, "low_res_logits": own.low_res_logits}, CPP: cpp.add(object_id, box)}
        python, other = answers[PYTHON], answers[CPP]
        equal += all(np.array_equal(python[name], other[name]) for name in python)
        ious.append(worst_iou(python["masks"], other["masks"]))
        differences.append(float(np.abs(python["low_res_logits"] - other["low_res_logits"]).max()))
        for side, digest in digests.items():
            digest.update(np.packbits(answers[side]["masks"]).tobytes())
    samples = {side: np.round(timer.samples_ms(side), 3) for side in digests}
    return {
        "milliseconds": {side: {f"p{q}": float(np.quantile(ms, q / 100)) for q in (50, 90, 99)} for side, ms in samples.items()},
        "ratio": float(np.median(samples[PYTHON] / samples[CPP])),
        "pairs": np.stack([samples[PYTHON], samples[CPP]], axis=1).tolist(),
        "frames_equal": equal,
        "frames_compared": len(files),
        "mask_iou": min(ious),
        "logit_difference": max(differences),
        "mask_sha256": {side: digest.hexdigest() for side, digest in digests.items()},
    }


def boxes_of(count: int, size: tuple[int, int]) -> list[Box]:
    """Boxes of the objects: the one that the drawn scene shows, and that one a little larger for each further object."""
    x0, y0, x1, y1 = box_in(size)
    return [(x0 - 2.0 * i, y0 - 2.0 * i, x1 + 2.0 * i, y1 + 2.0 * i) for i in range(count)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Build, compare and write; exits with 1 if masks differ more than rounding explains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="folder, or name of a built-in bundle")
    parser.add_argument("--backend", choices=[name.value for name in CODES], default=BackendName.ONNXRUNTIME.value)
    parser.add_argument("--gpu", type=int, default=0)
    parser.add_argument("--threads", type=int, default=usable_cores(), help="of the CPU")
    parser.add_argument("--video", help="the drawn scene of the benchmarks unless given")
    parser.add_argument("--frames", type=int, default=60, help="that are timed")
    parser.add_argument("--warm", type=int, default=WARM_FRAMES, help="frames before them")
    parser.add_argument("--objects", type=int, default=1)
    parser.add_argument("--library", type=Path, help="libfastsam2_runtime.so that is there already")
    parser.add_argument(
        "--cmake", action="append", default=[], help="option for the build, such as -DTENSORRT_ROOT=FOLDER; may be repeated"
    )
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)
    name, record = BackendName(args.backend), {}
    try:
        library = args.library or build_library(ROOT / "build" / "cpp_compare", args.cmake)
        on_gpu = name is not BackendName.ONNXRUNTIME
        bundle = load(args.bundle, backend=name.value, threads=args.threads, gpu=args.gpu, cuda_graphs=on_gpu)
        with tempfile.TemporaryDirectory() as folder:
            files, size = store_frames(args.video, args.warm + args.frames, Path(folder))
            cpp = CppTracker(library, bundle, name, args.gpu)
            record = compare(bundle, cpp, files, boxes_of(args.objects, size), warm=args.warm)
            cpp.close()
        facts = bundle.device_facts()
    except FastSam2Error as error:
        parser.exit(2, f"error: {error}\n")
    given = {"bundle": args.bundle, "backend": name.value, "objects": args.objects, "frame_size": list(size)}
    write_json(args.out, {**conditions(args.threads, "benchmarks.cpp_compare", gpu=facts if on_gpu else None), **given, **record})
    print(
        f"Python {record['milliseconds'][PYTHON]['p50']:.2f} ms, C++ {record['milliseconds'][CPP]['p50']:.2f} ms a frame; "
        f"{record['frames_equal']} of {record['frames_compared']} frames equal in every bit, worst mask IoU {record['mask_iou']:.4f}"
    )
    if not record["mask_iou"] >= LEAST_IOU:
        sys.exit(1)


if __name__ == "__main__":
    main()
