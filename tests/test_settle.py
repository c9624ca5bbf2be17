"""benchmarks/settle.py: on a clock of its own, so that nothing is waited for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fastsam2.benchmarks import settle as module
from fastsam2.benchmarks.settle import settle


class Clock:
    """Moves by what the steps take."""

    def __init__(self, takes: Iterator[float]) -> None:
        self.now, self.takes, self.steps = 0.0, takes, 0

    def perf_counter(self) -> float:
        return self.now

    def step(self) -> None:
        self.now += next(self.takes)
        self.steps += 1


def took(monkeypatch: pytest.MonkeyPatch, takes: Iterator[float], **limits: float) -> tuple[bool, Clock]:
    clock = Clock(takes)
    monkeypatch.setattr(module, "time", clock)
    return settle(clock.step, **limits), clock


def test_waits_until_nothing_gets_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    fast_after_a_while = (0.5 if t < 6 else 0.1 for t in range(1000))
    settled, clock = took(monkeypatch, fast_after_a_while, quiet_s=4.0)
    assert settled and clock.now == pytest.approx(6 * 0.5 + 0.1 + 4.0, abs=0.11)


def test_noise_is_not_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    settled, clock = took(monkeypatch, (0.1 - 1e-5 * t for t in range(1000)), quiet_s=1.0)
    assert settled and clock.now < 2.0


def test_what_never_rests_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    settled, clock = took(monkeypatch, (0.9**t for t in range(1000)), quiet_s=5.0, most_s=8.0)
    assert not settled and 8.0 <= clock.now < 9.0


def test_without_patience_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    settled, clock = took(monkeypatch, iter([]), quiet_s=0.0)
    assert settled and clock.steps == 0
