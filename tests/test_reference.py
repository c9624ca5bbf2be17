"""Oracle: a sort of Python tuples that spells out the order of top_k_gather."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from fastsam2.errors import PromptError
from fastsam2.kernels.reference import top_k_gather


def plain_top_k(scores: npt.NDArray[np.float32], k: int) -> list[int]:
    """Indices of the k largest by (is NaN, -score, index), ascending."""
    order = sorted(range(len(scores)), key=lambda i: (math.isnan(scores[i]), 0.0 if math.isnan(scores[i]) else -float(scores[i]), i))
    return sorted(order[:k])


def make_scores(kind: str, batch: int, n: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    scores = rng.standard_normal((batch, n)).astype(np.float32)
    if kind == "ties":
        scores = np.round(scores)
    if kind == "special":
        scores = rng.choice(np.array([np.nan, -np.inf, np.inf, 0.0, -0.0, 1.0], np.float32), (batch, n))
    if kind == "constant":
        scores[:] = -3.0
    return scores


@pytest.mark.parametrize("kind", ["distinct", "ties", "special", "constant"])
@pytest.mark.parametrize(("batch", "n"), [(1, 1), (1, 257), (3, 64), (2, 1000)])
def test_equals_the_plain_order(kind: str, batch: int, n: int) -> None:
    rng = np.random.default_rng(0)
    scores = make_scores(kind, batch, n, rng)
    rows = rng.integers(0, 2**16, (batch, n, 5), np.uint16)
    for k in sorted({0, 1, n // 3, n - 1, n}):
        kept, index = top_k_gather(scores, rows, k)
        assert index.dtype == np.int32 and index.shape == (batch, k) and index.flags.c_contiguous
        assert kept.dtype == rows.dtype and kept.shape == (batch, k, 5) and kept.flags.c_contiguous
        for b in range(batch):
            assert index[b].tolist() == plain_top_k(scores[b], k)
            np.testing.assert_array_equal(kept[b], rows[b, index[b]])


def test_order_of_special_values() -> None:
    scores = np.array([[np.nan, -0.0, 0.0, -np.inf, np.inf, np.nan, -1.0]], np.float32)
    ranked = []
    for k in range(1, 8):
        index = top_k_gather(scores, np.zeros((1, 7, 1)), k)[1][0].tolist()
        ranked += [i for i in index if i not in ranked]
    assert ranked == [4, 1, 2, 6, 3, 0, 5]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_score_dtypes(dtype: npt.DTypeLike) -> None:
    scores = np.array([[1, 5, 5, 2]], dtype)
    assert top_k_gather(scores, np.zeros((1, 4, 2)), 2)[1].tolist() == [[1, 2]]


@pytest.mark.parametrize("dtype", [np.uint16, np.float16, np.float32, np.int64, np.bool_])
def test_rows_are_copied_bit_for_bit_also_when_strided(dtype: npt.DTypeLike) -> None:
    rng = np.random.default_rng(1)
    rows = rng.integers(0, 256, (2, 40, 6)).astype(dtype)
    scores = rng.standard_normal((2, 40)).astype(np.float32)
    view = rows[:, ::2, ::-1]
    kept, index = top_k_gather(scores[:, ::2], view, 7)
    np.testing.assert_array_equal(kept, np.stack([view[b, index[b]] for b in range(2)]))
    rows[:] = 0
    assert kept.any()


def test_nan_rows_survive_and_inputs_stay() -> None:
    rows = np.full((1, 3, 2), np.nan, np.float32)
    scores = np.array([[0.0, 2.0, 1.0]], np.float32)
    assert np.isnan(top_k_gather(scores, rows, 2)[0]).all()
    assert scores.tolist() == [[0.0, 2.0, 1.0]]


@pytest.mark.parametrize(
    ("scores", "rows", "k", "message"),
    [
        (np.zeros(4), np.zeros((1, 4, 2)), 1, r"scores float \[B, N\]"),
        (np.zeros((1, 4), np.int32), np.zeros((1, 4, 2)), 1, r"scores float \[B, N\]"),
        (np.zeros((1, 4)), np.zeros((1, 5, 2)), 1, r"rows \[B, N, D\]"),
        (np.zeros((2, 4)), np.zeros((1, 4, 2)), 1, r"rows \[B, N, D\]"),
        (np.zeros((1, 4)), np.zeros((1, 4)), 1, r"rows \[B, N, D\]"),
        (np.zeros((1, 4)), np.zeros((1, 4, 2)), 5, r"k in 0\.\.4, got 5"),
        (np.zeros((1, 4)), np.zeros((1, 4, 2)), -1, r"k in 0\.\.4, got -1"),
    ],
)
def test_refused(scores: npt.NDArray[np.generic], rows: npt.NDArray[np.generic], k: int, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        top_k_gather(scores, rows, k)
