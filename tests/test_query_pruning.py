"""Which tokens stay queries. Oracles: invariants, and brute force for distances."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fastsam2.config import Prune
from fastsam2.enums import QueryPolicy
from fastsam2.errors import PromptError
from fastsam2.runtime.query_pruning import ANCHORS, Queries, QueryPruner, nearest_marked
from tests.specs import model_spec

SPEC = model_spec(image_size=256)  # 16 x 16 tokens
G, N = SPEC.grid, SPEC.tokens


def logits_of(cells: npt.NDArray[np.bool_], undecided: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.float32]:
    values = np.where(cells, 10.0, -10.0)
    if undecided is not None:
        values[undecided] = -0.5
    return np.kron(values, np.ones((4, 4))).astype(np.float32)


def box(y: slice, x: slice) -> npt.NDArray[np.bool_]:
    cells = np.zeros((G, G), np.bool_)
    cells[y, x] = True
    return cells


def tokens(seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((1, N, SPEC.hidden_dim)).astype(np.float32)


def choose(policy: str, keep: float, logits: npt.NDArray[np.float32], given: npt.NDArray[np.float32] | None = None) -> Queries:
    (queries,) = QueryPruner(Prune(queries=policy, query_keep=keep), SPEC).choose(tokens() if given is None else given, [logits])  # type: ignore[arg-type]
    assert queries is not None
    return queries


def check(queries: Queries, count: int) -> None:
    """K queries in ascending order, all in use; a cell with a query of its own, or of its 2x2 cell, takes that one."""
    assert queries.position.dtype == queries.source.dtype == np.int32
    assert len(queries.position) == count
    assert (np.diff(queries.position) > 0).all()
    assert set(queries.source) == set(range(count))
    y, x = np.divmod(np.arange(N), G)
    taken = queries.position[queries.source]
    for own in (np.arange(N), N + y // 2 * (G // 2) + x // 2):
        has = np.isin(own, queries.position)
        np.testing.assert_array_equal(taken[has], own[has])


def own_queries(queries: Queries) -> npt.NDArray[np.bool_]:
    return np.isin(np.arange(N), queries.position)


def test_everything_is_a_query_by_default() -> None:
    pruner = QueryPruner(Prune(), SPEC)
    assert not pruner.active
    assert pruner.choose(tokens(), [logits_of(box(slice(2, 4), slice(2, 4)))] * 2) == [None, None]


def test_keeping_all_drops_and_merges_nothing() -> None:
    for policy in ("drop", "merge"):
        queries = choose(policy, 1.0, logits_of(box(slice(2, 4), slice(2, 4))))
        check(queries, N)
        np.testing.assert_array_equal(queries.position, np.arange(N))
        np.testing.assert_array_equal(queries.source, np.arange(N))


@pytest.mark.parametrize("keep", [0.01, 0.1, 0.3, 0.5, 0.99])
def test_drop_keeps_what_is_near_the_mask_and_anchors(keep: float) -> None:
    queries = choose("drop", keep, logits_of(box(slice(4, 7), slice(8, 13))))
    count = int(np.ceil(round(keep * N, 6)))
    check(queries, count)
    kept, ring = own_queries(queries), box(slice(3, 8), slice(7, 14))  # the mask and its neighbours
    away = nearest_marked(ring)[0].reshape(-1)
    near = count - int(ANCHORS * count)
    assert np.sort(away[kept])[:near].tolist() == np.sort(away)[:near].tolist()
    y, x = np.divmod(np.arange(N), G)
    apart = np.square(y[:, None] - y[kept]) + np.square(x[:, None] - x[kept])
    taken = queries.position[queries.source]
    np.testing.assert_array_equal(np.square(y - y[taken]) + np.square(x - x[taken]), apart.min(axis=1))
    if keep == 0.5:
        assert kept.reshape(4, 4, 4, 4).any(axis=(1, 3)).all()  # anchors in every part of the frame


def test_undecided_cells_come_before_decided_ones() -> None:
    mask, unsure = box(slice(1, 3), slice(1, 3)), box(slice(14, 16), slice(14, 16))
    kept = own_queries(choose("drop", 26 / N, logits_of(mask, unsure))).reshape(G, G)
    assert kept[:4, :4].all() and kept[14:, 14:].all()  # 16 + 4 and six anchors


def test_an_object_without_a_mask_keeps_all_queries_under_drop_only() -> None:
    gone = np.full((SPEC.low_res, SPEC.low_res), -1024.0, np.float32)
    seen = logits_of(box(slice(2, 4), slice(2, 4)))
    drop = QueryPruner(Prune(queries=QueryPolicy.DROP, query_keep=0.25), SPEC).choose(tokens(), [gone, seen])
    assert drop[0] is None and drop[1] is not None
    check(choose("merge", 0.25, gone), N // 4)


@pytest.mark.parametrize("keep", [0.25, 0.4, 0.5, 0.9])
def test_merge_takes_the_flattest_cells_away_from_the_mask(keep: float) -> None:
    mask = box(slice(4, 6), slice(4, 6))
    given = tokens()
    queries = choose("merge", keep, logits_of(mask), given)
    merged = queries.position[queries.position >= N] - N
    assert N - 3 * len(merged) - int(np.ceil(round(keep * N, 6))) in (0, 1, 2)
    check(queries, N - 3 * len(merged))
    near = box(slice(3, 7), slice(3, 7)).reshape(8, 2, 8, 2).any(axis=(1, 3)).reshape(-1)
    free = np.flatnonzero(~near)
    if len(merged) <= len(free):
        roughness = given.reshape(8, 2, 8, 2, -1).var(axis=(1, 3)).sum(-1).reshape(-1)
        np.testing.assert_array_equal(np.sort(free[np.argsort(roughness[free])[: len(merged)]]), merged)
    else:
        assert set(free) <= set(merged)


@pytest.mark.parametrize(("merged", "left"), [(54, {(5, 5)}), (55, set())])
def test_merge_leaves_undecided_cells_and_then_the_mask_for_last(merged: int, left: set[tuple[int, int]]) -> None:
    """Of 64 blocks 9 touch the mask or its neighbours, and one is undecided; all are equally flat."""
    mask, unsure = box(slice(4, 6), slice(4, 6)), box(slice(10, 12), slice(10, 12))
    queries = choose("merge", (N - 3 * merged) / N, logits_of(mask, unsure), np.zeros_like(tokens()))
    y, x = np.divmod(np.setdiff1d(np.arange(N // 4), queries.position - N), G // 2)
    assert set(zip(y.tolist(), x.tolist(), strict=True)) == {(a, b) for a in (1, 2, 3) for b in (1, 2, 3)} | left


def test_choices_are_repeatable_and_of_one_size() -> None:
    rng = np.random.default_rng(3)
    logits = [(rng.standard_normal((SPEC.low_res, SPEC.low_res)) * 5).astype(np.float32) for _ in range(4)]
    for policy, keep in (("drop", 0.3), ("merge", 0.3)):
        pruner = QueryPruner(Prune(queries=policy, query_keep=keep), SPEC)  # type: ignore[arg-type]
        first, again = pruner.choose(tokens(), logits), pruner.choose(tokens(), logits)
        for a, b in zip(first, again, strict=True):
            assert a is not None and b is not None
            check(a, pruner.count)
            np.testing.assert_array_equal(a.source, b.source)


def test_nearest_marked() -> None:
    cells = np.random.default_rng(0).random((9, 9)) > 0.9
    marked = np.argwhere(cells)
    want = [[min(((y - a) ** 2 + (x - b) ** 2) for a, b in marked) for x in range(9)] for y in range(9)]
    distance, index = nearest_marked(cells)
    np.testing.assert_array_equal(distance, want)
    assert cells.reshape(-1)[index].all()
    y, x = np.mgrid[:9, :9]
    np.testing.assert_array_equal(np.square(index // 9 - y) + np.square(index % 9 - x), want)
    assert len(np.unique(nearest_marked(np.zeros((9, 9), np.bool_))[0])) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queries": "some"}, "queries of .*drop"),
        ({"query_keep": 0.5}, "no query_keep where all tokens are queries"),
        ({"queries": "drop"}, r"query_keep in \(0, 1\]"),
        ({"queries": "drop", "query_keep": 0.0}, r"query_keep in \(0, 1\]"),
        ({"queries": "drop", "query_keep": 1.1}, r"query_keep in \(0, 1\]"),
        ({"queries": "drop", "query_keep": float("nan")}, r"query_keep in \(0, 1\]"),
        ({"queries": "merge", "query_keep": 0.2}, r"query_keep in \[0.25, 1\]"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        Prune(**options)
