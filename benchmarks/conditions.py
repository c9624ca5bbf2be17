"""What a measurement was made with, for the record beside its numbers."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import fastsam2

_DRIVER = Path("/proc/driver/nvidia/version")


def conditions(
    threads: int, module: str, packages: tuple[str, ...] = ("onnxruntime", "torch"), gpu: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The machine, the versions and the command.

    Args:
        threads: CPU threads of one operator.
        module: name of the program, as after `python -m`.
        packages: whose versions to state; those that are not installed are left out.
        gpu: what `LoadedBundle.device_facts` says of the GPU that is used; None without one.
    """
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    versions = {}
    for name in packages:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "commit": _commit(),
        "cpu": cpu,
        **({} if gpu is None else _gpu(gpu)),
        "threads": threads,
        "fastsam2": fastsam2.__version__,
        **versions,
        "python": platform.python_version(),
        "command": " ".join([Path(sys.executable).name, "-m", module, *sys.argv[1:]]),
    }


def _commit() -> str:
    """Short hash of the checkout this package runs from, with "-dirty" where files of it were changed; "" for an installed package."""
    folder = Path(fastsam2.__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=False).stdout.strip()

    try:
        return git("describe", "--always", "--exclude=*", "--dirty") if git("ls-files", "__init__.py") else ""
    except OSError:  # no git
        return ""


def _gpu(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Name, compute capability and memory of the GPU; the driver's version where Linux tells it."""
    found = re.search(r"\b\d{3}\.\d+(?:\.\d+)?\b", _DRIVER.read_text()) if _DRIVER.is_file() else None
    return {
        "gpu": facts["name"],
        "compute_capability": facts["compute_capability"],
        "gpu_memory": facts["total"],
        **({} if found is None else {"driver": found[0]}),
    }
