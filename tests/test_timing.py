"""Durations by stage. Oracle: numpy's median and quantile of the same samples."""

import numpy as np
import pytest

from fastsam2.runtime import timing
from fastsam2.runtime.timing import StageTimer


def test_summary_covers_the_newest_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "WINDOW", 5)
    durations = [9.0, 8.0, 1.0, 2.0, 3.0, 4.0, 10.0]
    clock = iter(np.ravel([(0.0, d) for d in durations]).tolist())
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    timer = StageTimer()
    for _ in durations:
        with timer.stage("decode"):
            pass
    assert timer.summary()["decode"] == pytest.approx({"median": 3000.0, "p90": np.quantile(durations[2:], 0.9) * 1e3})


def test_a_stage_that_raises_leaves_no_sample() -> None:
    timer = StageTimer()
    with pytest.raises(ValueError, match="broken"), timer.stage("decode"):
        raise ValueError("broken")
    assert timer.summary() == {}
    with timer.stage("decode"):
        pass
    timer.clear()
    assert timer.summary() == {}
