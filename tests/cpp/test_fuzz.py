"""Short runs of the fuzzers under AddressSanitizer and UBSan, always the same ones. FASTSAM2_FUZZ_RUNS asks for longer ones.

The targets check more than crashes: what an accepted manifest promises, and that calls which fail change nothing.
"""

from __future__ import annotations

import copy
import json
import os
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .native import ROOT, build, needs_native, run

NANO = ROOT / "fastsam2" / "models" / "nano" / "manifest.json"
RUNS = "FASTSAM2_FUZZ_RUNS"


def lacks_fuzzer() -> bool:
    """Whether clang++, or the fuzzing library that belongs to it, is absent."""
    clang = shutil.which("clang++")
    if clang is None:
        return True
    answers = [subprocess.run([clang, f"-print-file-name=libclang_rt.fuzzer{suffix}.a"], capture_output=True, text=True, check=True).stdout
               for suffix in ("", f"-{os.uname().machine}")]  # fmt: skip
    return not any(Path(answer.strip()).is_file() for answer in answers)


pytestmark = [
    needs_native,
    pytest.mark.skipif(lacks_fuzzer(), reason="no Clang with libFuzzer (clang, libclang-rt-dev)"),
    pytest.mark.xdist_group("cpp"),
]


@pytest.fixture(scope="module")
def fuzzers() -> Path:
    """Folder of the targets. Without optimisation, because compiling takes longer than running."""
    folder = build(
        "fuzz",
        "-DCMAKE_CXX_COMPILER=clang++",
        "-DCMAKE_C_COMPILER=clang",
        "-DCMAKE_CXX_FLAGS=-gline-tables-only",
        "-DFASTSAM2_SANITIZE=address,undefined",
        "-DFASTSAM2_WITH_ONNXRUNTIME=OFF",
        "-DFASTSAM2_BUILD_TESTS=OFF",
        "-DFASTSAM2_BUILD_FUZZERS=ON",
    )
    return folder / "runtime" / "cpp"


def covered(target: Path, corpus: Path, *, runs: int, longest: int) -> int:
    """Edges of the code that a run reached. Fails with the report of a sanitizer or the broken promise."""
    command = [target, "-seed=1", f"-runs={os.environ.get(RUNS, runs)}", f"-max_len={longest}", "-len_control=0", "-timeout=60"]
    done = subprocess.run(
        [*map(str, command), f"-artifact_prefix={corpus.parent}/", str(corpus)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "ASAN_OPTIONS": "allocator_may_return_null=1:detect_leaks=1"},
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return max(int(edges) for edges in re.findall(r"cov: (\d+)", done.stderr))


def manifests() -> Iterator[Any]:
    """The manifest of a bundle, smaller ones, and ones that are wrong in one place."""
    whole = json.loads(NANO.read_text())
    yield whole
    yield {key: value for key, value in whole.items() if key not in ("text", "router")} | {"graphs": whole["graphs"][:1]}
    for key in whole:
        yield {name: value for name, value in whole.items() if name != key}
        yield whole | {key: None}
    for path in ("../out", "/out", "a\0b", ""):
        changed = copy.deepcopy(whole)
        changed["graphs"][0]["file"]["path"] = path
        yield changed


def test_manifests_are_read_or_refused(fuzzers: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, manifest in enumerate(manifests()):
        (corpus / f"{number}.json").write_text(json.dumps(manifest, separators=(",", ":")))
    deep = 9000
    (corpus / "deep.json").write_text(f'{{"manifest_version":2,"fastsam2_version":"0","precision":{"[" * deep}{"]" * deep}}}')
    assert covered(fuzzers / "fastsam2_fuzz_manifest", corpus, runs=1000, longest=20000) > 600


def test_c_interface_keeps_its_promises(fuzzers: Path, tmp_path: Path) -> None:
    corpus, source = tmp_path / "corpus", random.Random(1)
    corpus.mkdir()
    for number in range(60):
        (corpus / f"{number}.bin").write_bytes(source.randbytes(512))
    assert covered(fuzzers / "fastsam2_fuzz_c_interface", corpus, runs=500, longest=512) > 1500


def test_configuring_without_clang_is_refused(tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    with pytest.raises(AssertionError, match="fuzzing needs Clang, got GNU"):
        run("cmake", "-S", ROOT, "-B", tmp_path, "-DCMAKE_CXX_COMPILER=g++", "-DFASTSAM2_BUILD_FUZZERS=ON", "-DFASTSAM2_BUILD_TESTS=OFF")
