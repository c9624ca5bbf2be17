"""The C++ runtime built for tests, in a folder that is kept from run to run, and the tools it takes."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[2]
CPP = ROOT / "runtime" / "cpp"
BUILD = ROOT / "build" / "cpp"
HEADERS = ("/usr/include", "/usr/local/include", "/opt/homebrew/include")


def tool(name: str) -> str | None:
    """A program beside this Python, or on PATH."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.is_file() else shutil.which(name)


def missing() -> list[str]:
    """What a build of the runtime and its Python module lacks here."""
    lacking = [name for name in ("cmake", "ninja") if tool(name) is None]
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        lacking.append("a C++ compiler")
    if importlib.util.find_spec("nanobind") is None:
        lacking.append("the Python package nanobind")
    if "nlohmann_json_DIR" not in os.environ and not any(Path(folder, "nlohmann", "json.hpp").is_file() for folder in HEADERS):
        lacking.append("nlohmann/json.hpp (nlohmann-json3-dev)")
    return lacking


needs_native = pytest.mark.skipif(bool(missing()), reason=f"no C++ build here: {', '.join(missing())} not found")


def run(*command: str | Path, timeout: int = 900, **environment: str) -> str:
    """Output of a command that has to succeed."""
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=timeout, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def build(name: str, *options: str) -> Path:
    """Configures and builds a tree of its own; every test process waits for the same one."""
    cmake, ninja, folder = tool("cmake"), tool("ninja"), BUILD / name
    assert cmake is not None and ninja is not None
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        run(cmake, "-S", ROOT, "-B", folder, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}", *options)
        run(cmake, "--build", folder, "--parallel", str(len(os.sched_getaffinity(0))))
    return folder


def release() -> Path:
    """The shared library and the Python module over it, with warnings as errors."""
    return build(
        "release",
        "-DCMAKE_BUILD_TYPE=Release",
        "-DBUILD_SHARED_LIBS=ON",
        "-DFASTSAM2_BUILD_PYTHON=ON",
        "-DFASTSAM2_BUILD_TESTS=OFF",
        "-DFASTSAM2_WARNINGS_AS_ERRORS=ON",
        f"-DPython_EXECUTABLE={sys.executable}",
    )


def library() -> Path:
    """The shared library."""
    return release() / "runtime" / "cpp" / "libfastsam2_runtime.so"


@cache
def core() -> ModuleType:
    """The module fastsam2_core."""
    (file,) = (release() / "runtime" / "cpp").glob("fastsam2_core*.so")
    spec = importlib.util.spec_from_file_location("fastsam2_core", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
