"""Kernel source ─ NVRTC ─► cubin for one compute capability, in memory.

The package carries CUDA source and no binary: NVRTC is an ordinary wheel, needs neither the toolkit nor a GPU, takes about half a second
once a process, and builds for exactly the GPU at hand with a compiler no newer than the user chose to install. Shipped PTX would need a
driver at least as new as the compiler that wrote it, and a shipped cubin would leave out every GPU not thought of.
"""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path
from typing import Any

from fastsam2.errors import BackendError, expected, reason

SOURCE = Path(__file__).parent / "cuda" / "top_k_gather.cu"
FRAME_OPS_SOURCE = SOURCE.with_name("frame_ops.cu")
INSTALL = "Run: pip install fastsam2[cuda] (for a CUDA 12 driver: pip install 'cuda-bindings<13' nvidia-cuda-nvrtc-cu12)"


@cache
def compile_cubin(compute_capability: tuple[int, int], source: Path = SOURCE) -> bytes:
    """The kernels of one source file for one GPU generation; compiled once a process.

    Args:
        compute_capability: (major, minor), for instance (8, 9).
        source: a .cu file, beside which lie its .h and .cuh; the top-k gather unless given.

    Raises:
        BackendError: if NVRTC is not installed, or cannot build for this compute capability; the compiler's own words are in the message.
    """
    try:
        nvrtc = importlib.import_module("cuda.bindings.nvrtc")
        _check(nvrtc, nvrtc.nvrtcVersion())
    except (ImportError, OSError, RuntimeError) as error:  # RuntimeError: the bindings are there, the library is not
        raise BackendError(expected("NVRTC, which compiles the CUDA kernels", reason(error), INSTALL)) from error
    paths = [source.with_suffix(suffix) for suffix in (".h", ".cuh")]
    headers, names = [path.read_bytes() for path in paths], [path.name.encode() for path in paths]
    (program,) = _check(nvrtc, nvrtc.nvrtcCreateProgram(source.read_bytes(), source.name.encode(), len(headers), headers, names))
    try:
        architecture = "sm_{}{}".format(*compute_capability)
        options = [f"--gpu-architecture={architecture}".encode(), b"--std=c++17", b"--device-as-default-execution-space"]
        if nvrtc.nvrtcCompileProgram(program, len(options), options)[0] != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            got = _text(nvrtc, program).strip() or "a failure without a word"
            todo = "Install an NVRTC that knows this GPU (pip install --upgrade nvidia-cuda-nvrtc)"
            raise BackendError(expected(f"{source.name} to compile for {architecture}", got, todo))
        (size,) = _check(nvrtc, nvrtc.nvrtcGetCUBINSize(program))
        cubin = bytes(size)
        _check(nvrtc, nvrtc.nvrtcGetCUBIN(program, cubin))
        return cubin
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _text(nvrtc: Any, program: Any) -> str:
    (size,) = _check(nvrtc, nvrtc.nvrtcGetProgramLogSize(program))
    log = bytes(size)
    _check(nvrtc, nvrtc.nvrtcGetProgramLog(program, log))
    return log.rstrip(b"\0").decode(errors="replace")


def _check(nvrtc: Any, answer: tuple[Any, ...]) -> tuple[Any, ...]:
    """What an NVRTC call returns behind its status."""
    status, *values = answer
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise BackendError(expected("NVRTC to answer", status, INSTALL))
    return tuple(values)
