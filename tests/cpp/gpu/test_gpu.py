"""The C++ tracker on a GPU that is this machine gives the Python tracker's masks, with graphs that ONNX Runtime runs.

Oracle of masks: the Python tracker in host memory, on the same ONNX graphs with one thread. Oracle of what is accepted: what
`fastsam2 build` writes. The C++ side by itself is tested under sanitizers in `*_test.cpp`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastsam2
from fastsam2.config import Prune
from fastsam2.engines.profiles import Limits
from fastsam2.engines.records import load_engines
from fastsam2.enums import ExportTarget, Flavor, PrunePolicy
from fastsam2.errors import BundleError
from fastsam2.kernels.build import TENSORRT_INCLUDE_DIR, tensorrt_headers
from fastsam2.runtime.backends.onnxruntime import OnnxRuntimeBackend
from fastsam2.runtime.loaded import LoadedBundle
from fastsam2.runtime.result import Result
from fastsam2.runtime.tracker import Tracker
from tests.cpp.gpu.fake import GpuTracker, Refused, check, library
from tests.cpp.native import ROOT, needs_native, run, tool
from tests.engine_bundle import SPEC, write_bundle
from tests.parity.clips import make_clip
from tests.tensorrt_world import VERSIONS, write_engines

pytestmark = [needs_native, pytest.mark.xdist_group("cpp")]

FRAMES = make_clip("gpu_loop", 24).frames
SOURCES = ROOT / "runtime" / "cpp" / "src" / "tensorrt"
RTX_LIBRARIES = sorted(Path(sysconfig.get_path("platlib")).glob("tensorrt_rtx_libs/libtensorrt_rtx.so.*"))
NVCC = shutil.which("nvcc")
BOX, OTHER_BOX = (90, 60, 210, 170), (60, 90, 160, 200)
MASK = np.pad(np.ones((60, 70), bool), ((40, 140), (50, 200)))
Answer = Result | dict[str, Any]


def scenario(tracker: Tracker | GpuTracker, count: int) -> list[Answer]:
    """Objects that come late, by box, mask and click; corrections; one that goes."""

    def add(object_id: int, **prompt: Any) -> Answer:
        return tracker.prompt(object_id, **prompt) if isinstance(tracker, GpuTracker) else tracker.add(object_id, **prompt)

    def correct(object_id: int, **prompt: Any) -> Answer:
        if isinstance(tracker, GpuTracker):
            return tracker.prompt(object_id, correct=True, **prompt)
        return tracker.correct(object_id, **prompt)

    results = []
    for t, frame in enumerate(FRAMES[:count]):
        result: Answer = tracker.step(frame)
        if t == 0:
            add(1, box=BOX)
            result = add(2, box=OTHER_BOX)
        if t == 3:
            result = add(5, mask=MASK)
        if t == 5:
            correct(1, points=[(150, 100)], labels=[0])
            result = correct(1, points=[(120, 90)], append=True)
        if t == 7:
            tracker.remove(2)
            result = add(3, points=[(40, 50)])
        results.append(result)
    return results


def value(answer: Answer, name: str) -> Any:
    return answer[name] if isinstance(answer, dict) else getattr(answer, name)


@pytest.fixture(scope="module")
def nano() -> LoadedBundle:
    return fastsam2.load("nano", threads=1)


@pytest.mark.parametrize(("policy", "keep"), [(PrunePolicy.DENSE, 0.0), (PrunePolicy.UNIFORM, 0.25)])
def test_every_bit_is_that_of_the_host(nano: LoadedBundle, policy: PrunePolicy, keep: float) -> None:
    tracker = GpuTracker(nano.backend, nano.folder, policy=policy, keep=keep)
    ours = scenario(tracker, 8)
    tracker.close()
    prune = Prune(policy=policy, keep=keep, protect=()) if keep else Prune()
    theirs = scenario(nano.tracker(prune=prune), 8)
    assert max(value(r, "masks").mean() for r in theirs) > 0.02
    for t, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        for name in ("ids", "masks", "low_res_logits", "scores", "ious"):
            np.testing.assert_array_equal(value(a, name), value(b, name), err_msg=f"{name} of frame {t}")


def test_steady_state_allocates_nothing_and_waits_once(nano: LoadedBundle) -> None:
    """Pointers grow until the sixteenth frame."""
    tracker = GpuTracker(nano.backend, nano.folder)
    tracker.step(FRAMES[0])
    tracker.prompt(1, box=BOX)
    for frame in FRAMES[1:20]:
        tracker.step(frame)
    for frame in FRAMES[20:]:
        tracker.clear()
        tracker.step(frame)
        assert {call: tracker.count(call) for call in ("allocate", "release", "pinned", "synchronize")} == {
            "allocate": 0,
            "release": 0,
            "pinned": 0,
            "synchronize": 1,
        }
    tracker.close()


def test_graphs_of_the_tensorrt_form_in_chunks(bundle_micro: Path) -> None:
    """These take a bias for each key, and an engine takes so many objects at once. Masks differ by rounding."""
    host = fastsam2.load(bundle_micro, threads=1)
    graphs = OnnxRuntimeBackend(host.folder, host.manifest, threads=1)
    graphs.target = ExportTarget.TENSORRT
    tracker = GpuTracker(graphs, host.folder, target=ExportTarget.TENSORRT, most=2)
    ours, theirs = scenario(tracker, 8), scenario(host.tracker(), 8)
    tracker.close()
    for a, b in zip(ours, theirs, strict=True):
        assert np.abs(value(a, "low_res_logits") - value(b, "low_res_logits")).max() < 1e-3
        assert np.mean(value(a, "masks") != value(b, "masks")) < 1e-3
    assert set(tracker.objects) == {1, 2}


def test_a_graph_that_fails_says_so(nano: LoadedBundle) -> None:
    class Broken:
        name = "broken"

        def run(self, *_: Any) -> Any:
            raise RuntimeError("out of luck")

    tracker = GpuTracker(Broken(), nano.folder)
    tracker.step(FRAMES[0])
    with pytest.raises(Refused, match="out of luck"):
        tracker.prompt(1, box=BOX)
    tracker.close()


@pytest.mark.parametrize("flavor", list(Flavor))
def test_engines_are_accepted_and_refused_as_in_python(tmp_path: Path, flavor: Flavor) -> None:
    manifest = write_bundle(tmp_path, SPEC)
    folder = write_engines(tmp_path, manifest, flavor, "8.9")
    record = folder / "engines.json"
    whole = json.loads(record.read_text())
    release = VERSIONS[flavor]

    def both(why: str | None, *, target: str = "8.9") -> None:
        def ours() -> None:
            check(library().gpu_fake_load_engines(*(text.encode() for text in (str(tmp_path), flavor.value, release, target))))

        if why is None:
            ours()
            load_engines(tmp_path, manifest, flavor, version=release, target=target)
            return
        with pytest.raises(Refused, match=rf"{why}.*fastsam2 build"):
            ours()
        with pytest.raises(BundleError, match=r"fastsam2 build") as python:
            load_engines(tmp_path, manifest, flavor, version=release, target=target)
        commands = [str(error).split("fastsam2 build", 1)[1] for error in (python.value, _refusal(ours))]
        assert commands[0] == commands[1]

    def changed(change: Any, why: str) -> None:
        content = json.loads(json.dumps(whole))
        change(content)
        record.write_text(json.dumps(content))
        both(why)
        record.write_text(json.dumps(whole))

    both(None)
    both("engines", target="9.0")
    changed(lambda r: r["engines"].pop(), "an engine of")
    changed(lambda r: r["engines"][1].update(source_sha256="0" * 64), "another ONNX file")
    changed(lambda r: r["engines"][1].update(precision="fp32"), "one precision")
    changed(lambda r: r["engines"][1].update(surplus=1), "surplus")
    changed(lambda r: r["limits"].update(max_objects=2), "another profile")
    changed(lambda r: r.update(record_version=2), "record_version 1")
    changed(lambda r: r.update(version="0.1"), "engines of")
    engine = folder / whole["engines"][0]["file"]["path"]
    content = engine.read_bytes()
    for damaged, why in ((content[:-1], "bytes instead of"), (content[:-1] + b"?", "was altered")):
        engine.write_bytes(damaged)
        both(why)
    engine.write_bytes(content)
    both(None)
    assert Limits() != Limits(max_objects=2)


def _refusal(call: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        call()
    return caught.value


@pytest.mark.skipif(NVCC is None, reason="no nvcc on PATH")
@pytest.mark.skipif(tensorrt_headers() is None, reason=f"{TENSORRT_INCLUDE_DIR} names no folder with NvInfer.h")
def test_what_joins_cuda_and_tensorrt_compiles(tmp_path: Path) -> None:
    """For one architecture, with warnings as errors; nothing of it runs here. The library of TensorRT is not linked."""
    cmake, ninja = tool("cmake"), tool("ninja")
    assert cmake is not None and ninja is not None
    options = ("-DFASTSAM2_WITH_TENSORRT=ON", f"-DTENSORRT_INCLUDE_DIR={tensorrt_headers()}", "-DCMAKE_CUDA_ARCHITECTURES=90",
               "-DFASTSAM2_BUILD_TESTS=OFF", "-DFASTSAM2_WARNINGS_AS_ERRORS=ON", f"-DCMAKE_MAKE_PROGRAM={ninja}")  # fmt: skip
    run(cmake, "-S", ROOT, "-B", tmp_path, "-G", "Ninja", *options)
    objects = tmp_path / "runtime" / "cpp" / "CMakeFiles"
    joined = [objects / "fastsam2_runtime.dir" / "src" / "tensorrt" / f"{name}.cpp.o" for name in ("cuda_gpu", "open")]
    run(ninja, "-C", tmp_path, "fastsam2_kernels", "fastsam2_tensorrt", *(str(o.relative_to(tmp_path)) for o in joined))
    (infer,) = (objects / "fastsam2_tensorrt.dir").rglob("nvinfer.cpp.o")
    symbols = run("nm", "-C", "--undefined-only", infer)
    assert "dlsym" in symbols and "nvinfer" not in symbols and "_INTERNAL" not in symbols
    kernels = run("nm", *(objects / "fastsam2_kernels.dir").rglob("*.o"))
    wanted = {line.split()[-1] for line in run("nm", "--undefined-only", joined[0]).splitlines() if " fastsam2_" in line}
    assert len(wanted) >= 12 and all(f" T {name}\n" in kernels for name in wanted)


@pytest.mark.skipif(tensorrt_headers() is None, reason=f"{TENSORRT_INCLUDE_DIR} names no folder with NvInfer.h")
@pytest.mark.skipif(not RTX_LIBRARIES, reason="the Python package tensorrt_rtx is not installed")
@pytest.mark.skipif(NVCC is None, reason="no nvcc on PATH")
def test_a_library_of_another_version_is_refused(tmp_path: Path) -> None:
    """The library of TensorRT-RTX in the place of TensorRT's: it opens, tells its version, and goes no further."""
    library, program = RTX_LIBRARIES[0], tmp_path / "open.cpp"
    program.write_text(
        f"""#define FASTSAM2_NVINFER_OPEN open_tensorrt_library
#define FASTSAM2_NVINFER_NAMESPACE fastsam2_nvinfer_tensorrt
#define FASTSAM2_NVINFER_LIBRARY "{library}"
#include "nvinfer.cpp"
#include <cstdio>
int main() {{
  try {{ fastsam2::gpu::open_tensorrt_library(); }} catch (const fastsam2::BackendError& error) {{ std::puts(error.what()); }}
}}"""
    )
    includes = [f"-I{folder}" for folder in (SOURCES, SOURCES.parents[1] / "include", tensorrt_headers())]
    run(str(NVCC), "-std=c++20", *includes, program, "-o", tmp_path / "open", "-ldl")
    said = run(tmp_path / "open")
    assert "which this program was compiled for" in said and f"{library} {version('tensorrt-rtx-cu13')}" in said, said


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    cmake, ninja = tool("cmake"), tool("ninja")
    assert cmake is not None and ninja is not None
    common = ("-S", str(ROOT), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}", "-DFASTSAM2_BUILD_TESTS=OFF")
    for option, message in (
        ("ON", "the CUDA toolkit (set CUDAToolkit_ROOT to its folder)"),
        ("MAYBE", "expected FASTSAM2_WITH_TENSORRT AUTO, ON or OFF"),
    ):
        command = (cmake, *common, "-B", str(tmp_path / option), f"-DFASTSAM2_WITH_TENSORRT={option}",
                   "-DCMAKE_DISABLE_FIND_PACKAGE_CUDAToolkit=ON")  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode != 0 and message in " ".join(done.stderr.split()), done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="the library is opened with dlopen")
def test_the_seam_knows_no_types_of_cuda_or_tensorrt() -> None:
    """What joins them is in three files: everything else is built and tested without."""
    joined = {p.name for p in SOURCES.iterdir() if any(word in p.read_text() for word in ("cuda_runtime", "NvInfer", "nvinfer1"))}
    assert joined == {"cuda_gpu.cpp", "nvinfer.cpp"}
