"""GPUs that an engine is built for: compute capabilities, `portable`, `current`.

| | portable | a compute capability | current |
|---|---|---|---|
| TensorRT-RTX | 8.0 and newer (default) | built anywhere | the GPU of this machine |
| TensorRT | 8.0 and newer, built on such a GPU | the GPU of this machine has to have it | the GPU of this machine (default) |
"""

from __future__ import annotations

import ctypes
import re
import sys
from typing import Any

from fastsam2.engines.trt_compat import PACKAGES
from fastsam2.enums import Flavor, Precision
from fastsam2.errors import BackendError, expected

PORTABLE, CURRENT = "portable", "current"
_CAPABILITY = re.compile(r"^\d+\.\d$")
_TURING = "7.5"


def default_target(flavor: Flavor) -> str:
    """What is built when nothing is asked for."""
    return PORTABLE if flavor is Flavor.TENSORRT_RTX else CURRENT


def resolve_target(text: str, flavor: Flavor, trt: Any, precision: Precision) -> str:
    """A target as the folder of its engines is called: `portable` or a compute capability such as `8.9`.

    Args:
        text: as a user wrote it; `current` becomes the compute capability of this machine's GPU.
        flavor: that builds.
        trt: its module.
        precision: of the engines.

    Raises:
        BackendError: if the flavor or this machine cannot build for it, or not in this precision.
    """
    if text not in (PORTABLE, CURRENT) and not _CAPABILITY.match(text):
        raise BackendError(expected(f"a compute capability, {PORTABLE} or {CURRENT}", repr(text), "Write 8.9 for an RTX 40 card"))
    target = text
    if text == CURRENT or flavor is Flavor.TENSORRT:
        here = current_capability()
        if here is None:
            todo = "Build on the machine that has it" if flavor is Flavor.TENSORRT else f"Use {PORTABLE} or a compute capability"
            raise BackendError(expected(f"an NVIDIA GPU to build {flavor.value} engines for {text}", "none that a driver finds", todo))
        if text not in (PORTABLE, CURRENT, here):
            todo = f"Build on the GPU that runs the engine, or use --flavor {Flavor.TENSORRT_RTX.value}"
            raise BackendError(expected(f"the compute capability of this machine's GPU, {here}", text, todo))
        target = here if text == CURRENT else text
    elif text != PORTABLE and text not in (legal := capabilities(trt)):
        todo = f"Use one of these; {PORTABLE} engines are for 8.0 and newer"
        raise BackendError(expected(f"a compute capability that {flavor.value} {trt.__version__} builds for, {legal}", text, todo))
    _check_precision(target, flavor, precision)
    return target


def capabilities(trt: Any) -> list[str]:
    """Compute capabilities that TensorRT-RTX builds for without a GPU, ascending."""
    numbers = sorted(int(name[2:]) for name in trt.ComputeCapability.__members__ if re.match(r"SM\d+$", name))
    return [f"{n // 10}.{n % 10}" for n in numbers]


def _check_precision(target: str, flavor: Flavor, precision: Precision) -> None:
    """7.5 has no bfloat16; TensorRT-RTX compiles no float32 products for it either."""
    refused = {Precision.BF16} | ({Precision.FP32} if flavor is Flavor.TENSORRT_RTX else set())
    if target == _TURING and precision in refused:
        raise BackendError(
            expected(
                f"a precision that {PACKAGES[flavor].module} builds for compute capability 7.5", precision.value, "Use --precision fp16"
            )
        )


def current_capability() -> str | None:
    """Compute capability of this machine's first GPU, such as "8.9"; None without driver or GPU. Creates no CUDA context."""
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    statuses = (
        cuda.cuInit(0),
        cuda.cuDeviceGet(ctypes.byref(device), 0),
        cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, device),  # COMPUTE_CAPABILITY_MAJOR
        cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, device),  # COMPUTE_CAPABILITY_MINOR
    )
    return None if any(statuses) else f"{major.value}.{minor.value}"
