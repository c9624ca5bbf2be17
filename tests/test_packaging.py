"""The wheel: every module once, typed, without tests, and light to import."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import zipfile
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("scikit_build_core", reason="scikit-build-core, which builds the wheel, is not installed (extra: dev)")

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("export", "engines", "runtime", "kernels", "benchmarks", "training")
NEEDS_EXPORTER = (
    "fastsam2.export",
    "fastsam2.training",
    "fastsam2.benchmarks.pruning",
    "fastsam2.benchmarks.text_cue",
)
SHIPPED = ("fastsam2/models/", "fastsam2/samples/")
HEAVY = ("torch", "sam2", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "av", "cv2", "numpy", "PIL")
NOT_FOR_RUNTIME = ("torch", "sam2", "onnx", "onnxscript", "tensorrt", "tensorrt_rtx")
DATA = (
    *(f"fastsam2/engines/{name}.toml" for name in ("drift", "fusion", "precision")),
    *(f"fastsam2/kernels/cuda/{name}.{kind}" for name in ("top_k_gather", "frame_ops") for kind in ("cu", "cuh", "h")),
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), str(ROOT)]
    done = subprocess.run(pip, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


@pytest.fixture(scope="module")
def unpacked(wheel: Path) -> Path:
    folder = wheel.parent / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def source_modules() -> list[str]:
    shared = [f"fastsam2/{path.name}" for path in (ROOT / "fastsam2").glob("*.py")]
    return shared + [f"fastsam2/{path.relative_to(ROOT).as_posix()}" for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]


def run_python(unpacked: Path, code: str) -> object:
    """Run code that sees the unpacked wheel and the installed packages, but neither the repository nor an editable install."""
    paths = [str(unpacked), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    start = f"import json, sys; sys.path += {paths!r}\n"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", start + code], capture_output=True, text=True, timeout=120, check=False, cwd=unpacked.parent
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_module_is_in_the_wheel_once(names: list[str]) -> None:
    expected = source_modules()
    assert {"fastsam2/contracts.py", "fastsam2/engines/trt_compat.py", "fastsam2/runtime/result.py"} <= set(expected)
    assert Counter(name for name in names if name.endswith(".py")) == Counter(expected)


def test_wheel_holds_the_type_marker_and_nothing_else_of_the_repository(names: list[str]) -> None:
    assert names.count("fastsam2/py.typed") == names.count("fastsam2/vocabulary.txt") == 1
    assert {name.split("/")[0].split("-")[0] for name in names} == {"fastsam2"}
    assert set(DATA) <= set(names)
    code = [name for name in names if not name.startswith(SHIPPED) and name not in DATA]
    assert [name for name in code if "tests" in name or "README" in name or name.endswith((".pyc", ".json", ".toml"))] == []


def test_wheel_holds_the_bundles_and_samples(names: list[str], unpacked: Path) -> None:
    files = [path.relative_to(ROOT).as_posix() for folder in SHIPPED for path in (ROOT / folder).rglob("*") if path.is_file()]
    files = [name for name in files if "README" not in name]
    sample = "fastsam2/samples/hard_000"
    assert {"fastsam2/models/nano/manifest.json", f"{sample}/clip.mp4", f"{sample}/clip.json", f"{sample}/truth/00000.png"} <= set(files)
    assert Counter(name for name in names if name.startswith(SHIPPED) and not name.endswith("/")) == Counter(files)
    code = "from fastsam2.builtin import builtin_bundles, builtin_samples; print(json.dumps([builtin_bundles(), builtin_samples()]))"
    shipped = run_python(unpacked, code)
    assert isinstance(shipped, list) and "nano" in shipped[0] and "hard_000" in shipped[1]


def test_wheel_is_pure_and_has_the_command(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        (entry_points,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        assert "fastsam2 = fastsam2.cli:main" in archive.read(entry_points).decode().replace("=fastsam2", "= fastsam2")
        assert [name for name in archive.namelist() if name.endswith("LICENSE")]


def test_wheel_version_is_the_modules(wheel: Path, unpacked: Path) -> None:
    assert wheel.name.split("-")[1] == run_python(unpacked, "import fastsam2; print(json.dumps(fastsam2.__version__))")


def test_import_is_light(unpacked: Path) -> None:
    code = f"import fastsam2; print(json.dumps([fastsam2.__file__, [name for name in {HEAVY!r} if name in sys.modules]]))"
    assert run_python(unpacked, code) == [str(unpacked / "fastsam2" / "__init__.py"), []]


def test_all_but_the_exporter_imports_without_the_exporters_packages(unpacked: Path) -> None:
    modules = [name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in source_modules()]
    modules = sorted(m for m in modules if not m.startswith(NEEDS_EXPORTER) and m != "fastsam2.__main__")
    code = f"""
import importlib
sys.modules.update(dict.fromkeys({NOT_FOR_RUNTIME!r}))
files = [importlib.import_module(name).__file__ for name in {modules!r}]
print(json.dumps([file for file in files if not file.startswith({str(unpacked)!r})]))
"""
    assert run_python(unpacked, code) == []
