"""GPUs that engines are built for, with a fake driver and fake modules."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest

from fastsam2.engines import targets
from fastsam2.engines.targets import current_capability, default_target, resolve_target
from fastsam2.enums import Flavor, Precision
from fastsam2.errors import BackendError

RTX, FULL = Flavor.TENSORRT_RTX, Flavor.TENSORRT
MODULE = SimpleNamespace(
    __version__="1.7.1", ComputeCapability=SimpleNamespace(__members__={"NONE": 0, "CURRENT": 1, "SM120": 7, "SM75": 2, "SM89": 5})
)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the compute capability of this machine's GPU; it has none at first."""
    here: list[str | None] = [None]
    monkeypatch.setattr(targets, "current_capability", lambda: here[-1])
    return here.append


def resolve(text: str, flavor: Flavor = RTX, precision: Precision = Precision.FP16) -> str:
    return resolve_target(text, flavor, MODULE, precision)


def test_rtx_without_a_gpu(gpu: Any) -> None:
    assert default_target(RTX) == "portable"
    assert [resolve(text) for text in ("portable", "8.9", "12.0", "7.5")] == ["portable", "8.9", "12.0", "7.5"]
    with pytest.raises(BackendError, match=r"expected an NVIDIA GPU to build tensorrt-rtx engines for current.* Use portable or"):
        resolve("current")


def test_current_is_named_by_its_compute_capability(gpu: Any) -> None:
    gpu("9.0")
    assert default_target(FULL) == "current"
    assert resolve("current") == "9.0" and resolve("current", FULL) == "9.0" and resolve("9.0", FULL) == "9.0"
    assert resolve("portable", FULL) == "portable"


@pytest.mark.parametrize("text", ["9.0", "8.7", "12.3"])
def test_capability_that_rtx_does_not_build_for(text: str) -> None:
    with pytest.raises(BackendError, match=rf"tensorrt-rtx 1.7.1 builds for, \['7.5', '8.9', '12.0'\], got {text}\. .*portable"):
        resolve(text)


@pytest.mark.parametrize("text", ["", "89", "sm_89", "8.9 ", "turing", "8"])
def test_no_capability_at_all(text: str) -> None:
    with pytest.raises(BackendError, match="expected a compute capability, portable or current, got"):
        resolve(text)


def test_tensorrt_builds_only_for_the_gpu_that_is_here(gpu: Any) -> None:
    for text in ("8.9", "portable", "current"):
        with pytest.raises(BackendError, match=r"expected an NVIDIA GPU .* none that a driver finds. Build on the machine"):
            resolve(text, FULL)
    gpu("8.6")
    with pytest.raises(BackendError, match=r"expected the compute capability of this machine's GPU, 8.6, got 8.9"):
        resolve("8.9", FULL)


def test_precisions_of_7_5(gpu: Any) -> None:
    for precision in (Precision.BF16, Precision.FP32):
        with pytest.raises(BackendError, match=f"7.5, got {precision.value}. Use --precision fp16"):
            resolve("7.5", RTX, precision)
    gpu("7.5")
    assert resolve("current", FULL, Precision.FP32) == "7.5"
    with pytest.raises(BackendError, match="got bf16"):
        resolve("current", FULL, Precision.BF16)


def test_driver_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {75: 8, 76: 7}

    def attribute(number: Any, which: int, _: object) -> int:
        number._obj.value = answers[which]
        return 0

    driver = SimpleNamespace(cuInit=lambda _: 0, cuDeviceGet=lambda *_: 0, cuDeviceGetAttribute=attribute)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: driver)
    assert current_capability() == "8.7"
    driver.cuInit = lambda _: 100
    assert current_capability() is None


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert current_capability() is None
