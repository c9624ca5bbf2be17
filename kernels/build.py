"""`python -m fastsam2.kernels.build`: nvcc ahead of time, for C++ applications and for the record of what the kernels cost.

    kernels/cuda/*.cu ─ nvcc ─► top_k_gather.fatbin, frame_ops.fatbin (a cubin per architecture + PTX) and kernel_resources.json
    kernels/cuda/top_k_gather.cu, kernels/plugin/*.cpp ─ nvcc, TensorRT's headers ─► libfastsam2_plugins.so (--plugin)

From Python the kernels need no nvcc: `fastsam2.kernels.nvrtc` compiles them for the GPU at hand.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fastsam2.errors import BackendError, FastSam2Error, expected
from fastsam2.kernels.nvrtc import FRAME_OPS_SOURCE, SOURCE
from fastsam2.kernels.top_k_gather import MAX_ROWS, SCORE_BYTES, SCRATCH_BYTES

ARCHITECTURES = ("80", "86", "87", "89", "90", "100", "120")  # A100; RTX 30; Orin; RTX 40, L4; H100, H200; B200; RTX 50
SOURCES = (SOURCE, FRAME_OPS_SOURCE)
FLAGS = ("-std=c++17", "-O3", "--resource-usage")
PLUGIN_SOURCE = SOURCE.parents[1] / "plugin" / "top_k_gather_plugin.cpp"
TENSORRT_INCLUDE_DIR = "TENSORRT_INCLUDE_DIR"  # environment variable: the folder that holds NvInfer.h
NVCC = "Use nvcc of CUDA 12.8 or newer"
GATHER = "fastsam2_top_k_gather_"
USUAL_ROWS = 4096  # scores of a frame at 1024 px

_ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\w+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
_STATIC_SHARED = re.compile(r"(\d+) bytes smem")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What one kernel needs on one architecture, as ptxas reports it.

    Attributes:
        kernel: its entry point.
        architecture: compute capability without the dot.
        registers: of a thread.
        static_shared_bytes: of a block.
        dynamic_shared_bytes: of a block of the top-k gather, by N scores a row; empty for the others, which take none.
        stack_bytes: of a thread.
        spill_bytes: stores and loads of spilled registers, of a thread.
    """

    kernel: str
    architecture: str
    registers: int
    static_shared_bytes: int
    dynamic_shared_bytes: dict[str, int]
    stack_bytes: int
    spill_bytes: int


def parse_resources(report: str) -> list[Resources]:
    """What `nvcc --resource-usage` printed, in its order.

    Raises:
        BackendError: if it names a kernel without its numbers, or none at all.
    """
    found = []
    parts = _ENTRY.split(report)[1:]
    for kernel, architecture, text in zip(parts[0::3], parts[1::3], parts[2::3], strict=True):
        stack, registers, shared = _STACK.search(text), _REGISTERS.search(text), _STATIC_SHARED.search(text)
        if stack is None or registers is None:
            raise BackendError(expected(f"registers and spills of {kernel} for sm_{architecture}", "neither", NVCC))
        key_bytes = SCORE_BYTES[kernel.removeprefix(GATHER)] if kernel.startswith(GATHER) else None
        found.append(
            Resources(
                kernel=kernel,
                architecture=architecture,
                registers=int(registers[1]),
                static_shared_bytes=int(shared[1]) if shared else 0,
                dynamic_shared_bytes={str(n): SCRATCH_BYTES + n * key_bytes for n in (USUAL_ROWS, MAX_ROWS)} if key_bytes else {},
                stack_bytes=int(stack[1]),
                spill_bytes=int(stack[2]) + int(stack[3]),
            )
        )
    if not found:
        raise BackendError(expected("a resource report of nvcc", report.strip()[:200] or "nothing", NVCC))
    return found


def check_spills(resources: Sequence[Resources]) -> None:
    """Refuses kernels that keep registers in memory.

    Raises:
        BackendError: naming the first one.
    """
    for one in resources:
        if one.spill_bytes or one.stack_bytes:
            got = f"{one.spill_bytes} bytes of spills and {one.stack_bytes} of stack on sm_{one.architecture}"
            raise BackendError(
                expected(f"{one.kernel} to live in registers", got, "Lower what a thread holds, or raise its register limit")
            )


