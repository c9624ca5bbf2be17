"""Choosing TensorRT or TensorRT-RTX, with fake packages."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from fastsam2.engines.trt_compat import PACKAGES, available, load
from fastsam2.enums import Flavor
from fastsam2.errors import BackendError


@pytest.fixture(autouse=True)
def no_flavor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without either package; a None entry makes Python refuse the import."""
    for package in PACKAGES.values():
        monkeypatch.setitem(sys.modules, package.module, None)


def test_every_flavor_has_its_package() -> None:
    assert {flavor: (package.module, package.pip) for flavor, package in PACKAGES.items()} == {
        Flavor.TENSORRT: ("tensorrt", "tensorrt"),
        Flavor.TENSORRT_RTX: ("tensorrt_rtx", "tensorrt-rtx-cu13"),
    }
    assert Flavor("tensorrt-rtx") is Flavor.TENSORRT_RTX


@pytest.mark.parametrize("flavor", Flavor)
def test_missing_package_is_named(flavor: Flavor) -> None:
    assert available() == []
    with pytest.raises(
        BackendError, match=rf"expected the Python package {PACKAGES[flavor].module}, .*pip install {PACKAGES[flavor].pip} "
    ):
        load(flavor)


@pytest.mark.parametrize("flavor", Flavor)
def test_installed_flavor_is_loaded_and_the_other_is_not(flavor: Flavor, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = ModuleType(PACKAGES[flavor].module)
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    assert available() == [flavor]
    assert load(flavor) is fake
    (other,) = set(Flavor) - {flavor}
    with pytest.raises(BackendError, match=PACKAGES[other].module):
        load(other)


@pytest.mark.parametrize("error", ["ImportError", "OSError", "RuntimeError"])
def test_broken_package_says_why(error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt.py").write_text(f"raise {error}('libnvinfer.so.11 not found')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt")
    assert available() == [Flavor.TENSORRT]
    with pytest.raises(BackendError, match=r"a working tensorrt, got .*libnvinfer.so.11 not found.*pip install tensorrt") as caught:
        load(Flavor.TENSORRT)
    assert caught.value.__cause__ is not None


def test_available_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt_rtx.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt_rtx")
    assert available() == [Flavor.TENSORRT_RTX]
