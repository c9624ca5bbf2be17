"""The core compiles for 64-bit ARM with the preset."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from .native import ROOT, needs_native, run, tool

AARCH64 = 183  # e_machine of ELF

pytestmark = [
    needs_native,
    pytest.mark.skipif(shutil.which("aarch64-linux-gnu-g++") is None, reason="no g++-aarch64-linux-gnu"),
    pytest.mark.xdist_group("cpp"),
]


def test_preset_builds_for_aarch64() -> None:
    """Without optimisation: what is looked for is an assumption about the machine that does not compile."""
    cmake, ninja, folder = tool("cmake"), tool("ninja"), ROOT / "build" / "cpp" / "aarch64"
    assert cmake is not None and ninja is not None
    options = ["-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_DEBUG=-O0", "-DFASTSAM2_WITH_ONNXRUNTIME=OFF"]
    run(cmake, "--preset", "aarch64", "-S", ROOT, "-B", folder, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}", *options)
    run(cmake, "--build", folder, "--parallel", str(len(os.sched_getaffinity(0))))
    library = Path(folder, "runtime", "cpp", "libfastsam2_runtime.so").read_bytes()
    assert library[:5] == b"\x7fELF\x02" and int.from_bytes(library[18:20], "little") == AARCH64
