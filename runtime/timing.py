"""Milliseconds per stage, bounded however long a stream runs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

WINDOW = 4096  # newest samples kept per stage


class StageTimer:
    """Collects durations by stage name."""

    def __init__(self) -> None:
        self._samples: dict[str, deque[float]] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the body of a `with` statement as one sample of `name`; a body that raises leaves no sample."""
        start = time.perf_counter()
        yield
        self._samples.setdefault(name, deque(maxlen=WINDOW)).append(time.perf_counter() - start)

    def summary(self) -> dict[str, dict[str, float]]:
        """{stage: {median, p90}} in milliseconds, over the newest samples."""
        return {
            name: {"median": float(np.median(values) * 1e3), "p90": float(np.quantile(values, 0.9) * 1e3)}
            for name, values in ((n, np.array(s)) for n, s in self._samples.items())
        }

    def clear(self) -> None:
        """Forget every sample."""
        self._samples.clear()
