"""The one place that chooses between TensorRT and TensorRT-RTX.

Both packages offer the same Python interface under different names, so code that builds or runs engines takes the module from `load`
and never writes `import tensorrt`. Idea: NVIDIA/TensorRT `tools/Polygraphy/polygraphy/mod/trt_importer.py`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType

from fastsam2.enums import Flavor
from fastsam2.errors import BackendError, expected


@dataclass(frozen=True, slots=True)
class FlavorPackage:
    """Where a flavor comes from.

    Attributes:
        module: its import name.
        pip: its name for pip.
        extra: the extra of fastsam2 that asks for it.
    """

    module: str
    pip: str
    extra: str


PACKAGES: Mapping[Flavor, FlavorPackage] = {
    Flavor.TENSORRT: FlavorPackage("tensorrt", "tensorrt", "trt"),
    Flavor.TENSORRT_RTX: FlavorPackage("tensorrt_rtx", "tensorrt-rtx-cu13", "rtx"),
}


def available() -> list[Flavor]:
    """Flavors whose package is installed, in the order of `Flavor`. Imports none of them, so a broken one is listed too."""
    return [flavor for flavor in Flavor if _installed(PACKAGES[flavor].module)]


def load(flavor: Flavor) -> ModuleType:
    """The module of one flavor, imported now.

    Raises:
        BackendError: if its package is missing, or installed but does not import; the cause of the latter is chained.
    """
    package = PACKAGES[flavor]
    install = f"Run: pip install {package.pip} (or fastsam2[{package.extra}])"
    if not _installed(package.module):
        raise BackendError(expected(f"the Python package {package.module}", "no such package", install))
    try:
        return importlib.import_module(package.module)
    except (ImportError, OSError, RuntimeError) as error:
        got = f"{type(error).__name__} while importing it: {error}"
        raise BackendError(expected(f"a working {package.module}", got, f"Repair the installation. {install}")) from error


def _installed(module: str) -> bool:
    return sys.modules.get(module) is not None or importlib.util.find_spec(module) is not None
