"""The rates of a machine: units, what a repetition counts, and a GPU that is not there."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastsam2.benchmarks import machine
from fastsam2.benchmarks.machine import best_seconds, cpu_machine, gpu_machine
from fastsam2.enums import Precision
from fastsam2.errors import BackendError


def test_the_shortest_call_counts_and_the_first_one_does_not() -> None:
    calls, moments = [], iter([0.0, 5.0, 5.0, 8.0, 8.0, 12.0])
    assert best_seconds(lambda: calls.append(1), 3, clock=lambda: next(moments)) == 3.0
    assert len(calls) == 4


@pytest.mark.parametrize("threads", [1, 3])
def test_bytes_and_products_of_a_cpu(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every byte is copied by one of the threads; bytes count twice, read and written; products are side³."""
    copied: list[int] = []
    copyto = np.copyto

    def watched(target: np.ndarray[Any, Any], source: np.ndarray[Any, Any]) -> None:
        copied.append(target.nbytes)
        copyto(target, source)

    monkeypatch.setattr(np, "copyto", watched)
    monkeypatch.setattr(machine, "best_seconds", lambda call, repeats: (call(), 0.5)[1])
    found = cpu_machine(threads, copy_bytes=1001, side=8)
    assert (len(copied), sum(copied)) == (threads, 1001)
    assert (found.copy_bytes_per_s, found.multiply_adds_per_s, found.precision) == (4004.0, 1024.0, "fp32")


def test_the_command_writes_rates_and_conditions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "cpu_machine", lambda threads: cpu_machine(threads, copy_bytes=1 << 20, side=64, repeats=2))
    monkeypatch.setattr(sys, "argv", ["machine", "--threads", "1", "--out", str(tmp_path / "sub" / "machine.json")])
    machine.main()
    record = json.loads((tmp_path / "sub" / "machine.json").read_text())
    assert record["threads"] == 1 and record["cpu"] and record["command"]
    assert 1e7 < record["machine"]["copy_bytes_per_s"] < 1e13 and 1e7 < record["machine"]["multiply_adds_per_s"] < 1e14
    assert "multiply-adds/s" in capsys.readouterr().out


class FakeEvent:
    """Half a millisecond lies between two."""

    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.at: float | None = None
        self.done = False

    def record(self) -> None:
        FakeEvent.now += 0.25
        self.at = FakeEvent.now

    def synchronize(self) -> None:
        self.done = True

    def elapsed_time(self, end: FakeEvent) -> float:
        assert end.done and self.at is not None and end.at is not None
        return 2 * (end.at - self.at)


class FakeTensor(SimpleNamespace):
    def copy_(self, other: FakeTensor) -> None:
        self.copies = getattr(self, "copies", 0) + 1


def fake_torch(gpus: int) -> Any:
    def tensor(*shape: int, dtype: str, device: str) -> FakeTensor:
        return FakeTensor(shape=shape, dtype=dtype, device=device)

    def multiply(a: FakeTensor, b: FakeTensor, out: FakeTensor) -> None:
        assert a.dtype == b.dtype == out.dtype == "half" and a.shape == (16, 16)

    cuda = SimpleNamespace(
        is_available=lambda: gpus > 0,
        device_count=lambda: gpus,
        device=lambda gpu: nullcontext(),
        Event=FakeEvent,
        get_device_properties=lambda gpu: SimpleNamespace(name="FAKE", major=9, minor=0, total_memory=123),
    )
    return SimpleNamespace(
        __version__="2",
        cuda=cuda,
        backends=SimpleNamespace(cuda=SimpleNamespace(matmul=SimpleNamespace(allow_tf32=True))),
        float32="single",
        float16="half",
        bfloat16="brain",
        uint8="byte",
        ones=tensor,
        zeros_like=lambda t: FakeTensor(**vars(t)),
        empty_like=lambda t: FakeTensor(**vars(t)),
        mm=multiply,
    )


def test_rates_of_a_gpu_are_taken_between_events(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = fake_torch(1)
    monkeypatch.setitem(sys.modules, "torch", torch)
    found, facts = gpu_machine(0, Precision.FP16, copy_bytes=1000, side=16, repeats=3)
    assert found.copy_bytes_per_s == pytest.approx(2000 / 0.5e-3)
    assert found.multiply_adds_per_s == pytest.approx(4096 / 0.5e-3)
    assert found.precision == "fp16" and torch.backends.cuda.matmul.allow_tf32 is False
    assert facts == {"name": "FAKE", "compute_capability": "9.0", "total": 123}


@pytest.mark.parametrize("gpus", [0, 1])
def test_a_gpu_that_is_not_there(gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", fake_torch(gpus))
    with pytest.raises(BackendError, match=rf"GPU 1 for torch, got {gpus} GPUs.*--gpu"):
        gpu_machine(1, Precision.FP32)


def test_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(BackendError, match="CUDA build of torch"):
        gpu_machine(0, Precision.FP32)


def test_without_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(BackendError, match="export-tools"):
        cpu_machine(1, copy_bytes=10, side=2)