def compile_fatbin(
    out: Path, architectures: Sequence[str] = ARCHITECTURES, flags: Sequence[str] = (), *, source: Path = SOURCE
) -> list[Resources]:
    """Writes a cubin for each architecture, and PTX of the first for all later ones, into one fatbin.

    Args:
        out: the file.
        architectures: compute capabilities without the dot, ascending.
        flags: more options for nvcc.
        source: one of `SOURCES`.

    Raises:
        BackendError: if nvcc is not there or fails, or a kernel spills registers; the file is not written then.
    """
    command = [*_nvcc(), "-fatbin", *FLAGS, *flags, *_targets(architectures)]
    partial = out.with_name(out.name + ".partial")
    try:
        resources = parse_resources(_run([*command, "-o", str(partial), str(source)]))
        check_spills(resources)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return resources


def compile_plugin(out: Path, architectures: Sequence[str] = ARCHITECTURES) -> None:
    """Writes the library that `IPluginRegistry::loadLibrary` and `trtexec --staticPlugins` take; it links neither libnvinfer nor libcudart.

    Args:
        out: the file, for instance libfastsam2_plugins.so.
        architectures: as in `compile_fatbin`.

    Raises:
        BackendError: if nvcc or TensorRT's headers are not there, or nvcc fails; the file is not written then.
    """
    headers = tensorrt_headers()
    if headers is None:
        todo = f"Set {TENSORRT_INCLUDE_DIR} to the folder of TensorRT's C++ headers"
        raise BackendError(expected("NvInfer.h", os.environ.get(TENSORRT_INCLUDE_DIR) or f"no {TENSORRT_INCLUDE_DIR}", todo))
    flags = ("-shared", "-std=c++17", "-O3", "-Xcompiler=-fPIC", "-cudart=static", f"-isystem={headers}")
    partial = out.with_name(out.name + ".partial")
    try:
        _run([*_nvcc(), *flags, *_targets(architectures), "-o", str(partial), str(SOURCE), str(PLUGIN_SOURCE)])
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)


def tensorrt_headers() -> Path | None:
    """The folder that TENSORRT_INCLUDE_DIR names, if NvInfer.h is in it."""
    folder = os.environ.get(TENSORRT_INCLUDE_DIR)
    return Path(folder) if folder and (Path(folder) / "NvInfer.h").is_file() else None


def _targets(architectures: Sequence[str]) -> list[str]:
    """PTX of the first, a cubin for each."""
    oldest = architectures[0]
    return [f"-gencode=arch=compute_{oldest},code=compute_{oldest}"] + [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]


def _run(command: Sequence[str]) -> str:
    """Everything a compiler printed; BackendError with it if the compiler failed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    report = done.stdout + done.stderr
    if done.returncode != 0:
        raise BackendError(expected(f"nvcc to compile {Path(command[-1]).name}", report.strip() or f"exit {done.returncode}", NVCC))
    return report


def nvcc_version() -> str:
    """Release of the compiler, for instance "13.0.88".

    Raises:
        BackendError: if there is none.
    """
    done = subprocess.run([*_nvcc(), "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"V(\d+\.\d+\.\d+)", done.stdout)
    if found is None:
        raise BackendError(
            expected("nvcc to tell its version", (done.stdout + done.stderr).strip() or "nothing", "Repair the CUDA toolkit")
        )
    return found[1]


def _nvcc() -> list[str]:
    found = shutil.which("nvcc")
    if found is None:
        raise BackendError(expected("nvcc on PATH", "none", "Install the CUDA toolkit; Python users need none (see docs/kernels.md)"))
    return [found]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0, or 2 with the error on stderr."""
    parser = argparse.ArgumentParser(prog="python -m fastsam2.kernels.build", description="Compile the CUDA kernels with nvcc.")
    parser.add_argument("--out", type=Path, default=Path("build/kernels"), help="folder for the fatbins (default: %(default)s)")
    parser.add_argument("--arch", nargs="+", choices=ARCHITECTURES, default=ARCHITECTURES, help="compute capabilities without the dot")
    parser.add_argument("--plugin", action="store_true", help=f"also libfastsam2_plugins.so, with the headers in {TENSORRT_INCLUDE_DIR}")
    parser.add_argument("--resources", type=Path, help="also write registers, shared memory and spills to this JSON file")
    options = parser.parse_args(arguments)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        architectures = sorted(set(options.arch), key=int)
        resources = [
            one
            for source in SOURCES
            for one in compile_fatbin(options.out / source.with_suffix(".fatbin").name, architectures, source=source)
        ]
        if options.plugin:
            compile_plugin(options.out / "libfastsam2_plugins.so", architectures)
        if options.resources is not None:
            record = {"nvcc": nvcc_version(), "flags": FLAGS, "kernels": [asdict(one) for one in resources]}
            options.resources.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    except (FastSam2Error, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    for one in resources:
        print(f"sm_{one.architecture:4} {one.kernel:32} {one.registers:3} registers, {one.spill_bytes} bytes spilled")
    return 0


if __name__ == "__main__":
    sys.exit(main())
