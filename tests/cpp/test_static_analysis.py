"""clang-tidy, cppcheck and clang-format find nothing. `make lint-cpp` runs every check of clang-tidy, which takes minutes."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from .native import CPP, ROOT, run

pytestmark = pytest.mark.xdist_group("cpp_lint")

CORE = sorted((CPP / "src").rglob("*.cpp"))
# Checks that find mistakes and take about a second a file; the others look at every declaration of the standard library.
QUICK = ",".join([
    "-*", "bugprone-dangling-handle", "bugprone-infinite-loop", "bugprone-integer-division", "bugprone-sizeof-expression",
    "bugprone-string-constructor", "bugprone-suspicious-semicolon", "bugprone-undelegated-constructor", "bugprone-unused-raii",
    "bugprone-use-after-move", "cppcoreguidelines-slicing", "cppcoreguidelines-virtual-class-destructor", "modernize-use-nullptr",
    "modernize-use-override", "performance-for-range-copy", "performance-inefficient-vector-operation", "performance-move-const-arg",
    "performance-noexcept-move-constructor", "performance-unnecessary-copy-initialization",
])  # fmt: skip


def absent(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(name) is None, reason=f"no {name} on PATH")


def without_engines() -> list[Path]:
    """Sources of the core; those of engines need headers that are not everywhere."""
    names = ("onnxruntime", "NvInfer", "cuda_runtime", "nvrtc")
    return [file for file in CORE if not any(re.search(rf"#include .*{name}", file.read_text()) for name in names)]


@absent("clang-tidy")
@pytest.mark.skipif(not any(Path(folder, "nlohmann/json.hpp").is_file() for folder in ("/usr/include", "/usr/local/include")),
                    reason="no nlohmann/json.hpp (nlohmann-json3-dev)")  # fmt: skip
def test_clang_tidy_finds_nothing() -> None:
    files = without_engines()
    assert len(files) > 15
    checks = [] if os.environ.get("FASTSAM2_TIDY") == "all" else [f"--checks={QUICK}"]
    folders = (CPP / "include", CPP / "src", CPP / "src" / "tensorrt", ROOT / "kernels" / "cuda")
    compiled_as = ["--", "-std=c++20", *(f"-I{folder}" for folder in folders)]
    for file in files:
        run("clang-tidy", "--quiet", *checks, "--warnings-as-errors=*", file, *compiled_as)


@absent("cppcheck")
def test_cppcheck_finds_nothing() -> None:
    run("cppcheck", "--std=c++20", "--language=c++", "--enable=warning,performance,portability,style", "--inline-suppr", "--quiet",
        "--error-exitcode=1", f"--suppressions-list={CPP / 'cppcheck-suppressions.txt'}", "-I", CPP / "include", "-I", CPP / "src",
        *without_engines())  # fmt: skip


@absent("cppcheck")
def test_cppcheck_sees_the_sources(tmp_path: Path) -> None:
    """The same command fails where there is something to find."""
    (tmp_path / "broken.cpp").write_text("int first() { int values[2] = {0, 1}; return values[2]; }\n")
    with pytest.raises(AssertionError, match="arrayIndexOutOfBounds"):
        run("cppcheck", "--std=c++20", "--quiet", "--error-exitcode=1", tmp_path / "broken.cpp")
