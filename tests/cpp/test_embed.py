"""The README's section "Embed in C++", run as it stands in a copy of what it names, and the ONNX Runtime backend that it builds.

Oracle: `fastsam2.runtime.tracker.Tracker` over the same ONNX Runtime library, on the frames that the program was given.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from filelock import FileLock

import fastsam2
from fastsam2.config import Prune
from fastsam2.enums import PrunePolicy
from tests.parity.clips import make_clip
from tests.parity.scenarios import BY_NAME

from .both import play
from .c_interface import CInterface
from .native import BUILD, HEADERS, ROOT, needs_native, run, tool

pytestmark = [needs_native, pytest.mark.xdist_group("cpp")]

BLOCK = re.compile(r"<!-- run: cpp( onnxruntime)? -->\n```(sh|cmake|c)\n(.*?)```", re.DOTALL)
CLIP = ROOT / "fastsam2" / "samples" / "hard_000" / "clip.mp4"
NANO = ROOT / "fastsam2" / "models" / "nano"
ONNXRUNTIME, MASK = 1, 3  # fastsam2_backend, fastsam2_policy
FRAMES = 8
NO_TESTS = "-DFASTSAM2_BUILD_TESTS=OFF"

FFMPEG = """#!{python}
import sys, av
assert sys.argv[1:] == "-loglevel error -i fastsam2/samples/hard_000/clip.mp4 -f rawvideo -pix_fmt rgb24 -".split(), sys.argv
with av.open(sys.argv[4]) as clip:
    for index, frame in enumerate(clip.decode(video=0)):
        if index == {frames}:
            break
        sys.stdout.buffer.write(frame.to_ndarray(format="rgb24").tobytes())
"""

CALLBACK = """#include <fastsam2/fastsam2.h>
#include <stdio.h>
static int32_t run(void* user, const char* role, const fastsam2_tensor* inputs, uint32_t input_count,
                   const fastsam2_tensor* outputs, uint32_t output_count, char* message, uint32_t message_bytes) {
  (void)role, (void)inputs, (void)input_count, (void)message, (void)message_bytes;
  ++*(int*)user;
  for (uint32_t o = 0; o < output_count; ++o)
    for (uint64_t i = 0; i < outputs[o].bytes / sizeof(float); ++i) ((float*)outputs[o].data)[i] = 2.5f;
  return 0;
}
int main(int argc, char** argv) {
  static uint8_t pixels[36 * 48 * 3];
  int calls = 0, covered = 0;
  fastsam2_bundle_options options = {sizeof options, FASTSAM2_ABI_VERSION, run, &calls};
  fastsam2_image frame = {sizeof frame, FASTSAM2_RGB8, 36, 48, .pixels = pixels, .pixel_bytes = sizeof pixels};
  fastsam2_prompt prompt = {sizeof prompt, .box = (const float[]){10, 10, 30, 30}};
  fastsam2_result_view view = {sizeof view};
  fastsam2_bundle bundle;
  fastsam2_tracker tracker;
  fastsam2_result result;
  if (argc < 2 || fastsam2_bundle_open(argv[1], &options, &bundle) || fastsam2_tracker_open(bundle, NULL, &tracker) ||
      fastsam2_tracker_step(tracker, &frame, &result) || fastsam2_tracker_add(tracker, 1, &prompt, &result) ||
      fastsam2_result_read(result, &view))
    return fprintf(stderr, "%s\\n", fastsam2_last_error()), 1;
  for (uint32_t i = 0; i < view.height * view.width; ++i) covered += view.masks[i];
  printf("%d calls, %d pixels, score %.1f\\n", calls, covered, view.scores[0]);
  return 0;
}
"""


def _header() -> Path | None:
    """The folder of ONNX Runtime's C header, where there is one."""
    root = os.environ.get("ONNXRUNTIME_ROOT")
    named = [os.environ.get("ONNXRUNTIME_INCLUDE_DIR"), *([f"{root}/include", f"{root}/include/onnxruntime"] if root else [])]
    usual = [f"{folder}/{inner}" for folder in HEADERS for inner in (".", "onnxruntime", "onnxruntime/core/session")]
    return next((Path(f) for f in (*named, *usual) if f and Path(f, "onnxruntime_c_api.h").is_file()), None)


needs_onnxruntime = pytest.mark.skipif(
    _header() is None, reason="no onnxruntime_c_api.h: set ONNXRUNTIME_ROOT or ONNXRUNTIME_INCLUDE_DIR to a release of ONNX Runtime"
)


