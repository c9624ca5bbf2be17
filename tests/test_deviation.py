"""How far one array is from another."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastsam2.deviation import relative_rms


def test_many_values_are_measured_in_their_spread() -> None:
    want = np.arange(100, dtype=np.float32)
    assert relative_rms(want + np.float32(0.5), want) == pytest.approx(0.5 / want.std(), rel=1e-6)
    assert relative_rms(1000 * want + 500, 1000 * want) == pytest.approx(0.5 / want.std(), rel=1e-5)
    assert relative_rms(want, want) == 0


def test_few_values_are_measured_in_the_largest_or_one() -> None:
    want = np.array([0.5, -0.25], np.float32)
    assert relative_rms(want + np.float32(0.125), want) == pytest.approx(0.125)
    assert relative_rms(100 * want + 5, 100 * want) == pytest.approx(0.1)


def test_other_shapes_and_values_that_are_none_are_infinitely_far() -> None:
    want = np.zeros((2, 20), np.float32)
    assert relative_rms(want[:1], want) == math.inf
    for bad in (np.nan, np.inf):
        have = want.copy()
        have[1, 3] = bad
        assert relative_rms(have, want) == math.inf
