"""Joules per call, from counters that follow a clock of their own. Oracle: power times time."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from fastsam2.benchmarks import energy
from fastsam2.benchmarks.energy import NvmlMeter, TegraMeter, joules_per_call, open_meter
from fastsam2.errors import BackendError

TEGRASTATS = """#!/bin/sh
while true; do echo "RAM 2/7 CPU [1%@1] VDD_GPU_SOC 900mW/900mW {rail} {power}/4000mW VDD_CPU 1mW/1mW"; sleep 0.02; done
"""


class Nvml(ModuleType):
    """pynvml of a GPU that draws 250 W, on the bus of GPU 1."""

    class NVMLError(Exception):
        pass

    def __init__(self, *, counts: bool = True) -> None:
        super().__init__("pynvml")
        self.counts = counts

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetHandleByPciBusId(self, bus_id: str) -> str:
        if bus_id != "bus 1":
            raise self.NVMLError("Not Found")
        return bus_id

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        assert handle == "bus 1"
        if not self.counts:
            raise self.NVMLError("Not Supported")
        return round(time.perf_counter() * 250e3)


@pytest.fixture(autouse=True)
def no_meter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(energy, "LEAST_S", 0.1)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setitem(sys.modules, "pynvml", None)  # cannot be imported


def test_the_counter_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml())
    calls: list[int] = []
    meter = open_meter(1, lambda gpu: f"bus {gpu}")
    assert isinstance(meter, NvmlMeter)

    def call(number: int) -> None:
        calls.append(number)
        time.sleep(0.02)

    joules = joules_per_call(call, meter)
    assert len(calls) >= 10, "even where that takes longer"
    assert calls == list(range(len(calls)))
    assert joules >= 250 * 0.02
    start = time.perf_counter()
    joules_per_call(lambda _: None, meter)
    assert time.perf_counter() - start >= 0.1, "short calls are repeated"


def test_nvml_that_fails_says_so() -> None:
    with pytest.raises(BackendError, match=r"energy counter of GPU bus 1.*Not Supported"):
        NvmlMeter(Nvml(counts=False), "bus 1")
    with pytest.raises(BackendError, match="Not Found"):
        NvmlMeter(Nvml(), "bus 2")


def test_no_meter_where_there_is_nothing_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_meter(0) is None, "no package"
    monkeypatch.setitem(sys.modules, "pynvml", Nvml())
    assert open_meter(None) is None, "graphs run on the CPU"


def install(folder: Path, rail: str, power: str) -> None:
    program = folder / "tegrastats"
    program.write_text(TEGRASTATS.format(rail=rail, power=power))
    program.chmod(0o755)


@pytest.mark.parametrize(("rail", "power"), [("VDD_IN", "5000mW"), ("POM_5V_IN", "5000")])
def test_the_board_of_a_jetson(tmp_path: Path, rail: str, power: str) -> None:
    install(tmp_path, rail, power)
    meter = open_meter(None)
    assert isinstance(meter, TegraMeter)
    start = time.perf_counter()
    joules = joules_per_call(lambda _: time.sleep(0.03), meter)
    whole = time.perf_counter() - start
    assert 5 * 0.03 <= joules <= 5 * whole / 10
    assert meter._process is not None
    assert meter._process.poll() is not None, "the program ends with the measurement"


def test_tegrastats_without_the_board_s_power_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "VDD_OTHER", "5000mW")
    monkeypatch.setattr(energy, "FIRST_LINE_S", 0.5)
    with pytest.raises(BackendError, match="VDD_OTHER"):
        joules_per_call(lambda _: None, TegraMeter())
