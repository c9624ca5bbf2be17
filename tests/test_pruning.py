"""Oracles: invariants of each policy; numpy means for pooling."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from fastsam2.config import KEEP_BUCKETS, ModelSpec, Prune, bucket_rows
from fastsam2.enums import PrunePolicy
from fastsam2.errors import InternalError, PromptError
from fastsam2.runtime.bfloat16 import from_bfloat16, to_bfloat16
from fastsam2.runtime.policies.mask import cell_coverage
from fastsam2.runtime.pruning import Pruner, RowContext
from fastsam2.spread import uniform_scores
from tests.specs import model_spec

SCORING = [PrunePolicy.RANDOM, PrunePolicy.UNIFORM, PrunePolicy.MASK]


def make_spec(image_size: int = 256, memory_dim: int = 8) -> ModelSpec:
    return model_spec(name="test", image_size=image_size, hidden_dim=4 * memory_dim, memory_dim=memory_dim)


def cells_to_logits(cells: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """Logits [4g,4g] of a mask given as bool [g,g] cells."""
    return np.kron(np.where(cells, 10.0, -10.0), np.ones((4, 4))).astype(np.float32)


def make_context(
    spec: ModelSpec, logits: npt.NDArray[np.float32] | None = None, object_id: int = 1, frame: int = 5, seed: int = 0
) -> RowContext:
    if logits is None:
        logits = np.full((spec.low_res, spec.low_res), -1024.0, np.float32)
    return RowContext(spec=spec, object_id=object_id, frame=frame, logits=logits, seed=seed)


def make_rows(spec: ModelSpec) -> npt.NDArray[np.uint16]:
    return to_bfloat16(np.random.default_rng(0).standard_normal((spec.tokens, spec.memory_dim)).astype(np.float32))


def kept_cells(prune: Prune, spec: ModelSpec, context: RowContext) -> npt.NDArray[np.bool_]:
    """Bool [g,g]: the cells that survive."""
    pruner = Pruner(prune, spec)
    _, position = pruner.compact(make_rows(spec), pruner.score(context))
    cells = np.zeros(spec.tokens, bool)
    cells[position] = True
    assert cells.sum() == pruner.rows == len(position)
    return cells.reshape(spec.grid, spec.grid)


def block_counts(cells: npt.NDArray[np.bool_], side: int) -> npt.NDArray[np.int64]:
    """Kept cells of every aligned side x side block that lies inside the grid."""
    n = len(cells) // side
    return cells[: n * side, : n * side].reshape(n, side, n, side).sum(axis=(1, 3))


def disc(grid: int, radius: float, center: tuple[float, float] | None = None) -> npt.NDArray[np.bool_]:
    cy, cx = center or (grid / 2, grid / 2)
    y, x = np.mgrid[:grid, :grid]
    return np.hypot(y + 0.5 - cy, x + 0.5 - cx) < radius


@pytest.mark.parametrize("policy", SCORING)
def test_keep_1_goes_through_the_gather_and_changes_nothing(policy: PrunePolicy) -> None:
    spec = make_spec()
    pruner = Pruner(Prune(policy=policy, keep=1.0), spec)
    rows = make_rows(spec)
    assert pruner.active and pruner.rows == spec.tokens and pruner.gathers == 0
    kept, position = pruner.compact(rows, pruner.score(make_context(spec, cells_to_logits(disc(spec.grid, 4)))))
    np.testing.assert_array_equal(kept, rows)
    np.testing.assert_array_equal(position, np.arange(spec.tokens))
    assert kept.dtype == np.uint16 and position.dtype == np.int32 and not np.shares_memory(kept, rows)
    assert pruner.gathers == 1


@pytest.mark.parametrize("policy", SCORING)
@pytest.mark.parametrize("keep", [0.01, 0.05, 0.06, 0.3])
def test_budget_is_a_bucket_and_rows_match_their_positions(policy: PrunePolicy, keep: float) -> None:
    spec = make_spec()
    prune = Prune(policy=policy, keep=keep)
    pruner = Pruner(prune, spec)
    rows = make_rows(spec)
    kept, position = pruner.compact(rows, pruner.score(make_context(spec, cells_to_logits(disc(spec.grid, 4)))))
    assert len(position) == pruner.rows == prune.rows(spec.tokens) in {bucket_rows(b, spec.tokens) for b in KEEP_BUCKETS}
    assert pruner.rows >= keep * spec.tokens
    assert (np.diff(position) > 0).all()
    np.testing.assert_array_equal(kept, rows[position])


def test_dense_is_not_active() -> None:
    pruner = Pruner(Prune(), make_spec())
    assert not pruner.active and pruner.rows == 256
    assert pruner.score(make_context(make_spec())) is None
    with pytest.raises(InternalError, match="policy dense"):
        pruner.compact(make_rows(make_spec()), None)
    assert pruner.gathers == 0


def test_pool2x2_is_the_mean_of_four_cells() -> None:
    spec = make_spec()
    pruner = Pruner(Prune(policy=PrunePolicy.POOL2X2), spec)
    rows = make_rows(spec)
    assert pruner.active and pruner.rows == 64 and pruner.score(make_context(spec)) is None
    pooled, position = pruner.compact(rows, None)
    grid = from_bfloat16(rows).reshape(16, 16, 8)
    mean = (grid[0::2, 0::2] + grid[0::2, 1::2] + grid[1::2, 0::2] + grid[1::2, 1::2]) / 4
    assert pooled.dtype == np.uint16 and pooled.shape == (64, 8)
    # One bfloat16 rounding of the mean: half a unit in the last of 8 bits, and float32 noise for sums that cancel.
    np.testing.assert_allclose(from_bfloat16(pooled), mean.reshape(64, 8), rtol=2**-8, atol=1e-6)
    np.testing.assert_array_equal(position, 256 + np.arange(64))
    assert position.dtype == np.int32 and pruner.gathers == 1


@pytest.mark.parametrize("policy", SCORING)
def test_scores_repeat(policy: PrunePolicy) -> None:
    spec = make_spec()
    prune = Prune(policy=policy, keep=0.1)
    context = make_context(spec, cells_to_logits(disc(spec.grid, 3)), seed=7)
    busy = Pruner(prune, spec)
    for frame in range(4):
        busy.score(make_context(spec, frame=frame, object_id=9))
    np.testing.assert_array_equal(busy.score(context), Pruner(prune, spec).score(context))
    assert busy.score(context).dtype == np.float32 and busy.score(context).shape == (spec.tokens,)


def test_random_depends_on_seed_object_and_frame() -> None:
    spec = make_spec()
    pruner = Pruner(Prune(policy=PrunePolicy.RANDOM, keep=0.1), spec)
    base = pruner.score(make_context(spec))
    for other in ({"seed": 1}, {"object_id": 2}, {"frame": 6}, {"object_id": 5, "frame": 1}, {"object_id": -1}):
        assert (pruner.score(make_context(spec, **other)) != base).mean() > 0.9
    np.testing.assert_array_equal(pruner.score(make_context(spec, cells_to_logits(disc(16, 4)))), base)


def test_random_prefers_no_place() -> None:
    spec = make_spec()
    prune = Prune(policy=PrunePolicy.RANDOM, keep=0.25)
    often = sum(kept_cells(prune, spec, make_context(spec, frame=f)).astype(int) for f in range(400)) / 400
    assert np.abs(often - 0.25).max() < 0.11  # 5 standard deviations of a cell's share: 5 · sqrt(0.25 · 0.75 / 400)


@pytest.mark.parametrize("grid", [2, 6, 14, 16, 48, 64])
def test_uniform_is_even_for_every_budget(grid: int) -> None:
    scores = uniform_scores(grid)
    np.testing.assert_array_equal(np.sort(scores), np.arange(grid * grid))
    rank = grid * grid - 1 - scores.reshape(grid, grid)
    for k in {1, 2, 3, 5, *range(7, grid * grid, max(1, grid * grid // 60)), grid * grid}:
        side = 1
        while side <= grid:
            counts = block_counts(rank < k, side)
            assert counts.max() - counts.min() <= 1, f"{k} cells, blocks of {side}"
            side *= 2


def test_uniform_starts_in_the_middle_and_is_no_set_of_lines() -> None:
    cells = uniform_scores(64).reshape(64, 64) >= 4096 - 64
    y, x = np.nonzero(cells)
    assert len(y) == 64
    assert abs(y.mean() - 31.5) < 2 and abs(x.mean() - 31.5) < 2
    distance = np.hypot(y[:, None] - y, x[:, None] - x)[~np.eye(64, dtype=bool)]
    assert distance.min() == 8.0  # the best possible for 64 points: a lattice with pitch 64 / 8


def test_uniform_ignores_the_mask() -> None:
    spec = make_spec()
    pruner = Pruner(Prune(policy=PrunePolicy.UNIFORM, keep=0.1), spec)
    np.testing.assert_array_equal(pruner.score(make_context(spec)), pruner.score(make_context(spec, cells_to_logits(disc(16, 5)), frame=8)))


def test_mask_keeps_a_small_object_and_its_ring() -> None:
    spec = make_spec(image_size=512)  # 32 x 32 cells
    blob = disc(32, 2.6, center=(9, 21))
    ring = disc(32, 3.6, center=(9, 21)) & ~blob
    prune = Prune(policy=PrunePolicy.MASK, keep=0.05)
    kept = kept_cells(prune, spec, make_context(spec, cells_to_logits(blob)))
    assert blob.sum() + ring.sum() <= kept.sum() == 52
    assert kept[blob].all()
    assert kept[ring].all()
    assert kept[disc(32, 6, center=(9, 21))].sum() > 0.8 * kept.sum()


def test_mask_samples_a_large_object_evenly() -> None:
    spec = make_spec(image_size=1024)  # 64 x 64 cells
    blob = disc(64, 26)
    prune = Prune(policy=PrunePolicy.MASK, keep=0.1)
    kept = kept_cells(prune, spec, make_context(spec, cells_to_logits(blob)))
    assert blob.sum() > 4 * kept.sum()
    assert not kept[~blob].any()
    inside = block_counts(blob, 8) == 64
    counts = block_counts(kept, 8)[inside]
    assert inside.sum() >= 20 and counts.max() - counts.min() <= 1
    rim = blob & ~disc(64, 24)
    assert kept[rim].mean() == pytest.approx(kept[blob].mean(), rel=0.35)


def test_mask_fills_up_evenly_when_the_object_and_its_ring_are_kept() -> None:
    spec = make_spec(image_size=512)
    kept = kept_cells(Prune(policy=PrunePolicy.MASK, keep=0.25), spec, make_context(spec, cells_to_logits(disc(32, 3, center=(8, 8)))))
    far = block_counts(kept, 8)
    far = np.delete(far.reshape(-1), [0, 1, 4, 5])  # the four blocks around the object
    assert far.min() > 0 and far.max() - far.min() <= 1


def test_mask_of_an_invisible_object_is_uniform() -> None:
    spec = make_spec()
    np.testing.assert_array_equal(
        Pruner(Prune(policy=PrunePolicy.MASK, keep=0.1), spec).score(make_context(spec)),
        Pruner(Prune(policy=PrunePolicy.UNIFORM, keep=0.1), spec).score(make_context(spec)),
    )


def test_mask_ranks_a_half_covered_border_before_the_background() -> None:
    spec = make_spec()
    logits = np.full((64, 64), -10.0, np.float32)
    logits[17:23, 17:23] = 10.0  # covers cell (5,5) except its far edges, and neighbours in part
    kept = kept_cells(Prune(policy=PrunePolicy.MASK, keep=0.02), spec, make_context(spec, logits))
    assert kept.sum() == 6
    coverage = cell_coverage(logits, 16)
    assert kept[coverage >= 0.25].all() and 0 < (coverage >= 0.25).sum() < 6


def test_mask_follows_a_thin_object_that_fills_no_cell() -> None:
    spec = make_spec()
    logits = np.full((64, 64), -10.0, np.float32)
    logits[30, 8:56] = 10.0  # one logit high: a quarter of each cell of row 7
    kept = kept_cells(Prune(policy=PrunePolicy.MASK, keep=0.05), spec, make_context(spec, logits))
    assert cell_coverage(logits, 16).max() < 0.5
    assert kept[7, 2:14].sum() >= 10


def test_cell_coverage_is_the_mean_probability() -> None:
    logits = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32) * 5
    expected = (1 / (1 + np.exp(-logits.astype(np.float64)))).reshape(16, 4, 16, 4).mean(axis=(1, 3))
    np.testing.assert_allclose(cell_coverage(logits, 16), expected, atol=1e-6)


def test_misuse_is_reported() -> None:
    spec = make_spec()
    pruner = Pruner(Prune(policy=PrunePolicy.MASK, keep=0.1), spec)
    with pytest.raises(InternalError, match=r"logits \[64, 64\]"):
        pruner.score(make_context(spec, np.zeros((32, 32), np.float32)))
    with pytest.raises(InternalError, match="no scores"):
        pruner.compact(make_rows(spec), None)
    with pytest.raises(InternalError, match="rows"):
        pruner.compact(make_rows(spec)[:-1], pruner.score(make_context(spec)))
    with pytest.raises(InternalError, match="policy pool2x2"):
        Pruner(Prune(policy=PrunePolicy.POOL2X2), spec).compact(make_rows(spec), np.zeros(256, np.float32))
    with pytest.raises(PromptError, match="at most 256 tokens"):
        Pruner(Prune(policy=PrunePolicy.MASK, tokens=257), spec)
    assert pruner.gathers == 0
