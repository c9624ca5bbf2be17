"""The library by itself: the generated header, tests under sanitizers, installing and linking."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fastsam2.runtime.contracts_header import HEADER, header

from .native import CPP, ROOT, build, needs_native, release, run, tool

GTEST = any(Path(folder, "gtest", "gtest.h").is_file() for folder in ("/usr/include", "/usr/local/include", "/opt/homebrew/include"))

pytestmark = pytest.mark.xdist_group("cpp")


def test_header_is_current() -> None:
    assert HEADER.read_text(encoding="utf-8") == header(), "run `python -m fastsam2.runtime.contracts_header`"


def test_core_knows_no_engine() -> None:
    """No type of TensorRT, CUDA or ONNX Runtime in what the core is made of; only the file that opens backends includes theirs."""
    own = ("onnxruntime_backend.cpp", "onnxruntime_backend.hpp", "open_backend.cpp")
    files = [file for file in (*CPP.glob("src/*.[ch]pp"), *CPP.glob("include/fastsam2/*")) if file.name not in own]
    assert len(files) > 30
    included = [f"{file.name}: {line}" for file in files for line in file.read_text().splitlines() if line.startswith("#include")]
    assert [line for line in included if any(name in line.lower() for name in ("nvinfer", "cuda", "onnxruntime", "tensorrt"))] == []


def test_files_stay_readable() -> None:
    files = [f for f in (*CPP.rglob("*.[ch]pp"), *(ROOT / "tests" / "cpp").rglob("*.[ch]pp")) if f != HEADER]
    assert {f.name: n for f in files if (n := len(f.read_text().splitlines())) > 450} == {}


@pytest.mark.skipif(shutil.which("clang-format") is None, reason="no clang-format on PATH")
def test_files_are_formatted() -> None:
    files = [f for f in (*CPP.rglob("*.[ch]pp"), *(ROOT / "tests" / "cpp").rglob("*.[ch]pp")) if f != HEADER]
    run("clang-format", "--dry-run", "--Werror", *files)


@needs_native
@pytest.mark.skipif(not GTEST, reason="no GoogleTest (libgtest-dev)")
def test_unit_tests_pass_under_sanitizers() -> None:
    folder = build("sanitized", "-DCMAKE_BUILD_TYPE=Debug", "-DFASTSAM2_SANITIZE=address,undefined", "-DFASTSAM2_WARNINGS_AS_ERRORS=ON")
    ctest = tool("ctest")
    assert ctest is not None
    assert "100% tests passed" in run(ctest, "--test-dir", folder, "--output-on-failure")


CONSUMER = {
    "CMakeLists.txt": """cmake_minimum_required(VERSION 3.22)
project(consumer LANGUAGES C CXX)
find_package(fastsam2 0.1 REQUIRED)
add_executable(in_c main.c)
add_executable(in_cpp main.cpp)
target_link_libraries(in_c PRIVATE fastsam2::runtime)
target_link_libraries(in_cpp PRIVATE fastsam2::runtime)
""",
    "main.c": """#include <fastsam2/fastsam2.h>
#include <stdio.h>
int main(void) {
  fastsam2_tracker none = {0};
  if (fastsam2_tracker_reset(none) != FASTSAM2_ERROR_HANDLE) return 1;
  printf("%u %s\\n", (unsigned)fastsam2_abi_version(), fastsam2_last_error());
  return 0;
}
""",
    "main.cpp": """#include <fastsam2/bundle.hpp>
#include <fastsam2/tracker.hpp>
#include <iostream>
int main(int, char** argv) { std::cout << fastsam2::read_manifest(argv[1]).model.name << "\\n"; }
""",
}


@needs_native
def test_installed_library_links_from_c_and_cpp(tmp_path: Path) -> None:
    cmake, ninja = tool("cmake"), tool("ninja")
    assert cmake is not None and ninja is not None
    run(cmake, "--install", release(), "--prefix", tmp_path / "installed")
    for name, text in CONSUMER.items():
        (tmp_path / name).write_text(text)
    options = ("-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}", f"-DCMAKE_PREFIX_PATH={tmp_path / 'installed'}")
    run(cmake, "-S", tmp_path, "-B", tmp_path / "build", *options)
    run(cmake, "--build", tmp_path / "build")
    assert run(tmp_path / "build" / "in_c").startswith("1 expected an open handle, got 0.")
    assert run(tmp_path / "build" / "in_cpp", ROOT / "fastsam2" / "models" / "nano") == "nano.yaml\n"
