"""Milliseconds per stage, bounded however long a stream runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

WINDOW = 4096  # newest samples kept per stage
Float64 = npt.NDArray[np.float64]


class StageTimer:
    """Collects durations by stage name."""

    def __init__(self) -> None:
        self._rings: dict[str, tuple[Float64, list[int]]] = {}  # samples, [calls so far]; allocated whole, so that nothing grows later

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the body of a `with` statement as one sample of `name`; a body that raises leaves no sample."""
        start = time.perf_counter()
        yield
        took = time.perf_counter() - start
        if name not in self._rings:
            self._rings[name] = np.full(WINDOW, np.nan), [0]
        samples, calls = self._rings[name]
        samples[calls[0] % WINDOW] = took
        calls[0] += 1

    def summary(self) -> dict[str, dict[str, float]]:
        """{stage: {median, p90}} in milliseconds, over the newest samples."""
        return {
            name: {"median": float(np.median(values) * 1e3), "p90": float(np.quantile(values, 0.9) * 1e3)}
            for name, values in ((n, samples[: calls[0]]) for n, (samples, calls) in self._rings.items())
        }

    def samples_ms(self, name: str) -> list[float]:
        """Milliseconds of the newest samples of a stage, in the order of the calls; at most `WINDOW`."""
        samples, calls = self._rings[name]
        newest = range(max(0, calls[0] - WINDOW), calls[0])
        return [float(samples[i % WINDOW]) * 1e3 for i in newest]

    def clear(self) -> None:
        """Forget every sample."""
        self._rings.clear()
