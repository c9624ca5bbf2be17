"""What this machine can do: `fastsam2 doctor`.

    installed packages, each imported in a child process ─┐
    NVIDIA driver, through ctypes ────────────────────────┼─► DoctorReport ─► table or JSON
    Python, CPU, memory ──────────────────────────────────┘

A package counts as usable when it imports. The import happens in a child process, so a broken one can neither crash nor slow down the
process that asks.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import fastsam2
from fastsam2.engines.trt_compat import PACKAGES
from fastsam2.enums import Flavor

if TYPE_CHECKING:
    from rich.console import RenderableType

IMPORT_TIMEOUT_S = 120.0
H264 = "libx264"

# Package -> pip name and the expression over its module `m` whose list of texts tells what this installation brings.
PROBES: Mapping[str, tuple[str, str]] = {
    "numpy": ("numpy", "[]"),
    "onnxruntime": ("onnxruntime", "m.get_available_providers()"),
    "PIL": ("pillow", "[]"),
    "av": ("av", f"{{'{H264}'}} & m.codecs_available"),
    "cv2": ("opencv-python-headless", "[]"),
    "torch": ("torch", "['CUDA ' + m.version.cuda] if m.version.cuda else ['CPU build']"),
    "torchvision": ("torchvision", "[]"),
    "sam2": ("sam2", "[]"),
    "onnx": ("onnx", "[]"),
    "onnxscript": ("onnxscript", "[]"),
    "hydra": ("hydra-core", "[]"),
    "omegaconf": ("omegaconf", "[]"),
    "iopath": ("iopath", "[]"),
    **{package.module: (package.pip, "[]") for package in PACKAGES.values()},
    "pycuda": ("pycuda", "[]"),
    "cuda.bindings.nvrtc": ("cuda-bindings", "['NVRTC %d.%d' % tuple(m.nvrtcVersion()[1:])]"),
}
GPU_LOOP = ("pycuda", "cuda.bindings.nvrtc")
EXPORT_PACKAGES = ("torch", "sam2", "onnx", "onnxscript", "hydra", "omegaconf", "iopath")
EXPORT_INSTALL = "pip install torch, then pip install --no-deps sam2==1.1.0, then pip install fastsam2[export-tools]"
AV_INSTALL = "pip install --only-binary av --force-reinstall av"

NOT_INSTALLED = "not installed"
_ANSWER = "fastsam2-probe:"
_CHILD = """
import importlib, importlib.metadata, importlib.util, json, sys
answer, module, pip, probe, sys.path[:] = json.loads(sys.argv[1])
version, brings = None, []
try:
    found = importlib.util.find_spec(module) is not None
except ModuleNotFoundError:  # of a package that it lies in
    found = False
if found:
    m = importlib.import_module(module)
    try:
        version = importlib.metadata.version(pip)
    except importlib.metadata.PackageNotFoundError:
        version = str(getattr(m, "__version__", "unknown"))
    brings = list(eval(probe))
