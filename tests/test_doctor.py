"""The doctor on fake packages, a fake NVIDIA driver and this machine."""

from __future__ import annotations

import ctypes
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import fastsam2
from fastsam2 import doctor
from fastsam2.doctor import Capability, Driver, Gpu, Package

ON_GPU = ["--backend onnxruntime-cuda", "--backend tensorrt", "--backend tensorrt-rtx"]
NAMES = ["track on CPU", "video in/out", "hole filling", "export", *ON_GPU, "TensorRT build", "TensorRT-RTX build"]
GPU = Driver("13.0", (Gpu("NVIDIA Test", "9.0"),))


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Put a fake package in front of the real ones."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, source: str) -> None:
        (tmp_path / f"{name}.py").write_text(source)

    return write


def findings(*changed: Package) -> dict[str, Package]:
    """A machine on which everything works, with some packages changed."""
    good = {name: Package(name, "1.0") for name in doctor.PROBES}
    good["av"] = Package("av", "1.0", (doctor.H264,))
    good["onnxruntime"] = Package("onnxruntime", "1.0", ("CUDAExecutionProvider", "CPUExecutionProvider"))
    return {**good, **{package.name: package for package in changed}}


def missing(name: str) -> Package:
    return Package(name, problem=doctor.NOT_INSTALLED)


def judged(*changed: Package, driver: Driver = GPU) -> dict[str, Capability]:
    return {c.name: c for c in doctor.judge(findings(*changed), driver)}


def test_probe_reads_version_and_what_it_brings(install: Callable[[str, str], None]) -> None:
    install("onnxruntime", "def get_available_providers(): return ['TestExecutionProvider']\nprint('noise on import')")
    package = doctor.probe_package("onnxruntime")
    assert package.ok
    assert package.brings == ("TestExecutionProvider",)


def test_probe_falls_back_to_the_modules_version(install: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.PROBES, "only_a_module", ("only-a-module", "[]"))
    install("only_a_module", "__version__ = '9.9'")
    assert doctor.probe_package("only_a_module") == Package("only_a_module", "9.9")


def test_probe_of_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.PROBES, "no_such_package_here", ("no-such-package-here", "[]"))
    assert doctor.probe_package("no_such_package_here") == missing("no_such_package_here")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise RuntimeError('operator torchvision::nms does not exist')", "does not import: RuntimeError: operator torchvision::nms"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "its process ended with -11"),
        ("import sys; sys.exit(0)", "its process ended with 0"),
        ("def (", "SyntaxError"),
    ],
)
def test_probe_of_a_broken_package(source: str, said: str, install: Callable[[str, str], None]) -> None:
    install("torchvision", source)
    package = doctor.probe_package("torchvision")
    assert not package.ok
    assert package.version is None
    assert package.problem is not None
    assert said in package.problem