@dataclass(frozen=True)
class Clone:
    """A copy of what the section's commands read, with everything that they wrote."""

    folder: Path
    environment: dict[str, str]
    readme: list[tuple[str, str, str]]  # " onnxruntime" or nothing, language and text of each marked block

    def shell(self, text: str) -> str:
        """Output of commands that have to succeed."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text], cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{text}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def block(self, language: str) -> str:
        """The text of the only block in a language."""
        (text,) = [text for _, kind, text in self.readme if kind == language]
        return text

    def program(self, source: str, name: str) -> Path:
        """The README's project over a main.c, built against the installed library."""
        project = self.folder / name
        project.mkdir(exist_ok=True)
        (project / "CMakeLists.txt").write_text(self.block("cmake"))
        (project / "main.c").write_text(source)
        self.shell(f'cmake -S {name} -B build/{name} -DCMAKE_PREFIX_PATH="$PWD/out/installed" && cmake --build build/{name}')
        return self.folder / "build" / name / "track"


def _current(source: Path, copy: Path) -> None:
    """Copies what changed, with its time, so that only that is compiled again."""
    if not copy.is_file() or (copy.stat().st_mtime_ns, copy.stat().st_size) != (source.stat().st_mtime_ns, source.stat().st_size):
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, copy)


def _copied(folder: Path) -> None:
    kept = [ROOT / "CMakeLists.txt", ROOT / "CMakePresets.json", ROOT / "fastsam2" / "__init__.py", CLIP]
    for source in (*kept, *(f for top in (ROOT / "runtime" / "cpp", ROOT / "kernels", NANO) for f in top.rglob("*") if f.is_file())):
        _current(source, folder / source.relative_to(ROOT))