print("\\n" + answer + json.dumps([version, brings]), flush=True)
"""


@dataclass(frozen=True, slots=True)
class Package:
    """One Python package.

    Attributes:
        name: import name.
        version: None when it is missing or does not import.
        brings: what this installation brings, such as the execution providers of onnxruntime.
        problem: why it cannot be used; None when it can.
    """

    name: str
    version: str | None = None
    brings: tuple[str, ...] = ()
    problem: str | None = None

    @property
    def ok(self) -> bool:
        """It imports."""
        return self.problem is None


@dataclass(frozen=True, slots=True)
class Gpu:
    """One CUDA device.

    Attributes:
        name: as the driver calls it.
        compute_capability: major.minor.
    """

    name: str
    compute_capability: str


@dataclass(frozen=True, slots=True)
class Driver:
    """The NVIDIA driver.

    Attributes:
        cuda: highest CUDA version it supports; None without a working driver.
        gpus: devices it offers.
        problem: why there is none; None when it works.
    """

    cuda: str | None = None
    gpus: tuple[Gpu, ...] = ()
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Capability:
    """One thing a user may want to do here.

    Attributes:
        name: what.
        ok: it can be done.
        detail: with what, or why not.
        install: how to get or repair it; empty when there is nothing to do.
    """

    name: str
    ok: bool
    detail: str
    install: str


@dataclass(frozen=True, slots=True)
class DoctorReport:
    """What `examine` found.

    Attributes:
        fastsam2: version.
        python: version.
        platform: operating system and machine.
        cpu: model name.
        cores: logical cores this process may use.
        memory_bytes: physical memory; None where the system does not tell.
        driver: the NVIDIA driver.
        packages: every probed package.
        capabilities: what can be done.
    """

    fastsam2: str
    python: str
    platform: str
    cpu: str
    cores: int
    memory_bytes: int | None
    driver: Driver
    packages: tuple[Package, ...]
    capabilities: tuple[Capability, ...]

    def to_json(self) -> str:
        """The report as an indented JSON object with the attributes' names."""
        return json.dumps(asdict(self), indent=2)