def test_probe_of_a_hanging_package(install: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    install("pycuda", "import time; time.sleep(60)")
    monkeypatch.setattr(doctor, "IMPORT_TIMEOUT_S", 1.0)
    assert doctor.probe_package("pycuda").problem == "its import took more than 1 s"


def test_probe_without_an_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    assert "cannot be probed" in (doctor.probe_package("numpy").problem or "")


class FakeDriver:
    """The calls of libcuda the doctor makes, over a list of (name, major, minor)."""

    def __init__(self, devices: list[tuple[str, int, int]], failing: str = "") -> None:
        self.devices, self.failing = devices, failing

    def __getattr__(self, name: str) -> Callable[..., int]:
        if name not in ("cuInit", "cuDriverGetVersion", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetName", "cuDeviceGetAttribute"):
            raise AttributeError(name)
        return lambda *args: 100 if name == self.failing else (getattr(self, f"do_{name}")(*args), 0)[1]

    def do_cuInit(self, flags: int) -> None:
        assert flags == 0

    def do_cuDriverGetVersion(self, version: Any) -> None:
        version._obj.value = 12080

    def do_cuDeviceGetCount(self, count: Any) -> None:
        count._obj.value = len(self.devices)

    def do_cuDeviceGet(self, device: Any, index: int) -> None:
        device._obj.value = index

    def do_cuDeviceGetName(self, name: Any, size: int, device: Any) -> None:
        assert size == len(name)
        name.value = self.devices[device.value][0].encode()

    def do_cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> None:
        value._obj.value = self.devices[device.value][{75: 1, 76: 2}[attribute]]


def use_driver(monkeypatch: pytest.MonkeyPatch, fake: object) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: fake)


def test_driver_lists_its_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    use_driver(monkeypatch, FakeDriver([("NVIDIA H200", 9, 0), ("NVIDIA Orin", 8, 7)]))
    assert doctor.probe_driver() == Driver("12.8", (Gpu("NVIDIA H200", "9.0"), Gpu("NVIDIA Orin", "8.7")))


def test_driver_without_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    use_driver(monkeypatch, FakeDriver([]))
    assert doctor.probe_driver() == Driver("12.8", (), "the NVIDIA driver finds no GPU")


@pytest.mark.parametrize("call", ["cuInit", "cuDriverGetVersion", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetAttribute"])
def test_failing_driver(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_driver(monkeypatch, FakeDriver([("NVIDIA H200", 9, 0)], failing=call))
    driver = doctor.probe_driver()
    assert driver.gpus == ()
    assert "100" in (driver.problem or "")


def test_library_that_is_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    use_driver(monkeypatch, object())
    assert "cannot be used" in (doctor.probe_driver().problem or "")


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    assert doctor.probe_driver() == Driver(problem="no NVIDIA driver")


def test_complete_machine() -> None:
    everything = judged()
    assert list(everything) == NAMES
    assert [c for c in everything.values() if not c.ok or c.install] == []
    assert everything["hole filling"].detail == "cv2 1.0"


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("track on CPU", "onnxruntime"),
        ("track on CPU", "numpy"),
        ("video in/out", "av"),
        ("hole filling", "cv2"),
        *(("export", name) for name in doctor.EXPORT_PACKAGES),
        ("--backend onnxruntime-cuda", "onnxruntime"),
        ("--backend tensorrt", "pycuda"),
        ("--backend tensorrt-rtx", "cuda.bindings.nvrtc"),
        ("TensorRT build", "tensorrt"),
        ("TensorRT-RTX build", "tensorrt_rtx"),
    ],
)
def test_missing_package_takes_away_its_capability(name: str, broken: str) -> None:
    capability = judged(missing(broken))[name]
    assert not capability.ok
    assert f"{broken}: not installed" in capability.detail
    assert "pip install" in capability.install


def test_capabilities_that_need_a_gpu() -> None:
    nothing = judged(driver=Driver(problem="no NVIDIA driver"))
    assert [name for name, c in nothing.items() if not c.ok] == [*ON_GPU, "TensorRT build"]
    assert nothing["TensorRT build"].detail == "no NVIDIA driver"


def test_cpu_build_of_onnxruntime() -> None:
    capability = judged(Package("onnxruntime", "1.0", ("CPUExecutionProvider",)))["--backend onnxruntime-cuda"]
    assert (capability.ok, capability.detail) == (False, "onnxruntime lacks CUDAExecutionProvider")


def test_av_without_an_encoder() -> None:
    capability = judged(Package("av", "1.0"))["video in/out"]
    assert capability.ok, "the writer then uses MPEG-4 part 2"
    assert capability.detail == "av 1.0; without libx264 overlays are MPEG-4 part 2"
    assert "--only-binary av" in capability.install


def test_torchvision_beside_a_cpu_torch_is_named() -> None:
    broken = Package("torchvision", problem="does not import: RuntimeError: operator torchvision::nms does not exist")
    export = judged(broken)["export"]
    assert export.ok, "the exporter itself needs no torchvision"
    assert "torchvision::nms" in export.detail
    assert export.install == "pip uninstall torchvision"
    assert "torchvision" not in judged(missing("torchvision"))["export"].detail
    both = judged(broken, missing("sam2"))["export"]
    assert not both.ok
    assert "--no-deps sam2" in both.install
    assert "pip uninstall torchvision" in both.install


@pytest.fixture(scope="module")
def report() -> doctor.DoctorReport:
    return doctor.examine()


def test_examines_this_machine(report: doctor.DoctorReport) -> None:
    assert report.fastsam2 == fastsam2.__version__
    assert report.cpu
    assert 1 <= report.cores <= (os.cpu_count() or 1)
    assert report.memory_bytes is None or report.memory_bytes > 2**28
    assert [c.name for c in report.capabilities] == NAMES
    assert [p.name for p in report.packages] == list(doctor.PROBES)
    assert report.capabilities[0].ok, report.capabilities[0].detail
    assert {p.name for p in report.packages if p.ok} >= {"numpy", "onnxruntime", "PIL", "av"}


def test_json_holds_everything(report: doctor.DoctorReport) -> None:
    read = json.loads(report.to_json())
    assert read["fastsam2"] == fastsam2.__version__
    assert [set(c) for c in read["capabilities"]] == [{"name", "ok", "detail", "install"}] * len(NAMES)
    assert read["packages"][0] == {"name": "numpy", "version": report.packages[0].version, "brings": [], "problem": None}


def test_render_names_every_capability(report: doctor.DoctorReport) -> None:
    out = io.StringIO()
    Console(file=out, width=250).print(doctor.render(report))
    text = out.getvalue()
    assert all(name in text for name in NAMES)
    assert "fastsam2[rtx]" in text or report.capabilities[-1].ok, "brackets must not be taken for markup"