@pytest.fixture(scope="module")
def clone() -> Clone:
    """What stands after the README's commands that build and install; kept from run to run, as other builds of these tests."""
    folder, header = BUILD / "embed", _header()
    cmake, ninja = tool("cmake"), tool("ninja")
    assert cmake is not None and ninja is not None
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        _copied(folder)
        programs = folder / "programs"
        programs.mkdir(exist_ok=True)
        (programs / "ffmpeg").write_text(FFMPEG.format(python=sys.executable, frames=FRAMES))
        (programs / "ffmpeg").chmod(0o755)
        path = [str(programs), str(Path(cmake).parent), str(Path(ninja).parent), os.environ["PATH"]]
        release = folder / "onnxruntime"
        environment = {**os.environ, "PATH": os.pathsep.join(path), "CMAKE_GENERATOR": "Ninja", "ONNXRUNTIME_ROOT": str(release)}
        made = Clone(folder, environment, BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8")))
        assert [kind for _, kind, _ in made.readme] == ["sh", "sh", "cmake", "c"]
        build = made.readme[0][2]
        if header is None:
            build = build.replace(
                '-DFASTSAM2_WITH_ONNXRUNTIME=ON -DONNXRUNTIME_ROOT="$ONNXRUNTIME_ROOT"', "-DFASTSAM2_WITH_ONNXRUNTIME=OFF"
            )
            assert "OFF" in build
        else:
            _release_of_the_wheel(release, header)
        made.shell(build)
    return made


def _release_of_the_wheel(release: Path, header: Path) -> None:
    """Laid out as a release archive: the headers at hand, and the very library that Python runs."""
    shutil.rmtree(release, ignore_errors=True)
    (release / "lib").mkdir(parents=True)
    (release / "include").symlink_to(header)
    (library,) = Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (release / "lib" / name).symlink_to(library)


def _read_pgm(file: Path) -> npt.NDArray[np.bool_]:
    kind, size, most, pixels = file.read_bytes().split(b"\n", 3)
    width, height = (int(n) for n in size.split())
    assert (kind, most) == (b"P5", b"255")
    grey = np.frombuffer(pixels, np.uint8).reshape(height, width)
    assert set(np.unique(grey)) <= {0, 255}
    return np.equal(grey, 255)


def _clip_frames() -> list[npt.NDArray[Any]]:
    with av.open(str(CLIP)) as clip:
        return [frame.to_ndarray(format="rgb24") for frame, _ in zip(clip.decode(video=0), range(FRAMES), strict=False)]


@needs_onnxruntime
def test_the_example_writes_the_masks_of_python(clone: Clone) -> None:
    shutil.rmtree(clone.folder / "out" / "masks", ignore_errors=True)
    threads = len(os.sched_getaffinity(0))
    printed = clone.shell(clone.readme[1][2]).splitlines()
    printed = [line for line in printed if line.startswith("frame ")]
    assert len(printed) == FRAMES and all(re.fullmatch(r"frame \d+ score -?\d+\.\d{3} \d+\.\d ms", line) for line in printed)
    tracker = fastsam2.load(NANO, threads=threads).tracker()
    covered = 0
    for index, frame in enumerate(_clip_frames()):
        result = tracker.step(frame)
        if index == 0:
            result = tracker.add(1, box=(223, 233, 264, 267))
        np.testing.assert_array_equal(_read_pgm(clone.folder / "out" / "masks" / f"{index:05}.pgm"), result.masks[0])
        assert printed[index].startswith(f"frame {index} score {result.scores[0]:.3f} ")
        covered += int(result.masks.any())
    assert covered == FRAMES


@needs_onnxruntime
@pytest.mark.parametrize("scenario", ["three_objects", "mask_correction"])
def test_the_backend_gives_every_bit_of_python(scenario: str, clone: Clone, bundle_micro: Path) -> None:
    """Through the C interface, pruned and guarded, logits included."""
    clip = make_clip("short", 1, frames=10)
    tracker = fastsam2.load(bundle_micro, threads=1).tracker(prune=Prune(policy=PrunePolicy.MASK, keep=0.25, guard=True))
    (library,) = (clone.folder / "out" / "installed").rglob("libfastsam2_runtime.so")
    native: Any = CInterface(library, bundle_micro, None, backend=ONNXRUNTIME, threads=1, policy=MASK, keep=0.25, guard=1)
    compared = 0
    for want, got in zip(play(tracker, BY_NAME[scenario], clip), play(native, BY_NAME[scenario], clip), strict=True):
        raw: Any = got
        for name in ("masks", "scores", "ious", "low_res_logits"):
            assert raw[name].tobytes() == getattr(want, name).tobytes(), f"{name} on frame {want.frame}"
        compared += int(want.masks.any())
    assert compared > 8
    native.close()


def test_the_c_program_of_the_readme(clone: Clone) -> None:
    """It compiles, links and runs; in a library without ONNX Runtime it says how to get it."""
    program = clone.program(clone.block("c"), "in_c")
    if _header() is not None:
        assert re.fullmatch(r"1 object, mask of 360 x 480, score -?\d+\.\d\d\n", run(program, NANO))
        return
    done = subprocess.run([program, NANO], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("expected a build of fastsam2 with onnxruntime, got one without it. Configure with")


def test_a_callback_runs_the_graphs(clone: Clone) -> None:
    """With or without ONNX Runtime."""
    assert run(clone.program(CALLBACK, "with_callback"), NANO) == f"2 calls, {36 * 48} pixels, score 2.5\n"


Configure = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def configure(tmp_path: Path) -> Configure:
    def run_cmake(*options: str) -> subprocess.CompletedProcess[str]:
        cmake, ninja = tool("cmake"), tool("ninja")
        command = [cmake, "-S", ROOT, "-B", tmp_path / "build", "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}", *options]
        named = {k: v for k, v in os.environ.items() if k != "ONNXRUNTIME_ROOT"}
        return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, env=named)

    return run_cmake


@pytest.mark.parametrize(("choice", "passes"), [("AUTO", True), ("ON", False)])
def test_configuring_says_what_is_missing(choice: str, passes: bool, configure: Configure, tmp_path: Path) -> None:
    done = configure(f"-DFASTSAM2_WITH_ONNXRUNTIME={choice}", "-DONNXRUNTIME_LIBRARY=", f"-DONNXRUNTIME_INCLUDE_DIR={tmp_path}", NO_TESTS)
    said = " ".join((done.stdout + done.stderr).split())
    assert (done.returncode == 0) is passes, said
    assert "ONNX Runtime is missing: set ONNXRUNTIME_ROOT to an unpacked release archive" in said


def test_other_choices_are_refused(configure: Configure) -> None:
    done = configure("-DFASTSAM2_WITH_ONNXRUNTIME=MAYBE", NO_TESTS)
    assert done.returncode == 1 and "AUTO, ON or OFF, got MAYBE" in " ".join(done.stderr.split())


def test_a_library_that_programs_would_not_find_is_refused(configure: Configure, tmp_path: Path) -> None:
    """As in Python's wheel: the full version in the name, and no link of the name that the loader looks for."""
    library = tmp_path / "libonnxruntime.so.1.31.1"
    library.touch()
    (tmp_path / "onnxruntime_c_api.h").touch()
    options = (f"-DONNXRUNTIME_LIBRARY={library}", f"-DONNXRUNTIME_INCLUDE_DIR={tmp_path}", NO_TESTS)
    refused = configure("-DFASTSAM2_WITH_ONNXRUNTIME=ON", *options)
    assert refused.returncode == 1
    assert f"programs will look for {tmp_path}/libonnxruntime.so.1, which is not there" in " ".join(refused.stderr.split())
    (tmp_path / "libonnxruntime.so.1").symlink_to(library)
    assert f"ONNX Runtime backend: with {library}" in configure("-DFASTSAM2_WITH_ONNXRUNTIME=ON", *options).stdout
