"""Compiles the CUDA source with the machine's C++ compiler against `cuda_runtime.h` beside this file, and runs it from numpy arrays."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fastsam2.kernels.nvrtc import SOURCE
from fastsam2.kernels.top_k_gather import TopKGather

COMPILER = (shutil.which("g++") or shutil.which("clang++")) if sys.platform == "linux" else None
NO_COMPILER = "no C++ compiler (g++ or clang++) on PATH, or not Linux"
HEADERS = Path(__file__).parent
ROOT = HEADERS.parents[1]
# The fibers jump between stacks, which _FORTIFY_SOURCE takes for an error.
FLAGS = ("-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-U_FORTIFY_SOURCE", "-ffp-contract=off",
         f"-I{HEADERS}")  # fmt: skip
SANITIZE = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
SCORE_TYPES = {"float32": 0, "float16": 1}
CUDA_ERRORS = 1000


class Order(IntEnum):
    """In which order the threads between two barriers run."""

    FORWARD = 0
    BACKWARD = 1
    SHUFFLED = 2


class Launch(ctypes.Structure):
    """The newest launch as the host's CUDA saw it."""

    _fields_ = (("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3), ("shared_bytes", ctypes.c_uint), ("stream", ctypes.c_void_p))


class Plan(ctypes.Structure):
    """`fastsam2_top_k_gather_plan`."""

    _fields_ = (("grid_x", ctypes.c_uint), ("grid_y", ctypes.c_uint), ("threads", ctypes.c_uint), ("shared_bytes", ctypes.c_uint))


def compile_library(out: Path, *flags: str, source: Path = SOURCE) -> Path:
    """The kernel source as a shared library."""
    assert COMPILER is not None, NO_COMPILER
    command = [COMPILER, *FLAGS, *flags, "-fPIC", "-shared", "-o", str(out), "-x", "c++", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return out


def run_python(code: str, **environment: str) -> str:
    """What another Python process, which sees the repository, prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def address_sanitizer() -> dict[str, str]:
    """Environment of a process that loads a library of the flags SANITIZE; skips the test where the compiler has no such sanitizer."""
    assert COMPILER is not None, NO_COMPILER
    runtime = subprocess.run([COMPILER, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True).stdout.strip()
    if not os.path.isabs(runtime):
        pytest.skip(f"{COMPILER} has no address sanitizer")
    return {"LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0"}


def needs_nvrtc() -> None:
    """Skips the test where NVRTC is not installed: importing it does not load the library, asking its version does."""
    module = pytest.importorskip("cuda.bindings.nvrtc", reason="cuda.bindings is not installed (extra: cuda)")
    try:
        module.nvrtcVersion()
    except RuntimeError as error:
        pytest.skip(f"NVRTC is not installed (extra: cuda): {error}")


@dataclass(frozen=True)
class Tensor:
    """A block of memory with a 16-byte aligned tensor in it and known bytes around and between its rows."""

    memory: npt.NDArray[np.uint8]
    address: int
    FILLER = 0xCD

    @classmethod
    def allocate(cls, size: int) -> Tensor:
        memory = np.full(size + 64, cls.FILLER, np.uint8)
        return cls(memory, -(-(memory.ctypes.data + 16) // 16) * 16)

    def view(self, shape: tuple[int, ...], strides: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        offset = self.address - self.memory.ctypes.data
        return np.ndarray(shape, dtype, self.memory.data, offset, strides)


class HostKernel:
    """The library: checks, launches on the host, and configures how threads are run."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.fastsam2_top_k_gather_message.restype = ctypes.c_char_p
        self._library.fastsam2_top_k_gather.argtypes = (ctypes.c_char_p, ctypes.c_int, ctypes.c_void_p)

    def configure(self, order: Order = Order.FORWARD, seed: int = 0, skipped_barrier: int = -1) -> None:
        self._library.host_configure(int(order), seed, skipped_barrier)

    def launches(self) -> tuple[int, Launch]:
        launch = Launch()
        return self._library.host_launches(ctypes.byref(launch)), launch

    def check(self, parameters: bytes | None, score_type: int) -> tuple[int, Plan]:
        plan = Plan()
        return self._library.fastsam2_top_k_gather_check(parameters, score_type, ctypes.byref(plan)), plan

    def message(self, status: int) -> str:
        text: bytes = self._library.fastsam2_top_k_gather_message(status)
        return text.decode()

    def run(self, parameters: bytes, score_type: int, stream: int = 0) -> int:
        status: int = self._library.fastsam2_top_k_gather(parameters, score_type, stream)
        return status

    def gather(
        self, scores: npt.NDArray[Any], rows: npt.NDArray[np.uint8], k: int, *, gap: int = 0, slots: int = 1
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
        """Scores [B,N] and rows uint8 [B,N,row_bytes] -> kept rows and index, after checking that no other byte was written.

        Args:
            gap: bytes between rows of the source; twice as many between those of the destination.
            slots: the destination is the last of so many slots of an entry's bank.
        """
        (batch, n), row_bytes = scores.shape, rows.shape[2]
        pitch, kept_pitch = row_bytes + gap, row_bytes + 2 * gap
        bank = max(k, 1) * kept_pitch * slots
        source, kept, index = Tensor.allocate(batch * n * pitch), Tensor.allocate(batch * bank), Tensor.allocate(batch * (k + 3) * 4)
        given = Tensor.allocate(scores.nbytes)
        given.view(scores.shape, scores.strides, scores.dtype)[:] = scores
        source.view(rows.shape, (n * pitch, pitch, 1), np.uint8)[:] = rows
        offset = (slots - 1) * k * kept_pitch
        call = TopKGather(
            scores=given.address, rows=source.address, kept=kept.address + offset, index=index.address,
            batch=batch, n=n, k=k, row_bytes=row_bytes,
            score_dtype=str(scores.dtype), rows_pitch=pitch, kept_pitch=kept_pitch, kept_batch_stride=bank, index_batch_stride=k + 3,
        )  # fmt: skip
        before = [t.memory.copy() for t in (given, source)]
        status = self.run(call.parameters, SCORE_TYPES[call.score_dtype])
        assert status == 0, self.message(status)
        assert all((t.memory == b).all() for t, b in zip((given, source), before, strict=True)), "an input was written"

        kept_view = Tensor(kept.memory, kept.address + offset).view((batch, k, row_bytes), (bank, kept_pitch, 1), np.uint8)
        index_view = index.view((batch, k), ((k + 3) * 4, 4), np.int32)
        answer = kept_view.copy(), index_view.copy()
        kept_view[:] = Tensor.FILLER
        index_view.view(np.int32)[:] = np.frombuffer(bytes([Tensor.FILLER] * 4), np.int32)
        assert (kept.memory == Tensor.FILLER).all() and (index.memory == Tensor.FILLER).all(), "a byte outside the kept rows was written"
        return answer
