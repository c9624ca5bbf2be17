"""Energy, where the machine counts it: NVML for an NVIDIA GPU, tegrastats for a Jetson. Absent on every other machine.

NVML's counter is of the whole GPU, and tegrastats' power is of the whole board; whatever else runs there is counted, too.
"""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import IO, Any, Protocol

from fastsam2.errors import BackendError, expected, reason

LEAST_S = 2.0  # counters move every 20 to 100 ms
LEAST_CALLS = 10
FIRST_LINE_S = 5.0
_INTERVAL_MS = 100
_BOARD = re.compile(r"\b(?:VDD_IN|POM_5V_IN|SYS_5V0|VIN_SYS_5V0) (\d+)(?:mW)?/")  # milliwatts now / on average; the first is of Orin


class Meter(Protocol):
    """Counts joules. A context manager: it may run a program meanwhile."""

    def joules(self) -> float:
        """Since some moment in the past."""
        ...

    def __enter__(self) -> Meter: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


def bus_id(gpu: int) -> str:
    """PCI address of a GPU, such as "0000:01:00.0": NVML counts GPUs in another order than CUDA."""
    return str(importlib.import_module("pycuda.driver").Device(gpu).pci_bus_id())


def open_meter(gpu: int | None, bus_id: Callable[[int], str] = bus_id) -> Meter | None:
    """What counts the energy of a run.

    Args:
        gpu: index of the GPU that runs the graphs, as CUDA counts them; None where the CPU does.
        bus_id: finds its address.

    Returns:
        tegrastats where it is installed; else NVML for a GPU; else None.
    """
    if shutil.which("tegrastats") is not None:
        return TegraMeter()
    if gpu is None:
        return None
    try:
        nvml = importlib.import_module("pynvml")
    except ModuleNotFoundError:
        return None
    return NvmlMeter(nvml, bus_id(gpu))


def joules_per_call(call: Callable[[int], object], meter: Meter) -> float:
    """Mean energy of one call, over at least `LEAST_CALLS` calls and `LEAST_S` seconds without a pause.

    Args:
        call: called with 0, 1, 2, ...
        meter: counts.
    """
    with meter:
        before, end, done = meter.joules(), time.perf_counter() + LEAST_S, 0
        while done < LEAST_CALLS or time.perf_counter() < end:
            call(done)
            done += 1
        return (meter.joules() - before) / done


class NvmlMeter:
    """The energy counter of an NVIDIA GPU, Volta or newer.

    Args:
        nvml: the module pynvml (package nvidia-ml-py).
        bus_id: PCI address of the GPU.

    Raises:
        BackendError: if NVML does not start, or the GPU has no counter.
    """

    def __init__(self, nvml: Any, bus_id: str) -> None:
        self._nvml = nvml
        try:
            nvml.nvmlInit()
            self._handle = nvml.nvmlDeviceGetHandleByPciBusId(bus_id)
        except nvml.NVMLError as error:
            raise _unreadable(bus_id, error) from error
        self._bus_id = bus_id
        self.joules()

    def joules(self) -> float:
        """See `Meter.joules`."""
        try:
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3
        except self._nvml.NVMLError as error:
            raise _unreadable(self._bus_id, error) from error

    def __enter__(self) -> NvmlMeter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """The counter runs on by itself."""


class TegraMeter:
    """Integrates the board's power, as tegrastats prints it ten times a second."""

    def __init__(self) -> None:
        self._sum = 0.0
        self._power: tuple[float, float] | None = None  # watts, and since when
        self._line = ""
        self._changed = threading.Condition()
        self._process: subprocess.Popen[str] | None = None

    def joules(self) -> float:
        """See `Meter.joules`; waits for the first line.

        Raises:
            BackendError: if tegrastats says nothing of the board's power.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._power is not None, timeout=FIRST_LINE_S):
                todo = "Run tegrastats by hand to see why"
                raise BackendError(expected("the power of the board from tegrastats", repr(self._line[:200]), todo))
            return self._until(time.perf_counter())

    def __enter__(self) -> TegraMeter:
        words = ["tegrastats", "--interval", str(_INTERVAL_MS)]
        self._process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait()

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            found = _BOARD.search(line)
            with self._changed:
                self._line = line
                if found is not None:
                    now = time.perf_counter()
                    self._sum, self._power = self._until(now), (float(found[1]) / 1e3, now)
                    self._changed.notify_all()

    def _until(self, now: float) -> float:
        return self._sum if self._power is None else self._sum + self._power[0] * (now - self._power[1])


def _unreadable(bus_id: str, error: Exception) -> BackendError:
    todo = "Uninstall nvidia-ml-py to measure without energy"
    return BackendError(expected(f"the energy counter of GPU {bus_id}", reason(error), todo))