def examine() -> DoctorReport:
    """Examine this machine. Takes a few seconds and never raises because something is missing or broken."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        packages = {package.name: package for package in pool.map(probe_package, PROBES)}
    driver = probe_driver()
    return DoctorReport(
        fastsam2=fastsam2.__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        cpu=_cpu_model(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=_memory_bytes(),
        driver=driver,
        packages=tuple(packages.values()),
        capabilities=judge(packages, driver),
    )


def probe_package(name: str) -> Package:
    """Import one package of `PROBES` in a child process."""
    argument = json.dumps([_ANSWER, name, *PROBES[name], sys.path])
    try:
        child = subprocess.run(
            [sys.executable, "-c", _CHILD, argument],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=IMPORT_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Package(name, problem=f"its import took more than {IMPORT_TIMEOUT_S:.0f} s")
    except OSError as error:
        return Package(name, problem=f"cannot be probed: {error}")
    answers = [line.removeprefix(_ANSWER) for line in child.stdout.splitlines() if line.startswith(_ANSWER)]
    if not answers:
        said = child.stderr.strip().splitlines()
        return Package(name, problem=f"does not import: {said[-1] if said else f'its process ended with {child.returncode}'}")
    version, brings = json.loads(answers[-1])
    return Package(name, version, tuple(brings), None if version else NOT_INSTALLED)


def probe_driver() -> Driver:
    """Ask the NVIDIA driver for its devices. Creates no CUDA context."""
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return Driver(problem="no NVIDIA driver")
    try:
        version, count = ctypes.c_int(), ctypes.c_int()
        for call, status in (
            ("cuInit", cuda.cuInit(0)),
            ("cuDriverGetVersion", cuda.cuDriverGetVersion(ctypes.byref(version))),
            ("cuDeviceGetCount", cuda.cuDeviceGetCount(ctypes.byref(count))),
        ):
            if status != 0:
                return Driver(problem=f"the NVIDIA driver answers error {status} to {call}")
        gpus = tuple(_gpu(cuda, index) for index in range(count.value))
    except (AttributeError, OSError) as error:
        return Driver(problem=f"the NVIDIA driver cannot be used: {error}")
    return Driver(f"{version.value // 1000}.{version.value % 1000 // 10}", gpus, None if gpus else "the NVIDIA driver finds no GPU")


def _gpu(cuda: ctypes.CDLL, index: int) -> Gpu:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    statuses = (
        cuda.cuDeviceGet(ctypes.byref(device), index),
        cuda.cuDeviceGetName(name, len(name), device),
        cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, device),  # COMPUTE_CAPABILITY_MAJOR
        cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, device),  # COMPUTE_CAPABILITY_MINOR
    )
    if any(statuses):
        raise OSError(f"device {index} answers errors {statuses}")
    return Gpu(name.value.decode(errors="replace"), f"{major.value}.{minor.value}")


def judge(packages: Mapping[str, Package], driver: Driver) -> tuple[Capability, ...]:
    """Turn findings into capabilities.

    Args:
        packages: one entry per name of `PROBES`.
        driver: the NVIDIA driver.
    """
    trt, rtx = PACKAGES[Flavor.TENSORRT], PACKAGES[Flavor.TENSORRT_RTX]
    on_gpu = "on a machine with an NVIDIA GPU: pip"
    no_gpu = [driver.problem] if driver.problem else []
    ort, av, torchvision = packages["onnxruntime"], packages["av"], packages["torchvision"]
    no_cuda = ["onnxruntime lacks CUDAExecutionProvider"] if ort.ok and "CUDAExecutionProvider" not in ort.brings else []
    no_h264 = [(f"without {H264} overlays are MPEG-4 part 2", AV_INSTALL)] if av.ok and H264 not in av.brings else []
    trap = []
    if packages["torch"].ok and torchvision.problem not in (None, NOT_INSTALLED):
        harm = "not needed here, but it breaks sam2's image predictor and transformers"
        trap = [(f"torchvision {torchvision.problem} ({harm})", "pip uninstall torchvision")]

    def can(
        name: str, needs: Sequence[str], install: str, *, problems: Sequence[str] = (), warnings: Sequence[tuple[str, str]] = ()
    ) -> Capability:
        against = [f"{need}: {packages[need].problem}" for need in needs if not packages[need].ok] + list(problems)
        detail = against or [", ".join(f"{need} {packages[need].version}" for need in needs)]
        repairs = ([install] if against else []) + [repair for _, repair in warnings]
        return Capability(name, not against, "; ".join([*detail, *(text for text, _ in warnings)]), "; ".join(repairs))

    return (
        can("track on CPU", ("numpy", "onnxruntime", "PIL"), "pip install --force-reinstall fastsam2"),
        can("video in/out", ("av",), AV_INSTALL, warnings=no_h264),
        can("hole filling", ("cv2",), "pip install fastsam2[holes]"),
        can("export", EXPORT_PACKAGES, EXPORT_INSTALL, warnings=trap),
        can(
            "--backend onnxruntime-cuda",
            ("onnxruntime", *GPU_LOOP),
            f"{on_gpu} uninstall onnxruntime, then pip install onnxruntime-gpu fastsam2[cuda]",
            problems=[*no_cuda, *no_gpu],
        ),
        *(
            can(
                f"--backend {flavor.value}",
                (package.module, *GPU_LOOP),
                f"{on_gpu} install fastsam2[{package.extra},cuda]",
                problems=no_gpu,
            )
            for flavor, package in PACKAGES.items()
        ),
        can("TensorRT build", (trt.module,), f"{on_gpu} install fastsam2[{trt.extra}]", problems=no_gpu),
        can("TensorRT-RTX build", (rtx.module,), f"pip install fastsam2[{rtx.extra}] (builds without a GPU)"),
    )


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return names[0] if names else platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def render(report: DoctorReport) -> RenderableType:
    """The report as tables for a terminal."""
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    memory = f"{report.memory_bytes / 2**30:.1f} GiB" if report.memory_bytes else "memory unknown"
    gpus = ", ".join(f"{gpu.name} ({gpu.compute_capability})" for gpu in report.driver.gpus)
    machine = Text(
        f"fastsam2 {report.fastsam2}, Python {report.python}, {report.platform}\n"
        f"{report.cpu}, {report.cores} cores, {memory}\n"
        f"{gpus or report.driver.problem}{f', CUDA {report.driver.cuda}' if report.driver.cuda else ''}"
    )
    can = Table("can it", "", "with / why not", "how to get it")
    for c in report.capabilities:
        can.add_row(c.name, "[green]yes[/]" if c.ok else "[red]no[/]", escape(c.detail), escape(c.install))
    has = Table("package", "version", "brings / problem")
    for p in report.packages:
        has.add_row(p.name, p.version or "-", escape(p.problem or ", ".join(p.brings)))
    return Group(machine, can, has)
